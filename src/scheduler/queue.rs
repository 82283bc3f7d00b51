//! The order in which waiting requests are admitted.

use std::collections::{BTreeMap, VecDeque};

use crate::types::{RequestId, Time};

/// A waiting request as a queue sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Waiting {
    /// The scheduler's handle of the request.
    pub slot: u32,
    /// The request.
    pub id: RequestId,
    /// Lower first.
    pub priority: i32,
    /// When it came.
    pub arrival: Time,
    /// Admissions there had been when it came; kept when it is preempted.
    pub since: u64,
    /// The client that it belongs to.
    pub client: u64,
    /// Tokens of its prompt.
    pub num_prompt: u32,
    /// Output tokens it may ask for.
    pub max_tokens: u32,
}

/// What ageing is measured by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// The time given to `schedule`.
    pub now: Time,
    /// Requests admitted so far.
    pub admissions: u64,
}

/// The order of waiting requests. It holds what it is given until [`remove`](Self::remove) takes it
/// out, and starts empty; a queue that does not is reported as [`Error::Corrupt`].
///
/// [`Error::Corrupt`]: crate::Error::Corrupt
pub trait Queue: Send {
    /// Adds a request that was submitted.
    fn push(&mut self, request: Waiting);

    /// Puts back a request that was preempted or passed over: ahead of all that came after it.
    fn push_front(&mut self, request: Waiting);

    /// The request to be admitted next.
    fn peek(&self, clock: Clock) -> Option<Waiting>;

    /// Takes out a request; false when it is not there.
    fn remove(&mut self, request: &Waiting) -> bool;

    /// Told when a request that was taken out runs: a queue that keeps accounts books it here.
    fn admitted(&mut self, request: &Waiting) {
        let _ = request;
    }

    /// Requests waiting.
    fn len(&self) -> usize;

    /// Whether nothing waits.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// First come, first served.
#[derive(Debug, Default)]
pub struct Fcfs(VecDeque<Waiting>);

impl Queue for Fcfs {
    fn push(&mut self, request: Waiting) {
        self.0.push_back(request);
    }

    fn push_front(&mut self, request: Waiting) {
        self.0.push_front(request);
    }

    fn peek(&self, _: Clock) -> Option<Waiting> {
        self.0.front().copied()
    }

    fn remove(&mut self, request: &Waiting) -> bool {
        // The head is what leaves nearly always.
        let at = self.0.iter().position(|w| w.slot == request.slot);
        at.is_some_and(|at| self.0.remove(at).is_some())
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// The urgent first, each class first come, first served: the order of [`Orca`]'s rule.
///
/// [`Orca`]: super::capacity::Orca
#[derive(Debug, Default)]
pub struct UrgentFirst {
    /// Requests of this priority or a lower value are urgent.
    pub at_once: i32,
    urgent: Fcfs,
    patient: Fcfs,
}

impl UrgentFirst {
    /// An empty queue.
    #[must_use]
    pub fn new(at_once: i32) -> Self {
        Self { at_once, ..Self::default() }
    }

    fn class(&mut self, request: &Waiting) -> &mut Fcfs {
        if request.priority <= self.at_once { &mut self.urgent } else { &mut self.patient }
    }
}

impl Queue for UrgentFirst {
    fn push(&mut self, request: Waiting) {
        self.class(&request).push(request);
    }

    fn push_front(&mut self, request: Waiting) {
        self.class(&request).push_front(request);
    }

    fn peek(&self, clock: Clock) -> Option<Waiting> {
        self.urgent.peek(clock).or_else(|| self.patient.peek(clock))
    }

    fn remove(&mut self, request: &Waiting) -> bool {
        self.class(request).remove(request)
    }

    fn len(&self) -> usize {
        self.urgent.len() + self.patient.len()
    }
}

/// How waiting makes up for a low priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ageing {
    /// It does not: strict priority, as in vLLM.
    Off,
    /// One level for so many admissions of others; at least 1.
    Admissions(u64),
    /// One level for so many nanoseconds; at least 1.
    Nanos(u64),
}

/// Lowest value first, then first come.
///
/// Waiting raises a request by [`Ageing`]; a request that has seen `max_admissions` others admitted, or
/// has waited `max_wait` nanoseconds, goes first, the oldest foremost (the first submitted: requests
/// are expected in order of arrival). So no request is overtaken by
/// more than `max_admissions` requests that came later.
#[derive(Debug)]
pub struct Priority {
    ageing: Ageing,
    max_admissions: u64,
    max_wait: u64,
    /// By effective priority. All age at one rate, so the order of two never changes.
    ranked: BTreeMap<(i128, Time, RequestId, u32), Waiting>,
    /// By age.
    oldest: BTreeMap<(u64, Time, RequestId, u32), Waiting>,
}

impl Default for Priority {
    /// One level for 256 admissions; no request sees more than 1,024 others go first.
    fn default() -> Self {
        Self::new(Ageing::Admissions(256), 1024, u64::MAX)
    }
}

impl Priority {
    /// A queue with this ageing and these bounds; `u64::MAX` for no bound.
    #[must_use]
    pub fn new(ageing: Ageing, max_admissions: u64, max_wait: u64) -> Self {
        let (ranked, oldest) = (BTreeMap::new(), BTreeMap::new());
        Self { ageing, max_admissions, max_wait, ranked, oldest }
    }

    fn rank(&self, w: &Waiting) -> (i128, Time, RequestId, u32) {
        // A request ranks as if it had come `priority` levels later than it did.
        let rank = match self.ageing {
            Ageing::Off => i128::from(w.priority),
            Ageing::Admissions(level) => {
                i128::from(w.priority) * i128::from(level) + i128::from(w.since)
            }
            Ageing::Nanos(level) => {
                i128::from(w.priority) * i128::from(level) + i128::from(w.arrival.0)
            }
        };
        (rank, w.arrival, w.id, w.slot)
    }

    fn age(w: &Waiting) -> (u64, Time, RequestId, u32) {
        (w.since, w.arrival, w.id, w.slot)
    }
}

impl Queue for Priority {
    fn push(&mut self, request: Waiting) {
        self.ranked.insert(self.rank(&request), request);
        self.oldest.insert(Self::age(&request), request);
    }

    fn push_front(&mut self, request: Waiting) {
        self.push(request);
    }

    fn peek(&self, clock: Clock) -> Option<Waiting> {
        let (_, &oldest) = self.oldest.first_key_value()?;
        let overdue = clock.admissions.saturating_sub(oldest.since) >= self.max_admissions
            || clock.now.since(oldest.arrival) >= self.max_wait;
        if overdue { Some(oldest) } else { self.ranked.values().next().copied() }
    }

    fn remove(&mut self, request: &Waiting) -> bool {
        self.oldest.remove(&Self::age(request)).is_some()
            && self.ranked.remove(&self.rank(request)).is_some()
    }

    fn len(&self) -> usize {
        self.ranked.len()
    }
}
