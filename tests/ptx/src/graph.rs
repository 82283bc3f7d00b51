//! Where control may go in a kernel, and where paths that part meet again.

use std::collections::HashSet;

use crate::parse::{Entry, Operand, Statement};

pub(crate) struct Graph {
    successors: Vec<Vec<usize>>,
    /// The first statement that all paths from a statement come to; beyond the last one: the end.
    meets: Vec<usize>,
}

fn target(entry: &Entry<'_>, statement: &Statement<'_>) -> Option<usize> {
    let Some(Operand::Label(name)) = statement.operands.first() else { return None };
    let plain = name.split_once(':').map_or(name.as_str(), |(_, plain)| plain);
    entry.labels.get(name).or_else(|| entry.labels.get(plain)).copied()
}

impl Graph {
    pub(crate) fn new(entry: &Entry<'_>) -> Self {
        let count = entry.statements.len();
        let successors: Vec<Vec<usize>> = entry
            .statements
            .iter()
            .enumerate()
            .map(|(at, statement)| {
                let falls = statement.guard.is_some();
                match statement.opcode.split('.').next() {
                    Some("bra") => target(entry, statement)
                        .into_iter()
                        .chain(falls.then_some(at + 1))
                        .collect(),
                    Some("ret" | "exit" | "trap") => {
                        std::iter::once(count).chain(falls.then_some(at + 1)).collect()
                    }
                    _ => vec![at + 1],
                }
            })
            .collect();
        let meets = meets(&successors);
        Self { successors, meets }
    }

    pub(crate) fn successors(&self, at: usize) -> impl Iterator<Item = usize> {
        self.successors[at].iter().copied().filter(|next| *next < self.successors.len())
    }

    /// What lies between a branch and where its paths meet.
    pub(crate) fn between(&self, branch: usize) -> Vec<usize> {
        let end = self.meets[branch];
        let mut seen = HashSet::new();
        let mut todo: Vec<usize> = self.successors(branch).collect();
        while let Some(at) = todo.pop() {
            if at != end && seen.insert(at) {
                todo.extend(self.successors(at));
            }
        }
        seen.into_iter().collect()
    }
}

/// Immediate post-dominators, by the algorithm of Cooper, Harvey and Kennedy (2001), on the graph turned
/// round.
fn meets(successors: &[Vec<usize>]) -> Vec<usize> {
    let end = successors.len();
    let mut predecessors = vec![Vec::new(); end + 1];
    for (at, next) in successors.iter().enumerate() {
        for next in next {
            predecessors[*next].push(at);
        }
    }
    // In postorder from the end, against the flow.
    let mut order = Vec::new();
    let mut number = vec![usize::MAX; end + 1];
    let mut seen = vec![false; end + 1];
    let mut stack = vec![(end, 0)];
    seen[end] = true;
    while let Some((at, i)) = stack.pop() {
        if let Some(next) = predecessors[at].get(i).copied() {
            stack.push((at, i + 1));
            if !seen[next] {
                seen[next] = true;
                stack.push((next, 0));
            }
        } else {
            number[at] = order.len();
            order.push(at);
        }
    }
    let mut meets = vec![usize::MAX; end + 1];
    meets[end] = end;
    loop {
        let mut changed = false;
        for at in order.iter().rev().copied().filter(|at| *at != end) {
            let mut new = usize::MAX;
            for next in successors[at].iter().copied().filter(|next| meets[*next] != usize::MAX) {
                new = if new == usize::MAX { next } else { common(&meets, &number, new, next) };
            }
            if meets[at] != new {
                meets[at] = new;
                changed = true;
            }
        }
        if !changed {
            return meets;
        }
    }
}

fn common(meets: &[usize], number: &[usize], mut a: usize, mut b: usize) -> usize {
    while a != b {
        while number[a] < number[b] {
            a = meets[a];
        }
        while number[b] < number[a] {
            b = meets[b];
        }
    }
    a
}
