//! Steps on a processor.

use std::ops::Range;

use anyhow::{Context, Result};
use inflight::device::cpu::{Cpu, CpuConfig};
use inflight::device::memory::Buffer;
use inflight::kernels::cpu::{Append, Attention, Rope, append, move_blocks};
use inflight::kernels::rope::RopePairs;
use inflight::kernels::tensor::{DType, Shape as Tokens};
use inflight::kernels::{AttentionArgs, AttentionConfig, KvCache, KvLayout, KvScales};

use crate::matmul::{Input, Matrix, Precision, Threads};
use crate::model::{Layer, Model};
use crate::numbers::Numbers;
use crate::ops::{add, rms_norm, silu_product};
use crate::runner::{RunnerConfig, Step, Weights};

/// Tokens whose numbers are kept room for after a step with more.
const KEPT_TOKENS: usize = 2048;
/// Numbers of a cache line.
const LINE: usize = 16;
/// Without a calibration: numbers are stored as they are.
const FP8_SCALE: &[f32] = &[1.0];

/// A model with its KV cache on a processor.
pub struct Runner {
    model: Model,
    precision: Precision,
    cpu: Cpu,
    threads: Threads,
    attention: Attention,
    layout: KvLayout,
    host_layout: KvLayout,
    /// K and V of each layer.
    caches: Vec<(Buffer, Buffer)>,
    host_caches: Vec<(Buffer, Buffer)>,
    cos_sin: Vec<f32>,
    work: Work,
    logits: Vec<f32>,
    /// Those of the last step among them.
    wanted: Range<usize>,
}

/// Numbers of a step, of all its tokens.
struct Work {
    q_dtype: DType,
    input: Input,
    /// `[tokens, hidden]`, as all without a remark.
    x: Vec<f32>,
    normed: Vec<f32>,
    /// `[tokens, q_dim + 2 kv_dim]`.
    qkv: Vec<f32>,
    q: Numbers,
    k: Numbers,
    v: Numbers,
    o: Numbers,
    /// `[tokens, q_dim]`.
    attended: Vec<f32>,
    /// `[tokens, 2 feed_forward]`.
    gate_up: Vec<f32>,
    /// `[tokens, feed_forward]`.
    gated: Vec<f32>,
    product: Vec<f32>,
}

impl Runner {
    /// Allocates the cache.
    pub fn new(model: Model, precision: Precision, config: RunnerConfig) -> Result<Self> {
        let shape = model.shape;
        let cpu = Cpu::new(&CpuConfig { threads: config.threads, ..CpuConfig::default() })?;
        let q_dtype = match config.kv_dtype {
            DType::Fp8E4m3 => DType::F32,
            other => other,
        };
        let plain = AttentionConfig::new(shape.heads, shape.kv_heads, shape.head_dim, q_dtype);
        let attention = Attention::new(AttentionConfig {
            kv_dtype: config.kv_dtype,
            fixed_split: config.invariant.then_some(2048),
            ..plain
        })?;
        let layout = |blocks| {
            let RunnerConfig { kv_dtype, block_size, .. } = config;
            KvLayout::nhd(kv_dtype, blocks, block_size, shape.kv_heads, shape.head_dim)
        };
        let (device, host) = (layout(config.num_blocks), layout(config.num_host_blocks));
        let caches = |layout: &KvLayout| -> Result<Vec<(Buffer, Buffer)>> {
            let bytes = layout.k_extent()? * layout.dtype.size();
            let layer = |_| Ok((Buffer::zeroed(bytes)?, Buffer::zeroed(bytes)?));
            (0..shape.layers).map(layer).collect()
        };
        Ok(Self {
            precision,
            threads: Threads::new(cpu.threads()),
            attention,
            caches: caches(&device)?,
            host_caches: if config.num_host_blocks > 0 { caches(&host)? } else { Vec::new() },
            layout: device,
            host_layout: host,
            cos_sin: model.rope_table(config.max_positions)?,
            work: Work::new(q_dtype)?,
            logits: Vec::new(),
            wanted: 0..0,
            cpu,
            model,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The weights, for another runner.
    pub fn into_weights(self) -> Weights {
        Weights::Cpu(self.model, self.precision)
    }

    /// Runs a step: `[logits_indices, vocab]`, and the threads to work on them with. `padding` tokens
    /// beyond the step's take part in the matrix products, as those of a static batch's rectangle do.
    pub fn run(&mut self, step: Step<'_>, padding: usize) -> Result<(&mut [f32], &Threads)> {
        let shape = self.model.shape;
        let tokens = step.arrays.tokens;
        self.work.resize(&shape, tokens.len() + padding)?;
        for (&token, x) in tokens.iter().zip(self.work.x.chunks_exact_mut(shape.hidden)) {
            self.model.embedding.read_row(token as usize, x);
        }
        self.work.x[tokens.len() * shape.hidden..].fill(0.0);
        let mut caches = views(&mut self.caches, self.layout)?;
        let mut hosts = views(&mut self.host_caches, self.host_layout)?;
        move_blocks(&self.cpu, step.ops, &mut caches, &mut hosts)?;
        self.attention.plan(&self.cpu, step.arrays.batch, self.layout.num_blocks)?;
        for (layer, cache) in self.model.layers.iter().zip(&mut caches) {
            let attend = Attend {
                cpu: &self.cpu,
                attention: &mut self.attention,
                cache,
                step,
                cos_sin: &self.cos_sin,
                rotary_dim: shape.rotary_dim,
            };
            self.work.layer(&shape, layer, &self.threads, self.precision, attend)?;
        }
        self.head(step)?;
        Ok((&mut self.logits[self.wanted.clone()], &self.threads))
    }

    /// The logits of the tokens for which they are wanted.
    fn head(&mut self, step: Step<'_>) -> Result<()> {
        let (shape, work) = (self.model.shape, &mut self.work);
        let wanted = step.logits_indices;
        work.product.resize(wanted.len() * shape.hidden, 0.0);
        for (&token, to) in wanted.iter().zip(work.product.chunks_exact_mut(shape.hidden)) {
            let at = token as usize * shape.hidden;
            to.copy_from_slice(&work.x[at..at + shape.hidden]);
        }
        work.normed.resize(work.product.len(), 0.0);
        rms_norm(&self.threads, &work.product, &self.model.norm, shape.rms_eps, &mut work.normed);
        let count = wanted.len() * shape.vocab;
        self.logits.resize(count + LINE, 0.0);
        // From a cache line on: a pair of panels then writes whole ones.
        let start = self.logits.as_ptr().align_offset(4 * LINE).min(LINE);
        self.wanted = start..start + count;
        let head = self.model.head.as_ref().unwrap_or(&self.model.embedding);
        multiply(
            &mut work.input,
            head,
            self.precision,
            &self.threads,
            &work.normed,
            &mut self.logits[self.wanted.clone()],
        );
        Ok(())
    }
}

/// The caches of all layers.
fn views(buffers: &mut [(Buffer, Buffer)], layout: KvLayout) -> Result<Vec<KvCache<'_>>> {
    let views = buffers.iter_mut().map(|(k, v)| KvCache::new::<u8>(k, v, layout));
    views.collect::<inflight::Result<_>>().context("a layer's cache")
}

fn multiply(
    input: &mut Input,
    weights: &Matrix,
    precision: Precision,
    threads: &Threads,
    x: &[f32],
    y: &mut [f32],
) {
    input.set(x, weights, precision, threads);
    weights.multiply(threads, input, y);
}

/// What a layer's attention needs beside its queries, keys and values.
struct Attend<'a, 'c> {
    cpu: &'a Cpu,
    attention: &'a mut Attention,
    cache: &'a mut KvCache<'c>,
    step: Step<'a>,
    cos_sin: &'a [f32],
    rotary_dim: usize,
}

impl Work {
    fn new(q_dtype: DType) -> Result<Self> {
        let numbers = || Numbers::new(q_dtype);
        Ok(Self {
            q_dtype,
            input: Input::default(),
            x: Vec::new(),
            normed: Vec::new(),
            qkv: Vec::new(),
            q: numbers()?,
            k: numbers()?,
            v: numbers()?,
            o: numbers()?,
            attended: Vec::new(),
            gate_up: Vec::new(),
            gated: Vec::new(),
            product: Vec::new(),
        })
    }

    fn resize(&mut self, shape: &crate::gguf::Shape, tokens: usize) -> Result<()> {
        // A static step's prompts are all computed at once: as much would never be needed again.
        let large = self.x.len() > KEPT_TOKENS * shape.hidden;
        if large && tokens <= KEPT_TOKENS {
            *self = Self::new(self.q_dtype)?;
        }
        self.x.resize(tokens * shape.hidden, 0.0);
        self.normed.resize(tokens * shape.hidden, 0.0);
        self.product.resize(tokens * shape.hidden, 0.0);
        self.qkv.resize(tokens * (shape.q_dim() + 2 * shape.kv_dim()), 0.0);
        self.attended.resize(tokens * shape.q_dim(), 0.0);
        self.gate_up.resize(tokens * 2 * shape.feed_forward, 0.0);
        self.gated.resize(tokens * shape.feed_forward, 0.0);
        self.q.resize(tokens * shape.q_dim());
        self.o.resize(tokens * shape.q_dim());
        self.k.resize(tokens * shape.kv_dim());
        self.v.resize(tokens * shape.kv_dim());
        Ok(())
    }

    /// A layer: `x` goes in and comes out.
    fn layer(
        &mut self,
        shape: &crate::gguf::Shape,
        layer: &Layer,
        threads: &Threads,
        precision: Precision,
        attend: Attend<'_, '_>,
    ) -> Result<()> {
        let Self { input, x, normed, qkv, attended, gate_up, gated, product, .. } = self;
        rms_norm(threads, x, &layer.attention_norm, shape.rms_eps, normed);
        multiply(input, &layer.qkv, precision, threads, normed, qkv);
        let (q_dim, kv_dim) = (shape.q_dim(), shape.kv_dim());
        for (token, qkv) in qkv.chunks_exact(q_dim + 2 * kv_dim).enumerate() {
            self.q.set(token * q_dim, &qkv[..q_dim]);
            self.k.set(token * kv_dim, &qkv[q_dim..q_dim + kv_dim]);
            self.v.set(token * kv_dim, &qkv[q_dim + kv_dim..]);
        }
        attend.run(shape, [&self.k, &self.v], &mut self.q, &mut self.o)?;
        self.o.get(attended);
        multiply(input, &layer.out, precision, threads, attended, product);
        add(x, product);
        rms_norm(threads, x, &layer.feed_forward_norm, shape.rms_eps, normed);
        multiply(input, &layer.gate_up, precision, threads, normed, gate_up);
        silu_product(threads, gate_up, shape.feed_forward, gated);
        multiply(input, &layer.down, precision, threads, gated, product);
        add(x, product);
        Ok(())
    }
}

impl Attend<'_, '_> {
    /// Rotates and appends the new keys, and attends to all that a row sees.
    fn run(
        self,
        shape: &crate::gguf::Shape,
        [k, v]: [&Numbers; 2],
        q: &mut Numbers,
        o: &mut Numbers,
    ) -> Result<()> {
        let Self { cpu, attention, cache, step, cos_sin, rotary_dim } = self;
        let tokens = step.arrays.tokens.len();
        let keys = Tokens::contiguous(tokens, shape.kv_heads, shape.head_dim);
        let queries = Tokens::contiguous(tokens, shape.heads, shape.head_dim);
        let scales = match cache.layout().dtype {
            DType::Fp8E4m3 => KvScales { k: FP8_SCALE, v: FP8_SCALE },
            _ => KvScales::NONE,
        };
        let rope = Rope {
            positions: step.arrays.positions,
            cos_sin,
            rotary_dim,
            // GGUF files keep the weights as the authors of Llama did.
            pairs: RopePairs::Interleaved,
            q: Some(q.view_mut(queries)?),
        };
        let new = Append {
            scales,
            rope: Some(rope),
            ..Append::new(k.view(keys)?, v.view(keys)?, step.arrays.slot_mapping)
        };
        append(cpu, cache, new)?;
        attention.run(
            cpu,
            AttentionArgs {
                q: q.view(queries)?,
                cache,
                scales,
                o: o.view_mut(queries)?,
                lse: None,
                alibi_slopes: None,
                sinks: None,
                mask: None,
            },
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_of_a_large_step_is_given_back() {
        let shape = crate::gguf::Shape {
            layers: 1,
            hidden: 8,
            feed_forward: 12,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            rotary_dim: 4,
            rope_theta: 1e4,
            rms_eps: 1e-5,
            context: 64,
            vocab: 5,
        };
        let mut work = Work::new(DType::F16).unwrap();
        for (tokens, room) in [(512, 512), (1, 512), (KEPT_TOKENS + 1, KEPT_TOKENS + 1), (3, 3)] {
            work.resize(&shape, tokens).unwrap();
            assert_eq!(work.x.len(), tokens * shape.hidden);
            assert_eq!(work.gate_up.capacity() / 24, room, "after {tokens} tokens");
        }
    }
}
