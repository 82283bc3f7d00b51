//! Tensors and caches in device memory.

use crate::device::cuda::check_alignment;
use crate::error::{Error, Result};
use crate::kernels::kv::check_apart;
use crate::kernels::tensor::{DType, Shape};
use crate::kernels::{KvLayout, KvStrides};

/// Tokens of heads in device memory: queries, outputs, new keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceTensor {
    address: u64,
    dtype: DType,
    shape: Shape,
}

impl DeviceTensor {
    /// The tensor whose first element is at `address`.
    ///
    /// # Safety
    /// Until all work that is queued with it is done, and whenever a graph that such work was
    /// recorded in is launched, every element of `shape` lies in memory that the device can reach,
    /// for reads, and for writes by nobody else where it is written.
    #[must_use]
    pub unsafe fn new(address: u64, dtype: DType, shape: Shape) -> Self {
        Self { address, dtype, shape }
    }

    /// The address of its first element.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The type of its elements.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Its shape.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Elements from one token to the next, and from one head to the next.
    pub(super) fn strides(&self) -> (i64, i64) {
        (self.shape.token_stride as i64, self.shape.head_stride as i64)
    }

    /// Names what asks for so many tokens where it is not the step.
    pub(super) fn check_room(
        &self,
        field: &'static str,
        tokens: usize,
        capturing: bool,
    ) -> Result<()> {
        let has = self.shape.tokens;
        if !capturing || has >= tokens {
            return Ok(());
        }
        let reason = format!("has {has} tokens, and in capture the limits' {tokens} are needed");
        Err(Error::argument(field, reason))
    }

    pub(super) fn check(
        &self,
        field: &'static str,
        dtype: DType,
        tokens: usize,
        heads: usize,
        head_dim: usize,
    ) -> Result<()> {
        if self.dtype != dtype {
            return Err(Error::argument(field, format!("is {}, not {dtype}", self.dtype)));
        }
        self.shape.check_holds(field, tokens, heads, head_dim)?;
        if !self.shape.is_disjoint() {
            return Err(Error::argument(field, "its strides make rows overlap"));
        }
        let Shape { tokens: has, heads: h, token_stride, head_stride, .. } = self.shape;
        let bytes = |stride: usize| (stride as i64).wrapping_mul(dtype.size() as i64);
        let used = |count: usize, stride: usize| if count > 1 { bytes(stride) } else { 0 };
        let strides = [used(has, token_stride), used(h, head_stride)];
        check_alignment(field, self.address, &strides)
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

/// The paged KV cache of one layer in device memory.
#[derive(Clone, Copy, Debug)]
pub struct DeviceCache {
    k: u64,
    v: u64,
    layout: KvLayout,
    scales: Option<DeviceScales>,
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
    /// that the device can reach, and nobody else writes what the work reads.
    pub unsafe fn new(
        k: u64,
        v: u64,
        layout: KvLayout,
        scales: Option<DeviceScales>,
    ) -> Result<Self> {
        layout.check()?;
        let size = layout.dtype.size() as i64;
        for (field, address, strides) in [("k", k, layout.k), ("v", v, layout.v)] {
            if address == 0 {
                return Err(Error::argument(field, "is null"));
            }
            let used = |count: usize, stride: usize| match count {
                1 => 0,
                _ => (stride as i64).wrapping_mul(size),
            };
            let KvStrides { block, token, head } = strides;
            let strides = [
                used(layout.num_blocks, block),
                used(layout.block_size, token),
                used(layout.num_heads, head),
            ];
            check_alignment(field, address, &strides)?;
        }
        check_apart(k, v)?;
        match (layout.dtype, scales) {
            (DType::Fp8E4m3, None) => Err(Error::argument("scales", "an fp8 cache has some")),
            (DType::Fp8E4m3, Some(DeviceScales { k: 0, .. } | DeviceScales { v: 0, .. })) => {
                Err(Error::argument("scales", "are null"))
            }
            (DType::Fp8E4m3, Some(DeviceScales { k, v, .. })) if (k | v) % 4 != 0 => {
                Err(Error::argument("scales", "are not at multiples of 4 bytes"))
            }
            (DType::F16 | DType::Bf16, None) | (DType::Fp8E4m3, Some(_)) => {
                Ok(Self { k, v, layout, scales })
            }
            (DType::F32, _) => {
                Err(Error::argument("dtype", "f32 caches are the processor's: use f16 or bf16"))
            }
            (dtype, Some(_)) => {
                Err(Error::argument("scales", format!("a cache of {dtype} has none")))
            }
        }
    }

    /// Shape and strides.
    #[must_use]
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Addresses of K and V.
    pub(super) fn addresses(&self) -> (u64, u64) {
        (self.k, self.v)
    }

    /// Addresses of the scales and elements from one head's to the next.
    pub(super) fn scales(&self) -> (u64, u64, u32) {
        self.scales.map_or((0, 0, 0), |s| (s.k, s.v, u32::from(s.per_head)))
    }

    /// Elements from one block, token and head to the next, K's then V's.
    pub(super) fn strides(&self) -> [[i64; 3]; 2] {
        [self.layout.k, self.layout.v]
            .map(|s| [s.block, s.token, s.head].map(|stride| stride as i64))
    }
}
