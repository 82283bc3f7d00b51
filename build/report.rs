//! What ptxas says of each kernel, as a table: registers, spills, shared memory; and what compiling
//! all took.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{fail, family};

const COLUMNS: &str = "kernel arch registers spill_stores spill_loads stack shared";

/// Writes `kernels.txt` to OUT_DIR, and to the path in INFLIGHT_CUDA_REPORT.
pub(crate) fn write(sources: &[PathBuf], out: &Path) {
    let mut table = COLUMNS.replace(' ', "\t") + "\n";
    for source in sources {
        let log = out.join(format!("{}.ptxas", family(source)));
        let log = fs::read_to_string(log).expect("it is written with each image");
        add(&log, &mut table);
    }
    let size = |source| fs::metadata(out.join(format!("{}.fatbin", family(source))));
    let bytes: u64 = sources.iter().filter_map(|source| Some(size(source).ok()?.len())).sum();
    let seconds = |source| fs::read_to_string(out.join(format!("{}.seconds", family(source))));
    let took = sources.iter().filter_map(|source| seconds(source).ok()?.parse::<f64>().ok());
    writeln!(table, "cost\t{:.1}\t{bytes}", took.sum::<f64>()).expect("a String takes all");
    fs::write(out.join("kernels.txt"), &table).expect("OUT_DIR is writable");
    if let Some(path) = env::var_os("INFLIGHT_CUDA_REPORT").map(PathBuf::from)
        && let Err(error) = fs::write(&path, &table)
    {
        fail(&format!("INFLIGHT_CUDA_REPORT is {}: {error}", path.display()));
    }
}

/// A line a kernel and architecture, and one `warning` for each that ptxas gives; those of spills
/// and local memory are numbers in the table.
fn add(log: &str, table: &mut String) {
    let (mut kernel, mut frame) = (String::new(), [0; 3]);
    for line in log.lines() {
        if let Some((_, entry)) = line.split_once("Compiling entry function '") {
            // `name' for 'sm_80'`
            let names: Vec<_> = entry.split('\'').collect();
            kernel = format!("{}\t{}", names[0], names.get(2).unwrap_or(&"?"));
        } else if line.contains("bytes stack frame") {
            let [stack, stores, loads] = ["bytes stack", "bytes spill stores", "bytes spill loads"]
                .map(|what| number(line, what));
            frame = [stores, loads, stack];
        } else if line.contains("ptxas info") && line.contains("Used ") {
            let [registers, shared] = ["registers", "bytes smem"].map(|what| number(line, what));
            let [stores, loads, stack] = frame;
            writeln!(table, "{kernel}\t{registers}\t{stores}\t{loads}\t{stack}\t{shared}")
                .expect("a String takes all");
        } else if line.to_lowercase().contains("warning")
            && !["Registers are spilled", "Local memory used"].iter().any(|w| line.contains(w))
        {
            writeln!(table, "warning\t{}", line.trim()).expect("a String takes all");
        }
    }
}

/// The number before `what`; 0 where it is not there.
fn number(line: &str, what: &str) -> u32 {
    let before = line.split_once(what).map_or("", |(before, _)| before);
    before.split_whitespace().last().and_then(|number| number.parse().ok()).unwrap_or(0)
}
