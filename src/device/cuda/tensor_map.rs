//! Descriptors that bulk tensor copies (TMA) read.

use std::ffi::c_void;

use cudarc::driver::sys::{
    CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave,
    CUtensorMapL2promotion, CUtensorMapSwizzle,
};

use super::check::call;
use super::context::Cuda;
use crate::error::{Error, Result};

/// A tensor in global memory, and the tiles that are copied of it to shared memory. Dimensions are
/// innermost first.
#[derive(Clone, Copy, Debug)]
pub struct Tile<'a> {
    /// First element; a multiple of 16.
    pub address: u64,
    /// Bytes per element: 1 or 2.
    pub element: u32,
    /// Elements of each dimension: 1 to 5 of them.
    pub dims: &'a [u64],
    /// Bytes from one to the next, of each dimension but the innermost; multiples of 16.
    pub strides: &'a [u64],
    /// Elements of a tile; at most 256 a dimension.
    pub tile: &'a [u32],
    /// Bytes that rows are swizzled in: 0, 32, 64 or 128.
    pub swizzle: u32,
}

/// A kernel's parameter that describes a tensor for bulk copies.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct TensorMap(CUtensorMap);

impl TensorMap {
    /// Describes the tensor. What a tile has beyond its ends is zeros.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `tile`, and what the driver refuses.
    pub fn new(cuda: &Cuda, tile: &Tile<'_>) -> Result<Self> {
        let rank = tile.dims.len();
        if !(1..=5).contains(&rank) || tile.strides.len() != rank - 1 || tile.tile.len() != rank {
            return Err(Error::argument("tile", "its dimensions are not 1 to 5, or differ"));
        }
        let kind = match tile.element {
            1 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            2 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
            other => return Err(Error::argument("tile", format!("elements of {other} bytes"))),
        };
        let swizzle = match tile.swizzle {
            0 => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            32 => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            64 => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            128 => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            other => return Err(Error::argument("tile", format!("a swizzle of {other} bytes"))),
        };
        let steps = [1; 5];
        let mut map = CUtensorMap { opaque: [0; 16] };
        let _current = cuda.enter()?;
        // SAFETY: every array has as many numbers as `rank` asks for, and the address is not read.
        unsafe {
            call!(cuTensorMapEncodeTiled(
                &raw mut map,
                kind,
                rank as u32,
                tile.address as *mut c_void,
                tile.dims.as_ptr(),
                tile.strides.as_ptr(),
                tile.tile.as_ptr(),
                steps.as_ptr(),
                CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            ))
        }?;
        Ok(Self(map))
    }
}
