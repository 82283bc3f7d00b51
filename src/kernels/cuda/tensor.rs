//! What kernels of GPUs ask of tensors and caches.

use crate::device::cuda::check_alignment;
use crate::error::{Error, Result};
use crate::kernels::kv::DeviceCache;
use crate::kernels::tensor::{DType, DeviceTensor, Shape};

impl DeviceTensor {
    /// Elements from one token to the next, and from one head to the next.
    pub(super) fn strides(&self) -> (i64, i64) {
        (self.shape().token_stride as i64, self.shape().head_stride as i64)
    }

    /// Names what asks for so many tokens where it is not the step.
    pub(super) fn check_room(
        &self,
        field: &'static str,
        tokens: usize,
        capturing: bool,
    ) -> Result<()> {
        let has = self.shape().tokens;
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
        if self.dtype() != dtype {
            return Err(Error::argument(field, format!("is {}, not {dtype}", self.dtype())));
        }
        self.shape().check_holds(field, tokens, heads, head_dim)?;
        if !self.shape().is_disjoint() {
            return Err(Error::argument(field, "its strides make rows overlap"));
        }
        let Shape { tokens: has, heads: h, token_stride, head_stride, .. } = self.shape();
        let bytes = |stride: usize| (stride as i64).wrapping_mul(dtype.size() as i64);
        let used = |count: usize, stride: usize| if count > 1 { bytes(stride) } else { 0 };
        let strides = [used(has, token_stride), used(h, head_stride)];
        check_alignment(field, self.address(), &strides)
    }
}

impl DeviceCache {
    /// Refuses what no kernel of a GPU reads.
    pub(crate) fn check_on_gpu(&self) -> Result<()> {
        match self.layout().dtype {
            DType::F32 => {
                Err(Error::argument("dtype", "f32 caches are the processor's: use f16 or bf16"))
            }
            _ => Ok(()),
        }
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
        [self.layout().k, self.layout().v]
            .map(|s| [s.block, s.token, s.head].map(|stride| stride as i64))
    }
}
