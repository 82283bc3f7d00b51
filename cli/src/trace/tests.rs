//! What holds for every format, and the public traces the formats were made for.

use std::io::{self, Write};
use std::path::PathBuf;

use super::*;

const STEPS: &str = "arrival_step,prompt_len,output_len";

/// The trace in `text`, which must be one.
pub(super) fn trace(text: &str) -> Trace {
    trace_with(text, Options::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// The trace in `text`, whose file is called "t".
pub(super) fn trace_with(text: impl AsRef<[u8]>, options: Options) -> Result<Trace, TraceError> {
    parse("t", text.as_ref(), options)
}

/// The message of the error in `text`, whose file is called "t".
pub(super) fn error(text: impl AsRef<[u8]>) -> String {
    trace_with(text, Options::default()).expect_err("not a trace").to_string()
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
    let limited = |text: &str, limit| trace_with(text, Options { limit, ..Options::default() });
    assert_eq!(limited(&text, 2).unwrap().rows.len(), 2);
    assert_eq!(limited(&text, 3).unwrap_err().line, 4);
    assert_eq!(limited(&text, 0).unwrap_err().to_string(), "t: no requests");
    let json = "{\"prompt_len\": 1, \"output_len\": 2}\nrubbish";
    assert_eq!(limited(json, 1).unwrap().rows.len(), 1);
}

/// Rows of failed requests: no format and neither length makes a difference.
#[test]
fn rows_of_no_tokens_are_skipped_and_counted() {
    let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03";
    let vtc = "arrived_at,client,num_prefill_tokens,num_decode_tokens\n1";
    let burst = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,GPT-4";
    let mooncake = "\"timestamp\": 7, \"input_length\"";
    let steps = format!("{STEPS}\n9");
    for (good, bad, field) in [
        (format!("{azure},5,6"), "2023-11-16 18:17:03,5,0".to_owned(), "GeneratedTokens"),
        (format!("{azure},5,6"), "2023-11-16 18:17:03,0,5".to_owned(), "ContextTokens"),
        (format!("{vtc},2,5,6"), "0,1,5,0".to_owned(), "num_decode_tokens"),
        (format!("{burst},5,6,11,API log"), "1,GPT-4,5,0,5,API log".to_owned(), "Response tokens"),
        (format!("{burst},5,6,11,API log"), "1,GPT-4,0,0,0,API log".to_owned(), "Request tokens"),
        (format!("{steps},5,6"), "0,0,1".to_owned(), "prompt_len"),
        (
            format!("{{{mooncake}: 5, \"output_length\": 6}}\n"),
            format!("{{{mooncake}: 5, \"output_length\": 0}}"),
            "output_length",
        ),
        (
            "{\"prompt_len\": 5, \"output_len\": 6}\n".to_owned(),
            "{\"prompt_token_ids\": [], \"output_len\": 6}".to_owned(),
            "prompt_len",
        ),
    ] {
        let text = format!("{good}\n{bad}\n\n{bad}\n{}\n", good.lines().last().unwrap_or(""));
        let line = text.lines().position(|line| line == bad).expect("a bad row") + 1;
        let read = trace(&text);
        let rows: Vec<_> = read.rows.iter().map(|r| (r.id, r.prompt_len, r.output_len)).collect();
        assert_eq!((rows, read.skipped), (vec![(0, 5, 6), (3, 5, 6)], 2), "{text}");
        assert_eq!(
            read.notices,
            [format!(
                "2 rows of 0 tokens of prompt or output were skipped (the first on line {line}); \
                 --strict refuses them"
            )]
        );
        let strict = Options { strict: true, ..Options::default() };
        assert_eq!(
            trace_with(&text, strict).unwrap_err().to_string(),
            format!(
                "t:{line}: field `{field}`: `0` is not at least 1: remove the row, or have it \
                 skipped without --strict"
            )
        );
        // Those that are skipped are not among the first N, and what is asked for is read.
        let two = Options { limit: 2, ..Options::default() };
        assert_eq!(trace_with(&text, two).unwrap().rows.len(), 2);
        let kept: String =
            text.lines().filter(|&line| line != bad).map(|l| format!("{l}\n")).collect();
        assert_eq!(trace_with(kept, strict).unwrap().skipped, 0);
    }
    let none = format!("{STEPS}\n0,0,1\n0,1,0\n");
    assert_eq!(error(&none), "t: no requests: all rows have 0 tokens of prompt or output");
    let one = trace(&format!("{STEPS}\n0,1,0\n0,1,1\n"));
    assert_eq!(
        one.notices,
        [
            "1 row of 0 tokens of prompt or output was skipped (the first on line 2); --strict refuses it"
        ]
    );
    // A row that is skipped is a row all the same.
    assert_eq!(
        error(format!("{STEPS}\nx,1,0\n")),
        "t:2: field `arrival_step`: `x` is not a whole number"
    );
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text).expect("memory");
    encoder.finish().expect("memory")
}

fn zstd(text: &[u8]) -> Vec<u8> {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    compress_to_vec(text, CompressionLevel::Fastest)
}

/// What `printf 'arrival_step,prompt_len,output_len\n0,1,2\n1,3,4\n' | zstd --check` writes.
const BY_ZSTD: &[u8] = include_bytes!("../../../tests/data/traces/two.csv.zst");

#[test]
fn compressed_files_are_decompressed() {
    let text = format!("{STEPS}\n0,1,2\n1,3,4\n");
    let plain = trace(&text);
    let (start, end) = text.as_bytes().split_at(text.len() / 2);
    let skippable = [&b"\x5A\x2A\x4D\x18\x03\0\0\0"[..], b"abc"].concat();
    for bytes in [
        gzip(text.as_bytes()),
        [gzip(start), gzip(end)].concat(),
        zstd(text.as_bytes()),
        [zstd(start), zstd(end)].concat(),
        [&skippable, &zstd(start), &skippable, &zstd(b""), &zstd(end), &skippable]
            .map(|b| &b[..])
            .concat(),
        BY_ZSTD.to_vec(),
    ] {
        assert_eq!(trace_with(&bytes, Options::default()).unwrap(), plain, "{bytes:?}");
    }
    // Every other format, and more than any buffer holds.
    let row = "{\"prompt_len\": 1, \"output_len\": 2, \"client\": ";
    let long: String = (0..20_000).map(|client| format!("{row}{client}}}\n")).collect();
    let plain = trace(&long);
    assert_eq!((plain.rows.len(), plain.rows[19_999].client), (20_000, 19_999));
    for bytes in [gzip(long.as_bytes()), zstd(long.as_bytes())] {
        assert!(trace_with(&bytes, Options::default()).unwrap() == plain);
        let read = trace_with(&bytes[..bytes.len() / 2], Options::default()).unwrap_err();
        assert!(read.line > 1 && read.reason.starts_with("cannot be decompressed as "), "{read}");
        let limit = Options { limit: 5, ..Options::default() };
        assert_eq!(trace_with(&bytes[..bytes.len() / 2], limit).unwrap().rows.len(), 5);
    }
}

#[test]
fn compressed_files_that_are_damaged() {
    let text = format!("{STEPS}\n0,1,2\n1,3,4\n");
    let cut = |mut bytes: Vec<u8>, by: usize| {
        bytes.truncate(bytes.len() - by);
        error(bytes)
    };
    assert!(cut(gzip(text.as_bytes()), 4).contains("as gzip: the file ends early"));
    assert!(cut(zstd(text.as_bytes()), 4).contains(": cannot be decompressed as zstd: "));
    assert!(
        error([&zstd(text.as_bytes())[..], b"more"].concat()).contains("decompressed as zstd: ")
    );
    assert!(error(b"\x5A\x2A\x4D\x18\x03\0\0\0a").contains("as zstd: the file ends early"));
    let mut flipped = BY_ZSTD.to_vec();
    *flipped.last_mut().expect("a checksum") ^= 1;
    assert_eq!(error(flipped), "t:4: cannot be decompressed as zstd: the checksum is wrong");
    let mut flipped = gzip(text.as_bytes());
    let at = flipped.len() - 8;
    flipped[at] ^= 1;
    assert!(error(flipped).contains("cannot be decompressed as gzip: "));
    for (bytes, name) in [
        (&b"\xFD7zXZ\0\0\x04"[..], "xz"),
        (b"BZh91AY&SY", "bzip2"),
        (b"PK\x03\x04", "zip"),
        (b"PAR1\x15\0", "Parquet"),
        (b"\x04\x22\x4D\x18@", "lz4"),
    ] {
        let reason = "convert it to CSV or JSON lines, compressed with gzip or zstd or not";
        assert_eq!(error(bytes), format!("t: {name} is not read: {reason}"));
    }
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
                   azure (CSV: TIMESTAMP, ContextTokens, GeneratedTokens), \
                   burstgpt (CSV: Timestamp, Request tokens, Response tokens), \
                   vtc (CSV: arrived_at, client, num_prefill_tokens, num_decode_tokens), \
                   steps (CSV: arrival_step, prompt_len, output_len [priority, client]), \
                   mooncake (JSON lines: input_length, output_length [timestamp, hash_ids, \
                   session_id, delay, context_mode]), \
                   jsonl (JSON lines: prompt_len, output_len [prompt_token_ids, arrival_s, \
                   arrival_step, priority, client, cache_salt])";
    let nuls = [0; 5000];
    let utf16 = [0xFF, 0xFE, b'T', 0, b'I', 0];
    let almost_gzip = [0x1F, 0x8B, 0x07, 0x00, 0xFF, b'\n', 0x80];
    for bytes in [
        &b"hello\n1,2,3\n"[..],
        b"a,b,c\n1,2,3\n",
        b"[{}]",
        b"{}",
        b"{\"question\": 1}",
        b"0,1,1\n",
        &nuls,
        &utf16,
        &almost_gzip,
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
        "t:1: field `output\u{fffd}len`: unknown: remove it if it does not matter; the format has \
         prompt_len, output_len, \
         prompt_token_ids, arrival_s, arrival_step, priority, client, cache_salt"
    );
    assert_eq!(
        error(format!("{STEPS}\n\u{1b}[2J,1,1\n")),
        "t:2: field `arrival_step`: `\u{fffd}[2J` is not a whole number"
    );
}

#[test]
fn an_endless_line_is_cut_off() {
    let error = parse("t", io::repeat(b'x'), Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "t:1: longer than 64 MiB");
    let open = format!("{STEPS},note\n0,1,1,\"");
    let open = io::Read::chain(open.as_bytes(), io::repeat(b'x'));
    let error = parse("t", open, Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "t:2: a quote of this row is not closed: close or remove it");
}

#[test]
fn files_that_cannot_be_read() {
    let missing = Path::new("no-such-directory").join("no-such-trace.csv");
    let error = read(&missing, Options::default()).unwrap_err();
    assert_eq!((error.line, error.field.as_str()), (0, ""));
    assert!(error.to_string().starts_with(&format!("{}: ", missing.display())), "{error}");
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let error = read(directory, Options::default()).unwrap_err();
    assert_eq!(error.to_string(), format!("{}: is a directory", directory.display()));
}

/// A public trace, where there is a copy next to the workspace; says so where there is none.
fn public(path: &str) -> Option<Trace> {
    let traces: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "..", "..", "shared", "traces"].iter().collect();
    let file = traces.join(path);
    if !file.exists() {
        eprintln!("skipped: there is no {}", file.display());
        return None;
    }
    let trace = read(&file, Options::default()).unwrap_or_else(|error| panic!("{error}"));
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
    let first = |row: &Row| matches!(&row.prompt, Prompt::Chunks { ids, .. } if ids[0] == 0);
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
