//! A layer's paged KV cache, in memory of the caller's.

use std::ffi::c_void;

use super::guard::{Result, call, count, output, plain};
use super::status::{Failure, inflight_error, inflight_status};
use super::tensor::{INFLIGHT_DTYPE_FP8_E4M3, dtype_of, stride};
use crate::error::Error;
use crate::kernels::kv::KV_ALIGN;
use crate::kernels::{DeviceCache, DeviceScales, KvLayout, KvStrides};

/// `[num_blocks, block_size, num_heads, head_dim]`: a token's heads are together.
pub const INFLIGHT_LAYOUT_NHD: u32 = 1;
/// `[num_blocks, num_heads, block_size, head_dim]`: a head's tokens are together.
pub const INFLIGHT_LAYOUT_HND: u32 = 2;

/// A layer's K and V: each `num_blocks` x `block_size` x `num_heads` rows of `head_dim` contiguous
/// elements, in any order that strides can say. Rows do not overlap; K and V neither, but they may be
/// interleaved. That the rows of each are apart is checked, and that `v` is not `k`; whether K and V
/// overlap otherwise is not, nor whether they overlap other tensors.
///
/// Bases, and strides of dimensions above 1, are multiples of 16 bytes.
/// `inflight_kv_cache_set_strides` fills in the usual ones.
///
/// It has no `_init`: zero it first (`inflight_kv_cache cache = {0};`), for fields that are 0 by
/// default and those of later versions.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_kv_cache {
    /// First element of K.
    pub k: *mut c_void,
    /// First element of V.
    pub v: *mut c_void,
    /// What K's numbers of an fp8 cache are multiplied with when read, f32 above 0, `num_scales` of
    /// them; in the device's memory. NULL for other types.
    pub k_scales: *const f32,
    /// V's.
    pub v_scales: *const f32,
    /// Elements of K from one block to the next.
    pub k_block_stride: i64,
    /// From a token of a block to the next.
    pub k_token_stride: i64,
    /// From a head of a token to the next.
    pub k_head_stride: i64,
    /// Elements of V from one block to the next.
    pub v_block_stride: i64,
    /// From a token of a block to the next.
    pub v_token_stride: i64,
    /// From a head of a token to the next.
    pub v_head_stride: i64,
    /// Blocks; 1 to `INFLIGHT_MAX_COUNT`.
    pub num_blocks: u64,
    /// Tokens a block; 1 to `INFLIGHT_MAX_COUNT`.
    pub block_size: u32,
    /// KV heads; 1 to 65536.
    pub num_heads: u32,
    /// Elements a head: a multiple of 8 up to 256.
    pub head_dim: u32,
    /// `INFLIGHT_DTYPE_*`.
    pub dtype: u32,
    /// Elements of `k_scales` and `v_scales`: 1 for all heads, or `num_heads`; 0 where the cache is
    /// not fp8.
    pub num_scales: u32,
    /// Zeros: room for what caches of later versions have to say.
    pub reserved: [u32; 9],
}

/// Sets the strides of a cache whose other fields are set: K and V apart, each without gaps, in the
/// order that `layout` (`INFLIGHT_LAYOUT_*`) says.
///
/// Fails, and nothing has changed: INVALID_ARGUMENT, also when the strides do not fit 64 bits.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_kv_cache_set_strides(
    cache: *mut inflight_kv_cache,
    layout: u32,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a cache of the caller's.
        let given = unsafe { plain("cache", cache.cast_const()) }.copied()?;
        let dtype = dtype_of("cache.dtype", given.dtype)?;
        let blocks = count("cache.num_blocks", given.num_blocks)?;
        let [size, heads, dim] =
            [given.block_size, given.num_heads, given.head_dim].map(|n| n as usize);
        let made = match layout {
            INFLIGHT_LAYOUT_NHD => KvLayout::nhd(dtype, blocks, size, heads, dim),
            INFLIGHT_LAYOUT_HND => KvLayout::hnd(dtype, blocks, size, heads, dim),
            other => return Err(Failure::argument("layout", format!("there is none of {other}"))),
        };
        let KvStrides { block, token, head } = made.k;
        let fits = |stride: usize| {
            let reason = format!("a stride of {stride} does not fit 64 bits");
            i64::try_from(stride).map_err(|_| Failure::argument("cache", reason))
        };
        let (block, token, head) = (fits(block)?, fits(token)?, fits(head)?);
        let set = inflight_kv_cache {
            k_block_stride: block,
            k_token_stride: token,
            k_head_stride: head,
            v_block_stride: block,
            v_token_stride: token,
            v_head_stride: head,
            ..given
        };
        // SAFETY: the caller's to be written; not NULL, as seen above.
        unsafe { output("cache", cache) }?.write(set);
        Ok(())
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// The failure of a cache, its field as C spells it.
pub(super) fn failure(error: Error) -> Failure {
    Failure::from(error).renamed(&[
        ("k", "cache.k"),
        ("layout.k", "cache.k"),
        ("v", "cache.v"),
        ("layout.v", "cache.v"),
        ("scales", "cache.k_scales"),
        ("scales.k", "cache.k_scales"),
        ("scales.v", "cache.v_scales"),
        ("num_blocks", "cache.num_blocks"),
        ("block_size", "cache.block_size"),
        ("num_heads", "cache.num_heads"),
        ("head_dim", "cache.head_dim"),
        ("dtype", "cache.dtype"),
    ])
}

impl inflight_kv_cache {
    /// The layout, checked.
    pub(super) fn layout(&self) -> Result<KvLayout> {
        if self.reserved != [0; 9] {
            return Err(Failure::argument("cache.reserved", "is not all zeros"));
        }
        let strides = |field, [block, token, head]: [i64; 3]| {
            let [block, token, head] = [block, token, head].map(|of| stride(field, of));
            Ok::<_, Failure>(KvStrides { block: block?, token: token?, head: head? })
        };
        let layout = KvLayout {
            dtype: dtype_of("cache.dtype", self.dtype)?,
            num_blocks: count("cache.num_blocks", self.num_blocks)?,
            block_size: self.block_size as usize,
            num_heads: self.num_heads as usize,
            head_dim: self.head_dim as usize,
            k: strides("cache.k", [self.k_block_stride, self.k_token_stride, self.k_head_stride])?,
            v: strides("cache.v", [self.v_block_stride, self.v_token_stride, self.v_head_stride])?,
        };
        layout.check().map_err(failure)?;
        let ends = [("cache.k", self.k, layout.k_extent()), ("cache.v", self.v, layout.v_extent())];
        for (field, data, extent) in ends {
            if data.is_null() || !data.addr().is_multiple_of(KV_ALIGN) {
                return Err(Failure::argument(field, "is NULL or not at a multiple of 16 bytes"));
            }
            let bytes = extent.map_err(failure)? * layout.dtype.size();
            let end = data.addr().checked_add(bytes);
            if end.is_none_or(|end| end > isize::MAX as usize) {
                return Err(Failure::argument(field, "its extent does not fit the memory"));
            }
        }
        Ok(layout)
    }

    /// Checks how many scales there are, where there are any.
    fn check_num_scales(&self) -> Result<()> {
        let (has, heads) = (self.num_scales, self.num_heads);
        let reason = if has > 0 && self.dtype != INFLIGHT_DTYPE_FP8_E4M3 {
            format!("is {has}, and scales are for fp8 caches only")
        } else if has > 1 && has != heads {
            format!("is {has}, for {heads} heads")
        } else {
            return Ok(());
        };
        Err(Failure::argument("cache.num_scales", reason))
    }

    /// The cache in the device's memory.
    ///
    /// # Safety
    /// As [`DeviceCache::new`].
    pub(super) unsafe fn device(&self) -> Result<DeviceCache> {
        let layout = self.layout()?;
        self.check_num_scales()?;
        let scales = (self.num_scales > 0).then(|| DeviceScales {
            k: self.k_scales.expose_provenance() as u64,
            v: self.v_scales.expose_provenance() as u64,
            per_head: self.num_scales > 1,
        });
        let [k, v] = [self.k, self.v].map(|data| data.expose_provenance() as u64);
        // SAFETY: as the caller promises.
        unsafe { DeviceCache::new(k, v, layout, scales) }.map_err(failure)
    }
}

/// The cache that a pointer names.
///
/// # Safety
/// `cache` is NULL or the caller's.
pub(super) unsafe fn cache_of(cache: *const inflight_kv_cache) -> Result<inflight_kv_cache> {
    // SAFETY: as the caller promises.
    unsafe { plain("cache", cache) }.copied()
}
