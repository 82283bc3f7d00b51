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
    let mut search = Search { branches, beams: Vec::new(), done: Vec::new(), width, ends };
    let outcome = search.run(prompt, max_tokens, chunk);
    // Whatever has happened, its blocks are free again.
    for beam in std::mem::take(&mut search.beams) {
        search.branches.close(beam.seq)?;
        search.done.push(beam.so_far);
    }
    outcome?;
    search.keep_best();
    Ok(search.done)
}

struct Search<'a> {
    branches: &'a mut Branches,
    /// All sequences that are open.
    beams: Vec<Beam>,
    /// What has ended.
    done: Vec<Continuation>,
    width: usize,
    ends: &'a [Token],
}

impl Search<'_> {
    fn run(&mut self, prompt: &[Token], max_tokens: usize, chunk: usize) -> Result<()> {
        let seq = self.branches.open();
        let so_far = Continuation { tokens: Vec::new(), logprob: 0.0 };
        self.beams.push(Beam { seq, so_far });
        let (last, first) = prompt.split_last().expect("the prompt is not empty");
        for (at, tokens) in first.chunks(chunk).enumerate() {
            self.branches.run(&[Row { seq, start: at * chunk, tokens }])?;
        }
        for start in (prompt.len() - 1..).take(max_tokens) {
            let candidates = self.step(start, *last)?;
            let (ended, kept) = choose(candidates, self.width, self.ends);
            let extended = |Candidate { beam, token, logprob }: &Candidate| {
                let mut tokens = self.beams[*beam].so_far.tokens.clone();
                tokens.push(*token);
                Continuation { tokens, logprob: *logprob }
            };
            self.done.extend(ended.iter().map(extended));
            let kept: Vec<_> = kept.iter().map(|kept| (kept.beam, extended(kept))).collect();
            self.follow(kept)?;
            self.keep_best();
            if self.is_settled(max_tokens) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Computes each beam's last token, or the prompt's, and says what may follow, likeliest first.
    fn step(&mut self, start: usize, last: Token) -> Result<Vec<Candidate>> {
        let last = |beam: &Beam| *beam.so_far.tokens.last().unwrap_or(&last);
        let inputs: Vec<Token> = self.beams.iter().map(last).collect();
        let rows = self.beams.iter().zip(inputs.chunks(1));
        let rows: Vec<Row<'_>> =
            rows.map(|(beam, tokens)| Row { seq: beam.seq, start, tokens }).collect();
        let vocab = self.branches.vocab();
        let logits = self.branches.run(&rows)?;
        // If a beam is followed by all ends, as many others are left as are kept.
        let count = self.width + self.ends.len();
        let mut next = Vec::new();
        for ((at, beam), logits) in self.beams.iter().enumerate().zip(logits.chunks_exact(vocab)) {
            let total = log_sum_exp(logits);
            next.extend(likeliest(logits, count).into_iter().map(|token| Candidate {
                beam: at,
                token,
                logprob: beam.so_far.logprob + f64::from(logits[token as usize] - total),
            }));
        }
        next.sort_by(|a, b| b.logprob.total_cmp(&a.logprob));
        Ok(next)
    }

    /// Gives each continuation a sequence of its own: its parent's, or a fork of that.
    fn follow(&mut self, kept: Vec<(usize, Continuation)>) -> Result<()> {
        let (mut next, mut is_taken) = (Vec::new(), vec![false; self.beams.len()]);
        let mut forked = Ok(());
        for (parent, so_far) in kept {
            let seq = self.beams[parent].seq;
            let seq = match std::mem::replace(&mut is_taken[parent], true) {
                false => Ok(seq),
                true => self.branches.fork(seq),
            };
            match seq {
                Ok(seq) => next.push(Beam { seq, so_far }),
                Err(error) => forked = Err(error),
            }
        }
        for (parent, is_taken) in std::mem::replace(&mut self.beams, next).iter().zip(is_taken) {
            if !is_taken {
                self.branches.close(parent.seq)?;
            }
        }
        forked
    }

    /// Leaves the best of what has ended, best first.
    fn keep_best(&mut self) {
        self.done.sort_by(|a, b| b.score().total_cmp(&a.score()));
        self.done.truncate(self.width);
    }

    /// Whether no beam can do better than what is done: a probability only falls, so that the best
    /// mean is that of a beam which is certain of all tokens to come.
    fn is_settled(&self, max_tokens: usize) -> bool {
        let worst = self.done.get(self.width - 1).map(Continuation::score);
        let best = |beam: &Beam| beam.so_far.logprob / max_tokens as f64;
        worst.is_some_and(|worst| self.beams.iter().all(|beam| best(beam) <= worst))
    }
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
