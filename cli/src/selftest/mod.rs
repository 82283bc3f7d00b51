//! `inflight selftest`: the kernels of a device against plain arithmetic in f64.

mod attention;
mod device;
mod reference;
mod writes;

use std::time::Instant;

use inflight::device::cpu::Isa;
use inflight::device::cuda::Cuda;
use inflight::kernels::DType;
use inflight::{Error, Result};
use serde::Serialize;

use crate::args::Selftest;
use crate::cpu::options::cpu;
use crate::tensor::Tensor;
use crate::trace::SplitMix64;
use crate::{Failure, print};
use device::Device;
use reference::Heads;

/// How far results were from what they should be.
#[derive(Clone, Copy, Debug, Default)]
struct Worst {
    error: f64,
    compared: u64,
}

impl Worst {
    /// Compares a number; NaN is as wrong as can be, infinities agree with themselves.
    fn add(&mut self, found: f64, expected: f64) {
        self.compared += 1;
        let error = if found == expected { 0.0 } else { (found - expected).abs() };
        self.error = self.error.max(if error.is_nan() { f64::INFINITY } else { error });
    }
}

/// What came of a case.
#[derive(Debug, Serialize)]
struct Outcome {
    case: String,
    dtype: String,
    isa: String,
    /// The largest error; null where it is infinite or nothing was computed.
    max_error: Option<f64>,
    bound: f64,
    compared: u64,
    passed: bool,
    /// Why nothing was computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

impl Outcome {
    fn new(case: &str, types: (DType, DType), bound: f64, worst: Result<Worst>) -> Self {
        let (data, cache) = types;
        let dtype = if data == cache { data.to_string() } else { format!("{data}, {cache} cache") };
        let (found, failure) = match worst {
            Ok(worst) => (worst, None),
            Err(error) => (Worst::default(), Some(error.to_string())),
        };
        let finite = found.error.is_finite() && failure.is_none();
        let compared = found.compared;
        Self {
            case: case.to_owned(),
            dtype,
            isa: String::new(),
            max_error: finite.then_some(found.error),
            bound,
            compared,
            passed: finite && compared > 0 && found.error <= bound,
            failure,
        }
    }
}

#[derive(Serialize)]
struct Report {
    device: String,
    /// Of a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Of the processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<usize>,
    isas: Vec<String>,
    seconds: f64,
    passed: usize,
    failed: usize,
    cases: Vec<Outcome>,
}

/// Runs all cases and prints what came of them.
pub(crate) fn main(args: &Selftest) -> std::result::Result<(), Failure> {
    let start = Instant::now();
    let mut report = Report {
        device: args.device.clone(),
        name: None,
        threads: None,
        isas: Vec::new(),
        seconds: 0.0,
        passed: 0,
        failed: 0,
        cases: Vec::new(),
    };
    match ordinal(&args.device)? {
        Some(ordinal) => on_gpu(args, ordinal, &mut report)?,
        None => on_cpu(args, &mut report)?,
    }
    report.seconds = start.elapsed().as_secs_f64();
    report.passed = report.cases.iter().filter(|case| case.passed).count();
    report.failed = report.cases.len() - report.passed;
    let text = if args.json {
        let json = serde_json::to_string_pretty(&report);
        json.map_err(|error| Failure::Run(error.to_string()))? + "\n"
    } else {
        report.text()
    };
    print(&text)?;
    match report.failed {
        0 => Ok(()),
        failed => Err(Failure::Run(format!("{failed} of {} cases failed", report.cases.len()))),
    }
}

/// The number of the GPU that is asked for; none for the processor.
fn ordinal(device: &str) -> std::result::Result<Option<usize>, Failure> {
    let number = match device {
        "cpu" => return Ok(None),
        "cuda" => Some(0),
        other => other.strip_prefix("cuda:").and_then(|number| number.parse().ok()),
    };
    let reason = "is not cpu, cuda or cuda:N, the devices that compute";
    number.map(Some).ok_or_else(|| Failure::Usage(format!("--device `{device}` {reason}")))
}

fn on_cpu(args: &Selftest, report: &mut Report) -> std::result::Result<(), Failure> {
    let names: Vec<Option<&str>> = match args.isa.as_deref() {
        Some("all") => {
            let all = Isa::ALL.into_iter().filter(|isa| isa.is_available());
            all.map(|isa| Some(isa.name())).collect()
        }
        one => vec![one],
    };
    for isa in names {
        let cpu = cpu(args.threads, None, isa)?;
        report.threads = Some(cpu.threads());
        run(&Device::cpu(&cpu), cpu.isa().name(), report);
    }
    Ok(())
}

fn on_gpu(
    args: &Selftest,
    ordinal: usize,
    report: &mut Report,
) -> std::result::Result<(), Failure> {
    for (name, given) in [("isa", args.isa.is_some()), ("threads", args.threads.is_some())] {
        if given {
            return Err(Failure::Usage(format!("--{name} is an option of --device cpu")));
        }
    }
    let failed = |error: Error| match error {
        Error::InvalidArgument { field: "device", reason } => {
            Failure::Usage(format!("--device: {reason}"))
        }
        error => Failure::Run(format!("--device {}: {error}", args.device)),
    };
    let cuda = Cuda::new(ordinal).map_err(failed)?;
    let gpu = Device::gpu(&cuda).map_err(failed)?;
    report.device = format!("cuda:{ordinal}");
    report.name = Some(cuda.info().name.clone());
    run(&gpu, &cuda.info().sm(), report);
    Ok(())
}

/// All cases on one device.
fn run(device: &Device, isa: &str, report: &mut Report) {
    let before = report.cases.len();
    attention::run(device, &mut report.cases);
    writes::run(device, &mut report.cases);
    report.isas.push(isa.to_owned());
    report.cases[before..].iter_mut().for_each(|outcome| isa.clone_into(&mut outcome.isa));
}

impl Report {
    fn text(&self) -> String {
        let mut text = match (self.threads, &self.name) {
            (Some(1), _) => format!("{}: 1 thread\n\n", self.device),
            (Some(threads), _) => format!("{}: {threads} threads\n\n", self.device),
            (None, name) => format!("{}: {}\n\n", self.device, name.as_deref().unwrap_or("")),
        };
        let widest = self.cases.iter().map(|case| case.case.chars().count()).max().unwrap_or(0);
        let line = |cells: [&str; 6]| {
            let [case, dtype, isa, error, bound, verdict] = cells;
            format!("{case:<widest$}  {dtype:<22}{isa:<14}{error:>9}{bound:>9}  {verdict}\n")
        };
        text += &line(["case", "type", "instructions", "error", "bound", ""]);
        for case in &self.cases {
            let error = case.max_error.map_or("–".to_owned(), |error| format!("{error:.1e}"));
            let verdict = match &case.failure {
                _ if case.passed => "pass".to_owned(),
                Some(why) => format!("FAIL: {why}"),
                None => "FAIL".to_owned(),
            };
            let bound = format!("{:.1e}", case.bound);
            text += &line([&case.case, &case.dtype, &case.isa, &error, &bound, &verdict]);
        }
        let compared: u64 = self.cases.iter().map(|case| case.compared).sum();
        let compared = crate::numbers::group(compared);
        let (passed, failed, seconds) = (self.passed, self.failed, self.seconds);
        text += "\nerror, bound: absolute, against f64; outputs of attention are at most 1, rotated \
                 numbers 1.5\n(queries with an fp8 cache count eightfold); where bits or \
                 bytes are compared, 0 is asked for\n";
        text + &format!(
            "\n{passed} passed, {failed} failed: {compared} numbers in {seconds:.1} s\n"
        )
    }
}

/// Numbers from -1 to 1, as a tensor and as what the tensor holds.
fn random(
    dtype: DType,
    tokens: usize,
    heads: usize,
    dim: usize,
    rng: &mut SplitMix64,
) -> Result<(Tensor, Heads)> {
    let numbers = (0..tokens * heads * dim).map(|_| 2.0 * rng.unit() - 1.0);
    let tensor = Tensor::from_numbers(dtype, numbers)?;
    let numbers = (0..tensor.len()).map(|at| tensor.get(at)).collect();
    Ok((tensor, Heads { heads, dim, numbers }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_never_passes() {
        let outcome = |found: &[(f64, f64)]| {
            let mut worst = Worst::default();
            found.iter().for_each(|&(found, expected)| worst.add(found, expected));
            Outcome::new("case", (DType::F32, DType::F32), 0.5, Ok(worst))
        };
        let infinite = f64::NEG_INFINITY;
        assert!(outcome(&[(1.0, 1.5), (infinite, infinite), (2.0, 2.0)]).passed);
        for wrong in
            [&[][..], &[(1.0, 1.6)], &[(f64::NAN, 0.0)], &[(infinite, 0.0)], &[(0.0, infinite)]]
        {
            assert!(!outcome(wrong).passed, "{wrong:?}");
        }
        let error = inflight::Error::Device("gone".to_owned());
        let failed = Outcome::new("case", (DType::Bf16, DType::Fp8E4m3), 0.5, Err(error));
        assert!(!failed.passed && failed.dtype == "bf16, fp8-e4m3 cache", "{failed:?}");
    }
}
