//! Whether CUDA can be used here.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::sync::OnceLock;

use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute as Attribute, CUresult};
use libloading::Library;

use super::check::{call, describe};
use crate::error::{CudaUnavailable, Error, Result};

/// The CUDA version that kernels are built with, which the driver must offer: 13.0.
pub const NEEDED_VERSION: i32 = 13_000;

/// Every function of the driver that this library calls.
pub const REQUIRED_SYMBOLS: [&str; 59] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDeviceGetUuid_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuCtxGetDevice",
    "cuCtxSynchronize",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemHostGetDevicePointer_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuMemGetInfo_v2",
    "cuPointerGetAttribute",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamQuery",
    "cuStreamWaitEvent",
    "cuStreamGetCtx",
    "cuStreamIsCapturing",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuThreadExchangeStreamCaptureMode",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventSynchronize",
    "cuEventElapsedTime_v2",
    "cuEventDestroy_v2",
    "cuLibraryLoadData",
    "cuLibraryUnload",
    "cuLibraryGetKernel",
    "cuKernelSetAttribute",
    "cuKernelGetAttribute",
    "cuKernelGetFunction",
    "cuFuncLoad",
    "cuLaunchKernelEx",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuTensorMapEncodeTiled",
];

/// What a GPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaDeviceInfo {
    /// Its number, as the driver counts.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// The number it keeps whatever the order.
    pub uuid: [u8; 16],
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory: usize,
    /// Bytes of shared memory that a block can be given.
    pub max_shared_memory: u32,
    /// Bytes of the L2 cache.
    pub l2_cache: usize,
}

impl CudaDeviceInfo {
    /// Its architecture: `sm_90`.
    #[must_use]
    pub fn sm(&self) -> String {
        let (major, minor) = self.compute_capability;
        format!("sm_{major}{minor}")
    }
}

/// The GPUs that can be used, or why there is none. Never panics.
///
/// # Errors
/// Says what is missing.
pub fn probe() -> Result<Vec<CudaDeviceInfo>, CudaUnavailable> {
    ready()?;
    let mut count = 0;
    // SAFETY: the driver is ready, and `count` outlives the call.
    unsafe { call!(cuDeviceGetCount(&raw mut count)) }.map_err(unavailable)?;
    match usize::try_from(count) {
        Ok(0) | Err(_) => Err(CudaUnavailable::NoDevice),
        Ok(count) => (0..count).map(|ordinal| look(ordinal).map_err(unavailable)).collect(),
    }
}

/// The CUDA version that the driver offers: 13000 is 13.0.
///
/// # Errors
/// As [`probe`].
pub fn driver_version() -> Result<i32, CudaUnavailable> {
    ready()
}

/// Whether the driver can be called at all, found out once: it never comes or goes while a process
/// runs. Every function here that makes the first call asks this before: cudarc panics where a
/// library or a function of it is missing.
fn ready() -> Result<i32, CudaUnavailable> {
    static READY: OnceLock<Result<i32, CudaUnavailable>> = OnceLock::new();
    READY.get_or_init(start).clone()
}

fn start() -> Result<i32, CudaUnavailable> {
    // By its plain name first, as cudarc looks for it: whatever library of that name the process
    // has already is the one that both get.
    // SAFETY: the initialisers of the driver's library have no preconditions.
    let plain = unsafe { Library::new("libcuda.so") };
    let library = plain.or_else(|_| {
        // SAFETY: as above.
        unsafe { Library::new("libcuda.so.1") }
    });
    let library = library.map_err(|error| {
        // The error itself names the call that failed; what it is made from, the library and why.
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        CudaUnavailable::NoDriver { reason: cause.unwrap_or_else(|| error.to_string()) }
    })?;
    for name in REQUIRED_SYMBOLS {
        // SAFETY: the address is not called.
        let found = unsafe { library.get::<*const ()>(name) };
        found.map_err(|_| CudaUnavailable::MissingSymbol { name })?;
    }
    // The driver's library is never unloaded: its threads run its code.
    std::mem::forget(library);
    // SAFETY: has no preconditions.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_SUCCESS => {}
        CUresult::CUDA_ERROR_NO_DEVICE => return Err(CudaUnavailable::NoDevice),
        result @ CUresult::CUDA_ERROR_STUB_LIBRARY => {
            let reason = describe("cuInit", result).to_string();
            return Err(CudaUnavailable::NoDriver { reason });
        }
        result => return Err(CudaUnavailable::Failed(describe("cuInit", result))),
    }
    let mut found = 0;
    // SAFETY: `found` outlives the call.
    unsafe { call!(cuDriverGetVersion(&raw mut found)) }.map_err(unavailable)?;
    if found < NEEDED_VERSION {
        return Err(CudaUnavailable::DriverTooOld { found, needed: NEEDED_VERSION });
    }
    Ok(found)
}

fn unavailable(error: Error) -> CudaUnavailable {
    match error {
        Error::Cuda(error) => CudaUnavailable::Failed(error),
        Error::NoCuda(why) => why,
        other => CudaUnavailable::NoDriver { reason: other.to_string() },
    }
}

/// The driver's handle of a device, once the driver is ready.
pub(super) fn device(ordinal: usize) -> Result<CUdevice> {
    ready().map_err(Error::NoCuda)?;
    let mut count = 0;
    // SAFETY: the driver is ready, and `count` outlives the call.
    unsafe { call!(cuDeviceGetCount(&raw mut count)) }?;
    let number = c_int::try_from(ordinal).ok().filter(|&ordinal| ordinal < count);
    let number = number.ok_or_else(|| {
        Error::argument("device", format!("{ordinal} is not one of the {count} CUDA devices"))
    })?;
    let mut device = 0;
    // SAFETY: as above.
    unsafe { call!(cuDeviceGet(&raw mut device, number)) }?;
    Ok(device)
}

/// What a device is.
pub(super) fn look(ordinal: usize) -> Result<CudaDeviceInfo> {
    let device = device(ordinal)?;
    let mut name = [0 as c_char; 256];
    let room = name.len() as c_int;
    // SAFETY: the driver writes at most `room` bytes, a terminator among them.
    unsafe { call!(cuDeviceGetName(name.as_mut_ptr(), room, device)) }?;
    let name: Vec<u8> = name.iter().map(|&byte| byte as u8).collect();
    let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // SAFETY: `uuid` outlives the call.
    unsafe { call!(cuDeviceGetUuid_v2(&raw mut uuid, device)) }?;
    let mut memory = 0;
    // SAFETY: `memory` outlives the call.
    unsafe { call!(cuDeviceTotalMem_v2(&raw mut memory, device)) }?;
    let attribute = |attribute| attribute_of(device, attribute);
    Ok(CudaDeviceInfo {
        ordinal,
        name: name.to_string_lossy().into_owned(),
        uuid: uuid.bytes.map(|byte| byte as u8),
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory,
        max_shared_memory: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?,
        l2_cache: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
    })
}

fn attribute_of(device: CUdevice, attribute: Attribute) -> Result<c_uint> {
    let mut value = 0;
    // SAFETY: `value` outlives the call.
    unsafe { call!(cuDeviceGetAttribute(&raw mut value, attribute, device)) }?;
    Ok(c_uint::try_from(value).unwrap_or(0))
}
