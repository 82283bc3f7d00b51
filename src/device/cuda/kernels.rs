//! Kernels by name: loaded before they are needed, launched without a wait.

use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;
use cudarc::driver::sys::{
    CUfunction, CUfunction_attribute as Attribute, CUkernel, CUlaunchAttribute,
    CUlaunchAttributeID, CUlaunchAttributeValue, CUlaunchConfig, CUlibrary, CUresult,
};

use super::check::{call, is};
use super::context::Cuda;
use super::images::{self, Image};
use super::probe::{self, CudaDeviceInfo};
use super::stream::CudaStream;
use super::tensor_map::TensorMap;
use crate::error::{Error, Result};

/// The virtual architecture from which on `griddepcontrol` is there: see csrc/arch/cuda.cuh.
const FIRST_PTX_THAT_WAITS: u32 = 90;

/// The kernels of this build on a device.
#[derive(Clone, Debug)]
pub struct Kernels {
    cuda: Arc<Cuda>,
}

/// A kernel that is loaded and ready to be launched.
#[derive(Clone, Debug)]
pub struct Kernel {
    cuda: Arc<Cuda>,
    kernel: CUkernel,
    function: CUfunction,
    max_shared: u32,
    /// Whether the code that was loaded waits in `arch::wait_for_prior_kernel`.
    waits: bool,
}

// SAFETY: the driver's functions may be called from any thread; the handles are only read.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// Extent of a grid or a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dim {
    /// The one that neighbours differ in.
    pub x: u32,
    /// The next.
    pub y: u32,
    /// The last.
    pub z: u32,
}

impl From<u32> for Dim {
    fn from(x: u32) -> Self {
        Self { x, y: 1, z: 1 }
    }
}

impl From<(u32, u32)> for Dim {
    fn from((x, y): (u32, u32)) -> Self {
        Self { x, y, z: 1 }
    }
}

impl From<(u32, u32, u32)> for Dim {
    fn from((x, y, z): (u32, u32, u32)) -> Self {
        Self { x, y, z }
    }
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks.
    pub grid: Dim,
    /// Threads a block.
    pub block: Dim,
    /// Bytes of dynamic shared memory a block; at most what the kernel was prepared for.
    pub shared: u32,
    /// Whether it may begin while the kernel before it in the stream still runs: see
    /// [`Launch::dependent`].
    pub dependent: bool,
}

impl Launch {
    /// A launch that waits for what is before it in the stream.
    pub fn new(grid: impl Into<Dim>, block: impl Into<Dim>, shared: u32) -> Self {
        Self { grid: grid.into(), block: block.into(), shared, dependent: false }
    }

    /// The same as a dependent launch (programmatic stream serialisation). It may begin before the
    /// kernel before it in the stream is done, and waits for that one in itself, by
    /// `arch::wait_for_prior_kernel` of csrc/arch. The kernel keeps to this:
    ///
    /// * before the wait it loads nothing but the header, plans and tables of a step buffer, which is
    ///   written by copies and by no kernel (a copy is waited for in any case);
    /// * it stores nothing, and carries out no atomic, before the wait;
    /// * every block waits, on every way out, blocks without work too: a kernel all of whose blocks
    ///   end without is done before the kernel before it, and the next one waits for this one alone.
    ///
    /// Like any other launch where the code that was loaded has no such wait: that made from PTX
    /// before 9.0, on any device.
    #[must_use]
    pub fn dependent(self) -> Self {
        Self { dependent: true, ..self }
    }
}

impl Kernels {
    /// Those for this device. Nothing is loaded yet.
    #[must_use]
    pub fn new(cuda: &Arc<Cuda>) -> Self {
        Self { cuda: Arc::clone(cuda) }
    }

    /// Their device.
    #[must_use]
    pub fn cuda(&self) -> &Arc<Cuda> {
        &self.cuda
    }

    /// Loads the kernel `name` of the file `family.cu`, with up to `shared` bytes of dynamic shared
    /// memory. Takes milliseconds the first time, and seconds where PTX must be compiled.
    ///
    /// # Errors
    /// [`Error::NoKernelImage`] where this build has none for the device,
    /// [`Error::InvalidArgument`] naming `kernel`, `shared`, or the `head_dim` that was left out of the
    /// build; and what the driver refuses.
    pub fn prepare(&self, family: &str, name: &CStr, shared: u32) -> Result<Kernel> {
        let unknown = || {
            let reason = format!("`{}` of `{family}` is not in this build", name.to_string_lossy());
            Error::argument("kernel", reason)
        };
        let missing = || images::left_out(family).unwrap_or_else(unknown);
        let image = images::find(family).ok_or_else(missing)?;
        let _current = self.cuda.enter()?;
        let build = Build {
            is_stub: image.is_stub(),
            toolkit: images::toolkit(),
            driver: probe::driver_version().map_err(Error::NoCuda)?,
        };
        let no_image = |error| build.refused(error, self.cuda.info());
        let library = library(image).map_err(no_image)?;
        let mut kernel = ptr::null_mut();
        // SAFETY: libraries are never unloaded; the name has a terminator.
        let found = unsafe { call!(cuLibraryGetKernel(&raw mut kernel, library, name.as_ptr())) };
        found.map_err(|error| {
            let is_unknown = is(&error, CUresult::CUDA_ERROR_NOT_FOUND) && !build.is_outdated();
            if is_unknown { unknown() } else { no_image(error) }
        })?;
        let mut function = ptr::null_mut();
        // SAFETY: the kernel is the library's, and `function` outlives the call.
        unsafe { call!(cuKernelGetFunction(&raw mut function, kernel)) }.map_err(no_image)?;
        // Else drivers may load it when it is first launched, which a capture does not allow.
        // SAFETY: the function is of the current context.
        unsafe { call!(cuFuncLoad(function)) }.map_err(no_image)?;
        let cuda = Arc::clone(&self.cuda);
        let mut kernel = Kernel { cuda, kernel, function, max_shared: shared, waits: false };
        kernel.allow_shared()?;
        // By the code and not by the device: what the driver compiles from PTX of 8.0 does not wait
        // on any.
        kernel.waits =
            kernel.attribute(Attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION)? >= FIRST_PTX_THAT_WAITS;
        Ok(kernel)
    }
}

/// What decides whether a driver takes an image.
struct Build {
    is_stub: bool,
    toolkit: Option<i32>,
    driver: i32,
}

impl Build {
    fn is_outdated(&self) -> bool {
        images::outdated(self.toolkit, self.driver, false).is_some()
    }

    /// The error of a driver that does not take the image, and what to do about it; or of one that
    /// fails for another reason, as it is.
    fn refused(&self, error: Error, device: &CudaDeviceInfo) -> Error {
        // What a kernel has done before is not for want of an image.
        if matches!(&error, Error::Cuda(error) if error.sticky) {
            return error;
        }
        let any = |codes: &[CUresult]| codes.iter().any(|&code| is(&error, code));
        let is_ptx = any(&[CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION]);
        let none = is_ptx
            || any(&[
                CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU,
                CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND,
            ]);
        // What code of a newer major version looks like to a driver, at once or when a kernel of it is
        // looked for.
        let unknown = any(&[
            CUresult::CUDA_ERROR_INVALID_IMAGE,
            CUresult::CUDA_ERROR_INVALID_PTX,
            CUresult::CUDA_ERROR_NOT_FOUND,
        ]);
        let outdated = images::outdated(self.toolkit, self.driver, is_ptx);
        if self.is_stub || none || unknown && outdated.is_some() {
            let built = images::architectures();
            return Error::NoKernelImage { device: device.sm(), built, outdated };
        }
        error
    }
}

/// The loaded image: once a process, whatever the device.
fn library(image: &'static Image) -> Result<CUlibrary> {
    struct Loaded(CUlibrary);
    // SAFETY: the handle is only read, by functions that may be called from any thread.
    unsafe impl Send for Loaded {}
    static LOADED: Mutex<Option<HashMap<&'static str, Loaded>>> = Mutex::new(None);

    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let loaded = loaded.get_or_insert_default();
    if let Some(Loaded(library)) = loaded.get(image.family) {
        return Ok(*library);
    }
    let mut library = ptr::null_mut();
    let code = image.bytes.as_ptr().cast();
    // SAFETY: a stub is a string with a terminator, another image states its own length; there are
    // no options.
    unsafe {
        call!(cuLibraryLoadData(
            &raw mut library,
            code,
            ptr::null_mut(),
            ptr::null_mut(),
            0,
            ptr::null_mut(),
            ptr::null_mut(),
            0,
        ))
    }?;
    loaded.insert(image.family, Loaded(library));
    Ok(library)
}

impl Kernel {
    /// Lets blocks have the dynamic shared memory that it is prepared for.
    fn allow_shared(&self) -> Result<()> {
        let room = self.cuda.info().max_shared_memory;
        let fixed = self.attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        if self.max_shared.saturating_add(fixed) > room {
            let wanted = self.max_shared;
            let reason = format!("{wanted} bytes per block: this device has at most {room}");
            return Err(Error::argument("shared", reason));
        }
        // Never lowered: the same kernel may have been prepared for more elsewhere.
        let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        if self.attribute(attribute)? < self.max_shared {
            self.set_attribute(attribute, self.max_shared as i32)?;
        }
        if self.max_shared == 0 {
            return Ok(());
        }
        // As much of L1 as can be: plans count on as many blocks per multiprocessor as that has room
        // for.
        self.set_attribute(Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100)
    }

    fn set_attribute(&self, attribute: Attribute, value: i32) -> Result<()> {
        let device = self.cuda.raw_device();
        // SAFETY: the kernel and the device live.
        unsafe { call!(cuKernelSetAttribute(attribute, value, self.kernel, device)) }
    }

    fn attribute(&self, attribute: Attribute) -> Result<u32> {
        let mut value = 0;
        let (at, device) = (&raw mut value, self.cuda.raw_device());
        // SAFETY: the kernel and the device live, and `value` outlives the call.
        unsafe { call!(cuKernelGetAttribute(at, attribute, self.kernel, device)) }?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    /// Registers that a thread uses.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn registers(&self) -> Result<u32> {
        self.attribute(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)
    }

    /// Blocks of so many threads and bytes of dynamic shared memory that a multiprocessor runs at
    /// once.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn blocks_per_multiprocessor(&self, threads: u32, shared: u32) -> Result<u32> {
        let _current = self.cuda.enter()?;
        let mut blocks = 0;
        let (at, threads) = (&raw mut blocks, threads as i32);
        let (function, shared) = (self.function, shared as usize);
        // SAFETY: the function is of the current context, and `blocks` outlives the call.
        unsafe {
            call!(cuOccupancyMaxActiveBlocksPerMultiprocessor(at, function, threads, shared))
        }?;
        Ok(u32::try_from(blocks).unwrap_or(0))
    }

    /// Queues a launch with `params`, and after them a parameter for each of up to four `maps`.
    /// Both are copied by the call.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `stream`, `shared` or `maps`, and what the driver refuses.
    ///
    /// # Safety
    /// * `P` and the maps are the kernel's parameters.
    /// * What the kernel does with the memory they name is sound until it is done.
    pub unsafe fn launch<P: Pod>(
        &self,
        stream: &CudaStream,
        launch: &Launch,
        params: &P,
        maps: &[TensorMap],
    ) -> Result<()> {
        if !Arc::ptr_eq(&self.cuda, stream.cuda())
            && self.cuda.raw_context() != stream.cuda().raw_context()
        {
            return Err(Error::argument("stream", "is one of another device than the kernel"));
        }
        if launch.shared > self.max_shared {
            let (wanted, most) = (launch.shared, self.max_shared);
            let reason = format!("{wanted} bytes, and the kernel was prepared for {most}");
            return Err(Error::argument("shared", reason));
        }
        let mut arguments = [ptr::null_mut::<c_void>(); 5];
        if maps.len() >= arguments.len() {
            return Err(Error::argument("maps", "there are more than 4"));
        }
        // The driver takes pointers to mutable parameters, and only reads them.
        arguments[0] = ptr::from_ref(params).cast_mut().cast();
        for (argument, map) in arguments[1..].iter_mut().zip(maps) {
            *argument = ptr::from_ref(map).cast_mut().cast();
        }
        let mut attribute = dependent_launch();
        let config = CUlaunchConfig {
            gridDimX: launch.grid.x,
            gridDimY: launch.grid.y,
            gridDimZ: launch.grid.z,
            blockDimX: launch.block.x,
            blockDimY: launch.block.y,
            blockDimZ: launch.block.z,
            sharedMemBytes: launch.shared,
            hStream: stream.raw(),
            attrs: &raw mut attribute,
            // What never waits must not begin before the kernel before it is done.
            numAttrs: u32::from(launch.dependent && self.waits),
        };
        let _current = self.cuda.enter()?;
        let (function, arguments) = (self.function, arguments.as_mut_ptr());
        // SAFETY: the function is of the stream's context; the caller answers for the parameters,
        // which the driver copies.
        unsafe { call!(cuLaunchKernelEx(&raw const config, function, arguments, ptr::null_mut())) }
    }
}

fn dependent_launch() -> CUlaunchAttribute {
    CUlaunchAttribute {
        id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{CudaError, OutdatedDriver};

    /// What is said of a device with this driver whose images are of this toolkit.
    fn said(toolkit: Option<i32>, driver: i32, code: CUresult) -> Error {
        let device = CudaDeviceInfo {
            ordinal: 0,
            name: String::new(),
            uuid: [0; 16],
            compute_capability: (9, 0),
            multiprocessors: 1,
            memory: 0,
            max_shared_memory: 0,
            l2_cache: 0,
        };
        let error = CudaError {
            call: "cuLibraryLoadData",
            code: code as u32,
            name: String::new(),
            meaning: String::new(),
            sticky: code == CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
        };
        let build = Build { is_stub: toolkit.is_none(), toolkit, driver };
        build.refused(Error::Cuda(error), &device)
    }

    #[test]
    fn a_driver_is_told_from_a_device_that_images_are_not_for() {
        use CUresult::*;
        let built = images::architectures();
        let none = |outdated| Error::NoKernelImage { device: "sm_90".to_owned(), built, outdated };
        let old = |toolkit, needed, found| none(Some(OutdatedDriver { toolkit, needed, found }));
        let refusals = [
            CUDA_ERROR_INVALID_IMAGE,
            CUDA_ERROR_NO_BINARY_FOR_GPU,
            CUDA_ERROR_INVALID_PTX,
            CUDA_ERROR_NOT_FOUND,
        ];
        for code in refusals {
            assert_eq!(said(Some(13_000), 12_040, code), old(13_000, 13_000, 12_040), "{code:?}");
        }
        let ptx = CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
        assert_eq!(said(Some(13_010), 12_080, ptx), old(13_010, 13_010, 12_080));
        assert_eq!(said(Some(12_080), 12_040, ptx), old(12_080, 12_080, 12_040));
        // New enough: it is the device's.
        for toolkit in [12_040, 13_000] {
            let binary = CUDA_ERROR_NO_BINARY_FOR_GPU;
            assert_eq!(said(Some(toolkit), 13_000, binary), none(None));
            for code in [CUDA_ERROR_INVALID_IMAGE, CUDA_ERROR_INVALID_PTX] {
                let error = said(Some(toolkit), 13_000, code);
                assert!(matches!(&error, Error::Cuda(error) if error.code == code as u32));
            }
        }
        // A stub says nothing of a toolkit.
        assert_eq!(said(None, 12_040, CUDA_ERROR_INVALID_IMAGE), none(None));
        // Neither image nor driver is why.
        for toolkit in [None, Some(13_000)] {
            let lost = said(toolkit, 12_040, CUDA_ERROR_ILLEGAL_ADDRESS);
            assert!(matches!(&lost, Error::Cuda(error) if error.sticky), "{lost}");
        }
        let full = said(Some(13_000), 12_040, CUDA_ERROR_OUT_OF_MEMORY);
        assert!(matches!(&full, Error::Cuda(error) if error.code == 2), "{full}");
    }
}
