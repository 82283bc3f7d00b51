//! Every operation on a GPU, or on the emulator that runs its kernels: the same calls as on a
//! processor, and what they give.

mod data;
mod devices;
mod graphs;
mod model;
mod ops;
mod refused;
mod workspace;

use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::device::*;
use super::super::ffi::Versioned;
use super::done;
use crate::device::cuda::{Cuda, CudaStream};
use crate::device::memory::Buffer;
use crate::device::{Device, DeviceBuffer};

/// A device, its memory, and the stream that calls are given.
struct On {
    device: *mut inflight_device,
    gpu: Option<Gpu>,
}

struct Gpu {
    cuda: Arc<Cuda>,
    stream: CudaStream,
    emulator: Option<&'static simt::Emulator>,
    /// What one test asks of the emulator others would see.
    _alone: MutexGuard<'static, ()>,
}

/// A processor and a GPU; `None` where there is no GPU and no emulator, which it says.
fn both() -> Option<[On; 2]> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let emulator = match simt::device(simt::Mode::asked(simt::Mode::Fast)) {
        Ok(emulator) => Some(emulator),
        Err(_) if simt::wants_real_driver() => None,
        Err(why) => {
            println!("skipped: {why}");
            return None;
        }
    };
    let cuda = Cuda::new(0).expect("a GPU");
    let stream = CudaStream::new(&cuda).expect("a stream");
    let config = inflight_cpu_config { threads: 2, ..inflight_cpu_config::initial() };
    let (mut cpu, mut gpu) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: all pointers are of this function.
    done(|e| unsafe { inflight_device_create_cpu(&raw const config, &raw mut cpu, e) });
    // SAFETY: all pointers are of this function.
    done(|e| unsafe { inflight_device_create_cuda(0, &raw mut gpu, e) });
    let parts = Gpu { cuda, stream, emulator, _alone: alone };
    Some([On { device: cpu, gpu: None }, On { device: gpu, gpu: Some(parts) }])
}

impl On {
    fn gpu(&self) -> &Gpu {
        self.gpu.as_ref().expect("this device is a GPU")
    }

    /// The stream for calls: NULL on a processor.
    fn stream(&self) -> *mut c_void {
        self.gpu.as_ref().map_or(ptr::null_mut(), |gpu| gpu.stream.handle())
    }

    /// Memory of the device with these bytes.
    fn memory(&self, bytes: &[u8]) -> Memory {
        self.made(bytes, Device::allocate)
    }

    /// Memory of the host with these bytes, which kernels of the device can use.
    fn host_memory(&self, bytes: &[u8]) -> Memory {
        self.made(bytes, Device::allocate_host)
    }

    fn made(
        &self,
        bytes: &[u8],
        allocate: fn(&Device, usize) -> crate::Result<DeviceBuffer>,
    ) -> Memory {
        let buffer = match &self.gpu {
            Some(gpu) => allocate(&Device::from(&gpu.cuda), bytes.len()),
            None => Buffer::zeroed(bytes.len()).map(DeviceBuffer::Host),
        };
        let memory = Memory(RefCell::new(buffer.expect("memory")), bytes.len());
        self.write(&memory, bytes);
        memory
    }

    /// Writes there, behind what is queued.
    fn write(&self, to: &Memory, bytes: &[u8]) {
        let stream = self.gpu.as_ref().map(|gpu| &gpu.stream);
        to.0.borrow_mut().write(stream, bytes).expect("written");
    }

    /// What is there, when all that was queued is done.
    fn read(&self, from: &Memory) -> Vec<u8> {
        let mut bytes = vec![0; from.1];
        let stream = self.gpu.as_ref().map(|gpu| &gpu.stream);
        from.0.borrow().read(stream, &mut bytes).expect("read");
        bytes
    }

    /// Kernels run so far, all that were queued among them; 0 on a real GPU, which does not say.
    fn launches(&self) -> u64 {
        self.gpu().stream.synchronize().expect("done");
        self.gpu().emulator.map_or(0, |emulator| emulator.stats().launches)
    }
}

impl Drop for On {
    fn drop(&mut self) {
        // SAFETY: made by `both`, and freed once.
        unsafe { inflight_device_free(self.device) };
    }
}

/// Memory that a device can use, and its bytes.
struct Memory(RefCell<DeviceBuffer>, usize);

impl Memory {
    /// Its address for the device.
    fn ptr(&self) -> *mut c_void {
        let address = self.0.borrow().address().expect("it is mapped");
        ptr::with_exposed_provenance_mut(address as usize)
    }
}
