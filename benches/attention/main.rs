//! The attention kernels against the processor's limits, by alternation in one run.
//!
//! Every round measures every case once, and each case measures its limits right before itself, so
//! that a slow moment of the machine falls on both. Figures are medians over the rounds; ratios are
//! made case by case. `benches/README.md` says what the rows mean.

mod cases;
#[path = "../common/mod.rs"]
mod common;
mod copies;
mod data;
mod others;
mod peak;
mod read;
mod table;

use std::process::ExitCode;
use std::time::Instant;

use inflight::device::cpu::Isa;
use inflight::{Error, Result};
use serde_json::json;

use crate::data::{Bench, READ};
use crate::others::Others;
use crate::peak::Sgemm;
use crate::table::{Sample, Table};

const ROUNDS: usize = 9;
/// A sample is taken again while others use more cores than this, so many times in all at most, and
/// while the run is within its share of so many seconds. The least disturbed of its tries counts,
/// whatever it shows.
const QUIET: f64 = 0.1;
const TRIES: usize = 4;
const PATIENCE: f64 = 200.0;

type Run = Box<dyn FnMut(&mut Bench) -> Result<Vec<Sample>>>;

/// Something measured once a round.
struct Case {
    name: String,
    run: Run,
}

/// The cases that were asked for.
struct Cases<'a> {
    bench: &'a Bench,
    only: Option<&'a str>,
    list: Vec<Case>,
}

impl Cases<'_> {
    /// Makes a case, unless it was not asked for.
    fn add<R>(&mut self, name: &str, make: impl FnOnce(&Bench) -> Result<R>) -> Result<()>
    where
        R: FnMut(&mut Bench) -> Result<Vec<Sample>> + 'static,
    {
        if self.only.is_none_or(|only| name.contains(only)) {
            let run = Box::new(make(self.bench)?);
            self.list.push(Case { name: name.into(), run });
        }
        Ok(())
    }
}

#[derive(Default)]
struct Options {
    json: Option<String>,
    only: Option<String>,
    rounds: Option<usize>,
    threads: Option<usize>,
    isa: Option<Isa>,
    blas: Option<Sgemm>,
    /// Cargo runs it as a benchmark, not as a test.
    bench: bool,
    list: bool,
    help: bool,
}

const HELP: &str = "\
The attention kernels against the processor's limits; benches/README.md says what the rows mean.

  --only PART   cases whose name has this in it
  --list        print the names of the cases
  --rounds N    9 unless told; one more goes first and is not counted
  --threads N   one a core unless told
  --isa NAME    instructions of the kernels
  --blas FILE   a shared library with cblas_sgemm in place of matrixmultiply
  --json FILE   write every value, limit and ratio
  --help        this";

/// Why there are no figures.
enum Stop {
    /// What was asked for makes no sense: exit code 2.
    Usage(String),
    /// It made sense and did not work: exit code 1.
    Run(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidArgument { field, reason } => Self::Usage(format!("--{field}: {reason}")),
            error => Self::Run(error),
        }
    }
}

fn options() -> std::result::Result<Options, String> {
    let mut options = Options::default();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} wants a value"));
        let count = |text: String| match text.parse() {
            Ok(0) | Err(_) => Err(format!("{arg} {text}: not a number from 1")),
            Ok(count) => Ok(count),
        };
        match arg.as_str() {
            "--json" => options.json = Some(value()?),
            "--only" => options.only = Some(value()?),
            "--rounds" => options.rounds = Some(count(value()?)?),
            "--threads" => options.threads = Some(count(value()?)?),
            "--isa" => options.isa = Some(value()?.parse().map_err(|e| format!("{e}"))?),
            "--blas" => options.blas = Some(peak::load(&value()?)?),
            "--bench" => options.bench = true,
            "--list" => options.list = true,
            "--help" | "-h" => options.help = true,
            _ => return Err(format!("{arg} is no option\n\n{HELP}")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    match options().map_err(Stop::Usage).and_then(|options| measure(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Usage(what)) => {
            eprintln!("{what}");
            ExitCode::from(2)
        }
        Err(Stop::Run(error)) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> std::result::Result<(), Stop> {
    if options.help {
        println!("{HELP}");
        return Ok(());
    }
    // `cargo test --benches` runs this too; figures of such builds mean nothing.
    let rounds = options.rounds.unwrap_or(if options.bench { ROUNDS } else { 1 });
    let mut bench = Bench::new(options.threads, options.isa, options.blas)?;
    let mut cases = Cases { bench: &bench, only: options.only.as_deref(), list: Vec::new() };
    copies::limits(&mut cases)?;
    cases::all(&mut cases)?;
    copies::kernels(&mut cases)?;
    let mut list = cases.list;
    if let (true, Some(only)) = (list.is_empty(), &options.only) {
        return Err(Stop::Usage(format!(
            "--only {only}: no case has this; --list prints the names"
        )));
    }
    if options.list {
        list.iter().for_each(|case| println!("{}", case.name));
        return Ok(());
    }
    let processor = processor();
    let (threads, isa) = (bench.all.cpu.threads(), bench.all.cpu.isa());
    let best = bench.methods[bench.best].name;
    println!("{processor}; {threads} threads, kernels in {isa}; {rounds} rounds");
    println!("limit of reading: {best}, {} MiB on huge pages", READ >> 20);
    let mut table = Table::default();
    let start = Instant::now();
    let mut disturbed = Vec::new();
    // One round more than asked for: the first finds cold memory and sleeping threads.
    for round in 0..=rounds {
        for case in &mut list {
            let mut best: Option<(f64, Vec<Sample>)> = None;
            for _ in 0..TRIES {
                let others = Others::watch();
                let samples = (case.run)(&mut bench)?;
                let cores = others.cores();
                if best.as_ref().is_none_or(|(least, _)| cores < *least) {
                    best = Some((cores, samples));
                }
                let late = start.elapsed().as_secs_f64() > PATIENCE * round as f64 / rounds as f64;
                if cores < QUIET || late || !options.bench {
                    break;
                }
            }
            let (cores, samples) = best.expect("tried once at least");
            if round > 0 {
                disturbed.push(cores);
                samples.into_iter().for_each(|sample| table.push(sample));
            }
        }
    }
    table.print();
    let loud = disturbed.iter().filter(|&&cores| cores >= QUIET).count();
    let share = loud as f64 / disturbed.len().max(1) as f64;
    let others = disturbed.iter().sum::<f64>() / disturbed.len().max(1) as f64;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{seconds:.0} s; others used {others:.2} cores meanwhile, and more than {QUIET} in {:.0} % \
         of all samples",
        100.0 * share
    );
    if let Some(file) = &options.json {
        let record = json!({
            "bench": "attention", "processor": processor, "threads": threads, "isa": isa.name(),
            "rounds": rounds, "read_method": best, "cores_used_by_others": others,
            "samples_disturbed": share, "rows": table.json(),
        });
        let text = serde_json::to_string_pretty(&record).expect("plain numbers") + "\n";
        std::fs::write(file, text).map_err(|error| Error::Device(format!("{file}: {error}")))?;
    }
    Ok(())
}

/// Its name, as Linux knows it.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or(std::env::consts::ARCH, |(_, name)| name).into()
}
