//! Workloads without a file: log-normal lengths and Poisson arrivals, the same for a seed on every
//! machine, and new arrivals for the requests of any trace.

use super::random::{SplitMix64, key};
use super::{Clock, MAX_LEN, Row, Trace, TraceError};

const NAME: &str = "synthetic";

/// Each has a stream of numbers of its own: the lengths of a workload stay the same when its rate
/// changes, and its prompts when its outputs do.
const ARRIVALS: u64 = u64::from_be_bytes(*b"arrivals");
const PROMPTS: u64 = u64::from_be_bytes(*b"\0prompts");
const OUTPUTS: u64 = u64::from_be_bytes(*b"\0outputs");

/// A workload to generate.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Synthetic {
    /// The name of its trace.
    pub(crate) name: &'static str,
    /// How many requests.
    pub(crate) requests: usize,
    /// Requests a second on average; the times between them are exponential.
    pub(crate) rate: f64,
    /// Half of the prompts are shorter than this, in tokens.
    pub(crate) prompt_median: f64,
    /// Standard deviation of the logarithm of the prompts' lengths; 0 makes them all alike.
    pub(crate) prompt_sigma: f64,
    /// Half of the outputs are shorter than this, in tokens.
    pub(crate) output_median: f64,
    /// Standard deviation of the logarithm of the outputs' lengths; 0 makes them all alike.
    pub(crate) output_sigma: f64,
    /// Longer prompts are cut to this, in tokens.
    pub(crate) max_prompt: u32,
    /// Longer outputs are cut to this, in tokens.
    pub(crate) max_output: u32,
    /// The same seed gives the same workload.
    pub(crate) seed: u64,
}

impl Default for Synthetic {
    /// Lengths like those of Azure's conversation trace of November 2023.
    fn default() -> Self {
        Self {
            name: NAME,
            requests: 1000,
            rate: 5.0,
            prompt_median: 1020.0,
            prompt_sigma: 0.6,
            output_median: 129.0,
            output_sigma: 1.0,
            max_prompt: 16384,
            max_output: 1024,
            seed: 0,
        }
    }
}

impl Synthetic {
    /// A workload for computing attention on a processor: shorter in all respects, and arriving
    /// faster than any processor serves it, so that it is the work that is measured.
    pub(crate) fn small() -> Self {
        Self {
            name: "synthetic-small",
            requests: 72,
            rate: 200.0,
            prompt_median: 160.0,
            prompt_sigma: 0.6,
            output_median: 64.0,
            output_sigma: 0.9,
            max_prompt: 1024,
            max_output: 512,
            seed: 0,
        }
    }

    /// Generates the requests.
    ///
    /// # Errors
    /// A parameter is outside its range; the error's field says which.
    pub(crate) fn trace(&self) -> Result<Trace, TraceError> {
        if self.requests == 0 {
            return Err(out_of_range(NAME, "requests", "must be at least 1"));
        }
        check_rate(NAME, self.rate)?;
        check_lengths(
            ["prompt_median", "prompt_sigma", "max_prompt"],
            self.prompt_median,
            self.prompt_sigma,
            self.max_prompt,
        )?;
        check_lengths(
            ["output_median", "output_sigma", "max_output"],
            self.output_median,
            self.output_sigma,
            self.max_output,
        )?;

        let mut prompts = Normal::new(key(PROMPTS, self.seed));
        let mut outputs = Normal::new(key(OUTPUTS, self.seed));
        let rows = arrivals(self.rate, self.seed)
            .zip(0..self.requests as u64)
            .map(|(arrival, id)| Row {
                arrival,
                prompt_len: prompts.length(self.prompt_median, self.prompt_sigma, self.max_prompt),
                output_len: outputs.length(self.output_median, self.output_sigma, self.max_output),
                ..Row::new(id)
            })
            .collect();
        Ok(Trace {
            name: self.name.to_owned(),
            format: NAME,
            clock: Clock::Seconds,
            rows,
            skipped: 0,
            notices: Vec::new(),
        })
    }
}

/// Replaces the arrivals of `trace`, keeping the order of its requests, by those of a Poisson
/// process of `rate` requests per second. The first request comes at 0. Later turns of a session come
/// when the one before has ended, and its delay is over.
///
/// # Errors
/// `rate` is not a positive, finite number; the trace is then as it was.
pub(crate) fn poisson(trace: &mut Trace, rate: f64, seed: u64) -> Result<(), TraceError> {
    check_rate(&trace.name, rate)?;
    trace.clock = Clock::Seconds;
    let mut arrivals = arrivals(rate, seed);
    for row in &mut trace.rows {
        row.arrival = match row.turn {
            None => arrivals.next().unwrap_or(row.arrival),
            Some(_) => 0.0,
        };
    }
    Ok(())
}

/// Lets every request of `trace` arrive at 0, in the order it has, and later turns of a session when
/// the one before has ended.
pub(crate) fn burst(trace: &mut Trace) {
    trace.clock = Clock::None;
    for row in &mut trace.rows {
        row.arrival = 0.0;
        row.turn.iter_mut().for_each(|turn| turn.delay = 0.0);
    }
}

/// The points of a Poisson process, the first of them at 0.
fn arrivals(rate: f64, seed: u64) -> impl Iterator<Item = f64> {
    let mut rng = SplitMix64::new(key(ARRIVALS, seed));
    std::iter::successors(Some(0.0), move |&last| Some(last - libm::log(1.0 - rng.unit()) / rate))
}

/// Standard normal numbers by Marsaglia's polar method. The logarithm and the exponential are
/// libm's: those of the platform may differ from each other in the last bit.
struct Normal {
    rng: SplitMix64,
    /// The method makes two at a time.
    spare: Option<f64>,
}

impl Normal {
    fn new(seed: u64) -> Self {
        Self { rng: SplitMix64::new(seed), spare: None }
    }

    fn next(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let (x, y) = (2.0 * self.rng.unit() - 1.0, 2.0 * self.rng.unit() - 1.0);
            let square = x * x + y * y;
            if square > 0.0 && square < 1.0 {
                let scale = (-2.0 * libm::log(square) / square).sqrt();
                self.spare = Some(y * scale);
                return x * scale;
            }
        }
    }

    /// A log-normal length in tokens, 1 to `max`.
    fn length(&mut self, median: f64, sigma: f64, max: u32) -> u32 {
        let length = median * libm::exp(sigma * self.next());
        length.round().clamp(1.0, f64::from(max)) as u32
    }
}

fn check_rate(name: &str, rate: f64) -> Result<(), TraceError> {
    if rate.is_finite() && rate > 0.0 {
        Ok(())
    } else {
        Err(out_of_range(name, "rate", format!("`{rate}` is not a positive, finite number")))
    }
}

fn check_lengths(
    [median_name, sigma_name, max_name]: [&str; 3],
    median: f64,
    sigma: f64,
    max: u32,
) -> Result<(), TraceError> {
    if !(1.0..=f64::from(MAX_LEN)).contains(&median) {
        let reason = format!("`{median}` is not from 1 to {MAX_LEN}");
        return Err(out_of_range(NAME, median_name, reason));
    }
    if !(0.0..=10.0).contains(&sigma) {
        return Err(out_of_range(NAME, sigma_name, format!("`{sigma}` is not from 0 to 10")));
    }
    if !(1..=MAX_LEN).contains(&max) {
        let reason = format!("`{max}` is not from 1 to {MAX_LEN}");
        return Err(out_of_range(NAME, max_name, reason));
    }
    Ok(())
}

fn out_of_range(file: &str, field: &str, reason: impl Into<String>) -> TraceError {
    TraceError { file: file.to_owned(), line: 0, field: field.to_owned(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(trace: &Trace) -> Vec<(u32, u32)> {
        trace.rows.iter().map(|row| (row.prompt_len, row.output_len)).collect()
    }

    fn median(mut values: Vec<u32>) -> u32 {
        values.sort_unstable();
        values[values.len() / 2]
    }

    /// Bit for bit: figures recorded from a workload must mean the same workload elsewhere.
    #[test]
    fn numbers_are_fixed() {
        let trace = Synthetic { requests: 4, ..Synthetic::default() }.trace().unwrap();
        assert_eq!(lengths(&trace), [(1648, 228), (1338, 318), (530, 737), (559, 57)]);
        let bits: Vec<_> = trace.rows.iter().map(|row| row.arrival.to_bits()).collect();
        let expected = [0, 4593210501884473922, 4596343258573613120, 4599434520361716401];
        assert_eq!(bits, expected);
    }

    #[test]
    fn has_the_shape_it_was_asked_for() {
        let spec = Synthetic { requests: 20_000, rate: 8.0, ..Synthetic::default() };
        let trace = spec.trace().unwrap();
        assert_eq!((trace.name.as_str(), trace.format), ("synthetic", "synthetic"));
        assert_eq!(trace.rows.len(), 20_000);
        assert_eq!(trace.rows[0].arrival, 0.0);
        assert!(trace.rows.is_sorted_by(|a, b| a.arrival < b.arrival));
        let rate = 19_999.0 / trace.rows[19_999].arrival;
        assert!((rate / 8.0 - 1.0).abs() < 0.03, "{rate}");

        let (prompts, outputs): (Vec<_>, Vec<_>) = lengths(&trace).into_iter().unzip();
        assert!(outputs.contains(&1024) && outputs.iter().all(|len| (1..=1024).contains(len)));
        let deviation = |lens: &[u32], median: f64| {
            let logs = lens.iter().map(|&len| (f64::from(len) / median).ln());
            (logs.map(|log| log * log).sum::<f64>() / lens.len() as f64).sqrt()
        };
        let sigma = deviation(&prompts, 1020.0);
        assert!((sigma / 0.6 - 1.0).abs() < 0.02, "{sigma}");
        assert!((f64::from(median(prompts)) / 1020.0 - 1.0).abs() < 0.02);
        assert!((f64::from(median(outputs)) / 129.0 - 1.0).abs() < 0.03);
    }

    #[test]
    fn rate_and_outputs_leave_prompts_alone() {
        let trace = |change: fn(&mut Synthetic)| {
            let mut spec = Synthetic { requests: 50, ..Synthetic::default() };
            change(&mut spec);
            spec.trace().unwrap()
        };
        let plain = trace(|_| {});
        assert_eq!(lengths(&plain), lengths(&trace(|spec| spec.rate = 100.0)));
        let other = trace(|spec| spec.output_median = 9.0);
        assert!(plain.rows.iter().zip(&other.rows).all(|(a, b)| a.prompt_len == b.prompt_len));
        assert_ne!(lengths(&plain), lengths(&trace(|spec| spec.seed = 1)));
        let flat = trace(|spec| (spec.prompt_sigma, spec.output_sigma) = (0.0, 0.0));
        assert!(lengths(&flat).iter().all(|&pair| pair == (1020, 129)));
    }

    #[test]
    fn parameters_have_ranges() {
        type Change = fn(&mut Synthetic);
        let message = |change: Change| {
            let mut spec = Synthetic::default();
            change(&mut spec);
            spec.trace().unwrap_err().to_string()
        };
        let cases: [(Change, &str); 9] = [
            (|spec| spec.requests = 0, "`requests`: must be at least 1"),
            (|spec| spec.rate = 0.0, "`rate`: `0` is not a positive, finite number"),
            (|spec| spec.rate = f64::NAN, "`rate`: `NaN` is not a positive, finite number"),
            (|spec| spec.rate = f64::INFINITY, "`rate`: `inf` is not a positive, finite number"),
            (|spec| spec.prompt_median = 0.5, "`prompt_median`: `0.5` is not from 1 to 16777216"),
            (|spec| spec.prompt_sigma = -1.0, "`prompt_sigma`: `-1` is not from 0 to 10"),
            (|spec| spec.output_sigma = f64::NAN, "`output_sigma`: `NaN` is not from 0 to 10"),
            (|spec| spec.max_prompt = 0, "`max_prompt`: `0` is not from 1 to 16777216"),
            (
                |spec| spec.max_output = u32::MAX,
                "`max_output`: `4294967295` is not from 1 to 16777216",
            ),
        ];
        for (change, expected) in cases {
            assert_eq!(message(change), format!("synthetic: field {expected}"));
        }
    }

    #[test]
    fn any_trace_can_be_timed_anew() {
        let text = "arrival_step,prompt_len,output_len\n3,5,7\n4,1,1\n9,2,2\n";
        let mut trace = super::super::tests::trace(text);
        let before = lengths(&trace);
        poisson(&mut trace, 2.0, 1).unwrap();
        assert_eq!((trace.clock, trace.rows[0].arrival), (Clock::Seconds, 0.0));
        assert!(trace.rows.is_sorted_by(|a, b| a.arrival < b.arrival));
        assert_eq!(
            poisson(&mut trace, -2.0, 1).unwrap_err().to_string(),
            "t: field `rate`: `-2` is not a positive, finite number"
        );
        burst(&mut trace);
        assert_eq!(trace.clock, Clock::None);
        assert!(trace.rows.iter().all(|row| row.arrival == 0.0));
        assert_eq!(lengths(&trace), before);
    }
}
