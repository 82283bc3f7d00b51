//! `ptx lint FOLDER`: what PTX says without being run. `ptx opcodes FOLDER COVERAGE`: opcodes executed
//! of those that stand there, by what runs with `INFLIGHT_PTX_COVERAGE=COVERAGE` have left.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["lint", folder] => lint(Path::new(folder)),
        ["opcodes", folder, coverage] => opcodes(Path::new(folder), Path::new(coverage)),
        _ => Err("usage: ptx lint FOLDER | ptx opcodes FOLDER COVERAGE".into()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(2)
        }
    }
}

fn lint(folder: &Path) -> Result<bool, String> {
    let (kernels, found) = ptx::lint(folder)?;
    found.iter().for_each(|text| println!("{text}"));
    println!("{kernels} kernels, {} findings", found.len());
    Ok(found.is_empty())
}

fn opcodes(folder: &Path, coverage: &Path) -> Result<bool, String> {
    let mut opcodes = ptx::opcodes(folder, coverage)?;
    // What stops a kernel that runs on the wrong device is not to be met.
    opcodes.remove("trap");
    let executed = opcodes.values().filter(|[_, times]| *times > 0).count();
    for (opcode, [places, times]) in &opcodes {
        println!(
            "{opcode:<80} {places:>8} {times:>14}{}",
            if *times == 0 { " never executed" } else { "" }
        );
    }
    let times: u64 = opcodes.values().map(|[_, times]| times).sum();
    println!("{executed} of {} opcodes executed, {times} warp instructions", opcodes.len());
    Ok(executed == opcodes.len())
}
