//! What a replay is to do, checked and with its defaults filled in.

use inflight::cache::CacheConfig;
use inflight::scheduler::queue::{Ageing, Priority};
use inflight::{Config, Policy};
use serde_json::Value;

use crate::Failure;
use crate::args::{Arrival, Replay, Switch};
use crate::cpu::options::{self, OnCpu};
use crate::metrics::Unit;
use crate::simulator::cost::{self, CostModel};
use crate::trace::{self, Clock, Synthetic, Trace};

/// What runs the steps.
#[derive(Debug)]
pub(crate) enum DeviceKind {
    /// Nothing: a step is the unit of time.
    Decisions,
    /// A roofline.
    Model(CostModel),
    /// This machine.
    Cpu(Box<OnCpu>),
}

/// A replay, ready to go.
pub(crate) struct Setup {
    pub(crate) trace: Trace,
    pub(crate) device: DeviceKind,
    /// How outputs call the device.
    pub(crate) device_name: String,
    pub(crate) config: Config,
    pub(crate) policies: Vec<String>,
    pub(crate) ageing: Ageing,
    pub(crate) seed: u64,
}

fn usage(what: impl Into<String>) -> Failure {
    Failure::Usage(what.into())
}

impl Setup {
    /// Reads the trace and checks that all options fit together.
    pub(crate) fn new(args: &Replay) -> Result<Self, Failure> {
        let policies = match &args.policies[..] {
            [] => vec!["static".to_owned(), "continuous".to_owned()],
            named => named.to_vec(),
        };
        for name in &policies {
            Policy::by_name(name).map_err(|error| usage(format!("--{error}")))?;
        }
        if args.decisions.is_some() && policies.len() > 1 {
            return Err(usage("--decisions takes one --policy"));
        }
        let (device, device_name) = device(args)?;
        let config = config(args, &device)?;
        let trace = workload(args, &device)?;
        check_clock(&trace, &device)?;
        Ok(Self {
            trace,
            device,
            device_name,
            config,
            policies,
            ageing: args.ageing,
            seed: args.seed,
        })
    }

    /// The rules of a policy.
    pub(crate) fn policy(&self, name: &str) -> Result<Policy, Failure> {
        let mut policy = Policy::by_name(name).map_err(|error| usage(error.to_string()))?;
        if name == "priority" {
            // Without ageing there is no bound to promise: vLLM's order has no bound either.
            let bound = if self.ageing == Ageing::Off { u64::MAX } else { 1024 };
            policy.queue = Box::new(Priority::new(self.ageing, bound, u64::MAX));
        }
        Ok(policy)
    }

    /// What to raise, where every request was refused as too long or as never fitting.
    pub(crate) fn to_raise(&self) -> Option<String> {
        let Config { max_model_len, cache, .. } = self.config;
        let shortest = self.trace.rows.iter().map(|row| row.prompt_len as usize).min()?;
        let kv_tokens = (cache.num_blocks - 1) * cache.block_size;
        let blocks = |tokens: usize| tokens.div_ceil(cache.block_size) + 1;
        Some(if shortest < max_model_len {
            // The prompt may be served; with its output it needs more blocks than there are.
            let output = |row: &trace::Row| row.prompt_len as usize + row.output_len as usize;
            let total = self.trace.rows.iter().map(output).min()?.min(max_model_len);
            format!("raise --num-blocks to {} or more", blocks(total - 1))
        } else {
            let needed = shortest + 1;
            let what = match (max_model_len < needed, kv_tokens < needed) {
                // Its default is what the blocks hold.
                (true, true) if max_model_len >= kv_tokens => {
                    format!("--num-blocks to {} or more", blocks(needed))
                }
                (true, true) => format!(
                    "--max-model-len to {needed} or more and --num-blocks to {} or more",
                    blocks(needed)
                ),
                _ => format!("--max-model-len to {needed} or more"),
            };
            let limit = format!("a prompt with its output may have {max_model_len}");
            format!("the shortest prompt has {shortest} tokens, and {limit}: raise {what}")
        })
    }

    /// What times count.
    pub(crate) fn unit(&self) -> Unit {
        match self.device {
            DeviceKind::Decisions => Unit::Steps,
            DeviceKind::Model(_) | DeviceKind::Cpu(_) => Unit::Seconds,
        }
    }

    /// The settings, for the reader of an output.
    pub(crate) fn echo(&self) -> Vec<(&'static str, Value)> {
        let Config { max_num_seqs, max_num_batched_tokens, max_model_len, cache, .. } = self.config;
        let mut echo: Vec<(_, Value)> = vec![
            ("trace_requests", self.trace.rows.len().into()),
            ("trace_skipped", self.trace.skipped.into()),
            ("max_num_seqs", max_num_seqs.into()),
            ("num_blocks", cache.num_blocks.into()),
            ("block_size", cache.block_size.into()),
            ("max_num_batched_tokens", max_num_batched_tokens.into()),
            ("max_model_len", max_model_len.into()),
            ("prefix_cache", usize::from(cache.prefix_cache).into()),
            ("seed", self.seed.into()),
        ];
        if let DeviceKind::Cpu(on) = &self.device {
            echo.extend(on.echo());
        }
        echo
    }
}

/// The device that was asked for, or suits what is replayed.
fn device_name(args: &Replay) -> &str {
    match (&args.device, &args.trace) {
        (Some(name), _) => name,
        (None, None) => "cpu",
        // Hours of a server's work are hours of it here.
        (None, Some(_)) => "model:a100-40g",
    }
}

fn device(args: &Replay) -> Result<(DeviceKind, String), Failure> {
    let name = device_name(args);
    options::check_built(name)?;
    let gpus = || cost::gpus().iter().map(|gpu| format!("model:{}", gpu.name)).collect::<Vec<_>>();
    let unknown = || {
        let known = gpus().join(", ");
        usage(format!("--device `{name}` is not one of cpu, {known}, none"))
    };
    let gpu = name.strip_prefix("model:");
    if gpu.is_none() && args.model.is_some() && ["cpu", "none"].contains(&name) {
        return Err(usage(format!("--model is for a model: device, and the device is {name}")));
    }
    if name == "cpu" {
        let on = OnCpu::new(&args.cpu)?;
        let shown = on.to_string();
        return Ok((DeviceKind::Cpu(Box::new(on)), shown));
    }
    if let Some(option) = options::given(&args.cpu) {
        return Err(usage(format!("{option} is for --device cpu, and the device is {name}")));
    }
    if name == "none" {
        return Ok((DeviceKind::Decisions, name.to_owned()));
    }
    let gpu = gpu.and_then(cost::gpu).ok_or_else(unknown)?;
    let model = args.model.as_deref().unwrap_or("llama-13b");
    let model = cost::model(model).ok_or_else(|| {
        let known: Vec<_> = cost::models().iter().map(|model| model.name).collect();
        usage(format!("--model `{model}` is not one of {}", known.join(", ")))
    })?;
    let kind = DeviceKind::Model(CostModel::new(gpu, model));
    Ok((kind, format!("{name} ({})", model.name)))
}

fn config(args: &Replay, device: &DeviceKind) -> Result<Config, Failure> {
    if args.block_size == 0 {
        return Err(usage("--block-size: a block holds at least one token"));
    }
    let num_blocks = match (args.num_blocks, device) {
        (Some(blocks), _) => blocks,
        (None, DeviceKind::Decisions) => {
            return Err(usage("--device none has no memory: give --num-blocks"));
        }
        (None, DeviceKind::Cpu(_)) => options::KV_TOKENS.div_ceil(args.block_size) + 1,
        (None, DeviceKind::Model(cost)) => match cost.num_blocks(args.block_size) {
            0 => {
                let (gpu, model) = (cost.gpu.name, cost.model.name);
                return Err(usage(format!("--model {model} leaves no KV memory on {gpu}")));
            }
            // The null block takes no memory worth the name.
            blocks => blocks + 1,
        },
    };
    if num_blocks < 2 {
        let reason = "the null block and one more are the least";
        return Err(usage(format!("--num-blocks {num_blocks}: {reason}")));
    }
    if let DeviceKind::Cpu(on) = device {
        on.check_cache(num_blocks, args.block_size)?;
    }
    let cache = CacheConfig {
        num_blocks,
        block_size: args.block_size,
        prefix_cache: args.prefix_cache == Switch::On,
        num_host_blocks: 0,
    };
    let defaults = Config::new(cache);
    let kv_tokens = defaults.max_model_len;
    let (seqs, tokens) = match device {
        DeviceKind::Cpu(_) => (options::MAX_NUM_SEQS, options::MAX_NUM_BATCHED_TOKENS),
        _ => ((kv_tokens / 1024).clamp(8, 256), 2048),
    };
    Ok(Config {
        max_num_seqs: args.max_num_seqs.unwrap_or(seqs),
        max_num_batched_tokens: args.max_num_batched_tokens.unwrap_or(tokens),
        max_model_len: args.max_model_len.unwrap_or(kv_tokens),
        ..defaults
    })
}

fn workload(args: &Replay, device: &DeviceKind) -> Result<Trace, Failure> {
    if args.arrival == Arrival::Burst && args.rate.is_some() {
        return Err(usage("--rate and --arrival burst exclude each other"));
    }
    let limit = args.limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let defaults = trace::Options::default();
    let options = trace::Options {
        limit: limit.unwrap_or(defaults.limit),
        strict: args.strict,
        hash_block_size: args.hash_block_size.unwrap_or(defaults.hash_block_size),
    };
    let mut trace = match &args.trace {
        Some(path) => trace::read(path, options),
        None => {
            let defaults = match device {
                DeviceKind::Cpu(_) => Synthetic::small(),
                _ => Synthetic::default(),
            };
            let requests = limit.unwrap_or(defaults.requests);
            Synthetic { requests, seed: args.seed, ..defaults }.trace()
        }
    }
    .map_err(|error| usage(error.to_string()))?;
    if args.hash_block_size.is_some() && trace.format != "mooncake" {
        let (name, format) = (&trace.name, trace.format);
        return Err(usage(format!(
            "--hash-block-size is for mooncake traces, and {name} is {format}"
        )));
    }
    // The built-in workload's arrivals are seconds, and without a device there are none.
    let counts_steps = matches!(device, DeviceKind::Decisions);
    let no_clock = args.trace.is_none() && counts_steps && args.rate.is_none();
    match (args.arrival, args.rate) {
        (Arrival::Burst, _) => trace::burst(&mut trace),
        (Arrival::Trace, None) if no_clock => trace::burst(&mut trace),
        (Arrival::Trace, Some(rate)) => trace::poisson(&mut trace, rate, args.seed)
            .map_err(|error| usage(format!("--rate: {}", error.reason)))?,
        (Arrival::Trace, None) => {}
    }
    Ok(trace)
}

fn check_clock(trace: &Trace, device: &DeviceKind) -> Result<(), Failure> {
    let (has, wants) = match (trace.clock, device) {
        (Clock::Seconds, DeviceKind::Decisions) => ("seconds", "counts steps"),
        (Clock::Steps, DeviceKind::Model(_) | DeviceKind::Cpu(_)) => ("steps", "counts seconds"),
        _ => return Ok(()),
    };
    Err(usage(format!(
        "{}: arrivals are in {has}, the device {wants}: give --arrival burst",
        trace.name
    )))
}
