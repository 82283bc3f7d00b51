//! Numbers of a type that is chosen at run time: what attention reads and writes.

use anyhow::{Result, bail};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use inflight::kernels::tensor::{DType, Shape};
use inflight::kernels::{TensorMut, TensorRef};

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

    /// The first numbers as a tensor.
    pub fn view(&self, shape: Shape) -> Result<TensorRef<'_>> {
        Ok(match self {
            Self::F32(data) => TensorRef::new(data, shape)?,
            Self::F16(data) => TensorRef::new(data, shape)?,
            Self::Bf16(data) => TensorRef::new(data, shape)?,
        })
    }

    /// The first numbers as a tensor to be written.
    pub fn view_mut(&mut self, shape: Shape) -> Result<TensorMut<'_>> {
        Ok(match self {
            Self::F32(data) => TensorMut::new(data, shape)?,
            Self::F16(data) => TensorMut::new(data, shape)?,
            Self::Bf16(data) => TensorMut::new(data, shape)?,
        })
    }
}
