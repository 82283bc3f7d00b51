//! Decisions and block tables against recordings of vLLM 0.33's own scheduler, step by step.
//!
//! `tests/data/vllm/*.jsonl`: a header line (limits and trace), then one line a step:
//! `[decode, prefill, preempted, finished, running, waiting, free_blocks, tables]`. `tables` gives
//! for each running request the blocks appended since the step before, or after -1 its whole new
//! table. The runs were made with vLLM's unmodified `Scheduler`, one full-attention KV group,
//! synchronous scheduling and a sampler that returns a fixed token for (row, k).

use std::collections::HashMap;
use std::path::Path;

use inflight::cache::CacheConfig;
use inflight::scheduler::capacity::Optimistic;
use inflight::scheduler::preempt::LowestPriority;
use inflight::scheduler::queue::{Ageing, Priority};
use inflight::{Config, Error, Policy, Request, RequestId, Sampled, Scheduler, Time, Token};
use serde_json::{Value, json};

/// Prompt tokens of a row that gives only a length: shared with no other row.
fn prompt_token(row: usize, i: u64) -> Token {
    (row as u32) << 20 | i as u32
}

/// Output tokens, as the recorded prompts that continue an earlier answer contain them.
fn output_token(row: u64, k: u32) -> Token {
    (1 << 30) + row as u32 * 16384 + k
}

fn request(row: usize, fields: &Value) -> Request {
    let prompt = match &fields[1] {
        Value::Array(ids) => ids.iter().filter_map(Value::as_u64).map(|t| t as Token).collect(),
        len => (0..len.as_u64().unwrap_or(0)).map(|i| prompt_token(row, i)).collect(),
    };
    let max_tokens = fields[2].as_u64().unwrap_or(0) as u32;
    let mut request = Request::new(RequestId(row as u64), prompt, max_tokens);
    request.priority = fields[3].as_i64().unwrap_or(0) as i32;
    request.arrival = Some(Time(row as u64));
    request
}

fn scheduler(head: &Value) -> Scheduler {
    let number = |key: &str| head[key].as_u64().unwrap_or_default() as usize;
    let flag = |key: &str| head[key].as_bool().unwrap_or_default();
    let mut policy = Policy::continuous();
    policy.capacity = Box::new(Optimistic {
        watermark: head["watermark"].as_f64().unwrap_or_default(),
        whole_prompt_must_fit: flag("reserve_full_isl"),
    });
    if head["policy"] == "priority" {
        policy.queue = Box::new(Priority::new(Ageing::Off, u64::MAX, u64::MAX));
        policy.victim = Box::new(LowestPriority);
    }
    let cache = CacheConfig {
        num_blocks: number("num_blocks"),
        block_size: number("block_size"),
        prefix_cache: flag("prefix_cache"),
        num_host_blocks: 0,
    };
    let config = Config {
        max_num_seqs: number("max_num_seqs"),
        max_num_batched_tokens: number("max_num_batched_tokens"),
        max_model_len: number("max_model_len"),
        chunked_prefill: flag("chunked"),
        ..Config::new(cache)
    };
    Scheduler::new(config, policy).expect("the recorded limits are valid")
}

/// Runs one recording; returns the number of steps that agreed.
fn replay(text: &str) -> Result<usize, String> {
    let mut lines = text.lines().map(|l| serde_json::from_str::<Value>(l).expect("JSON"));
    let head = lines.next().expect("a header");
    let rows = head["rows"].as_array().expect("rows");
    let mut scheduler = scheduler(&head);
    let capped = head["allow_length_cap"] == true;
    let mut pending: Vec<usize> = (0..rows.len()).collect();
    pending.sort_by_key(|&row| rows[row][0].as_u64());
    let mut pending = pending.into_iter().peekable();
    let mut tables: HashMap<String, Vec<i64>> = HashMap::new();
    let mut steps = 0;
    for (at, want) in lines.enumerate() {
        while let Some(row) = pending.next_if(|&row| rows[row][0].as_u64() <= Some(at as u64)) {
            let request = request(row, &rows[row]);
            let total = request.prompt.len() + request.max_tokens as usize;
            // The recording skips what vLLM could not run to its end.
            if total > scheduler.config().max_model_len && !capped {
                continue;
            }
            match scheduler.submit(request) {
                Ok(()) | Err(Error::NeverFits { .. }) => {}
                Err(error) => return Err(format!("row {row}: {error}")),
            }
        }
        let id = scheduler.schedule(Time(at as u64)).map_err(|e| format!("step {at}: {e}"))?.id();
        let step = scheduler.step(id).expect("it is in flight");
        let ids = |decode: bool| step.rows().iter().filter(move |r| r.is_decode == decode);
        let decode: Vec<u64> = ids(true).map(|r| r.id.0).collect();
        let prefill: Vec<_> =
            ids(false).map(|r| json!([r.id.0, r.num_tokens, r.num_computed])).collect();
        let preempted: Vec<u64> = step.preempted().iter().map(|r| r.0).collect();
        let (running, waiting) = (step.running(), step.waiting());
        let sampled: Vec<Token> = step
            .rows()
            .iter()
            .filter(|r| r.samples)
            .map(|r| output_token(r.id.0, r.num_output))
            .collect();
        // Tables of the rows of this step; those that did not run are as they were.
        let mut now = HashMap::new();
        for row in step.rows() {
            let blocks = scheduler.sequence(row).expect("a row of this step").blocks;
            now.insert(row.id.0.to_string(), blocks.iter().map(|b| i64::from(b.0)).collect());
        }
        let delta = want[7].as_object().expect("tables");
        for (id, blocks) in delta {
            let blocks: Vec<i64> =
                blocks.as_array().into_iter().flatten().filter_map(Value::as_i64).collect();
            let table = tables.entry(id.clone()).or_default();
            match blocks.split_first() {
                Some((-1, whole)) => *table = whole.to_vec(),
                _ => table.extend(blocks),
            }
        }
        for (id, blocks) in &now {
            let expected: Option<&Vec<i64>> = tables.get(id);
            if expected != Some(blocks) {
                return Err(format!("step {at}: blocks of {id}: {blocks:?}, vLLM {expected:?}"));
            }
        }
        scheduler.verify().map_err(|e| format!("step {at}: {e}"))?;
        let outputs = scheduler.commit(id, Sampled::One(&sampled)).map_err(|e| e.to_string())?;
        let finished: Vec<u64> = outputs.released().iter().map(|r| r.0).collect();
        let free = scheduler.cache().num_free();
        scheduler.verify().map_err(|e| format!("after step {at}: {e}"))?;
        let got = json!([decode, prefill, preempted, finished, running, waiting, free]);
        if got.as_array().map(Vec::as_slice) != want.as_array().map(|w| &w[..7]) {
            return Err(format!("step {at}:\n  here {got}\n  vLLM {want}"));
        }
        steps += 1;
    }
    match scheduler.num_unfinished() {
        0 => Ok(steps),
        n => Err(format!("{n} requests are left over")),
    }
}

#[test]
fn decisions_and_block_ids_are_vllms() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/vllm");
    let mut files: Vec<_> =
        std::fs::read_dir(&dir).expect("recordings").flatten().map(|f| f.path()).collect();
    files.sort();
    let (mut steps, mut failures) = (0, Vec::new());
    for file in &files {
        match replay(&std::fs::read_to_string(file).expect("a recording")) {
            Ok(n) => steps += n,
            Err(what) => failures.push(format!("{}: {what}", file.display())),
        }
    }
    println!("{} recordings, {steps} steps agree", files.len() - failures.len());
    assert!(files.len() >= 40, "recordings are missing from {}", dir.display());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
