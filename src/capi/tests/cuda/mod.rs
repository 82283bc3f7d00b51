//! Every operation on a GPU, or on the emulator that runs its kernels: the same calls as on a
//! processor, and what they give.

mod data;
mod devices;
mod graphs;
mod model;
mod ops;
mod refused;
mod workspace;

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::device::*;
use super::super::guard::Versioned;
use super::done;
use crate::device::cuda::{Cuda, CudaBuffer, CudaStream, PinnedBuffer};

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
        let memory = match &self.gpu {
            Some(gpu) => Memory::Gpu(CudaBuffer::new(&gpu.cuda, bytes.len()).expect("memory")),
            None => Memory::host(bytes.len()),
        };
        self.write(&memory, bytes);
        memory
    }

    /// Memory of the host with these bytes, which kernels of the device can use.
    fn host_memory(&self, bytes: &[u8]) -> Memory {
        let Some(gpu) = &self.gpu else { return self.memory(bytes) };
        let mut pinned = PinnedBuffer::new(&gpu.cuda, bytes.len()).expect("memory");
        pinned.copy_from_slice(bytes);
        Memory::Pinned(pinned)
    }

    /// Writes there, behind what is queued.
    fn write(&self, to: &Memory, bytes: &[u8]) {
        match to {
            Memory::Gpu(buffer) => self.gpu().stream.write(buffer, 0, bytes).expect("written"),
            Memory::Pinned(_) => unreachable!("it is written when it is made"),
            Memory::Host(words, len) => {
                assert!(bytes.len() <= *len);
                let start = UnsafeCell::raw_get(words.as_ptr()).cast();
                // SAFETY: it has so many bytes, and nobody has a reference to them.
                unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len()) };
            }
        }
    }

    /// What is there, when all that was queued is done.
    fn read(&self, from: &Memory) -> Vec<u8> {
        match from {
            Memory::Gpu(buffer) => {
                let mut bytes = vec![0; buffer.len()];
                self.gpu().stream.read(&mut bytes, buffer, 0).expect("read");
                bytes
            }
            Memory::Pinned(pinned) => {
                self.gpu().stream.synchronize().expect("done");
                pinned.to_vec()
            }
            Memory::Host(words, len) => {
                let start = UnsafeCell::raw_get(words.as_ptr()).cast::<u8>();
                // SAFETY: it has so many bytes, all written, and calls are done when they return.
                unsafe { std::slice::from_raw_parts(start, *len) }.to_vec()
            }
        }
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

/// Memory that a device can use, at a multiple of 16 bytes.
enum Memory {
    Host(Box<[UnsafeCell<u128>]>, usize),
    Gpu(CudaBuffer),
    Pinned(PinnedBuffer),
}

impl Memory {
    fn host(len: usize) -> Self {
        Self::Host((0..len.div_ceil(16)).map(|_| UnsafeCell::new(0)).collect(), len)
    }

    /// Its address for the device.
    fn ptr(&self) -> *mut c_void {
        match self {
            Self::Host(words, _) => UnsafeCell::raw_get(words.as_ptr()).cast(),
            Self::Gpu(buffer) => ptr::without_provenance_mut(buffer.address() as usize),
            Self::Pinned(pinned) => {
                let address = pinned.device_address().expect("it is mapped");
                ptr::without_provenance_mut(address as usize)
            }
        }
    }
}
