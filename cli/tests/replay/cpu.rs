//! `--device cpu`: it computes, and decides what every other device decides. How long it takes is
//! never looked at.

use serde_json::{Value, json};

use crate::program::{Scratch, figures, inflight, replay, trace};

/// Attention of a model small enough for a test.
const TINY: [&str; 8] = ["--device", "cpu", "--layers", "2", "--heads", "4", "--head-dim", "32"];

fn whole(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a whole number"))
}

#[test]
fn figures_of_a_small_run() {
    let scratch = Scratch::new("cpu");
    let vtc = trace("vtc.csv");
    let limits = ["--num-blocks", "400", "--threads", "2", "--isa", "portable"];
    let document = figures(&scratch, &[&[&*vtc], &TINY[..], &limits].concat());
    assert_eq!(document["device"], "cpu (portable, 2 threads, bf16)");
    let config = json!({
        "block_size": 16, "max_model_len": 6384, "max_num_batched_tokens": 512, "max_num_seqs": 16,
        "num_blocks": 400, "prefix_cache": 0, "seed": 0, "trace_requests": 3, "trace_skipped": 0, "layers": 2,
        "heads": 4, "kv_heads": 1, "head_dim": 32, "dtype": "bf16", "kv_dtype": "bf16",
        "threads": 2, "isa": "portable",
    });
    assert_eq!(document["config"], config);
    let runs = document["runs"].as_array().expect("runs");
    assert!(runs.iter().map(|run| &run["policy"]).eq(["static", "continuous"]));
    for run in runs {
        assert_eq!((whole(&run["requests"]), whole(&run["output_tokens"])), (3, 199 + 137 + 3));
        assert_eq!((whole(&run["prompt_tokens"]), &run["unit"]), (949, &json!("seconds")));
        let measured = run["measured"].as_object().expect("measured");
        let keys: Vec<_> = measured.keys().map(String::as_str).collect();
        assert_eq!(keys, ["attention_flops", "kv_bytes_read"]);
        for key in ["attention_flops", "kv_bytes_read"] {
            assert!(measured[key].as_f64().is_some_and(|x| x > 0.0), "{key}: {run}");
        }
        for key in ["busy_s", "seconds", "output_tokens_per_s"] {
            assert!(run[key].as_f64().is_some_and(|x| x > 0.0), "{key}: {run}");
        }
        println!("{}: {} steps, {measured:?}", run["policy"], run["steps"]);
    }
    // What is computed is a matter of decisions, and not of time, where all arrive at once.
    let burst = [&[&*vtc], &TINY[..], &limits, &["--arrival", "burst"]].concat();
    let document = figures(&scratch, &burst);
    let flops = |run: usize| &document["runs"][run]["measured"]["attention_flops"];
    let pairs = |prompt: u64, output: u64| {
        let tokens = prompt + output - 1;
        tokens * (tokens + 1) / 2
    };
    let per_pair = 4 * 2 * 4 * 32;
    let useful = per_pair * (pairs(13, 199) + pairs(36, 137) + pairs(900, 3));
    assert_eq!(flops(1).as_f64(), Some(useful as f64));
    // Three rows of the longest prompt and the longest output.
    assert_eq!(flops(0).as_f64(), Some((per_pair * 3 * pairs(900, 199)) as f64));
}

/// With all requests there from the start, first come, first served does not depend on time.
#[test]
fn it_decides_what_a_model_decides() {
    let scratch = Scratch::new("cpu_decisions");
    let (mut steps, mut shapes) = (0, 0);
    let caches = [
        ("steps.csv", &["--num-blocks", "14", "--block-size", "8"][..]),
        ("azure.csv", &["--num-blocks", "90", "--max-num-batched-tokens", "200"]),
        ("mooncake.jsonl", &["--num-blocks", "200", "--prefix-cache", "on"]),
        ("requests.jsonl", &["--num-blocks", "60", "--block-size", "1", "--prefix-cache", "on"]),
    ];
    let types = [
        &["--dtype", "f32"][..],
        &["--dtype", "f16", "--kv-heads", "4", "--threads", "1"],
        &["--kv-dtype", "fp8-e4m3", "--kv-heads", "2"],
        &["--isa", "portable-bf16"],
    ];
    for ((name, cache), types) in caches.into_iter().zip(types) {
        for policy in ["static", "continuous"] {
            let decided = |device: &[&str]| {
                let file = scratch.path("decisions");
                let trace = trace(name);
                let limits = ["--max-num-seqs", "3", "--max-model-len", "1400"];
                let tokens = ["--arrival", "burst", "--policy", policy, "--decisions", &file];
                let given = cache.contains(&"--max-num-batched-tokens");
                let budget = ["--max-num-batched-tokens", "512"];
                let budget = if given { &[][..] } else { &budget };
                let args = [&[&*trace], device, cache, budget, &limits, &tokens].concat();
                replay(&args);
                scratch.read("decisions")
            };
            let here = decided(&[&TINY[..], types].concat());
            let model = decided(&["--device", "model:a100-40g"]);
            assert!(here == model, "{name} {policy}");
            steps += here.lines().count();
            shapes += 1;
        }
    }
    println!("{steps} steps of {shapes} runs decided alike");
    assert!(steps > 400 && shapes == 8);
}

/// The built-in workload is computed, a trace is not unless that is asked for.
#[test]
fn who_computes_unless_told() {
    let first = |args: &[&str]| replay(args).lines().next().map(str::to_owned).expect("a heading");
    let built_in = replay(&["--limit", "2", "--layers", "1", "--heads", "2", "--head-dim", "16"]);
    assert!(built_in.starts_with("synthetic-small: 2 requests on cpu ("), "{built_in}");
    for label in ["computed and timed: attention", "attention, GFLOP/s ⁶", "⁶ computed on this"]
    {
        assert!(built_in.contains(label), "{label}: {built_in}");
    }
    assert!(built_in.lines().all(|line| line.chars().count() <= 80), "{built_in}");
    let trace = trace("azure.csv");
    assert_eq!(first(&[&trace]), "azure: 4 requests on model:a100-40g (llama-13b)");
    let asked = first(&[&[&*trace, "--max-model-len", "1000"], &TINY[..]].concat());
    assert!(asked.starts_with("azure: 4 requests on cpu ("), "{asked}");
}

#[test]
fn options_that_make_no_sense() {
    let trace = trace("azure.csv");
    let cases = [
        ("--device cpu --layers 0", "--layers: 0 is not within"),
        ("--device cpu --layers 99999", "--layers: 99999"),
        ("--device cpu --heads 0", "--heads: 0 "),
        ("--device cpu --heads 9 --kv-heads 2", "--heads: 9 is not a multiple of the 2 KV heads"),
        ("--device cpu --kv-heads 0", "--kv-heads: 0 "),
        ("--device cpu --head-dim 0", "--head-dim: 0 is not a multiple of 8"),
        ("--device cpu --head-dim 100", "--head-dim: 100 is not a multiple of 8"),
        ("--device cpu --head-dim 264", "--head-dim: 264"),
        ("--device cpu --head-dim 8 --kv-dtype fp8-e4m3 --kv-heads 1", "no multiple of 16 bytes"),
        ("--device cpu --dtype int8", "--dtype: `int8` is not one of f32, f16, bf16\n"),
        ("--device cpu --dtype fp8-e4m3", "--dtype: `fp8-e4m3` is not one of f32, f16, bf16\n"),
        ("--device cuda", "--device `cuda`: this version is not built with it"),
        ("--device cpu --kv-dtype f16", "--kv-dtype: a cache of f16 with queries of bf16"),
        ("--device cpu --kv-dtype fp4", "--kv-dtype: `fp4` is not one of"),
        ("--device cpu --threads 0", "--threads: 0 is not within"),
        ("--device cpu --threads 99999", "--threads 99999: at most 8 per core, and this"),
        ("--device cpu --threads x", "--threads"),
        ("--device cpu --cores 0,99999 --threads 2", "--cores: "),
        ("--device cpu --cores 0 --threads 2", "--cores: there must be 2"),
        ("--device cpu --cores zero", "--cores: `zero` is neither a core nor a range"),
        ("--device cpu --cores 0,0", "--cores: 0 is there twice"),
        ("--device cpu --cores 3-1", "--cores: `3-1` is not a range"),
        ("--device cpu --isa mmx", "--isa: `mmx` is not one of"),
        ("--device cpu --num-blocks 999999999", "--num-blocks 999999999 and --layers 2: a cache"),
        ("--device cpu --model llama-7b", "--model is for a model: device"),
        ("--device none --num-blocks 9 --model llama-7b", "--model is for a model: device"),
        ("--layers 2", "--layers is for --device cpu, and the device is model:a100-40g"),
        ("--device none --num-blocks 9 --dtype f32", "--dtype is for --device cpu"),
        ("--device model:h100 --kv-dtype f32", "--kv-dtype is for --device cpu"),
        ("--device model:h100 --heads 8", "--heads is for --device cpu"),
        ("--device model:h100 --kv-heads 8", "--kv-heads is for --device cpu"),
        ("--device model:h100 --head-dim 64", "--head-dim is for --device cpu"),
        ("--device model:h100 --threads 2", "--threads is for --device cpu"),
        ("--device model:h100 --cores 0", "--cores is for --device cpu"),
        ("--device model:h100 --isa avx2", "--isa is for --device cpu"),
    ];
    for (options, message) in cases {
        let args: Vec<&str> = ["replay", &*trace].into_iter().chain(options.split(' ')).collect();
        let ran = inflight(&args);
        let all = format!("{options}: {} {}{}", ran.code, ran.stdout, ran.stderr);
        assert!(ran.code == 2 && ran.stdout.is_empty() && ran.stderr.contains(message), "{all}");
    }
    println!("{} refused", cases.len());
}
