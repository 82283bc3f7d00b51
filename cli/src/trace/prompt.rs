//! The tokens of a trace. Traces have lengths and block ids only; what stands for the text are
//! fixed pseudo-random numbers, the same on every machine.

use super::random::{key, nth};
use super::{Prompt, Row};

/// Tokens are 31 bits wide, which keeps them clear of every reserved value.
const TOKEN_BITS: u32 = 31;
const TOKEN_MASK: u32 = (1 << TOKEN_BITS) - 1;

/// Keeps the tokens of unique prompts, chunks and outputs apart.
const UNIQUE: u64 = u64::from_be_bytes(*b"\0\0unique");
const CHUNK: u64 = u64::from_be_bytes(*b"\0\0\0chunk");
const OUTPUT: u64 = u64::from_be_bytes(*b"\0\0output");

impl Row {
    /// The tokens of the prompt, each below 2^31. `seed` matters to [`Prompt::Unique`] only.
    pub(crate) fn prompt_tokens(&self, seed: u64) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(self.prompt_len as usize);
        match &self.prompt {
            Prompt::Unique => {
                tokens.extend(sequence(key(UNIQUE, seed), self.id, self.prompt_len));
            }
            Prompt::Chunks { ids, size } => {
                for &id in ids {
                    let left = self.prompt_len.saturating_sub(tokens.len() as u32);
                    tokens.extend(sequence(CHUNK, id, left.min(*size)));
                }
            }
            Prompt::Tokens(ids) => tokens.extend_from_slice(ids),
        }
        tokens
    }
}

/// The token that the request of `row` generates as its `k`th, from 0: below 2^31.
pub(crate) fn output_token(row: u64, k: u32) -> u32 {
    nth_token(key(OUTPUT, row), k)
}

/// The first `len` tokens of sequence `id` of a family.
fn sequence(family: u64, id: u64, len: u32) -> impl Iterator<Item = u32> {
    let key = key(family, id);
    // Random first tokens would coincide now and then, and prefix caches with blocks of one token
    // would share them. These differ for any two ids below 2^31.
    let first = scatter(id as u32) ^ (family as u32 & TOKEN_MASK);
    (0..len).map(move |i| if i == 0 { first } else { nth_token(key, i) })
}

fn nth_token(key: u64, i: u32) -> u32 {
    (nth(key, u64::from(i)) >> (64 - TOKEN_BITS)) as u32
}

/// A permutation of the 31-bit numbers: every step can be undone.
fn scatter(id: u32) -> u32 {
    let mut x = id & TOKEN_MASK;
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d) & TOKEN_MASK;
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b) & TOKEN_MASK;
    x ^ (x >> 16)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn row(id: u64, prompt: Prompt, prompt_len: u32) -> Row {
        Row { prompt, prompt_len, output_len: 1, ..Row::new(id) }
    }

    fn chunks(ids: &[u64]) -> Prompt {
        Prompt::Chunks { ids: ids.into(), size: 512 }
    }

    /// Figures recorded from a replay stay comparable only while these stay as they are.
    #[test]
    fn tokens_are_fixed() {
        let unique = row(3, Prompt::Unique, 3).prompt_tokens(1);
        assert_eq!(unique, [877265833, 1234154103, 1873781529]);
        let chunk = row(0, chunks(&[5]), 3).prompt_tokens(1);
        assert_eq!(chunk, [875608917, 1384775073, 355340148]);
        let output = [output_token(0, 0), output_token(0, 1), output_token(1, 0)];
        assert_eq!(output, [387033678, 1760411007, 197625135]);
    }

    #[test]
    fn unique_prompts_depend_on_row_and_seed() {
        let tokens = |id, seed| row(id, Prompt::Unique, 20).prompt_tokens(seed);
        assert_eq!(tokens(4, 7), tokens(4, 7));
        assert_ne!(tokens(4, 7), tokens(4, 8));
        assert_ne!(tokens(4, 7), tokens(7, 4));
        assert!(tokens(4, 7).iter().all(|&token| token < 1 << 31));
    }

    #[test]
    fn no_two_rows_or_chunks_begin_alike() {
        for family in [CHUNK, key(UNIQUE, 3)] {
            let firsts: HashSet<_> = (0..200_000).flat_map(|id| sequence(family, id, 1)).collect();
            assert_eq!(firsts.len(), 200_000);
        }
    }

    #[test]
    fn chunks_expand_alike_everywhere() {
        let whole = row(0, chunks(&[9, 5]), 1024).prompt_tokens(1);
        let cut = row(8, chunks(&[5, 9]), 515).prompt_tokens(2);
        assert_eq!((whole.len(), cut.len()), (1024, 515));
        assert_eq!(cut[..512], whole[512..]);
        assert_eq!(cut[512..], whole[..3]);
    }

    #[test]
    fn given_tokens_are_kept() {
        assert_eq!(row(0, Prompt::Tokens([3, 1, 2].into()), 3).prompt_tokens(9), [3, 1, 2]);
    }
}
