//! `--device cpu`: attention is computed, and the clock is the real one.
//!
//! Each layer's new keys are rotated and appended to a paged cache, each layer's attention is
//! computed over it, with random numbers for queries, keys and values. What else a model computes,
//! its matrix products first of all, is not: times are those of attention and its cache.

pub(crate) mod options;
mod rectangle;

use std::time::Instant;

use inflight::batch::RaggedBatch;
use inflight::device::cpu::Cpu;
use inflight::device::memory::Buffer;
use inflight::executor::{Executor, Job, Sampler, Samples};
use inflight::kernels::cpu::{
    Append, Attention, AttentionArgs, Rope, StepBuffer, append, move_blocks,
};
use inflight::kernels::rope::{RopeConfig, RopePairs};
use inflight::kernels::tensor::Shape;
use inflight::kernels::{
    AttentionConfig, BatchView, DType, KvCache, KvLayout, KvScales, StepArrays, StepLimits,
};
use inflight::scheduler::Step;
use inflight::{Error, Result};

use crate::metrics::Measured;
use crate::simulator::work;
use crate::tensor::{Tensor, available_bytes};
use crate::trace::SplitMix64;
use rectangle::Rectangle;

/// Which model's attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    /// Layers, each with a cache of its own.
    pub(crate) layers: usize,
    /// Heads, types and scale.
    pub(crate) attention: AttentionConfig,
}

impl Geometry {
    /// The cache of a layer.
    pub(crate) fn layout(&self, num_blocks: usize, block_size: usize) -> KvLayout {
        let AttentionConfig { kv_dtype, num_kv_heads, head_dim, .. } = self.attention;
        KvLayout::nhd(kv_dtype, num_blocks, block_size, num_kv_heads, head_dim)
    }

    /// Bytes of a token in the caches of all layers.
    pub(crate) fn kv_bytes_per_token(&self) -> u64 {
        let AttentionConfig { kv_dtype, num_kv_heads, head_dim, .. } = self.attention;
        2 * (self.layers * num_kv_heads * head_dim * kv_dtype.size()) as u64
    }

    /// FLOPs of a query token and a key token, all layers and heads together.
    fn flops_per_pair(&self) -> u64 {
        4 * (self.layers * self.attention.num_q_heads * self.attention.head_dim) as u64
    }
}

/// Fresh numbers of this many tokens, repeated.
const FRESH_TOKENS: usize = 64;
/// Llama 2's, and most others'.
const ROPE_BASE: f32 = 10_000.0;

/// Computes each step's attention on this machine.
#[derive(Debug)]
pub(crate) struct CpuDevice<'a> {
    cpu: &'a Cpu,
    geometry: Geometry,
    layout: KvLayout,
    sampler: Sampler,
    attention: Attention,
    step: StepBuffer,
    /// K and V of each layer.
    layers: Vec<(Buffer, Buffer)>,
    /// `[position, head_dim]`: cosines, then sines.
    cos_sin: Vec<f32>,
    tokens: Tokens,
    rectangle: Rectangle,
    /// Where the keys and values of padding go, of all layers in turn.
    spare: Spare,
    measured: Measured,
}

/// What a layer's projections would have made, and what its attention makes of it.
#[derive(Debug)]
struct Tokens {
    capacity: usize,
    /// The first queries, before any rotation.
    fresh: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
}

/// A cache of its own for tokens that are not read.
#[derive(Debug, Default)]
struct Spare {
    blocks: usize,
    kv: Option<(Buffer, Buffer)>,
    /// One per token.
    slots: Vec<i64>,
}

impl<'a> CpuDevice<'a> {
    /// A device with `num_blocks` blocks, for sequences of up to `max_model_len` tokens.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming a field of the geometry or of the layout;
    /// [`Error::Device`] when there is no memory for it.
    pub(crate) fn new(
        cpu: &'a Cpu,
        geometry: Geometry,
        (num_blocks, block_size): (usize, usize),
        max_model_len: usize,
        sampler: Sampler,
    ) -> Result<Self> {
        let layout = geometry.layout(num_blocks, block_size);
        layout.check()?;
        let bytes = layout.k_extent()? * layout.dtype.size();
        let layer = |_| Ok((allocate(bytes)?, allocate(bytes)?));
        let layers = (0..geometry.layers).map(layer).collect::<Result<_>>()?;
        // A batch of the longest prompt and, in another row, the longest output.
        let positions = max_model_len.saturating_mul(2).min((num_blocks - 1) * block_size);
        let attention = Attention::new(cpu, geometry.attention, StepLimits::MAX)?;
        Ok(Self {
            cpu,
            geometry,
            layout,
            sampler,
            step: StepBuffer::new(StepLimits::MAX, &[&attention])?,
            attention,
            layers,
            cos_sin: RopeConfig::new(geometry.attention.head_dim, ROPE_BASE).table(positions)?,
            tokens: Tokens::new(&geometry.attention, FRESH_TOKENS)?,
            rectangle: Rectangle::default(),
            spare: Spare::default(),
            measured: Measured::default(),
        })
    }

    /// What was computed so far, and how fast.
    pub(crate) fn measured(&self) -> Measured {
        self.measured
    }

    /// Runs the step's attention: tokens of requests, then those that only pad.
    fn compute(&mut self, batch: &RaggedBatch, padded: bool) -> Result<()> {
        let Self { cpu, geometry, layout, attention, step, tokens, rectangle, spare, .. } = self;
        let caches = self.layers.iter_mut().map(|(k, v)| KvCache::new(k, v, *layout));
        let mut caches = caches.collect::<Result<Vec<_>>>()?;
        move_blocks(cpu, batch.ops(), &mut caches, &mut [])?;
        let view = if padded { rectangle.view() } else { BatchView::from(batch) };
        let all = view.num_tokens();
        let real = batch.positions().len().min(all);
        attention.plan(view, layout.num_blocks, None)?;
        match padded {
            true => step.upload(&StepArrays::new(view), &[attention])?,
            false => step.upload(batch, &[attention])?,
        }
        let scales: &[f32] = if layout.dtype == DType::Fp8E4m3 { &[1.0 / 64.0] } else { &[] };
        let scales = KvScales { k: scales, v: scales };
        let config = &geometry.attention;
        let spare_layout = spare.layout(layout);
        for cache in &mut caches {
            let new =
                |slots, positions| New { slots, positions, scales, cos_sin: &self.cos_sin, config };
            tokens.append(cpu, cache, 0, &new(batch.slot_mapping(), batch.positions()))?;
            if let Some(kv) = spare.kv.as_mut().filter(|_| all > real) {
                let mut cache = Spare::cache(kv, spare_layout)?;
                let new = new(&spare.slots, rectangle.positions());
                tokens.append(cpu, &mut cache, real, &new)?;
            }
            tokens.attend(attention, step, cache, scales, all)?;
        }
        Ok(())
    }

    /// Makes room for the step, outside the time that is measured.
    fn prepare(&mut self, step: &Step, batch: &RaggedBatch) -> Result<bool> {
        let real = batch.positions().len();
        let mut all = real;
        if let Some(padding) = step.padding() {
            self.rectangle.build(batch, padding, self.layout.num_blocks)?;
            let spare = self.rectangle.positions().len();
            all += spare;
            self.spare.reserve(&self.layout, spare)?;
        }
        if all > self.tokens.capacity {
            self.tokens = Tokens::new(&self.geometry.attention, all.next_power_of_two())?;
        }
        self.tokens.renew(all);
        Ok(step.padding().is_some())
    }
}

impl Executor for CpuDevice<'_> {
    fn run(&mut self, job: Job<'_>, samples: &mut Samples) -> Result<f64> {
        let no_batch = || Error::Device("the step came without its batch".to_owned());
        let batch = job.batch.ok_or_else(no_batch)?;
        let padded = self.prepare(job.step, batch)?;
        let start = Instant::now();
        self.compute(batch, padded)?;
        let seconds = start.elapsed().as_secs_f64();
        let work = work(job.step);
        self.measured.attention_flops += (work.attn_pairs * self.geometry.flops_per_pair()) as f64;
        self.measured.kv_bytes_read +=
            (work.kv_read_tokens * self.geometry.kv_bytes_per_token()) as f64;
        let rows = job.step.rows().iter().filter(|row| row.samples);
        rows.for_each(|row| samples.push((self.sampler)(row.id, row.num_output)));
        Ok(seconds)
    }
}

/// Where new keys and values go, and how they are rotated.
struct New<'a> {
    slots: &'a [i64],
    positions: &'a [u32],
    scales: KvScales<'a>,
    cos_sin: &'a [f32],
    config: &'a AttentionConfig,
}

impl Tokens {
    /// Room for so many.
    fn new(config: &AttentionConfig, capacity: usize) -> Result<Self> {
        let AttentionConfig { num_q_heads, num_kv_heads, head_dim, q_dtype, .. } = *config;
        let mut rng = SplitMix64::new(0);
        let mut random = |heads: usize, tokens: usize| {
            let token = heads * head_dim;
            check_memory(tokens as u64 * (token * q_dtype.size()) as u64)?;
            let mut tensor = Tensor::zeros(q_dtype, tokens * token)?;
            let fresh = FRESH_TOKENS * token;
            (0..fresh).for_each(|at| tensor.set(at, 2.0 * rng.unit() - 1.0));
            let (first, rest) = tensor.bytes_mut().split_at_mut(fresh * q_dtype.size());
            repeat(first, rest);
            Ok::<_, Error>(tensor)
        };
        Ok(Self {
            capacity,
            fresh: random(num_q_heads, FRESH_TOKENS)?,
            q: random(num_q_heads, capacity)?,
            k: random(num_kv_heads, capacity)?,
            v: random(num_kv_heads, capacity)?,
            o: random(num_q_heads, capacity)?,
        })
    }

    /// Gives the first tokens queries that no layer has rotated yet.
    fn renew(&mut self, tokens: usize) {
        let token = self.fresh.bytes().len() / FRESH_TOKENS;
        repeat(self.fresh.bytes(), &mut self.q.bytes_mut()[..tokens * token]);
    }

    /// Appends new keys and values to a layer's cache, with the queries from token `start` on.
    fn append(
        &mut self,
        cpu: &Cpu,
        cache: &mut KvCache<'_>,
        start: usize,
        new: &New<'_>,
    ) -> Result<()> {
        let &New { slots, positions, scales, cos_sin, config } = new;
        let AttentionConfig { num_q_heads, num_kv_heads, head_dim, .. } = *config;
        let keys = Shape::contiguous(slots.len(), num_kv_heads, head_dim);
        let queries = Shape::contiguous(slots.len(), num_q_heads, head_dim);
        let q = self.q.tokens_mut(start * queries.token_stride, queries)?;
        let rope =
            Rope { positions, cos_sin, rotary_dim: head_dim, pairs: RopePairs::Half, q: Some(q) };
        let (k, v) = (self.k.tokens(0, keys)?, self.v.tokens(0, keys)?);
        let rope = Some(rope);
        append(cpu, cache, Append { k, v, slot_mapping: slots, scales, rope })
    }

    /// Computes a layer's attention for the step that was planned.
    fn attend(
        &mut self,
        attention: &Attention,
        step: &StepBuffer,
        cache: &KvCache<'_>,
        scales: KvScales<'_>,
        tokens: usize,
    ) -> Result<()> {
        let AttentionConfig { num_q_heads, head_dim, .. } = *attention.config();
        let shape = Shape::contiguous(tokens, num_q_heads, head_dim);
        let (q, o) = (self.q.tokens(0, shape)?, self.o.tokens_mut(0, shape)?);
        let (lse, alibi_slopes, sinks) = (None, None, None);
        attention.run(step, 0, AttentionArgs { q, cache, scales, o, lse, alibi_slopes, sinks })
    }
}

impl Spare {
    /// Makes room for so many tokens.
    fn reserve(&mut self, layout: &KvLayout, tokens: usize) -> Result<()> {
        let slots = self.blocks * layout.block_size;
        if tokens > slots {
            self.blocks = tokens.div_ceil(layout.block_size).next_power_of_two();
            let bytes = self.layout(layout).k_extent()? * layout.dtype.size();
            self.kv = Some((allocate(bytes)?, allocate(bytes)?));
        }
        self.slots.clear();
        self.slots.extend(0..tokens as i64);
        Ok(())
    }

    fn layout(&self, layout: &KvLayout) -> KvLayout {
        KvLayout { num_blocks: self.blocks, ..*layout }
    }

    fn cache(kv: &mut (Buffer, Buffer), layout: KvLayout) -> Result<KvCache<'_>> {
        KvCache::new(&mut kv.0, &mut kv.1, layout)
    }
}

/// Fills `to` with `from`, over and over.
fn repeat(from: &[u8], to: &mut [u8]) {
    to.chunks_mut(from.len()).for_each(|chunk| chunk.copy_from_slice(&from[..chunk.len()]));
}

/// Memory, unless there is none: a system that promises more than it has kills who believes it.
fn allocate(bytes: usize) -> Result<Buffer> {
    check_memory(bytes as u64)?;
    Buffer::zeroed(bytes)
}

fn check_memory(bytes: u64) -> Result<()> {
    match available_bytes() {
        Some(available) if bytes > available => {
            let mib = |bytes: u64| bytes >> 20;
            let reason = format!("{} MiB are needed, {} MiB are free", mib(bytes), mib(available));
            Err(Error::Device(reason))
        }
        _ => Ok(()),
    }
}
