//! What PTX says without being run: rules that hold on every path, those too that no test takes.
//!
//! * A kernel for compute_90 waits for the kernel before on every way out, and before that it stores
//!   nothing: the contract of dependent launches.
//! * `ld.global.nc` reads the step buffer alone, which no kernel writes.
//! * No local memory.
//! * Instructions of whole warps (`.aligned`, `bar`) stand where all lanes of a warp are.
//! * `wgmma` stands behind a fence, and its registers are not touched before the wait.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::graph::Graph;
use crate::parse::{Entry, Operand, Statement};

/// What a kernel is held to besides the rules that hold for all.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Contract<'a> {
    /// It may be launched as a dependent.
    pub(crate) waits: bool,
    /// Offsets of parameters that `.nc` loads may start from; none: any.
    pub(crate) constant: Option<&'a [u32]>,
}

/// What was found in a kernel, each with its place.
pub(crate) fn check(entry: &Entry<'_>, file: &str, contract: Contract<'_>) -> Vec<String> {
    let graph = Graph::new(entry);
    let lint = Lint { entry, file, graph: &graph };
    let mut found = Vec::new();
    if contract.waits {
        lint.waits(&mut found);
    }
    if let Some(offsets) = contract.constant {
        lint.constants(offsets, &mut found);
    }
    lint.no_local(&mut found);
    lint.whole_warps(&mut found);
    lint.products(&mut found);
    found
}

struct Lint<'a, 't> {
    entry: &'a Entry<'t>,
    file: &'a str,
    graph: &'a Graph,
}

/// A register's name, and those within vectors, pairs and addresses.
fn registers<'a>(operand: &'a Operand<'_>, to: &mut Vec<&'a str>) {
    match operand {
        Operand::Register(name) => to.push(name),
        Operand::Vector(parts) => parts.iter().for_each(|part| registers(part, to)),
        Operand::Address(base, _) => registers(base, to),
        Operand::Tensor(base, parts) => {
            registers(base, to);
            parts.iter().for_each(|part| registers(part, to));
        }
        Operand::Pair(a, b) => {
            registers(a, to);
            registers(b, to);
        }
        _ => (),
    }
}

fn is_a(statement: &Statement<'_>, mnemonics: &[&str]) -> bool {
    statement.opcode.split('.').next().is_some_and(|word| mnemonics.contains(&word))
}

/// Whether the first operand is a result.
fn has_result(statement: &Statement<'_>) -> bool {
    let none = [
        "st",
        "bra",
        "ret",
        "exit",
        "bar",
        "barrier",
        "cp",
        "fence",
        "griddepcontrol",
        "setmaxnreg",
        "red",
        "stmatrix",
        "trap",
    ];
    let is_wait =
        statement.opcode.contains("_wait") || statement.opcode.starts_with("mbarrier.arrive");
    !is_a(statement, &none) && (!is_a(statement, &["mbarrier"]) || is_wait)
}

/// What a statement writes, and what it reads.
pub(crate) fn effects<'a>(statement: &'a Statement<'_>) -> (Vec<&'a str>, Vec<&'a str>) {
    let (mut writes, mut reads) = (Vec::new(), Vec::new());
    let split = usize::from(has_result(statement));
    for operand in &statement.operands[..split.min(statement.operands.len())] {
        registers(operand, &mut writes);
    }
    for operand in &statement.operands[split.min(statement.operands.len())..] {
        registers(operand, &mut reads);
    }
    if statement.opcode.starts_with("wgmma.mma_async") {
        reads.extend(writes.iter().copied());
    }
    if let Some((name, _)) = &statement.guard {
        reads.push(name);
        // Where the guard does not hold, what was there stays.
        reads.extend(writes.iter().copied());
    }
    (writes, reads)
}

impl<'a> Lint<'a, '_> {
    fn say(&self, found: &mut Vec<String>, at: usize, what: impl std::fmt::Display) {
        let statement = &self.entry.statements[at];
        let place = self.entry.sources.get(statement.place.file as usize);
        let source = place.and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        let (file, line, name) = (self.file, statement.line, self.entry.name);
        found.push(format!("{file}:{line}: {name}: {what} ({source}:{})", statement.place.line));
    }

    fn no_local(&self, found: &mut Vec<String>) {
        for (at, statement) in self.entry.statements.iter().enumerate() {
            if is_a(statement, &["ld", "st", "cvta"]) && statement.opcode.contains(".local") {
                self.say(found, at, format_args!("local memory: {}", statement.opcode));
            }
        }
    }

    /// Forward, over paths: which statements a thread may reach that has not waited.
    fn waits(&self, found: &mut Vec<String>) {
        let statements = &self.entry.statements;
        let (mut todo, mut seen) = (vec![0], HashSet::from([0]));
        let mut is_waiting = false;
        while let Some(at) = todo.pop() {
            let Some(statement) = statements.get(at) else { continue };
            let waits = statement.opcode == "griddepcontrol.wait" && statement.guard.is_none();
            is_waiting |= waits;
            if waits {
                continue;
            }
            if is_a(statement, &["st", "atom", "red", "stmatrix"])
                && !statement.opcode.contains("shared")
                || statement.opcode.contains("bulk_group")
            {
                self.say(
                    found,
                    at,
                    format_args!("{} before the wait for the kernel before", statement.opcode),
                );
            }
            if is_a(statement, &["cp"]) && statement.opcode.contains("global") {
                self.say(
                    found,
                    at,
                    format_args!(
                        "{} of memory before the wait for the kernel before",
                        statement.opcode
                    ),
                );
            }
            if is_a(statement, &["ret", "exit"]) {
                self.say(found, at, "a way out without griddepcontrol.wait");
            }
            for next in self.graph.successors(at) {
                if seen.insert(next) {
                    todo.push(next);
                }
            }
        }
        if !is_waiting {
            self.say(found, 0, "no griddepcontrol.wait at all");
        }
    }

    /// Of which parameters an address is made: unions, over all that is ever written to a register.
    fn constants(&self, allowed: &[u32], found: &mut Vec<String>) {
        let statements = &self.entry.statements;
        let mut from: HashMap<&str, BTreeSet<u32>> = HashMap::new();
        let mut bases: HashMap<&str, u32> = HashMap::new();
        loop {
            let mut changed = false;
            for statement in statements {
                let (writes, reads) = effects(statement);
                let mut sources = BTreeSet::new();
                if statement.opcode.starts_with("ld.param") {
                    // Of 64 bits: addresses and strides; others are counts.
                    if let Some(offset) = self
                        .param_offset(statement, &bases)
                        .filter(|_| statement.opcode.ends_with("64"))
                    {
                        for (i, write) in writes.iter().enumerate() {
                            let offset = offset + i as u32 * 8;
                            changed |= from.entry(write).or_default().insert(offset);
                        }
                    }
                    continue;
                }
                if let [Operand::Register(to), Operand::Symbol(name)] = &statement.operands[..]
                    && let Some((offset, _)) = self.entry.params.get(name)
                {
                    changed |= bases.insert(to, *offset) != Some(*offset);
                    continue;
                }
                if let [Operand::Register(to), Operand::Register(base), Operand::Integer(by)] =
                    &statement.operands[..]
                    && statement.opcode.starts_with("add.s64")
                    && let Some(offset) = bases.get(base.as_str()).copied()
                {
                    changed |= bases.insert(to, offset.wrapping_add(*by as u32))
                        != Some(offset.wrapping_add(*by as u32));
                    continue;
                }
                if is_a(statement, &["ld", "atom", "setp", "ldmatrix", "mma", "shfl"]) {
                    // A pointer that is handed from lane to lane is what it was.
                    if !is_a(statement, &["shfl"]) {
                        continue;
                    }
                }
                for read in reads {
                    sources.extend(from.get(read).into_iter().flatten().copied());
                }
                for write in writes {
                    let of = from.entry(write).or_default();
                    let before = of.len();
                    of.extend(sources.iter().copied());
                    changed |= of.len() != before;
                }
            }
            if !changed {
                break;
            }
        }
        for (at, statement) in statements.iter().enumerate() {
            if !statement.opcode.starts_with("ld.global.nc") {
                continue;
            }
            let (_, reads) = effects(statement);
            let of: BTreeSet<u32> =
                reads.iter().filter_map(|read| from.get(read)).flatten().copied().collect();
            let pointers: Vec<_> = of.iter().filter(|offset| !allowed.contains(offset)).collect();
            if !pointers.is_empty() || of.is_empty() {
                self.say(
                    found,
                    at,
                    format_args!(
                        "{} of an address that parameters at {pointers:?} are in",
                        statement.opcode
                    ),
                );
            }
        }
    }

    fn param_offset(&self, statement: &Statement<'_>, bases: &HashMap<&str, u32>) -> Option<u32> {
        let Operand::Address(base, offset) = statement.operands.get(1)? else { return None };
        let start = match &**base {
            Operand::Symbol(name) => self.entry.params.get(name)?.0,
            Operand::Register(name) => *bases.get(name.as_str())?,
            _ => return None,
        };
        Some((i64::from(start) + offset) as u32)
    }

    /// Which instructions of whole warps stand where lanes may have gone apart.
    fn whole_warps(&self, found: &mut Vec<String>) {
        let statements = &self.entry.statements;
        // Bits in which lanes of a warp may differ.
        let mut varying: HashMap<&'a str, u32> = HashMap::new();
        // With the branch that parts them.
        let mut apart: HashMap<usize, usize> = HashMap::new();
        // With the way out that some of them have taken: those that are left are not apart.
        let mut fewer: HashMap<usize, usize> = HashMap::new();
        let mut changed = true;
        while changed {
            changed = false;
            for (at, statement) in statements.iter().enumerate() {
                let (writes, reads) = effects(statement);
                let bits = if apart.contains_key(&at) {
                    !0
                } else {
                    differing(statement, &reads, &varying)
                };
                for write in writes {
                    let known = varying.entry(write).or_default();
                    changed |= bits & !*known != 0;
                    *known |= bits;
                }
                let guard =
                    statement.guard.as_ref().and_then(|(name, _)| varying.get(name.as_str()));
                let to = match statement.opcode.split('.').next() {
                    Some("bra") => &mut apart,
                    Some("ret" | "exit") => &mut fewer,
                    _ => continue,
                };
                if guard.is_some_and(|bits| *bits != 0) {
                    for between in self.graph.between(at) {
                        changed |= to.insert(between, at).is_none();
                    }
                }
            }
        }
        for (at, statement) in statements.iter().enumerate() {
            let whole = [".aligned", "bar.sync", "bar.arrive", "barrier.cta"];
            if !whole.iter().any(|word| statement.opcode.contains(word)) {
                continue;
            }
            let guard = statement.guard.as_ref().and_then(|(name, _)| varying.get(name.as_str()));
            // A block's barriers need those that are left.
            let left = if statement.opcode.starts_with("bar") { None } else { fewer.get(&at) };
            let branch = apart.get(&at).or(left);
            if branch.is_some() || guard.is_some_and(|bits| *bits != 0) {
                let branch = branch.map_or(statement.line, |branch| statements[*branch].line);
                let opcode = statement.opcode;
                self.say(
                    found,
                    at,
                    format_args!(
                        "{opcode} where lanes of a warp may have gone apart, at line {branch}"
                    ),
                );
            }
        }
    }

    /// Forward, over paths: fences and what is under way.
    fn products(&self, found: &mut Vec<String>) {
        let statements = &self.entry.statements;
        if !statements.iter().any(|s| s.opcode.starts_with("wgmma")) {
            return;
        }
        // Of each statement: not fenced on some path, and registers under way on some path.
        let mut states: HashMap<usize, (bool, BTreeSet<&str>)> = HashMap::new();
        let mut todo = vec![(0, true, BTreeSet::new())];
        let mut said = HashSet::new();
        while let Some((at, unfenced, busy)) = todo.pop() {
            let Some(statement) = statements.get(at) else { continue };
            let known = states.get(&at);
            let merged = match known {
                Some((was, under_way)) if (*was || !unfenced) && busy.is_subset(under_way) => {
                    continue;
                }
                Some((was, under_way)) => {
                    (*was || unfenced, under_way.union(&busy).copied().collect())
                }
                None => (unfenced, busy),
            };
            states.insert(at, merged.clone());
            let (mut unfenced, mut busy) = merged;
            let (writes, reads) = effects(statement);
            if statement.opcode.starts_with("wgmma.mma_async") {
                if unfenced && said.insert(at) {
                    self.say(found, at, "wgmma without a fence before it");
                }
                busy.extend(writes);
                // A in registers is read until the wait.
                if let Some(list @ Operand::Vector(_)) = statement.operands.get(1) {
                    let mut a = Vec::new();
                    registers(list, &mut a);
                    busy.extend(a);
                }
            } else if statement.opcode.starts_with("wgmma.fence") {
                unfenced = false;
            } else if statement.opcode.starts_with("wgmma.wait_group") {
                unfenced = true;
                if matches!(statement.operands.first(), Some(Operand::Integer(0))) {
                    busy.clear();
                }
            } else if writes.iter().chain(&reads).any(|r| busy.contains(r)) && said.insert(at) {
                self.say(
                    found,
                    at,
                    format_args!(
                        "{} of a register whose wgmma is not waited for",
                        statement.opcode
                    ),
                );
            }
            for next in self.graph.successors(at) {
                todo.push((next, unfenced, busy.clone()));
            }
        }
    }
}

/// The bits in which the lanes of a warp may get different results. Of a thread's number those are the
/// five lowest: what is above is the warp's.
fn differing(statement: &Statement<'_>, reads: &[&str], varying: &HashMap<&str, u32>) -> u32 {
    let opcode = statement.opcode;
    let number = |at: usize| match statement.operands.get(at) {
        Some(Operand::Integer(value)) => Some(*value as u32),
        _ => None,
    };
    if let Some(Operand::Special(name)) = statement.operands.get(1) {
        return match *name {
            "%tid.x" | "%laneid" => 31,
            // Of how many threads a row is, PTX does not say.
            "%tid.y" | "%tid.z" => !0,
            name if name.starts_with("%clock") => !0,
            _ => 0,
        };
    }
    let of = |register: &&str| varying.get(register).copied().unwrap_or(0);
    if is_a(statement, &["vote"]) {
        return 0;
    }
    if opcode.starts_with("shfl.sync.idx") {
        // One lane of the whole warp: a clamp with a segment is one of each.
        let lane = match statement.operands.get(2) {
            Some(Operand::Register(name)) => of(&name.as_str()),
            _ => 0,
        };
        return if lane == 0 && number(3) == Some(31) { 0 } else { !0 };
    }
    if is_a(statement, &["atom", "elect"]) {
        return !0;
    }
    let all = reads.iter().map(of).fold(0, |all, bits| all | bits);
    if statement.guard.is_some() {
        return if all == 0 { 0 } else { !0 };
    }
    // Where only the lowest bits differ, nothing but a limit among them tells values apart.
    let below = all.checked_add(1).filter(|next| next.is_power_of_two()).unwrap_or(0);
    match (opcode, number(2)) {
        ("mov.u32" | "mov.b32" | "cvt.u64.u32" | "cvt.s64.s32", _) => all,
        ("shr.u32", Some(by)) => all.checked_shr(by).unwrap_or(0),
        ("shl.b32", Some(by)) => all.checked_shl(by).unwrap_or(0),
        ("and.b32", Some(mask)) => all & mask,
        ("or.b32" | "xor.b32", _) => all,
        ("setp.lt.u32" | "setp.ge.u32" | "setp.lt.s32" | "setp.ge.s32", Some(limit))
            if below != 0 && limit % below == 0 =>
        {
            0
        }
        ("setp.gt.u32" | "setp.le.u32" | "setp.gt.s32" | "setp.le.s32", Some(limit))
            if below != 0 && limit % below == below - 1 =>
        {
            0
        }
        _ => {
            if all == 0 {
                0
            } else {
                !0
            }
        }
    }
}
