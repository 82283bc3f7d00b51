//! The kernels of a device, called with memory of the host, which goes there and comes back.

use std::sync::Arc;

use inflight::Result;
use inflight::cache::BlockOp;
use inflight::device::cpu::Cpu;
use inflight::device::cuda::{Cuda, CudaStream};
use inflight::device::{self, DeviceBuffer, Stream};
use inflight::kernels::rope::RopePairs;
use inflight::kernels::tensor::Shape;
use inflight::kernels::{
    AppendArgs, Attention, AttentionArgs, AttentionConfig, Backend, BatchView, BlockMover, DType,
    DeviceCache, DeviceScales, DeviceTensor, KvLayout, Mask, Rope, State, StepArrays, StepBuffer,
    StepLimits,
};

use crate::tensor::Tensor;

/// What runs the kernels under test.
pub(super) struct Device {
    backend: Backend,
    /// Of a GPU.
    stream: Option<CudaStream>,
}

/// What attention reads.
pub(super) struct Step<'a> {
    pub(super) batch: BatchView<'a>,
    pub(super) mask: Option<Mask<'a>>,
    pub(super) q: &'a [u8],
    pub(super) cache: (&'a Tensor, &'a Tensor),
    pub(super) layout: KvLayout,
    /// Of K, then of V, of an fp8 cache.
    pub(super) scales: [&'a [f32]; 2],
    pub(super) slopes: Option<&'a [f32]>,
    pub(super) sinks: Option<&'a [f32]>,
}

/// What is appended.
pub(super) struct New<'a> {
    pub(super) k: &'a Tensor,
    pub(super) v: &'a Tensor,
    pub(super) shape: Shape,
    pub(super) slots: &'a [i64],
    pub(super) layout: KvLayout,
    pub(super) scales: [&'a [f32]; 2],
    /// How it is rotated, by which positions and table, as many numbers of a head.
    pub(super) rope: Option<(RopePairs, &'a [u32], &'a [f32], usize)>,
}

impl Device {
    pub(super) fn cpu(cpu: &Cpu) -> Self {
        Self { backend: Backend::new(cpu), stream: None }
    }

    pub(super) fn gpu(cuda: &Arc<Cuda>) -> Result<Self> {
        Ok(Self { backend: Backend::new(cuda), stream: Some(CudaStream::new(cuda)?) })
    }

    /// Whether it has kernels for tensors or caches of a type.
    pub(super) fn has(&self, dtype: DType) -> bool {
        matches!(self.backend.device(), device::Device::Cpu(_)) || dtype != DType::F32
    }

    fn stream(&self) -> Stream<'_> {
        self.stream.as_ref()
    }

    /// A copy.
    fn upload(&self, bytes: &[u8]) -> Result<DeviceBuffer> {
        let mut buffer = self.backend.device().allocate(bytes.len())?;
        buffer.write(self.stream(), bytes)?;
        Ok(buffer)
    }

    fn numbers(&self, numbers: &[f32]) -> Result<DeviceBuffer> {
        self.upload(bytemuck::cast_slice(numbers))
    }

    /// Scales as kernels have them, in memory that the buffers keep.
    fn scales(&self, scales: [&[f32]; 2]) -> Result<(Option<DeviceScales>, [DeviceBuffer; 2])> {
        let kept = [self.numbers(scales[0])?, self.numbers(scales[1])?];
        let (k, v, per_head) = (kept[0].address()?, kept[1].address()?, scales[0].len() > 1);
        let some = !scales[0].is_empty();
        Ok((some.then_some(DeviceScales { k, v, per_head }), kept))
    }

    pub(super) fn attention(
        &self,
        config: AttentionConfig,
        step: &Step<'_>,
        o: &mut [u8],
        lse: &mut [f32],
    ) -> Result<()> {
        let tokens = step.batch.qo_indptr.last().map_or(0, |&end| end as usize);
        let table = step.batch.kv_indptr.windows(2).map(|w| (w[1] - w[0]) as usize).max();
        let limits = StepLimits {
            max_rows: step.batch.kv_last_page_len.len().max(1),
            max_tokens: tokens.max(1),
            max_blocks: step.batch.kv_indices.len().max(1),
            max_kv_len: (table.unwrap_or(0) * step.batch.block_size).max(1),
            max_mask_bytes: step.mask.map_or(0, |mask| mask.bits.len()),
        };
        let mut attention = Attention::new(&self.backend, config, limits, None)?;
        let mut buffer = StepBuffer::new(&self.backend, limits, [&attention])?;
        attention.plan(step.batch, step.layout.num_blocks, step.mask)?;
        let arrays = StepArrays::new(step.batch);
        buffer.upload(self.stream(), &arrays, [&attention].into_iter())?;
        let (q, out) = (self.upload(step.q)?, self.upload(o)?);
        let out_lse = self.numbers(lse)?;
        let (k, v) = (self.upload(step.cache.0.bytes())?, self.upload(step.cache.1.bytes())?);
        let (scales, _kept) = self.scales(step.scales)?;
        let of_heads = |numbers: Option<&[f32]>| numbers.map(|n| self.numbers(n)).transpose();
        let (slopes, sinks) = (of_heads(step.slopes)?, of_heads(step.sinks)?);
        let address =
            |buffer: &Option<DeviceBuffer>| buffer.as_ref().map_or(Ok(0), DeviceBuffer::address);
        let shape = Shape::contiguous(tokens, config.num_q_heads, config.head_dim);
        // SAFETY: buffers are as large as the layout says, and live until the stream is done.
        let cache = unsafe { DeviceCache::new(k.address()?, v.address()?, step.layout, scales) }?;
        let args = AttentionArgs {
            lse: out_lse.address()?,
            alibi_slopes: address(&slopes)?,
            sinks: address(&sinks)?,
            ..AttentionArgs::new(
                tensor(&q, config.q_dtype, shape)?,
                cache,
                tensor(&out, config.q_dtype, shape)?,
            )
        };
        // SAFETY: as above; nothing else uses the buffers.
        unsafe { attention.run(self.stream(), &buffer, 0, &args) }?;
        out.read(self.stream(), o)?;
        out_lse.read(self.stream(), bytemuck::cast_slice_mut(lse))
    }

    /// Appends to a cache of `keys` and `values`, and rotates `q`.
    pub(super) fn append(
        &self,
        dtype: DType,
        new: &New<'_>,
        (keys, values): (&mut Tensor, &mut Tensor),
        (q, q_shape): (&mut Tensor, Shape),
    ) -> Result<()> {
        let tokens = new.slots.len();
        let limits = StepLimits {
            max_rows: 1,
            max_tokens: tokens.max(1),
            max_blocks: 1,
            max_kv_len: 1,
            max_mask_bytes: 0,
        };
        let mut step = StepBuffer::new(&self.backend, limits, [])?;
        let batch = BatchView {
            qo_indptr: &[0, tokens as u32],
            kv_indptr: &[0, 0],
            kv_indices: &[],
            kv_last_page_len: &[0],
            block_size: new.layout.block_size,
        };
        let positions = new.rope.map_or(&[][..], |rope| rope.1);
        let arrays = StepArrays { batch, slot_mapping: new.slots, positions, tokens: &[] };
        step.upload(self.stream(), &arrays, [].into_iter())?;
        let (k_new, v_new) = (self.upload(new.k.bytes())?, self.upload(new.v.bytes())?);
        let (k, v) = (self.upload(keys.bytes())?, self.upload(values.bytes())?);
        let queries = self.upload(q.bytes())?;
        let (scales, _kept) = self.scales(new.scales)?;
        let table = self.numbers(new.rope.map_or(&[][..], |rope| rope.2))?;
        let cos_sin = table.address()?;
        let q_rows = tensor(&queries, dtype, q_shape)?;
        let rope = new.rope.map(|(pairs, _, numbers, rotary_dim)| Rope {
            cos_sin,
            max_position: (numbers.len() / rotary_dim) as u32,
            rotary_dim,
            pairs,
            q: Some(q_rows),
        });
        // SAFETY: buffers are as large as the layout says, and live until the stream is done.
        let cache = unsafe { DeviceCache::new(k.address()?, v.address()?, new.layout, scales) }?;
        let (k_new, v_new) = (tensor(&k_new, dtype, new.shape)?, tensor(&v_new, dtype, new.shape)?);
        let args = AppendArgs { k: k_new, v: v_new, cache, rope };
        // SAFETY: as above; nothing else uses the buffers.
        unsafe { step.append(self.stream(), &args) }?;
        for (tensor, buffer) in [(keys, &k), (values, &v), (q, &queries)] {
            buffer.read(self.stream(), tensor.bytes_mut())?;
        }
        Ok(())
    }

    /// Merges outputs and their LSE.
    pub(super) fn merge(
        &self,
        dtype: DType,
        states: &[(&[u8], &[f32])],
        shape: Shape,
        (o, lse): (&mut [u8], &mut [f32]),
    ) -> Result<()> {
        let buffers = states.iter().map(|(o, lse)| Ok((self.upload(o)?, self.numbers(lse)?)));
        let buffers = buffers.collect::<Result<Vec<_>>>()?;
        let on_device: Vec<_> = buffers
            .iter()
            .map(|(o, lse)| Ok(State { o: tensor(o, dtype, shape)?, lse: lse.address()? }))
            .collect::<Result<_>>()?;
        let (out, out_lse) = (self.upload(o)?, self.numbers(lse)?);
        let to = tensor(&out, dtype, shape)?;
        // SAFETY: buffers are as large as the shape says, live until the stream is done, and nothing
        // else uses them.
        unsafe { self.backend.merge(self.stream(), &on_device, to, out_lse.address()?) }?;
        out.read(self.stream(), o)?;
        out_lse.read(self.stream(), bytemuck::cast_slice_mut(lse))
    }

    /// Carries out operations on K and V of every layer, of the device and of the host.
    pub(super) fn move_blocks(
        &self,
        ops: &[BlockOp],
        (device, device_layout): (&mut [Tensor], KvLayout),
        (host, host_layout): (&mut [Tensor], KvLayout),
    ) -> Result<()> {
        let one = self.numbers(&[1.0])?;
        let at = one.address()?;
        let scales = (device_layout.dtype == DType::Fp8E4m3).then_some(DeviceScales {
            k: at,
            v: at,
            per_head: false,
        });
        let buffers = device.iter().map(|tensor| self.upload(tensor.bytes()));
        let buffers = buffers.collect::<Result<Vec<_>>>()?;
        let reached = host.iter().map(|tensor| {
            let mut memory = self.backend.device().allocate_host(tensor.bytes().len())?;
            memory.write(self.stream(), tensor.bytes())?;
            Ok(memory)
        });
        let reached = reached.collect::<Result<Vec<_>>>()?;
        let addresses = |of: &[DeviceBuffer]| of.iter().map(DeviceBuffer::address).collect();
        let (addresses, mapped): (Result<Vec<_>>, Result<Vec<_>>) =
            (addresses(&buffers), addresses(&reached));
        let caches = |addresses: &[u64], layout| {
            let cache = |kv: &[u64]| {
                // SAFETY: buffers are as large as the layout says, and live until the stream is
                // done.
                unsafe { DeviceCache::new(kv[0], kv[1], layout, scales) }
            };
            addresses.chunks_exact(2).map(cache).collect::<Result<Vec<_>>>()
        };
        let on_device = caches(&addresses?, device_layout)?;
        let on_host = caches(&mapped?, host_layout)?;
        BlockMover::new(&self.backend, &on_device, &on_host)?.run(self.stream(), ops)?;
        for (tensor, buffer) in device.iter_mut().zip(&buffers) {
            buffer.read(self.stream(), tensor.bytes_mut())?;
        }
        for (tensor, memory) in host.iter_mut().zip(&reached) {
            memory.read(self.stream(), tensor.bytes_mut())?;
        }
        Ok(())
    }
}

fn tensor(buffer: &DeviceBuffer, dtype: DType, shape: Shape) -> Result<DeviceTensor> {
    // SAFETY: callers' buffers are as large as the shape says, and live until the stream is done.
    Ok(unsafe { DeviceTensor::new(buffer.address()?, dtype, shape) })
}
