//! The attention kernel: decode, prefill, mixtures, threads.

use inflight::Result;
use inflight::kernels::DType;

use crate::data::{Bench, Load, Spec, decode, lengths};
use crate::table::Sample;
use crate::{Cases, peak};

/// Timed together in a sample, at least.
const LEAST: f64 = 0.03;
const BF16: DType = DType::Bf16;

fn run(bench: &mut Bench, load: &mut Load) -> Result<f64> {
    load.run(false, &mut bench.arena, LEAST)
}

fn gb(load: &Load) -> f64 {
    load.spec.kv_bytes() as f64 / 1e9
}

fn gflop(load: &Load) -> f64 {
    load.spec.flops() / 1e9
}

fn rows(load: &Load) -> f64 {
    load.spec.rows.len() as f64
}

/// What a call reads, and what is read before any of it is read again.
fn sizes(load: &Load) -> String {
    format!("{} MiB, again after {}", load.spec.kv_bytes() >> 20, load.cycle() >> 20)
}

/// All of them.
pub(crate) fn all(cases: &mut Cases<'_>) -> Result<()> {
    decodes(cases)?;
    fp8(cases)?;
    skew(cases)?;
    blocks(cases)?;
    prefills(cases)?;
    mixed(cases)?;
    threads(cases)?;
    plans(cases)
}

fn decodes(cases: &mut Cases<'_>) -> Result<()> {
    let b32 = |mean| decode(lengths(32, mean));
    let mut list: Vec<(&str, Option<f64>, Spec)> = Vec::new();
    let wanted = Some(0.85);
    for (name, dtype, mean, target) in [
        ("decode: B 32, mean 1k, f32", DType::F32, 1024, wanted),
        ("decode: B 32, mean 1k, bf16", BF16, 1024, wanted),
        ("decode: B 32, mean 1k, f16", DType::F16, 1024, None),
        ("decode: B 32, mean 4k, f32", DType::F32, 4096, wanted),
        ("decode: B 32, mean 4k, bf16", BF16, 4096, wanted),
        ("decode: B 32, mean 4k, f16", DType::F16, 4096, None),
    ] {
        list.push((name, target, Spec::new(dtype, b32(mean))));
    }
    let mut hnd = Spec::new(BF16, b32(4096));
    hnd.cache.hnd = true;
    list.push(("decode: B 32, mean 4k, bf16, HND", wanted, hnd));
    for (name, heads) in
        [("decode: B 32, mean 4k, bf16, group 1", 8), ("decode: B 32, mean 4k, bf16, group 8", 64)]
    {
        let mut spec = Spec::new(BF16, b32(4096));
        spec.q_heads = heads;
        list.push((name, None, spec));
    }
    let mut d64 = Spec::new(BF16, b32(4096));
    d64.cache.head_dim = 64;
    list.push(("decode: B 32, mean 4k, bf16, d 64", None, d64));
    list.push(("decode: B 8, mean 4k, bf16", wanted, Spec::new(BF16, decode(lengths(8, 4096)))));
    list.push(("decode: B 1, 32k keys, bf16", wanted, Spec::new(BF16, decode(vec![32768]))));
    for (name, target, spec) in list {
        cases.add(name, |bench| {
            let mut load = Load::new(bench, spec)?;
            Ok(move |bench: &mut Bench| {
                let read = bench.read();
                let spent = run(bench, &mut load)?;
                let sample = Sample::new(name, "GB/s", gb(&load) / spent)
                    .also(rows(&load) / spent, "rows/s")
                    .note(sizes(&load));
                Ok(vec![match target {
                    Some(target) => sample.want("read", read, target),
                    None => sample.of("read", read),
                }])
            })
        })?;
    }
    Ok(())
}

/// fp8 against bf16 of the same lengths.
fn fp8(cases: &mut Cases<'_>) -> Result<()> {
    for (name, ratio_name, mean) in [
        ("decode: B 32, mean 1k, fp8", "decode: B 32, mean 1k, fp8 : bf16", 1024),
        ("decode: B 32, mean 4k, fp8", "decode: B 32, mean 4k, fp8 : bf16", 4096),
    ] {
        cases.add(name, |bench| {
            let spec = |dtype| Spec::new(dtype, decode(lengths(32, mean)));
            let mut half = Load::new(bench, spec(BF16))?;
            let mut load = Load::new(bench, spec(DType::Fp8E4m3))?;
            Ok(move |bench: &mut Bench| {
                let read = bench.read();
                let bf16 = rows(&half) / run(bench, &mut half)?;
                let spent = run(bench, &mut load)?;
                let rate = rows(&load) / spent;
                let bytes = Sample::new(name, "GB/s", gb(&load) / spent)
                    .also(rate, "rows/s")
                    .note(sizes(&load))
                    .of("read", read);
                Ok(vec![bytes, Sample::new(ratio_name, "rows/s", rate).want("bf16", bf16, 1.3)])
            })
        })?;
    }
    Ok(())
}

/// One row in eight much longer than the others, against rows of equal length.
fn skew(cases: &mut Cases<'_>) -> Result<()> {
    for (name, count) in [("skew: B 8, 1 row long", 8), ("skew: B 32, 4 rows long", 32)] {
        cases.add(name, |bench| {
            let long = count / 8;
            let mut skewed = vec![1024_u32; count];
            // 4,096 on average: 25,600 and seven of 1,024.
            skewed[..long].fill(8 * 4096 - 7 * 1024);
            let mut even = Load::new(bench, Spec::new(BF16, decode(vec![4096; count])))?;
            let mut load = Load::new(bench, Spec::new(BF16, decode(skewed)))?;
            Ok(move |bench: &mut Bench| {
                let uniform = gb(&even) / run(bench, &mut even)?;
                let rate = gb(&load) / run(bench, &mut load)?;
                let sample = Sample::new(name, "GB/s", rate).note("25,600 keys; the rest 1,024");
                Ok(vec![sample.want("all rows of 4,096", uniform, 0.9)])
            })
        })?;
    }
    Ok(())
}

fn blocks(cases: &mut Cases<'_>) -> Result<()> {
    for (name, size, target) in [
        ("block size 1", 1, Some(0.8)),
        ("block size 8", 8, Some(0.8)),
        ("block size 64", 64, None),
        ("block size 128", 128, None),
    ] {
        cases.add(name, |bench| {
            let mut spec = Spec::new(BF16, decode(lengths(32, 4096)));
            let mut usual = Load::new(bench, spec.clone())?;
            spec.cache.block_size = size;
            let mut load = Load::new(bench, spec)?;
            Ok(move |bench: &mut Bench| {
                let sixteen = gb(&usual) / run(bench, &mut usual)?;
                let rate = gb(&load) / run(bench, &mut load)?;
                let sample = Sample::new(name, "GB/s", rate).note("decode, B 32, mean 4k, bf16");
                Ok(vec![match target {
                    Some(target) => sample.want("block size 16", sixteen, target),
                    None => sample.of("block size 16", sixteen),
                }])
            })
        })?;
    }
    Ok(())
}

fn prefills(cases: &mut Cases<'_>) -> Result<()> {
    let mut d64 = Spec::new(BF16, vec![(2048, 2048)]);
    d64.cache.head_dim = 64;
    for (name, spec, targets) in [
        ("prefill: 2048, f32", Spec::new(DType::F32, vec![(2048, 2048)]), true),
        ("prefill: 2048, bf16", Spec::new(BF16, vec![(2048, 2048)]), true),
        ("prefill: 2048, fp8", Spec::new(DType::Fp8E4m3, vec![(2048, 2048)]), false),
        ("prefill: 512 after 3584, bf16", Spec::new(BF16, vec![(512, 4096)]), false),
        ("prefill: 8 x 256, bf16", Spec::new(BF16, vec![(256, 256); 8]), false),
        ("prefill: 2048, bf16, d 64", d64, false),
    ] {
        cases.add(name, |bench| {
            let f32 = spec.q_dtype == DType::F32;
            let mut load = Load::new(bench, spec)?;
            Ok(move |bench: &mut Bench| {
                let fma = peak::fma(&bench.all.pool);
                let dot = peak::dot_bf16(&bench.all.pool);
                let gemm = bench.gemm(false);
                let spent = run(bench, &mut load)?;
                let mut sample = Sample::new(name, "GFLOP/s", gflop(&load) / spent)
                    .also(load.spec.tokens() as f64 / spent, "tokens/s");
                sample = match targets && f32 {
                    true => sample.want("f32 GEMM", gemm, 0.75),
                    false => sample.of("f32 GEMM", gemm),
                };
                sample = sample.of("f32 FMA", fma);
                if let Some(dot) = dot.filter(|_| !f32) {
                    sample = match targets {
                        true => sample.want("bf16 dot", dot, 0.5),
                        false => sample.of("bf16 dot", dot),
                    };
                }
                Ok(vec![sample.note(format!("K and V: {} MiB", load.spec.kv_bytes() >> 20))])
            })
        })?;
    }
    Ok(())
}

/// A chunk of a prompt and decode rows in one batch, against each run by itself.
fn mixed(cases: &mut Cases<'_>) -> Result<()> {
    let name = "mixed: a chunk of 512 and 31 of decode";
    cases.add(name, |bench| {
        let (chunk, rest) = (vec![(512, 2048)], decode(lengths(31, 1024)));
        let both = [chunk.clone(), rest.clone()].concat();
        let mut chunk = Load::new(bench, Spec::new(BF16, chunk))?;
        let mut rest = Load::new(bench, Spec::new(BF16, rest))?;
        let mut load = Load::new(bench, Spec::new(BF16, both))?;
        Ok(move |bench: &mut Bench| {
            let apart = run(bench, &mut chunk)? + run(bench, &mut rest)?;
            let together = run(bench, &mut load)?;
            let sample = Sample::new(name, "calls/s", 1.0 / together);
            Ok(vec![sample.of("one after the other", 1.0 / apart).note("bf16; 2048 and mean 1k")])
        })
    })
}

/// All threads against one.
fn threads(cases: &mut Cases<'_>) -> Result<()> {
    for (name, spec, bound) in [
        ("threads: prefill 2048, bf16", Spec::new(BF16, vec![(2048, 2048)]), false),
        ("threads: prefill 2048, f32", Spec::new(DType::F32, vec![(2048, 2048)]), false),
        ("threads: decode B 32, mean 4k, bf16", Spec::new(BF16, decode(lengths(32, 4096))), true),
    ] {
        cases.add(name, |bench| {
            let mut load = Load::new(bench, spec)?;
            Ok(move |bench: &mut Bench| {
                let (work, unit) = match bound {
                    true => (gb(&load), "GB/s"),
                    false => (gflop(&load), "GFLOP/s"),
                };
                let one = work / load.run(true, &mut bench.arena, LEAST)?;
                let all = work / run(bench, &mut load)?;
                let sample = Sample::new(name, unit, all);
                // The target is for two; with more, nine tenths of them.
                let target = 0.9 * bench.all.cpu.threads() as f64;
                if !bound {
                    return Ok(vec![sample.want("1 thread", one, target)]);
                }
                let reads = [true, false].map(|one| bench.read_with(bench.best, one));
                let read = Sample::new("threads: read", "GB/s", reads[1]).of("1 thread", reads[0]);
                let gain = Sample::new("threads: gain of decode", "x", all / one)
                    .of("gain of read", reads[1] / reads[0]);
                Ok(vec![sample.of("1 thread", one), read, gain])
            })
        })?;
    }
    let name = "threads: f32 GEMM";
    cases.add(name, |_| {
        Ok(move |bench: &mut Bench| {
            let one = bench.gemm(true);
            let all = bench.gemm(false);
            Ok(vec![Sample::new(name, "GFLOP/s", all).of("1 thread", one)])
        })
    })
}

/// Planning, once a step.
fn plans(cases: &mut Cases<'_>) -> Result<()> {
    for (name, count, mean) in
        [("plan: B 32, mean 4k", 32, 4096), ("plan: B 256, mean 1k, fp8", 256, 1024)]
    {
        cases.add(name, |bench| {
            let dtype = if count == 32 { BF16 } else { DType::Fp8E4m3 };
            let mut load = Load::new(bench, Spec::new(dtype, decode(lengths(count, mean))))?;
            Ok(move |_: &mut Bench| {
                let mut spent = 0.0;
                for _ in 0..16 {
                    spent += load.plan(false)?;
                }
                Ok(vec![Sample::new(name, "us", spent / 16.0 * 1e6)])
            })
        })?;
    }
    Ok(())
}
