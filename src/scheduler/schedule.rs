//! `schedule`: running requests first, then admissions.

use super::capacity::{Candidate, Occupancy, Verdict};
use super::entry::{Entry, State};
use super::preempt::Running;
use super::queue::Waiting;
use super::step::{Padding, Row, Source, Step};
use super::{Batching, HeadOfLine, Rectangle, Scheduler};
use crate::error::{Error, Result};
use crate::types::{StepId, Time};

/// The step under construction.
struct Draft {
    step: Step,
    /// Tokens that may still be scheduled.
    budget: u32,
    /// Tokens one request may get.
    per_request: u32,
}

impl Scheduler {
    /// Decides the next step, at a time that is at least that of the call before. The step is in
    /// flight until it is committed or abandoned; it may be empty when all requests wait for steps
    /// in flight, or there is none.
    ///
    /// # Errors
    /// [`Error::TooManyStepsInFlight`]; [`Error::Stalled`] when nothing is in flight and the
    /// policy lets no request run. Nothing has been scheduled then.
    pub fn schedule(&mut self, now: Time) -> Result<&Step> {
        let limit = self.config.max_steps_in_flight;
        if self.in_flight.len() >= limit {
            return Err(Error::TooManyStepsInFlight { limit });
        }
        self.tick(now);
        // Its last live members may have been cancelled.
        if self.policy.batching == Batching::Static && self.batch_has_ended() {
            self.released.clear();
            self.retire()?;
            self.released_early.append(&mut self.released);
        }
        let mut step = self.spare.pop().unwrap_or_default();
        step.reset(self.next_step, self.clock.now);
        let crowded = self.running.len() + self.num_waiting() > 1;
        let per_request = match self.config.long_prefill_token_threshold as u32 {
            threshold @ 1.. if crowded => threshold,
            _ => u32::MAX,
        };
        let mut draft = match self.policy.batching {
            Batching::Continuous => {
                Draft { step, budget: self.config.max_num_batched_tokens as u32, per_request }
            }
            // A static batch is one rectangle, whatever its size.
            Batching::Static => Draft { step, budget: u32::MAX, per_request: u32::MAX },
        };
        let result = self.run_running(&mut draft).and_then(|()| {
            // Memory is short: what waits would only make it shorter.
            if draft.step.preempted.is_empty() { self.admit(&mut draft) } else { Ok(()) }
        });
        let mut step = draft.step;
        if let Err(error) = result.and_then(|()| self.check_progress(&step)) {
            // What it had scheduled so far is undone like a step that did not run.
            let id = step.id;
            self.in_flight.push_back(step);
            self.abandon(id)?;
            return Err(error);
        }
        self.pad(&mut step);
        if self.config.overlap {
            self.link_samples(&mut step);
        }
        self.cache.take_ops(&mut step.block_ops);
        step.running = self.running.len();
        step.waiting = self.num_waiting();
        step.free_blocks = self.cache.num_free();
        self.next_step = StepId(step.id.0 + 1);
        self.stats.steps += 1;
        self.publish_waiting();
        self.in_flight.push_back(step);
        self.in_flight.back().ok_or(Error::UnknownStep(StepId(self.next_step.0 - 1)))
    }

    /// Gives each running request its next tokens.
    fn run_running(&mut self, draft: &mut Draft) -> Result<()> {
        let mut at = 0;
        while at < self.running.len() && draft.budget > 0 {
            let slot = self.running[at];
            let entry = &self.entries[slot as usize];
            at += 1;
            if entry.state == State::Ended {
                continue;
            }
            let known = entry.num_tokens() + entry.num_draft() + entry.num_placeholders;
            let wanted = known.saturating_sub(entry.num_computed);
            // Nothing past its last token: not a draft, nor, with overlap, a step in vain.
            let room = entry.max_kv().saturating_sub(entry.num_computed);
            let n = wanted.min(draft.per_request).min(draft.budget).min(room);
            // Its tokens are all in flight. Those behind it may run: not strictly FCFS, as in vLLM.
            if n == 0 {
                continue;
            }
            let end = entry.num_computed + n;
            if end > entry.capacity && !self.grow(slot, end, draft, &mut at)? {
                continue;
            }
            self.push_row(slot, n, false, draft)?;
        }
        Ok(())
    }

    /// Gets blocks for the request's tokens up to `end`, preempting until they are there. False
    /// when it was preempted itself, or none may be.
    fn grow(&mut self, slot: u32, end: u32, draft: &mut Draft, at: &mut usize) -> Result<bool> {
        loop {
            let entry = &mut self.entries[slot as usize];
            let from = entry.num_computed as usize;
            match self.cache.allocate(entry.seq, &[], from, end as usize) {
                Ok(_) => {
                    let blocks = self.cache.table(entry.seq).len();
                    entry.capacity = (blocks * self.config.cache.block_size) as u32;
                    return Ok(true);
                }
                Err(Error::OutOfBlocks { .. }) => {}
                Err(error) => return Err(error),
            }
            // No request of a static batch is preempted: its members have what they may need.
            if self.policy.batching == Batching::Static {
                return Ok(false);
            }
            let (entries, block_size) = (&self.entries, self.config.cache.block_size as u32);
            let mut views = self.running.iter().map(|&slot| {
                let entry = &entries[slot as usize];
                let Waiting { id, priority, arrival, client, .. } = entry.waiting;
                Running {
                    id,
                    priority,
                    arrival,
                    num_computed: entry.num_computed,
                    num_output: entry.num_output(),
                    num_blocks: entry.capacity / block_size,
                    num_preemptions: entry.num_preemptions,
                    client,
                }
            });
            let index = self.policy.victim.choose(&mut views);
            let Some(&victim) = self.running.get(index) else { return Ok(false) };
            self.running.remove(index);
            if index < *at {
                *at -= 1;
            }
            self.preempt(victim, draft)?;
            if victim == slot {
                return Ok(false);
            }
        }
    }

    /// Frees a request that left `running` and puts it back at the front of the queue.
    fn preempt(&mut self, slot: u32, draft: &mut Draft) -> Result<()> {
        let scheduled = draft.step.rows.iter().position(|row| row.slot == slot);
        if let Some(row) = scheduled.map(|at| draft.step.rows.remove(at)) {
            draft.budget += row.num_tokens;
            self.undo_row(&row, &mut draft.step)?;
        }
        self.take_back_names(slot)?;
        let entry = &mut self.entries[slot as usize];
        if entry.num_in_flight == 0 {
            // One in flight is still to be judged.
            entry.cut_draft(0);
        }
        // What is in flight was not undone by a swap: it will have run before the copy does.
        let swapped = self.config.swap && self.cache.swap_out(entry.seq).is_ok();
        if !swapped {
            self.cache.free(entry.seq)?;
            entry.num_computed = 0;
            entry.set_stale();
            entry.num_placeholders = 0;
        }
        entry.capacity = 0;
        entry.state = State::Waiting;
        entry.num_preemptions += 1;
        entry.passed = 0;
        draft.step.preempted.push(entry.id);
        self.policy.queue.push_front(entry.waiting);
        self.stats.preemptions += 1;
        Ok(())
    }

    /// Schedules `n` tokens of a request whose blocks are there.
    fn push_row(&mut self, slot: u32, n: u32, admitted: bool, draft: &mut Draft) -> Result<()> {
        let block_size = self.config.cache.block_size;
        let entry = &mut self.entries[slot as usize];
        let num_computed = entry.num_computed;
        let end = num_computed + n;
        let num_tokens = entry.num_tokens();
        if end >= entry.name_at {
            // Drafts may be rejected, and samples in flight are not known: neither is named.
            let named = end.min(num_tokens) as usize;
            entry.chain.extend(&entry.tokens[..named]);
            self.cache.register(entry.seq, entry.chain.hashes(), named)?;
            entry.name_at = ((named / block_size + 1) * block_size) as u32;
        }
        let known = num_tokens + entry.num_placeholders;
        let samples = end >= known;
        let num_draft = end.saturating_sub(known);
        if samples {
            entry.cut_draft(num_draft);
        }
        let num_output = known - entry.num_prompt;
        entry.num_computed = end;
        entry.num_in_flight += n;
        let step = &mut draft.step;
        step.num_tokens += n as usize;
        if samples {
            step.num_sampling += 1;
            step.num_outputs += 1 + num_draft as usize;
            entry.num_placeholders += u32::from(self.config.overlap);
        }
        draft.budget = draft.budget.saturating_sub(n);
        step.rows.push(Row {
            id: self.ids[slot as usize],
            slot,
            generation: entry.generation,
            num_tokens: n,
            num_computed,
            num_draft,
            num_output,
            samples,
            is_decode: n == 1 + num_draft && samples && num_output > 0,
            admitted,
        });
        Ok(())
    }

    /// Takes back what `push_row` recorded. Blocks it named will not be computed, and lose their
    /// names: vLLM leaves them (0.33, priority policy), and a later request would read garbage.
    pub(super) fn undo_row(&mut self, row: &Row, step: &mut Step) -> Result<()> {
        let entry = &mut self.entries[row.slot as usize];
        entry.num_computed = row.num_computed;
        entry.num_in_flight -= row.num_tokens;
        step.num_tokens -= row.num_tokens as usize;
        if row.samples {
            step.num_sampling -= 1;
            step.num_outputs -= 1 + row.num_draft as usize;
            entry.num_placeholders -= u32::from(self.config.overlap);
        }
        self.cache.unregister(entry.seq, row.num_computed as usize)
    }

    /// Admits waiting requests while tokens, slots and the policy allow.
    fn admit(&mut self, draft: &mut Draft) -> Result<()> {
        if self.num_waiting() == 0 {
            return Ok(());
        }
        let mut occupancy = self.occupancy();
        let (mut bypassing, mut head) = (0, None);
        if self.running.is_empty() {
            self.rectangle = Rectangle::default();
        }
        let result = loop {
            if draft.budget == 0 || self.running.len() >= self.config.max_num_seqs {
                break Ok(());
            }
            if let (Some(slot), HeadOfLine::Bypass { bound, .. }) = (head, self.policy.head_of_line)
                && self.entries[slot as usize].passed >= bound
            {
                break Ok(());
            }
            let Some(waiting) = self.policy.queue.peek(self.clock) else { break Ok(()) };
            let waits = |entry: &Entry| entry.state == State::Waiting && entry.waiting == waiting;
            if !self.entries.get(waiting.slot as usize).is_some_and(waits) {
                break Err(Error::Corrupt(format!("{waiting:?} is not waiting")));
            }
            // Samples of before its preemption are on their way: resuming now could sample a
            // position twice.
            let mut pass = self.entries[waiting.slot as usize].num_in_flight > 0;
            if !pass {
                match self.try_admit(waiting, &mut occupancy, draft) {
                    Ok(true) => {
                        let passed = head.map(|slot: u32| &mut self.entries[slot as usize].passed);
                        passed.into_iter().for_each(|count| *count += 1);
                        continue;
                    }
                    Ok(false) => {}
                    Err(error) => break Err(error),
                }
                head.get_or_insert(waiting.slot);
                if let HeadOfLine::Bypass { lookahead, .. } = self.policy.head_of_line {
                    pass = bypassing < lookahead;
                    bypassing += 1;
                }
            }
            if !pass {
                break Ok(());
            }
            if let Err(error) = self.take_out(&waiting) {
                break Err(error);
            }
            self.passed_over.push(waiting);
        };
        while let Some(waiting) = self.passed_over.pop() {
            self.policy.queue.push_front(waiting);
        }
        result
    }

    /// Takes a request out of the queue, and makes sure that it went.
    fn take_out(&mut self, waiting: &Waiting) -> Result<()> {
        let before = self.policy.queue.len();
        if self.policy.queue.remove(waiting) && self.policy.queue.len() + 1 == before {
            return Ok(());
        }
        Err(Error::Corrupt(format!("the queue did not let go of request {}", waiting.id)))
    }

    /// What the capacity policy looks at, before the first admission of a step.
    fn occupancy(&self) -> Occupancy {
        let mut occupancy = Occupancy {
            free_blocks: self.cache.num_free(),
            num_blocks: self.config.cache.num_blocks,
            now: self.clock.now,
            max_num_seqs: self.config.max_num_seqs,
            running: self.running.len(),
            running_before: self.running.len(),
            blocks_to_completion: 0,
            tokens_to_completion: 0,
        };
        if self.policy.capacity.looks_ahead() {
            for entry in self.running.iter().map(|&slot| &self.entries[slot as usize]) {
                let held = entry.capacity as usize / self.config.cache.block_size;
                let worst = self.cache.blocks_for(entry.max_kv() as usize);
                occupancy.blocks_to_completion += worst.saturating_sub(held);
                let to_go = entry.max_total - entry.num_tokens();
                occupancy.tokens_to_completion = occupancy.tokens_to_completion.max(to_go);
            }
        }
        occupancy
    }

    /// Admits the head of the queue, or says that it must wait and changes nothing.
    fn try_admit(
        &mut self,
        waiting: Waiting,
        occupancy: &mut Occupancy,
        draft: &mut Draft,
    ) -> Result<bool> {
        let slot = waiting.slot;
        let block_size = self.config.cache.block_size;
        let entry = &mut self.entries[slot as usize];
        let seq = entry.seq;
        let swapped = self.cache.is_swapped_out(seq);
        let num_tokens = entry.num_tokens();
        self.hit.clear();
        let looked_up = !swapped && self.cache.has_prefix_cache() && entry.read_prefix_cache;
        if looked_up {
            // At least one token is computed: its logits are needed.
            entry.chain.extend(&entry.tokens);
            let most = num_tokens as usize - 1;
            self.cache.lookup(entry.chain.hashes(), most, &mut self.hit);
        }
        let start = match swapped {
            true => entry.num_computed,
            false => (self.hit.len() * block_size) as u32,
        };
        let wanted = (num_tokens - start).min(draft.per_request);
        if !self.config.chunked_prefill && wanted > draft.budget {
            return Ok(false);
        }
        let n = wanted.min(draft.budget);
        let max_kv = entry.max_kv() as usize;
        let cache = &self.cache;
        let returning = cache.swapped_blocks(seq);
        let blocks = |end: usize| match swapped {
            true => cache.blocks_for(end).max(returning),
            false => cache.blocks_needed(seq, &self.hit, start as usize, end),
        };
        let candidate = Candidate {
            id: waiting.id,
            priority: waiting.priority,
            arrival: waiting.arrival,
            client: waiting.client,
            blocks_now: blocks((start + n) as usize),
            blocks_all: blocks(num_tokens as usize),
            blocks_worst: blocks(max_kv.max(num_tokens as usize)),
        };
        let (end, needed) = match self.policy.capacity.admit(&candidate, occupancy) {
            Verdict::Admit => ((start + n) as usize, candidate.blocks_now),
            Verdict::Reserve => (max_kv.max((start + n) as usize), candidate.blocks_worst),
            Verdict::Wait => return Ok(false),
        };
        // A policy that admits more than fits is held to the facts.
        if needed > self.cache.num_free() {
            return Ok(false);
        }
        self.take_out(&waiting)?;
        self.policy.queue.admitted(&waiting);
        if swapped {
            self.cache.swap_in(seq)?;
        }
        self.cache.allocate(seq, &self.hit, start as usize, end)?;
        if looked_up {
            self.cache.record_lookup(num_tokens as usize, start as usize);
        }
        let entry = &mut self.entries[slot as usize];
        // All it can come to need is reserved now, so that decoding does not allocate.
        self.cache.reserve_table(seq, max_kv)?;
        let most = entry.max_total as usize;
        entry.tokens.reserve(most.saturating_sub(entry.tokens.len()));
        let table = self.cache.table(seq).len();
        entry.capacity = (table * block_size) as u32;
        entry.name_at = match self.cache.has_prefix_cache() {
            true => ((start as usize / block_size + 1) * block_size) as u32,
            false => u32::MAX,
        };
        if self.cache.has_prefix_cache() {
            entry.chain.reserve(most);
        }
        entry.num_computed = start;
        if entry.first_scheduled.is_none() {
            entry.first_scheduled = Some(self.clock.now);
            entry.num_cached = start;
        }
        entry.state = State::Running;
        entry.passed = 0;
        self.rectangle.longest_prompt = self.rectangle.longest_prompt.max(num_tokens);
        self.running.push(slot);
        self.clock.admissions += 1;
        self.stats.admissions += 1;
        occupancy.running += 1;
        occupancy.free_blocks = self.cache.num_free();
        if self.policy.capacity.looks_ahead() {
            let worst = self.cache.blocks_for(max_kv);
            occupancy.blocks_to_completion += worst.saturating_sub(table);
        }
        self.push_row(slot, n, true, draft)?;
        Ok(true)
    }

    /// Refuses to be idle for ever: with nothing in flight, an empty step would be followed by
    /// another.
    fn check_progress(&self, step: &Step) -> Result<()> {
        let moves = !step.rows.is_empty() || !step.preempted.is_empty();
        if moves || !self.in_flight.is_empty() || self.by_id.is_empty() {
            return Ok(());
        }
        let head =
            self.policy.queue.peek(self.clock).map(|w| w.slot).or(self.running.first().copied());
        let Some(entry) = head.and_then(|slot| self.entries.get(slot as usize)) else {
            return Err(Error::Corrupt("an unfinished request is in no queue".into()));
        };
        let needed = self.cache.blocks_for(entry.tokens.len());
        Err(Error::Stalled { head: entry.id, needed, free: self.cache.num_free() })
    }

    /// Notes where rows find their first token that is not known yet, and where the next step will
    /// find what this one samples.
    pub(super) fn link_samples(&mut self, step: &mut Step) {
        let mut logits = 0;
        for (i, row) in (0..).zip(&step.rows) {
            let entry = &mut self.entries[row.slot as usize];
            if row.num_computed >= entry.num_tokens() {
                let (step, logits) = entry.last_sample;
                self.sources.push(Source { row: i, step, logits });
            }
            if row.samples {
                entry.last_sample = (step.id, logits);
                logits += 1;
            }
        }
        std::mem::swap(&mut step.sources, &mut self.sources);
    }

    /// Records the rectangle a static batch computes around its rows.
    fn pad(&mut self, step: &mut Step) {
        if self.policy.batching != Batching::Static || step.rows.is_empty() {
            return;
        }
        let longest = step.rows.iter().map(|row| row.num_tokens).max().unwrap_or(0);
        step.padding = Some(Padding {
            rows: self.running.len() as u32,
            num_tokens: longest,
            kv_len: self.rectangle.longest_prompt + self.rectangle.steps,
        });
        self.rectangle.steps += 1;
    }
}
