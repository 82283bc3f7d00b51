//! The engine's thread: requests come in by a channel, tokens go out by one a request.
//!
//! Between two steps the worker takes what has arrived, so a request joins the batch with the next
//! step and leaves it with its last token. A client that hangs up drops its end of its channel, which
//! the worker sees before the next step: the request is cancelled and its blocks are free.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use inflight::scheduler::Row;
use inflight::{FinishReason, Request, RequestId, Time, Token};
use tokio::sync::mpsc;

use crate::engine::Engine;
use crate::sampling::{Logprobs, Sampler, Sampling};

/// What is to be generated.
#[derive(Clone, Debug)]
pub struct Generation {
    /// At least one token.
    pub prompt: Vec<Token>,
    /// Output tokens at most.
    pub max_tokens: u32,
    /// Output tokens at least: before them, none of `ends` is chosen.
    pub min_tokens: u32,
    /// Tokens that end the text; they are delivered, and text leaves them out.
    pub ends: Vec<Token>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Likeliest tokens to report with each; `None` for no logprobs.
    pub logprobs: Option<usize>,
    /// Lower runs first, under the policy `priority`.
    pub priority: i32,
}

impl Generation {
    /// The likeliest continuation.
    pub fn greedy(prompt: Vec<Token>, max_tokens: u32, ends: &[Token]) -> Self {
        Self {
            prompt,
            max_tokens,
            min_tokens: 0,
            ends: ends.to_vec(),
            sampling: Sampling::greedy(),
            logprobs: None,
            priority: 0,
        }
    }
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Event {
    /// It waits for its turn, under this id.
    Accepted(RequestId),
    /// Its next token.
    Token {
        /// The token.
        token: Token,
        /// How likely it was, where that was asked for.
        logprobs: Option<Logprobs>,
        /// Why it is the last one, where it is. Nothing follows then.
        finish: Option<FinishReason>,
    },
    /// It was not taken: too many wait, or it can never run. Nothing follows.
    Refused(inflight::Error),
    /// The engine failed. Nothing follows.
    Failed(String),
}

/// Counts and sizes, for `/metrics` and progress.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Requests that run.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Blocks of the cache that are free, those with a known content included.
    pub free_blocks: usize,
    /// Blocks there are.
    pub num_blocks: usize,
    /// Steps run.
    pub steps: u64,
    /// Requests that ended: by themselves, or where their text did.
    pub finished: u64,
    /// Requests whose clients went away.
    pub cancelled: u64,
    /// Requests that were not taken.
    pub refused: u64,
    /// Preemptions.
    pub preemptions: u64,
    /// Tokens computed: of prompts, and outputs fed back.
    pub computed_tokens: u64,
    /// Tokens delivered.
    pub output_tokens: u64,
    /// Tokens of prompts that were looked for in the prefix cache.
    pub queried_tokens: u64,
    /// Those that were found.
    pub hit_tokens: u64,
    /// Seconds spent in steps.
    pub busy_seconds: f64,
}

enum Command {
    Submit(RequestId, Box<Generation>, mpsc::UnboundedSender<Event>),
    /// The request ends after so many output tokens.
    Finish(RequestId, u32),
    /// Ends when everything that was submitted has ended.
    Drain,
}

/// The engine, from any thread.
#[derive(Clone)]
pub struct Handle {
    commands: Sender<Command>,
    next: Arc<AtomicU64>,
    stats: Arc<Mutex<Stats>>,
    running: Arc<AtomicBool>,
}

impl Handle {
    /// Submits a request. Dropping the receiver cancels it.
    pub fn submit(&self, generation: Generation) -> mpsc::UnboundedReceiver<Event> {
        let (events, receiver) = mpsc::unbounded_channel();
        let id = RequestId(self.next.fetch_add(1, Ordering::Relaxed));
        let command = Command::Submit(id, Box::new(generation), events.clone());
        if self.commands.send(command).is_err() {
            // It is the receiver's, who reads it or has gone.
            let _ = events.send(Event::Failed("the engine has stopped".to_owned()));
        }
        receiver
    }

    /// Ends a request after its first `keep_tokens` output tokens: its text has ended there. Nothing
    /// follows for its receiver.
    pub fn finish(&self, id: RequestId, keep_tokens: u32) {
        // An engine that has stopped needs no telling.
        let _ = self.commands.send(Command::Finish(id, keep_tokens));
    }

    /// Counts and sizes after the last step.
    pub fn stats(&self) -> Stats {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the engine takes requests.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    /// Takes no more requests; the engine ends when those that it has have ended.
    pub fn drain(&self) {
        // An engine that has stopped needs no telling.
        let _ = self.commands.send(Command::Drain);
    }
}

/// A request that waits or runs.
struct Live {
    /// Rows are shared out among threads: each locks its own, and none waits.
    chooser: Mutex<Chooser>,
    events: mpsc::UnboundedSender<Event>,
}

impl Live {
    fn chooser(&self) -> MutexGuard<'_, Chooser> {
        self.chooser.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Chooser {
    sampler: Sampler,
    ends: Vec<Token>,
    min_tokens: u32,
    /// Of the token that was sampled last.
    logprobs: Option<Logprobs>,
}

impl Chooser {
    /// Whether it is certain to choose the likeliest token, and nothing else is asked of the logits.
    fn is_likeliest(&self, row: &Row) -> bool {
        self.sampler.is_likeliest() && row.num_output >= self.min_tokens
    }

    fn choose(&mut self, row: &Row, logits: &mut [f32]) -> Token {
        let masked = if row.num_output < self.min_tokens { &self.ends[..] } else { &[] };
        let (token, logprobs) = self.sampler.sample_without(masked, logits);
        self.logprobs = logprobs;
        token
    }
}

struct Worker {
    engine: Engine,
    live: HashMap<RequestId, Live>,
    commands: Receiver<Command>,
    draining: bool,
    stats: Stats,
    shared: Arc<Mutex<Stats>>,
    started: Instant,
    gone: Vec<RequestId>,
}

/// Starts the engine's thread. It ends after `drain`, or when all handles are gone, once its
/// requests have ended.
pub fn start(engine: Engine) -> Result<(Handle, JoinHandle<Result<()>>)> {
    let (sender, commands) = channel();
    let stats = Arc::new(Mutex::new(Stats::default()));
    let handle = Handle {
        commands: sender,
        next: Arc::default(),
        stats: Arc::clone(&stats),
        running: Arc::new(AtomicBool::new(true)),
    };
    let running = Arc::clone(&handle.running);
    let mut worker = Worker {
        engine,
        live: HashMap::new(),
        commands,
        draining: false,
        stats: Stats::default(),
        shared: stats,
        started: Instant::now(),
        gone: Vec::new(),
    };
    worker.publish();
    let thread = thread::Builder::new().name("engine".to_owned());
    let thread = thread.spawn(move || {
        let _stopped = Stopped(running);
        worker.run()
    });
    let thread = thread.context("the engine's thread")?;
    Ok((handle, thread))
}

/// Says that the engine runs no more, also when it panics.
struct Stopped(Arc<AtomicBool>);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Worker {
    fn run(&mut self) -> Result<()> {
        loop {
            // Those first, whose ends were said before: a text that has ended is not given up.
            let gone = self.live.iter().filter(|(_, live)| live.events.is_closed());
            self.gone.extend(gone.map(|(&id, _)| id));
            self.receive();
            self.drop_gone();
            if self.unfinished() == 0 {
                self.publish();
                if self.draining {
                    return Ok(());
                }
                continue;
            }
            if let Err(error) = self.step() {
                for (_, live) in self.live.drain() {
                    // A client that is gone needs no telling.
                    let _ = live.events.send(Event::Failed(error.to_string()));
                }
                return Err(error);
            }
            self.publish();
        }
    }

    /// Takes what has arrived; waits where there is nothing else to do.
    fn receive(&mut self) {
        loop {
            let idle = self.unfinished() == 0 && !self.draining;
            let wait = if idle { Duration::from_secs(3600) } else { Duration::ZERO };
            match self.commands.recv_timeout(wait) {
                Ok(Command::Submit(id, generation, events)) => self.submit(id, *generation, events),
                Ok(Command::Finish(id, keep_tokens)) => {
                    self.live.remove(&id);
                    // It is unknown where it has ended meanwhile.
                    let _ = self.engine.scheduler_mut().finish(id, keep_tokens);
                    // It may have been the last, and the next one be long in coming.
                    self.publish();
                }
                Ok(Command::Drain) => self.draining = true,
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => {
                    self.draining = true;
                    return;
                }
            }
        }
    }

    fn submit(
        &mut self,
        id: RequestId,
        generation: Generation,
        events: mpsc::UnboundedSender<Event>,
    ) {
        let Generation { prompt, max_tokens, min_tokens, ends, sampling, logprobs, priority } =
            generation;
        let sampler = Sampler::new(sampling, logprobs, &prompt);
        let mut request = Request::new(id, prompt, max_tokens);
        request.stop_tokens.clone_from(&ends);
        request.priority = priority;
        request.arrival = Some(self.now());
        if let Err(error) = self.engine.scheduler_mut().submit(request) {
            self.stats.refused += 1;
            self.publish();
            // A client that is gone needs no telling.
            let _ = events.send(Event::Refused(error));
            return;
        }
        // A client that is gone is cancelled before the next step.
        let _ = events.send(Event::Accepted(id));
        let chooser = Mutex::new(Chooser { sampler, ends, min_tokens, logprobs: None });
        self.live.insert(id, Live { chooser, events });
    }

    /// Cancels the requests of clients that went away.
    fn drop_gone(&mut self) {
        for id in self.gone.drain(..) {
            if self.live.remove(&id).is_some() {
                // It is unknown where it has finished in a static batch that has not.
                let _ = self.engine.scheduler_mut().cancel(id);
            }
        }
    }

    /// Runs a step, and delivers what it gives.
    fn step(&mut self) -> Result<()> {
        let start = Instant::now();
        let (now, live) = (self.now(), &self.live);
        let is_likeliest =
            |row: &Row| live.get(&row.id).is_none_or(|live| live.chooser().is_likeliest(row));
        let outputs = self.engine.step_with(now, is_likeliest, |row, logits| {
            // A static batch goes on with rows whose clients are gone.
            live.get(&row.id).map_or(0, |live| live.chooser().choose(row, logits))
        })?;
        self.stats.computed_tokens += outputs.step().num_tokens() as u64;
        for output in outputs.as_slice() {
            let Some(live) = self.live.get(&output.id) else { continue };
            let mut logprobs = live.chooser().logprobs.take();
            let tokens = outputs.tokens(output);
            for (number, &token) in (1..).zip(tokens) {
                let finish = output.finish.filter(|_| number == tokens.len());
                let logprobs = logprobs.take();
                // A client that went away is seen before the next step.
                let _ = live.events.send(Event::Token { token, logprobs, finish });
            }
            if output.finish.is_some() {
                self.live.remove(&output.id);
            }
        }
        self.stats.busy_seconds += start.elapsed().as_secs_f64();
        Ok(())
    }

    fn now(&self) -> Time {
        Time::from_secs_f64(self.started.elapsed().as_secs_f64())
    }

    fn unfinished(&self) -> usize {
        self.engine.scheduler().num_unfinished()
    }

    fn publish(&mut self) {
        let scheduler = self.engine.scheduler();
        let (counts, cache) = (scheduler.stats(), scheduler.cache());
        let stats = Stats {
            running: scheduler.num_running(),
            waiting: scheduler.num_waiting(),
            free_blocks: cache.num_free(),
            num_blocks: scheduler.config().cache.num_blocks - 1,
            steps: counts.steps,
            finished: counts.finished,
            cancelled: counts.cancelled,
            preemptions: counts.preemptions,
            output_tokens: counts.output_tokens,
            queried_tokens: cache.stats().queried_tokens,
            hit_tokens: cache.stats().hit_tokens,
            ..self.stats
        };
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }
}
