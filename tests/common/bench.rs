//! Small schedulers and short ways to drive them by hand.

#![allow(dead_code, reason = "each test binary drives in its own way")]

use inflight::cache::CacheConfig;
use inflight::{Config, Error, FinishReason, Policy, Request, RequestId, Sampled, Scheduler};
use inflight::{StepId, Time, Token};

/// What a commit delivers: request, tokens, end.
pub(crate) type Delivered = Vec<(u64, Vec<Token>, Option<FinishReason>)>;

/// `usable` blocks, no prefix cache, one step at a time, no limit that matters.
pub(crate) fn limits(usable: usize, block_size: usize) -> Config {
    let num_blocks = usable + 1;
    let cache = CacheConfig { num_blocks, block_size, prefix_cache: false, num_host_blocks: 0 };
    Config::new(cache)
}

pub(crate) fn cached(usable: usize, block_size: usize) -> Config {
    let mut config = limits(usable, block_size);
    config.cache.prefix_cache = true;
    config
}

/// Its prompt is like no other's.
pub(crate) fn request(id: u64, prompt: usize, max_tokens: u32) -> Request {
    let prompt = (0..prompt as Token).map(|i| id as Token * 10_000 + i).collect();
    Request::new(RequestId(id), prompt, max_tokens)
}

pub(crate) struct Bench {
    pub(crate) s: Scheduler,
    now: u64,
}

impl Bench {
    pub(crate) fn new(config: Config) -> Self {
        Self::with(config, Policy::continuous())
    }

    pub(crate) fn with(config: Config, policy: Policy) -> Self {
        Self { s: Scheduler::new(config, policy).expect("sound limits"), now: 0 }
    }

    pub(crate) fn submit(&mut self, id: u64, prompt: usize, max_tokens: u32) -> &mut Self {
        self.take(request(id, prompt, max_tokens))
    }

    pub(crate) fn take(&mut self, request: Request) -> &mut Self {
        self.s.submit(request).expect("room for a request");
        self
    }

    pub(crate) fn schedule(&mut self) -> StepId {
        self.now += 1;
        let id = self.s.schedule(Time(self.now)).expect("somebody can run").id();
        self.s.verify().expect("every invariant");
        id
    }

    /// Rows of a step in flight: request, tokens computed before, tokens to compute.
    pub(crate) fn rows(&self, step: StepId) -> Vec<(u64, u32, u32)> {
        let rows = self.s.step(step).expect("in flight").rows();
        rows.iter().map(|row| (row.id.0, row.num_computed, row.num_tokens)).collect()
    }

    pub(crate) fn tables(&self, step: StepId) -> Vec<Vec<u32>> {
        let rows = self.s.step(step).expect("in flight").rows().iter();
        let sequence = |row| self.s.sequence(row).expect("it is there");
        rows.map(|row| sequence(row).blocks.iter().map(|block| block.0).collect()).collect()
    }

    pub(crate) fn preempted(&self, step: StepId) -> Vec<u64> {
        self.s.step(step).expect("in flight").preempted().iter().map(|id| id.0).collect()
    }

    pub(crate) fn commit(&mut self, step: StepId, tokens: &[Token]) -> Delivered {
        self.deliver(step, Sampled::One(tokens))
    }

    pub(crate) fn deliver(&mut self, step: StepId, sampled: Sampled<'_>) -> Delivered {
        let outputs = self.s.commit(step, sampled).expect("the oldest, with its samples");
        let delivered = outputs.as_slice().iter();
        let delivered = delivered.map(|o| (o.id.0, outputs.tokens(o).to_vec(), o.finish)).collect();
        self.s.verify().expect("every invariant");
        delivered
    }

    /// One whole step; every row that samples says `token`.
    pub(crate) fn turn(&mut self, token: Token) -> (Vec<(u64, u32, u32)>, Delivered) {
        let step = self.schedule();
        let sampling = self.s.step(step).expect("in flight").num_sampling();
        (self.rows(step), self.commit(step, &vec![token; sampling]))
    }

    /// Says these tokens to a lone request, one a step, and how that ends.
    pub(crate) fn say(&mut self, tokens: &[Token]) -> Vec<Option<FinishReason>> {
        tokens.iter().map(|&token| self.turn(token).1[0].2).collect()
    }

    /// Everything there is to see.
    pub(crate) fn state(&self) -> String {
        let s = &self.s;
        let free: Vec<_> = s.cache().pool().free_queue().collect();
        let steps: Vec<_> = s.steps_in_flight().collect();
        let requests: Vec<_> = (0..100).map(|id| s.snapshot(RequestId(id))).collect();
        let (running, waiting) = (s.num_running(), s.num_waiting());
        format!("{free:?} {steps:?} {requests:?} {running} {waiting} {:?}", s.stats())
    }

    /// Calls what must fail and leave no trace.
    pub(crate) fn refused<T>(
        &mut self,
        call: impl FnOnce(&mut Scheduler) -> Result<T, Error>,
    ) -> Error {
        let before = self.state();
        let error = call(&mut self.s).err().expect("it must be refused");
        assert_eq!(self.state(), before, "{error} left a trace");
        self.s.verify().expect("every invariant");
        error
    }
}

pub(crate) fn field(error: Error) -> &'static str {
    match error {
        Error::InvalidArgument { field, .. } => field,
        other => panic!("{other:?} is no argument error"),
    }
}
