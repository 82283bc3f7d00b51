//! The paged KV cache of one layer, as kernels see it.

use std::marker::PhantomData;

use bytemuck::Pod;

use super::tensor::{DType, disjoint};
use crate::error::{Error, Result};

/// Bases and strides are multiples of this many bytes: what the widest loads of a GPU want.
pub const KV_ALIGN: usize = 16;

/// Elements from one block, token or head to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvStrides {
    /// From a block to the next.
    pub block: usize,
    /// From a token of a block to the next.
    pub token: usize,
    /// From a head of a token to the next.
    pub head: usize,
}

/// Shape and strides of a layer's K and V; strides of dimensions above 1 are multiples of
/// [`KV_ALIGN`] bytes, and rows do not overlap. Each is `num_blocks` x `block_size` x `num_heads` rows of
/// `head_dim` contiguous elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Type of the elements.
    pub dtype: DType,
    /// Blocks.
    pub num_blocks: usize,
    /// Tokens per block.
    pub block_size: usize,
    /// KV heads.
    pub num_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Strides of K.
    pub k: KvStrides,
    /// Strides of V.
    pub v: KvStrides,
}

impl KvLayout {
    /// `[num_blocks, block_size, num_heads, head_dim]`, contiguous, K and V apart.
    #[must_use]
    pub fn nhd(
        dtype: DType,
        num_blocks: usize,
        block_size: usize,
        num_heads: usize,
        head_dim: usize,
    ) -> Self {
        let token = num_heads.saturating_mul(head_dim);
        let block = block_size.saturating_mul(token);
        let strides = KvStrides { block, token, head: head_dim };
        Self { dtype, num_blocks, block_size, num_heads, head_dim, k: strides, v: strides }
    }

    /// `[num_blocks, num_heads, block_size, head_dim]`, contiguous, K and V apart.
    #[must_use]
    pub fn hnd(
        dtype: DType,
        num_blocks: usize,
        block_size: usize,
        num_heads: usize,
        head_dim: usize,
    ) -> Self {
        let head = block_size.saturating_mul(head_dim);
        let block = num_heads.saturating_mul(head);
        let strides = KvStrides { block, token: head_dim, head };
        Self { dtype, num_blocks, block_size, num_heads, head_dim, k: strides, v: strides }
    }

    /// Elements from K's first to one past its last.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when that does not fit 64 bits.
    pub fn k_extent(&self) -> Result<usize> {
        self.extent(self.k).ok_or_else(|| Error::argument("layout.k", "do not fit 64 bits"))
    }

    /// Elements from V's first to one past its last.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when that does not fit 64 bits.
    pub fn v_extent(&self) -> Result<usize> {
        self.extent(self.v).ok_or_else(|| Error::argument("layout.v", "do not fit 64 bits"))
    }

    fn extent(&self, strides: KvStrides) -> Option<usize> {
        let blocks = self.num_blocks.checked_sub(1)?.checked_mul(strides.block)?;
        let tokens = self.block_size.checked_sub(1)?.checked_mul(strides.token)?;
        let heads = self.num_heads.checked_sub(1)?.checked_mul(strides.head)?;
        let extent = blocks.checked_add(tokens)?.checked_add(heads)?.checked_add(self.head_dim)?;
        let bytes = extent.checked_mul(self.dtype.size())?;
        (bytes <= isize::MAX as usize).then_some(extent)
    }

    /// Checks shape and strides.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field at fault.
    pub fn check(&self) -> Result<()> {
        let counts = [
            ("num_blocks", self.num_blocks, i32::MAX as usize),
            ("block_size", self.block_size, i32::MAX as usize),
            ("num_heads", self.num_heads, 1 << 16),
        ];
        for (field, value, most) in counts {
            if value == 0 || value > most {
                return Err(Error::argument(field, format!("{value} is not within 1 to {most}")));
            }
        }
        check_head_dim(self.head_dim)?;
        for (field, strides) in [("layout.k", self.k), ("layout.v", self.v)] {
            let KvStrides { block, token, head } = strides;
            let dims = [(self.num_blocks, block), (self.block_size, token), (self.num_heads, head)];
            for (count, stride) in dims {
                // The stride of a dimension of one is never used.
                if count > 1 && !stride.wrapping_mul(self.dtype.size()).is_multiple_of(KV_ALIGN) {
                    let reason = format!("{stride} {} are no multiple of 16 bytes", self.dtype);
                    return Err(Error::argument(field, reason));
                }
            }
            if self.extent(strides).is_none() {
                return Err(Error::argument(field, "the cache they span does not fit 64 bits"));
            }
            if !disjoint(self.head_dim, dims) {
                let reason = format!("{block}, {token}, {head} (block, token, head) overlap");
                return Err(Error::argument(field, reason));
            }
        }
        Ok(())
    }
}

/// Refuses V in the place of K: the one overlap that is told from the bases alone, and what is left
/// of an interleaved layout whose V was forgotten.
pub(crate) fn check_apart<T: PartialEq>(k: T, v: T) -> Result<()> {
    if k == v {
        return Err(Error::argument("v", "is k: values would be written over the keys"));
    }
    Ok(())
}

/// Refuses a head dimension that no kernel has.
pub(crate) fn check_head_dim(head_dim: usize) -> Result<()> {
    if head_dim == 0 || head_dim > 256 || !head_dim.is_multiple_of(8) {
        let reason = format!("{head_dim} is not a multiple of 8 between 8 and 256");
        return Err(Error::argument("head_dim", reason));
    }
    Ok(())
}

/// A layer's K and V: memory that the caller owns, borrowed.
///
/// Shared references read it, exclusive ones write it. Both must start at a multiple of
/// [`KV_ALIGN`] bytes, and so must blocks, tokens and heads: allocators give that for what is large,
/// a [`Buffer`](crate::device::memory::Buffer) always, and on huge pages.
#[derive(Debug)]
pub struct KvCache<'a> {
    k: *mut u8,
    v: *mut u8,
    layout: KvLayout,
    borrow: PhantomData<&'a mut [u8]>,
}

// SAFETY: it is an exclusive borrow of plain numbers.
unsafe impl Send for KvCache<'_> {}
// SAFETY: through a shared reference it is only read.
unsafe impl Sync for KvCache<'_> {}

impl<'a> KvCache<'a> {
    /// K and V in slices of their own, of any element type: a cache of bf16 may be a `[u16]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `k`, `v` or the field of `layout` at fault.
    pub fn new<T: Pod>(k: &'a mut [T], v: &'a mut [T], layout: KvLayout) -> Result<Self> {
        layout.check()?;
        let (k, v): (&mut [u8], &mut [u8]) =
            (bytemuck::cast_slice_mut(k), bytemuck::cast_slice_mut(v));
        fits("k", k.len(), 0, layout.k_extent()?, layout.dtype)?;
        fits("v", v.len(), 0, layout.v_extent()?, layout.dtype)?;
        // SAFETY: both slices hold what the layout spans, and are borrowed for 'a.
        unsafe { Self::from_raw(k.as_mut_ptr(), v.as_mut_ptr(), layout) }
    }

    /// K and V in one slice, starting at these elements of it: `[2, num_blocks, ..]`,
    /// `[num_blocks, 2, ..]` and their like.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `k`, `v` or the field of `layout` at fault, also when K
    /// and V overlap.
    pub fn combined<T: Pod>(
        data: &'a mut [T],
        k_start: usize,
        v_start: usize,
        layout: KvLayout,
    ) -> Result<Self> {
        layout.check()?;
        let data: &mut [u8] = bytemuck::cast_slice_mut(data);
        let (k_extent, v_extent) = (layout.k_extent()?, layout.v_extent()?);
        fits("k", data.len(), k_start, k_extent, layout.dtype)?;
        fits("v", data.len(), v_start, v_extent, layout.dtype)?;
        let apart = k_start + k_extent <= v_start || v_start + v_extent <= k_start;
        // Interleaved, K or V is one more dimension, of two.
        let KvStrides { block, token, head } = layout.k;
        let dims = [
            (layout.num_blocks, block),
            (layout.block_size, token),
            (layout.num_heads, head),
            (2, k_start.abs_diff(v_start)),
        ];
        let woven = layout.k == layout.v && disjoint(layout.head_dim, dims);
        if !apart && !woven {
            return Err(Error::argument("v", "overlaps k"));
        }
        let bytes = layout.dtype.size();
        let start = data.as_mut_ptr();
        // `fits` found both starts, and all that the layout spans from there, inside.
        let (k, v) = (start.wrapping_add(k_start * bytes), start.wrapping_add(v_start * bytes));
        // SAFETY: as said above; the slice is borrowed for 'a.
        unsafe { Self::from_raw(k, v, layout) }
    }

    /// K and V in memory that another language owns.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `k`, `v` (where it is `k`, too) or the field of `layout` at
    /// fault.
    ///
    /// # Safety
    /// All that `layout` spans from `k` and from `v` is initialised memory, valid for 'a and
    /// neither read nor written by others meanwhile, and K and V do not overlap.
    pub unsafe fn from_raw(k: *mut u8, v: *mut u8, layout: KvLayout) -> Result<Self> {
        layout.check()?;
        for (field, data) in [("k", k), ("v", v)] {
            if data.is_null() || !data.addr().is_multiple_of(KV_ALIGN) {
                return Err(Error::argument(field, "is null or not aligned to 16 bytes"));
            }
        }
        check_apart(k.addr(), v.addr())?;
        Ok(Self { k, v, layout, borrow: PhantomData })
    }

    /// Shape and strides.
    #[must_use]
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    pub(crate) fn k_ptr(&self) -> *mut u8 {
        self.k
    }

    pub(crate) fn v_ptr(&self) -> *mut u8 {
        self.v
    }
}

fn fits(
    field: &'static str,
    bytes: usize,
    start: usize,
    extent: usize,
    dtype: DType,
) -> Result<()> {
    let needed = start.checked_add(extent).and_then(|end| end.checked_mul(dtype.size()));
    match needed {
        Some(needed) if needed <= bytes => Ok(()),
        _ => {
            let reason = format!("{bytes} bytes do not hold {extent} {dtype} from {start} on");
            Err(Error::argument(field, reason))
        }
    }
}

/// What fp8 numbers of a cache are multiplied with when read; each slice has one number for all
/// heads, or one a KV head. Empty for other types.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KvScales<'a> {
    /// Of K.
    pub k: &'a [f32],
    /// Of V.
    pub v: &'a [f32],
}

impl KvScales<'_> {
    /// None: the cache is not fp8.
    pub const NONE: KvScales<'static> = KvScales { k: &[], v: &[] };

    /// Checks numbers and counts.
    pub(crate) fn check(&self, layout: &KvLayout) -> Result<()> {
        for (field, scales) in [("scales.k", self.k), ("scales.v", self.v)] {
            if layout.dtype != DType::Fp8E4m3 {
                if !scales.is_empty() {
                    let reason = format!("a cache of {} takes no scales", layout.dtype);
                    return Err(Error::argument(field, reason));
                }
                continue;
            }
            if scales.len() != 1 && scales.len() != layout.num_heads {
                let reason = format!(
                    "has {} numbers, not 1 nor one of {} heads",
                    scales.len(),
                    layout.num_heads
                );
                return Err(Error::argument(field, reason));
            }
            if let Some(bad) = scales.iter().find(|scale| !(scale.is_finite() && **scale > 0.0)) {
                return Err(Error::argument(
                    field,
                    format!("{bad} is not a finite number above 0"),
                ));
            }
        }
        Ok(())
    }

    /// The scale of a head.
    pub(crate) fn of(scales: &[f32], head: usize) -> f32 {
        match scales {
            [] => 1.0,
            [one] => *one,
            each => each[head],
        }
    }
}

/// Scales of an fp8 cache in device memory: f32, one for all heads or one a KV head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceScales {
    /// Address of K's.
    pub k: u64,
    /// Address of V's.
    pub v: u64,
    /// Whether there is one a KV head.
    pub per_head: bool,
}

/// The paged KV cache of one layer by its addresses in a device's memory.
#[derive(Clone, Copy, Debug)]
pub struct DeviceCache {
    pub(super) k: u64,
    pub(super) v: u64,
    layout: KvLayout,
    pub(super) scales: Option<DeviceScales>,
}

impl DeviceCache {
    /// K and V, whose first elements are at `k` and `v`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `layout`, `k`, `v` or `scales`.
    ///
    /// # Safety
    /// Until all work that is queued with it is done, and whenever a graph that such work was
    /// recorded in is launched, every element that `layout` spans and every scale lies in memory
    /// that the device can reach, and nothing else writes what the work reads.
    pub unsafe fn new(
        k: u64,
        v: u64,
        layout: KvLayout,
        scales: Option<DeviceScales>,
    ) -> Result<Self> {
        layout.check()?;
        for (field, address) in [("k", k), ("v", v)] {
            if address == 0 {
                return Err(Error::argument(field, "is null"));
            }
            if address % KV_ALIGN as u64 != 0 {
                let reason = format!("begins at {address:#x}, not a multiple of {KV_ALIGN} bytes");
                return Err(Error::argument(field, reason));
            }
        }
        check_apart(k, v)?;
        let at = scales.map_or([("scales.k", 4), ("scales.v", 4)], |scales| {
            [("scales.k", scales.k), ("scales.v", scales.v)]
        });
        if let Some((field, _)) = at.into_iter().find(|&(_, at)| at == 0 || at % 4 != 0) {
            return Err(Error::argument(field, "are null, or not at a multiple of 4 bytes"));
        }
        match (layout.dtype, scales) {
            (DType::Fp8E4m3, None) => Err(Error::argument("scales", "an fp8 cache needs scales")),
            (DType::Fp8E4m3, Some(_)) | (_, None) => Ok(Self { k, v, layout, scales }),
            (dtype, Some(_)) => {
                Err(Error::argument("scales", format!("a cache of {dtype} takes no scales")))
            }
        }
    }

    /// Shape and strides.
    #[must_use]
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }
}
