//! Rotary position embedding: frequencies, and the tables kernels read.

/// Which elements of a head make a pair, for `rotary_dim` elements and pair `i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// `i` and `i + rotary_dim / 2`: GPT-NeoX, Llama as Hugging Face stores it.
    Half,
    /// `2 i` and `2 i + 1`: GPT-J, the paper, Llama as its authors stored it.
    Interleaved,
}
