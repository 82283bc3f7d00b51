//! Who may be admitted: memory as a policy.

use crate::types::{RequestId, Time};

/// A waiting request whose turn it is, and what it asks of the cache. Blocks count what the free
/// queue would lose, cached prefix blocks that no sequence holds included.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// The request.
    pub id: RequestId,
    /// Lower is more urgent.
    pub priority: i32,
    /// When it came.
    pub arrival: Time,
    /// The client that it belongs to.
    pub client: u64,
    /// Blocks for what it would compute in this step.
    pub blocks_now: usize,
    /// Blocks for all tokens it has so far: its prompt, and its output if it was preempted.
    pub blocks_all: usize,
    /// Blocks if it goes on to its last permitted token.
    pub blocks_worst: usize,
}

/// The batch and the cache at that moment.
#[derive(Clone, Copy, Debug)]
pub struct Occupancy {
    /// Blocks that can be handed out now.
    pub free_blocks: usize,
    /// Blocks of the pool, the null block included.
    pub num_blocks: usize,
    /// The time given to `schedule`.
    pub now: Time,
    /// Requests that may run at once.
    pub max_num_seqs: usize,
    /// Requests running, those admitted in this step included.
    pub running: usize,
    /// Requests that were running when the step began.
    pub running_before: usize,
    /// Blocks the running requests may still ask for, if each goes on to its last permitted token.
    /// 0 unless the policy [looks ahead](Capacity::looks_ahead).
    pub blocks_to_completion: usize,
    /// The most output tokens any request that was running when the step began may still produce.
    /// 0 unless the policy looks ahead.
    pub tokens_to_completion: u32,
}

/// What becomes of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It runs, and takes blocks as it grows.
    Admit,
    /// It runs, and takes all blocks it may come to need at once.
    Reserve,
    /// Not now.
    Wait,
}

/// Decides whether a request may start to hold memory.
pub trait Capacity: Send {
    /// Whether `candidate`, the next in the queue's order, is admitted.
    fn admit(&mut self, candidate: &Candidate, occupancy: &Occupancy) -> Verdict;

    /// Whether it admits with [`Verdict::Reserve`] only: what static batching asks for.
    fn reserves(&self) -> bool {
        false
    }

    /// Whether [`Occupancy`]'s fields about completion are to be computed: a pass over the running
    /// requests in each step with a request waiting.
    fn looks_ahead(&self) -> bool {
        false
    }
}

/// Admits what fits now and preempts when that turns out too little: vLLM V1's rule.
#[derive(Clone, Copy, Debug)]
pub struct Optimistic {
    /// Fraction of the pool, 0 to 1, that an admission leaves free while others run.
    pub watermark: f64,
    /// Whether all tokens of the request must fit, not just those of its first chunk
    /// (vLLM's `scheduler_reserve_full_isl`, on by default there and here).
    pub whole_prompt_must_fit: bool,
}

impl Default for Optimistic {
    fn default() -> Self {
        Self { watermark: 0.0, whole_prompt_must_fit: true }
    }
}

impl Capacity for Optimistic {
    fn admit(&mut self, candidate: &Candidate, occupancy: &Occupancy) -> Verdict {
        let kept_free = match occupancy.running {
            0 => 0,
            // The whole pool counts, as in vLLM's `int(watermark * num_blocks)`.
            _ => (self.watermark.clamp(0.0, 1.0) * occupancy.num_blocks as f64) as usize,
        };
        let prompt = if self.whole_prompt_must_fit { candidate.blocks_all } else { 0 };
        let needed = prompt.max(candidate.blocks_now);
        if needed + kept_free <= occupancy.free_blocks { Verdict::Admit } else { Verdict::Wait }
    }
}

/// Admits a request only if every request can run to the end: TensorRT-LLM's `GUARANTEED_NO_EVICT`
/// (capacityScheduler.cpp). No request is ever preempted.
#[derive(Clone, Copy, Debug, Default)]
pub struct GuaranteedNoEvict;

impl Capacity for GuaranteedNoEvict {
    fn admit(&mut self, candidate: &Candidate, occupancy: &Occupancy) -> Verdict {
        let spoken_for = occupancy.blocks_to_completion;
        let fits = candidate.blocks_worst + spoken_for <= occupancy.free_blocks;
        if fits { Verdict::Admit } else { Verdict::Wait }
    }

    fn looks_ahead(&self) -> bool {
        true
    }
}

/// Fills the memory to the last block and pauses the newest request when one is missing:
/// TensorRT-LLM's `MAX_UTILIZATION`. It asks for the whole context at once, whatever part of it
/// the token budget lets run, and keeps nothing free.
#[derive(Clone, Copy, Debug, Default)]
pub struct MaxUtilization;

impl Capacity for MaxUtilization {
    fn admit(&mut self, candidate: &Candidate, occupancy: &Occupancy) -> Verdict {
        let fits = candidate.blocks_all <= occupancy.free_blocks;
        if fits { Verdict::Admit } else { Verdict::Wait }
    }
}

/// Request-level batching: a batch is formed only when nothing runs, each member with its
/// worst-case memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct StaticBatch;

impl Capacity for StaticBatch {
    fn admit(&mut self, candidate: &Candidate, occupancy: &Occupancy) -> Verdict {
        let fits = candidate.blocks_worst <= occupancy.free_blocks;
        if occupancy.running_before == 0 && fits { Verdict::Reserve } else { Verdict::Wait }
    }

    fn reserves(&self) -> bool {
        true
    }
}

/// Orca's rule: iteration-level admission with worst-case memory reserved (OSDI '22, §4.2).
///
/// A request is admitted while a slot is free and its memory fits: at once if it is urgent enough,
/// otherwise when the running batch is about to finish.
#[derive(Clone, Copy, Debug)]
pub struct Orca {
    /// Requests of this priority or a lower value do not wait for the next round.
    pub at_once: i32,
    /// The batch is about to finish when no request has more than this many output tokens to go.
    pub about_to_finish: u32,
}

impl Default for Orca {
    /// Requests of default priority are admitted at every iteration, as in the paper.
    fn default() -> Self {
        Self { at_once: 0, about_to_finish: 8 }
    }
}

impl Capacity for Orca {
    fn admit(&mut self, candidate: &Candidate, occupancy: &Occupancy) -> Verdict {
        let round_ends =
            occupancy.running_before == 0 || occupancy.tokens_to_completion <= self.about_to_finish;
        let fits = candidate.blocks_worst <= occupancy.free_blocks;
        let turn = candidate.priority <= self.at_once || round_ends;
        if fits && turn { Verdict::Reserve } else { Verdict::Wait }
    }

    fn reserves(&self) -> bool {
        true
    }

    fn looks_ahead(&self) -> bool {
        true
    }
}
