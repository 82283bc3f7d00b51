//! A layer's paged KV cache, in memory of the caller's.

use std::ffi::c_void;

use super::ffi::{Result, Versioned, call, count, read, versioned, write};
use super::status::{Failure, inflight_error, inflight_status};
use super::tensor::{INFLIGHT_DTYPE_F32, INFLIGHT_DTYPE_FP8_E4M3, dtype_of, stride};
use crate::error::Error;
use crate::kernels::kv::KV_ALIGN;
use crate::kernels::{DType, DeviceCache, DeviceScales, KvLayout, KvStrides};

/// `[num_blocks, block_size, num_heads, head_dim]`: a token's heads are together.
pub const INFLIGHT_LAYOUT_NHD: u32 = 1;
/// `[num_blocks, num_heads, block_size, head_dim]`: a head's tokens are together.
pub const INFLIGHT_LAYOUT_HND: u32 = 2;

/// The K or the V of a layer: `num_blocks` x `block_size` x `num_heads` rows of `head_dim` contiguous
/// elements, in any order that strides can say. Rows do not overlap.
///
/// The base, and strides of dimensions above 1, are multiples of 16 bytes.
///
/// It stands inside `inflight_kv_cache`, so it keeps its size: what later versions add takes the place
/// of `reserved`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_kv_array {
    /// First element.
    pub data: *mut c_void,
    /// What the numbers of an fp8 array are multiplied with when read, f32 above 0, in the device's
    /// memory. NULL for other types.
    pub scales: *const c_void,
    /// Elements from one block to the next.
    pub block_stride: i64,
    /// From a token of a block to the next.
    pub token_stride: i64,
    /// From a head of a token to the next.
    pub head_stride: i64,
    /// Scales from one block to the next; 0, since kernels of this version have none for each.
    pub scale_block_stride: i64,
    /// From a token's scale to the next's; 0, likewise.
    pub scale_token_stride: i64,
    /// From a head's scale to the next's: 1 where each has one, 0 where all share one.
    pub scale_head_stride: i64,
    /// `INFLIGHT_DTYPE_*`.
    pub dtype: u32,
    /// Elements per head: a multiple of 8 up to 256.
    pub head_dim: u32,
    /// Type of the scales, `INFLIGHT_DTYPE_*`: F32, or 0 for that.
    pub scale_dtype: u32,
    /// Elements of a head that share a scale; 0 for all of them, as kernels of this version have it.
    pub scale_elements: u32,
    /// Zeros.
    pub reserved: [u64; 2],
}

/// A layer's K and V, which may be interleaved. That the rows of each are apart is checked; whether K
/// and V overlap is not, but for their first elements, nor whether they overlap other tensors.
///
/// Initialise it with `inflight_kv_cache_init`; `inflight_kv_cache_set_contiguous` then sets all fields
/// of the usual layouts, but scales.
///
/// Kernels of this version take K and V of one type and head dimension, and V apart from K: values that
/// lie in the keys (`v.data` within K, as in multi-head latent attention) are refused.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_kv_cache {
    /// `sizeof(inflight_kv_cache)`.
    pub struct_size: usize,
    /// Blocks; 1 to `INFLIGHT_MAX_COUNT`.
    pub num_blocks: u64,
    /// Tokens per block; 1 to `INFLIGHT_MAX_COUNT`.
    pub block_size: u32,
    /// KV heads; 1 to 65536.
    pub num_heads: u32,
    /// Keys.
    pub k: inflight_kv_array,
    /// Values.
    pub v: inflight_kv_array,
}

versioned! {
    inflight_kv_cache_init(cache: inflight_kv_cache ..= v) {}
}

/// Sets a cache of two arrays, each without gaps in the order that `layout` (`INFLIGHT_LAYOUT_*`) says;
/// without scales, which for an fp8 cache the caller sets afterwards.
///
/// Outputs: `*cache`, prepared with `inflight_kv_cache_init`.
/// Fails, and nothing has changed: INVALID_ARGUMENT, also when the strides do not fit 64 bits;
/// STRUCT_SIZE. What kernels refuse is looked at by the calls that take the cache.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_kv_cache_set_contiguous(
    cache: *mut inflight_kv_cache,
    layout: u32,
    dtype: u32,
    k: *mut c_void,
    v: *mut c_void,
    num_blocks: u64,
    block_size: u32,
    num_heads: u32,
    head_dim: u32,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        let of = dtype_of("dtype", dtype)?;
        let blocks = count("num_blocks", num_blocks)?;
        let [size, heads, dim] = [block_size, num_heads, head_dim].map(|n| n as usize);
        let made = match layout {
            INFLIGHT_LAYOUT_NHD => KvLayout::nhd(of, blocks, size, heads, dim),
            INFLIGHT_LAYOUT_HND => KvLayout::hnd(of, blocks, size, heads, dim),
            other => {
                return Err(Failure::argument(
                    "layout",
                    format!("{other} is not an INFLIGHT_LAYOUT_*"),
                ));
            }
        };
        let array = |data| inflight_kv_array::of(data, dtype, head_dim).with(made.k);
        let made = inflight_kv_cache {
            struct_size: 0,
            num_blocks,
            block_size,
            num_heads,
            k: array(k)?,
            v: array(v)?,
        };
        // SAFETY: NULL or a cache of the caller's.
        unsafe { write("cache", cache, made) }
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
        ("scales", "cache.k.scales"),
        ("scales.k", "cache.k.scales"),
        ("scales.v", "cache.v.scales"),
        ("num_blocks", "cache.num_blocks"),
        ("block_size", "cache.block_size"),
        ("num_heads", "cache.num_heads"),
        ("head_dim", "cache.k.head_dim"),
        ("dtype", "cache.k.dtype"),
    ])
}

/// How the fields of an array are called in failures.
struct Names {
    array: &'static str,
    dtype: &'static str,
    scales: &'static str,
    strides: &'static str,
    scale_dtype: &'static str,
    elements: &'static str,
    reserved: &'static str,
}

macro_rules! names {
    ($array:literal) => {
        Names {
            array: $array,
            dtype: concat!($array, ".dtype"),
            scales: concat!($array, ".scales"),
            strides: concat!($array, ".scale_head_stride"),
            scale_dtype: concat!($array, ".scale_dtype"),
            elements: concat!($array, ".scale_elements"),
            reserved: concat!($array, ".reserved"),
        }
    };
}
const K: Names = names!("cache.k");
const V: Names = names!("cache.v");

impl inflight_kv_array {
    /// Without strides and scales.
    pub(super) const fn of(data: *mut c_void, dtype: u32, head_dim: u32) -> Self {
        Self {
            data,
            scales: std::ptr::null(),
            block_stride: 0,
            token_stride: 0,
            head_stride: 0,
            scale_block_stride: 0,
            scale_token_stride: 0,
            scale_head_stride: 0,
            dtype,
            head_dim,
            scale_dtype: 0,
            scale_elements: 0,
            reserved: [0; 2],
        }
    }

    fn with(self, KvStrides { block, token, head }: KvStrides) -> Result<Self> {
        let fits = |stride: usize| {
            let reason = format!("a stride of {stride} does not fit 64 bits");
            i64::try_from(stride).map_err(|_| Failure::argument("cache", reason))
        };
        let (block_stride, token_stride, head_stride) = (fits(block)?, fits(token)?, fits(head)?);
        Ok(Self { block_stride, token_stride, head_stride, ..self })
    }

    fn strides(&self, names: &Names) -> Result<KvStrides> {
        let of = |given| stride(names.array, given);
        Ok(KvStrides {
            block: of(self.block_stride)?,
            token: of(self.token_stride)?,
            head: of(self.head_stride)?,
        })
    }

    /// Checks the first element and how far the array reaches.
    fn check_extent(&self, names: &Names, elements: usize, dtype: DType) -> Result<()> {
        if self.data.is_null() || !self.data.addr().is_multiple_of(KV_ALIGN) {
            return Err(Failure::argument(names.array, "is NULL or not at a multiple of 16 bytes"));
        }
        let end = self.data.addr().checked_add(elements * dtype.size());
        if end.is_none_or(|end| end > isize::MAX as usize) {
            return Err(Failure::argument(names.array, "its extent does not fit the memory"));
        }
        Ok(())
    }

    /// Whether each head has a scale of its own; nothing where there are no scales.
    fn scales(&self, names: &Names) -> Result<Option<bool>> {
        let Self { scale_block_stride, scale_token_stride, scale_head_stride, .. } = *self;
        let refused = |field, reason: String| Err(Failure::argument(field, reason));
        if self.reserved != [0; 2] {
            return refused(names.reserved, "is not all zeros".into());
        }
        if self.scale_elements != 0 {
            let each = self.scale_elements;
            return refused(
                names.elements,
                format!("is {each}: kernels have one scale per head: 0"),
            );
        }
        if ![0, INFLIGHT_DTYPE_F32].contains(&self.scale_dtype) {
            return refused(names.scale_dtype, format!("is {}: scales are F32", self.scale_dtype));
        }
        match (scale_block_stride, scale_token_stride, scale_head_stride) {
            (0, 0, 0 | 1) if self.scales.is_null() => Ok(None),
            (0, 0, 0 | 1) if self.dtype != INFLIGHT_DTYPE_FP8_E4M3 => {
                refused(names.scales, "is not NULL, and scales are for fp8 caches only".into())
            }
            (0, 0, each @ (0 | 1)) => Ok(Some(each == 1)),
            (0, 0, other) => refused(names.strides, format!("is {other}, not 0 or 1")),
            (block, token, _) => refused(
                names.scales,
                format!("change by block ({block}) or token ({token}): kernels have one per head"),
            ),
        }
    }
}

/// A cache that was checked, as far as that goes without its memory.
pub(super) struct Layer {
    pub(super) layout: KvLayout,
    pub(super) k: *mut c_void,
    pub(super) v: *mut c_void,
    /// Of K and V, and whether each head has its own.
    pub(super) scales: Option<Scales>,
}

#[derive(Clone, Copy)]
pub(super) struct Scales {
    pub(super) k: *const f32,
    pub(super) v: *const f32,
    pub(super) per_head: bool,
}

impl TryFrom<&inflight_kv_cache> for Layer {
    type Error = Failure;

    fn try_from(cache: &inflight_kv_cache) -> Result<Self> {
        let inflight_kv_cache { k, v, .. } = cache;
        let refused = |field, reason: String| Err(Failure::argument(field, reason));
        let layout = KvLayout {
            dtype: dtype_of(K.dtype, k.dtype)?,
            num_blocks: count("cache.num_blocks", cache.num_blocks)?,
            block_size: cache.block_size as usize,
            num_heads: cache.num_heads as usize,
            head_dim: k.head_dim as usize,
            k: k.strides(&K)?,
            v: v.strides(&V)?,
        };
        if dtype_of(V.dtype, v.dtype)? != layout.dtype {
            return refused(V.dtype, "is not that of K, and kernels take no others".into());
        }
        if v.head_dim != k.head_dim {
            let (of_v, of_k) = (v.head_dim, k.head_dim);
            let reason = format!("is {of_v}, and {of_k} in K: kernels take no others");
            return refused("cache.v.head_dim", reason);
        }
        layout.check().map_err(failure)?;
        k.check_extent(&K, layout.k_extent().map_err(failure)?, layout.dtype)?;
        v.check_extent(&V, layout.v_extent().map_err(failure)?, layout.dtype)?;
        if k.data == v.data {
            return refused(V.array, "is K's: kernels take no values that lie in the keys".into());
        }
        let scales = match (k.scales(&K)?, v.scales(&V)?) {
            (None, None) => None,
            (Some(per_head), Some(of_v)) if of_v == per_head => {
                Some(Scales { k: k.scales.cast(), v: v.scales.cast(), per_head })
            }
            (Some(_), Some(_)) => return refused(V.strides, "is not that of K".into()),
            (None, Some(_)) => return refused(K.scales, "is NULL, and that of V is not".into()),
            (Some(_), None) => return refused(V.scales, "is NULL, and that of K is not".into()),
        };
        Ok(Self { layout, k: k.data, v: v.data, scales })
    }
}

impl inflight_kv_cache {
    /// The cache in the device's memory.
    ///
    /// # Safety
    /// As [`DeviceCache::new`].
    pub(super) unsafe fn device(&self) -> Result<DeviceCache> {
        let Layer { layout, k, v, scales } = self.try_into()?;
        let scales = scales.map(|Scales { k, v, per_head }| DeviceScales {
            k: k.expose_provenance() as u64,
            v: v.expose_provenance() as u64,
            per_head,
        });
        let [k, v] = [k, v].map(|data| data.expose_provenance() as u64);
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
    unsafe { read("cache", cache) }
}

/// The caches of an array: as the size of the first says, they stand apart.
///
/// # Safety
/// `first` is NULL, or points to `count` caches that all have its size.
pub(super) unsafe fn caches_of(
    field: &'static str,
    first: *const inflight_kv_cache,
    count: usize,
) -> Result<Vec<inflight_kv_cache>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: as the caller promises.
    let size = unsafe { read(field, first) }?.struct_size;
    let cache = |at: usize| {
        let from = first.cast::<u8>().wrapping_add(at * size).cast::<inflight_kv_cache>();
        // SAFETY: as the caller promises.
        let cache = unsafe { read(field, from) }?;
        match cache.struct_size == size {
            true => Ok(cache),
            false => Err(Failure::argument(field, "differ in struct_size")),
        }
    };
    (0..count).map(cache).collect()
}
