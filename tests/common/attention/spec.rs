//! What a case is: all that a failing test prints.

use inflight::kernels::{AttentionConfig, DType};

/// How K and V lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Nhd,
    Hnd,
    /// K of one kind, V of the other.
    Mixed,
    /// `[num_blocks, 2, block_size, num_heads, head_dim]`.
    Interleaved,
    /// `[2, num_blocks, num_heads, block_size, head_dim]`.
    Halves,
    /// Gaps after each head, token and block; not the same for K and V.
    Padded,
}

/// How queries and outputs lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenLayout {
    Contiguous,
    /// Beside keys and values, as a fused projection leaves queries.
    Packed,
    /// Strides and start are odd.
    Odd,
    /// More tokens than the batch has, and gaps of 16 bytes, or multiples, wherever there can be.
    Gaps,
    HeadMajor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scales {
    /// Of a cache that is not fp8.
    None,
    PerTensor,
    PerHead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sinks {
    None,
    Usual,
    /// Some of the heads have none.
    SomeNone,
    /// They outweigh the keys by far.
    Large,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alibi {
    None,
    Usual,
    Steep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MaskKind {
    None,
    /// Over the last `q_len` keys, each query sees its ancestors and itself.
    Tree,
    /// Over all keys, at random.
    Full,
    /// Over all keys; half of the queries see nothing.
    Nothing,
    /// Over as many keys as it happens, none among them, with unused bytes between the rows.
    Any,
}

/// What lies where nothing may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Poison {
    Nan,
    /// 0x7f bytes: NaN in fp8, NaN in f16, huge numbers otherwise.
    Stale,
}

impl Poison {
    pub(crate) fn byte(self) -> u8 {
        match self {
            Self::Nan => super::numbers::NAN,
            Self::Stale => 0x7f,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spec {
    pub(crate) seed: u64,
    pub(crate) config: AttentionConfig,
    pub(crate) block_size: usize,
    pub(crate) layout: Layout,
    /// Queries and keys of each row.
    pub(crate) rows: Vec<(usize, usize)>,
    /// Whether rows share their first blocks.
    pub(crate) shared: bool,
    pub(crate) scales: Scales,
    pub(crate) sinks: Sinks,
    pub(crate) alibi: Alibi,
    pub(crate) mask: MaskKind,
    pub(crate) poison: Poison,
    pub(crate) q_layout: TokenLayout,
    pub(crate) o_layout: TokenLayout,
    /// Queries are this much larger than keys: it peaks the softmax.
    pub(crate) peak: f32,
}

impl Spec {
    /// A causal NHD case without extras.
    pub(crate) fn new(seed: u64, config: AttentionConfig, rows: &[(usize, usize)]) -> Self {
        let fp8 = config.kv_dtype == DType::Fp8E4m3;
        Self {
            seed,
            config,
            block_size: 16,
            layout: Layout::Nhd,
            rows: rows.to_vec(),
            shared: false,
            scales: if fp8 { Scales::PerTensor } else { Scales::None },
            sinks: Sinks::None,
            alibi: Alibi::None,
            mask: MaskKind::None,
            poison: Poison::Nan,
            q_layout: TokenLayout::Contiguous,
            o_layout: TokenLayout::Contiguous,
            peak: 2.0,
        }
    }

    /// Products of two numbers that scores take, without regard to what is not seen.
    pub(crate) fn work(&self) -> usize {
        let pairs: usize = self.rows.iter().map(|&(q, kv)| q * kv).sum();
        pairs * self.config.num_q_heads * self.config.head_dim
    }
}
