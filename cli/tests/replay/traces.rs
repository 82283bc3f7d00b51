//! Traces as people have them: compressed, on standard input, with failed requests, in sessions.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::program::{
    Ran, Scratch, command, figures, finished, inflight, replay, repository, trace,
};

const NONE: [&str; 6] = ["--device", "none", "--num-blocks", "400", "--arrival", "burst"];

/// `inflight replay -` with these arguments, and `input` on standard input.
fn piped(args: &[&str], input: &[u8]) -> Ran {
    let args = [&["replay", "-"], args].concat();
    let mut child = command(&args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let written = stdin.write_all(input);
    drop(stdin);
    let ran = finished(&args, child.wait_with_output().expect("it ends"));
    assert!(written.is_ok() || ran.code != 0, "{written:?}");
    ran
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text).expect("memory");
    encoder.finish().expect("memory")
}

fn zstd(text: &[u8]) -> Vec<u8> {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    compress_to_vec(text, CompressionLevel::Fastest)
}

/// One trace, in a file or on standard input, compressed or not, has one table.
#[test]
fn files_pipes_and_compression_are_all_the_same() {
    let scratch = Scratch::new("sources");
    let burst = b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n\
                  5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,87,30,117,API log\n";
    let mut traces = vec![("burstgpt.csv", burst.to_vec())];
    for name in ["azure.csv", "vtc.csv", "steps.csv", "mooncake.jsonl", "requests.jsonl"] {
        traces.push((name, fs::read(trace(name)).expect("a fixture")));
    }
    for (name, text) in traces {
        let plain = replay(&[&[&*scratch.write(name, &text)], &NONE[..]].concat());
        assert!(plain.lines().next().is_some_and(|line| line.contains(" requests on none")));
        for (end, bytes) in [("gz", gzip(&text)), ("zst", zstd(&text))] {
            let path = scratch.write(&format!("{name}.{end}"), &bytes);
            assert_eq!(replay(&[&[&*path], &NONE[..]].concat()), plain, "{path}");
            // The name does not say what is in a file.
            let path = scratch.write(name, &bytes);
            assert_eq!(replay(&[&[&*path], &NONE[..]].concat()), plain, "{path} as {end}");
        }
        for bytes in [text.clone(), gzip(&text), zstd(&text)] {
            let ran = piped(&NONE, &bytes);
            assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{name}");
            let (first, rest) = ran.stdout.split_once('\n').expect("lines");
            assert!(first.starts_with("stdin: "), "{first}");
            assert_eq!(Some(rest), plain.split_once('\n').map(|(_, rest)| rest), "{name}");
        }
    }
    let ran = piped(&NONE, b"arrival_step,prompt_len,output_len\n0,1,x\n");
    let expected = "inflight: standard input:2: field `output_len`: `x` is not a whole number\n";
    assert_eq!((ran.code, ran.stderr.as_str()), (2, expected));
    let ran = piped(&NONE, b"");
    assert_eq!((ran.code, ran.stderr.as_str()), (2, "inflight: standard input: no requests\n"));
}

#[test]
fn failed_requests_are_skipped_and_counted() {
    let scratch = Scratch::new("failed");
    let text = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n\
                5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,0,1087,API log\n\
                46,GPT-4,0,0,0,API log\n118,GPT-4,417,276,693,Conversation log\n";
    let path = scratch.write("burst.csv", text);
    let json = scratch.path("figures.json");
    let ran = inflight(&["replay", &path, "--json", &json]);
    let notice = "burst: 2 rows of 0 tokens of prompt or output were skipped (the first on line \
                  3); --strict refuses them\n";
    assert_eq!((ran.code, ran.stderr.as_str()), (0, notice));
    let document: Value = serde_json::from_str(&scratch.read("figures.json")).expect("JSON");
    let config = &document["config"];
    assert_eq!((&config["trace_requests"], &config["trace_skipped"]), (&json!(2), &json!(2)));
    for run in document["runs"].as_array().expect("runs") {
        assert_eq!((&run["requests"], &run["output_tokens"]), (&json!(2), &json!(18 + 276)));
        assert!(run["seconds"].as_f64().is_some_and(|seconds| seconds > 118.0 - 5.0), "{run}");
    }
    let ran = inflight(&["replay", &path, "--strict"]);
    let refused = format!(
        "inflight: {path}:3: field `Response tokens`: `0` is not at least 1: remove the row, or \
         have it skipped without --strict\n"
    );
    assert_eq!((ran.code, ran.stderr), (2, refused));
    assert_eq!(inflight(&["replay", &path, "--strict", "--limit", "1"]).code, 0);
}

/// Each step's new rows, as (request, tokens, cached), and when.
fn prefills(scratch: &Scratch, trace: &str, options: &[&str]) -> Vec<(u64, Value)> {
    let file = scratch.path("decisions");
    let policy = ["--policy", "continuous", "--decisions", &file];
    replay(&[&[trace], options, &policy].concat());
    let decisions = scratch.read("decisions");
    let steps = decisions.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let steps = steps.map(|step| (step["step"].as_u64().expect("a step"), step["prefill"].clone()));
    steps.filter(|(_, prefill)| prefill != &json!([])).collect()
}

/// A session of 10 + 3, 4 + 2 and 1 + 1 tokens, and one of 5 + 1.
const SESSIONS: &str = "\
    {\"session_id\": \"a\", \"input_length\": 10, \"output_length\": 3}\n\
    {\"session_id\": \"a\", \"input_length\": 4, \"output_length\": 2, \"delay\": 2000}\n\
    {\"session_id\": \"a\", \"input_length\": 1, \"output_length\": 1}\n\
    {\"session_id\": \"b\", \"input_length\": 5, \"output_length\": 1}\n";

#[test]
fn turns_go_on_from_what_was_said() {
    let scratch = Scratch::new("sessions");
    let path = scratch.write("sessions.jsonl", SESSIONS);
    let none = [&NONE[..], &["--block-size", "4"]].concat();
    // Three steps; then 10 + 3 tokens and 4 more, of which the step after sees one; then 19 + 1.
    let expected =
        [(0, json!([[0, 10, 0], [3, 5, 0]])), (3, json!([[1, 17, 0]])), (5, json!([[2, 20, 0]]))];
    assert_eq!(prefills(&scratch, &path, &none), expected);
    // The last output of a turn is not in the cache: 12 of its tokens are, then 18 in blocks of 4.
    let cached =
        [(0, json!([[0, 10, 0], [3, 5, 0]])), (3, json!([[1, 5, 12]])), (5, json!([[2, 4, 16]]))];
    let on = [&none[..], &["--prefix-cache", "on"]].concat();
    assert_eq!(prefills(&scratch, &path, &on), cached);
    // Turns that are whole prompts.
    let whole = "\"context_mode\": \"message_array_with_responses\", \"input_length\"";
    let path = scratch.write("whole.jsonl", SESSIONS.replace("\"input_length\"", whole));
    let expected =
        [(0, json!([[0, 10, 0], [3, 5, 0]])), (3, json!([[1, 4, 0]])), (5, json!([[2, 1, 0]]))];
    assert_eq!(prefills(&scratch, &path, &none), expected);
    // A static batch is returned as a whole.
    let path = scratch.write("sessions.jsonl", SESSIONS);
    let document = figures(&scratch, &[&[&*path], &none[..], &["--policy", "static"]].concat());
    let run = &document["runs"][0];
    assert_eq!((&run["requests"], &run["steps"]), (&json!(4), &json!(3 + 2 + 1)));
    assert_eq!(run["prompt_tokens"], json!(10 + 17 + 20 + 5));
}

#[test]
fn turns_come_after_a_delay_or_at_their_time() {
    let scratch = Scratch::new("session_times");
    let makespan = |text: &str, options: &[&str]| {
        let path = scratch.write("sessions.jsonl", text);
        let model = ["--device", "model:a100-40g", "--policy", "continuous"];
        let document = figures(&scratch, &[&[&*path], &model[..], options].concat());
        document["runs"][0]["seconds"].as_f64().expect("seconds")
    };
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
    let turn = |more: &str| {
        format!("{{\"session_id\": \"a\", \"input_length\": 10, \"output_length\": 3{more}}}\n")
    };
    let at = |ms: u32| turn(&format!(", \"timestamp\": {ms}"));
    let (one, two) = (makespan(&turn(""), &[]), makespan(&turn("").repeat(2), &[]));
    assert!(one > 0.0 && two > 2.0 * one && two < 1.0);
    let delayed = turn("") + &turn(", \"delay\": 2500");
    close(makespan(&delayed, &[]), two + 2.5);
    close(makespan(&delayed, &["--arrival", "burst"]), two);
    close(makespan(&delayed, &["--rate", "5"]), two + 2.5);
    close(makespan(&(at(7000) + &turn(", \"delay\": 2500")), &[]), two + 2.5);
    // At its time, which counts from the first row's; one that is over is no reason to wait.
    close(makespan(&(at(7000) + &at(9000)), &[]), 2.0 + two - one);
    close(makespan(&(at(7000) + &at(7000)), &[]), two);
    // Seconds are seconds.
    let path = scratch.write("sessions.jsonl", delayed);
    let ran = inflight(&["replay", &path, "--device", "none", "--num-blocks", "40"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("are in seconds, the device counts steps"), "{}", ran.stderr);
}

/// With a turn that is refused its session is over; the others are not.
#[test]
fn turns_after_one_that_is_refused() {
    let scratch = Scratch::new("session_refused");
    let path = scratch.write("sessions.jsonl", SESSIONS);
    let limit = [&[&*path], &NONE[..], &["--max-model-len", "15"]].concat();
    for run in figures(&scratch, &limit)["runs"].as_array().expect("runs") {
        assert_eq!((&run["refused"], &run["requests"]), (&json!({"too_long": 2}), &json!(2)));
        assert_eq!(run["unfinished"], 0);
    }
}

#[test]
fn blocks_of_another_size() {
    let scratch = Scratch::new("hash_blocks");
    let row = "{\"input_length\": 40, \"output_length\": 1, \"hash_ids\": [1, 2, 3]}\n";
    let path = scratch.write("blocks.jsonl", row.to_owned() + &row.replace('3', "4"));
    let args = [&["replay", &*path], &NONE[..], &["--prefix-cache", "on"]].concat();
    let fault = |size: u32, blocks: u32| {
        format!(
            "inflight: {path}:1: field `hash_ids`: 3 ids, but `input_length` 40 is {blocks} blocks \
             of {size}: give the trace's block size with --hash-block-size\n"
        )
    };
    let ran = inflight(&args);
    assert_eq!((ran.code, ran.stderr), (2, fault(512, 1)));
    let ran = inflight(&[&args[..], &["--hash-block-size", "8"]].concat());
    assert_eq!((ran.code, ran.stderr), (2, fault(8, 5)));
    // Two blocks of 16 are shared.
    let options = [&NONE[..], &["--prefix-cache", "on", "--hash-block-size", "16"]].concat();
    let one = [&options[..], &["--max-num-seqs", "1"]].concat();
    assert_eq!(
        prefills(&scratch, &path, &one),
        [(0, json!([[0, 40, 0]])), (1, json!([[1, 8, 32]]))]
    );
    for (size, reason) in [("0", "0 is not in"), ("x", "invalid")] {
        let ran = inflight(&[&args[..], &["--hash-block-size", size]].concat());
        assert!(ran.code == 2 && ran.stderr.contains(reason), "{}", ran.stderr);
    }
    let vtc = trace("vtc.csv");
    let ran = inflight(&["replay", &vtc, "--hash-block-size", "16"]);
    let reason = "inflight: --hash-block-size is for mooncake traces, and vtc is vtc\n";
    assert_eq!((ran.code, ran.stderr.as_str()), (2, reason));
}

/// Public traces next to the repository, whole, as they are and compressed.
#[test]
fn public_traces() {
    let scratch = Scratch::new("public");
    let traces = repository().join("../shared/traces");
    let mut seen = 0;
    for (name, requests) in [
        ("azure/AzureLLMInferenceTrace_code.csv", 8819),
        ("azure/AzureLLMInferenceTrace_conv.csv", 19366),
        ("mooncake/conversation_trace.jsonl", 12031),
        ("vtc_lmsys/vtc_real_trace.csv", 1500),
    ] {
        let Ok(text) = fs::read(traces.join(name)) else {
            println!("skipped: there is no {name} next to the repository");
            continue;
        };
        // A memory in which nothing fits: all are read, and none takes time.
        let none = ["--device", "none", "--num-blocks", "2", "--block-size", "1", "--arrival"];
        let json = scratch.path("figures.json");
        let args = [&none[..], &["burst", "--policy", "continuous", "--json", &json]].concat();
        for bytes in [text.clone(), gzip(&text), zstd(&text)] {
            let ran = piped(&args, &bytes);
            assert_eq!(ran.code, 0, "{name}: {}", ran.stderr);
            let document: Value =
                serde_json::from_str(&scratch.read("figures.json")).expect("JSON");
            let config = &document["config"];
            assert_eq!(config["trace_requests"], requests, "{name}");
            assert_eq!(config["trace_skipped"], 0, "{name}");
        }
        seen += 1;
    }
    println!("{seen} public traces");
}

#[test]
fn help_has_the_formats() {
    let ran = inflight(&["replay", "--help"]);
    for format in ["azure", "burstgpt", "vtc", "steps", "mooncake", "jsonl"] {
        let line = ran.stdout.lines().find(|line| line.starts_with(&format!("  {format} ")));
        assert!(line.is_some_and(|line| line.contains("CSV ") || line.contains("JSON lines ")));
    }
    assert!(ran.stdout.contains("Request tokens, Response tokens"), "{}", ran.stdout);
}
