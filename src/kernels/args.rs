//! What operations are given on any device: memory by its addresses.
//!
//! A processor's kernels also take slices and views, checked by the compiler: see
//! [`cpu`](super::cpu).

use super::kv::DeviceCache;
use super::rope::RopePairs;
use super::tensor::DeviceTensor;

/// What one layer's attention reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs {
    /// Queries: `[tokens, num_q_heads, head_dim]`. Tokens beyond the step's are not looked at. In a
    /// GPU's capture there are the limits' `max_tokens` of them, as there are of `o`, since a replay may
    /// have a larger step.
    pub q: DeviceTensor,
    /// The layer's K and V, this step's already appended.
    pub cache: DeviceCache,
    /// Outputs: type of `q`, and its shape with any strides.
    pub o: DeviceTensor,
    /// Address of the LSE, f32 `[tokens, num_q_heads]`; 0 for none.
    pub lse: u64,
    /// Address of ALiBi slopes, f32, one per query head; 0 for none.
    pub alibi_slopes: u64,
    /// Address of sink logits, f32, one per query head; 0 for none.
    pub sinks: u64,
}

impl AttentionArgs {
    /// Plain: no LSE, slopes or sinks.
    #[must_use]
    pub fn new(q: DeviceTensor, cache: DeviceCache, o: DeviceTensor) -> Self {
        Self { q, cache, o, lse: 0, alibi_slopes: 0, sinks: 0 }
    }
}

/// Rotary position embedding, applied to new keys and, in place, to queries; positions are the
/// step's.
#[derive(Clone, Copy, Debug)]
pub struct Rope {
    /// Address of the table, f32 `[max_position, rotary_dim]`: the cosines of a position's
    /// `rotary_dim / 2` angles, then their sines; see
    /// [`RopeConfig::table`](crate::kernels::rope::RopeConfig::table).
    pub cos_sin: u64,
    /// Positions that the table has. Tokens at later ones are refused on a processor, and left out,
    /// queries too, on a GPU.
    pub max_position: u32,
    /// Elements of a head that are rotated, its first; even, at most `head_dim`.
    pub rotary_dim: usize,
    /// Which elements make a pair.
    pub pairs: RopePairs,
    /// Queries to rotate as well; on a GPU of the type of `k`.
    pub q: Option<DeviceTensor>,
}

/// New keys and values.
#[derive(Clone, Copy, Debug)]
pub struct AppendArgs {
    /// New keys: `[tokens, num_kv_heads, head_dim]`, f16, bf16 or, on a processor, f32. In a GPU's
    /// capture there are the limits' `max_tokens` of them, as there are of values and queries.
    pub k: DeviceTensor,
    /// New values, like `k`.
    pub v: DeviceTensor,
    /// Where they go, to the step's slots.
    pub cache: DeviceCache,
    /// Rotation of keys before they are stored.
    pub rope: Option<Rope>,
}

/// The attention of the same queries over some of the keys.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// Outputs: `[tokens, heads, head_dim]`.
    pub o: DeviceTensor,
    /// Address of the LSE: f32 `[tokens, heads]`.
    pub lse: u64,
}

/// Memory of a GPU, the caller's, for what an attention keeps of split tiles within a run.
///
/// It may hold anything: a run reads nothing there that it has not written. So attentions that run
/// one after another may share it, whatever their configurations, and between runs it may serve for
/// something else. It is as large as the largest of them asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workspace {
    address: u64,
    bytes: usize,
}

impl Workspace {
    /// The `bytes` from `address` on, a multiple of 16.
    ///
    /// # Safety
    /// Until all work of the attentions made with it is done, and whenever a graph that such work
    /// was recorded in is launched, these bytes are memory that the device can read and write, and
    /// from a run's beginning to its end nothing else writes there.
    #[must_use]
    pub unsafe fn new(address: u64, bytes: usize) -> Self {
        Self { address, bytes }
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
