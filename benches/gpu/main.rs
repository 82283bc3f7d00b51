//! The GPU kernels against what the GPU itself does: reading, copying, products of tensor cores.
//!
//! Every sample of a case is taken right after one of each of its limits, all from a cold L2 cache,
//! between two events of the stream. `benches/README.md` says what the rows mean.

mod attention;
mod ceilings;
#[path = "../common/mod.rs"]
mod common;
mod device;
mod shape;
mod table;
mod writes;

use std::process::ExitCode;
use std::time::Instant;

use inflight::device::cpu::{Cpu, CpuConfig};
use inflight::device::cuda::{self, Cuda};
use inflight::{Error, Result};
use serde_json::json;

use crate::device::Gpu;
use crate::shape::Shape;
use crate::table::{Row, Unit};

const ROUNDS: usize = 15;

const HELP: &str = "\
The GPU kernels against what the GPU does; benches/README.md says what the rows mean.

  --only PART   cases whose name has this in it
  --except NAME not this case; may be repeated
  --list        print the names of the cases
  --telling     the twenty cases that tell most
  --rest        all but these
  --full        every decode shape there is: batches, lengths, heads, block sizes, caches
  --batch SPEC  this batch instead of the lists, such as 2q2k_32q1s1k; may be repeated
  --rounds N    15 unless told; one more goes first and is not counted
  --device N    the GPU's number, 0 unless told
  --smoke       tiny shapes, one round: to see that all of it runs
  --emulator    on the processor, which computes everything and says nothing of time
  --json FILE   write every figure
  --help        this";

#[derive(Default)]
struct Options {
    json: Option<String>,
    only: Option<String>,
    except: Vec<String>,
    batches: Vec<Shape>,
    rounds: Option<usize>,
    device: usize,
    full: bool,
    telling: bool,
    rest: bool,
    smoke: bool,
    emulator: bool,
    list: bool,
    help: bool,
}

fn options() -> std::result::Result<Options, String> {
    let mut options = Options::default();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} wants a value"));
        let number = |text: String| text.parse().map_err(|_| format!("{arg} {text}: no number"));
        match arg.as_str() {
            "--json" => options.json = Some(value()?),
            "--only" => options.only = Some(value()?),
            "--except" => options.except.push(value()?),
            "--rounds" => options.rounds = Some(number(value()?)?),
            "--device" => options.device = number(value()?)?,
            "--batch" => {
                let text = value()?;
                let shape = shape::spec(&text);
                let shape =
                    shape.ok_or_else(|| format!("--batch {text}: not like 2q2k_32q1s1k"))?;
                options.batches.push(shape);
            }
            "--full" => options.full = true,
            "--telling" => options.telling = true,
            "--rest" => options.rest = true,
            "--smoke" => options.smoke = true,
            "--emulator" => options.emulator = true,
            "--list" => options.list = true,
            "--help" | "-h" => options.help = true,
            // Cargo's own.
            "--bench" => {}
            _ => return Err(format!("{arg} is no option\n\n{HELP}")),
        }
    }
    if options.emulator && !options.smoke {
        return Err("--emulator is for --smoke: it is thousands of times slower than a GPU".into());
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(what) => {
            eprintln!("{what}");
            return ExitCode::from(2);
        }
    };
    match measure(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn shapes(options: &Options) -> Vec<Shape> {
    let mut shapes = match (options.batches.is_empty(), options.smoke) {
        (false, _) => options.batches.clone(),
        (true, true) => shape::tiny(),
        (true, false) => shape::all(options.full),
    };
    shapes.retain(|shape| wanted(options, &shape.name, true));
    if options.telling {
        shapes.sort_by_key(|shape| shape::TELLING.iter().position(|name| *name == shape.name));
    }
    shapes
}

/// Tiny ones have other names: there attention stands for what tells most, and the rest for itself.
fn wanted(options: &Options, name: &str, attention: bool) -> bool {
    let telling = if options.smoke { attention } else { shape::TELLING.contains(&name) };
    options.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
        && options.except.iter().all(|except| except != name)
        && (!options.telling || telling)
        && (!options.rest || !telling)
}

/// That each of the telling cases is there.
fn check_telling() -> Result<()> {
    let mut names: Vec<_> = shape::all(false).into_iter().map(|shape| shape.name).collect();
    names.extend(writes::all(false).into_iter().map(|(name, _)| name));
    match shape::TELLING.iter().find(|telling| !names.iter().any(|name| name == *telling)) {
        Some(gone) => Err(Error::Device(format!("no case has the name `{gone}`"))),
        None => Ok(()),
    }
}

fn measure(options: &Options) -> Result<()> {
    if options.help {
        println!("{HELP}");
        return Ok(());
    }
    let shapes = shapes(options);
    let mut others =
        if options.batches.is_empty() { writes::all(options.smoke) } else { Vec::new() };
    others.retain(|(name, _)| wanted(options, name, false));
    check_telling()?;
    if options.list {
        shapes.iter().for_each(|shape| println!("{}", shape.name));
        others.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(());
    }
    if options.emulator {
        // Opened before anything opens libcuda, which then is this one.
        if let Err(why) = simt::device(simt::Mode::asked(simt::Mode::Fast)) {
            println!("no emulator: {why}");
            return Ok(());
        }
    }
    let cuda = match Cuda::new(options.device) {
        Ok(cuda) => cuda,
        Err(Error::NoCuda(why)) => {
            println!("no GPU to measure: {why}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let rounds = options.rounds.unwrap_or(ROUNDS).max(1);
    let rounds = if options.smoke { 1 } else { rounds };
    let gpu = match Gpu::new(&cuda, options.smoke, rounds) {
        Err(Error::NoKernelImage { .. }) if !cuda::has_kernels() => {
            println!("no kernels to measure: built without the feature `cuda`");
            return Ok(());
        }
        gpu => gpu?,
    };
    run(options, gpu, &shapes, others)
}

fn run(
    options: &Options,
    mut gpu: Gpu,
    shapes: &[Shape],
    others: Vec<(String, impl Fn(&mut Gpu, &Cpu) -> Result<Option<Row>>)>,
) -> Result<()> {
    let start = Instant::now();
    let info = gpu.cuda.info().clone();
    let driver = cuda::driver_version().unwrap_or(0);
    println!(
        "{} ({}, {} SMs, {} MiB of L2), driver {}.{}; built for {}; rounds: {}",
        info.name,
        info.sm(),
        info.multiprocessors,
        info.l2_cache >> 20,
        driver / 1000,
        driver % 1000 / 10,
        if cuda::has_kernels() { cuda::architectures() } else { "the emulator" },
        gpu.rounds,
    );
    check_ceilings(&mut gpu)?;
    let cpu = Cpu::new(&CpuConfig::default())?;
    table::head();
    let rounds = gpu.rounds;
    let (mut rows, mut skipped, mut failed) = (Vec::new(), 0, Vec::new());
    // After each case: what was measured counts, whatever ends the rest.
    let write = |rows: &[Row], skipped: usize, failed: &[String], error: Option<String>| {
        let Some(file) = &options.json else { return Ok(()) };
        let record = json!({
            "bench": "gpu", "gpu": info.name, "sm": info.sm(), "driver": driver,
            "multiprocessors": info.multiprocessors, "l2_bytes": info.l2_cache,
            "built_for": cuda::architectures(), "rounds": rounds,
            "seconds": start.elapsed().as_secs_f64(),
            "emulated": options.emulator, "skipped": skipped, "failed": failed, "error": error,
            "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
        });
        write_whole(file, &(serde_json::to_string_pretty(&record).expect("plain numbers") + "\n"))
    };
    let mut take = |name: &str, measured: Result<Option<Row>>| -> Result<()> {
        let mut ended = Ok(());
        match measured {
            Ok(Some(row)) => {
                row.print();
                rows.push(row);
            }
            Ok(None) => skipped += 1,
            Err(Error::OutOfDeviceMemory { needed, free }) => {
                println!("{name:<52} skipped: {} MiB, {} free", needed >> 20, free >> 20);
                skipped += 1;
            }
            // A lost context fails every case after it as well.
            Err(Error::Cuda(error)) => ended = Err(Error::Cuda(error)),
            Err(error) => {
                println!("{name:<52} FAILED: {error}");
                failed.push(format!("{name}: {error}"));
            }
        }
        write(&rows, skipped, &failed, ended.as_ref().err().map(ToString::to_string))?;
        ended
    };
    for shape in shapes {
        take(&shape.name, attention::measure(&mut gpu, &cpu, shape))?;
    }
    for (name, measure) in &others {
        take(name, measure(&mut gpu, &cpu))?;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{} cases, {skipped} skipped, {} failed, {seconds:.0} s", rows.len(), failed.len());
    match failed.len() {
        0 => Ok(()),
        n => Err(Error::Device(format!("{n} cases are not what the processor computes"))),
    }
}

/// The old file or the new one, never a part of it.
fn write_whole(file: &str, text: &str) -> Result<()> {
    let new = format!("{file}.new");
    let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, file));
    written.map_err(|error| Error::Device(format!("{file}: {error}")))
}

/// What a large part of the arena is read and copied at, once; and that they do read and copy.
fn check_ceilings(gpu: &mut Gpu) -> Result<()> {
    let bytes = (gpu.arena.len() / 2).min(1 << 30) & !0xff;
    gpu.fill_arena(inflight::kernels::DType::Bf16)?;
    let mut host = vec![0_u32; bytes.min(4 << 20) / 4];
    gpu.stream.read(bytemuck::cast_slice_mut(&mut host), &gpu.arena, 0)?;
    gpu.ceilings.read(&gpu.stream, gpu.arena.address(), size_of_val(&host[..]))?;
    let word = gpu.ceilings.word(&gpu.stream, size_of_val(&host[..]))?;
    if word != host.iter().fold(0, |all, word| all ^ word) {
        return Err(Error::Device("the kernel that reads does not read all of it".into()));
    }
    let (from, to) = (gpu.arena.address(), gpu.arena.address() + bytes as u64);
    let mut best = [0.0_f64; 4];
    for _ in 0..=gpu.rounds.min(5) {
        let read = gpu.time(|stream| gpu.ceilings.read(stream, from, bytes))?;
        let copy = gpu.time(|stream| gpu.ceilings.copy(stream, (to, from), bytes))?;
        let driver = gpu.time(|stream| stream.copy((&gpu.arena, bytes), (&gpu.arena, 0), bytes))?;
        let mma = attention::mma(gpu)?;
        let bytes = bytes as f64;
        let rates = [bytes / read, 2.0 * bytes / copy, 2.0 * bytes / driver, mma];
        best.iter_mut().zip(rates).for_each(|(best, rate)| *best = best.max(rate));
    }
    gpu.ceilings.copy(&gpu.stream, (to, from), bytes)?;
    let mut copied = vec![0_u32; host.len()];
    gpu.stream.read(bytemuck::cast_slice_mut(&mut copied), &gpu.arena, bytes)?;
    if copied != host {
        return Err(Error::Device("the kernel that copies does not copy all of it".into()));
    }
    gpu.spoil_arena();
    println!(
        "best of all: read {:.0} GB/s, copy {:.0} GB/s (driver {:.0}), mma.sync bf16 {:.0} TFLOP/s",
        best[0] * Unit::Bytes.scaled().0,
        best[1] * Unit::Bytes.scaled().0,
        best[2] * Unit::Bytes.scaled().0,
        best[3] * Unit::Operations.scaled().0,
    );
    Ok(())
}
