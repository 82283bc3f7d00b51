//! Numbers of a type that is chosen at run time: what attention reads and writes.

use anyhow::{Result, bail};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use inflight::kernels::DeviceTensor;
use inflight::kernels::tensor::{DType, Shape};

/// Numbers of a type.
pub enum Numbers {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Numbers {
    /// None yet.
    pub fn new(dtype: DType) -> Result<Self> {
        Ok(match dtype {
            DType::F32 => Self::F32(Vec::new()),
            DType::F16 => Self::F16(Vec::new()),
            DType::Bf16 => Self::Bf16(Vec::new()),
            DType::Fp8E4m3 => bail!("fp8 is a type of caches"),
        })
    }

    /// Room for so many.
    pub fn resize(&mut self, len: usize) {
        match self {
            Self::F32(data) => data.resize(len, 0.0),
            Self::F16(data) => data.resize(len, f16::ZERO),
            Self::Bf16(data) => data.resize(len, bf16::ZERO),
        }
    }

    /// Rounds numbers to the type, from element `at` on.
    pub fn set(&mut self, at: usize, from: &[f32]) {
        let range = at..at + from.len();
        match self {
            Self::F32(data) => data[range].copy_from_slice(from),
            Self::F16(data) => data[range].convert_from_f32_slice(from),
            Self::Bf16(data) => data[range].convert_from_f32_slice(from),
        }
    }

    /// The first numbers.
    pub fn get(&self, to: &mut [f32]) {
        let len = to.len();
        match self {
            Self::F32(data) => to.copy_from_slice(&data[..len]),
            Self::F16(data) => data[..len].convert_to_f32_slice(to),
            Self::Bf16(data) => data[..len].convert_to_f32_slice(to),
        }
    }

    /// The first numbers, by their address: while kernels use it, the numbers may not be touched.
    pub fn tensor(&mut self, shape: Shape) -> Result<DeviceTensor> {
        let (len, data, dtype) = match self {
            Self::F32(data) => (data.len(), data.as_mut_ptr().expose_provenance(), DType::F32),
            Self::F16(data) => (data.len(), data.as_mut_ptr().expose_provenance(), DType::F16),
            Self::Bf16(data) => (data.len(), data.as_mut_ptr().expose_provenance(), DType::Bf16),
        };
        if len < shape.tokens * shape.token_stride {
            bail!("{len} numbers are not {} tokens", shape.tokens);
        }
        // SAFETY: they are as many, and callers leave them alone until the work is done.
        Ok(unsafe { DeviceTensor::new(data as u64, dtype, shape) })
    }
}
