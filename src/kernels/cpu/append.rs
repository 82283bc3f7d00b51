//! Appending new keys and values to the cache, rotated on the way where asked.

use crate::device::cpu::Cpu;
use crate::error::{Error, Result};
use crate::kernels::rope::RopePairs;
use crate::kernels::{KvCache, KvScales, TensorMut, TensorRef};

/// Rotary position embedding, applied to new keys and, in place, to queries.
#[derive(Debug)]
pub struct Rope<'a> {
    /// Position of each token.
    pub positions: &'a [u32],
    /// `[max_position, rotary_dim]`: the cosines of a position's `rotary_dim / 2` angles, then
    /// their sines; see [`RopeConfig::table`](crate::kernels::rope::RopeConfig::table).
    pub cos_sin: &'a [f32],
    /// Elements of a head that are rotated, its first; even, at most `head_dim`.
    pub rotary_dim: usize,
    /// Which elements make a pair.
    pub pairs: RopePairs,
    /// Queries to rotate as well: `[tokens, num_q_heads, head_dim]`.
    pub q: Option<TensorMut<'a>>,
}

/// New keys and values, and where they go.
#[derive(Debug)]
pub struct Append<'a> {
    /// New keys: `[tokens, num_kv_heads, head_dim]`, f32, f16 or bf16.
    pub k: TensorRef<'a>,
    /// New values, like `k`.
    pub v: TensorRef<'a>,
    /// Slot of each token, `block * block_size + offset`; a negative one is skipped.
    pub slot_mapping: &'a [i64],
    /// Scales of an fp8 cache: numbers are divided by them, and rounded to nearest even; what is
    /// beyond 448 becomes 448.
    pub scales: KvScales<'a>,
    /// Rotation of keys before they are stored.
    pub rope: Option<Rope<'a>>,
}

impl<'a> Append<'a> {
    /// Plain: no scales, no rotation.
    #[must_use]
    pub fn new(k: TensorRef<'a>, v: TensorRef<'a>, slot_mapping: &'a [i64]) -> Self {
        Self { k, v, slot_mapping, scales: KvScales::NONE, rope: None }
    }
}

/// Writes new keys and values to their slots.
///
/// The types of `k` and `v` are the cache's, or any of f32, f16 and bf16 for an fp8 cache.
///
/// # Errors
/// [`Error::InvalidArgument`] naming `k`, `v`, `slot_mapping` (out of range, or twice the same),
/// `k_scale`, `v_scale`, `positions`, `cos_sin`, `rotary_dim` or `q`; nothing is written then.
pub fn append(cpu: &Cpu, cache: &mut KvCache<'_>, args: Append<'_>) -> Result<()> {
    let _ = (cpu, cache, args);
    Err(Error::argument("k", "draft"))
}
