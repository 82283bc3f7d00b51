//! The library's kernels as operations on candle's tensors.
//!
//! Queries, keys and values of a step are one tensor `[tokens, q_dim + 2 kv_dim]`, as the product
//! gives them: kernels take any strides.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp1, DType as Numbers, Error, InplaceOp1, Layout, Result, Shape,
};
use half::{bf16, f16};
use inflight::kernels::DeviceTensor;
use inflight::kernels::tensor::{DType, Shape as Tokens};

use super::gpu::Gpu;
use crate::gguf;
use crate::runner::paged::Paged;

/// A layer of a step.
pub(super) struct Layer<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) shape: &'a gguf::Shape,
    pub(super) paged: &'a Paged,
    /// Its number.
    pub(super) nth: usize,
    /// Of queries, keys, values and outputs: f16 or bf16.
    pub(super) dtype: DType,
    /// Tokens of the step; tensors may have more.
    pub(super) tokens: usize,
}

/// Rotates queries and keys, and writes keys and values to the cache.
pub(super) struct RotateAndAppend<'a> {
    pub(super) with: &'a Layer<'a>,
}

/// Attends to all that each token sees: `[tokens, q_dim]`.
pub(super) struct Attend<'a> {
    pub(super) with: &'a Layer<'a>,
}

impl Layer<'_> {
    /// Candle's name of its type.
    pub(super) fn candle_dtype(&self) -> Numbers {
        match self.dtype {
            DType::Bf16 => Numbers::BF16,
            _ => Numbers::F16,
        }
    }

    /// Elements of a token.
    fn width(&self) -> usize {
        self.shape.q_dim() + 2 * self.shape.kv_dim()
    }

    /// The element at which a tensor of a step's queries, keys and values begins.
    fn start(&self, layout: &Layout) -> Result<usize> {
        let (tokens, width) = layout.shape().dims2()?;
        match layout.contiguous_offsets() {
            Some((start, _)) if width == self.width() && tokens >= self.tokens => Ok(start),
            _ => Err(Error::msg(format!(
                "{:?} are not {} tokens of {} elements",
                layout,
                self.tokens,
                self.width()
            ))),
        }
    }

    /// Heads of the step's tokens: `at` elements behind the address, `width` from one to the next.
    fn heads(&self, address: u64, at: usize, heads: usize, width: usize) -> DeviceTensor {
        let shape = Tokens {
            token_stride: width,
            ..Tokens::contiguous(self.tokens, heads, self.shape.head_dim)
        };
        let address = address + (at * self.dtype.size()) as u64;
        // SAFETY: it lies within a tensor of candle's, whose memory is given back by the stream that
        // the work is queued on.
        unsafe { DeviceTensor::new(address, self.dtype, shape) }
    }

    /// Queries, keys and values of a tensor at an address.
    fn qkv(&self, address: u64) -> [DeviceTensor; 3] {
        let (q, kv) = (self.shape.q_dim(), self.shape.kv_dim());
        let kv_heads = self.shape.kv_heads;
        [(0, self.shape.heads), (q, kv_heads), (q + kv, kv_heads)]
            .map(|(at, heads)| self.heads(address, at, heads, self.width()))
    }

    /// Waits, where candle does not queue its work behind what is queued here.
    fn wait(&self) -> Result<()> {
        self.gpu.stream.synchronize().map_err(Error::wrap)
    }
}

impl RotateAndAppend<'_> {
    fn queue(&self, address: u64) -> Result<()> {
        let Layer { gpu, paged, nth, .. } = *self.with;
        // SAFETY: upload, append and attention are queued on one stream; there is no capture.
        let queued = unsafe { paged.append(Some(&gpu.stream), nth, self.with.qkv(address)) };
        queued.map_err(Error::wrap)
    }
}

impl InplaceOp1 for RotateAndAppend<'_> {
    fn name(&self) -> &'static str {
        "rotate-and-append"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let start = self.with.start(layout)?;
        let address = match storage {
            CpuStorage::F16(data) => data[start..].as_mut_ptr() as u64,
            CpuStorage::BF16(data) => data[start..].as_mut_ptr() as u64,
            _ => return Err(Error::msg("queries are f16 or bf16")),
        };
        self.queue(address)?;
        self.with.wait()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        match self.with.dtype {
            DType::Bf16 => self.queue(on_gpu::address::<bf16>(storage, self.with.start(layout)?)?),
            _ => self.queue(on_gpu::address::<f16>(storage, self.with.start(layout)?)?),
        }
    }
}

impl Attend<'_> {
    fn queue(&self, qkv: u64, o: u64) -> Result<()> {
        let Layer { gpu, shape, paged, nth, .. } = *self.with;
        let [q, _, _] = self.with.qkv(qkv);
        let o = self.with.heads(o, 0, shape.heads, shape.q_dim());
        // SAFETY: upload, append and attention are queued on one stream, layer after layer; there is
        // no capture.
        unsafe { paged.attend(Some(&gpu.stream), nth, q, o) }.map_err(Error::wrap)
    }

    /// Outputs of as many tokens as a tensor has.
    fn outputs(&self, layout: &Layout) -> Result<Shape> {
        let (tokens, _) = layout.shape().dims2()?;
        Ok((tokens, self.with.shape.q_dim()).into())
    }
}

impl CustomOp1 for Attend<'_> {
    fn name(&self) -> &'static str {
        "paged-attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (start, shape) = (self.with.start(layout)?, self.outputs(layout)?);
        let outputs = match storage {
            CpuStorage::F16(data) => {
                let mut o = vec![f16::ZERO; shape.elem_count()];
                self.queue(data[start..].as_ptr() as u64, o.as_mut_ptr() as u64)?;
                CpuStorage::F16(o)
            }
            CpuStorage::BF16(data) => {
                let mut o = vec![bf16::ZERO; shape.elem_count()];
                self.queue(data[start..].as_ptr() as u64, o.as_mut_ptr() as u64)?;
                CpuStorage::BF16(o)
            }
            _ => return Err(Error::msg("queries are f16 or bf16")),
        };
        self.with.wait()?;
        Ok((outputs, shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (start, shape) = (self.with.start(layout)?, self.outputs(layout)?);
        let outputs = match self.with.dtype {
            DType::Bf16 => on_gpu::map::<bf16>(storage, start, &shape, |q, o| self.queue(q, o)),
            _ => on_gpu::map::<f16>(storage, start, &shape, |q, o| self.queue(q, o)),
        };
        Ok((outputs?, shape))
    }
}

/// Addresses of candle's tensors on a GPU. Its guards record events for other streams: there are
/// none.
#[cfg(feature = "cuda")]
mod on_gpu {
    use candle_core::backend::BackendStorage;
    use candle_core::cuda_backend::CudaDType;
    use candle_core::cuda_backend::cudarc::driver::{
        DevicePtr, DevicePtrMut, DeviceRepr, ValidAsZeroBits,
    };
    use candle_core::{CudaStorage, Result, Shape};

    /// The address of an element that is to be written.
    pub(super) fn address<T: CudaDType>(storage: &mut CudaStorage, at: usize) -> Result<u64> {
        let stream = storage.device().cuda_stream();
        let (start, _guard) = storage.as_cuda_slice_mut::<T>()?.device_ptr_mut(&stream);
        Ok(start + (at * size_of::<T>()) as u64)
    }

    /// A new tensor; `queue` is given the address of an element, and that of what it is to write.
    pub(super) fn map<T: CudaDType + DeviceRepr + ValidAsZeroBits>(
        storage: &CudaStorage,
        at: usize,
        shape: &Shape,
        queue: impl FnOnce(u64, u64) -> Result<()>,
    ) -> Result<CudaStorage> {
        let device = storage.device().clone();
        let stream = device.cuda_stream();
        // Tokens beyond the step's are not written.
        let mut outputs = device.alloc_zeros::<T>(shape.elem_count())?;
        {
            let (from, _read) = storage.as_cuda_slice::<T>()?.device_ptr(&stream);
            let (to, _written) = outputs.device_ptr_mut(&stream);
            queue(from + (at * size_of::<T>()) as u64, to)?;
        }
        Ok(CudaStorage::wrap_cuda_slice(outputs, device))
    }
}
