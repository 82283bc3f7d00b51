//! Steps on a processor.

use std::ops::Range;

use anyhow::Result;
use inflight::device::cpu::{Cpu, CpuConfig};
use inflight::kernels::Backend;
use inflight::kernels::tensor::{DType, Shape as Tokens};

use crate::matmul::{Input, Matrix, Precision, Threads};
use crate::model::{Layer, Model};
use crate::numbers::Numbers;
use crate::ops::{add, rms_norm, silu_product};
use crate::runner::paged::Paged;
use crate::runner::{RunnerConfig, Step, Weights};

/// Tokens whose numbers are kept room for after a step with more.
const KEPT_TOKENS: usize = 2048;
/// Numbers of a cache line.
const LINE: usize = 16;

/// A model with its KV cache on a processor.
pub struct Runner {
    model: Model,
    precision: Precision,
    threads: Threads,
    paged: Paged,
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
        let cos_sin = model.rope_table(config.max_positions)?;
        Ok(Self {
            precision,
            threads: Threads::new(cpu.threads()),
            paged: Paged::new(&Backend::new(&cpu), None, q_dtype, &shape, &config, &cos_sin)?,
            work: Work::new(q_dtype)?,
            logits: Vec::new(),
            wanted: 0..0,
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
        self.paged.begin(None, &step)?;
        for (nth, layer) in self.model.layers.iter().enumerate() {
            let attend = (&self.paged, nth, tokens.len());
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
        (paged, nth, tokens): (&Paged, usize, usize),
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
        let keys = Tokens::contiguous(tokens, shape.kv_heads, shape.head_dim);
        let queries = Tokens::contiguous(tokens, shape.heads, shape.head_dim);
        let [q, o] = [&mut self.q, &mut self.o].map(|numbers| numbers.tensor(queries));
        let [k, v] = [&mut self.k, &mut self.v].map(|numbers| numbers.tensor(keys));
        let (q, o) = (q?, o?);
        // SAFETY: a processor's calls are done when they return, and nothing else uses the numbers
        // until then.
        unsafe { paged.append(None, nth, [q, k?, v?]) }?;
        // SAFETY: as above.
        unsafe { paged.attend(None, nth, q, o) }?;
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
