//! Requests whose answers are known beforehand, with an own reading of the stop conditions.

#![allow(dead_code, reason = "each test binary asks for its own kind of work")]

use inflight::cache::ExtraKey;
use inflight::request::Repetition;
use inflight::{FinishReason, Request, RequestId, Time, Token};

use crate::device::histories;
use crate::rng::{Rng, mix};

/// Few, so that answers meet their stop tokens and repeat themselves.
const VOCABULARY: u64 = 9;

pub(crate) struct Job {
    pub(crate) request: Request,
    seed: u64,
    /// What is to be delivered, and how it ends.
    pub(crate) answer: Vec<Token>,
    pub(crate) finish: FinishReason,
    /// Of the prompt and of what a model would go on to say.
    pub(crate) histories: Vec<u64>,
    /// Tokens at which it ends at the latest.
    pub(crate) max_total: usize,
}

impl Job {
    pub(crate) fn new(request: Request, seed: u64, max_model_len: usize) -> Self {
        let prompt = request.prompt.len();
        let max_total = (prompt + request.max_tokens as usize).min(max_model_len);
        let mut answer = Vec::new();
        let finish = loop {
            answer.push(said(seed, answer.len()));
            if let Some(finish) = end_of(&request, &answer, max_model_len) {
                break finish;
            }
        };
        let mut tokens = request.prompt.clone();
        tokens.extend((0..max_total + 8 - prompt).map(|i| said(seed, i)));
        let root = request.extra_keys.iter().map(|key| match key {
            ExtraKey::Salt(salt) => u64::from(salt[0]) + 1,
            other => panic!("no test uses {other:?}"),
        });
        let histories = histories(root.sum(), &tokens);
        Self { request, seed, answer, finish, histories, max_total }
    }

    pub(crate) fn prompt(&self) -> usize {
        self.request.prompt.len()
    }

    /// What the model says at this place of the answer, even past its end.
    pub(crate) fn says(&self, output: usize) -> Token {
        said(self.seed, output)
    }

    /// The token at a position of the sequence.
    pub(crate) fn token(&self, position: usize) -> Token {
        match position.checked_sub(self.prompt()) {
            None => self.request.prompt[position],
            Some(output) => self.says(output),
        }
    }
}

fn said(seed: u64, output: usize) -> Token {
    (mix(seed ^ mix(output as u64)) % VOCABULARY) as Token
}

/// The order of the checks: end of sequence, stop tokens, length, and only then `min_tokens`.
fn end_of(request: &Request, output: &[Token], max_model_len: usize) -> Option<FinishReason> {
    let last = *output.last()?;
    if request.eos == Some(last) {
        return Some(FinishReason::Eos);
    }
    if request.stop_tokens.contains(&last) {
        return Some(FinishReason::StopToken(last));
    }
    let too_long = request.prompt.len() + output.len() >= max_model_len;
    if too_long || output.len() >= request.max_tokens as usize {
        return Some(FinishReason::Length);
    }
    if output.len() < request.min_tokens as usize {
        return None;
    }
    let Repetition { min_pattern, max_pattern, min_count } = request.repetition?;
    let repeats = |pattern: u32| {
        let (pattern, count) = (pattern as usize, min_count as usize);
        let tail = output.len().checked_sub(pattern * count).map(|from| &output[from..]);
        tail.is_some_and(|tail| tail.chunks(pattern).all(|part| part == &tail[..pattern]))
    };
    (min_pattern.max(1)..=max_pattern).any(repeats).then_some(FinishReason::Repetition)
}

/// A random job. Prompts share prefixes, and some continue an earlier conversation.
pub(crate) fn random_job(
    rng: &mut Rng,
    id: RequestId,
    earlier: &[Job],
    max_model_len: usize,
    now: u64,
) -> Job {
    let len = rng.within(1, max_model_len.min(26));
    let family = rng.below(3) as Token * 1000;
    let split = rng.below(2 * len) as Token;
    let own = |rng: &mut Rng, i| if i < split { family + i } else { rng.below(4) as Token };
    let mut prompt: Vec<Token> = (0..len as Token).map(|i| own(rng, i)).collect();
    if !earlier.is_empty() && rng.chance(30) {
        let job = &earlier[rng.below(earlier.len())];
        prompt = job.request.prompt.clone();
        prompt.extend(&job.answer);
        prompt.extend((0..rng.below(4)).map(|i| i as Token));
        prompt.truncate(max_model_len);
    }
    let max_tokens = rng.within(1, 22) as u32;
    let mut request = Request::new(id, prompt, max_tokens);
    request.eos = rng.chance(30).then_some(0);
    request.stop_tokens = rng.pick(&[&[][..], &[], &[1], &[2, 3]]).to_vec();
    request.min_tokens = rng.below(8) as u32;
    request.repetition = rng.chance(20).then(|| Repetition {
        min_pattern: rng.below(2) as u32,
        max_pattern: rng.within(1, 3) as u32,
        min_count: rng.within(2, 3) as u32,
    });
    request.priority = rng.below(5) as i32 - 2;
    request.arrival = Some(Time(now));
    if rng.chance(10) {
        request.extra_keys.push(ExtraKey::Salt(vec![rng.below(2) as u8]));
    }
    request.read_prefix_cache = !rng.chance(10);
    Job::new(request, rng.next(), max_model_len)
}
