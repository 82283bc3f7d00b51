//! `--decisions`: those of vLLM, and those of a static batch.

use std::fmt::Write;
use std::fs;

use serde_json::{Value, json};

use crate::program::{Scratch, inflight, replay, repository, trace};

/// A recording's trace as the program reads it, and which of its rows the trace has.
fn to_trace(head: &Value) -> (String, Vec<usize>) {
    let rows = head["rows"].as_array().expect("rows");
    let number = |value: &Value| value.as_i64().expect("a number");
    let given = |row: &Value| row[1].as_array().map(Vec::len);
    let prompt_len = |row: &Value| given(row).map_or_else(|| number(&row[1]), |len| len as i64);
    // The recording leaves out what could not run to its end, unless it is about that.
    let fits = |&row: &usize| {
        let total = prompt_len(&rows[row]) + number(&rows[row][2]);
        total <= number(&head["max_model_len"]) || head["allow_length_cap"] == true
    };
    let kept: Vec<usize> = (0..rows.len()).filter(fits).collect();
    let mut text = String::new();
    let as_lines = rows.iter().any(|row| given(row).is_some());
    if !as_lines {
        text += "arrival_step,prompt_len,output_len,priority\n";
    }
    for row in kept.iter().map(|&row| &rows[row]) {
        let [step, output, priority] = [0, 2, 3].map(|field| number(&row[field]));
        let written = match (as_lines, given(row).is_some()) {
            (false, _) => writeln!(text, "{step},{},{output},{priority}", number(&row[1])),
            (true, tokens) => {
                let prompt = if tokens { "prompt_token_ids" } else { "prompt_len" };
                let line = json!({
                    "arrival_step": step, prompt: row[1], "output_len": output, "priority": priority
                });
                writeln!(text, "{line}")
            }
        };
        written.expect("a string takes everything");
    }
    (text, kept)
}

/// Runs the program on a recording; the number of steps, and the first that differs.
fn compare(scratch: &Scratch, recording: &str) -> Result<usize, String> {
    let mut lines = recording.lines().map(|l| serde_json::from_str::<Value>(l).expect("JSON"));
    let head = lines.next().expect("a header");
    let (text, rows) = to_trace(&head);
    let trace = scratch.write("trace", text);
    let file = scratch.path("decisions.jsonl");
    let mut args = vec!["replay".to_owned(), trace, "--decisions".to_owned(), file];
    let policy = if head["policy"] == "priority" { "priority" } else { "continuous" };
    let prefix_cache = if head["prefix_cache"] == true { "on" } else { "off" };
    args.extend(["--device", "none", "--policy", policy].map(str::to_owned));
    args.extend(["--prefix-cache", prefix_cache].map(str::to_owned));
    for key in
        ["num_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len"]
    {
        args.extend([format!("--{}", key.replace('_', "-")), head[key].to_string()]);
    }
    let ran = inflight(&args.iter().map(String::as_str).collect::<Vec<_>>());
    if ran.code != 0 {
        return Err(ran.stderr);
    }
    let id = |row: &Value| json!(rows[row.as_u64().expect("an id") as usize]);
    let ids =
        |list: &Value| -> Vec<Value> { list.as_array().expect("ids").iter().map(id).collect() };
    let mut steps = 0;
    let decisions = scratch.read("decisions.jsonl");
    let mut found = decisions.lines();
    for want in lines {
        let line = found.next().ok_or_else(|| format!("ends before step {steps}"))?;
        let got: Value = serde_json::from_str(line).map_err(|error| format!("{line}: {error}"))?;
        let prefill: Vec<Value> = got["prefill"]
            .as_array()
            .expect("rows")
            .iter()
            .map(|row| json!([id(&row[0]), row[1], row[2]]))
            .collect();
        let got = json!([
            got["step"],
            ids(&got["decode"]),
            prefill,
            ids(&got["preempted"]),
            ids(&got["finished"]),
            got["running"],
            got["waiting"],
            got["free_blocks"]
        ]);
        let mut expected = vec![json!(steps)];
        expected.extend_from_slice(&want.as_array().expect("a step")[..7]);
        if got != json!(expected) {
            return Err(format!("step {steps}:\n  here {got}\n  vLLM {want}"));
        }
        steps += 1;
    }
    match found.count() {
        0 => Ok(steps),
        more => Err(format!("{more} steps more than vLLM")),
    }
}

#[test]
fn vllm_decides_the_same() {
    let scratch = Scratch::new("vllm");
    let directory = repository().join("tests/data/vllm");
    let files = fs::read_dir(&directory).expect("recordings").flatten().map(|file| file.path());
    let mut files: Vec<_> = files.collect();
    files.sort();
    let (mut recordings, mut steps, mut preempted, mut skipped) = ([0, 0], 0, 0, 0);
    let mut failures = Vec::new();
    for file in files {
        let recording = fs::read_to_string(&file).expect("a recording");
        let head: Value =
            serde_json::from_str(recording.lines().next().expect("a header")).expect("JSON");
        let plain = head["watermark"] == 0.0
            && head["reserve_full_isl"] == true
            && head["chunked"] == true
            // Its prompts contain the answers that its sampler gave.
            && head["name"] != "prefix_multiturn";
        if !plain {
            skipped += 1;
            continue;
        }
        match compare(&scratch, &recording) {
            Ok(n) => steps += n,
            Err(what) => failures.push(format!("{}: {what}", head["name"])),
        }
        recordings[usize::from(head["policy"] == "priority")] += 1;
        let decisions = scratch.read("decisions.jsonl");
        preempted += decisions.lines().filter(|line| !line.contains("\"preempted\":[]")).count();
    }
    let [fcfs, priority] = recordings;
    println!(
        "{fcfs} recordings of fcfs and {priority} of priority, {steps} steps agree, {preempted} \
         of them preempt; {skipped} recordings have options the program has not"
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(fcfs >= 25 && priority >= 8 && steps > 3500 && preempted > 100);
}

/// Rows of each step of a static replay of eight requests: (decode, prefill).
fn static_rows(slots: &str) -> Vec<(usize, usize)> {
    let scratch = Scratch::new(&format!("static_in_{slots}"));
    let (trace, file) = (trace("eight.csv"), scratch.path("decisions"));
    let common = [&trace, "--device", "none", "--policy", "static", "--decisions", &file];
    let limits = ["--num-blocks", "200", "--max-num-seqs", slots];
    replay(&[&common[..], &limits].concat());
    let decisions = scratch.read("decisions");
    let steps = decisions.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let count = |rows: &Value| rows.as_array().expect("rows").len();
    steps.map(|step| (count(&step["decode"]), count(&step["prefill"]))).collect()
}

/// Outputs of 5, 200 and six times 30 tokens in eight slots: one works on alone.
#[test]
fn a_static_batch_waits_for_its_last() {
    let rows = static_rows("8");
    let mut expected = vec![(0, 8)];
    expected.extend([(8, 0); 4]);
    expected.extend([(7, 0); 25]);
    expected.extend([(1, 0); 170]);
    assert_eq!(rows, expected);
}

/// With four slots there are two batches, the second after the last of the first.
#[test]
fn a_static_batch_ends_before_the_next_begins() {
    let rows = static_rows("4");
    let mut expected = vec![(0, 4)];
    expected.extend([(4, 0); 4]);
    expected.extend([(3, 0); 25]);
    expected.extend([(1, 0); 170]);
    expected.push((0, 4));
    expected.extend([(4, 0); 29]);
    assert_eq!(rows, expected);
}

/// The step numbers of a trace with gaps: nobody is there in steps of their own.
#[test]
fn steps_without_anybody_are_lines_too() {
    let scratch = Scratch::new("gaps");
    let trace = scratch.write("gaps", "arrival_step,prompt_len,output_len\n3,5,2\n9,6,1\n");
    let file = scratch.path("decisions");
    let common = [&trace, "--device", "none", "--num-blocks", "9", "--block-size", "4"];
    replay(&[&common[..], &["--policy", "continuous", "--decisions", &file]].concat());
    let line = |step: u32, rows: &str, held: u32, free: u32| {
        format!(
            "{{\"step\":{step},{rows},\"running\":{held},\"waiting\":0,\"free_blocks\":{free}}}\n"
        )
    };
    let nobody = r#""decode":[],"prefill":[],"preempted":[],"finished":[]"#;
    let mut expected: String = (0..3).map(|step| line(step, nobody, 0, 8)).collect();
    expected += &line(3, r#""decode":[],"prefill":[[0,5,0]],"preempted":[],"finished":[]"#, 1, 6);
    expected += &line(4, r#""decode":[0],"prefill":[],"preempted":[],"finished":[0]"#, 1, 8);
    expected.extend((5..9).map(|step| line(step, nobody, 0, 8)));
    expected += &line(9, r#""decode":[],"prefill":[[1,6,0]],"preempted":[],"finished":[1]"#, 1, 8);
    assert_eq!(scratch.read("decisions"), expected);
}
