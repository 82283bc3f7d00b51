//! Steps on a GPU: candle's tensors and products, the library's append and attention between them.
//!
//! Both work on one stream, so nothing waits for the host before the logits, or the tokens, are
//! read. The library's kernels are candle operations here ([`ops`]): that is all the glue it takes.
//!
//! Built with the feature `cuda` it runs on a GPU. Under the emulator that the library's tests use
//! device memory is the host's, so candle computes on the processor and everything else is the same:
//! `tests/test_emulator.py` compares its outputs, in any build.

mod gpu;
mod ops;
mod weights;

pub use gpu::Gpu;
pub use weights::{Weight, Weights};

use anyhow::{Context, Result, bail};
use candle_core::{D, DType as Numbers, Tensor};
use candle_nn::ops::rms_norm;
use inflight::device::cuda::{CudaBuffer, PinnedBuffer};
use inflight::kernels::cuda::{Append, Attention, BlockMover, StepBuffer};
use inflight::kernels::{AttentionConfig, DType, DeviceCache, DeviceScales, KvLayout, StepLimits};

use crate::gguf::Shape;
use crate::matmul::Threads;
use crate::runner::{Given, RunnerConfig, Step};
use ops::{Attend, Layer, RotateAndAppend, RotationTable};

/// A model with its KV cache on a GPU.
pub struct Runner {
    weights: Weights,
    norms: Vec<[Tensor; 2]>,
    norm: Tensor,
    /// `[1, vocab]`: numbers that fall from one token to the next.
    falling: Tensor,
    attention: Attention,
    append: Append,
    step: StepBuffer,
    mover: BlockMover,
    /// K and V of each layer.
    caches: Vec<DeviceCache>,
    cos_sin: CudaBuffer,
    max_positions: usize,
    logits: Vec<f32>,
    threads: Threads,
    /// What `caches` and `mover` point to.
    _memory: (Vec<CudaBuffer>, Vec<PinnedBuffer>),
}

impl Runner {
    /// Allocates the cache and loads the kernels.
    pub fn new(weights: Weights, config: RunnerConfig) -> Result<Self> {
        let (shape, gpu) = (weights.model.shape, &weights.gpu);
        let limits = StepLimits {
            max_rows: config.max_rows,
            max_tokens: config.max_tokens,
            // Rows may share blocks, and each has its own table.
            max_blocks: config.max_rows * config.max_positions.div_ceil(config.block_size),
            max_kv_len: config.max_positions,
            max_mask_bytes: 0,
        };
        let dtype = weights.attention_dtype(config.kv_dtype)?;
        let plain = AttentionConfig::new(shape.heads, shape.kv_heads, shape.head_dim, dtype);
        let attention_config = AttentionConfig { kv_dtype: config.kv_dtype, ..plain };
        let attention = Attention::new(&gpu.cuda, attention_config, limits)?;
        let memory = Memory::new(gpu, &shape, &config)?;
        let cos_sin = gpu.floats(&weights.model.rope_table(config.max_positions)?)?;
        let norm = |values: &[f32]| weights.vector(values);
        let norms = weights.model.layers.iter();
        let norms = norms.map(|l| Ok([norm(&l.attention_norm)?, norm(&l.feed_forward_norm)?]));
        Ok(Self {
            norms: norms.collect::<Result<_>>()?,
            norm: norm(&weights.model.norm)?,
            falling: Tensor::arange_step(0.0_f32, -(shape.vocab as f32), -1.0, &gpu.tensors)?
                .affine(1.0, shape.vocab as f64)?
                .reshape((1, shape.vocab))?,
            append: Append::new(&gpu.cuda, dtype, config.kv_dtype)?,
            step: StepBuffer::new(&gpu.cuda, limits, &[&attention])?,
            mover: BlockMover::new(&gpu.cuda, &memory.device, &memory.host)?,
            attention,
            caches: memory.device,
            cos_sin,
            max_positions: config.max_positions,
            logits: Vec::new(),
            threads: Threads::new(match config.threads {
                Some(threads) => threads,
                None => std::thread::available_parallelism()?.get(),
            }),
            _memory: (memory.buffers, memory.pinned),
            weights,
        })
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The weights, for another runner.
    pub fn into_weights(self) -> Weights {
        self.weights
    }

    /// Runs a step: see [`Runner::run`](super::Runner::run).
    pub fn run(&mut self, step: Step<'_>, padding: usize, likeliest: bool) -> Result<Given<'_>> {
        let Weights { model, gpu, .. } = &self.weights;
        let shape = model.shape;
        // candle's kernels count elements in 32 bits.
        let tokens = step.arrays.tokens.len() + padding;
        if tokens as u64 * shape.feed_forward.max(shape.hidden) as u64 >= 1 << 32 {
            bail!("a step of {tokens} tokens, padding included, is too large for a GPU here");
        }
        self.mover.run(&gpu.stream, step.ops)?;
        let blocks = self.caches.first().map_or(0, |cache| cache.layout().num_blocks);
        self.attention.plan(step.arrays.batch, blocks, None)?;
        self.step.upload(&gpu.stream, &step.arrays, &[&self.attention])?;

        let tokens = step.arrays.tokens.iter().copied().chain(std::iter::repeat_n(0, padding));
        let tokens = Tensor::from_iter(tokens, &gpu.tensors)?;
        let mut x = self.weights.embed(&tokens)?;
        for ((layer, norms), &cache) in model.layers.iter().zip(&self.norms).zip(&self.caches) {
            let normed = rms_norm(&x, &norms[0], shape.rms_eps)?;
            let with = Layer {
                gpu,
                shape: &shape,
                step: &self.step,
                cache,
                dtype: self.attention.config().q_dtype,
                tokens: step.arrays.tokens.len(),
            };
            let rope = RotationTable { cos_sin: &self.cos_sin, positions: self.max_positions };
            let qkv = layer.qkv.multiply(&normed)?.to_dtype(with.candle_dtype())?;
            qkv.inplace_op1(&RotateAndAppend { with: &with, append: &self.append, rope })?;
            let attend = Attend { with: &with, attention: &self.attention };
            let attended = qkv.apply_op1_no_bwd(&attend)?.to_dtype(x.dtype())?;
            x = (x + layer.out.multiply(&attended)?)?;
            let normed = rms_norm(&x, &norms[1], shape.rms_eps)?;
            let [gate, up] = layer.gate_up.multiply_halves(&normed, shape.feed_forward)?;
            let gated = (gate.silu()? * up)?;
            x = (x + layer.down.multiply(&gated)?)?;
        }
        let wanted = step.logits_indices;
        self.logits.clear();
        if wanted.is_empty() {
            return Ok(Given::Logits(&mut self.logits, &self.threads));
        }
        let wanted = Tensor::from_slice(wanted, wanted.len(), &gpu.tensors)?;
        let normed = rms_norm(&x.index_select(&wanted, 0)?, &self.norm, shape.rms_eps)?;
        let logits = self.weights.head().multiply(&normed)?.to_dtype(Numbers::F32)?;
        let largest = logits.max_keepdim(D::Minus1)?;
        let maxima: Vec<f32> = largest.flatten_all()?.to_vec1()?;
        let given = match likeliest {
            true => Given::Likeliest(self.first_of(&logits, &largest)?.to_vec1()?),
            false => {
                self.logits = logits.flatten_all()?.to_vec1()?;
                Given::Logits(&mut self.logits, &self.threads)
            }
        };
        // Reads into pageable memory need not have ended when they return.
        gpu.stream.synchronize()?;
        if maxima.iter().any(|largest| !largest.is_finite()) {
            bail!("a token's logits are not finite: where f16 is too narrow, --dtype bf16 is not");
        }
        Ok(given)
    }

    /// The first of each row's largest logits, as the host chooses. (candle's own search takes any.)
    fn first_of(&self, logits: &Tensor, largest: &Tensor) -> candle_core::Result<Tensor> {
        let is_largest = logits.broadcast_eq(largest)?.to_dtype(Numbers::F32)?;
        is_largest.broadcast_mul(&self.falling)?.argmax(D::Minus1)
    }
}

/// The memory of all layers' caches.
struct Memory {
    device: Vec<DeviceCache>,
    host: Vec<DeviceCache>,
    buffers: Vec<CudaBuffer>,
    pinned: Vec<PinnedBuffer>,
}

impl Memory {
    fn new(gpu: &Gpu, shape: &Shape, config: &RunnerConfig) -> Result<Self> {
        let layout = |blocks| {
            let RunnerConfig { kv_dtype, block_size, .. } = *config;
            KvLayout::nhd(kv_dtype, blocks, block_size, shape.kv_heads, shape.head_dim)
        };
        let (mut buffers, mut pinned) = (Vec::new(), Vec::new());
        // Numbers are stored as they are: there is no calibration.
        let scales = match config.kv_dtype {
            DType::Fp8E4m3 => {
                let one = gpu.floats(&[1.0])?;
                let scales = DeviceScales { k: one.address(), v: one.address(), per_head: false };
                buffers.push(one);
                Some(scales)
            }
            _ => None,
        };
        let cache = |k, v, layout| {
            // SAFETY: each half is as large as the layout asks for, and kept, as the scale is, for as
            // long as the runner is; freeing waits for the work that was queued.
            unsafe { DeviceCache::new(k, v, layout, scales) }
        };
        let (on_device, on_host) = (layout(config.num_blocks), layout(config.num_host_blocks));
        let (mut device, mut host) = (Vec::new(), Vec::new());
        for layer in 0..shape.layers {
            let bytes = on_device.k_extent()? * on_device.dtype.size();
            let half = || {
                let buffer = CudaBuffer::new(&gpu.cuda, bytes);
                buffer.with_context(|| format!("the cache of layer {layer} of {}", shape.layers))
            };
            let (k, v) = (half()?, half()?);
            device.push(cache(k.address(), v.address(), on_device)?);
            buffers.extend([k, v]);
            if config.num_host_blocks > 0 {
                let bytes = on_host.k_extent()? * on_host.dtype.size();
                let half = || PinnedBuffer::new(&gpu.cuda, bytes);
                let (k, v) = (half()?, half()?);
                host.push(cache(k.device_address()?, v.device_address()?, on_host)?);
                pinned.extend([k, v]);
            }
        }
        Ok(Self { device, host, buffers, pinned })
    }
}
