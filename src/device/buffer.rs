//! Memory that kernels of a device can use, whichever device it is.

#[cfg(feature = "cuda-driver")]
use super::cuda::{CudaBuffer, PinnedBuffer};
use super::memory::Buffer;
#[cfg(feature = "cuda-driver")]
use super::queue;
use super::{Device, Stream};
use crate::error::{Error, Result};

/// Memory of a device, or of the host for a device. It starts at a multiple of 16 bytes.
#[derive(Debug)]
pub enum DeviceBuffer {
    /// Of the process, zero at first.
    Host(Buffer),
    /// Of a GPU. It holds anything at first; freeing waits for the device's work.
    #[cfg(feature = "cuda-driver")]
    Cuda(CudaBuffer),
    /// Of the process, page-locked, so that a GPU reaches it.
    #[cfg(feature = "cuda-driver")]
    Pinned(PinnedBuffer),
}

impl Device {
    /// Allocates `len` bytes of the device's memory.
    ///
    /// # Errors
    /// [`Error::Device`],
    /// [`Error::OutOfDeviceMemory`], and what the driver refuses.
    pub fn allocate(&self, len: usize) -> Result<DeviceBuffer> {
        match self {
            Self::Cpu(_) => Ok(DeviceBuffer::Host(Buffer::zeroed(len)?)),
            // Nothing has an address, too: kernels are given it, and do not follow it.
            #[cfg(feature = "cuda-driver")]
            Self::Cuda(cuda) => Ok(DeviceBuffer::Cuda(CudaBuffer::new(cuda, len.max(16))?)),
        }
    }

    /// Allocates `len` bytes of the host's memory that the device can reach: where blocks are swapped
    /// to.
    ///
    /// # Errors
    /// [`Error::Device`], and what the driver refuses.
    pub fn allocate_host(&self, len: usize) -> Result<DeviceBuffer> {
        match self {
            Self::Cpu(_) => Ok(DeviceBuffer::Host(Buffer::zeroed(len)?)),
            #[cfg(feature = "cuda-driver")]
            Self::Cuda(cuda) => Ok(DeviceBuffer::Pinned(PinnedBuffer::new(cuda, len.max(16))?)),
        }
    }
}

impl DeviceBuffer {
    /// Its address on the device.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn address(&self) -> Result<u64> {
        match self {
            Self::Host(buffer) => Ok(buffer.expose_address()),
            #[cfg(feature = "cuda-driver")]
            Self::Cuda(buffer) => Ok(buffer.address()),
            #[cfg(feature = "cuda-driver")]
            Self::Pinned(buffer) => buffer.device_address(),
        }
    }

    /// Writes its first bytes, after what is queued, and waits.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `stream`, or where they do not fit; what the driver refuses.
    #[cfg_attr(not(feature = "cuda-driver"), allow(unused_variables, reason = "no memory has one"))]
    pub fn write(&mut self, stream: Stream<'_>, bytes: &[u8]) -> Result<()> {
        let to: &mut [u8] = match self {
            Self::Host(buffer) => buffer,
            #[cfg(feature = "cuda-driver")]
            Self::Cuda(buffer) => return queue(stream)?.write(buffer, 0, bytes),
            #[cfg(feature = "cuda-driver")]
            Self::Pinned(buffer) => {
                queue(stream)?.synchronize()?;
                buffer
            }
        };
        to.get_mut(..bytes.len()).ok_or_else(too_many)?.copy_from_slice(bytes);
        Ok(())
    }

    /// Reads its first bytes, after what is queued, and waits.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    #[cfg_attr(not(feature = "cuda-driver"), allow(unused_variables, reason = "no memory has one"))]
    pub fn read(&self, stream: Stream<'_>, to: &mut [u8]) -> Result<()> {
        let from: &[u8] = match self {
            Self::Host(buffer) => buffer,
            #[cfg(feature = "cuda-driver")]
            Self::Cuda(buffer) => return queue(stream)?.read(to, buffer, 0),
            #[cfg(feature = "cuda-driver")]
            Self::Pinned(buffer) => {
                queue(stream)?.synchronize()?;
                buffer
            }
        };
        to.copy_from_slice(from.get(..to.len()).ok_or_else(too_many)?);
        Ok(())
    }
}

fn too_many() -> Error {
    Error::argument("buffer", "has too few bytes")
}
