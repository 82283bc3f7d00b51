//! What a replay is to do, checked and with its defaults filled in.

use inflight::cache::CacheConfig;
use inflight::device::cost::{self, CostModel};
use inflight::scheduler::queue::{Ageing, Priority};
use inflight::{Config, Policy};

use crate::Failure;
use crate::args::{Arrival, Replay, Switch};
use crate::metrics::Unit;
use crate::trace::{self, Clock, Synthetic, Trace};

/// What runs the steps.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DeviceKind {
    /// Nothing: a step is the unit of time.
    Decisions,
    /// A roofline.
    Model(CostModel),
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
        let trace = workload(args)?;
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
            // Without ageing nobody is promised anything: vLLM's order has no bound either.
            let bound = if self.ageing == Ageing::Off { u64::MAX } else { 1024 };
            policy.queue = Box::new(Priority::new(self.ageing, bound, u64::MAX));
        }
        Ok(policy)
    }

    /// What times count.
    pub(crate) fn unit(&self) -> Unit {
        match self.device {
            DeviceKind::Decisions => Unit::Steps,
            DeviceKind::Model(_) => Unit::Seconds,
        }
    }

    /// The settings, for the reader of an output.
    pub(crate) fn echo(&self) -> Vec<(&'static str, usize)> {
        let Config { max_num_seqs, max_num_batched_tokens, max_model_len, cache, .. } = self.config;
        vec![
            ("trace_requests", self.trace.rows.len()),
            ("max_num_seqs", max_num_seqs),
            ("num_blocks", cache.num_blocks),
            ("block_size", cache.block_size),
            ("max_num_batched_tokens", max_num_batched_tokens),
            ("max_model_len", max_model_len),
            ("prefix_cache", usize::from(cache.prefix_cache)),
            ("seed", usize::try_from(self.seed).unwrap_or(usize::MAX)),
        ]
    }
}

fn device(args: &Replay) -> Result<(DeviceKind, String), Failure> {
    let gpus = || cost::gpus().iter().map(|gpu| format!("model:{}", gpu.name)).collect::<Vec<_>>();
    let unknown = || {
        let known = gpus().join(", ");
        usage(format!("--device `{}` is none of {known}, none", args.device))
    };
    if args.device == "none" {
        return Ok((DeviceKind::Decisions, args.device.clone()));
    }
    let name = args.device.strip_prefix("model:").ok_or_else(unknown)?;
    let gpu = cost::gpu(name).ok_or_else(unknown)?;
    let model = cost::model(&args.model).ok_or_else(|| {
        let known: Vec<_> = cost::models().iter().map(|model| model.name).collect();
        usage(format!("--model `{}` is none of {}", args.model, known.join(", ")))
    })?;
    let kind = DeviceKind::Model(CostModel::new(gpu, model));
    Ok((kind, format!("{} ({})", args.device, args.model)))
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
    let cache = CacheConfig {
        num_blocks,
        block_size: args.block_size,
        prefix_cache: args.prefix_cache == Switch::On,
        num_host_blocks: 0,
    };
    let defaults = Config::new(cache);
    let kv_tokens = defaults.max_model_len;
    Ok(Config {
        max_num_seqs: args.max_num_seqs.unwrap_or((kv_tokens / 1024).clamp(8, 256)),
        max_num_batched_tokens: args.max_num_batched_tokens,
        max_model_len: args.max_model_len.unwrap_or(kv_tokens),
        ..defaults
    })
}

fn workload(args: &Replay) -> Result<Trace, Failure> {
    if args.arrival == Arrival::Burst && args.rate.is_some() {
        return Err(usage("--rate and --arrival burst exclude each other"));
    }
    let limit = args.limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let mut trace = match &args.trace {
        Some(path) => trace::read(path, limit),
        None => {
            let defaults = Synthetic::default();
            let requests = limit.unwrap_or(defaults.requests);
            Synthetic { requests, seed: args.seed, ..defaults }.trace()
        }
    }
    .map_err(|error| usage(error.to_string()))?;
    // The built-in workload's arrivals are seconds, and without a device there are none.
    let no_clock = args.trace.is_none() && args.device == "none" && args.rate.is_none();
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
        (Clock::Steps, DeviceKind::Model(_)) => ("steps", "counts seconds"),
        _ => return Ok(()),
    };
    Err(usage(format!(
        "{}: arrivals are in {has}, the device {wants}: give --arrival burst",
        trace.name
    )))
}
