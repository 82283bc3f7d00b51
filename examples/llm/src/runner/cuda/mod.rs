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

use anyhow::{Result, bail};
use candle_core::{D, DType as Numbers, Tensor};
use candle_nn::ops::rms_norm;
use inflight::kernels::{Backend, DType};

use crate::matmul::Threads;
use crate::runner::paged::Paged;
use crate::runner::{Given, RunnerConfig, Step};
use ops::{Attend, Layer, RotateAndAppend};

/// A model with its KV cache on a GPU.
pub struct Runner {
    weights: Weights,
    norms: Vec<[Tensor; 2]>,
    norm: Tensor,
    /// `[1, vocab]`: numbers that fall from one token to the next.
    falling: Tensor,
    paged: Paged,
    logits: Vec<f32>,
    threads: Threads,
}

impl Runner {
    /// Allocates the cache and loads the kernels.
    pub fn new(weights: Weights, config: RunnerConfig) -> Result<Self> {
        let (shape, gpu) = (weights.model.shape, &weights.gpu);
        let dtype = weights.attention_dtype(config.kv_dtype)?;
        // Batch invariance is the processor's here: see `RunnerConfig`.
        let config = RunnerConfig { invariant: false, ..config };
        let cos_sin = weights.model.rope_table(config.max_positions)?;
        let (backend, stream) = (Backend::new(&gpu.cuda), Some(&gpu.stream));
        let paged = Paged::new(&backend, stream, dtype, &shape, &config, &cos_sin)?;
        let norm = |values: &[f32]| weights.vector(values);
        let norms = weights.model.layers.iter();
        let norms = norms.map(|l| Ok([norm(&l.attention_norm)?, norm(&l.feed_forward_norm)?]));
        Ok(Self {
            norms: norms.collect::<Result<_>>()?,
            norm: norm(&weights.model.norm)?,
            falling: Tensor::arange_step(0.0_f32, -(shape.vocab as f32), -1.0, &gpu.tensors)?
                .affine(1.0, shape.vocab as f64)?
                .reshape((1, shape.vocab))?,
            paged,
            logits: Vec::new(),
            threads: Threads::new(match config.threads {
                Some(threads) => threads,
                None => std::thread::available_parallelism()?.get(),
            }),
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
        self.paged.begin(Some(&gpu.stream), &step)?;

        let tokens = step.arrays.tokens.iter().copied().chain(std::iter::repeat_n(0, padding));
        let tokens = Tensor::from_iter(tokens, &gpu.tensors)?;
        let mut x = self.weights.embed(&tokens)?;
        for (nth, (layer, norms)) in model.layers.iter().zip(&self.norms).enumerate() {
            let normed = rms_norm(&x, &norms[0], shape.rms_eps)?;
            let with = Layer {
                gpu,
                shape: &shape,
                paged: &self.paged,
                nth,
                dtype: self.paged.q_dtype(),
                tokens: step.arrays.tokens.len(),
            };
            let qkv = layer.qkv.multiply(&normed)?.to_dtype(with.candle_dtype())?;
            qkv.inplace_op1(&RotateAndAppend { with: &with })?;
            let attend = Attend { with: &with };
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
