//! Submitting and cancelling from any thread while another steps.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::config::Config;
use super::{Ended, Scheduler};
use crate::device::fork::Generation;
use crate::error::{Error, Result};
use crate::request::Request;
use crate::types::{RequestId, known};

/// What every request must fit, whatever else runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    max_model_len: usize,
    max_waiting: usize,
    block_size: usize,
    usable: usize,
}

impl Limits {
    pub(super) fn new(config: &Config, usable: usize) -> Self {
        let Config { max_model_len, max_waiting, cache, .. } = *config;
        Self { max_model_len, max_waiting, block_size: cache.block_size, usable }
    }

    /// The part of [`Scheduler::check`] that looks at the request alone.
    pub(super) fn check(&self, request: &Request) -> Result<()> {
        let id = request.id;
        if request.prompt.is_empty() {
            return Err(Error::argument("prompt", format!("request {id} has no tokens")));
        }
        known("prompt", &request.prompt)?;
        known("stop_tokens", &request.stop_tokens)?;
        known("eos", request.eos.as_slice())?;
        if request.max_tokens == 0 {
            return Err(Error::argument("max_tokens", format!("request {id} asks for 0 tokens")));
        }
        if let Some(rule) = request.repetition {
            rule.check(id)?;
        }
        let (prompt_len, max_model_len) = (request.prompt.len(), self.max_model_len);
        if prompt_len >= max_model_len {
            let whole = self.usable.saturating_mul(self.block_size) == max_model_len;
            let blocks = whole.then_some(self.usable);
            return Err(Error::PromptTooLong { id, prompt_len, max_model_len, blocks });
        }
        // The KV of the last token is never computed.
        let most = (prompt_len + request.max_tokens as usize).min(max_model_len) - 1;
        let (needed, usable) = (most.div_ceil(self.block_size), self.usable);
        if needed > usable {
            return Err(Error::NeverFits { id, needed, usable });
        }
        Ok(())
    }
}

/// What a [`Submitter`] asked for.
#[derive(Debug)]
enum Message {
    Submit(Request),
    Cancel(RequestId),
    Finish(RequestId, u32),
}

/// What tells a thread that there is something to receive: see [`Scheduler::set_wake`].
pub type Wake = Box<dyn Fn() + Send + Sync>;

struct Shared {
    messages: Mutex<Vec<Message>>,
    /// Locked while it is called, and after the messages are unlocked.
    wake: Mutex<Option<Wake>>,
    /// Submissions among the messages.
    submitted: AtomicUsize,
    /// Requests that wait, as the scheduler said last.
    waiting: AtomicUsize,
    limits: Limits,
    made_in: Generation,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Shared {
    /// Refuses the child of a fork, where a thread of the parent may hold the locks for ever.
    fn check(&self) -> Result<()> {
        match self.made_in.is_current() {
            true => Ok(()),
            false => Err(Error::Forked { what: "the scheduler" }),
        }
    }

    fn messages(&self) -> MutexGuard<'_, Vec<Message>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) -> MutexGuard<'_, Option<Wake>> {
        self.wake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message, and wakes the receiver of the first.
    fn push(&self, mut messages: MutexGuard<'_, Vec<Message>>, message: Message) {
        let is_first = messages.is_empty();
        messages.push(message);
        drop(messages);
        if is_first && let Some(wake) = &*self.wake() {
            wake();
        }
    }
}

/// The scheduler's end.
#[derive(Debug)]
pub(super) struct Inbox {
    shared: Arc<Shared>,
    /// Emptied messages, whose room serves again.
    spare: Vec<Message>,
}

/// Hands requests to a [`Scheduler`] that another thread steps: cheap to clone, for any thread.
///
/// What it is given takes effect with the scheduler's next [`receive`](Scheduler::receive), in
/// order. It outlives its scheduler, and is of no use then.
#[derive(Clone, Debug)]
pub struct Submitter {
    shared: Weak<Shared>,
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// The request waits.
    Submitted(RequestId),
    /// The request cannot run. The id may be that of another, which goes on: the client is its own.
    Refused {
        /// The request.
        id: RequestId,
        /// The client that it belongs to.
        client: u64,
        /// [`Error::DuplicateRequest`] or [`Error::QueueFull`].
        error: Error,
    },
    /// The request has been cancelled.
    Cancelled(Ended),
    /// The request has been ended by [`Submitter::finish`].
    Finished(Ended),
    /// There was nothing to cancel or finish: it had finished, or was refused.
    NothingToEnd(RequestId),
}

/// What became of a message that ends a request.
fn received(id: RequestId, ended: Result<Ended>, how: fn(Ended) -> Received) -> Result<Received> {
    match ended {
        Err(Error::UnknownRequest(_)) => Ok(Received::NothingToEnd(id)),
        ended => ended.map(how),
    }
}

impl Inbox {
    pub(super) fn new(limits: Limits) -> Self {
        let shared = Shared {
            messages: Mutex::default(),
            wake: Mutex::default(),
            submitted: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            limits,
            made_in: Generation::current(),
        };
        Self { shared: Arc::new(shared), spare: Vec::new() }
    }

    pub(super) fn set_wake(&self, wake: Option<Wake>) {
        // In the child of a fork no thread is left that could call it.
        if self.shared.check().is_err() {
            return;
        }
        let mut current = self.shared.wake();
        *current = wake;
        // Handed over before, or while this one was not there yet.
        if let Some(wake) = &*current
            && !self.shared.messages().is_empty()
        {
            wake();
        }
    }
}

impl Drop for Inbox {
    /// What the caller's function uses may be gone next.
    fn drop(&mut self) {
        self.set_wake(None);
    }
}

impl Submitter {
    /// Hands over a request. Whether its id is free is known when it is received.
    ///
    /// # Errors
    /// Nothing has happened on any of them: those of [`Scheduler::submit`] but
    /// [`Error::DuplicateRequest`], where [`Error::QueueFull`] counts what has not been received
    /// too; [`Error::Closed`] where the scheduler is gone, [`Error::Forked`] where it is that of a
    /// parent process.
    pub fn submit(&self, request: Request) -> Result<()> {
        let shared = self.shared()?;
        shared.limits.check(&request)?;
        let max_waiting = shared.limits.max_waiting;
        let messages = shared.messages();
        let before = shared.submitted.load(Ordering::Relaxed);
        if shared.waiting.load(Ordering::Relaxed).saturating_add(before) >= max_waiting {
            return Err(Error::QueueFull { max_waiting });
        }
        shared.submitted.store(before + 1, Ordering::Relaxed);
        shared.push(messages, Message::Submit(request));
        Ok(())
    }

    /// Asks for the end of a request. One that has ended already is no error.
    ///
    /// # Errors
    /// [`Error::Closed`] where the scheduler is gone, [`Error::Forked`] where it is that of a parent
    /// process.
    pub fn cancel(&self, id: RequestId) -> Result<()> {
        self.hand_over(Message::Cancel(id))
    }

    /// Asks for the end of a request after its first `keep_tokens` output tokens: see
    /// [`Scheduler::finish`]. One that has ended already is not an error.
    ///
    /// # Errors
    /// [`Error::Closed`] where the scheduler is gone, [`Error::Forked`] where it is that of a parent
    /// process.
    pub fn finish(&self, id: RequestId, keep_tokens: u32) -> Result<()> {
        self.hand_over(Message::Finish(id, keep_tokens))
    }

    fn hand_over(&self, message: Message) -> Result<()> {
        let shared = self.shared()?;
        shared.push(shared.messages(), message);
        Ok(())
    }

    fn shared(&self) -> Result<Arc<Shared>> {
        let shared = self.shared.upgrade().ok_or(Error::Closed)?;
        shared.check()?;
        Ok(shared)
    }
}

impl Scheduler {
    /// A handle for other threads.
    #[must_use]
    pub fn submitter(&self) -> Submitter {
        Submitter { shared: Arc::downgrade(&self.inbox.shared) }
    }

    /// Does what submitters asked for since the last call, in the order they asked, and says what
    /// came of each. To be called before [`schedule`](Self::schedule).
    ///
    /// # Errors
    /// [`Error::Corrupt`]; [`Error::Forked`] where a parent process made the scheduler.
    pub fn receive(&mut self, mut then: impl FnMut(Received)) -> Result<()> {
        let shared = Arc::clone(&self.inbox.shared);
        shared.check()?;
        let mut messages = std::mem::take(&mut self.inbox.spare);
        {
            let mut all = shared.messages();
            std::mem::swap(&mut *all, &mut messages);
            shared.submitted.store(0, Ordering::Relaxed);
            // Those just taken wait, until the next call says better.
            let taken = messages.iter().filter(|m| matches!(m, Message::Submit(_))).count();
            shared.waiting.store(self.num_waiting() + taken, Ordering::Relaxed);
        }
        let mut failed = Ok(());
        for message in messages.drain(..) {
            let received = match message {
                Message::Submit(request) => {
                    let (id, client) = (request.id, request.client);
                    Ok(match self.submit(request) {
                        Ok(()) => Received::Submitted(id),
                        Err(error) => Received::Refused { id, client, error },
                    })
                }
                Message::Cancel(id) => received(id, self.cancel(id), Received::Cancelled),
                Message::Finish(id, keep_tokens) => {
                    received(id, self.finish(id, keep_tokens), Received::Finished)
                }
            };
            match received {
                Ok(received) => then(received),
                // The others are still to be heard.
                Err(error) => failed = Err(error),
            }
        }
        self.inbox.spare = messages;
        self.publish_waiting();
        failed
    }

    /// Lets submitters know how many wait.
    pub(super) fn publish_waiting(&self) {
        self.inbox.shared.waiting.store(self.num_waiting(), Ordering::Relaxed);
    }
}
