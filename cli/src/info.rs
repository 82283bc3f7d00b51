//! `inflight info`: what this machine offers.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use inflight::device::cpu::{Cpu, CpuConfig, Isa};
use inflight::device::cuda;
use inflight::device::memory::Buffer;
use serde::Serialize;

use crate::args::Info;
use crate::{Failure, print};

/// Bytes read for the bandwidth: more than any cache.
const BYTES: usize = 256 << 20;
/// How long each measurement goes on.
const MEASURE: Duration = Duration::from_millis(500);

#[derive(Serialize)]
struct Machine {
    version: &'static str,
    target: String,
    cpu: Option<String>,
    features: Vec<&'static str>,
    isa: &'static str,
    isas: Vec<&'static str>,
    cores: usize,
    cores_allowed: Option<String>,
    threads: usize,
    page_bytes: Option<u64>,
    huge_pages: Option<String>,
    memory_available_bytes: Option<u64>,
    /// Of a plain loop that sums, GB/s.
    read_gb_per_s: Bandwidth,
    cuda: Cuda,
    devices: Vec<Device>,
}

#[derive(Serialize)]
struct Cuda {
    /// As CUDA counts: 13000 is 13.0.
    driver: Option<i32>,
    #[serde(flatten)]
    kernels: Kernels,
    devices: Vec<Gpu>,
    /// Why there is no device.
    reason: Option<String>,
}

/// Of this build.
#[derive(Serialize)]
struct Kernels {
    /// What they were compiled for; empty where there are none.
    architectures: &'static str,
    /// What compiled them; null where nothing did.
    toolkit: Option<i32>,
    /// The version that the driver must offer.
    driver_needed: i32,
}

#[derive(Serialize)]
struct Gpu {
    name: String,
    sm: String,
    memory_bytes: usize,
    multiprocessors: u32,
    l2_bytes: usize,
    /// Of what kernels were compiled for, what it runs; null where it can run none of it.
    image: Option<String>,
}

#[derive(Serialize)]
struct Bandwidth {
    one_thread: f64,
    all_threads: f64,
}

#[derive(Serialize)]
struct Device {
    name: &'static str,
    available: bool,
    note: String,
}

/// Prints all of it.
pub(crate) fn main(args: &Info) -> Result<(), Failure> {
    let machine = Machine::look().map_err(|error| Failure::Run(error.to_string()))?;
    let text = if args.json {
        let json = serde_json::to_string_pretty(&machine);
        json.map_err(|error| Failure::Run(error.to_string()))? + "\n"
    } else {
        machine.text()
    };
    print(&text)
}

impl Machine {
    fn look() -> inflight::Result<Self> {
        let cpu = Cpu::new(&CpuConfig::default())?;
        let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(Isa::name);
        let buffer = Buffer::zeroed(BYTES)?;
        let cuda = Cuda::look();
        let cuda_device = cuda.device();
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            cpu: field("/proc/cpuinfo", "model name"),
            features: features(),
            isa: cpu.isa().name(),
            isas: isas.collect(),
            cores: thread::available_parallelism().map_or(1, usize::from),
            cores_allowed: field("/proc/self/status", "Cpus_allowed_list"),
            threads: cpu.threads(),
            page_bytes: page_bytes(),
            huge_pages: huge_pages(),
            memory_available_bytes: crate::tensor::available_bytes(),
            read_gb_per_s: Bandwidth {
                one_thread: bandwidth(&buffer, 1),
                all_threads: bandwidth(&buffer, cpu.threads()),
            },
            cuda,
            devices: vec![
                Device { name: "cpu", available: true, note: String::new() },
                cuda_device,
            ],
        })
    }

    fn text(&self) -> String {
        let unknown = || "unknown".to_owned();
        let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(unknown);
        let mib =
            |bytes: Option<u64>| bytes.map_or_else(unknown, |bytes| format!("{} MiB", bytes >> 20));
        let Bandwidth { one_thread, all_threads } = self.read_gb_per_s;
        let devices = self.devices.iter().map(|device| match device.note.as_str() {
            "" => device.name.to_owned(),
            note => format!("{} ({note})", device.name),
        });
        let lines = [
            ("version", self.version.to_owned()),
            ("target", self.target.clone()),
            ("cpu", or_unknown(&self.cpu)),
            ("features", self.features.join(" ")),
            ("instructions", format!("{} (of {})", self.isa, self.isas.join(", "))),
            ("cores", format!("{} (allowed: {})", self.cores, or_unknown(&self.cores_allowed))),
            ("threads", self.threads.to_string()),
            ("page size", self.page_bytes.map_or_else(unknown, |b| format!("{} KiB", b >> 10))),
            ("huge pages", or_unknown(&self.huge_pages)),
            ("memory", format!("{} available", mib(self.memory_available_bytes))),
            (
                "read",
                format!(
                    "{one_thread:.1} GB/s with 1 thread, {all_threads:.1} GB/s with {} \
                     (a plain summing loop over {} MiB)",
                    self.threads,
                    BYTES >> 20
                ),
            ),
            ("cuda", self.cuda.text()),
            ("devices", devices.collect::<Vec<_>>().join(", ")),
        ];
        lines.iter().map(|(name, value)| format!("{name:<13}{value}\n")).collect()
    }
}

impl Cuda {
    fn look() -> Self {
        let (devices, reason) = match cuda::probe() {
            Ok(devices) => (devices, None),
            Err(why) => (Vec::new(), Some(why.to_string())),
        };
        let driver = cuda::driver_version().ok();
        let kernels = Kernels {
            architectures: cuda::architectures(),
            toolkit: cuda::toolkit(),
            driver_needed: cuda::driver_needed(),
        };
        let gpu = |info: cuda::CudaDeviceInfo| Gpu {
            image: kernels.image_for(info.compute_capability, driver.unwrap_or(0)),
            l2_bytes: info.l2_cache,
            sm: info.sm(),
            name: info.name,
            memory_bytes: info.memory,
            multiprocessors: info.multiprocessors,
        };
        Self { driver, devices: devices.into_iter().map(gpu).collect(), reason, kernels }
    }

    /// Whether steps can be run with it, or what is missing.
    fn device(&self) -> Device {
        let Kernels { architectures, toolkit, driver_needed } = self.kernels;
        let note = match (&self.reason, self.driver, toolkit) {
            (Some(reason), ..) => reason.clone(),
            (None, _, None) => "built without kernels (feature `cuda`)".to_owned(),
            (None, Some(driver), Some(toolkit)) if driver < driver_needed => format!(
                "built with CUDA {}, whose kernels need a driver of {}, and this one offers {}: \
                 update the driver, or build with a {}.x toolkit",
                version(toolkit),
                version(driver_needed),
                version(driver),
                driver / 1000
            ),
            _ if self.devices.iter().all(|gpu| gpu.image.is_none()) => {
                format!("built for {architectures}, none of it for this GPU and driver")
            }
            _ => String::new(),
        };
        Device { name: "cuda", available: note.is_empty(), note }
    }

    fn text(&self) -> String {
        let driver = self.driver.map_or_else(
            || "no driver".to_owned(),
            |driver| format!("driver of CUDA {}", version(driver)),
        );
        let needed = version(self.kernels.driver_needed);
        let kernels = match self.kernels.toolkit {
            Some(toolkit) => format!(
                "kernels for {}, built with CUDA {}, for drivers of CUDA {needed} and later",
                self.kernels.architectures,
                version(toolkit)
            ),
            None => format!(
                "no kernels in this build (--features cuda), which is for drivers of CUDA {needed} \
                 and later"
            ),
        };
        let gpu = |gpu: &Gpu| {
            let Gpu { name, sm, memory_bytes, multiprocessors, l2_bytes, image } = gpu;
            let runs = match image {
                Some(image) => format!(", runs {image}"),
                None => String::new(),
            };
            format!(
                "{name} ({sm}, {} MiB, {multiprocessors} SMs, {} MiB of L2{runs})",
                memory_bytes >> 20,
                l2_bytes >> 20
            )
        };
        let devices: Vec<_> = self.devices.iter().map(gpu).collect();
        let devices = if devices.is_empty() { "no device".to_owned() } else { devices.join(", ") };
        format!("{devices}; {driver}; {kernels}")
    }
}

/// As CUDA counts, in words: 13000 is 13.0.
fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

impl Kernels {
    /// Which of `sm_80, sm_90, PTX 8.0, PTX 9.0` a GPU runs with a driver of this version; PTX is read by
    /// drivers that are as new as the toolkit.
    fn image_for(&self, capability: (u32, u32), driver: i32) -> Option<String> {
        let image = image_for(capability, self.architectures)?;
        let needed = match image.starts_with("PTX") {
            true => self.toolkit.unwrap_or(0),
            false => self.driver_needed,
        };
        (driver >= needed).then_some(image)
    }
}

/// Which of `sm_80, sm_90, PTX 8.0, PTX 9.0` a GPU runs: code for its own architecture or an earlier
/// one of its generation, else what the driver makes of the latest PTX that it can.
fn image_for((major, minor): (u32, u32), architectures: &str) -> Option<String> {
    let list = || architectures.split(", ");
    let binary = |name: &str| {
        let number = name.strip_prefix("sm_")?;
        let digits = number.trim_end_matches(['a', 'f']);
        let version: u32 = digits.parse().ok()?;
        let (has, at) = (version / 10, version % 10);
        // With an `a` it runs on this very one, with an `f` on later ones of the family too.
        let runs = has == major && if number.ends_with('a') { at == minor } else { at <= minor };
        runs.then_some((at, number.len()))
    };
    let best = list().filter_map(|name| Some((binary(name)?, name))).max();
    let ptx = |name: &str| {
        let (has, at) = name.strip_prefix("PTX ")?.split_once('.')?;
        let version: (u32, u32) = (has.parse().ok()?, at.parse().ok()?);
        (version <= (major, minor)).then_some(version)
    };
    let compiled = || {
        let (_, name) = list().filter_map(|name| Some((ptx(name)?, name))).max()?;
        Some(format!("{name}, compiled by the driver"))
    };
    best.map(|(_, name)| name.to_owned()).or_else(compiled)
}

/// The first value of a `name: value` file of the system.
fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(field, _)| field.trim() == name)?;
    Some(value.trim().to_owned())
}

/// The setting between brackets: `always [madvise] never`.
fn huge_pages() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?;
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// The kernel's page size, from the mapping that every process has.
fn page_bytes() -> Option<u64> {
    let kib = field("/proc/self/smaps", "KernelPageSize")?;
    Some(kib.trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
}

/// What kernels here look for.
fn features() -> Vec<&'static str> {
    #[allow(unused_mut, reason = "some targets have none")]
    let mut found = Vec::new();
    macro_rules! look {
        ($detected:ident: $($feature:tt)*) => {
            $(if std::arch::$detected!($feature) {
                found.push($feature);
            })*
        };
    }
    #[cfg(target_arch = "x86_64")]
    look!(is_x86_feature_detected:
        "sse4.2" "avx" "f16c" "fma" "avx2" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512vnni"
        "avx512bf16");
    #[cfg(target_arch = "aarch64")]
    look!(is_aarch64_feature_detected: "neon" "fp16" "bf16" "dotprod" "i8mm" "sve");
    found
}

/// GB/s of the fastest pass over `buffer`, a part for each thread.
fn bandwidth(buffer: &Buffer, threads: usize) -> f64 {
    let words: &[u64] = bytemuck::cast_slice(&buffer[..BYTES]);
    let part = words.len().div_ceil(threads);
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed() < MEASURE || best == f64::INFINITY {
        let start = Instant::now();
        thread::scope(|scope| {
            for words in words.chunks(part) {
                scope.spawn(move || std::hint::black_box(sum(std::hint::black_box(words))));
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    BYTES as f64 * 1e-9 / best
}

/// Sixteen sums side by side, which compilers turn into the widest loads there are.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0_u64; 16];
    let (rows, rest) = words.as_chunks::<16>();
    for row in rows {
        sums.iter_mut().zip(row).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
    }
    sums.iter().chain(rest).fold(0, |all, word| all.wrapping_add(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_for_gpus() {
        let image = |sm| image_for(sm, "sm_80, sm_86, sm_90, PTX 8.0, PTX 9.0");
        assert_eq!(image((8, 0)).as_deref(), Some("sm_80"));
        assert_eq!(image((8, 9)).as_deref(), Some("sm_86"));
        assert_eq!(image((9, 0)).as_deref(), Some("sm_90"));
        assert_eq!(image((10, 0)).as_deref(), Some("PTX 9.0, compiled by the driver"));
        assert_eq!(image((12, 1)).as_deref(), Some("PTX 9.0, compiled by the driver"));
        let image = |sm| image_for(sm, "sm_80, sm_89, PTX 8.0");
        assert_eq!(image((8, 9)).as_deref(), Some("sm_89"));
        assert_eq!(image((9, 0)).as_deref(), Some("PTX 8.0, compiled by the driver"));
        let image = |sm| image_for(sm, "sm_90, sm_100a, PTX 8.0, PTX 9.0");
        assert_eq!(image((8, 6)).as_deref(), Some("PTX 8.0, compiled by the driver"));
        assert_eq!(image((10, 0)).as_deref(), Some("sm_100a"));
        assert_eq!(image((10, 3)).as_deref(), Some("PTX 9.0, compiled by the driver"));
        assert_eq!(image((7, 5)), None);
        assert_eq!(image_for((9, 0), ""), None);
    }

    #[test]
    fn images_for_drivers() {
        let kernels = |toolkit, driver_needed| {
            let architectures = "sm_80, PTX 8.0";
            Kernels { architectures, toolkit: Some(toolkit), driver_needed }
        };
        let runs = |kernels: &Kernels, sm, driver| kernels.image_for(sm, driver).is_some();
        let (code, ptx) = ((8, 6), (12, 0));
        let of_12 = kernels(12_080, 12_040);
        assert!(runs(&of_12, code, 12_040) && runs(&of_12, code, 13_000));
        assert!(!runs(&of_12, ptx, 12_040) && runs(&of_12, ptx, 12_080));
        let of_13 = kernels(13_010, 13_000);
        assert!(!runs(&of_13, code, 12_090) && runs(&of_13, code, 13_000));
        assert!(!runs(&of_13, ptx, 13_000) && runs(&of_13, ptx, 13_010));
    }

    /// What is said of a driver.
    #[test]
    fn the_driver_that_is_needed_is_said() {
        let mut cuda = Cuda {
            driver: Some(12_040),
            kernels: Kernels {
                architectures: "sm_80",
                toolkit: Some(13_000),
                driver_needed: 13_000,
            },
            devices: Vec::new(),
            reason: None,
        };
        let device = cuda.device();
        assert!(!device.available);
        assert_eq!(
            device.note,
            "built with CUDA 13.0, whose kernels need a driver of 13.0, and this one offers 12.4: \
             update the driver, or build with a 12.x toolkit"
        );
        assert!(cuda.text().contains("built with CUDA 13.0, for drivers of CUDA 13.0 and later"));
        cuda.kernels.toolkit = None;
        assert!(
            cuda.text().ends_with("which is for drivers of CUDA 13.0 and later"),
            "{}",
            cuda.text()
        );
    }

    #[test]
    fn every_word_is_summed() {
        let words: Vec<u64> = (0..1000).collect();
        assert_eq!(sum(&words), 499_500);
        assert_eq!(sum(&words[..7]), 21);
        assert_eq!(sum(&[u64::MAX, 2]), 1);
    }
}
