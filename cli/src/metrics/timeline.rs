//! Who held which slot when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Series;

/// Everything a report draws over time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timeline {
    /// One entry per stay in a slot, by start and slot.
    pub(crate) intervals: Vec<Interval>,
    /// Rates over time.
    pub(crate) series: Series,
}

/// One stay of a request in a slot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Interval {
    /// The lowest slot that was free at admission.
    pub(crate) slot: u32,
    /// The request.
    pub(crate) id: u64,
    /// When it was admitted.
    pub(crate) start: f64,
    /// When its last token existed; from then to `end_held` the slot is wasted.
    pub(crate) end_useful: f64,
    /// When the slot was released.
    pub(crate) end_held: f64,
    /// Length of its prompt.
    pub(crate) prompt_tokens: u32,
    /// Prompt tokens found in the cache at this admission.
    pub(crate) cached_tokens: u32,
    /// Tokens it had produced by the end of the stay, earlier stays included.
    pub(crate) output_tokens: u32,
    /// Why the stay ended.
    pub(crate) outcome: Outcome,
}

/// How a stay in a slot ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The request was returned.
    Finished,
    /// It lost its slot and waits to be admitted again.
    Preempted,
    /// The run was over first.
    Running,
}

/// Hands out the lowest free slot.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots {
    released: BinaryHeap<Reverse<u32>>,
    used: u32,
}

impl Slots {
    pub(super) fn take(&mut self) -> u32 {
        self.released.pop().map_or_else(
            || {
                self.used += 1;
                self.used - 1
            },
            |Reverse(slot)| slot,
        )
    }

    pub(super) fn release(&mut self, slot: u32) {
        self.released.push(Reverse(slot));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_slot_is_next() {
        let mut slots = Slots::default();
        assert_eq!([slots.take(), slots.take(), slots.take()], [0, 1, 2]);
        slots.release(2);
        slots.release(0);
        assert_eq!([slots.take(), slots.take(), slots.take()], [0, 2, 3]);
    }
}
