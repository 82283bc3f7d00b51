//! DLPack 1.x: arrays of torch, JAX, CuPy and numpy, without copies.

use std::ffi::c_void;
use std::ptr;

use super::device::{backend, inflight_device};
use super::ffi::{Result, call, flag, give, plain};
use super::kv::{
    INFLIGHT_LAYOUT_HND, INFLIGHT_LAYOUT_NHD, Layer, inflight_kv_array, inflight_kv_cache,
};
use super::status::{Failure, inflight_error, inflight_status};
use super::tensor::{inflight_tensor, number_of, tensor_of};
use crate::device::Device;
use crate::kernels::DType;

/// A `DLManagedTensor`: what a capsule named "dltensor" holds.
pub const INFLIGHT_DLPACK_UNVERSIONED: u32 = 0;
/// A `DLManagedTensorVersioned` of version 1: what a capsule named "dltensor_versioned" holds.
pub const INFLIGHT_DLPACK_VERSIONED: u32 = 1;

/// The version of DLPack that is written, and whose major version is read.
const VERSION: [u32; 2] = [1, 1];
const READ_ONLY: u64 = 1;

// Device types and type codes of dlpack.h.
const CPU: i32 = 1;
const CUDA: i32 = 2;
const CUDA_HOST: i32 = 3;
const CUDA_MANAGED: i32 = 13;
const UINT: u8 = 1;
const FLOAT: u8 = 2;
const BFLOAT: u8 = 4;
const FLOAT8_E4M3FN: u8 = 10;

/// `DLTensor`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Tensor {
    pub(super) data: *mut c_void,
    pub(super) device_type: i32,
    pub(super) device_id: i32,
    pub(super) ndim: i32,
    pub(super) code: u8,
    pub(super) bits: u8,
    pub(super) lanes: u16,
    pub(super) shape: *mut i64,
    pub(super) strides: *mut i64,
    pub(super) byte_offset: u64,
}

/// `DLManagedTensor`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Managed {
    pub(super) tensor: Tensor,
    pub(super) context: *mut c_void,
    pub(super) deleter: Option<unsafe extern "C" fn(*mut Self)>,
}

/// `DLManagedTensorVersioned`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Versioned {
    pub(super) version: [u32; 2],
    pub(super) context: *mut c_void,
    pub(super) deleter: Option<unsafe extern "C" fn(*mut Self)>,
    pub(super) flags: u64,
    pub(super) tensor: Tensor,
}

/// What is said of an array, checked against a device.
struct Array {
    data: *mut c_void,
    dtype: DType,
    shape: Vec<i64>,
    /// In elements.
    strides: Vec<i64>,
}

/// The array of a managed tensor, for a device.
///
/// # Safety
/// `managed` is NULL or the managed tensor that `kind` says, whose shape and strides are of as many
/// numbers as it has dimensions.
unsafe fn array_of(
    field: &'static str,
    device: &Device,
    managed: *const c_void,
    kind: u32,
    write: bool,
    ndim: usize,
) -> Result<Array> {
    let refused = |reason: String| Err(Failure::argument(field, reason));
    let tensor = match kind {
        INFLIGHT_DLPACK_UNVERSIONED => {
            // SAFETY: as the caller promises.
            unsafe { plain(field, managed.cast::<Managed>()) }?.tensor
        }
        INFLIGHT_DLPACK_VERSIONED => {
            // Whatever the version, it begins with it.
            // SAFETY: as the caller promises.
            let [major, minor] = *unsafe { plain(field, managed.cast::<[u32; 2]>()) }?;
            if major != VERSION[0] {
                return refused(format!("is of DLPack {major}.{minor}, and 1.x is read"));
            }
            // SAFETY: as the caller promises.
            let managed = unsafe { plain(field, managed.cast::<Versioned>()) }?;
            if write && managed.flags & READ_ONLY != 0 {
                return refused("is read-only".into());
            }
            managed.tensor
        }
        other => {
            return Err(Failure::argument("kind", format!("{other} is not an INFLIGHT_DLPACK_*")));
        }
    };
    check_device(field, device, &tensor)?;
    let dtype = match (tensor.code, tensor.bits, tensor.lanes) {
        (FLOAT, 32, 1) => DType::F32,
        (FLOAT, 16, 1) => DType::F16,
        (BFLOAT, 16, 1) => DType::Bf16,
        (FLOAT8_E4M3FN | UINT, 8, 1) => DType::Fp8E4m3,
        (code, bits, lanes) => {
            return refused(format!("is of type code {code}, {bits} bits, {lanes} lanes"));
        }
    };
    if usize::try_from(tensor.ndim) != Ok(ndim) {
        return refused(format!("has {} dimensions, not {ndim}", tensor.ndim));
    }
    // SAFETY: as the caller promises.
    let shape = unsafe { super::ffi::array(field, tensor.shape.cast_const(), ndim) }?;
    if let Some(size) = shape.iter().find(|&&size| size < 0) {
        return refused(format!("has a dimension of {size}"));
    }
    let strides = match tensor.strides.is_null() {
        // SAFETY: as the caller promises.
        false => unsafe { super::ffi::array(field, tensor.strides.cast_const(), ndim) }?.to_vec(),
        true => compact(shape)
            .ok_or_else(|| Failure::argument(field, "its elements do not fit 64 bits"))?,
    };
    if shape[ndim - 1] > 1 && strides[ndim - 1] != 1 {
        return refused(format!("its last dimension has a stride of {}", strides[ndim - 1]));
    }
    let offset = usize::try_from(tensor.byte_offset).ok();
    let Some(address) = offset.and_then(|offset| tensor.data.addr().checked_add(offset)) else {
        return refused("its byte_offset does not fit the memory".into());
    };
    let data = if tensor.data.is_null() { ptr::null_mut() } else { tensor.data.with_addr(address) };
    Ok(Array { data, dtype, shape: shape.to_vec(), strides })
}

/// Row-major strides.
fn compact(shape: &[i64]) -> Option<Vec<i64>> {
    let mut strides = vec![1_i64; shape.len()];
    for at in (1..shape.len()).rev() {
        strides[at - 1] = strides[at].checked_mul(shape[at].max(1))?;
    }
    Some(strides)
}

fn check_device(field: &'static str, device: &Device, tensor: &Tensor) -> Result<()> {
    let here = match device {
        Device::Cpu(_) => matches!(tensor.device_type, CPU | CUDA_HOST),
        #[cfg(feature = "cuda-driver")]
        Device::Cuda(cuda) => match tensor.device_type {
            CUDA => usize::try_from(tensor.device_id) == Ok(cuda.info().ordinal),
            CUDA_MANAGED => true,
            _ => false,
        },
    };
    if here {
        return Ok(());
    }
    let (kind, id) = (tensor.device_type, tensor.device_id);
    Err(Failure::argument(field, format!("is on another device: type {kind}, number {id}")))
}

/// Sees an array of `[tokens, heads, head_dim]` as a tensor of the device.
///
/// `managed` is a `DLManagedTensorVersioned *` or `DLManagedTensor *`, as `kind`
/// (`INFLIGHT_DLPACK_*`) says, of dlpack.h, which this header does not need. It stays the caller's: it
/// is read, not kept, and must live as long as the tensor is used; its deleter is not called. Types
/// are float32, float16, bfloat16, and as FP8_E4M3 float8_e4m3fn and uint8; strides may be NULL; the
/// last dimension is contiguous. Pass the stream to the producer as DLPack's protocol has it: this
/// call waits for nothing.
///
/// `write` is 1 for outputs, which may not be read-only.
///
/// Outputs: `*tensor`, prepared with `inflight_tensor_init`.
/// Fails, and nothing is written: INVALID_ARGUMENT naming `managed` for another device, type, number
/// of dimensions or major version.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_tensor_from_dlpack(
    device: *const inflight_device,
    managed: *const c_void,
    kind: u32,
    write: u32,
    tensor: *mut inflight_tensor,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a device that lives.
        let backend = unsafe { backend(device) }?;
        let write = flag("write", write)?;
        // SAFETY: as the caller of this function promises.
        let array = unsafe { array_of("managed", backend.device(), managed, kind, write, 3) }?;
        let small = |size: i64| {
            let reason = format!("has a dimension of {size}");
            u32::try_from(size).map_err(|_| Failure::argument("managed", reason))
        };
        let made = inflight_tensor {
            struct_size: 0,
            data: array.data,
            tokens: array.shape[0] as u64,
            token_stride: array.strides[0],
            head_stride: array.strides[1],
            heads: small(array.shape[1])?,
            head_dim: small(array.shape[2])?,
            dtype: number_of(array.dtype),
            reserved: 0,
        };
        // A stride of a dimension of one is any number, here and there, but not negative here.
        let made = inflight_tensor {
            token_stride: if made.tokens > 1 { made.token_stride } else { 0 },
            head_stride: if made.heads > 1 { made.head_stride } else { 0 },
            ..made
        };
        made.parts("managed")?;
        // SAFETY: NULL or a tensor of the caller's.
        unsafe { super::ffi::write("tensor", tensor, made) }
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Sees two arrays as a layer's K and V, to be read and written. Their dimensions are in the order
/// that `layout` (`INFLIGHT_LAYOUT_*`) names, with any strides: slices of one array do as well. `kind`
/// is that of both; all else is as with `inflight_tensor_from_dlpack`. Scales of an fp8 cache are the
/// caller's to set: they are NULL.
///
/// Outputs: `*cache`, prepared with `inflight_kv_cache_init`.
/// Fails, and nothing is written: INVALID_ARGUMENT naming `k`, `v`, `layout`, or the field of the
/// cache that would result.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_kv_cache_from_dlpack(
    device: *const inflight_device,
    k: *const c_void,
    v: *const c_void,
    kind: u32,
    layout: u32,
    cache: *mut inflight_kv_cache,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a device that lives.
        let backend = unsafe { backend(device) }?;
        // Where tokens and heads are.
        let (token, head) = match layout {
            INFLIGHT_LAYOUT_NHD => (1, 2),
            INFLIGHT_LAYOUT_HND => (2, 1),
            other => {
                return Err(Failure::argument(
                    "layout",
                    format!("{other} is not an INFLIGHT_LAYOUT_*"),
                ));
            }
        };
        // SAFETY: as the caller of this function promises.
        let k = unsafe { array_of("k", backend.device(), k, kind, true, 4) }?;
        // SAFETY: as the caller of this function promises.
        let v = unsafe { array_of("v", backend.device(), v, kind, true, 4) }?;
        if k.shape != v.shape || k.dtype != v.dtype {
            return Err(Failure::argument("v", "differs from k in shape or type"));
        }
        let small = |at: usize| {
            let reason = format!("has a dimension of {}", k.shape[at]);
            u32::try_from(k.shape[at]).map_err(|_| Failure::argument("k", reason))
        };
        let stride = |array: &Array, at: usize| match array.shape[at] {
            0 | 1 => 0,
            _ => array.strides[at],
        };
        let dim = small(3)?;
        let of = |array: &Array| inflight_kv_array {
            block_stride: stride(array, 0),
            token_stride: stride(array, token),
            head_stride: stride(array, head),
            ..inflight_kv_array::of(array.data, number_of(array.dtype), dim)
        };
        let made = inflight_kv_cache {
            struct_size: 0,
            num_blocks: k.shape[0] as u64,
            block_size: small(token)?,
            num_heads: small(head)?,
            k: of(&k),
            v: of(&v),
        };
        Layer::try_from(&made)?;
        // SAFETY: NULL or a cache of the caller's.
        unsafe { super::ffi::write("cache", cache, made) }
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Called once, on any thread, when an exported array is not used any more.
pub type inflight_release_callback = Option<unsafe extern "C" fn(user_data: *mut c_void)>;

/// An exported array: what the consumer holds, and what it points to.
#[repr(C)]
struct Exported {
    managed: Versioned,
    shape: [i64; 3],
    strides: [i64; 3],
    release: inflight_release_callback,
    user_data: *mut c_void,
}

unsafe extern "C" fn delete(managed: *mut Versioned) {
    if managed.is_null() {
        return;
    }
    // SAFETY: it is the first field of what `inflight_tensor_to_dlpack` gave, deleted once.
    let exported = unsafe { Box::from_raw(managed.cast::<Exported>()) };
    if let Some(release) = exported.release {
        // SAFETY: the caller of `inflight_tensor_to_dlpack` promised that it may be called.
        unsafe { release(exported.user_data) };
    }
}

/// Exports a tensor of the device as a `DLManagedTensorVersioned` of DLPack 1.1, for a capsule named
/// "dltensor_versioned". The memory stays the caller's: `release` (may be NULL) is called with
/// `user_data` when the consumer's deleter says that it is not used any more. The work that writes the
/// tensor is the caller's to order before the consumer's.
///
/// Outputs: `*managed`, which its last holder frees by its own deleter; NULL on failure, and
/// `release` is not called then.
/// Fails: INVALID_ARGUMENT naming `tensor` or `read_only`.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_tensor_to_dlpack(
    device: *const inflight_device,
    tensor: *const inflight_tensor,
    read_only: u32,
    release: inflight_release_callback,
    user_data: *mut c_void,
    managed: *mut *mut c_void,
    error: *mut inflight_error,
) -> inflight_status {
    let make = || {
        // SAFETY: NULL or a device that lives.
        let (device_type, device_id) = match unsafe { backend(device) }?.device() {
            Device::Cpu(_) => (CPU, 0),
            #[cfg(feature = "cuda-driver")]
            Device::Cuda(cuda) => (CUDA, cuda.info().ordinal as i32),
        };
        // SAFETY: NULL or a tensor of the caller's.
        let tensor = unsafe { tensor_of("tensor", tensor) }?;
        let (dtype, _) = tensor.parts("tensor")?;
        let code = match dtype {
            DType::F32 | DType::F16 => FLOAT,
            DType::Bf16 => BFLOAT,
            DType::Fp8E4m3 => FLOAT8_E4M3FN,
        };
        let flags = if flag("read_only", read_only)? { READ_ONLY } else { 0 };
        let of = Tensor {
            data: tensor.data,
            device_type,
            device_id,
            ndim: 3,
            code,
            bits: 8 * dtype.size() as u8,
            lanes: 1,
            shape: ptr::null_mut(),
            strides: ptr::null_mut(),
            byte_offset: 0,
        };
        let context = ptr::null_mut();
        let tokens = i64::try_from(tensor.tokens)
            .map_err(|_| Failure::argument("tensor", "has too many tokens"))?;
        let exported = Box::into_raw(Box::new(Exported {
            managed: Versioned {
                version: VERSION,
                context,
                deleter: Some(delete),
                flags,
                tensor: of,
            },
            shape: [tokens, tensor.heads.into(), tensor.head_dim.into()],
            strides: [tensor.token_stride, tensor.head_stride, 1],
            release,
            user_data,
        }));
        // SAFETY: just made, and not shared yet.
        let within = unsafe { &mut *exported };
        within.managed.context = exported.cast();
        within.managed.tensor.shape = within.shape.as_mut_ptr();
        within.managed.tensor.strides = within.strides.as_mut_ptr();
        Ok(exported.cast())
    };
    // SAFETY: `managed` and `error` are NULL or the caller's to be written.
    unsafe { give("managed", managed, error, make) }
}

// What dlpack.h has, on 64-bit machines.
const _: () = assert!(size_of::<Tensor>() == 48);
const _: () = assert!(std::mem::offset_of!(Tensor, code) == 20);
const _: () = assert!(std::mem::offset_of!(Tensor, shape) == 24);
const _: () = assert!(size_of::<Managed>() == 64);
const _: () = assert!(size_of::<Versioned>() == 80);
const _: () = assert!(std::mem::offset_of!(Versioned, tensor) == 32);
