//! Options that all commands share: which model, and how it is run.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use inflight::cache::CacheConfig;
use inflight::kernels::DType;
use inflight::{Config, Policy};

use crate::chat::Template;
use crate::engine::Engine;
use crate::gguf::Gguf;
use crate::matmul::Precision;
use crate::model::Model;
use crate::runner::{Runner, RunnerConfig};
use crate::tokenizer::Tokenizer;

/// Of activations in matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precise {
    /// Exact weights, f32 sums.
    F32,
    /// Activations rounded to 8 bits in blocks of 32, as llama.cpp does.
    Int8,
}

/// Of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CacheType {
    F32,
    F16,
    Bf16,
    Fp8,
}

impl CacheType {
    /// The library's name of it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::Bf16,
            Self::Fp8 => DType::Fp8E4m3,
        }
    }
}

/// The model, and how it is run.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// A GGUF file of the Llama architecture
    #[arg(long, short, env = "LLM_MODEL", value_name = "FILE")]
    pub model: PathBuf,
    /// A tokenizer.json, where the model's tokenizer is not byte-level BPE
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Activations in matrix products
    #[arg(long, value_enum, default_value = "int8")]
    pub dtype: Precise,
    /// The KV cache; f32 with --dtype f32, else f16
    #[arg(long, value_enum)]
    pub kv_dtype: Option<CacheType>,
    /// Threads; one a core by default
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Requests that run at once
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub max_num_seqs: usize,
    /// Tokens computed in a step: prompts are computed in chunks
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub max_num_batched_tokens: usize,
    /// Tokens of prompt and output together; the model's context by default
    #[arg(long, value_name = "N")]
    pub max_model_len: Option<usize>,
    /// Blocks of the KV cache
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pub num_blocks: usize,
    /// Tokens a block
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub block_size: usize,
    /// Blocks that preempted requests are moved to instead of being computed again
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub num_host_blocks: usize,
    /// Requests that may wait; more are refused
    #[arg(long, value_name = "N", default_value_t = usize::MAX, hide_default_value = true)]
    pub max_waiting: usize,
    /// continuous, static, priority, no-evict, max-utilization or orca
    #[arg(long, default_value = "continuous")]
    pub policy: String,
    /// Computes every prompt anew
    #[arg(long)]
    pub no_prefix_cache: bool,
    /// A request's results do not depend on who runs beside it, bit by bit
    #[arg(long)]
    pub batch_invariant: bool,
}

/// What commands work with.
pub struct Loaded {
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// Messages to text.
    pub template: Template,
    /// The model, ready to run.
    pub engine: Engine,
    /// The model's name.
    pub name: String,
}

impl Options {
    /// Reads the model and allocates its cache.
    pub fn load(&self) -> Result<Loaded> {
        let path = &self.model;
        let mut gguf = Gguf::open(path)?;
        let tokenizer = Tokenizer::new(&gguf, self.tokenizer.as_deref())?;
        let template = Template::new(&gguf)?;
        let model = Model::load(&mut gguf, self.precision())
            .with_context(|| format!("in {}", path.display()))?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Loaded { tokenizer, template, engine: self.engine(model)?, name: stem })
    }

    /// Of matrix products.
    pub fn precision(&self) -> Precision {
        match self.dtype {
            Precise::F32 => Precision::F32,
            Precise::Int8 => Precision::Int8,
        }
    }

    /// A model, loaded for the same precision, with a cache and a scheduler.
    pub fn engine(&self, model: Model) -> Result<Engine> {
        let context = model.shape.context;
        let max_model_len = self.max_model_len.unwrap_or(context);
        if max_model_len > context {
            bail!("--max-model-len {max_model_len}: the model was trained for {context}");
        }
        // Block 0 is the null block.
        let num_blocks = self.num_blocks.saturating_add(1);
        let kv_dtype = self.kv_dtype.unwrap_or(match self.dtype {
            Precise::F32 => CacheType::F32,
            Precise::Int8 => CacheType::F16,
        });
        let cache = CacheConfig {
            num_blocks,
            block_size: self.block_size,
            prefix_cache: !self.no_prefix_cache,
            num_host_blocks: self.num_host_blocks,
        };
        let config = Config {
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_model_len,
            max_waiting: self.max_waiting,
            swap: self.num_host_blocks > 0,
            ..Config::new(cache)
        };
        let policy = Policy::by_name(&self.policy)?;
        let runner = RunnerConfig {
            precision: self.precision(),
            kv_dtype: kv_dtype.dtype(),
            num_blocks,
            num_host_blocks: self.num_host_blocks,
            block_size: self.block_size,
            max_positions: max_model_len,
            invariant: self.batch_invariant,
            threads: self.threads,
        };
        Engine::new(Runner::new(model, runner)?, config, policy)
    }
}
