//! The driver's functions as cudarc finds them, in few words.
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "calls of the driver in a row")]
#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod record;

use std::ffi::{CString, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys;
pub(crate) use cudarc::driver::sys::CUresult::{self, CUDA_SUCCESS};
pub(crate) use cudarc::driver::sys::CUtensorMapFloatOOBfill as OobFill;
use simt::{Emulator, Mode};

/// The device, held by one test at a time.
pub(crate) struct Gpu {
    pub(crate) emulator: Option<&'static Emulator>,
    pub(crate) library: sys::CUlibrary,
    _lock: MutexGuard<'static, ()>,
}

static LOCK: Mutex<()> = Mutex::new(());

/// A context made current; none where the emulator was not built (said on stderr).
///
/// # Panics
/// Where the process has opened the emulator in another mode: then some of its tests would run or not
/// by which is first.
pub(crate) fn gpu(mode: Mode) -> Option<Gpu> {
    let lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let emulator = match simt::device(mode) {
        Ok(emulator) => Some(emulator),
        Err(_) if simt::wants_real_driver() => None,
        Err(why) => {
            assert!(simt::opened().is_none(), "{why}");
            eprintln!("skipped: {why}");
            return None;
        }
    };
    if let Some(e) = emulator {
        e.reset();
    }
    let image = image();
    let mut context = std::ptr::null_mut();
    let mut library = std::ptr::null_mut();
    // SAFETY: every pointer is to a local that outlives its call.
    unsafe {
        ok(sys::cuInit(0));
        ok(sys::cuDevicePrimaryCtxRetain(&raw mut context, 0));
        ok(sys::cuCtxSetCurrent(context));
        ok(sys::cuLibraryLoadData(
            &raw mut library,
            image.as_ptr().cast(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            0,
        ));
    }
    Some(Gpu { emulator, library, _lock: lock })
}

/// The emulator has its kernels compiled in; a real driver needs what nvcc made of `kernels/`.
fn image() -> Vec<u8> {
    if simt::wants_real_driver() {
        let path = std::env::var("INFLIGHT_ARCH_IMAGE").expect("INFLIGHT_ARCH_IMAGE: a cubin");
        return std::fs::read(path).expect("the image can be read");
    }
    b"INFLIGHT-SIMT\0selftest\0".to_vec()
}

#[track_caller]
pub(crate) fn ok(result: CUresult) {
    assert_eq!(result, CUDA_SUCCESS);
}

/// Device memory holding `items`.
pub(crate) fn upload<T: Copy>(items: &[T]) -> u64 {
    let at = alloc(size_of_val(items));
    // SAFETY: the allocation holds as many bytes as the slice.
    ok(unsafe {
        sys::cuMemcpyHtoDAsync_v2(
            at,
            items.as_ptr().cast(),
            size_of_val(items),
            std::ptr::null_mut(),
        )
    });
    at
}

pub(crate) fn alloc(bytes: usize) -> u64 {
    let mut at = 0;
    // SAFETY: the pointer is to a local.
    ok(unsafe { sys::cuMemAlloc_v2(&raw mut at, bytes) });
    at
}

pub(crate) fn download<T: Copy + Default>(from: u64, n: usize) -> Vec<T> {
    let mut items = vec![T::default(); n];
    // SAFETY: the vector holds as many bytes.
    ok(unsafe {
        sys::cuMemcpyDtoHAsync_v2(
            items.as_mut_ptr().cast(),
            from,
            size_of_val(items.as_slice()),
            std::ptr::null_mut(),
        )
    });
    items
}

pub(crate) fn stream() -> sys::CUstream {
    let mut s = std::ptr::null_mut();
    // SAFETY: the pointer is to a local.
    ok(unsafe { sys::cuStreamCreate(&raw mut s, 1) });
    s
}

pub(crate) fn sync(s: sys::CUstream) -> CUresult {
    // SAFETY: a stream or null.
    unsafe { sys::cuStreamSynchronize(s) }
}

pub(crate) struct Launch<'a> {
    pub(crate) kernel: &'a str,
    pub(crate) grid: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) smem: u32,
    pub(crate) stream: sys::CUstream,
    /// With programmatic stream serialisation.
    pub(crate) dependent: bool,
}

impl Gpu {
    pub(crate) fn kernel(&self, name: &str) -> sys::CUkernel {
        let name = CString::new(name).unwrap();
        let mut kernel = std::ptr::null_mut();
        // SAFETY: the pointers are to locals.
        ok(unsafe { sys::cuLibraryGetKernel(&raw mut kernel, self.library, name.as_ptr()) });
        kernel
    }

    pub(crate) fn enqueue<P>(&self, launch: &Launch<'_>, params: &P) -> CUresult {
        let kernel = self.kernel(launch.kernel);
        let mut function = std::ptr::null_mut();
        // SAFETY: the pointers are to locals; params is the struct the kernel declares.
        unsafe {
            ok(sys::cuKernelGetFunction(&raw mut function, kernel));
            if launch.smem > 48 << 10 {
                ok(sys::cuKernelSetAttribute(
                    sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    launch.smem.cast_signed(),
                    kernel,
                    0,
                ));
            }
            let mut attribute = sys::CUlaunchAttribute {
                id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                pad: [0; 4],
                value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
            };
            let config = sys::CUlaunchConfig {
                gridDimX: launch.grid[0],
                gridDimY: launch.grid[1],
                gridDimZ: launch.grid[2],
                blockDimX: launch.threads,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: launch.smem,
                hStream: launch.stream,
                attrs: &raw mut attribute,
                numAttrs: u32::from(launch.dependent),
            };
            let mut pointers = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
            sys::cuLaunchKernelEx(
                &raw const config,
                function,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
    }

    /// Runs a kernel to its end on the default stream.
    pub(crate) fn run<P>(
        &self,
        kernel: &str,
        grid: [u32; 3],
        threads: u32,
        smem: u32,
        params: &P,
    ) -> CUresult {
        let stream = std::ptr::null_mut();
        let launch = Launch { kernel, grid, threads, smem, stream, dependent: false };
        match self.enqueue(&launch, params) {
            // SAFETY: no arguments that could be wrong.
            CUDA_SUCCESS => unsafe { sys::cuStreamSynchronize(std::ptr::null_mut()) },
            error => error,
        }
    }

    pub(crate) fn reports(&self) -> Vec<String> {
        self.emulator.map(Emulator::reports).unwrap_or_default()
    }
}

/// CUDA's 128 bytes of a tensor's place, extents and boxes.
#[repr(C, align(128))]
#[derive(Clone, Copy)]
pub(crate) struct TensorMap(pub(crate) [u64; 16]);

impl TensorMap {
    /// Of numbers of 16 bits, whose rows of a box are 128 bytes, swizzled by them.
    pub(crate) fn of_16_bits(base: u64, dim: [u64; 4], tile: [u32; 4]) -> Self {
        let mut map = Self([0; 16]);
        ok(map.encode(base, dim, tile, OobFill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
        map
    }

    /// As [`Self::of_16_bits`], with what there is outside of the tensor.
    pub(crate) fn encode(
        &mut self,
        base: u64,
        dim: [u64; 4],
        tile: [u32; 4],
        fill: OobFill,
    ) -> CUresult {
        let row = dim[0] * 2;
        let strides = [row, row * dim[1], row * dim[1] * dim[2]];
        let element_strides = [1_u32; 4];
        // SAFETY: arrays of the rank's length, a map of the size and alignment asked for.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                std::ptr::from_mut(self).cast(),
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                4,
                base as *mut _,
                dim.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                element_strides.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
                fill,
            )
        }
    }
}

/// Numbers in (-1, 1), the same every time.
pub(crate) struct Rng(pub(crate) u32);
impl Rng {
    pub(crate) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0
    }
    pub(crate) fn unit(&mut self) -> f32 {
        ((self.next() >> 9) % 2000) as f32 / 1000.0 - 1.0
    }
}

pub(crate) fn to_bf16(x: f32) -> u16 {
    let u = x.to_bits();
    ((u + 0x7fff + (u >> 16 & 1)) >> 16) as u16
}
pub(crate) fn from_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}
