//! What a caller asks for.

use super::elements::{Element, elements};
use super::ffi::{Result, Versioned, at_most, bounded, copied, flag, versioned};
use super::library::INFLIGHT_MAX_COUNT;
use crate::cache::ExtraKey;
use crate::request::{Repetition, Request};
use crate::scheduler::Snapshot;
use crate::types::{RequestId, Time, Token};

/// No token: a request without `eos`. Refused among
/// tokens: in prompts, drafts, stop tokens, samples and tokens of sequences.
pub const INFLIGHT_NO_TOKEN: u32 = u32::MAX;
/// The time of the last `inflight_scheduler_schedule`: for a request that says no `arrival`.
pub const INFLIGHT_NOW: u64 = u64::MAX;

/// Counts and times of a request at its end: of an `inflight_output`, and at the end of an
/// `inflight_event`, which grows with it. In arrays `result_size` bytes from one to the next.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct inflight_request_result {
    /// The time given to the `inflight_scheduler_schedule` that first admitted it; 2^64 - 1 where it
    /// was not.
    pub first_scheduled_at: u64,
    /// The time given to the `inflight_scheduler_schedule` of the step that sampled its first token;
    /// 2^64 - 1 where none has been committed.
    pub first_token_at: u64,
    /// Tokens of its prompt.
    pub num_prompt: u32,
    /// Tokens that it has output.
    pub num_output: u32,
    /// Tokens that it found in the prefix cache when it was first admitted.
    pub num_cached: u32,
    /// Times it was preempted.
    pub num_preemptions: u32,
    /// Draft tokens that were verified.
    pub num_drafts: u32,
    /// Draft tokens among them that were accepted.
    pub num_accepted: u32,
}

// SAFETY: integers, without padding.
unsafe impl Element for inflight_request_result {}

impl inflight_request_result {
    /// Where a request has not ended.
    pub(super) const NONE: Self = Self {
        first_scheduled_at: u64::MAX,
        first_token_at: u64::MAX,
        num_prompt: 0,
        num_output: 0,
        num_cached: 0,
        num_preemptions: 0,
        num_drafts: 0,
        num_accepted: 0,
    };
}

impl From<&Snapshot> for inflight_request_result {
    fn from(last: &Snapshot) -> Self {
        let nanoseconds = |time: Option<Time>| time.map_or(u64::MAX, |time| time.0);
        Self {
            first_scheduled_at: nanoseconds(last.first_scheduled),
            first_token_at: nanoseconds(last.first_token),
            num_prompt: last.num_prompt,
            num_output: last.num_output,
            num_cached: last.num_cached,
            num_preemptions: last.num_preemptions,
            num_drafts: last.num_drafts,
            num_accepted: last.num_accepted,
        }
    }
}

/// Content behind placeholder tokens, such as an image: prompts share cached blocks only where it
/// is the same.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct inflight_content {
    /// Names the content, a digest for example.
    pub id: *const u8,
    /// Bytes of `id`, at most 65536.
    pub id_len: usize,
    /// First token position it covers.
    pub start: u32,
    /// Tokens it covers.
    pub len: u32,
}

// SAFETY: integers and pointers, without padding.
unsafe impl Element for inflight_content {}

/// A request to generate from a prompt. Everything it points to is copied by the call that takes it. What
/// later versions ask of a request is added at its end.
///
/// Initialise it with `inflight_request_init`, then set at least `id`, `prompt`, `prompt_len` and
/// `max_tokens`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct inflight_request {
    /// `sizeof(inflight_request)`.
    pub struct_size: usize,
    /// Chosen by the caller, unique among requests that have not finished.
    pub id: u64,
    /// Token ids, none of them `INFLIGHT_NO_TOKEN`; at least one.
    pub prompt: *const u32,
    /// Tokens of `prompt`, at most `INFLIGHT_MAX_COUNT`.
    pub prompt_len: usize,
    /// Token ids that end the request when sampled, each reported as the reason, none of them
    /// `INFLIGHT_NO_TOKEN`; may be NULL.
    pub stop_tokens: *const u32,
    /// Tokens of `stop_tokens`, at most 65536.
    pub num_stop_tokens: usize,
    /// Requests share cached blocks only with requests of the same salt; may be NULL.
    pub salt: *const u8,
    /// Bytes of `salt`, at most 65536.
    pub salt_len: usize,
    /// Name of the adapter (LoRA) that the request runs with, for the same purpose; may be NULL.
    pub adapter: *const u8,
    /// Bytes of `adapter`, at most 65536.
    pub adapter_len: usize,
    /// Contents behind placeholder tokens, for the same purpose; may be NULL.
    pub contents: *const inflight_content,
    /// Elements of `contents`, at most 65536.
    pub num_contents: usize,
    /// `sizeof(inflight_content)`, where there are contents.
    pub content_size: usize,
    /// The client that the request belongs to: for policies that are fair to clients, and for the caller.
    pub client: u64,
    /// When it came, in nanoseconds of the clock that `inflight_scheduler_schedule` is given;
    /// `INFLIGHT_NOW` by default.
    pub arrival: u64,
    /// Output tokens at most; at least 1. `max_model_len` caps prompt and output together.
    pub max_tokens: u32,
    /// Outputs below which repetition does not end the request. The end of sequence is not
    /// affected: the sampler must not sample it too early.
    pub min_tokens: u32,
    /// Token id that ends the request when sampled; `INFLIGHT_NO_TOKEN` (the default) for none.
    pub eos: u32,
    /// Lower runs first, under a policy that looks at it.
    pub priority: i32,
    /// Repetitions of a pattern at the end of the output that end the request; at least 2, with
    /// `repetition_max_pattern` set too, or 0 (the default) for no such rule.
    pub repetition_count: u32,
    /// Shortest pattern looked for, in tokens; 0 reads as 1.
    pub repetition_min_pattern: u32,
    /// Longest pattern looked for, in tokens: at least the shortest, where there is a rule.
    pub repetition_max_pattern: u32,
    /// 1 if it must not start from a cached prefix: for requests that want the logits of every
    /// prompt position. Its blocks serve others either way.
    pub skip_prefix_cache: u32,
}

versioned! {
    inflight_request_init(request: inflight_request ..= skip_prefix_cache) {
        arrival: INFLIGHT_NOW,
        eos: INFLIGHT_NO_TOKEN,
    }
}

/// Elements of what a request points to besides its prompt: enough for all there is, and copied
/// without a thought.
const MOST: u64 = 1 << 16;

/// The request of the caller's struct, with copies of all it points to.
///
/// # Safety
/// `request` is NULL or an `inflight_request`, whose pointers are NULL or of as many elements as it
/// says.
pub(super) unsafe fn request_of(request: *const inflight_request) -> Result<Request> {
    // SAFETY: as the caller promises.
    let given = unsafe { super::ffi::read("request", request) }?;
    // SAFETY: as the caller promises.
    unsafe { given.request() }.map_err(|failure| failure.of_request(given.id))
}

impl inflight_request {
    /// # Safety
    /// Its pointers are NULL or of as many elements as it says.
    unsafe fn request(&self) -> Result<Request> {
        // SAFETY: as the caller promises.
        let prompt: &[Token] = unsafe {
            bounded(
                ["prompt", "prompt_len"],
                self.prompt,
                self.prompt_len,
                INFLIGHT_MAX_COUNT.into(),
            )
        }?;
        let stops = (self.stop_tokens, self.num_stop_tokens);
        // SAFETY: as the caller promises.
        let stops = unsafe { bounded(["stop_tokens", "num_stop_tokens"], stops.0, stops.1, MOST) }?;
        let salt = (self.salt, self.salt_len);
        let adapter = (self.adapter, self.adapter_len);
        // SAFETY: as the caller promises.
        let extra_keys = unsafe {
            extra_keys_of(salt, adapter, (self.contents, self.content_size, self.num_contents))
        }?;
        let repetition = (self.repetition_count != 0).then_some(Repetition {
            min_pattern: self.repetition_min_pattern,
            max_pattern: self.repetition_max_pattern,
            min_count: self.repetition_count,
        });
        Ok(Request {
            id: RequestId(self.id),
            prompt: copied(prompt)?,
            max_tokens: self.max_tokens,
            eos: (self.eos != INFLIGHT_NO_TOKEN).then_some(self.eos),
            stop_tokens: stops.to_vec(),
            min_tokens: self.min_tokens,
            repetition,
            priority: self.priority,
            client: self.client,
            arrival: (self.arrival != INFLIGHT_NOW).then_some(Time(self.arrival)),
            extra_keys,
            read_prefix_cache: !flag("skip_prefix_cache", self.skip_prefix_cache)?,
        })
    }
}

/// Copies of what decides a block's content besides the tokens.
///
/// # Safety
/// Pointers are NULL or of as many elements as the counts next to them say.
pub(super) unsafe fn extra_keys_of(
    salt: (*const u8, usize),
    adapter: (*const u8, usize),
    contents: (*const inflight_content, usize, usize),
) -> Result<Vec<ExtraKey>> {
    // SAFETY: as the caller promises.
    let salt = unsafe { bounded(["salt", "salt_len"], salt.0, salt.1, MOST) }?;
    // SAFETY: as the caller promises.
    let adapter = unsafe { bounded(["adapter", "adapter_len"], adapter.0, adapter.1, MOST) }?;
    at_most("num_contents", contents.2 as u64, MOST)?;
    let names = ["contents", "content_size"];
    // SAFETY: as the caller promises.
    let contents = unsafe { elements(names, contents.0, contents.1, contents.2) }?;
    let mut extra_keys = Vec::new();
    if !salt.is_empty() {
        extra_keys.push(ExtraKey::Salt(salt.to_vec()));
    }
    if !adapter.is_empty() {
        extra_keys.push(ExtraKey::Adapter(adapter.to_vec()));
    }
    for content in &*contents {
        // SAFETY: as the caller promises.
        let id = unsafe {
            bounded(["contents.id", "contents.id_len"], content.id, content.id_len, MOST)
        }?
        .to_vec();
        extra_keys.push(ExtraKey::Content { start: content.start, len: content.len, id });
    }
    Ok(extra_keys)
}
