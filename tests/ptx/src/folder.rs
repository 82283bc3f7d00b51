//! A folder of PTX: all that is in it checked, and which of its opcodes were executed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::lint::{self, Contract};
use crate::parse;

/// The step buffer's place among the parameters; `mixed` has those of two kernels.
const STEP: &[u32] = &[0];
const STEPS: &[u32] = &[0, 224];

/// What a kernel is held to, by its name and target.
fn contract(kernel: &str, file: &str) -> Contract<'static> {
    let is_own = kernel.starts_with("inflight_") && !kernel.starts_with("inflight_ceiling_");
    if !is_own {
        return Contract::default();
    }
    let constant = if kernel.contains("_mixed_") { STEPS } else { STEP };
    Contract { waits: !file.ends_with(".80.ptx"), constant: Some(constant) }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let listed = std::fs::read_dir(folder).map_err(|why| format!("{}: {why}", folder.display()))?;
    let mut files: Vec<_> = listed
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "ptx"))
        .collect();
    files.sort();
    if files.is_empty() {
        return Err(format!("{} has no PTX: scripts/kernel-ptx makes it", folder.display()));
    }
    Ok(files)
}

/// Kernels that were looked at, and what was found in them. Self-tests with mistakes put in are left out.
///
/// # Errors
/// Where the folder cannot be read, or PTX not be taken apart.
pub fn lint(folder: &Path) -> Result<(usize, Vec<String>), String> {
    let (mut count, mut found) = (0, Vec::new());
    for path in files(folder)? {
        let text = parse::read(&path)?;
        let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        for kernel in parse::entries(&text).filter(|name| !name.starts_with("selftest_")) {
            let entry = parse::parse(&text, kernel, file)?;
            found.extend(lint::check(&entry, file, contract(kernel, file)));
            count += 1;
        }
    }
    Ok((count, found))
}

/// Each opcode of a folder: how often it stands there, and how often warps executed it, by files that
/// were written to `INFLIGHT_PTX_COVERAGE`.
///
/// # Errors
/// As [`lint`].
pub fn opcodes(folder: &Path, coverage: &Path) -> Result<BTreeMap<String, [u64; 2]>, String> {
    let mut found: BTreeMap<String, [u64; 2]> = BTreeMap::new();
    for path in files(folder)? {
        let text = parse::read(&path)?;
        let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        for kernel in parse::entries(&text) {
            for statement in parse::parse(&text, kernel, file)?.statements {
                found.entry(statement.opcode.to_owned()).or_default()[0] += 1;
            }
        }
    }
    let listed =
        std::fs::read_dir(coverage).map_err(|why| format!("{}: {why}", coverage.display()))?;
    for path in listed.filter_map(|entry| Some(entry.ok()?.path())) {
        for line in parse::read(&path)?.lines() {
            let mut fields = line.split('\t').skip(4);
            if let (Some(opcode), Some(Ok(executed))) =
                (fields.next(), fields.next().map(str::parse::<u64>))
            {
                found.entry(opcode.to_owned()).or_default()[1] += executed;
            }
        }
    }
    Ok(found)
}
