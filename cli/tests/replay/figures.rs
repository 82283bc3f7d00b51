//! `--json`: the shape of the document, and numbers that agree with each other and the trace.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::program::{Scratch, figures, refused, replay, repository, trace};

const POLICIES: [&str; 6] =
    ["static", "continuous", "priority", "no-evict", "max-utilization", "orca"];

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

fn whole(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a whole number"))
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1e-3)
}

/// The keys at a depth of a pretty document, in their order.
fn keys(text: &str, depth: usize) -> Vec<&str> {
    let indent = "  ".repeat(depth) + "\"";
    let names = text.lines().filter_map(|line| line.strip_prefix(&indent)?.split_once("\":"));
    names.map(|(name, _)| name).collect()
}

#[test]
fn the_document_has_its_keys_in_order() {
    let scratch = Scratch::new("keys");
    let document =
        figures(&scratch, &[&trace("steps.csv"), "--device", "none", "--num-blocks", "40"]);
    let text = scratch.read("figures.json");
    assert!(text.starts_with("{\n") && text.ends_with("\n}\n"));
    assert_eq!(keys(&text, 1), ["trace", "device", "runs", "config"]);
    let run = [
        "policy",
        "requests",
        "steps",
        "seconds",
        "output_tokens",
        "output_tokens_per_s",
        "slot_utilization",
        "padding_waste",
        "kv_utilization",
        "ttft_s",
        "tpot_s",
        "latency_s",
        "refused",
        "preemptions",
        "prefix_hit_tokens",
        "prompt_tokens",
        "unit",
        "slots",
        "requests_per_s",
        "unfinished",
        "truncated",
        "busy_s",
        "slots_held",
        "slots_useful",
        "recomputed_tokens",
        "useful_tokens",
        "computed_tokens",
        "computed_per_useful",
        "kv_held",
        "waiting",
        "queue_s",
        "resumed_hit_tokens",
    ];
    assert_eq!(keys(&text, 3), [run, run].concat());
    let distributions = ["mean", "p50", "p99"].repeat(8);
    assert_eq!(keys(&text, 4), distributions);
    assert_eq!((&document["trace"], &document["device"]), (&json!("steps"), &json!("none")));
    let config = json!({
        "block_size": 16, "max_model_len": 624, "max_num_batched_tokens": 2048, "max_num_seqs": 8,
        "num_blocks": 40, "prefix_cache": 0, "seed": 0, "trace_requests": 6,
        "trace_skipped": 0,
    });
    assert_eq!(document["config"], config);
}

/// One request of 10 tokens that outputs 3, two steps after the clock starts.
#[test]
fn one_request_by_hand() {
    let scratch = Scratch::new("one");
    let trace = scratch.write("one", "arrival_step,prompt_len,output_len\n2,10,3\n");
    for policy in POLICIES {
        let args = [&trace, "--device", "none", "--num-blocks", "5", "--max-num-seqs", "4"];
        let document = figures(&scratch, &[&args[..], &["--policy", policy]].concat());
        let one = |x: f64| json!({"mean": x, "p50": x, "p99": x});
        // All it can come to need is one block, reserved ahead or not.
        let expected = json!({
            "policy": policy, "requests": 1, "steps": 3, "seconds": 3.0, "output_tokens": 3,
            "output_tokens_per_s": 1.0, "slot_utilization": 0.25, "padding_waste": 0.0,
            "kv_utilization": (10.0 + 11.0 + 12.0) / 48.0, "ttft_s": one(1.0), "tpot_s": one(1.0),
            "latency_s": one(3.0), "refused": {}, "preemptions": 0, "prefix_hit_tokens": 0,
            "prompt_tokens": 10, "unit": "steps", "slots": 4, "requests_per_s": 1.0 / 3.0,
            "unfinished": 0, "truncated": 0, "busy_s": 3.0, "slots_held": 1.0,
            "slots_useful": 1.0, "recomputed_tokens": 0, "useful_tokens": 12, "computed_tokens": 12,
            "computed_per_useful": 1.0, "kv_held": 0.25, "waiting": 0.0, "queue_s": one(0.0),
            "resumed_hit_tokens": 0,
        });
        assert_eq!(document["runs"], json!([expected]), "{policy}");
    }
}

/// Worked examples of static batching: slots that idle, and prompts padded to the longest.
#[test]
fn static_batches_by_hand() {
    let scratch = Scratch::new("static_by_hand");
    let none = ["--device", "none", "--num-blocks", "200", "--max-num-seqs", "8"];
    let document = figures(&scratch, &[&[&*trace("eight.csv")], &none[..]].concat());
    let [batch, continuous] = [0, 1].map(|i| &document["runs"][i]);
    let rows = 8.0 * 5.0 + 7.0 * 25.0 + 170.0;
    for run in [batch, continuous] {
        assert_eq!((whole(&run["steps"]), whole(&run["output_tokens"])), (200, 385));
        assert!(close(number(&run["slot_utilization"]), rows / 1600.0));
    }
    assert!(close(number(&batch["slots_held"]), 8.0));
    assert!(close(number(&continuous["slots_held"]), rows / 200.0));
    // A slot whose request has ended computes on: 8 prompts, then 8 tokens a step.
    assert_eq!(whole(&batch["computed_tokens"]), 8 * 12 + 8 * 199);
    assert_eq!(whole(&batch["useful_tokens"]), 8 * 12 + 385 - 8);
    assert_eq!(whole(&continuous["computed_tokens"]), 8 * 12 + 385 - 8);

    let document = figures(&scratch, &[&[&*trace("four.csv")], &none[..]].concat());
    let [batch, continuous] = [0, 1].map(|i| &document["runs"][i]);
    assert_eq!((whole(&batch["computed_tokens"]), whole(&batch["useful_tokens"])), (480, 170));
    assert!((number(&batch["padding_waste"]) - 0.6458).abs() < 5e-5, "{batch}");
    assert_eq!(whole(&continuous["computed_tokens"]), 170);
    assert_eq!(number(&continuous["padding_waste"]), 0.0);
}

/// Two prompts of the same 801 tokens share 50 blocks of 16. One outputs 2 tokens, the other 200.
#[test]
fn shared_blocks_are_counted_once() {
    let scratch = Scratch::new("twins");
    let row = |output: u32| json!({"prompt_token_ids": vec![5; 801], "output_len": output});
    let trace = scratch.write("twins.jsonl", format!("{}\n{}\n", row(2), row(200)));
    let none = [&trace, "--device", "none", "--num-blocks", "101", "--prefix-cache", "on"];
    let document = figures(&scratch, &none);
    let [batch, continuous] = [0, 1].map(|run| number(&document["runs"][run]["kv_utilization"]));
    // Stored: what they share, and one token more each in every step, until the first has ended.
    let stored = (802 + 804 + (2..200).map(|t| 801 + t).sum::<u32>()) as f64;
    // The static batch holds all that both may need: 51 blocks, and 13 that are not among them.
    assert!(close(batch, stored / f64::from(200 * 64 * 16)), "{batch}");
    let held = |tokens: u32| f64::from(tokens.div_ceil(16) * 16);
    let blocks = 2.0 * 52.0 * 16.0 + (2..200).map(|t| held(801 + t)).sum::<f64>();
    assert!(close(continuous, stored / blocks), "{continuous}");
    for run in [0, 1] {
        assert_eq!(whole(&document["runs"][run]["prefix_hit_tokens"]), 800);
    }
}

/// What must hold of any run in which `requests` of (prompt, output) are served.
fn check(run: &Value, config: &Value, served: &[(u64, u64)]) {
    let sum = |of: fn(&(u64, u64)) -> u64| served.iter().map(of).sum::<u64>();
    let of = |key: &str| number(&run[key]);
    let refused: u64 = run["refused"].as_object().expect("refusals").values().map(whole).sum();
    assert_eq!(whole(&run["requests"]), served.len() as u64, "{run}");
    assert_eq!(whole(&run["requests"]) + refused, whole(&config["trace_requests"]));
    assert_eq!(whole(&run["unfinished"]), 0);
    assert_eq!(whole(&run["output_tokens"]), sum(|r| r.1));
    assert_eq!(whole(&run["prompt_tokens"]), sum(|r| r.0));
    let once = sum(|r| r.0 + r.1 - 1) - whole(&run["prefix_hit_tokens"]);
    let (useful, computed) = (whole(&run["useful_tokens"]), whole(&run["computed_tokens"]));
    let again = whole(&run["recomputed_tokens"]);
    // Each token is computed once; a request that resumes may find in the cache what it had not
    // come to compute.
    assert!(useful <= once && useful + whole(&run["resumed_hit_tokens"]) >= once, "{run}");
    if whole(&run["preemptions"]) == 0 {
        assert_eq!((useful, again), (once, 0), "{run}");
    } else {
        assert!(again + whole(&run["resumed_hit_tokens"]) > 0, "what was lost came back: {run}");
    }
    let padded = computed - useful - again;
    assert!(run["policy"] == "static" || padded == 0, "{run}");
    let seconds = of("seconds");
    let ratios = [
        ("output_tokens_per_s", of("output_tokens") / seconds),
        ("requests_per_s", of("requests") / seconds),
        ("padding_waste", padded as f64 / computed as f64),
        ("computed_per_useful", computed as f64 / useful as f64),
        ("slot_utilization", of("slots_useful") * of("slots_held") / of("slots")),
    ];
    for (key, expected) in ratios {
        assert!((of(key) - expected).abs() < 1e-9 * expected.max(1.0), "{key}: {expected}, {run}");
    }
    assert!(of("busy_s") <= seconds * (1.0 + 1e-9));
    for key in ["slot_utilization", "slots_useful", "kv_utilization", "kv_held"] {
        assert!(of(key) > 0.0 && of(key) <= 1.0 + 1e-12, "{key}: {run}");
    }
    for key in ["ttft_s", "tpot_s", "latency_s", "queue_s"] {
        let [mean, p50, p99] = ["mean", "p50", "p99"].map(|figure| number(&run[key][figure]));
        assert!(p50 <= p99 && mean >= 0.0 && mean <= p99 * served.len() as f64, "{key}: {run}");
        assert!(p99 <= number(&run["latency_s"]["p99"]), "{key}: {run}");
    }
    let [queue, ttft, latency] =
        ["queue_s", "ttft_s", "latency_s"].map(|k| number(&run[k]["mean"]));
    assert!(queue < ttft && ttft <= latency, "{run}");
    if run["unit"] == "steps" {
        assert_eq!(of("busy_s"), of("steps"));
    }
}

#[test]
fn figures_agree_with_each_other_and_the_trace() {
    let scratch = Scratch::new("agree");
    let steps = [(40, 12), (7, 30), (64, 1), (25, 20), (33, 5), (16, 16)];
    let azure = [(374, 44), (396, 109), (879, 55), (91, 16)];
    let vtc = [(13, 199), (36, 137), (900, 3)];
    let mooncake = [(1024, 4), (1300, 4), (1024, 4), (700, 4), (600, 4), (300, 4)];
    let requests = [(20, 4), (20, 4), (20, 4), (20, 4), (12, 2), (20, 3)];
    let roomy = ["--device", "none", "--num-blocks", "400", "--arrival", "burst"];
    let tight = [
        "--device",
        "none",
        "--arrival",
        "burst",
        "--num-blocks",
        "28",
        "--block-size",
        "4",
        "--max-num-batched-tokens",
        "50",
    ];
    let modelled = ["--device", "model:h200", "--model", "llama-3-8b"];
    type Case<'a> = (&'a str, &'a [(u64, u64)], &'a [&'a [&'a str]]);
    let cases: [Case<'_>; 5] = [
        (
            "steps.csv",
            &steps,
            &[&roomy, &tight, &roomy[..4], &[&roomy[..], &["--block-size", "1"]].concat()],
        ),
        ("azure.csv", &azure, &[&roomy, &modelled, &["--max-num-seqs", "1"], &["--rate", "2.5"]]),
        ("vtc.csv", &vtc, &[&roomy, &modelled]),
        ("mooncake.jsonl", &mooncake, &[&roomy, &modelled, &["--prefix-cache", "on"]]),
        (
            "requests.jsonl",
            &requests,
            &[&roomy, &tight, &[&tight[..], &["--prefix-cache", "on"]].concat()],
        ),
    ];
    let (mut runs, mut preemptions) = (0, 0);
    for (name, served, options) in cases {
        let trace = trace(name);
        for options in options {
            let policies = POLICIES.iter().flat_map(|policy| ["--policy", policy]);
            let args = [&[&*trace], *options, &policies.collect::<Vec<_>>()].concat();
            let document = figures(&scratch, &args);
            let found: Vec<_> =
                document["runs"].as_array().expect("runs").iter().map(|r| &r["policy"]).collect();
            assert_eq!(found, POLICIES);
            for run in document["runs"].as_array().expect("runs") {
                check(run, &document["config"], served);
                runs += 1;
                preemptions += whole(&run["preemptions"]);
            }
        }
    }
    println!("{runs} runs, {preemptions} preemptions");
    assert!(runs == 16 * 6 && preemptions > 3);
}

#[test]
fn each_policy_is_a_run_in_the_order_asked_for() {
    let scratch = Scratch::new("order");
    let trace = trace("steps.csv");
    let names = ["orca", "static", "orca", "max-utilization"];
    let policies: Vec<&str> = names.iter().flat_map(|name| ["--policy", name]).collect();
    let args = [&[&*trace, "--device", "none", "--num-blocks", "40"], &policies[..]].concat();
    let document = figures(&scratch, &args);
    let runs = document["runs"].as_array().expect("runs");
    assert!(runs.iter().map(|run| &run["policy"]).eq(names));
    assert_eq!(runs[0], runs[2], "a policy leaves nothing behind for the next run");
    assert_ne!(runs[0]["steps"], Value::Null);
    let columns = replay(&args).lines().nth(3).map(str::to_owned).expect("a heading");
    assert!(columns.split_whitespace().eq(names), "{columns}");
}

/// Who can never be served is refused and counted, whose output is too long is cut.
#[test]
fn refusals_and_cuts_are_counted() {
    let scratch = Scratch::new("refused");
    let text =
        "arrival_step,prompt_len,output_len\n0,20,5\n0,50,9\n0,49,9\n1,80,1\n1,40,30\n2,9,1\n";
    let trace = scratch.write("trace", text);
    let none = [&trace, "--device", "none", "--block-size", "4"];
    for policy in POLICIES {
        let limits = ["--num-blocks", "40", "--max-model-len", "50", "--policy", policy];
        let document = figures(&scratch, &[&none[..], &limits].concat());
        let run = &document["runs"][0];
        assert_eq!(run["refused"], json!({"too_long": 2}), "{policy}");
        assert_eq!((&run["truncated"], &run["requests"]), (&json!(2), &json!(4)), "{policy}");
        check(run, &document["config"], &[(20, 5), (49, 1), (40, 10), (9, 1)]);
        // 16 usable blocks of 4: all but the last of its tokens must fit 64.
        let limits = ["--num-blocks", "17", "--max-model-len", "70", "--policy", policy];
        let document = figures(&scratch, &[&none[..], &limits].concat());
        let run = &document["runs"][0];
        assert_eq!(run["refused"], json!({"never_fits": 1, "too_long": 1}), "{policy}");
        assert_eq!(whole(&run["truncated"]), 0, "{policy}");
        check(run, &document["config"], &[(20, 5), (50, 9), (49, 9), (9, 1)]);
        let shown = replay(&[&none[..], &limits].concat());
        let refused = shown.lines().find(|line| line.starts_with("requests refused"));
        assert_eq!(refused.and_then(|line| line.split_whitespace().last()), Some("2"), "{shown}");
    }
    // Nobody at all is served: no figure is made up.
    let limits = ["--num-blocks", "3", "--policy", "continuous"];
    let document = refused(&scratch, &[&none[..], &limits].concat());
    let run = &document["runs"][0];
    assert_eq!((&run["refused"], &run["steps"]), (&json!({"too_long": 6}), &json!(0)));
    for key in ["output_tokens_per_s", "slot_utilization", "kv_utilization"] {
        assert_eq!(run[key], Value::Null, "{key}");
    }
    assert_eq!(run["ttft_s"], json!({"mean": null, "p50": null, "p99": null}));
}

#[test]
fn prefixes_are_found_where_they_are() {
    let scratch = Scratch::new("prefixes");
    let hits = |name: &str, options: &[&str]| -> Vec<u64> {
        let document = figures(&scratch, &[&[&*trace(name)], options].concat());
        let runs = document["runs"].as_array().expect("runs");
        runs.iter().map(|run| whole(&run["prefix_hit_tokens"])).collect()
    };
    let on = ["--device", "model:h100", "--prefix-cache", "on"];
    // Of the prompt before, all but its last token can be found, in whole blocks: 0, 1024 of 1300,
    // 1008 of the same 1024, 512 of 700, nothing of what begins otherwise, 288 of 300.
    assert_eq!(hits("mooncake.jsonl", &on), [2832; 2]);
    let fewer = [&on[..], &["--block-size", "48"]].concat();
    assert_eq!(hits("mooncake.jsonl", &fewer), [1008 + 1008 + 480 + 288; 2]);
    assert_eq!(hits("mooncake.jsonl", &["--device", "model:h100"]), [0; 2]);
    // Within one step, too.
    let burst = [
        "--device",
        "none",
        "--arrival",
        "burst",
        "--num-blocks",
        "400",
        "--prefix-cache",
        "on",
        "--max-num-batched-tokens",
        "8192",
        "--policy",
        "continuous",
    ];
    assert_eq!(hits("mooncake.jsonl", &burst), [2832]);
    // Twenty tokens in blocks of four: only the second of salt `a` finds 16, and the row without
    // a salt that goes on otherwise after eight finds those of the first.
    let small = ["--device", "none", "--num-blocks", "99", "--block-size", "4"];
    let salted = [&small[..], &["--prefix-cache", "on", "--policy", "continuous"]].concat();
    assert_eq!(hits("requests.jsonl", &salted), [16 + 8]);
    // What a request finds again of its own, after it had to give way, is no prefix shared.
    let unique = "arrival_step,prompt_len,output_len\n0,20,30\n0,21,30\n";
    let unique = scratch.write("unique", unique);
    let tight = ["--device", "none", "--num-blocks", "15", "--block-size", "4"];
    let options = ["--prefix-cache", "on", "--policy", "continuous"];
    let document = figures(&scratch, &[&[&*unique], &tight[..], &options].concat());
    let run = &document["runs"][0];
    assert!(whole(&run["preemptions"]) > 0 && whole(&run["resumed_hit_tokens"]) > 0, "{run}");
    assert_eq!(whole(&run["prefix_hit_tokens"]), 0);
    let shown = replay(&[&[&*trace("requests.jsonl")], &salted[..]].concat());
    assert!(shown.contains("prompt tokens from cache, %"), "{shown}");
}

/// Lengths of the first rows of a trace, read without the program's reader.
fn lengths(text: &str, limit: usize) -> Vec<(u64, u64)> {
    let field = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!("\"{name}\": ")).expect("the field");
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().expect("a number")
    };
    if text.starts_with('{') {
        let rows = text.lines().take(limit);
        return rows.map(|row| (field(row, "input_length"), field(row, "output_length"))).collect();
    }
    let last_two = |row: &str| {
        let mut fields = row.trim().rsplit(',').map(|n| n.parse().expect("a number"));
        let output = fields.next().expect("an output");
        (fields.next().expect("a prompt"), output)
    };
    text.lines().skip(1).take(limit).map(last_two).collect()
}

/// The real traces, where a checkout has them beside it.
#[test]
fn real_traces_lose_nobody() {
    let scratch = Scratch::new("real");
    let directory = repository().join("../shared/traces");
    let names = [
        "azure/AzureLLMInferenceTrace_code.csv",
        "azure/AzureLLMInferenceTrace_conv.csv",
        "mooncake/conversation_trace.jsonl",
        "vtc_lmsys/vtc_real_trace.csv",
    ];
    for name in names {
        let path = directory.join(name);
        let Ok(text) = fs::read_to_string(&path) else {
            println!("skipped {name}: it is not beside this repository");
            continue;
        };
        let mut served = lengths(&text, 150);
        // A cache of 100,000 tokens: what is longer is refused, or cut.
        served.retain(|&(prompt, _)| prompt < 99_984);
        served.iter_mut().for_each(|(prompt, output)| *output = (*output).min(99_984 - *prompt));
        let path = path.to_str().expect("UTF-8");
        let options = ["--device", "model:h200", "--model", "llama-3-8b", "--limit", "150"];
        let more = ["--num-blocks", "6250", "--prefix-cache", "on"];
        let document = figures(&scratch, &[&[path], &options[..], &more].concat());
        for run in document["runs"].as_array().expect("runs") {
            check(run, &document["config"], &served);
        }
        let figure = |run: usize, key: &str| number(&document["runs"][run][key]);
        let [before, after] = [0, 1].map(|run| figure(run, "output_tokens_per_s"));
        println!("{name}: {} served, {:.2} times static", served.len(), after / before);
        assert!(after >= before && figure(0, "padding_waste") > 0.0);
        assert_eq!(name.starts_with("mooncake"), figure(1, "prefix_hit_tokens") > 0.0);
    }
}

/// Another seed is another workload; nothing else changes what comes out.
#[test]
fn the_built_in_workload_is_that_of_its_seed() {
    let scratch = Scratch::new("seeds");
    let mut seen = BTreeMap::new();
    for seed in ["0", "1", "2", "0"] {
        let model = ["--device", "model:a100-40g"];
        let args = [&model[..], &["--limit", "40", "--seed", seed]].concat();
        let document = figures(&scratch, &args);
        assert_eq!(document["config"]["trace_requests"], 40);
        let text = document.to_string();
        assert_eq!(seen.entry(seed).or_insert_with(|| text.clone()), &text, "seed {seed}");
    }
    let azure = trace("azure.csv");
    let arrivals = |seed| figures(&scratch, &[&azure, "--rate", "3", "--seed", seed]).to_string();
    assert!(arrivals("1") == arrivals("1") && arrivals("1") != arrivals("2"));
    let texts: Vec<_> = seen.values().collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2] && texts[0] != texts[2]);
}
