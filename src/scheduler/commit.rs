//! `commit` takes a step's samples, `abandon` undoes a step.

use super::entry::{Entry, State};
use super::step::{Output, Outputs, Row, Sampled, Step};
use super::{Batching, Scheduler};
use crate::cache::BlockOp;
use crate::error::{Error, Result};
use crate::request::FinishReason;
use crate::types::{BlockId, StepId, Token, known};

impl Scheduler {
    /// Takes the samples of the oldest step in flight and says what became of its requests. Each
    /// token is delivered once and in order; what was sampled past a request's end, or for one
    /// that was cancelled meanwhile, is dropped.
    ///
    /// # Errors
    /// Nothing has changed on any: [`Error::UnknownStep`]; [`Error::StepOutOfOrder`] when an
    /// older step is in flight; [`Error::OutputMismatch`] when the samples are not those of its
    /// rows; [`Error::InvalidArgument`] for bad offsets, a sampled `PENDING_TOKEN`, or accepted tokens
    /// that are not those of the draft.
    pub fn commit(&mut self, id: StepId, sampled: Sampled<'_>) -> Result<Outputs<'_>> {
        let step = self.due(id, true)?;
        check_samples(step, sampled)?;
        self.check_accepted(step, sampled)?;
        let Some(step) = self.in_flight.pop_front() else { return Err(Error::UnknownStep(id)) };
        self.outputs.clear();
        self.output_tokens.clear();
        self.released.clear();
        self.released.append(&mut self.released_early);
        self.ended.clear();
        let mut ended = false;
        let mut sampling = 0;
        for row in &step.rows {
            let given = if row.samples { sampled.row(sampling) } else { &[] };
            sampling += usize::from(row.samples);
            let entry = &mut self.entries[row.slot as usize];
            if entry.generation != row.generation || entry.state == State::Vacant {
                continue;
            }
            let stale = entry.land(row.num_tokens);
            if !row.samples || entry.state == State::Ended {
                continue;
            }
            let start = self.output_tokens.len() as u32;
            // What is beyond an entry's first line is left alone in steady decode.
            if entry.num_output() == 0 {
                entry.first_token = Some(step.now);
            }
            let finish = accept(entry, given, row.num_draft, stale, &mut self.output_tokens);
            let len = self.output_tokens.len() as u32 - start;
            let (id, client) = (row.id, entry.client);
            self.outputs.push(Output { id, client, start, len, finish });
            if !stale && (self.config.overlap || row.num_draft > 0) {
                self.register_computed(row.slot)?;
            }
            if finish.is_some() {
                ended = true;
                self.ended.push(self.entries[row.slot as usize].ended());
                self.end(row.slot)?;
            }
        }
        self.stats.output_tokens += self.output_tokens.len() as u64;
        self.spare.push(step);
        if ended {
            self.retire()?;
        }
        let step = self.spare.last().ok_or(Error::UnknownStep(id))?;
        Ok(Outputs {
            outputs: &self.outputs,
            tokens: &self.output_tokens,
            released: &self.released,
            ended: &self.ended,
            step,
            free_blocks: self.cache.num_free(),
        })
    }

    /// Ends a request that sampled its last token.
    fn end(&mut self, slot: u32) -> Result<()> {
        self.stats.finished += 1;
        let entry = &mut self.entries[slot as usize];
        match (entry.state, self.policy.batching) {
            // Preempted with its last sample in flight.
            (State::Waiting, _) => {
                self.policy.queue.remove(&entry.waiting);
            }
            (_, Batching::Static) => {
                entry.state = State::Ended;
                return Ok(());
            }
            _ => {}
        }
        self.released.push(entry.id);
        self.vacate(slot)
    }

    /// Refuses accepted tokens that are not those of the draft: the KV is that of the draft, and would
    /// be found under others.
    fn check_accepted(&self, step: &Step, sampled: Sampled<'_>) -> Result<()> {
        if step.num_outputs == step.num_sampling {
            return Ok(());
        }
        for (i, row) in step.rows.iter().filter(|row| row.samples).enumerate() {
            if row.num_draft == 0 {
                continue;
            }
            let entry = &self.entries[row.slot as usize];
            if entry.generation != row.generation {
                continue;
            }
            let (given, draft) = (sampled.row(i), entry.draft());
            let accepted = given.iter().zip(draft).take(given.len() - 1);
            if let Some((at, (token, draft))) = accepted.enumerate().find(|(_, (a, b))| a != b) {
                let reason = format!(
                    "request {}: token {at} is {token} and counts as accepted, and its draft has \
                     {draft} there",
                    row.id
                );
                return Err(Error::argument("tokens", reason));
            }
        }
        Ok(())
    }

    /// Takes ended requests off the running list; a static batch goes all at once.
    pub(super) fn retire(&mut self) -> Result<()> {
        if self.policy.batching == Batching::Continuous {
            self.running.retain(|&slot| self.entries[slot as usize].state == State::Running);
            return Ok(());
        }
        if !self.batch_has_ended() {
            return Ok(());
        }
        for slot in std::mem::take(&mut self.running) {
            self.released.push(self.entries[slot as usize].id);
            self.vacate(slot)?;
        }
        Ok(())
    }

    /// Whether all that runs is held for no request's sake.
    pub(super) fn batch_has_ended(&self) -> bool {
        self.running.iter().all(|&slot| self.entries[slot as usize].state == State::Ended)
    }

    /// With overlap and with drafts, blocks fill before their tokens are known: registers those whose
    /// tokens are now. vLLM does so in `update_from_output`, before it frees what has finished.
    fn register_computed(&mut self, slot: u32) -> Result<()> {
        let block_size = self.config.cache.block_size;
        let entry = &mut self.entries[slot as usize];
        let computed = (entry.num_computed - entry.num_in_flight).min(entry.num_tokens());
        if entry.state == State::Running && computed >= entry.name_at {
            entry.chain.extend(&entry.tokens[..computed as usize]);
            self.cache.register(entry.seq, entry.chain.hashes(), computed as usize)?;
            entry.name_at = (computed as usize / block_size + 1) as u32 * block_size as u32;
        }
        Ok(())
    }

    /// Undoes the newest step in flight, as if it had not been scheduled: for a step that was not
    /// run, or failed on the way. Its tokens are computed again; requests it admitted go back to
    /// the front of the queue, in order. Those it preempted stay preempted.
    ///
    /// # Errors
    /// Nothing has changed: [`Error::UnknownStep`], or [`Error::StepOutOfOrder`] when a newer
    /// step, which builds on it, is in flight.
    pub fn abandon(&mut self, id: StepId) -> Result<()> {
        self.due(id, false)?;
        let Some(mut step) = self.in_flight.pop_back() else { return Err(Error::UnknownStep(id)) };
        let rows = std::mem::take(&mut step.rows);
        // Its batch may be gone by cancellation, and the rectangle be that of the next.
        let steps = &mut self.rectangle.steps;
        *steps = steps.saturating_sub(u32::from(step.padding.is_some()));
        // How far the copies got is not known. The request they were for starts anew: swapped in, it was
        // admitted; swapped out, it is among the preempted.
        for op in step.block_ops.iter().filter(|op| op.kind != BlockOp::SWAP_OUT) {
            self.cache.forget(BlockId(op.dst));
        }
        for row in rows.iter().rev() {
            let entry = &mut self.entries[row.slot as usize];
            if entry.generation != row.generation || entry.state == State::Vacant {
                continue;
            }
            entry.cut_draft(0);
            let preempted_since = u32::from(entry.state == State::Waiting);
            if row.admitted && entry.num_preemptions == preempted_since {
                // It has not been admitted before.
                (entry.first_scheduled, entry.num_cached) = (None, 0);
            }
            if entry.state == State::Waiting {
                // Preempted by a later step: what it held is gone already.
                entry.land(row.num_tokens);
                continue;
            }
            self.undo_row(row, &mut step)?;
            if self.entries[row.slot as usize].state == State::Ended {
                // Finished by the caller meanwhile: it stays until its batch has ended.
                continue;
            }
            self.relink_sample(row.slot);
            if row.admitted {
                self.restart(row.slot)?;
            } else {
                self.give_back(row.slot)?;
            }
        }
        for id in std::mem::take(&mut step.preempted) {
            let Some(&slot) = self.by_id.get(&id) else { continue };
            if self.cache.is_swapped_out(self.entries[slot as usize].seq) {
                self.forget_kv(slot)?;
            }
        }
        let Scheduler { running, entries, .. } = self;
        running.retain(|&slot| entries[slot as usize].state != State::Waiting);
        step.rows = rows;
        self.spare.push(step);
        Ok(())
    }

    /// Finds again the newest step in flight that samples for a request.
    fn relink_sample(&mut self, slot: u32) {
        let entry = &mut self.entries[slot as usize];
        for step in self.in_flight.iter().rev() {
            let mut sampling = (0..).zip(step.rows.iter().filter(|row| row.samples));
            let mine = |row: &Row| row.slot == slot && row.generation == entry.generation;
            if let Some((logits, _)) = sampling.find(|(_, row)| mine(row)) {
                entry.last_sample = (step.id, logits);
                return;
            }
        }
    }

    /// Frees the blocks of a running request past its computed tokens.
    fn give_back(&mut self, slot: u32) -> Result<()> {
        let block_size = self.config.cache.block_size;
        let entry = &mut self.entries[slot as usize];
        let computed = entry.num_computed as usize;
        // What a policy reserved ahead stays reserved.
        if self.cache.table(entry.seq).len() < self.cache.blocks_for(entry.max_kv() as usize) {
            self.cache.truncate(entry.seq, computed)?;
        }
        entry.capacity = (self.cache.table(entry.seq).len() * block_size) as u32;
        if self.cache.has_prefix_cache() {
            entry.name_at = ((computed / block_size + 1) * block_size) as u32;
        }
        Ok(())
    }

    /// Puts a running request back to the front of the queue without any KV.
    fn restart(&mut self, slot: u32) -> Result<()> {
        self.forget_kv(slot)?;
        let entry = &mut self.entries[slot as usize];
        entry.state = State::Waiting;
        self.policy.queue.push_front(entry.waiting);
        Ok(())
    }

    fn forget_kv(&mut self, slot: u32) -> Result<()> {
        self.take_back_names(slot)?;
        let entry = &mut self.entries[slot as usize];
        entry.num_computed = 0;
        entry.set_stale();
        entry.num_placeholders = 0;
        entry.capacity = 0;
        self.cache.free(entry.seq)
    }

    /// The oldest (or newest) step in flight, if it is `id`.
    fn due(&self, id: StepId, oldest: bool) -> Result<&Step> {
        let due = if oldest { self.in_flight.front() } else { self.in_flight.back() };
        match due {
            Some(step) if step.id == id => Ok(step),
            Some(step) if self.step(id).is_some() => {
                Err(Error::StepOutOfOrder { step: id, expected: step.id })
            }
            _ => Err(Error::UnknownStep(id)),
        }
    }
}

impl<'a> Sampled<'a> {
    /// The tokens of the `i`th row that samples.
    fn row(&self, i: usize) -> &'a [Token] {
        match *self {
            Sampled::One(tokens) => &tokens[i..=i],
            Sampled::Ragged { tokens, indptr } => {
                &tokens[indptr[i] as usize..indptr[i + 1] as usize]
            }
        }
    }
}

fn check_samples(step: &Step, sampled: Sampled<'_>) -> Result<()> {
    let expected = step.num_sampling;
    let (Sampled::One(all) | Sampled::Ragged { tokens: all, .. }) = sampled;
    known("tokens", all)?;
    let mismatch = |given| Err(Error::OutputMismatch { step: step.id, expected, given });
    match sampled {
        Sampled::One(tokens) if tokens.len() != expected => mismatch(tokens.len()),
        Sampled::One(_) => Ok(()),
        Sampled::Ragged { indptr, .. } if indptr.len() != expected + 1 => {
            mismatch(indptr.len().saturating_sub(1))
        }
        Sampled::Ragged { tokens, indptr } => {
            let fits = |bounds: &[u32], most: u32| {
                bounds[0] < bounds[1] && bounds[1] - bounds[0] <= most + 1
            };
            let rows = step.rows.iter().filter(|row| row.samples);
            let all = rows.zip(indptr.windows(2)).all(|(row, w)| fits(w, row.num_draft));
            let inside = indptr.first() == Some(&0) && indptr[expected] as usize == tokens.len();
            if all && inside {
                return Ok(());
            }
            let reason = "starts at 0, ends at the tokens' count and gives each row that samples \
                          between 1 and num_draft + 1 of them";
            Err(Error::argument("indptr", reason))
        }
    }
}

/// Appends the samples of a row until one ends the request; rejected drafts are uncomputed.
fn accept(
    entry: &mut Entry,
    given: &[Token],
    num_draft: u32,
    stale: bool,
    delivered: &mut Vec<Token>,
) -> Option<FinishReason> {
    let accepted = given.len() as u32 - 1;
    let rejected = num_draft - accepted;
    entry.cut_draft(0);
    if num_draft > 0 {
        entry.num_drafts += num_draft;
        entry.num_accepted += accepted;
    }
    if !stale {
        entry.num_computed -= rejected;
        entry.num_placeholders = entry.num_placeholders.saturating_sub(1);
    }
    for (i, &token) in (1..).zip(given) {
        delivered.push(token);
        let finish = entry.push(token);
        if finish.is_some() {
            // Drafts past the end were computed for nothing.
            if !stale {
                entry.num_computed -= given.len() as u32 - i;
            }
            return finish;
        }
    }
    None
}
