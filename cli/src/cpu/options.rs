//! The options of `--device cpu`.

use std::fmt;

use inflight::device::cpu::{Cpu, CpuConfig};
use inflight::executor::Sampler;
use inflight::kernels::{AttentionConfig, DType};
use inflight::{Config, Error};
use serde_json::Value;

use super::{CpuDevice, Geometry};
use crate::Failure;
use crate::args::CpuOptions;
use crate::tensor::available_bytes;

/// Tokens of KV, where no option says how many.
pub(crate) const KV_TOKENS: usize = 8192;
/// Requests that run at once, where no option says how many.
pub(crate) const MAX_NUM_SEQS: usize = 16;
/// Tokens per step, where no option says how many: a chunk of 2,048 would hold up all other requests' next
/// token for longer than on a GPU.
pub(crate) const MAX_NUM_BATCHED_TOKENS: usize = 512;
const LAYERS: usize = 2;
const MOST_LAYERS: usize = 1024;
/// Threads a core: more only wait for each other, and thousands stop a machine.
const MOST_THREADS: usize = 8;
/// Cores in a range such as `0-3`: more than any machine has.
const MOST_CORES: usize = 4096;

/// A processor, ready, and the model whose attention it computes.
#[derive(Debug)]
pub(crate) struct OnCpu {
    cpu: Cpu,
    geometry: Geometry,
}

/// The first of the options that was given.
pub(crate) fn given(options: &CpuOptions) -> Option<&'static str> {
    let CpuOptions { layers, heads, kv_heads, head_dim, dtype, kv_dtype, threads, cores, isa } =
        options;
    let given = [
        ("--layers", layers.is_some()),
        ("--heads", heads.is_some()),
        ("--kv-heads", kv_heads.is_some()),
        ("--head-dim", head_dim.is_some()),
        ("--dtype", dtype.is_some()),
        ("--kv-dtype", kv_dtype.is_some()),
        ("--threads", threads.is_some()),
        ("--cores", cores.is_some()),
        ("--isa", isa.is_some()),
    ];
    given.iter().find(|(_, is_given)| *is_given).map(|(option, _)| *option)
}

/// An error of the library as one of the command line: its fields are options here.
pub(crate) fn failure(error: &Error) -> Failure {
    let Error::InvalidArgument { field, reason } = error else {
        return Failure::Run(error.to_string());
    };
    let option = match *field {
        "num_q_heads" => "heads".to_owned(),
        "num_kv_heads" | "num_heads" => "kv-heads".to_owned(),
        "q_dtype" => "dtype".to_owned(),
        "layout.k" | "layout.v" => "num-blocks".to_owned(),
        other => other.replace('_', "-"),
    };
    Failure::Usage(format!("--{option}: {reason}"))
}

/// Starts a processor.
///
/// # Errors
/// The option at fault.
pub(crate) fn cpu(
    threads: Option<usize>,
    cores: Option<Vec<usize>>,
    isa: Option<&str>,
) -> Result<Cpu, Failure> {
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    if let Some(threads) = threads.filter(|&threads| threads > usable * MOST_THREADS) {
        let plural = if usable == 1 { "" } else { "s" };
        let reason = format!("at most {MOST_THREADS} per core");
        let cores = format!("this process may use {usable} core{plural}");
        return Err(Failure::Usage(format!("--threads {threads}: {reason}, and {cores}")));
    }
    let isa = isa.map(str::parse).transpose().map_err(|error| failure(&error))?;
    Cpu::new(&CpuConfig { threads, cores, isa }).map_err(|error| failure(&error))
}

/// Reads `--cores`: numbers and ranges, each core once.
fn core_list(list: &[String]) -> Result<Vec<usize>, Failure> {
    let refused = |reason: String| Failure::Usage(format!("--cores: {reason}"));
    let mut cores = Vec::new();
    for part in list {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) else {
            return Err(refused(format!("`{part}` is neither a core nor a range such as 0-3")));
        };
        if first > last || last - first >= MOST_CORES {
            return Err(refused(format!("`{part}` is not a range of 1 to {MOST_CORES} cores")));
        }
        for core in first..=last {
            if cores.contains(&core) {
                return Err(refused(format!("{core} is there twice")));
            }
            cores.push(core);
        }
    }
    Ok(cores)
}

fn dtype(option: &str, name: &str) -> Result<DType, Failure> {
    name.parse().map_err(|error: Error| match error {
        Error::InvalidArgument { reason, .. } => Failure::Usage(format!("--{option}: {reason}")),
        other => failure(&other),
    })
}

/// Reads `--dtype`: one of those that queries have.
fn q_dtype(name: &str) -> Result<DType, Failure> {
    let known = [DType::F32, DType::F16, DType::Bf16];
    known.into_iter().find(|dtype| dtype.name() == name).ok_or_else(|| {
        let known = known.map(DType::name).join(", ");
        Failure::Usage(format!("--dtype: `{name}` is not one of {known}"))
    })
}

/// Refuses a device that other builds may have.
///
/// # Errors
/// It is one of those.
pub(crate) fn check_built(device: &str) -> Result<(), Failure> {
    if device == "cuda" || device.starts_with("cuda:") {
        let reason = "this version is not built with it; `inflight info` lists the devices";
        return Err(Failure::Usage(format!("--device `{device}`: {reason}")));
    }
    Ok(())
}

impl OnCpu {
    /// Checks the options and starts the threads.
    ///
    /// # Errors
    /// The option at fault.
    pub(crate) fn new(options: &CpuOptions) -> Result<Self, Failure> {
        let layers = options.layers.unwrap_or(LAYERS);
        if !(1..=MOST_LAYERS).contains(&layers) {
            let reason = format!("{layers} is not within 1 to {MOST_LAYERS}");
            return Err(Failure::Usage(format!("--layers: {reason}")));
        }
        let q_dtype = q_dtype(options.dtype.as_deref().unwrap_or("bf16"))?;
        let kv_dtype = options.kv_dtype.as_deref().map(|name| dtype("kv-dtype", name));
        let heads = options.heads.unwrap_or(32);
        let kv_heads = options.kv_heads.unwrap_or((heads / 4).max(1));
        let head_dim = options.head_dim.unwrap_or(128);
        let mut attention = AttentionConfig::new(heads, kv_heads, head_dim, q_dtype);
        attention.kv_dtype = kv_dtype.transpose()?.unwrap_or(q_dtype);
        attention.check().map_err(|error| failure(&error))?;
        let cores = options.cores.as_deref().map(core_list).transpose()?;
        let cpu = cpu(options.threads, cores, options.isa.as_deref())?;
        Ok(Self { cpu, geometry: Geometry { layers, attention } })
    }

    /// Refuses a cache that no kernel has, or that this machine's memory does not hold.
    ///
    /// # Errors
    /// The option at fault.
    pub(crate) fn check_cache(&self, num_blocks: usize, block_size: usize) -> Result<(), Failure> {
        let layout = self.geometry.layout(num_blocks, block_size);
        layout.check().map_err(|error| failure(&error))?;
        let tokens = num_blocks as f64 * block_size as f64;
        let bytes = tokens * self.geometry.kv_bytes_per_token() as f64;
        match available_bytes() {
            Some(available) if bytes > available as f64 => {
                let gib = |bytes: f64| bytes / f64::from(1 << 30);
                let (needed, free) = (gib(bytes), gib(available as f64));
                let reason = format!("a cache of {needed:.1} GiB, and {free:.1} GiB are free");
                let layers = self.geometry.layers;
                let asked = format!("--num-blocks {num_blocks} and --layers {layers}");
                Err(Failure::Usage(format!("{asked}: {reason}")))
            }
            _ => Ok(()),
        }
    }

    /// A device with the cache of `config`.
    ///
    /// # Errors
    /// The option at fault, or there is no memory.
    pub(crate) fn device(
        &self,
        config: &Config,
        sampler: Sampler,
    ) -> Result<CpuDevice<'_>, Failure> {
        let cache = (config.cache.num_blocks, config.cache.block_size);
        CpuDevice::new(&self.cpu, self.geometry, cache, config.max_model_len, sampler)
            .map_err(|error| failure(&error))
    }

    /// What is computed, for the reader of a table.
    pub(crate) fn explain(&self) -> String {
        let Geometry { layers, attention } = &self.geometry;
        let AttentionConfig { num_q_heads, num_kv_heads, head_dim, .. } = attention;
        let plural = if *layers == 1 { "" } else { "s" };
        format!(
            "computed and timed: attention and KV cache of {layers} layer{plural}, {num_q_heads}/\
             {num_kv_heads} heads of {head_dim}\n"
        )
    }

    /// The settings, for the reader of an output.
    pub(crate) fn echo(&self) -> Vec<(&'static str, Value)> {
        let Geometry { layers, attention } = &self.geometry;
        vec![
            ("layers", (*layers).into()),
            ("heads", attention.num_q_heads.into()),
            ("kv_heads", attention.num_kv_heads.into()),
            ("head_dim", attention.head_dim.into()),
            ("dtype", attention.q_dtype.name().into()),
            ("kv_dtype", attention.kv_dtype.name().into()),
            ("threads", self.cpu.threads().into()),
            ("isa", self.cpu.isa().name().into()),
        ]
    }
}

impl fmt::Display for OnCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (threads, isa) = (self.cpu.threads(), self.cpu.isa());
        let AttentionConfig { q_dtype, kv_dtype, .. } = self.geometry.attention;
        let plural = if threads == 1 { "" } else { "s" };
        write!(f, "cpu ({isa}, {threads} thread{plural}, {q_dtype}")?;
        if kv_dtype != q_dtype {
            write!(f, ", KV {kv_dtype}")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_numbers_and_ranges() {
        let read = |text: &str| core_list(&text.split(',').map(str::to_owned).collect::<Vec<_>>());
        for (text, cores) in [("0", &[0][..]), ("0-1,3", &[0, 1, 3]), ("5,2-2", &[5, 2])] {
            assert!(read(text).is_ok_and(|found| found == cores), "{text}");
        }
        for text in ["", "x", "1-", "-1", "2-1", "0,0", "0-2,1", "0-99999999999", "1-2-3"] {
            let refused =
                matches!(read(text), Err(Failure::Usage(why)) if why.starts_with("--cores: "));
            assert!(refused, "{text}");
        }
    }
}
