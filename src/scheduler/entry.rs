//! The scheduler's own record of a request.

use super::queue::Waiting;
use super::{Ended, Snapshot};
use crate::cache::{HashChain, SeqId};
use crate::request::{FinishReason, Repetition, Request};
use crate::types::{RequestId, StepId, Time, Token};

/// Where a request stands; it is in exactly one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// No request: the record is free.
    Vacant,
    /// In the queue.
    Waiting,
    /// In the list of running requests.
    Running,
    /// Among the running requests of a static batch, ended, holding slot and blocks.
    Ended,
}

/// What a decode step touches is one cache line, and the end of the tokens.
#[repr(C, align(64))]
pub(super) struct Entry {
    /// Tokens whose KV is computed, or will be when all steps in flight have run.
    pub(super) num_computed: u32,
    /// Tokens in flight, those of steps that a preemption made stale included.
    pub(super) num_in_flight: u32,
    /// Samples in flight that later steps build on; 0 without overlap.
    pub(super) num_placeholders: u32,
    /// Tokens its blocks hold.
    pub(super) capacity: u32,
    /// Computed tokens at which its next block is full and gets a name; never without prefix
    /// cache.
    pub(super) name_at: u32,
    pub(super) num_prompt: u32,
    /// Tokens at which it ends.
    pub(super) max_total: u32,
    pub(super) generation: u32,
    pub(super) state: State,
    /// Whether any of the fields below the first line says something: drafts, stale tokens, stop
    /// tokens, a repetition rule. What changes them calls [`Entry::note`].
    unusual: bool,
    has_eos: bool,
    eos: Token,
    /// Prompt and output.
    pub(super) tokens: Vec<Token>,
    draft: Vec<Token>,
    /// Tokens in flight from before its last preemption: their samples are delivered, but they no
    /// longer count as computed.
    num_stale: u32,
    pub(super) id: RequestId,
    stop_tokens: Vec<Token>,
    pub(super) min_tokens: u32,
    repetition: Option<Repetition>,
    pub(super) seq: SeqId,
    pub(super) chain: HashChain,
    pub(super) waiting: Waiting,
    pub(super) read_prefix_cache: bool,
    pub(super) num_preemptions: u32,
    /// With overlap, the newest step in flight that samples for it, and where among its logits.
    pub(super) last_sample: (StepId, u32),
    /// Requests that passed it while it was the head of the queue.
    pub(super) passed: u32,
    pub(super) client: u64,
    /// When it was first admitted, and the prompt's tokens that were cached then.
    pub(super) first_scheduled: Option<Time>,
    pub(super) num_cached: u32,
    /// When the step was scheduled that sampled its first token.
    pub(super) first_token: Option<Time>,
    /// Draft tokens verified, and those accepted.
    pub(super) num_drafts: u32,
    pub(super) num_accepted: u32,
}

impl Entry {
    pub(super) fn new(request: Request, waiting: Waiting, seq: SeqId, limits: (u32, u32)) -> Self {
        let (max_model_len, block_size) = limits;
        let num_prompt = request.prompt.len() as u32;
        let mut entry = Self {
            num_computed: 0,
            num_in_flight: 0,
            num_placeholders: 0,
            capacity: 0,
            name_at: u32::MAX,
            num_prompt,
            max_total: num_prompt.saturating_add(request.max_tokens).min(max_model_len),
            generation: 0,
            state: State::Waiting,
            unusual: false,
            has_eos: request.eos.is_some(),
            eos: request.eos.unwrap_or_default(),
            tokens: request.prompt,
            draft: Vec::new(),
            num_stale: 0,
            id: request.id,
            stop_tokens: request.stop_tokens,
            min_tokens: request.min_tokens,
            repetition: request.repetition,
            seq,
            chain: HashChain::new(block_size as usize, &request.extra_keys),
            waiting,
            read_prefix_cache: request.read_prefix_cache,
            num_preemptions: 0,
            last_sample: (StepId(0), 0),
            passed: 0,
            client: request.client,
            first_scheduled: None,
            num_cached: 0,
            first_token: None,
            num_drafts: 0,
            num_accepted: 0,
        };
        entry.note();
        entry
    }

    /// The request at this moment.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            running: self.state != State::Waiting,
            num_prompt: self.num_prompt,
            num_output: self.num_output(),
            num_computed: self.num_computed,
            num_cached: self.num_cached,
            num_preemptions: self.num_preemptions,
            num_drafts: self.num_drafts,
            num_accepted: self.num_accepted,
            first_scheduled: self.first_scheduled,
            first_token: self.first_token,
            client: self.client,
        }
    }

    /// The request at its end.
    pub(super) fn ended(&self) -> Ended {
        Ended { id: self.id, last: self.snapshot() }
    }

    /// Keeps `unusual` true to the fields it speaks of.
    fn note(&mut self) {
        self.unusual = !self.draft.is_empty()
            || self.num_stale > 0
            || !self.stop_tokens.is_empty()
            || self.repetition.is_some();
    }

    /// Whether `unusual` is true to the fields it speaks of.
    pub(super) fn is_noted(&self) -> bool {
        let quiet = self.draft.is_empty() && self.num_stale == 0;
        self.unusual != (quiet && self.stop_tokens.is_empty() && self.repetition.is_none())
    }

    /// The draft.
    pub(super) fn draft(&self) -> &[Token] {
        &self.draft
    }

    /// Draft tokens after the known ones.
    pub(super) fn num_draft(&self) -> u32 {
        if self.unusual { self.draft.len() as u32 } else { 0 }
    }

    /// Replaces the draft.
    pub(super) fn set_draft(&mut self, draft: &[Token]) {
        self.draft.clear();
        self.draft.extend_from_slice(draft);
        self.note();
    }

    /// Drops the draft's tokens beyond the first `len`.
    pub(super) fn cut_draft(&mut self, len: u32) {
        if self.unusual {
            self.draft.truncate(len as usize);
            self.note();
        }
    }

    /// Tokens in flight from before its last preemption.
    pub(super) fn num_stale(&self) -> u32 {
        if self.unusual { self.num_stale } else { 0 }
    }

    /// All that is in flight no longer counts as computed.
    pub(super) fn set_stale(&mut self) {
        self.num_stale = self.num_in_flight;
        self.note();
    }

    /// Takes `n` tokens out of flight; whether they were stale.
    pub(super) fn land(&mut self, n: u32) -> bool {
        self.num_in_flight -= n;
        let stale = self.num_stale() > 0;
        if stale {
            self.num_stale = self.num_stale.saturating_sub(n);
            self.note();
        }
        stale
    }

    pub(super) fn num_tokens(&self) -> u32 {
        self.tokens.len() as u32
    }

    pub(super) fn num_output(&self) -> u32 {
        self.num_tokens() - self.num_prompt
    }

    /// Tokens whose KV it can come to need: all but the last, which is not computed.
    pub(super) fn max_kv(&self) -> u32 {
        self.max_total - 1
    }

    /// Appends a sampled token. The order of the checks is vLLM's (v1/core/sched/utils.py,
    /// `check_stop`): a sampled end counts even below `min_tokens`, and so does the length.
    pub(super) fn push(&mut self, token: Token) -> Option<FinishReason> {
        self.tokens.push(token);
        if self.has_eos && self.eos == token {
            return Some(FinishReason::Eos);
        }
        if self.unusual && self.stop_tokens.contains(&token) {
            return Some(FinishReason::StopToken(token));
        }
        if self.num_tokens() >= self.max_total {
            return Some(FinishReason::Length);
        }
        let rule = self.unusual.then_some(self.repetition).flatten()?;
        let output = &self.tokens[self.num_prompt as usize..];
        let late_enough = output.len() as u32 >= self.min_tokens;
        (late_enough && rule.found_in(output)).then_some(FinishReason::Repetition)
    }
}
