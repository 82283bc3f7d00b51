//! What holds for every format, and the public traces the formats were made for.

use std::io::{self, Cursor};
use std::path::PathBuf;

use super::*;

const STEPS: &str = "arrival_step,prompt_len,output_len";

/// The trace in `text`, which must be one.
pub(super) fn trace(text: &str) -> Trace {
    parse("t", Cursor::new(text), None).unwrap_or_else(|error| panic!("{error}"))
}

/// The message of the error in `text`, whose file is called "t".
pub(super) fn error(text: impl AsRef<[u8]>) -> String {
    parse("t", Cursor::new(text), None).expect_err("not a trace").to_string()
}

#[test]
fn line_ends_marks_and_blank_lines_do_not_matter() {
    let plain = trace("arrival_step,prompt_len,output_len\n0,1,2\n1,3,4\n");
    for text in [
        "arrival_step,prompt_len,output_len\r\n0,1,2\r\n1,3,4\r\n",
        "arrival_step,prompt_len,output_len\n0,1,2\n1,3,4",
        "arrival_step,prompt_len,output_len\r\n0,1,2\r\n1,3,4",
        "\u{feff}arrival_step,prompt_len,output_len\n0,1,2\n1,3,4\n",
        "\n  \narrival_step,prompt_len,output_len\n\n0,1,2\r\n\t\r\n 1 , 3, 4 \n\n",
        "\u{feff}\r\narrival_step,prompt_len,output_len\n0,1,2\n1,3,4\n",
    ] {
        assert_eq!(trace(text), plain, "{text:?}");
    }
    let json = "{\"prompt_len\": 1, \"output_len\": 2}";
    let plain = trace(json);
    assert_eq!(trace(&format!("\u{feff}{json}\r\n\r\n")), plain);
}

#[test]
fn rows_are_sorted_by_arrival() {
    let sorted = trace(&format!("{STEPS}\n5,1,1\n2,2,1\n5,3,1\n2,4,1\n"));
    let rows: Vec<_> = sorted.rows.iter().map(|row| (row.id, row.arrival)).collect();
    assert_eq!(rows, [(1, 2.0), (3, 2.0), (0, 5.0), (2, 5.0)]);
    assert_eq!(sorted.notices, ["2 rows were out of order and have been sorted by arrival"]);

    let late = trace("arrived_at,client,num_prefill_tokens,num_decode_tokens\n9,0,1,1\n8.5,0,1,1");
    assert_eq!(late.notices, ["1 row was out of order and has been sorted by arrival"]);
    let rows: Vec<_> = late.rows.iter().map(|row| (row.id, row.arrival)).collect();
    assert_eq!(rows, [(1, 0.0), (0, 0.5)]);
}

#[test]
fn a_limit_reads_no_further() {
    let text = format!("{STEPS}\n0,1,1\n0,2,1\nrubbish\n");
    let limited = |text: &str, limit| parse("t", Cursor::new(text.to_owned()), Some(limit));
    assert_eq!(limited(&text, 2).unwrap().rows.len(), 2);
    assert_eq!(limited(&text, 3).unwrap_err().line, 4);
    assert_eq!(limited(&text, 0).unwrap_err().to_string(), "t: no requests");
    let json = "{\"prompt_len\": 1, \"output_len\": 2}\nrubbish";
    assert_eq!(limited(json, 1).unwrap().rows.len(), 1);
}

#[test]
fn files_without_requests() {
    for text in ["", "\n", "\u{feff}", " \r\n\r\n", STEPS, "arrival_step,prompt_len,output_len\r\n"]
    {
        assert_eq!(error(text), "t: no requests", "{text:?}");
    }
}

#[test]
fn files_that_are_no_traces() {
    let message = "t: not a request trace; the known formats are \
                   Azure CSV (TIMESTAMP,ContextTokens,GeneratedTokens), \
                   VTC CSV (arrived_at,client,num_prefill_tokens,num_decode_tokens), \
                   step CSV (arrival_step,prompt_len,output_len and optionally priority,client), \
                   Mooncake JSON lines (timestamp, input_length, output_length, hash_ids) and \
                   JSON lines (prompt_len or prompt_token_ids, output_len and optionally \
                   arrival_s or arrival_step, priority, client, cache_salt)";
    let nuls = [0; 5000];
    let utf16 = [0xFF, 0xFE, b'T', 0, b'I', 0];
    let gzip = [0x1F, 0x8B, 0x08, 0x00, 0xFF, b'\n', 0x80];
    for bytes in [
        &b"hello\n1,2,3\n"[..],
        b"a,b,c\n1,2,3\n",
        b"[{}]",
        b"{}",
        b"{\"question\": 1}",
        b"0,1,1\n",
        &nuls,
        &utf16,
        &gzip,
    ] {
        assert_eq!(error(bytes), message);
    }
    assert_eq!(
        error("{\n  \"prompt_len\": 1\n}"),
        "t:1: not a JSON object: EOF while parsing an object at column 1"
    );
}

#[test]
fn rubbish_after_a_good_start() {
    let mut bytes = format!("{STEPS}\n0,1,1\n").into_bytes();
    bytes.extend(b"\xFF\xFE\x00\n");
    assert_eq!(error(&bytes), "t:3: not UTF-8 text");
    let long = "7".repeat(5000);
    assert_eq!(
        error(format!("{STEPS}\n\n{long},1,1\n")),
        format!(
            "t:3: field `arrival_step`: `{}...` is too big: the most is 1000000000",
            "7".repeat(40)
        )
    );
    assert_eq!(
        error("{\"prompt_len\": 1, \"output\\nlen\": 1}"),
        "t:1: field `output\u{fffd}len`: unknown; the format has prompt_len, prompt_token_ids, \
         output_len, arrival_s, arrival_step, priority, client, cache_salt"
    );
    assert_eq!(
        error(format!("{STEPS}\n\u{1b}[2J,1,1\n")),
        "t:2: field `arrival_step`: `\u{fffd}[2J` is not a whole number"
    );
}

#[test]
fn an_endless_line_is_cut_off() {
    let endless = BufReader::new(io::repeat(b'x'));
    let error = parse("t", endless, None).unwrap_err();
    assert_eq!(error.to_string(), "t:1: longer than 64 MiB");
}

#[test]
fn files_that_cannot_be_read() {
    let missing = Path::new("no-such-directory").join("no-such-trace.csv");
    let error = read(&missing, None).unwrap_err();
    assert_eq!((error.line, error.field.as_str()), (0, ""));
    assert!(error.to_string().starts_with(&format!("{}: ", missing.display())), "{error}");
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let error = read(directory, None).unwrap_err();
    assert_eq!(error.to_string(), format!("{}: is a directory", directory.display()));
}

/// A public trace, where there is a copy beside the workspace; says so where there is none.
fn public(path: &str) -> Option<Trace> {
    let traces: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "..", "..", "shared", "traces"].iter().collect();
    let file = traces.join(path);
    if !file.exists() {
        eprintln!("skipped: there is no {}", file.display());
        return None;
    }
    let trace = read(&file, None).unwrap_or_else(|error| panic!("{error}"));
    assert!(trace.notices.is_empty(), "{:?}", trace.notices);
    assert_eq!(trace.clock, Clock::Seconds);
    assert_eq!(trace.rows[0].arrival, 0.0);
    assert!(trace.rows.is_sorted_by(|a, b| a.arrival <= b.arrival));
    assert!(trace.rows.iter().zip(0..).all(|(row, id)| row.id == id));
    Some(trace)
}

fn longest(trace: &Trace) -> (u32, u32) {
    let longest = |length: fn(&Row) -> u32| trace.rows.iter().map(length).max();
    (longest(|row| row.prompt_len).unwrap_or(0), longest(|row| row.output_len).unwrap_or(0))
}

fn span(trace: &Trace) -> f64 {
    trace.rows.last().map_or(0.0, |row| row.arrival)
}

#[test]
fn azure_code() {
    let Some(trace) = public("azure/AzureLLMInferenceTrace_code.csv") else { return };
    assert_eq!((trace.name.as_str(), trace.format), ("AzureLLMInferenceTrace_code", "azure"));
    assert_eq!((trace.rows.len(), longest(&trace)), (8819, (7437, 1899)));
    assert_eq!((trace.rows[1].arrival, span(&trace).round()), (0.052, 3436.0));
}

#[test]
fn azure_conversation() {
    let Some(trace) = public("azure/AzureLLMInferenceTrace_conv.csv") else { return };
    assert_eq!((trace.rows.len(), longest(&trace)), (19366, (14050, 1000)));
    assert_eq!(span(&trace).round(), 3502.0);
}

#[test]
fn mooncake_conversation() {
    let Some(trace) = public("mooncake/conversation_trace.jsonl") else { return };
    assert_eq!(trace.format, "mooncake");
    assert_eq!((trace.rows.len(), longest(&trace)), (12031, (126195, 2000)));
    assert_eq!(span(&trace).round(), 3537.0);
    let first = |row: &Row| matches!(&row.prompt, Prompt::Chunks(ids) if ids[0] == 0);
    assert!(trace.rows.iter().all(first));
    // Every prompt begins with block 0, and then they part.
    let [a, b] = [0, 1].map(|row: usize| trace.rows[row].prompt_tokens(row as u64));
    assert_eq!(a.len(), 6758);
    assert_eq!(a[..512], b[..512]);
    assert_ne!(a[512], b[512]);
}

#[test]
fn vtc_lmsys() {
    let Some(trace) = public("vtc_lmsys/vtc_real_trace.csv") else { return };
    assert_eq!(trace.format, "vtc");
    assert_eq!((trace.rows.len(), longest(&trace)), (1500, (1021, 977)));
    assert_eq!(span(&trace), 600.0);
    assert_eq!(trace.rows.iter().map(|row| row.client).max(), Some(26));
}
