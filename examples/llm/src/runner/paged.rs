//! What the library does of a model, on any device: the paged KV cache of all layers, and attention
//! over it.

use anyhow::{Context, Result};
use inflight::device::{Device, DeviceBuffer, Stream};
use inflight::kernels::rope::RopePairs;
use inflight::kernels::{
    AppendArgs, Attention, AttentionArgs, AttentionConfig, Backend, BlockMover, DType, DeviceCache,
    DeviceScales, DeviceTensor, KvLayout, Rope, StepBuffer, StepLimits,
};

use crate::gguf::Shape;
use crate::runner::{RunnerConfig, Step};

/// The caches of a model's layers, and what reads and writes them.
pub struct Paged {
    attention: Attention,
    step: StepBuffer,
    mover: BlockMover,
    /// K and V of each layer.
    caches: Vec<DeviceCache>,
    cos_sin: DeviceBuffer,
    max_positions: u32,
    rotary_dim: usize,
    /// What `caches` and `mover` point to.
    _memory: Vec<DeviceBuffer>,
}

impl Paged {
    /// Allocates the caches. `cos_sin` are the angles of all positions, `stream` is a GPU's.
    pub fn new(
        backend: &Backend,
        stream: Stream<'_>,
        q_dtype: DType,
        shape: &Shape,
        config: &RunnerConfig,
        cos_sin: &[f32],
    ) -> Result<Self> {
        let limits = match backend.device() {
            Device::Cpu(_) => StepLimits::MAX,
            Device::Cuda(_) => StepLimits {
                max_rows: config.max_rows,
                max_tokens: config.max_tokens,
                // Rows may share blocks, and each has its own table.
                max_blocks: config.max_rows * config.max_positions.div_ceil(config.block_size),
                max_kv_len: config.max_positions,
                max_mask_bytes: 0,
            },
        };
        let plain = AttentionConfig::new(shape.heads, shape.kv_heads, shape.head_dim, q_dtype);
        let of_layers = AttentionConfig {
            kv_dtype: config.kv_dtype,
            fixed_split: config.invariant.then_some(2048),
            ..plain
        };
        let attention = Attention::new(backend, of_layers, limits, None)?;
        let device = backend.device();
        let floats = |values: &[f32]| -> Result<DeviceBuffer> {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
            let mut buffer = device.allocate(bytes.len())?;
            buffer.write(stream, &bytes)?;
            Ok(buffer)
        };
        let mut memory = Vec::new();
        // Numbers are stored as they are: there is no calibration.
        let scales = match config.kv_dtype {
            DType::Fp8E4m3 => {
                let one = floats(&[1.0])?;
                let at = one.address()?;
                memory.push(one);
                Some(DeviceScales { k: at, v: at, per_head: false })
            }
            _ => None,
        };
        let mut caches = |blocks: usize, on_host: bool| -> Result<Vec<DeviceCache>> {
            let RunnerConfig { kv_dtype, block_size, .. } = *config;
            let (heads, dim) = (shape.kv_heads, shape.head_dim);
            let layout = KvLayout::nhd(kv_dtype, blocks, block_size, heads, dim);
            let layers = if blocks > 0 { shape.layers } else { 0 };
            let mut caches = Vec::new();
            for layer in 0..layers {
                let bytes = layout.k_extent()? * kv_dtype.size();
                let half = || match on_host {
                    true => device.allocate_host(bytes),
                    false => device.allocate(bytes),
                };
                let place = || format!("the cache of layer {layer} of {layers}");
                let (k, v) = (half().with_context(place)?, half().with_context(place)?);
                // SAFETY: each half is as large as the layout asks for, and kept, as the scale is, for
                // as long as this is; freeing a GPU's waits for the work that was queued.
                let cache = unsafe { DeviceCache::new(k.address()?, v.address()?, layout, scales) };
                caches.push(cache?);
                memory.extend([k, v]);
            }
            Ok(caches)
        };
        let (caches, hosts) =
            (caches(config.num_blocks, false)?, caches(config.num_host_blocks, true)?);
        Ok(Self {
            step: StepBuffer::new(backend, limits, [&attention])?,
            mover: BlockMover::new(backend, &caches, &hosts)?,
            attention,
            caches,
            cos_sin: floats(cos_sin)?,
            max_positions: config.max_positions as u32,
            rotary_dim: shape.rotary_dim,
            _memory: memory,
        })
    }

    /// Type of queries, keys, values and outputs.
    pub fn q_dtype(&self) -> DType {
        self.attention.config().q_dtype
    }

    /// Moves a step's blocks, and plans and uploads it.
    pub fn begin(&mut self, stream: Stream<'_>, step: &Step<'_>) -> Result<()> {
        self.mover.run(stream, step.ops)?;
        let blocks = self.caches.first().map_or(0, |cache| cache.layout().num_blocks);
        self.attention.plan(step.arrays.batch, blocks, None)?;
        Ok(self.step.upload(stream, step.source, [&self.attention].into_iter())?)
    }

    /// Rotates the queries and new keys of a layer, and appends keys and values to its cache.
    ///
    /// # Safety
    /// As the makers of the tensors promised; calls of a step are in order on one stream, and not in
    /// capture.
    pub unsafe fn append(
        &self,
        stream: Stream<'_>,
        layer: usize,
        [q, k, v]: [DeviceTensor; 3],
    ) -> inflight::Result<()> {
        let rope = Rope {
            cos_sin: self.cos_sin.address()?,
            max_position: self.max_positions,
            rotary_dim: self.rotary_dim,
            // GGUF files keep the weights as the authors of Llama did.
            pairs: RopePairs::Interleaved,
            q: Some(q),
        };
        let args = AppendArgs { k, v, cache: self.caches[layer], rope: Some(rope) };
        // SAFETY: as the caller promises; the table has as many rows as positions.
        unsafe { self.step.append(stream, &args) }
    }

    /// Attends to all that each token of the step sees in a layer's cache.
    ///
    /// # Safety
    /// As for [`append`](Self::append).
    pub unsafe fn attend(
        &self,
        stream: Stream<'_>,
        layer: usize,
        q: DeviceTensor,
        o: DeviceTensor,
    ) -> inflight::Result<()> {
        let args = AttentionArgs::new(q, self.caches[layer], o);
        // SAFETY: as the caller promises.
        unsafe { self.attention.run(stream, &self.step, 0, &args) }
    }
}
