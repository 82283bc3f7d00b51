//! Sessions of several turns: a turn is sent when the one before it has ended.

use std::collections::HashMap;

use inflight::Token;

use crate::trace::{Row, Trace};

/// The turns of a run that have not been sent.
pub(crate) struct Sessions<'a> {
    /// By the row of the turn before.
    next: HashMap<u64, &'a Row>,
    /// Prompts, and outputs so far, of turns that another one goes on from.
    contexts: HashMap<u64, Vec<Token>>,
    /// Turns whose time is known, the earliest last; of one time, the first to be known last.
    due: Vec<(f64, &'a Row)>,
}

impl<'a> Sessions<'a> {
    /// Of all sessions of `trace`, nothing sent yet.
    pub(crate) fn new(trace: &'a Trace) -> Self {
        let turns = trace.rows.iter().filter_map(|row| Some((row.turn?.previous, row)));
        Self { next: turns.collect(), contexts: HashMap::new(), due: Vec::new() }
    }

    /// The turn that comes next, and when; those that wait for another one are not among them.
    pub(crate) fn next(&self) -> Option<(f64, &'a Row)> {
        self.due.last().copied()
    }

    /// Takes out the turn that comes next.
    pub(crate) fn take_next(&mut self) {
        self.due.pop();
    }

    /// The prompt of `row` with all that it goes on from.
    pub(crate) fn prompt(&mut self, row: &Row, seed: u64) -> Vec<Token> {
        let added = row.prompt_tokens(seed);
        let before = row.turn.and_then(|turn| self.contexts.remove(&turn.previous));
        let prompt = match before {
            Some(mut context) => {
                context.extend(added);
                context
            }
            None => added,
        };
        if self.next.get(&row.id).and_then(|next| next.turn).is_some_and(|turn| turn.continues) {
            self.contexts.insert(row.id, prompt.clone());
        }
        prompt
    }

    /// `id` has these tokens more.
    pub(crate) fn output(&mut self, id: u64, tokens: &[Token]) {
        if let Some(context) = self.contexts.get_mut(&id) {
            context.extend_from_slice(tokens);
        }
    }

    /// `id` was returned at `now`.
    pub(crate) fn ended(&mut self, id: u64, now: f64) {
        let Some(row) = self.next.remove(&id) else { return };
        let delay = row.turn.map_or(0.0, |turn| turn.delay);
        let at = row.arrival.max(now + delay);
        let place = self.due.partition_point(|&(later, _)| later > at);
        self.due.insert(place, (at, row));
    }

    /// The turn after `id`, which will never be sent since that one was refused.
    pub(crate) fn refused(&mut self, id: u64) -> Option<u64> {
        self.contexts.remove(&id);
        self.next.remove(&id).map(|row| row.id)
    }
}
