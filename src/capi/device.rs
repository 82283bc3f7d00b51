//! Devices: this machine's processor, and GPUs.

use std::ffi::{c_char, c_void};

use super::ffi::{
    Handle, Result, Versioned, array, at_most, call, create, free, output, read, shared, text,
    versioned, write,
};
use super::status::{Failure, inflight_error, inflight_status};
use crate::device::cpu::{Cpu, CpuConfig, Isa};
use crate::device::{Device, Queue};
use crate::error::Error;
use crate::kernels::Backend;

/// The processor. Pointers given with it are to memory of the process, streams are NULL, and calls
/// return when their work is done.
pub const INFLIGHT_DEVICE_CPU: u32 = 1;
/// A GPU, through the CUDA driver. Pointers given with it are to memory that it can reach, streams
/// are `CUstream` or `cudaStream_t` (NULL is the default one), and calls queue their work.
pub const INFLIGHT_DEVICE_CUDA: u32 = 2;

/// The best instructions that this processor has.
pub const INFLIGHT_ISA_BEST: u32 = 0;
/// AVX-512 F, BW, DQ, VL and BF16.
pub const INFLIGHT_ISA_AVX512_BF16: u32 = 1;
/// AVX-512 F, BW, DQ and VL.
pub const INFLIGHT_ISA_AVX512: u32 = 2;
/// AVX2, FMA and F16C.
pub const INFLIGHT_ISA_AVX2: u32 = 3;
/// NEON.
pub const INFLIGHT_ISA_NEON: u32 = 4;
/// No instructions but those that every processor has.
pub const INFLIGHT_ISA_PORTABLE: u32 = 5;
/// The same with the algorithm of `INFLIGHT_ISA_AVX512_BF16`, for tests.
pub const INFLIGHT_ISA_PORTABLE_BF16: u32 = 6;

const ISAS: [(u32, Isa); 6] = [
    (INFLIGHT_ISA_AVX512_BF16, Isa::Avx512Bf16),
    (INFLIGHT_ISA_AVX512, Isa::Avx512),
    (INFLIGHT_ISA_AVX2, Isa::Avx2),
    (INFLIGHT_ISA_NEON, Isa::Neon),
    (INFLIGHT_ISA_PORTABLE, Isa::Portable),
    (INFLIGHT_ISA_PORTABLE_BF16, Isa::PortableBf16),
];

/// How many threads kernels have, where, and with which instructions.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_cpu_config {
    /// `sizeof(inflight_cpu_config)`.
    pub struct_size: usize,
    /// Cores to pin the threads to, one each, in order; NULL leaves them to the system. Linux only.
    pub cores: *const u32,
    /// Elements of `cores`, at most 1024.
    pub num_cores: usize,
    /// Threads, at most 1024; 0 (the default) for one per core in `cores`, or a core that this process
    /// may use.
    pub threads: u32,
    /// `INFLIGHT_ISA_*`.
    pub isa: u32,
}

versioned! {
    inflight_cpu_config_init(config: inflight_cpu_config ..= isa) {
        isa: INFLIGHT_ISA_BEST,
    }
}

/// A device that kernels run on. What is made for it keeps what it needs of it: it may be freed
/// first.
pub struct inflight_device {
    backend: Backend,
}

impl Handle for inflight_device {}

/// The backend of a device.
///
/// # Safety
/// `device` is NULL or one that lives.
pub(super) unsafe fn backend(device: *const inflight_device) -> Result<Backend> {
    // SAFETY: as the caller promises.
    Ok(unsafe { shared("device", device) }?.backend.clone())
}

/// The caller's stream; none on a processor.
///
/// # Safety
/// `stream` is NULL, or a stream that lives.
pub(super) unsafe fn stream_of(device: &Device, stream: *mut c_void) -> Result<Option<Queue>> {
    match device {
        // Work that is meant to be behind other work would not be.
        Device::Cpu(_) if stream.is_null() => Ok(None),
        Device::Cpu(_) => Err(Failure::argument("stream", "a processor has no streams: pass NULL")),
        #[cfg(feature = "cuda-driver")]
        // SAFETY: as the caller promises.
        Device::Cuda(cuda) => Ok(Some(unsafe { Queue::borrowed(cuda, stream) }?)),
    }
}

/// The processor, with threads of its own that sleep between calls. `config` may be NULL.
///
/// Outputs: `*out`, to be freed with `inflight_device_free`; NULL on failure.
/// Fails: INVALID_ARGUMENT naming `threads`, `cores`, `num_cores` or `isa`; STRUCT_SIZE; DEVICE when
/// threads cannot be started.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_device_create_cpu(
    config: *const inflight_cpu_config,
    out: *mut *mut inflight_device,
    error: *mut inflight_error,
) -> inflight_status {
    let make = || {
        let config = match config.is_null() {
            true => inflight_cpu_config::initial(),
            // SAFETY: a config of the caller's.
            false => unsafe { read("config", config) }?,
        };
        at_most("num_cores", config.num_cores as u64, 1024)?;
        // SAFETY: NULL or of so many cores.
        let cores = unsafe { array("cores", config.cores, config.num_cores) }?;
        let named = ISAS.iter().find(|&&(number, _)| number == config.isa);
        let isa = match (config.isa, named) {
            (INFLIGHT_ISA_BEST, _) => None,
            (_, Some(&(_, isa))) => Some(isa),
            (other, None) => {
                return Err(Failure::argument("isa", format!("{other} is not an INFLIGHT_ISA_*")));
            }
        };
        let cpu = Cpu::new(&CpuConfig {
            threads: (config.threads != 0).then_some(config.threads as usize),
            cores: (!cores.is_empty()).then(|| cores.iter().map(|&core| core as usize).collect()),
            isa,
        })?;
        Ok(inflight_device { backend: Backend::new(&cpu) })
    };
    // SAFETY: `out` and `error` are NULL or the caller's to be written.
    unsafe { create("out", out, error, make) }
}

/// How many GPUs the CUDA driver finds.
///
/// Outputs: `*count`, at least 1.
/// Fails: NO_CUDA saying why there is none; INVALID_ARGUMENT.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cuda_device_count(
    count: *mut u32,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or the caller's to be written.
        let count = unsafe { output("count", count) }?;
        count.write(cuda_devices()? as u32);
        Ok(())
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

#[cfg(feature = "cuda-driver")]
fn cuda_devices() -> Result<usize> {
    Ok(crate::device::cuda::probe().map_err(Error::NoCuda)?.len())
}

#[cfg(not(feature = "cuda-driver"))]
fn cuda_devices() -> Result<usize> {
    Err(Error::NoCuda(crate::error::CudaUnavailable::NotBuilt).into())
}

/// GPU `ordinal`, as the driver counts them, with its primary context: the one that the CUDA runtime
/// of the same process uses. No call changes the caller's current context.
///
/// Outputs: `*out`, to be freed with `inflight_device_free`; NULL on failure.
/// Fails: NO_CUDA where CUDA cannot be used, or this build has no support for it; INVALID_ARGUMENT
/// naming `device` where there are fewer; CUDA.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_device_create_cuda(
    ordinal: u32,
    out: *mut *mut inflight_device,
    error: *mut inflight_error,
) -> inflight_status {
    let make = || Ok(inflight_device { backend: Backend::new(cuda(ordinal)?) });
    // SAFETY: `out` and `error` are NULL or the caller's to be written.
    unsafe { create("out", out, error, make) }
}

#[cfg(feature = "cuda-driver")]
fn cuda(ordinal: u32) -> Result<Device> {
    Ok(Device::Cuda(crate::device::cuda::Cuda::new(ordinal as usize)?))
}

#[cfg(not(feature = "cuda-driver"))]
fn cuda(_ordinal: u32) -> Result<Device> {
    Err(Error::NoCuda(crate::error::CudaUnavailable::NotBuilt).into())
}

/// Frees a device. NULL does nothing. What was made for it stays usable. The threads of a processor
/// have ended when the last of device, attentions, step buffers and block movers that use them has
/// been freed: the library may be unloaded then, and not before.
///
/// Threads: any, while no other call uses it. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_device_free(device: *mut inflight_device) {
    // SAFETY: NULL, or from a `create` and not used any more.
    unsafe { free(device) }
}

/// Bytes of `inflight_device_info.name`, terminator included.
pub const INFLIGHT_DEVICE_NAME_SIZE: usize = 256;

/// What a device is.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_device_info {
    /// `sizeof(inflight_device_info)`.
    pub struct_size: usize,
    /// Bytes of its memory; 0 of a processor.
    pub memory: u64,
    /// Its name, UTF-8; of a processor the instructions that are used, "avx512-bf16".
    pub name: [c_char; INFLIGHT_DEVICE_NAME_SIZE],
    /// The number that a GPU keeps in whatever order; zeros of a processor.
    pub uuid: [u8; 16],
    /// `INFLIGHT_DEVICE_*`.
    pub kind: u32,
    /// Number of a GPU, as the driver counts; 0 of a processor.
    pub ordinal: u32,
    /// Compute capability of a GPU, "8" of 8.6; 0 of a processor.
    pub compute_capability_major: u32,
    /// "6" of 8.6.
    pub compute_capability_minor: u32,
    /// Streaming multiprocessors of a GPU; 0 of a processor.
    pub multiprocessors: u32,
    /// Threads of a processor; 0 of a GPU.
    pub threads: u32,
    /// `INFLIGHT_ISA_*` of a processor; 0 of a GPU.
    pub isa: u32,
    /// 0.
    pub reserved: u32,
}

versioned! {
    inflight_device_info_init(info: inflight_device_info ..= reserved) {}
}

/// Says what a device is.
///
/// Outputs: `*info`, prepared with `inflight_device_info_init`.
/// Fails: INVALID_ARGUMENT, STRUCT_SIZE.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_device_get_info(
    device: *const inflight_device,
    info: *mut inflight_device_info,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a device that lives.
        let found = info_of(unsafe { backend(device) }?.device());
        // SAFETY: NULL or the caller's to be written.
        unsafe { write("info", info, found) }
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

fn info_of(device: &Device) -> inflight_device_info {
    let mut info = inflight_device_info::initial();
    match device {
        Device::Cpu(cpu) => {
            let isa = ISAS.iter().find(|(_, isa)| *isa == cpu.isa());
            info.kind = INFLIGHT_DEVICE_CPU;
            info.isa = isa.map_or(INFLIGHT_ISA_BEST, |&(number, _)| number);
            info.threads = cpu.threads() as u32;
            text(&mut info.name, cpu.isa().name());
        }
        #[cfg(feature = "cuda-driver")]
        Device::Cuda(cuda) => {
            let of = cuda.info();
            info.kind = INFLIGHT_DEVICE_CUDA;
            info.memory = of.memory as u64;
            info.uuid = of.uuid;
            info.ordinal = of.ordinal as u32;
            (info.compute_capability_major, info.compute_capability_minor) = of.compute_capability;
            info.multiprocessors = of.multiprocessors;
            text(&mut info.name, &of.name);
        }
    }
    info
}

/// Checks that kernels of the device can use an address, as far as that can be said: on a GPU that
/// the driver knows it, and that it is not another's. It takes microseconds: for looking for
/// mistakes, not for every call.
///
/// Fails: INVALID_ARGUMENT naming `pointer`; CUDA.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_device_check_pointer(
    device: *const inflight_device,
    pointer: *const c_void,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a device that lives.
        match unsafe { backend(device) }?.device() {
            Device::Cpu(_) if pointer.is_null() => Err(Failure::argument("pointer", "is NULL")),
            Device::Cpu(_) => Ok(()),
            #[cfg(feature = "cuda-driver")]
            Device::Cuda(cuda) => {
                let address = pointer.addr() as u64;
                Ok(crate::device::cuda::check_pointer(cuda, "pointer", address)?)
            }
        }
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}
