//! Options that all commands share: which model, and how it is run.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use inflight::cache::CacheConfig;
use inflight::kernels::DType;
use inflight::{Config, Policy};

use crate::chat::Template;
use crate::engine::Engine;
use crate::gguf::{Gguf, Shape};
use crate::hub;
use crate::matmul::Precision;
use crate::model::Model;
use crate::runner::cuda::{self, Gpu};
use crate::runner::{Products, Runner, RunnerConfig, Weights};
use crate::tokenizer::Tokenizer;

/// Where the model is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On a GPU where there is one and the program is built for it, else on the processor.
    Auto,
    /// On the processor.
    Cpu,
    /// On this GPU, as the driver counts.
    Cuda(usize),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.split_once(':').unwrap_or((text, "0")) {
            ("auto", "0") => Self::Auto,
            ("cpu", "0") => Self::Cpu,
            ("cuda", number) => {
                Self::Cuda(number.parse().map_err(|_| format!("{number:?} is no number"))?)
            }
            _ => return Err("it is auto, cpu, cuda or cuda:N".to_owned()),
        })
    }
}

impl Place {
    /// The GPU that it means; `None` for the processor.
    pub fn gpu(self) -> Option<usize> {
        let built = cfg!(feature = "cuda");
        match self {
            Self::Cuda(ordinal) => Some(ordinal),
            Self::Auto if built => inflight::device::cuda::probe().ok().map(|_| 0),
            Self::Cpu | Self::Auto => None,
        }
    }
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

/// A number from 1 on, for options. The limit keeps sums of a few from overflowing.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=0x7fff_ffff) => Ok(number),
        Ok(_) | Err(_) => Err("it is a number from 1 to 2147483647".to_owned()),
    }
}

/// Blocks of the cache, where nothing is said.
const NUM_BLOCKS: usize = 2048;

/// The model, and how it is run.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// A GGUF file of the Llama architecture, or hf:OWNER/REPO[@REVISION][/FILE.gguf] on Hugging
    /// Face's hub
    #[arg(long, short, env = "LLM_MODEL", value_name = "FILE")]
    pub model: PathBuf,
    /// A tokenizer.json, where the model's tokenizer is not byte-level BPE
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// A chat template in Jinja, instead of the model's own
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: Place,
    /// How matrix products are computed; int8 on a processor, f16 on a GPU by default
    #[arg(long, value_enum)]
    pub dtype: Option<Products>,
    /// The KV cache; by default f32 on a processor with --dtype f32, bf16 with bf16, else f16
    #[arg(long, value_enum)]
    pub kv_dtype: Option<CacheType>,
    /// Threads; one a core by default
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Requests that run at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub max_num_seqs: usize,
    /// Tokens computed in a step: prompts are computed in chunks
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive)]
    pub max_num_batched_tokens: usize,
    /// Tokens of prompt and output together; by default the model's context, or all of the cache
    #[arg(long, value_name = "N")]
    pub max_model_len: Option<usize>,
    /// Blocks of the KV cache; by default 2048, or fewer where --max-num-seqs requests cannot use them
    #[arg(long, value_name = "N", value_parser = positive)]
    pub num_blocks: Option<usize>,
    /// Tokens a block
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = positive)]
    pub block_size: usize,
    /// Blocks that preempted requests are moved to instead of being computed again
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub num_host_blocks: usize,
    /// Requests that may wait, and more are refused: 1024 by default in a server, else any number
    #[arg(long, value_name = "N")]
    pub max_waiting: Option<usize>,
    /// Who runs when
    #[arg(long, default_value = "continuous", value_parser = PossibleValuesParser::new(Policy::NAMES))]
    pub policy: String,
    /// Computes every prompt anew
    #[arg(long)]
    pub no_prefix_cache: bool,
    /// A request's results do not depend on what runs with it, bit by bit, unless it is preempted
    /// and computed again; on a processor
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
        self.check()?;
        let path = &hub::locate(&self.model)?;
        let mut gguf = Gguf::open(path)?;
        let tokenizer = Tokenizer::new(&gguf, self.tokenizer.as_deref())?;
        let template = Template::new(&gguf, self.chat_template.as_deref())?;
        let weights = self.weights(&mut gguf)?;
        let (stored, kept) = (gguf.tensor_bytes() as f64 / 1e9, weights.bytes() as f64 / 1e9);
        if kept > 1.5 * stored && matches!(weights, Weights::Cpu(..)) {
            eprintln!(
                "the weights take {kept:.1} GB of memory and {stored:.1} GB in the file: their types \
                 are none that products are computed in"
            );
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Loaded { tokenizer, template, engine: self.engine(weights)?, name: stem })
    }

    /// Refuses what the device does not do, before anything is read.
    fn check(&self) -> Result<()> {
        let is_gpu = self.device.gpu().is_some();
        if !is_gpu && matches!(self.dtype, Some(Products::F16 | Products::Bf16)) {
            bail!("--dtype: products of f16 and bf16 are a GPU's; use f32 or int8");
        }
        if is_gpu && self.kv_dtype == Some(CacheType::F32) {
            bail!("--kv-dtype: on a GPU it is f16, bf16 or fp8");
        }
        if is_gpu && self.batch_invariant {
            bail!("--batch-invariant: a GPU's matrix products depend on the batch");
        }
        Ok(())
    }

    /// Reads the weights to where they are multiplied by.
    pub fn weights(&self, gguf: &mut Gguf) -> Result<Weights> {
        self.check()?;
        let path = gguf.path().to_owned();
        let within = || format!("in {}", path.display());
        let Some(ordinal) = self.device.gpu() else {
            if cfg!(feature = "cuda")
                && self.device == Place::Auto
                && let Err(why) = inflight::device::cuda::probe()
            {
                eprintln!("on the processor: {why}");
            }
            let precision = match self.dtype {
                Some(Products::F32) => Precision::F32,
                _ => Precision::Int8,
            };
            let model = Model::load(gguf, precision).with_context(within)?;
            return Ok(Weights::Cpu(model, precision));
        };
        let gpu = Gpu::new(ordinal).with_context(|| match cfg!(feature = "cuda") {
            true => format!("--device cuda:{ordinal}"),
            false => format!(
                "--device cuda:{ordinal}, in a program that is built without the feature `cuda`"
            ),
        })?;
        let products = self.dtype.unwrap_or(Products::F16);
        Ok(Weights::Cuda(cuda::Weights::load(gguf, gpu, products).with_context(within)?))
    }

    /// The type of the cache, where it is not said: what attention computes in with these weights.
    fn kv_dtype(&self, weights: &Weights) -> CacheType {
        self.kv_dtype.unwrap_or(match weights {
            Weights::Cpu(_, Precision::F32) => CacheType::F32,
            Weights::Cuda(weights) if weights.products() == Products::Bf16 => CacheType::Bf16,
            Weights::Cpu(_, Precision::Int8) | Weights::Cuda(_) => CacheType::F16,
        })
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

    /// A model with a cache and a scheduler.
    pub fn engine(&self, weights: Weights) -> Result<Engine> {
        let (max_model_len, num_blocks) = self.lengths(weights.shape().context)?;
        // Block 0 is the null block.
        let num_blocks = num_blocks.saturating_add(1);
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
            max_waiting: self.max_waiting.unwrap_or(usize::MAX),
            swap: self.num_host_blocks > 0,
            ..Config::new(cache)
        };
        let policy = Policy::by_name(&self.policy)?;
        let kv_dtype = self.kv_dtype(&weights).dtype();
        if matches!(weights, Weights::Cpu(..)) {
            check_memory(&weights.shape(), kv_dtype, (num_blocks, self.num_host_blocks), self)?;
        }
        let runner = RunnerConfig {
            kv_dtype,
            num_blocks,
            num_host_blocks: self.num_host_blocks,
            block_size: self.block_size,
            max_positions: max_model_len,
            max_rows: self.max_num_seqs,
            max_tokens: match self.policy.as_str() {
                // All prompts of a batch at once.
                "static" => self.max_num_seqs.saturating_mul(max_model_len),
                // Who does without the scheduler runs all sequences at once.
                _ => self.max_num_batched_tokens.max(self.max_num_seqs),
            },
            invariant: self.batch_invariant,
            threads: self.threads,
        };
        Engine::new(Runner::new(weights, runner)?, config, policy)
    }
}

/// Refuses a cache that the machine has no memory for: it would be found out block by block.
fn check_memory(
    shape: &Shape,
    kv_dtype: DType,
    (num_blocks, num_host_blocks): (usize, usize),
    options: &Options,
) -> Result<()> {
    let tokens = (num_blocks as u128 + num_host_blocks as u128) * options.block_size as u128;
    let needed = tokens * (2 * shape.layers * shape.kv_dim() * kv_dtype.size()) as u128;
    // Where the system does not say what it has, the allocator does.
    let said = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = said.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u128>().ok());
    if let Some(free) = kib.map(|kib| kib << 10).filter(|&free| free < needed) {
        bail!(
            "the KV cache of {num_blocks} blocks of {} tokens takes {:.1} GB, and {:.1} GB are free: see \
             --num-blocks, --block-size and --num-host-blocks",
            options.block_size,
            needed as f64 / 1e9,
            free as f64 / 1e9,
        );
    }
    Ok(())
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
