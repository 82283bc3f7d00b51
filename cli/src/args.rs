//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use inflight::scheduler::queue::Ageing;

/// Continuous batching: replay request traces through schedulers and compare them.
#[derive(Debug, Parser)]
#[command(name = "inflight", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a request trace under several policies, side by side.
    ///
    /// Without TRACE, a built-in workload: log-normal lengths like those of a chat service, Poisson
    /// arrivals; for --device cpu a smaller one, which takes half a minute.
    #[command(
        verbatim_doc_comment,
        allow_negative_numbers = true,
        after_long_help = crate::trace::help()
    )]
    Replay(Box<Replay>),
    /// What this machine offers: instructions, cores, memory bandwidth, devices.
    Info(Info),
    /// Compare the device's kernels with plain arithmetic in f64, in less than a minute.
    ///
    /// Attention (prefill, chunked, decode, mixed; windows, soft caps, ALiBi, sinks, masks),
    /// appending, merging and moving blocks, each over several geometries. Exits with 1 when a
    /// result is off by more than its bound.
    Selftest(Selftest),
}

/// What to say about the machine.
#[derive(Args, Debug)]
pub(crate) struct Info {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What to test.
#[derive(Args, Debug)]
pub(crate) struct Selftest {
    /// The device: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub(crate) device: String,

    /// Instructions to use, as `inflight info` names them, or all that this processor has
    /// [default: the best]
    #[arg(long, value_name = "NAME|all")]
    pub(crate) isa: Option<String>,

    /// Threads, at most 8 a core [default: one per core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Reads `--ageing`.
fn ageing(text: &str) -> Result<Ageing, String> {
    match text {
        "off" => Ok(Ageing::Off),
        number => match number.parse() {
            Ok(0) | Err(_) => Err("neither a number from 1 nor `off`".into()),
            Ok(level) => Ok(Ageing::Admissions(level)),
        },
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

/// When requests arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arrival {
    /// As the trace says
    Trace,
    /// All at once
    Burst,
}

/// The model whose attention is computed, and how: options of --device cpu alone.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Options of --device cpu")]
pub(crate) struct CpuOptions {
    /// Layers [default: 2]
    #[arg(long, value_name = "N")]
    pub(crate) layers: Option<usize>,

    /// Query heads [default: 32]
    #[arg(long, value_name = "N")]
    pub(crate) heads: Option<usize>,

    /// KV heads [default: a quarter of the query heads, at least one]
    #[arg(long, value_name = "N")]
    pub(crate) kv_heads: Option<usize>,

    /// Elements per head [default: 128]
    #[arg(long, value_name = "N")]
    pub(crate) head_dim: Option<usize>,

    /// Type of queries and outputs: f32, f16 or bf16 [default: bf16]
    #[arg(long, value_name = "TYPE")]
    pub(crate) dtype: Option<String>,

    /// Type of keys and values: that of the queries, or fp8-e4m3 [default: --dtype]
    #[arg(long, value_name = "TYPE")]
    pub(crate) kv_dtype: Option<String>,

    /// Threads, at most 8 a core [default: one per core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,

    /// Cores to pin the threads to, one each, such as 0,1 or 0-1,3
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) cores: Option<Vec<String>>,

    /// Instructions to use, as `inflight info` names them [default: the best]
    #[arg(long, value_name = "NAME")]
    pub(crate) isa: Option<String>,
}

/// What to replay, and how.
#[derive(Args, Debug)]
pub(crate) struct Replay {
    /// The trace file, or - for standard input; none for the built-in workload
    pub(crate) trace: Option<PathBuf>,

    /// What runs the steps: cpu (attention is computed here and timed; a model's matrix products
    /// are not), model:a100-40g, model:a100-80g, model:h100, model:h200 (virtual time from a
    /// roofline), or none (decisions only, time counted in steps) [default: cpu for the built-in
    /// workload, model:a100-40g for a TRACE]
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,

    /// The language model on a model: device [default: llama-13b]
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,

    /// A policy: static, continuous, priority, no-evict, max-utilization or orca; may be repeated
    /// [default: static, continuous]
    #[arg(long = "policy", value_name = "NAME")]
    pub(crate) policies: Vec<String>,

    /// Under --policy priority, admissions of others that count as one level of priority; off for
    /// vLLM's strict order
    #[arg(long, default_value = "256", value_name = "N|off", value_parser = ageing)]
    pub(crate) ageing: Ageing,

    /// Requests that run at once [default: a slot for each 1,024 tokens of KV, 8 to
    /// 256; on the cpu 16]
    #[arg(long, value_name = "N")]
    pub(crate) max_num_seqs: Option<usize>,

    /// Blocks of the KV cache, the null block included [default: what the device's memory
    /// holds; on the cpu 8,192 tokens]
    #[arg(long, value_name = "N")]
    pub(crate) num_blocks: Option<usize>,

    /// Tokens per block
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub(crate) block_size: usize,

    /// Tokens computed in a step; a static batch's prefill is one pass beyond it [default: 2048,
    /// on the cpu 512]
    #[arg(long, value_name = "N")]
    pub(crate) max_num_batched_tokens: Option<usize>,

    /// Tokens of prompt and output together; a longer prompt is refused, a longer output cut
    /// [default: what the KV cache holds]
    #[arg(long, value_name = "N")]
    pub(crate) max_model_len: Option<usize>,

    /// Whether later requests reuse the blocks of a prompt they begin with
    #[arg(long, value_enum, default_value_t = Switch::Off, value_name = "on|off")]
    pub(crate) prefix_cache: Switch,

    /// When requests arrive
    #[arg(long, value_enum, default_value_t = Arrival::Trace, value_name = "trace|burst")]
    pub(crate) arrival: Arrival,

    /// Poisson arrivals of so many requests per second, or sessions where the trace has them, instead
    /// of the trace's
    #[arg(long, value_name = "X")]
    pub(crate) rate: Option<f64>,

    /// Only the first N requests of the trace; how many the built-in workload has
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,

    /// Refuse a trace with rows of 0 tokens of prompt or output, and do not skip them
    #[arg(long)]
    pub(crate) strict: bool,

    /// Tokens of a block of a mooncake trace's hash_ids [default: 512]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) hash_block_size: Option<u32>,

    /// Seed of the built-in workload, of Poisson arrivals and of made-up prompts
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) seed: u64,

    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Write each step's decisions, one JSON line per step; takes one --policy
    #[arg(long, value_name = "FILE")]
    pub(crate) decisions: Option<PathBuf>,

    /// Write a self-contained HTML page with timelines
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) cpu: CpuOptions,
}
