//! A layer of a model, with its cache, on any device: block operations, append and attention of a
//! scheduler's steps.

use half::f16;
use inflight::batch::RaggedBatch;
use inflight::device::{DeviceBuffer, Stream};
use inflight::kernels::tensor::Shape;
use inflight::kernels::{
    AppendArgs, Attention, AttentionArgs, AttentionConfig, Backend, BatchView, BlockMover, DType,
    DeviceCache, DeviceTensor, KvLayout, StepBuffer, StepLimits,
};
use inflight::{Config, Result};

/// A device under test.
pub(crate) trait Place {
    fn name(&self) -> String;
    fn backend(&self) -> Backend;
    fn stream(&self) -> Stream<'_>;

    /// Looks for what no call says.
    fn check(&self) {}
}

pub(crate) type MakeLayer = Box<dyn Fn(AttentionConfig, &Config) -> Layer>;

pub(crate) struct Layer {
    backend: Backend,
    attention: Attention,
    step: StepBuffer,
    mover: BlockMover,
    cache: DeviceCache,
    _memory: Vec<DeviceBuffer>,
    place: Box<dyn Place>,
}

impl Layer {
    pub(crate) fn new(
        place: Box<dyn Place>,
        config: AttentionConfig,
        limits: &Config,
    ) -> Result<Self> {
        let (backend, stream) = (place.backend(), place.stream());
        let (blocks, size) = (limits.cache.num_blocks, limits.cache.block_size);
        let layout =
            KvLayout::hnd(config.kv_dtype, blocks, size, config.num_kv_heads, config.head_dim);
        let host_layout = KvLayout { num_blocks: limits.cache.num_host_blocks.max(1), ..layout };
        let mut memory = Vec::new();
        let mut half = |layout: &KvLayout, on_host: bool| -> Result<u64> {
            let (bytes, device) = (layout.k_extent()? * layout.dtype.size(), backend.device());
            let mut half =
                if on_host { device.allocate_host(bytes) } else { device.allocate(bytes) }?;
            half.write(stream, &vec![0xff; bytes])?;
            let address = half.address();
            memory.push(half);
            address
        };
        let mut cache = |layout: KvLayout, on_host: bool| {
            let (k, v) = (half(&layout, on_host)?, half(&layout, on_host)?);
            // SAFETY: both live as long as this, and each run waits for its work.
            unsafe { DeviceCache::new(k, v, layout, None) }
        };
        let (on_device, on_host) = (cache(layout, false)?, cache(host_layout, true)?);
        let steps = StepLimits {
            max_rows: limits.max_num_seqs.next_power_of_two(),
            max_tokens: limits.max_num_batched_tokens,
            max_blocks: limits.max_num_seqs * limits.max_model_len.div_ceil(size),
            max_kv_len: limits.max_model_len,
            max_mask_bytes: 0,
        };
        let attention = Attention::new(&backend, config, steps, None)?;
        Ok(Self {
            step: StepBuffer::new(&backend, steps, [&attention])?,
            mover: BlockMover::new(&backend, &[on_device], &[on_host])?,
            attention,
            cache: on_device,
            _memory: memory,
            backend,
            place,
        })
    }

    pub(crate) fn name(&self) -> String {
        self.place.name()
    }

    /// Outputs of these new queries, keys and values, `[token, head, dim]` each.
    pub(crate) fn run(&mut self, batch: &RaggedBatch, qkv: [&[f32]; 3]) -> Result<Vec<f32>> {
        let (stream, config) = (self.place.stream(), *self.attention.config());
        let dtype = config.q_dtype;
        let bytes = |x: &[f32]| match dtype {
            DType::F32 => bytemuck::cast_slice(x).to_vec(),
            _ => x.iter().flat_map(|&x| f16::from_f32(x).to_ne_bytes()).collect(),
        };
        let upload = |bytes: Vec<u8>| -> Result<DeviceBuffer> {
            let mut buffer = self.backend.device().allocate(bytes.len())?;
            buffer.write(stream, &bytes)?;
            Ok(buffer)
        };
        let [q, k, v] = qkv.map(|x| upload(bytes(x)));
        let (q, k, v, o) = (q?, k?, v?, upload(vec![0xff; dtype.size() * qkv[0].len()])?);
        let tensor = |of: &DeviceBuffer, heads| -> Result<DeviceTensor> {
            let shape = Shape::contiguous(batch.tokens().len(), heads, config.head_dim);
            // SAFETY: it lives until the work is done, below.
            Ok(unsafe { DeviceTensor::new(of.address()?, dtype, shape) })
        };
        self.mover.run(stream, batch.ops())?;
        self.attention.plan(BatchView::from(batch), self.cache.layout().num_blocks, None)?;
        self.step.upload(stream, batch, [&self.attention].into_iter())?;
        let new = |of| tensor(of, config.num_kv_heads);
        let args = AppendArgs { k: new(&k)?, v: new(&v)?, cache: self.cache, rope: None };
        // SAFETY: all memory lives until the work is done.
        unsafe { self.step.append(stream, &args) }?;
        let many = |of| tensor(of, config.num_q_heads);
        let args = AttentionArgs::new(many(&q)?, self.cache, many(&o)?);
        // SAFETY: as above.
        unsafe { self.attention.run(stream, &self.step, 0, &args) }?;
        let mut found = vec![0; dtype.size() * qkv[0].len()];
        o.read(stream, &mut found)?;
        self.place.check();
        Ok(match dtype {
            DType::F32 => found.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect(),
            _ => found.chunks_exact(2).map(|x| f16::from_ne_bytes([x[0], x[1]]).to_f32()).collect(),
        })
    }
}
