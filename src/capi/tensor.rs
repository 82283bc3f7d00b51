//! Element types, and tokens of heads.

use std::ffi::c_void;

use super::ffi::{Result, Versioned, at_most_max, call, read, versioned, write};
use super::status::{Failure, inflight_error, inflight_status};
use crate::kernels::tensor::Shape;
use crate::kernels::{DType, DeviceTensor};

/// IEEE binary32.
pub const INFLIGHT_DTYPE_F32: u32 = 1;
/// IEEE binary16.
pub const INFLIGHT_DTYPE_F16: u32 = 2;
/// bfloat16: the upper half of a binary32.
pub const INFLIGHT_DTYPE_BF16: u32 = 3;
/// OCP 8-bit float e4m3 without infinities, largest 448: `float8_e4m3fn`.
pub const INFLIGHT_DTYPE_FP8_E4M3: u32 = 4;

/// The type of a number `INFLIGHT_DTYPE_*`.
pub(super) fn dtype_of(field: &'static str, number: u32) -> Result<DType> {
    match number {
        INFLIGHT_DTYPE_F32 => Ok(DType::F32),
        INFLIGHT_DTYPE_F16 => Ok(DType::F16),
        INFLIGHT_DTYPE_BF16 => Ok(DType::Bf16),
        INFLIGHT_DTYPE_FP8_E4M3 => Ok(DType::Fp8E4m3),
        other => Err(Failure::argument(field, format!("{other} is not an INFLIGHT_DTYPE_*"))),
    }
}

/// The number of a type.
pub(super) fn number_of(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => INFLIGHT_DTYPE_F32,
        DType::F16 => INFLIGHT_DTYPE_F16,
        DType::Bf16 => INFLIGHT_DTYPE_BF16,
        DType::Fp8E4m3 => INFLIGHT_DTYPE_FP8_E4M3,
    }
}

/// Tokens of heads: queries, outputs, new keys and values. The elements of a head are contiguous.
///
/// Initialise it with `inflight_tensor_init`; `inflight_tensor_set_contiguous` then sets all fields of
/// one without gaps.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_tensor {
    /// `sizeof(inflight_tensor)`.
    pub struct_size: usize,
    /// The first element; NULL only where there are no tokens. On a processor at a multiple of the
    /// element's size, on a GPU of 16 bytes.
    pub data: *mut c_void,
    /// Tokens, at most `INFLIGHT_MAX_COUNT`.
    pub tokens: u64,
    /// Elements from one token to the next, not negative; any number where there is one token. On a
    /// GPU a multiple of 16 bytes.
    pub token_stride: i64,
    /// Elements from one head to the next, alike.
    pub head_stride: i64,
    /// Heads; at least 1.
    pub heads: u32,
    /// Elements per head; at least 1.
    pub head_dim: u32,
    /// `INFLIGHT_DTYPE_*`.
    pub dtype: u32,
    /// 0.
    pub reserved: u32,
}

versioned! {
    inflight_tensor_init(tensor: inflight_tensor ..= reserved) where reserved is 0 {}
}

/// Sets a tensor without anything between its heads and tokens.
///
/// Outputs: `*tensor`, prepared with `inflight_tensor_init`.
/// Fails, and nothing has changed: INVALID_ARGUMENT when the strides do not fit 64 bits; STRUCT_SIZE.
/// What kernels refuse is looked at by the calls that take the tensor.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_tensor_set_contiguous(
    tensor: *mut inflight_tensor,
    dtype: u32,
    data: *mut c_void,
    tokens: u64,
    heads: u32,
    head_dim: u32,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        let token_stride = i64::from(heads).checked_mul(head_dim.into());
        let too_large = || Failure::argument("heads", "the strides do not fit 64 bits");
        let made = inflight_tensor {
            struct_size: 0,
            data,
            tokens,
            token_stride: token_stride.ok_or_else(too_large)?,
            head_stride: head_dim.into(),
            heads,
            head_dim,
            dtype,
            reserved: 0,
        };
        // SAFETY: NULL or a tensor of the caller's.
        unsafe { write("tensor", tensor, made) }
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// A stride that may be used.
pub(super) fn stride(field: &'static str, stride: i64) -> Result<usize> {
    usize::try_from(stride).map_err(|_| Failure::argument(field, format!("a stride of {stride}")))
}

impl inflight_tensor {
    /// Type and shape, checked as far as that goes without its memory.
    pub(super) fn parts(&self, field: &'static str) -> Result<(DType, Shape)> {
        let refused = |reason: &str| Err(Failure::argument(field, reason));
        let dtype = dtype_of(field, self.dtype)?;
        let shape = Shape {
            tokens: at_most_max(field, self.tokens)?,
            heads: self.heads as usize,
            head_dim: self.head_dim as usize,
            token_stride: stride(field, self.token_stride)?,
            head_stride: stride(field, self.head_stride)?,
        };
        if self.heads == 0 || self.head_dim == 0 {
            return refused("has no heads, or heads of no elements");
        }
        if self.data.is_null() && self.tokens > 0 {
            return refused("data is NULL");
        }
        if !self.data.addr().is_multiple_of(dtype.size()) {
            return refused("data is not aligned to an element");
        }
        let last = |count: usize, stride: usize| match count {
            0 | 1 => Some(0),
            _ => (count - 1).checked_mul(stride),
        };
        let tokens = last(shape.tokens, shape.token_stride);
        let heads = last(shape.heads, shape.head_stride);
        let extent = tokens.zip(heads).and_then(|(tokens, heads)| tokens.checked_add(heads));
        let extent = extent.and_then(|extent| extent.checked_add(shape.head_dim));
        let bytes = extent.and_then(|extent| extent.checked_mul(dtype.size()));
        match bytes.and_then(|bytes| bytes.checked_add(self.data.addr())) {
            Some(end) if end <= isize::MAX as usize => Ok((dtype, shape)),
            _ => refused("its extent does not fit the memory"),
        }
    }
}

/// The tensor that a pointer names.
///
/// # Safety
/// `tensor` is NULL or the caller's.
pub(super) unsafe fn tensor_of(
    field: &'static str,
    tensor: *const inflight_tensor,
) -> Result<inflight_tensor> {
    // SAFETY: as the caller promises.
    unsafe { read(field, tensor) }
}

/// The tensor in the device's memory.
///
/// # Safety
/// `tensor` is NULL or the caller's; the rest as [`DeviceTensor::new`].
pub(super) unsafe fn device_tensor(
    field: &'static str,
    tensor: *const inflight_tensor,
) -> Result<DeviceTensor> {
    // SAFETY: as the caller promises.
    let tensor = unsafe { tensor_of(field, tensor) }?;
    let (dtype, shape) = tensor.parts(field)?;
    let address = tensor.data.expose_provenance() as u64;
    // SAFETY: as the caller promises; `parts` found it aligned.
    Ok(unsafe { DeviceTensor::new(address, dtype, shape) })
}
