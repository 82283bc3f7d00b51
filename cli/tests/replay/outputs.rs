//! The table, the report, and that the same command gives the same bytes.

use std::fs;
use std::process::{Command, Stdio};

use crate::program::{Scratch, command, finished, inflight, replay, trace};

/// A device whose figures are the same everywhere, and there at once.
const MODEL: [&str; 2] = ["--device", "model:a100-40g"];

/// The comparison that the program is for.
#[test]
fn two_policies_side_by_side() {
    let shown = replay(&MODEL);
    let mut lines = shown.lines();
    assert_eq!(lines.next(), Some("synthetic: 1000 requests on model:a100-40g (llama-13b)"));
    let columns: Vec<&str> =
        lines.find(|line| line.contains("static")).expect("names").split_whitespace().collect();
    assert_eq!(columns, ["static", "continuous", "change"]);
    let row = |label: &str| -> Vec<String> {
        let line = shown.lines().find(|line| line.starts_with(label)).expect(label);
        let cells = line[label.len()..].split("  ").map(str::trim).filter(|cell| !cell.is_empty());
        cells.map(str::to_owned).collect()
    };
    assert_eq!(row("requests finished"), ["1,000", "1,000"]);
    let tokens = row("output tokens   ");
    assert_eq!(tokens[0], tokens[1]);
    assert!(row("output tokens/s").last().is_some_and(|change| change.ends_with('×')));
    for label in ["slot utilization, % ¹", "padding waste, % ³", "KV utilization, % ⁴"] {
        assert_eq!(row(label).len(), 3, "{label}");
    }
    for label in ["TTFT p99", "TPOT p50", "latency mean", "makespan"] {
        assert!(shown.lines().any(|line| line.starts_with(label)), "{label}");
    }
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    assert!(shown.ends_with('\n') && shown.lines().all(|line| line == line.trim_end()));
}

/// A machine without any network, where one can be made.
#[test]
fn it_needs_no_network() {
    let alone = |program: &str, args: &[&str]| {
        let mut command = Command::new("unshare");
        command.arg("-rn").arg(program).args(args).stdin(Stdio::null()).output()
    };
    if !alone("true", &[]).is_ok_and(|output| output.status.success()) {
        println!("skipped: no network namespace can be made here");
        return;
    }
    let args = ["replay", "--limit", "50", MODEL[0], MODEL[1]];
    let output = alone(env!("CARGO_BIN_EXE_inflight"), &args).expect("it starts");
    let ran = finished(&args, output);
    assert_eq!((ran.code, ran.stdout), (0, replay(&args[1..])));
}

#[test]
fn the_same_command_gives_the_same_bytes() {
    let scratch = Scratch::new("same");
    let [azure, mooncake, steps] = ["azure.csv", "mooncake.jsonl", "steps.csv"].map(trace);
    let none = ["--device", "none", "--num-blocks", "30", "--block-size", "4"];
    let cases: [&[&str]; 5] = [
        &[&MODEL[..], &["--limit", "120", "--policy", "static", "--policy", "priority"]].concat(),
        &[&azure, "--rate", "3", "--seed", "5"],
        &[&mooncake, "--prefix-cache", "on", "--policy", "continuous"],
        &[&[&*steps, "--policy", "max-utilization"], &none[..]].concat(),
        &[&[&*steps, "--policy", "static"], &none[..]].concat(),
    ];
    for args in cases {
        let one = args.iter().filter(|&&arg| arg == "--policy").count() == 1;
        let run = |name: &str| {
            let files = ["json", "html", "jsonl"].map(|kind| format!("{name}.{kind}"));
            let [json, report, decisions] = files.each_ref().map(|file| scratch.path(file));
            let mut args = [args, &["--json", &json, "--report", &report]].concat();
            if one {
                args.extend(["--decisions", &decisions]);
            }
            let shown = replay(&args);
            let written = files[..2 + usize::from(one)].iter().map(|file| scratch.read(file));
            [vec![shown], written.collect()].concat()
        };
        let (first, second) = (run("first"), run("second"));
        assert!(first == second, "{args:?}");
        assert!(first.iter().all(|text| text.len() > 200), "{args:?}");
    }
}

#[test]
fn the_report_stands_alone() {
    let scratch = Scratch::new("report");
    let file = scratch.path("report.html");
    let odd = scratch.write("a<b>&\"c'.csv", fs::read(trace("azure.csv")).expect("a fixture"));
    let policies = ["--policy", "static", "--policy", "no-evict"];
    for (trace, title) in [(trace("azure.csv"), "azure"), (odd, "a&lt;b&gt;&amp;")] {
        replay(&[&[&*trace], &policies[..], &["--report", &file]].concat());
        let page = scratch.read("report.html");
        assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
        let beyond = page.replace("http://www.w3.org/2000/svg", "");
        for reach in
            ["http", "//", "<script", "<link", "<iframe", "<img", "src=", "url(", "@import"]
        {
            let inside = reach == "url(" && !beyond.replace("url(#", "").contains(reach);
            assert!(inside || !beyond.contains(reach), "{reach} in the report");
        }
        for word in ["static", "no-evict", title, "<svg", "</svg>", "slot utilization", "Latency"] {
            assert!(page.contains(word), "{word} is not in the report");
        }
        assert!(!page.contains("a<b>") && !page.contains("NaN") && !page.contains("inf\""));
        for tag in ["html", "head", "body", "main", "section", "table", "svg", "style", "g"] {
            let count = |end: &str| page.matches(end).count();
            let opened = count(&format!("<{tag}>")) + count(&format!("<{tag} "));
            assert_eq!(opened, count(&format!("</{tag}>")), "<{tag}>");
        }
    }
    // A run in which nothing happened has a page, too.
    let none = ["--device", "none", "--num-blocks", "3", "--block-size", "4"];
    replay(&[&[&*trace("steps.csv")], &none[..], &["--report", &file]].concat());
    assert!(scratch.read("report.html").contains("requests refused"));
}

/// How a file ends its lines is all the same, and so is a byte order mark.
#[test]
fn line_ends_do_not_matter() {
    let scratch = Scratch::new("line_ends");
    for name in ["steps.csv", "azure.csv", "vtc.csv", "mooncake.jsonl", "requests.jsonl"] {
        let text = fs::read_to_string(trace(name)).expect("a fixture");
        let shown = |text: String| {
            let path = scratch.write(name, text);
            replay(&[&path, "--device", "none", "--num-blocks", "400", "--arrival", "burst"])
        };
        let plain = shown(text.clone());
        assert!(plain.lines().next().is_some_and(|line| line.contains(" requests on none")));
        assert_eq!(shown(text.replace('\n', "\r\n")), plain, "{name}: CRLF");
        assert_eq!(shown(text.trim_end().to_owned()), plain, "{name}: no last line end");
        assert_eq!(shown(format!("\u{feff}{text}")), plain, "{name}: byte order mark");
        assert_eq!(shown(text.replace('\n', "\n\n") + "\n  \n"), plain, "{name}: blank lines");
    }
}

/// Rows out of order are sorted, and the reader is told; ids stay those of the file.
#[test]
fn unsorted_arrivals_are_sorted_with_a_notice() {
    let scratch = Scratch::new("unsorted");
    let rows = "arrival_step,prompt_len,output_len\n5,8,2\n0,6,2\n5,7,2\n3,4,1\n";
    let trace = scratch.write("unsorted", rows);
    let decisions = scratch.path("decisions");
    let args = ["replay", &trace, "--device", "none", "--num-blocks", "40"];
    let more = ["--policy", "continuous", "--decisions", &decisions];
    let ran = inflight(&[&args[..], &more].concat());
    assert_eq!(ran.code, 0);
    assert_eq!(ran.stderr, "unsorted: 2 rows were out of order and have been sorted by arrival\n");
    let lines = scratch.read("decisions");
    let prefill: Vec<&str> = lines
        .lines()
        .filter_map(|line| line.split_once("\"prefill\":[[")?.1.split_once("]]"))
        .map(|(rows, _)| rows)
        .collect();
    assert_eq!(prefill, ["1,6,0", "3,4,0", "0,8,0],[2,7,0"]);
    let text = "{\"timestamp\": 10, \"input_length\": 9, \"output_length\": 4, \"hash_ids\": [1]}\n\
                {\"timestamp\": 5, \"input_length\": 9, \"output_length\": 4, \"hash_ids\": [1]}\n";
    let ran = inflight(&["replay", &scratch.write("late.jsonl", text)]);
    assert_eq!(ran.code, 0);
    assert_eq!(ran.stderr, "late: 1 row was out of order and has been sorted by arrival\n");
}

/// `inflight replay | head -1`: a reader that goes away is no reason to panic.
#[test]
fn a_reader_that_goes_away() {
    let args = ["replay", "--limit", "20", MODEL[0], MODEL[1]];
    let mut child = command(&args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    finished(&args, output);
}

/// Standard output on a full disk is an error like any other.
#[test]
#[cfg(target_os = "linux")]
fn a_table_that_does_not_fit() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("a full device");
    let args = ["replay", "--limit", "20", MODEL[0], MODEL[1]];
    let output = command(&args).stdout(full).output().expect("the program starts");
    let ran = finished(&args, output);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("No space left"), "{}", ran.stderr);
}

/// Nor is standard error on one worse than the error it cannot be told of.
#[test]
#[cfg(target_os = "linux")]
fn messages_that_do_not_fit() {
    let scratch = Scratch::new("stderr");
    let rows = "arrival_step,prompt_len,output_len\n5,8,2\n0,6,2\n";
    let (unsorted, missing) = (scratch.write("unsorted", rows), scratch.path("missing"));
    for (trace, code) in [(unsorted, 0), (missing, 2)] {
        let args = ["replay", &trace, "--device", "none", "--num-blocks", "40"];
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("a full device");
        let output = command(&args).stderr(full).output().expect("the program starts");
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert_eq!(output.stdout.is_empty(), code > 0, "{args:?}");
    }
}

/// The trace is never written over, and no file is written twice.
#[test]
fn files_that_meet() {
    let scratch = Scratch::new("meet");
    let rows = "arrival_step,prompt_len,output_len\n0,6,2\n";
    let trace = scratch.write("trace", rows);
    let [other, roundabout] = [scratch.path("other"), trace.replace("/trace", "/./trace")];
    let none = ["replay", &trace, "--device", "none", "--num-blocks", "40"];
    for files in
        [["--json", &roundabout, "--report", &other], ["--json", &other, "--report", &other]]
    {
        let ran = inflight(&[&none[..], &files[..]].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
        assert!(ran.stderr.contains("are one file"), "{}", ran.stderr);
    }
    assert_eq!(scratch.read("trace"), rows);
    assert!(!std::path::Path::new(&other).exists());
}
