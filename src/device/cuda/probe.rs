//! Whether CUDA can be used here.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::sync::OnceLock;

use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute as Attribute, CUresult};

use super::check::{call, is};
use super::driver;
use crate::error::{CudaUnavailable, Error, Result};

/// The CUDA version that the driver must offer: 12.4, of release 550. What kernels were compiled
/// with may need a newer one: see [`toolkit`](super::toolkit).
pub const NEEDED_VERSION: i32 = 12_040;

/// Names in a list, each of which cudarc has to declare: it leaves out what came after the version
/// in its feature, so that a newer function is not compiled.
macro_rules! declared_by_cudarc {
    ($($name:ident)*) => {
        &[$({
            let _ = sys::$name;
            stringify!($name)
        }),*]
    };
}

/// Every function that the driver must have, all of [`NEEDED_VERSION`]. (`cuTensorMapEncodeTiled` is
/// looked for by [`TensorMap::new`](super::TensorMap::new).)
pub const REQUIRED_SYMBOLS: &[&str] = declared_by_cudarc![
    cuInit
    cuDriverGetVersion
    cuDeviceGetCount
    cuDeviceGet
    cuDeviceGetName
    cuDeviceGetAttribute
    cuDeviceTotalMem_v2
    cuDeviceGetUuid_v2
    cuDevicePrimaryCtxRetain
    cuDevicePrimaryCtxRelease_v2
    cuCtxGetCurrent
    cuCtxSetCurrent
    cuCtxPushCurrent_v2
    cuCtxPopCurrent_v2
    cuCtxGetDevice
    cuCtxSynchronize
    cuGetErrorName
    cuGetErrorString
    cuMemAlloc_v2
    cuMemFree_v2
    cuMemHostAlloc
    cuMemFreeHost
    cuMemHostGetDevicePointer_v2
    cuMemcpyHtoDAsync_v2
    cuMemcpyDtoHAsync_v2
    cuMemcpyDtoDAsync_v2
    cuMemsetD8Async
    cuMemGetInfo_v2
    cuPointerGetAttribute
    cuStreamCreate
    cuStreamDestroy_v2
    cuStreamSynchronize
    cuStreamQuery
    cuStreamWaitEvent
    cuStreamGetCtx
    cuStreamIsCapturing
    cuStreamBeginCapture_v2
    cuStreamEndCapture
    cuThreadExchangeStreamCaptureMode
    cuGraphInstantiateWithFlags
    cuGraphLaunch
    cuGraphExecDestroy
    cuGraphDestroy
    cuEventCreate
    cuEventRecord
    cuEventQuery
    cuEventSynchronize
    cuEventElapsedTime
    cuEventDestroy_v2
    cuLibraryLoadData
    cuLibraryUnload
    cuLibraryGetKernel
    cuKernelSetAttribute
    cuKernelGetAttribute
    cuKernelGetFunction
    cuFuncLoad
    cuLaunchKernelEx
    cuOccupancyMaxActiveBlocksPerMultiprocessor
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

/// Whether the driver can be used, found out once: it never comes or goes while a process runs.
fn ready() -> Result<i32, CudaUnavailable> {
    static READY: OnceLock<Result<i32, CudaUnavailable>> = OnceLock::new();
    // What made it useless for the parent of a fork does so here.
    if let Some(Err(why)) = READY.get() {
        return Err(why.clone());
    }
    // A thread of the parent may be inside for ever.
    driver::claim()?;
    READY.get_or_init(start).clone()
}

fn start() -> Result<i32, CudaUnavailable> {
    let mut found = 0;
    // The version first: it is why an older driver lacks functions.
    // SAFETY: `found` outlives the call, which needs no initialised driver.
    unsafe { call!(cuDriverGetVersion(&raw mut found)) }.map_err(unavailable)?;
    if found < NEEDED_VERSION {
        return Err(CudaUnavailable::DriverTooOld { found, needed: NEEDED_VERSION });
    }
    for name in REQUIRED_SYMBOLS {
        driver::find(name)?;
    }
    // SAFETY: has no preconditions.
    unsafe { call!(cuInit(0)) }.map_err(unavailable)?;
    Ok(found)
}

fn unavailable(error: Error) -> CudaUnavailable {
    match error {
        error if is(&error, CUresult::CUDA_ERROR_NO_DEVICE) => CudaUnavailable::NoDevice,
        error if is(&error, CUresult::CUDA_ERROR_STUB_LIBRARY) => {
            CudaUnavailable::NoDriver { reason: error.to_string() }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_declared_as_of_the_version_needed() {
        assert_eq!(i32::try_from(sys::CUDA_VERSION), Ok(NEEDED_VERSION));
        let mut names = REQUIRED_SYMBOLS.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), REQUIRED_SYMBOLS.len());
    }
}
