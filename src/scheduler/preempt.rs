//! Who gives way when a running request finds no block.

use crate::types::{RequestId, Time};

/// A running request as a victim policy sees it.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    /// The request.
    pub id: RequestId,
    /// Lower is more urgent.
    pub priority: i32,
    /// When it came.
    pub arrival: Time,
    /// Tokens whose KV is computed, and lost if it is preempted by recompute.
    pub num_computed: u32,
    /// Tokens it has output.
    pub num_output: u32,
    /// Blocks it holds, shared ones included.
    pub num_blocks: u32,
    /// Times it was preempted.
    pub num_preemptions: u32,
    /// The client that it belongs to.
    pub client: u64,
}

/// Chooses the request to preempt.
pub trait Victim: Send {
    /// An index into `running`, which is in order of admission and holds at least the request
    /// that lacks a block; an index out of range preempts none, and that request waits.
    fn choose(&self, running: &mut dyn ExactSizeIterator<Item = Running>) -> usize;
}

/// The request admitted last: vLLM's rule under FCFS.
#[derive(Clone, Copy, Debug, Default)]
pub struct LastIn;

impl Victim for LastIn {
    fn choose(&self, running: &mut dyn ExactSizeIterator<Item = Running>) -> usize {
        running.len().wrapping_sub(1)
    }
}

/// The least urgent request, the latest to come among equals, the last admitted among those of one
/// instant: vLLM's rule under `priority`.
#[derive(Clone, Copy, Debug, Default)]
pub struct LowestPriority;

impl Victim for LowestPriority {
    fn choose(&self, running: &mut dyn ExactSizeIterator<Item = Running>) -> usize {
        let mut worst = None;
        for (i, r) in running.enumerate() {
            let key = (r.priority, r.arrival);
            if worst.is_none_or(|(_, most)| key >= most) {
                worst = Some((i, key));
            }
        }
        worst.map_or(usize::MAX, |(i, _)| i)
    }
}

/// The request that loses least work when recomputed, the last admitted among equals.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastComputed;

impl Victim for LeastComputed {
    fn choose(&self, running: &mut dyn ExactSizeIterator<Item = Running>) -> usize {
        let least = running.enumerate().min_by_key(|(i, r)| (r.num_computed, usize::MAX - i));
        least.map_or(usize::MAX, |(i, _)| i)
    }
}
