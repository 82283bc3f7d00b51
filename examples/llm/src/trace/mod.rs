//! `llm trace`: requests that come as they did in a trace, under several policies, on the real clock.
//!
//! `static` does better here than a program that is built for it would: what fills its rectangle takes
//! part in the matrix products, but not in attention, and requests that have ended are not sampled.

mod figures;
mod picture;
mod workload;

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use inflight::{Request, RequestId, Time};

use crate::engine::Engine;
use crate::options::{Options, positive};
use crate::sampling::argmax;
use crate::{print, prompts};
use figures::{Life, Run, table};
use workload::{Arrival, Scale};

/// Replays a trace's arrivals with a real model.
#[derive(Args, Debug)]
pub struct Trace {
    /// A trace with columns TIMESTAMP, ContextTokens, GeneratedTokens, as Azure publishes them
    file: PathBuf,
    /// Where the prompts' text is taken from, a file as `llm batch` takes it
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    #[command(flatten)]
    options: Options,
    /// Policies to compare; --policy is not looked at
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "static,continuous")]
    policies: Vec<String>,
    /// Requests taken from the trace at most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = positive)]
    limit: usize,
    /// Divides the trace's lengths
    #[arg(long, value_name = "FACTOR", default_value_t = 8.0)]
    shorten: f64,
    /// Requests a second on average; the trace's own by default
    #[arg(long)]
    rate: Option<f64>,
    /// Runs of each policy; their order turns from round to round
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    rounds: usize,
    /// Writes all runs, each request's times included
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws slots over time
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

impl Trace {
    /// Prints a table.
    pub fn run(self) -> Result<()> {
        if !(self.shorten >= 1.0 && self.rate.is_none_or(|rate| (1e-3..=1e6).contains(&rate))) {
            bail!("--shorten is at least 1, --rate from 0.001 to 1000000");
        }
        // Before minutes of work are done for them.
        let create = |option: &str, path: &Option<PathBuf>| -> Result<Option<(PathBuf, File)>> {
            let Some(path) = path else { return Ok(None) };
            let file = File::create(path);
            let file = file.with_context(|| format!("{option} {}", path.display()))?;
            Ok(Some((path.clone(), file)))
        };
        let (mut json, mut svg) = (create("--json", &self.json)?, create("--svg", &self.svg)?);
        let mut runs = Vec::new();
        let (there, back) = (&self.policies, self.policies.iter().rev());
        let back: Vec<_> = back.cloned().collect();
        let rounds = (0..self.rounds).map(|round| if round % 2 == 0 { there } else { &back });
        for policy in rounds.flatten() {
            let options = Options { policy: policy.clone(), ..self.options.clone() };
            let loaded = options.load()?;
            let mut engine = loaded.engine;
            let shape = engine.runner().shape();
            let with = (&loaded.tokenizer, &loaded.template);
            let text = prompts::read(&self.prompts, with, shape.vocab)?;
            let text: Vec<_> = text.into_iter().flat_map(|prompt| prompt.tokens).collect();
            let scale = Scale {
                limit: self.limit,
                shorten: self.shorten,
                rate: self.rate,
                max_model_len: engine.scheduler().config().max_model_len,
            };
            let arrivals = workload::read(&self.file, &text, scale)?;
            warm_up(&mut engine)?;
            runs.push(replay(&mut engine, &arrivals, policy)?);
        }
        print::line(table(&runs).trim_end())?;
        if self.policies.iter().any(|policy| policy == "static") {
            print::line(
                "static's padding is multiplied by weights, but not attended to, nor sampled",
            )?;
        }
        if let Some((path, file)) = &mut json {
            let json = serde_json::to_vec_pretty(&runs)?;
            file.write_all(&json).with_context(|| format!("--json {}", path.display()))?;
        }
        if let Some((path, file)) = &mut svg {
            let svg = picture::draw(&runs);
            file.write_all(svg.as_bytes()).with_context(|| format!("--svg {}", path.display()))?;
        }
        Ok(())
    }
}

/// Runs a request that is not counted: a GPU loads kernels when they are first used.
fn warm_up(engine: &mut Engine) -> Result<()> {
    engine.scheduler_mut().submit(Request::new(RequestId(u64::MAX), vec![0, 0], 2))?;
    while engine.scheduler().num_unfinished() > 0 {
        engine.step_with(Time(0), |_| true, |_, logits| argmax(logits))?;
    }
    Ok(())
}

/// Runs all requests, each from when it comes.
fn replay(engine: &mut Engine, arrivals: &[Arrival], policy: &str) -> Result<Run> {
    let mut run = Run {
        policy: policy.to_owned(),
        slots: engine.scheduler().config().max_num_seqs,
        seconds: 0.0,
        busy: 0.0,
        computed: 0,
        padding: 0,
        lives: vec![Life::default(); arrivals.len()],
    };
    let started = Instant::now();
    let now = || started.elapsed().as_secs_f64();
    let (mut next, mut held, mut refused) = (0, HashMap::new(), Vec::new());
    while next < arrivals.len() || engine.scheduler().num_unfinished() > 0 {
        while let Some(arrival) = arrivals.get(next).filter(|arrival| arrival.at <= now()) {
            let id = RequestId(next as u64);
            let request = Request::new(id, arrival.prompt.clone(), arrival.output);
            match engine.scheduler_mut().submit(request) {
                Ok(_) => run.lives[next].arrived = arrival.at,
                Err(error) => {
                    eprintln!("{policy}: request {}: {error}", next + 1);
                    refused.push(next);
                }
            }
            next += 1;
        }
        if engine.scheduler().num_unfinished() == 0 {
            let wait = arrivals.get(next).map_or(0.0, |arrival| arrival.at - now());
            sleep(Duration::from_secs_f64(wait.max(0.0)));
            continue;
        }
        let start = now();
        let time = Time::from_secs_f64(start);
        let outputs = engine.step_with(time, |_| true, |_, logits| argmax(logits))?;
        let (end, step) = (now(), outputs.step());
        run.busy += end - start;
        run.computed += step.num_tokens() as u64;
        run.padding += (step.num_padded_tokens() - step.num_tokens()) as u64;
        for row in step.rows().iter().filter(|row| row.admitted) {
            held.entry(row.id).or_insert(start);
        }
        for output in outputs.as_slice() {
            let life = &mut run.lives[output.id.0 as usize];
            let tokens = outputs.tokens(output).len() as u32;
            if life.output == 0 && tokens > 0 {
                life.first = end;
            }
            life.output += tokens;
            if output.finish.is_some() {
                life.finished = end;
            }
        }
        for id in outputs.released() {
            let life = &mut run.lives[id.0 as usize];
            life.released = end;
            life.admitted = held.remove(id).unwrap_or(start);
        }
        run.seconds = end;
    }
    for at in refused.into_iter().rev() {
        run.lives.remove(at);
    }
    Ok(run)
}
