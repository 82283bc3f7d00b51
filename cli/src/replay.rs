//! `inflight replay`: one trace, several policies, side by side.

use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use inflight::cache::ExtraKey;
use inflight::engine::Ran;
use inflight::executor::{DryRun, Executor};
use inflight::{Engine, Error, Request, RequestId, Time, Token};

use crate::args::Replay;
use crate::decisions::Decisions;
use crate::metrics::{self, Recorder, Run, RunConfig, StepSample, Unit};
use crate::output::{Output, check_paths};
use crate::sessions::Sessions;
use crate::setup::{DeviceKind, Setup};
use crate::simulator::Simulator;
use crate::trace::{self, Row};
use crate::{Failure, print, tell};
use crate::{report, table};

/// Replays, prints, writes the files asked for.
pub(crate) fn main(args: &Replay) -> Result<(), Failure> {
    let setup = Setup::new(args)?;
    for notice in &setup.trace.notices {
        tell(&format!("{}: {notice}", setup.trace.name));
    }
    // All files are created before the work is done.
    let mut files = Files::create(args)?;
    let progress = progress(setup.trace.rows.len() * setup.policies.len());
    let mut runs = Vec::new();
    for policy in &setup.policies {
        let keep_timeline = args.report.is_some();
        let decisions = files.decisions.as_mut().map(|(_, decisions)| decisions);
        let run = match &setup.device {
            DeviceKind::Decisions => {
                let device = DryRun { sampler };
                replay(&setup, policy, device, keep_timeline, decisions, &progress)?.0
            }
            &DeviceKind::Model(cost) => {
                let device = Simulator { cost, sampler };
                replay(&setup, policy, device, keep_timeline, decisions, &progress)?.0
            }
            DeviceKind::Cpu(on) => {
                // Zeroing gigabytes takes a while: say so.
                progress.set_message("preparing");
                progress.enable_steady_tick(Duration::from_millis(500));
                let device = on.device(&setup.config, sampler)?;
                // Nothing else runs while steps are timed.
                progress.disable_steady_tick();
                let (mut run, device) =
                    replay(&setup, policy, device, keep_timeline, decisions, &progress)?;
                run.summary.measured = Some(device.measured());
                run
            }
        };
        runs.push(run);
    }
    progress.finish_and_clear();
    if let Some(run) = runs.iter().find(|run| run.summary.requests == 0) {
        let why = run.summary.refused.keys().copied().collect::<Vec<_>>().join(", ");
        tell(&format!("{}: every request was refused ({why})", setup.trace.name));
        let size = ["too_long", "never_fits"];
        if run.summary.refused.keys().all(|why| size.contains(why)) {
            setup.to_raise().iter().for_each(|what| tell(&format!("{}: {what}", setup.trace.name)));
        }
    }
    files.write(&setup, &runs)?;
    print(&format!("{}\n{}", heading(&setup), table::render(&runs)))
}

/// Every replayed request outputs the same tokens in every run.
fn sampler(id: RequestId, k: u32) -> Token {
    trace::output_token(id.0, k)
}

fn heading(setup: &Setup) -> String {
    let Setup { trace, device, device_name, config, .. } = setup;
    let computes = match device {
        DeviceKind::Cpu(on) => on.explain(),
        _ => String::new(),
    };
    format!(
        "{}: {} requests on {device_name}\n{computes}{} slots, {} blocks of {} tokens, {} tokens per \
         step\n",
        trace.name,
        trace.rows.len(),
        config.max_num_seqs,
        config.cache.num_blocks,
        config.cache.block_size,
        config.max_num_batched_tokens,
    )
}

fn progress(requests: usize) -> ProgressBar {
    // Drawn on standard error, and only if that is a terminal.
    let bar = ProgressBar::new(requests as u64);
    // No time to the end: policies differ too much for one to foresee the other's.
    let style = ProgressStyle::with_template("{msg:>16} {wide_bar} {pos}/{len} requests {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// The files asked for.
struct Files {
    decisions: Option<(Output, Decisions)>,
    json: Option<Output>,
    report: Option<Output>,
}

impl Files {
    fn create(args: &Replay) -> Result<Self, Failure> {
        check_paths(args)?;
        let create = |path: &Option<PathBuf>| path.as_deref().map(Output::create).transpose();
        let decisions = match create(&args.decisions)? {
            Some(output) => {
                let file = output.file().map_err(|error| undecided(&error))?;
                Some((output, Decisions::new(file)))
            }
            None => None,
        };
        Ok(Self { decisions, json: create(&args.json)?, report: create(&args.report)? })
    }

    fn write(self, setup: &Setup, runs: &[Run]) -> Result<(), Failure> {
        let (trace, device) = (&setup.trace.name, &setup.device_name);
        let echo = setup.echo();
        if let Some((output, decisions)) = self.decisions {
            decisions.finish().map_err(|error| undecided(&error))?;
            output.complete()?;
        }
        if let Some(output) = self.json {
            let config = echo.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
            let config = serde_json::Value::Object(config.collect());
            let document = metrics::document(trace, device, config, runs);
            let text = serde_json::to_string_pretty(&document)
                .map_err(|error| Failure::Run(format!("--json: {error}")))?;
            output.write(&(text + "\n"))?;
        }
        if let Some(output) = self.report {
            let shown = |value: &serde_json::Value| {
                value.as_str().map_or_else(|| value.to_string(), str::to_owned)
            };
            let config: Vec<_> =
                echo.iter().map(|(key, value)| ((*key).to_owned(), shown(value))).collect();
            output.write(&report::html(trace, device, &config, runs))?;
        }
        Ok(())
    }
}

fn undecided(error: &std::io::Error) -> Failure {
    Failure::Run(format!("--decisions: {error}"))
}

/// One run of the trace under one policy, and the device after it.
fn replay<D: Executor>(
    setup: &Setup,
    policy: &str,
    device: D,
    keep_timeline: bool,
    decisions: Option<&mut Decisions>,
    progress: &ProgressBar,
) -> Result<(Run, D), Failure> {
    let cache = setup.config.cache;
    let recorder = Recorder::new(RunConfig {
        policy: policy.to_owned(),
        slots: setup.config.max_num_seqs,
        usable_blocks: cache.num_blocks.saturating_sub(1),
        block_size: cache.block_size,
        unit: setup.unit(),
        keep_timeline,
    });
    progress.set_message(policy.to_owned());
    let rules = setup.policy(policy)?;
    let engine = Engine::new(setup.config, rules, device)
        .map_err(|error| Failure::Usage(format!("--{error}").replace('_', "-")))?;
    let sessions = Sessions::new(&setup.trace);
    let (now, number, submitted) = (0.0, 0, 0);
    Replayer { setup, engine, recorder, sessions, decisions, progress, now, number, submitted }
        .run()
}

struct Replayer<'a, D> {
    setup: &'a Setup,
    engine: Engine<D>,
    recorder: Recorder,
    sessions: Sessions<'a>,
    decisions: Option<&'a mut Decisions>,
    progress: &'a ProgressBar,
    /// Seconds, or steps.
    now: f64,
    /// Of the next step; with a clock that counts steps, also the time.
    number: u64,
    submitted: u64,
}

impl<D: Executor> Replayer<'_, D> {
    fn run(mut self) -> Result<(Run, D), Failure> {
        let setup = self.setup;
        let mut rows = setup.trace.rows.iter().filter(|row| row.turn.is_none()).peekable();
        loop {
            // Of a row and a turn of one instant, the row comes first.
            let row = rows.peek().map(|row| (row.arrival, *row));
            let turn = self.sessions.next();
            let is_turn = turn.is_some_and(|(at, _)| row.is_none_or(|(first, _)| at < first));
            let next = if is_turn { turn } else { row };
            match next {
                Some((at, row)) if at <= self.now => {
                    if is_turn {
                        self.sessions.take_next();
                    } else {
                        rows.next();
                    }
                    self.submit(row, at);
                }
                _ if self.step()? => {}
                Some((at, _)) => self.wait_until(at)?,
                None => break,
            }
        }
        let (_, _, device) = self.engine.into_parts();
        Ok((self.recorder.finish(self.now), device))
    }

    fn submit(&mut self, row: &Row, arrival: f64) {
        let prompt = self.sessions.prompt(row, self.setup.seed);
        let prompt_len = prompt.len();
        let mut request = Request::new(RequestId(row.id), prompt, row.output_len);
        request.priority = row.priority;
        request.client = row.client;
        // Those of one instant came in the order of the trace, as on any real server.
        request.arrival = Some(Time(Time::from_secs_f64(arrival).0 + self.submitted));
        self.submitted += 1;
        request.extra_keys.extend(row.cache_salt.iter().map(|s| ExtraKey::Salt(s.clone().into())));
        match self.engine.submit(request) {
            Ok(()) => {
                self.recorder.arrived(row.id, arrival, prompt_len as u32);
                if prompt_len + row.output_len as usize > self.setup.config.max_model_len {
                    self.recorder.truncated();
                }
            }
            Err(error) => {
                // With it the later turns of its session.
                let mut refused = Some(row.id);
                while let Some(id) = refused {
                    self.recorder.refused(id, refusal(&error));
                    self.progress.inc(1);
                    refused = self.sessions.refused(id);
                }
            }
        }
    }

    /// Runs a step; false when there is no request.
    fn step(&mut self) -> Result<bool, Failure> {
        let ran = self.engine.step(Time::from_secs_f64(self.now));
        let Some(ran) = ran.map_err(|error| Failure::Run(error.to_string()))? else {
            return Ok(false);
        };
        if let Some(file) = &mut self.decisions {
            let written = file.step(self.number, ran.outputs.step(), &ran.outputs);
            written.map_err(|error| undecided(&error))?;
        }
        let end = self.now + ran.seconds;
        record(&mut self.recorder, &ran, self.now, end, self.setup);
        for output in ran.outputs.as_slice() {
            self.sessions.output(output.id.0, ran.outputs.tokens(output));
        }
        for id in ran.outputs.released() {
            self.sessions.ended(id.0, end);
        }
        self.progress.inc(ran.outputs.released().len() as u64);
        self.now = end;
        self.number += 1;
        Ok(true)
    }

    /// Lets time pass without work.
    fn wait_until(&mut self, arrival: f64) -> Result<(), Failure> {
        if self.setup.unit() == Unit::Seconds {
            self.now = arrival;
            return Ok(());
        }
        let free = self.engine.scheduler().cache().num_free();
        let next = arrival.ceil();
        if let Some(file) = &mut self.decisions {
            for number in self.number..next as u64 {
                let written = file.empty(number, free);
                written.map_err(|error| undecided(&error))?;
            }
        }
        (self.now, self.number) = (next, next as u64);
        Ok(())
    }
}

/// Tells the recorder what a step did from `start` to `end`.
fn record(recorder: &mut Recorder, ran: &Ran<'_>, start: f64, end: f64, setup: &Setup) {
    let (outputs, step) = (&ran.outputs, ran.outputs.step());
    for id in step.preempted() {
        recorder.preempted(id.0, start);
    }
    for row in step.rows().iter().filter(|row| row.admitted) {
        recorder.admitted(row.id.0, start, row.num_computed);
    }
    let chunks = step.rows().iter().filter(|row| !row.is_decode || row.admitted);
    let recomputed: u32 = chunks
        .map(|row| recorder.chunk(row.id.0, row.num_computed, row.num_computed + row.num_tokens))
        .sum();
    for output in outputs.as_slice() {
        for _ in outputs.tokens(output) {
            recorder.token(output.id.0, end);
        }
        if output.finish.is_some() {
            recorder.ended(output.id.0, end);
        }
    }
    for id in outputs.released() {
        recorder.finished(id.0, end);
    }
    let cache = setup.config.cache;
    let held = cache.num_blocks - 1 - step.free_blocks();
    recorder.step(&StepSample {
        start_s: start,
        seconds: ran.seconds,
        useful_rows: step.rows().len() as u32,
        held_slots: step.running() as u32,
        waiting: step.waiting() as u32,
        useful_tokens: step.num_tokens() as u64 - u64::from(recomputed),
        recomputed_tokens: u64::from(recomputed),
        computed_tokens: step.num_padded_tokens() as u64,
        kv_used_tokens: (held * cache.block_size).saturating_sub(ran.kv_slack) as u64,
        held_blocks: held as u32,
        output_tokens: outputs.num_tokens() as u32,
    });
}

/// How the figures call a request that was turned away.
fn refusal(error: &Error) -> &'static str {
    match error {
        Error::PromptTooLong { .. } => "too_long",
        Error::NeverFits { .. } => "never_fits",
        Error::QueueFull { .. } => "queue_full",
        Error::DuplicateRequest(_) => "duplicate",
        _ => "invalid",
    }
}
