//! Blocks of the attention kernels, by head dimension and type of the cache.

#![forbid(unsafe_code)]

use super::params::*;
use crate::kernels::DType;

/// Head dimensions that kernels are compiled for.
pub(super) const DIMS: [usize; 5] = [64, 96, 128, 192, 256];

/// A block of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) threads: u32,
    /// Dynamic shared memory, in bytes.
    pub(super) shared: u32,
    /// Keys of a tile.
    pub(super) keys: u32,
}

fn by_dim<T>(dim: usize, each: [T; 5]) -> T {
    let at = DIMS.iter().position(|&d| d == dim).expect("a dimension that kernels have");
    each.into_iter().nth(at).expect("as many as dimensions")
}

/// Decode: at most [`INFLIGHT_DECODE_ROWS`] query rows.
pub(super) fn decode(dim: usize, cache: DType) -> Block {
    let (shared, keys) = if cache == DType::Fp8E4m3 {
        (
            [
                INFLIGHT_DECODE_SMEM_E4M3_D64,
                INFLIGHT_DECODE_SMEM_E4M3_D96,
                INFLIGHT_DECODE_SMEM_E4M3_D128,
                INFLIGHT_DECODE_SMEM_E4M3_D192,
                INFLIGHT_DECODE_SMEM_E4M3_D256,
            ],
            [
                INFLIGHT_DECODE_TILE_KEYS_E4M3_D64,
                INFLIGHT_DECODE_TILE_KEYS_E4M3_D96,
                INFLIGHT_DECODE_TILE_KEYS_E4M3_D128,
                INFLIGHT_DECODE_TILE_KEYS_E4M3_D192,
                INFLIGHT_DECODE_TILE_KEYS_E4M3_D256,
            ],
        )
    } else {
        (
            [
                INFLIGHT_DECODE_SMEM_SAME_D64,
                INFLIGHT_DECODE_SMEM_SAME_D96,
                INFLIGHT_DECODE_SMEM_SAME_D128,
                INFLIGHT_DECODE_SMEM_SAME_D192,
                INFLIGHT_DECODE_SMEM_SAME_D256,
            ],
            [
                INFLIGHT_DECODE_TILE_KEYS_SAME_D64,
                INFLIGHT_DECODE_TILE_KEYS_SAME_D96,
                INFLIGHT_DECODE_TILE_KEYS_SAME_D128,
                INFLIGHT_DECODE_TILE_KEYS_SAME_D192,
                INFLIGHT_DECODE_TILE_KEYS_SAME_D256,
            ],
        )
    };
    let threads = INFLIGHT_DECODE_THREADS;
    Block { threads, shared: by_dim(dim, shared), keys: by_dim(dim, keys) }
}

/// Prefill: [`INFLIGHT_PREFILL_ROWS`] query rows.
pub(super) fn prefill(dim: usize, cache: DType) -> Block {
    let (shared, keys) = if cache == DType::Fp8E4m3 {
        (
            [
                INFLIGHT_PREFILL_SMEM_E4M3_D64,
                INFLIGHT_PREFILL_SMEM_E4M3_D96,
                INFLIGHT_PREFILL_SMEM_E4M3_D128,
                INFLIGHT_PREFILL_SMEM_E4M3_D192,
                INFLIGHT_PREFILL_SMEM_E4M3_D256,
            ],
            [
                INFLIGHT_PREFILL_KEYS_E4M3_D64,
                INFLIGHT_PREFILL_KEYS_E4M3_D96,
                INFLIGHT_PREFILL_KEYS_E4M3_D128,
                INFLIGHT_PREFILL_KEYS_E4M3_D192,
                INFLIGHT_PREFILL_KEYS_E4M3_D256,
            ],
        )
    } else {
        (
            [
                INFLIGHT_PREFILL_SMEM_D64,
                INFLIGHT_PREFILL_SMEM_D96,
                INFLIGHT_PREFILL_SMEM_D128,
                INFLIGHT_PREFILL_SMEM_D192,
                INFLIGHT_PREFILL_SMEM_D256,
            ],
            [
                INFLIGHT_PREFILL_KEYS_D64,
                INFLIGHT_PREFILL_KEYS_D96,
                INFLIGHT_PREFILL_KEYS_D128,
                INFLIGHT_PREFILL_KEYS_D192,
                INFLIGHT_PREFILL_KEYS_D256,
            ],
        )
    };
    let threads = [
        INFLIGHT_PREFILL_THREADS_D64,
        INFLIGHT_PREFILL_THREADS_D96,
        INFLIGHT_PREFILL_THREADS_D128,
        INFLIGHT_PREFILL_THREADS_D192,
        INFLIGHT_PREFILL_THREADS_D256,
    ];
    Block { threads: by_dim(dim, threads), shared: by_dim(dim, shared), keys: by_dim(dim, keys) }
}

/// Rows of both kinds: a block has room for either. `None` where blocks of the two differ.
pub(super) fn mixed(dim: usize, cache: DType) -> Option<Block> {
    let (a, b) = (decode(dim, cache), prefill(dim, cache));
    let keys = a.keys.max(b.keys);
    (a.threads == b.threads).then(|| Block { shared: a.shared.max(b.shared), keys, ..a })
}
