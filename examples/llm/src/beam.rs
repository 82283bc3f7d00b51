//! Beam search: of all continuations of a prompt, the likeliest few are kept at every token.
//!
//! Beams fork and are dropped with every token, which is what [`Branches`] is for.

use anyhow::{Result, bail};
use inflight::Token;
use inflight::cache::SeqId;

use crate::branches::{Branches, Row};
use crate::sampling::{likeliest, log_sum_exp};

/// A continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Continuation {
    /// Its tokens, the one that ended it included.
    pub tokens: Vec<Token>,
    /// The natural logarithm of its probability.
    pub logprob: f64,
}

impl Continuation {
    /// What continuations of different lengths are compared by: the mean of its tokens' logarithms.
    pub fn score(&self) -> f64 {
        self.logprob / self.tokens.len().max(1) as f64
    }
}

/// A continuation that goes on.
struct Beam {
    seq: SeqId,
    so_far: Continuation,
}

/// A token that may follow a beam.
struct Candidate {
    beam: usize,
    token: Token,
    logprob: f64,
}

/// The best continuations of a prompt, best first: `width` at most, of `max_tokens` at most. Those
/// that reach one of `ends` are done. The prompt is computed in pieces of `chunk` tokens.
pub fn search(
    branches: &mut Branches,
    prompt: &[Token],
    (width, max_tokens): (usize, usize),
    ends: &[Token],
    chunk: usize,
) -> Result<Vec<Continuation>> {
    if prompt.is_empty() || width == 0 || max_tokens == 0 || chunk == 0 {
        bail!("a search has a prompt, beams and tokens");
    }
    let vocab = branches.vocab();
    let seq = branches.open();
    let (last, first) = prompt.split_last().expect("the prompt is not empty");
    for (at, tokens) in first.chunks(chunk).enumerate() {
        branches.run(&[Row { seq, start: at * chunk, tokens }])?;
    }
    let so_far = Continuation { tokens: Vec::new(), logprob: 0.0 };
    let mut beams = vec![Beam { seq, so_far }];
    let mut done: Vec<Continuation> = Vec::new();
    for length in 0..max_tokens {
        let inputs: Vec<Token> =
            beams.iter().map(|beam| *beam.so_far.tokens.last().unwrap_or(last)).collect();
        let start = prompt.len() - 1 + length;
        let rows = beams.iter().zip(&inputs);
        let rows: Vec<Row<'_>> = rows
            .map(|(beam, token)| Row { seq: beam.seq, start, tokens: std::slice::from_ref(token) })
            .collect();
        let logits = branches.run(&rows)?;
        let mut next = Vec::new();
        for (beam, logits) in logits.chunks_exact(vocab).enumerate() {
            let total = log_sum_exp(logits);
            // Twice as many as are kept: each beam may end.
            next.extend(likeliest(logits, 2 * width).into_iter().map(|token| Candidate {
                beam,
                token,
                logprob: beams[beam].so_far.logprob + f64::from(logits[token as usize])
                    - f64::from(total),
            }));
        }
        next.sort_by(|a, b| b.logprob.total_cmp(&a.logprob));
        let (ended, kept) = choose(next, width, ends);
        let extended = |Candidate { beam, token, logprob }: &Candidate| {
            let mut tokens = beams[*beam].so_far.tokens.clone();
            tokens.push(*token);
            Continuation { tokens, logprob: *logprob }
        };
        done.extend(ended.iter().map(extended));
        let kept: Vec<_> = kept.iter().map(|kept| (kept.beam, extended(kept))).collect();
        beams = follow(branches, &beams, kept)?;
        done.sort_by(|a, b| b.score().total_cmp(&a.score()));
        done.truncate(width);
        if is_settled(&done, &beams, width, max_tokens) {
            break;
        }
    }
    for beam in beams {
        branches.close(beam.seq)?;
        done.push(beam.so_far);
    }
    done.sort_by(|a, b| b.score().total_cmp(&a.score()));
    done.truncate(width);
    Ok(done)
}

/// Those of the best candidates that end before `width` that do not have been found, and those.
fn choose(
    candidates: Vec<Candidate>,
    width: usize,
    ends: &[Token],
) -> (Vec<Candidate>, Vec<Candidate>) {
    let (mut ended, mut kept) = (Vec::new(), Vec::new());
    for candidate in candidates {
        match ends.contains(&candidate.token) {
            true => ended.push(candidate),
            false => kept.push(candidate),
        }
        if kept.len() == width {
            break;
        }
    }
    (ended, kept)
}

/// Each continuation in a sequence of its own: its parent's, or a fork of that.
fn follow(
    branches: &mut Branches,
    parents: &[Beam],
    kept: Vec<(usize, Continuation)>,
) -> Result<Vec<Beam>> {
    let mut is_taken = vec![false; parents.len()];
    let mut beams = Vec::with_capacity(kept.len());
    for (parent, so_far) in kept {
        let seq = match std::mem::replace(&mut is_taken[parent], true) {
            false => parents[parent].seq,
            true => branches.fork(parents[parent].seq)?,
        };
        beams.push(Beam { seq, so_far });
    }
    for (parent, _) in parents.iter().zip(is_taken).filter(|(_, is_taken)| !is_taken) {
        branches.close(parent.seq)?;
    }
    Ok(beams)
}

/// Whether no beam can do better than what is done: a probability only falls, so that the best mean
/// is that of a beam which is certain of all tokens to come.
fn is_settled(done: &[Continuation], beams: &[Beam], width: usize, max_tokens: usize) -> bool {
    let worst = done.get(width - 1).map(Continuation::score);
    let best = |beam: &Beam| beam.so_far.logprob / max_tokens as f64;
    worst.is_some_and(|worst| beams.iter().all(|beam| best(beam) <= worst))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beams_that_end_leave_their_place_to_others() {
        let candidates = [(0, 7), (1, 9), (0, 8), (1, 9), (1, 6)].into_iter().zip(1..);
        let candidates = candidates.map(|((beam, token), rank)| Candidate {
            beam,
            token,
            logprob: f64::from(-rank),
        });
        let (ended, kept) = choose(candidates.collect(), 2, &[9]);
        let of = |all: &[Candidate]| all.iter().map(|c| (c.beam, c.token)).collect::<Vec<_>>();
        assert_eq!((of(&ended), of(&kept)), (vec![(1, 9)], vec![(0, 7), (0, 8)]));
    }
}
