//! Every invariant of the scheduler, checked.

use super::Scheduler;
use super::entry::State;
use crate::error::{Error, Result};

impl Scheduler {
    /// Checks every invariant: those of the [cache](crate::cache::KvCache::verify); each request
    /// is in exactly one queue; tables hold what is computed; tokens in flight are those of the
    /// steps in flight; budgets are kept. O(everything): for tests and for debugging.
    ///
    /// # Errors
    /// [`Error::Corrupt`] naming the first that does not hold.
    pub fn verify(&self) -> Result<()> {
        self.cache.verify()?;
        let corrupt = |what: String| Err(Error::Corrupt(what));
        let block_size = self.config.cache.block_size;
        let mut waiting = 0;
        for (slot, entry) in self.entries.iter().enumerate() {
            if entry.state == State::Vacant {
                continue;
            }
            let id = entry.id;
            let here = |at: &u32| *at as usize == slot;
            let runs = self.running.iter().filter(|at| here(at)).count();
            let expected = usize::from(entry.state != State::Waiting);
            waiting += 1 - expected;
            if runs != expected || self.by_id.get(&id) != Some(&(slot as u32)) {
                return corrupt(format!("request {id} is {runs} times among the running"));
            }
            let table = self.cache.table(entry.seq).len();
            if table * block_size < entry.capacity as usize {
                return corrupt(format!("request {id} counts on more blocks than it has"));
            }
            let kept = self.cache.is_swapped_out(entry.seq);
            let computed = entry.num_computed as usize;
            let holds = if kept { usize::MAX } else { table * block_size };
            if computed > holds || (entry.state == State::Waiting && !kept && table + computed > 0)
            {
                return corrupt(format!(
                    "request {id}: {computed} computed tokens, {table} blocks"
                ));
            }
            let known = entry.num_tokens() + entry.num_draft() + entry.num_placeholders;
            if !entry.is_noted() {
                return corrupt(format!("request {id} hides a field"));
            }
            if entry.num_computed > known || entry.num_tokens() > entry.max_total {
                return corrupt(format!("request {id} is ahead of its tokens"));
            }
            let mine = self.in_flight.iter().flat_map(|step| &step.rows);
            let mine = mine.filter(|r| here(&r.slot) && r.generation == entry.generation);
            let in_flight: u32 = mine.map(|row| row.num_tokens).sum();
            if in_flight != entry.num_in_flight || entry.num_stale() > in_flight {
                return corrupt(format!(
                    "request {id}: {in_flight} tokens in flight, {} counted, {} stale",
                    entry.num_in_flight,
                    entry.num_stale()
                ));
            }
        }
        let unfinished = self.running.len() + self.policy.queue.len();
        if waiting != self.policy.queue.len() || unfinished != self.by_id.len() {
            return corrupt(format!("{waiting} wait, {} are queued", self.policy.queue.len()));
        }
        if self.running.len() > self.config.max_num_seqs {
            return corrupt("more run than max_num_seqs".into());
        }
        for step in &self.in_flight {
            let tokens: usize = step.rows.iter().map(|row| row.num_tokens as usize).sum();
            let over = step.padding.is_none() && tokens > self.config.max_num_batched_tokens;
            if over || tokens != step.num_tokens {
                return corrupt(format!("step {} has {tokens} tokens", step.id));
            }
        }
        Ok(())
    }
}
