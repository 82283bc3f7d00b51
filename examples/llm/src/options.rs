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

/// Blocks of the cache, where nothing is said.
const NUM_BLOCKS: usize = 2048;

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
    /// Tokens of prompt and output together; by default the model's context, or all of the cache
    #[arg(long, value_name = "N")]
    pub max_model_len: Option<usize>,
    /// Blocks of the KV cache; by default 2048, or all that --max-num-seqs requests can use
    #[arg(long, value_name = "N")]
    pub num_blocks: Option<usize>,
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
    /// A request's results do not depend on who runs beside it, bit by bit, unless it is preempted
    /// and computed again
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
        let (stored, kept) = (gguf.tensor_bytes() as f64 / 1e9, model.bytes() as f64 / 1e9);
        if kept > 1.5 * stored {
            eprintln!(
                "the weights take {kept:.1} GB of memory and {stored:.1} GB in the file: their types \
                 are none that products are computed in"
            );
        }
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

    /// Tokens of a request at most, and blocks of the cache: one request always fits.
    fn lengths(&self, context: usize) -> Result<(usize, usize)> {
        let block_size = self.block_size.max(1);
        let room = self.num_blocks.unwrap_or(NUM_BLOCKS).saturating_mul(block_size);
        let max_model_len = self.max_model_len.unwrap_or(context.min(room));
        if max_model_len > context {
            bail!("--max-model-len {max_model_len}: the model was trained for {context}");
        }
        if max_model_len > room {
            bail!("--max-model-len {max_model_len}: the cache, --num-blocks, has room for {room}");
        }
        let used = self.max_num_seqs.saturating_mul(max_model_len.div_ceil(block_size));
        Ok((max_model_len, self.num_blocks.unwrap_or(NUM_BLOCKS.min(used))))
    }

    /// A model, loaded for the same precision, with a cache and a scheduler.
    pub fn engine(&self, model: Model) -> Result<Engine> {
        let (max_model_len, num_blocks) = self.lengths(model.shape.context)?;
        // Block 0 is the null block.
        let num_blocks = num_blocks.saturating_add(1);
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn lengths(arguments: &str, context: usize) -> Result<(usize, usize)> {
        let arguments = arguments.split_whitespace();
        let all = ["llm", "--model", "a.gguf"].into_iter().chain(arguments);
        Cli::try_parse_from(all)?.options.lengths(context)
    }

    #[test]
    fn one_request_always_fits_the_cache() {
        assert_eq!(lengths("", 8192).unwrap(), (8192, 2048));
        assert_eq!(lengths("", 131_072).unwrap(), (32_768, 2048));
        assert_eq!(lengths("--num-blocks 40", 8192).unwrap(), (640, 40));
        assert_eq!(lengths("--max-model-len 100 --num-blocks 7", 8192).unwrap(), (100, 7));
        assert!(lengths("--max-model-len 113 --num-blocks 7", 8192).is_err());
        assert!(lengths("--max-model-len 8193", 8192).is_err());
    }

    #[test]
    fn the_cache_is_no_larger_than_its_requests_unless_told() {
        assert_eq!(lengths("--max-num-seqs 1", 8192).unwrap(), (8192, 512));
        assert_eq!(lengths("--max-num-seqs 2 --max-model-len 100", 8192).unwrap(), (100, 14));
        assert_eq!(lengths("--max-num-seqs 1 --num-blocks 999", 8192).unwrap(), (8192, 999));
    }
}
