//! What cannot be done is said in one message on standard error, and nothing else happens.

use std::fs;

use crate::program::{Ran, Scratch, inflight, trace};

/// Runs the program, which must fail with `code`, print nothing and name all of `needles`.
fn fails(args: &[&str], code: i32, needles: &[&str]) {
    let Ran { code: found, stdout, stderr } = inflight(args);
    let all = format!("inflight {}: {found}\n{stderr}", args.join(" "));
    assert_eq!(found, code, "{all}");
    assert_eq!(stdout, "", "{all}");
    for needle in needles {
        assert!(stderr.contains(needle), "`{needle}` is not in {all}");
    }
}

/// Wrong options to a good trace: the message names the option, and more where there is more.
#[test]
fn options_out_of_range() {
    let steps = trace("steps.csv");
    let none = ["replay", &steps, "--device", "none", "--num-blocks", "40"];
    let cases: [(&str, &[&str]); 43] = [
        ("--policy fcfs", &["--policy", "`fcfs`", "static, continuous, priority, no-evict"]),
        ("--policy static --policy Static", &["--policy", "`Static`"]),
        ("--device tpu", &["--device", "`tpu`", "model:a100-40g", "none"]),
        ("--device model:tpu", &["--device", "`model:tpu`", "model:h200"]),
        ("--device a100-40g", &["--device", "`a100-40g`"]),
        ("--device model:h100 --model gpt-5", &["--model", "`gpt-5`", "llama-13b"]),
        ("--block-size 0", &["--block-size"]),
        ("--block-size x", &["--block-size", "'x'"]),
        ("--block-size 18446744073709551616", &["--block-size"]),
        ("--block-size 18446744073709551615", &["--block-size"]),
        ("--num-blocks 0", &["--num-blocks"]),
        ("--num-blocks 1", &["--num-blocks"]),
        ("--num-blocks -3", &["--num-blocks"]),
        ("--num-blocks 1e3", &["--num-blocks"]),
        ("--num-blocks 4294967295", &["--num-blocks"]),
        ("--num-blocks 99999999999", &["--num-blocks"]),
        ("--num-blocks 18446744073709551615", &["--num-blocks"]),
        ("--max-num-seqs 0", &["--max-num-seqs"]),
        ("--max-num-seqs -1", &["--max-num-seqs"]),
        ("--max-num-seqs 99999999999", &["--max-num-seqs"]),
        ("--max-num-batched-tokens 0", &["--max-num-batched-tokens"]),
        ("--max-num-batched-tokens 99999999999", &["--max-num-batched-tokens"]),
        ("--max-model-len 0", &["--max-model-len"]),
        ("--max-model-len 1", &["--max-model-len"]),
        ("--max-model-len 99999999999", &["--max-model-len"]),
        ("--rate 0", &["--rate", "`0`"]),
        ("--rate -1", &["--rate", "-1"]),
        ("--rate=-1", &["--rate", "`-1`"]),
        ("--rate NaN", &["--rate", "`NaN`"]),
        ("--rate inf", &["--rate", "`inf`"]),
        ("--rate 1e999", &["--rate"]),
        ("--rate fast", &["--rate", "'fast'"]),
        ("--rate 5 --arrival burst", &["--rate", "--arrival burst"]),
        ("--arrival now", &["--arrival", "'now'", "burst"]),
        ("--limit 0", &["--limit"]),
        ("--limit -1", &["--limit"]),
        ("--limit all", &["--limit", "'all'"]),
        ("--seed -1", &["--seed"]),
        ("--prefix-cache yes", &["--prefix-cache", "'yes'"]),
        ("--no-such-option", &["--no-such-option"]),
        ("--json", &["--json"]),
        ("another.csv", &["another.csv"]),
        ("--seed 1 --seed 2", &["--seed"]),
    ];
    let mut wrong = Vec::new();
    for (options, needles) in cases {
        let mut args = none.to_vec();
        // Options of the common part that the case gives itself.
        for given in ["--device", "--num-blocks"].iter().filter(|o| options.starts_with(**o)) {
            let at = args.iter().position(|arg| arg == given).expect("it is there");
            args.drain(at..at + 2);
        }
        if options.starts_with("--device") {
            args.drain(2..);
        }
        args.extend(options.split(' '));
        let case = || fails(&args, 2, needles);
        if std::panic::catch_unwind(case).is_err() {
            wrong.push(options);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn options_that_do_not_fit_together() {
    let scratch = Scratch::new("together");
    let (steps, azure) = (trace("steps.csv"), trace("azure.csv"));
    let file = scratch.path("decisions");
    let two = ["--policy", "static", "--policy", "orca"];
    let none = ["--device", "none", "--num-blocks", "40"];
    let decisions = ["--decisions", &file];
    let args = |trace: &str, options: &[&[&str]]| -> Vec<String> {
        let options = options.concat();
        ["replay", trace].iter().chain(&options).map(|&arg| arg.to_owned()).collect()
    };
    let clock = ["are in seconds", "counts steps", "--arrival burst"];
    let cases: [(Vec<String>, &[&str]); 8] = [
        (args(&steps, &[&none, &two, &decisions]), &["--decisions", "--policy"]),
        (args(&steps, &[&none, &decisions]), &["--decisions", "--policy"]),
        (args(&steps, &[&["--device", "none"]]), &["--device none", "--num-blocks"]),
        (args(&azure, &[&none]), &[&["azure"], &clock[..]].concat()),
        (args(&azure, &[&none, &["--rate", "3"]]), &clock[..2]),
        (args(&steps, &[]), &["steps", "are in steps", "counts seconds", "--arrival burst"]),
        (args(&steps, &[&["--model", "llama-3-70b"]]), &["llama-3-70b", "a100-40g"]),
        (args(&azure, &[&["--device", "none"]]), &["--num-blocks"]),
    ];
    for (args, needles) in &cases {
        fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), 2, needles);
    }
    assert!(fs::metadata(&file).is_err(), "decisions of nothing");
    // And the ways out that the messages name.
    for options in [&["--arrival", "burst"][..], &["--rate", "3"]] {
        assert_eq!(inflight(&[&["replay", &steps], options].concat()).code, 0);
    }
    assert_eq!(inflight(&[&["replay", &*azure, "--arrival", "burst"], &none[..]].concat()).code, 0);
}

#[test]
fn commands_that_are_none() {
    fails(&[], 2, &["Usage: inflight"]);
    fails(&["serve"], 2, &["serve"]);
    for args in [&["--help"][..], &["replay", "--help"], &["--version"]] {
        let ran = inflight(args);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{args:?}");
        assert!(ran.stdout.contains("inflight"), "{}", ran.stdout);
    }
}

#[test]
fn files_that_are_no_trace() {
    let scratch = Scratch::new("no_trace");
    let binary: Vec<u8> =
        (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let known = "not a request trace; the known formats are";
    let cases: [(&str, &[u8], &str); 12] = [
        ("empty", b"", "no requests"),
        ("blank", b"\n \r\n\t\n", "no requests"),
        ("header", b"arrival_step,prompt_len,output_len\n", "no requests"),
        ("binary", &binary, known),
        ("nul", &[0; 512], known),
        ("prose", b"Once upon a time\nthere was a trace\n", known),
        ("other.csv", b"a,b,c\n1,2,3\n", known),
        ("other.jsonl", b"{\"a\": 1}\n", known),
        ("list.json", b"[1, 2]\n", known),
        ("cut.jsonl", b"{\"prompt_len\": 1,", "cut.jsonl:1: not a JSON object"),
        (
            "late.csv",
            b"arrival_step,prompt_len,output_len\n0,1,1\n0,\xff\xfe,1\n",
            "late.csv:3: not UTF-8",
        ),
        ("utf16.csv", b"\xff\xfea\0r\0r\0", known),
    ];
    for (name, content, message) in cases {
        let path = scratch.write(name, content);
        let args = ["replay", &*path, "--device", "none", "--num-blocks", "40"];
        fails(&args, 2, &[&path, message]);
    }
    let missing = scratch.path("missing");
    fails(&["replay", &missing], 2, &[&missing, "No such file"]);
    let directory = scratch.path("");
    fails(&["replay", &directory], 2, &[&directory, "is a directory"]);
}

/// A row at fault is named by file, line and field.
#[test]
fn bad_rows_are_named() {
    let scratch = Scratch::new("bad_rows");
    let steps = "arrival_step,prompt_len,output_len\n0,5,5\n\n1,5,5\n";
    let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n";
    let vtc = "arrived_at,client,num_prefill_tokens,num_decode_tokens\n0.0,13,13,199\n";
    let mooncake =
        "{\"timestamp\": 0, \"input_length\": 9, \"output_length\": 4, \"hash_ids\": [1]}\n";
    let lines = "{\"prompt_len\": 5, \"output_len\": 5, \"arrival_step\": 0}\n";
    let cases = [
        (steps, "2,x,1", 5, "prompt_len", "`x` is not a whole number"),
        (steps, "2,5,-1", 5, "output_len", "`-1` is negative"),
        (steps, "2,5,99999999999", 5, "output_len", "is too big: the most is 16777216"),
        (steps, "2,5", 5, "output_len", "missing"),
        (steps, "2,5,5,5", 5, "column 4", "one more than the header has"),
        (steps, "2.5,5,5", 5, "arrival_step", "`2.5` is not a whole number"),
        (azure, "18:15,1,1", 3, "TIMESTAMP", "`18:15` is not a time"),
        (azure, "2023-11-16 18:15:47,NaN,1", 3, "ContextTokens", "`NaN` is not a whole number"),
        (azure, "2023-11-16 18:15:47,1,", 3, "GeneratedTokens", "missing"),
        (vtc, "NaN,1,1,1", 3, "arrived_at", "`NaN` is not finite"),
        (vtc, "1,bob,1,1", 3, "client", "`bob` is not a whole number"),
        (
            mooncake,
            &mooncake.replace("[1]", "[1, 2]"),
            2,
            "hash_ids",
            "2 ids, but `input_length` 9 is 1 blocks",
        ),
        (mooncake, &mooncake.replace('9', "-9"), 2, "input_length", "`-9` is negative"),
        (lines, "{\"prompt_len\": 5, \"arrival_step\": 0}", 2, "output_len", "missing"),
        (lines, "{\"prompt_len\": 5, \"output_len\": 1}", 2, "arrival_step", "missing"),
        (lines, &lines.replace("_step", "_s"), 2, "arrival_s", "earlier rows have `arrival_step`"),
        (lines, &lines.replace("}", ", \"x\": 1}"), 2, "x", "unknown"),
    ];
    for (good, bad, line, field, reason) in cases {
        let path = scratch.write("rows", format!("{good}{bad}\n{bad}\n"));
        let args = ["replay", &*path, "--device", "none", "--num-blocks", "40"];
        let at = format!("inflight: {path}:{line}: field `{field}`: ");
        fails(&args, 2, &[&at, reason]);
        // What is not asked for is not read.
        let rows = if good == steps { "2" } else { "1" };
        let more = ["--arrival", "burst", "--limit", rows];
        assert_eq!(inflight(&[&args[..], &more].concat()).code, 0, "{bad}");
    }
    for (header, field, reason) in [
        ("arrival_step,prompt_len", "output_len", "missing from the header"),
        ("arrival_step,prompt_len,output_len,prompt_len", "prompt_len", "two columns"),
    ] {
        let path = scratch.write("header", format!("{header}\n0,1,1,1\n"));
        let at = format!("{path}:1: field `{field}`: ");
        fails(&["replay", &path], 2, &[&at, reason]);
    }
}

/// An output that cannot be written is found out before the work is done.
#[test]
fn outputs_that_cannot_be_written() {
    let scratch = Scratch::new("unwritable");
    let (steps, directory) = (trace("steps.csv"), scratch.path(""));
    let missing = scratch.path("missing/file");
    let mut wrong = Vec::new();
    for option in ["--json", "--report", "--decisions"] {
        for path in [&missing, &directory] {
            let args = ["replay", &steps, "--device", "none", "--num-blocks", "40"];
            let args = [&args[..], &["--policy", "continuous", option, path]].concat();
            if std::panic::catch_unwind(|| fails(&args, 1, &[path])).is_err() {
                wrong.push((option, path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A full disk: each output says so.
#[test]
#[cfg(target_os = "linux")]
fn outputs_that_do_not_fit() {
    let steps = trace("steps.csv");
    let args = ["replay", &steps, "--device", "none", "--num-blocks", "40"];
    for option in ["--json", "--report", "--decisions"] {
        let options = ["--policy", "continuous", option, "/dev/full"];
        let ran = inflight(&[&args[..], &options].concat());
        assert_eq!(ran.code, 1, "{option}: {}", ran.stderr);
        assert!(ran.stderr.contains("No space left"), "{option}: {}", ran.stderr);
        let named = ran.stderr.contains("/dev/full") || ran.stderr.contains(option);
        assert!(named, "{option}: {}", ran.stderr);
    }
}

/// Bytes of good traces changed at random: every one is replayed or refused, none is a crash.
#[test]
fn damaged_traces() {
    let scratch = Scratch::new("damaged");
    let mut state = 1u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (((state >> 32) * n as u64) >> 32) as usize
    };
    let (mut good, mut bad) = (0, 0);
    for name in ["steps.csv", "azure.csv", "vtc.csv", "mooncake.jsonl", "requests.jsonl"] {
        let text = fs::read(trace(name)).expect("a fixture");
        for _ in 0..24 {
            let mut bytes = text.clone();
            let at = below(bytes.len());
            match below(5) {
                0 => bytes[at] = below(256) as u8,
                1 => bytes[at] = b",.-\"{}[]:\n"[below(10)],
                2 => drop(bytes.remove(at)),
                3 => bytes.truncate(at.max(1)),
                _ => {
                    let digits = (0..bytes.len()).filter(|&at| bytes[at].is_ascii_digit());
                    let digits: Vec<usize> = digits.collect();
                    bytes[digits[below(digits.len())]] = b'0' + below(10) as u8;
                }
            }
            let path = scratch.write("damaged", &bytes);
            let args = ["--device", "none", "--num-blocks", "60", "--arrival", "burst"];
            let ran = inflight(&[&["replay", &*path], &args[..]].concat());
            match ran.code {
                0 => good += 1,
                2 => {
                    bad += 1;
                    assert_eq!(ran.stdout, "");
                    assert!(ran.stderr.contains(&path), "{}", ran.stderr);
                }
                code => panic!("{code}: {}", ran.stderr),
            }
        }
    }
    println!("{good} damaged traces still are traces, {bad} are not");
    assert!(good > 20 && bad > 40);
}
