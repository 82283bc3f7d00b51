//! A step of the model: tokens in, logits out.
//!
//! This is where the library's kernels meet a model. The scheduler's batch says which tokens, where
//! their keys and values go, and which blocks each row sees; everything else is matrix products:
//! on a processor ([`cpu`]) the example's own, on a GPU ([`cuda`]) candle's.

pub mod cpu;
pub mod cuda;
mod paged;

use anyhow::{Result, bail};
use clap::ValueEnum;
use inflight::Token;
use inflight::batch::RaggedBatch;
use inflight::cache::BlockOp;
use inflight::kernels::{DType, StepArrays, StepSource};

use crate::gguf::Shape;
use crate::matmul::{Matrix, Precision, Threads};
use crate::model::Model;

/// How matrix products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Products {
    /// Exact weights, f32 sums.
    F32,
    /// Weights and activations in f16, on a GPU.
    F16,
    /// Weights and activations in bf16, on a GPU.
    Bf16,
    /// Weights as they are stored, activations rounded to 8 bits in blocks of 32, as llama.cpp does.
    Int8,
}

/// How a model is run.
#[derive(Clone, Copy, Debug)]
pub struct RunnerConfig {
    /// Of the KV cache; on a processor queries have the same, or f32 where it is fp8.
    pub kv_dtype: DType,
    /// Blocks of the cache, the null block included.
    pub num_blocks: usize,
    /// Blocks that preempted requests are moved to.
    pub num_host_blocks: usize,
    /// Tokens a block.
    pub block_size: usize,
    /// Tokens of a sequence at most.
    pub max_positions: usize,
    /// Rows of a step at most.
    pub max_rows: usize,
    /// Tokens of a step at most.
    pub max_tokens: usize,
    /// Batch-invariant attention, on a processor: a row's result depends on nothing but the row.
    pub invariant: bool,
    /// Threads; `None` for one a core.
    pub threads: Option<usize>,
}

/// A model's weights, where they are multiplied by.
pub enum Weights {
    /// In memory of the host, for products of a precision.
    Cpu(Model<Matrix>, Precision),
    /// In memory of a GPU.
    Cuda(cuda::Weights),
}

impl Weights {
    /// The model's numbers.
    pub fn shape(&self) -> Shape {
        match self {
            Self::Cpu(model, _) => model.shape,
            Self::Cuda(weights) => weights.model.shape,
        }
    }

    /// Bytes of all matrices as they are kept.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Cpu(model, _) => model.bytes(),
            Self::Cuda(weights) => weights.model.matrices().map(cuda::Weight::bytes).sum(),
        }
    }
}

/// A step: what [`RaggedBatch`] has for it, or a caller without the scheduler.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// What kernels are given.
    pub source: StepSource<'a>,
    /// Rows, tokens, where each is in its sequence, and where its keys and values are written.
    pub arrays: StepArrays<'a>,
    /// The tokens of which logits are wanted.
    pub logits_indices: &'a [u32],
    /// Blocks to be moved before.
    pub ops: &'a [BlockOp],
}

impl<'a> From<&'a RaggedBatch> for Step<'a> {
    fn from(batch: &'a RaggedBatch) -> Self {
        let (logits_indices, ops) = (batch.logits_indices(), batch.ops());
        Self { source: batch.into(), arrays: batch.into(), logits_indices, ops }
    }
}

/// What a step gives for each row that samples, in order.
pub enum Given<'a> {
    /// Logits, `[rows, vocab]`, and threads to work on them with.
    Logits(&'a mut [f32], &'a Threads),
    /// The likeliest tokens.
    Likeliest(Vec<Token>),
}

/// A model with its KV cache.
pub enum Runner {
    /// On a processor.
    Cpu(Box<cpu::Runner>),
    /// On a GPU.
    Cuda(Box<cuda::Runner>),
}

impl Runner {
    /// Allocates the cache.
    pub fn new(weights: Weights, config: RunnerConfig) -> Result<Self> {
        Ok(match weights {
            Weights::Cpu(model, precision) => {
                Self::Cpu(Box::new(cpu::Runner::new(model, precision, config)?))
            }
            Weights::Cuda(weights) => Self::Cuda(Box::new(cuda::Runner::new(weights, config)?)),
        })
    }

    /// The model's numbers.
    pub fn shape(&self) -> Shape {
        match self {
            Self::Cpu(runner) => runner.model().shape,
            Self::Cuda(runner) => runner.weights().model.shape,
        }
    }

    /// The weights, for another runner.
    pub fn into_weights(self) -> Weights {
        match self {
            Self::Cpu(runner) => runner.into_weights(),
            Self::Cuda(runner) => Weights::Cuda(runner.into_weights()),
        }
    }

    /// Runs a step. `padding` tokens beyond the batch's take part in the matrix products, as those of
    /// a static batch's rectangle do. With `likeliest` the logits are not needed: a GPU keeps them.
    pub fn run(&mut self, step: Step<'_>, padding: usize, likeliest: bool) -> Result<Given<'_>> {
        let vocab = self.shape().vocab;
        if let Some(token) = step.arrays.tokens.iter().find(|&&token| token as usize >= vocab) {
            bail!("token {token}: the model has {vocab}");
        }
        match self {
            Self::Cpu(runner) => {
                runner.run(step, padding).map(|(logits, threads)| Given::Logits(logits, threads))
            }
            Self::Cuda(runner) => runner.run(step, padding, likeliest),
        }
    }
}
