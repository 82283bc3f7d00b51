//! `llm serve`: an OpenAI-compatible server.

mod answer;
mod body;
mod chat;
mod choice;
mod completions;
mod error;
mod fields;
mod messages;
mod metrics;
mod params;
mod routes;
mod signals;
mod stop;
mod unsupported;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use clap::Args;
use inflight::Config;
use serde_json::json;
use tokio::net::TcpListener;

use crate::chat::Template;
use crate::options::Options;
use crate::tokenizer::Tokenizer;
use crate::worker::{Generation, Handle, start};
use answer::Answer;
use error::ApiError;
use metrics::Metrics;
use params::{Limits, Params, Wanted};
use signals::Signals;

/// Serves completions over HTTP.
#[derive(Args, Debug)]
pub struct Serve {
    #[command(flatten)]
    options: Options,
    /// Address to listen at
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen at; 0 takes a free one
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// The model's name to clients; the file's by default
    #[arg(long, value_name = "NAME")]
    served_model_name: Option<String>,
    /// Seconds that requests have to end after a signal to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain_seconds: u64,
    /// Lets pages of this origin use the server from browsers; several times for several, * for all
    #[arg(long, value_name = "ORIGIN", value_parser = routes::origin)]
    cors: Vec<HeaderValue>,
    /// Takes names of special tokens in messages for these tokens: a user can then write turns of
    /// others
    #[arg(long)]
    special_tokens_in_messages: bool,
}

/// Requests that wait at most, where nothing is said: more are answered with 429.
const MAX_WAITING: usize = 1024;

/// What handlers share. There is one, as long as the program runs.
pub struct Server {
    engine: Handle,
    tokenizer: Tokenizer,
    template: Template,
    model: String,
    max_model_len: usize,
    limits: Limits,
    special_tokens_in_messages: bool,
    metrics: Metrics,
    started: u64,
    requests: AtomicU64,
    stopping: AtomicBool,
}

impl Serve {
    /// Serves until a signal to stop.
    pub fn run(mut self) -> Result<()> {
        self.options.max_waiting.get_or_insert(MAX_WAITING);
        let loaded = self.options.load()?;
        let Config { max_model_len, cache, .. } = *loaded.engine.scheduler().config();
        // A small cache ends a request before the model does. Its last token needs no room.
        let max_model_len = max_model_len.min((cache.num_blocks - 1) * cache.block_size + 1);
        let vocab = loaded.engine.runner().shape().vocab;
        let (engine, thread) = start(loaded.engine)?;
        let server: &'static Server = Box::leak(Box::new(Server {
            engine: engine.clone(),
            tokenizer: loaded.tokenizer,
            template: loaded.template,
            model: self.served_model_name.unwrap_or(loaded.name),
            max_model_len,
            limits: Limits { vocab, has_priorities: self.options.policy == "priority" },
            special_tokens_in_messages: self.special_tokens_in_messages,
            metrics: Metrics::default(),
            started: unix_time(),
            requests: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        }));
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(1).enable_all().build()?;
        let deadline = Duration::from_secs(self.drain_seconds);
        let served = runtime.block_on(server.serve((&self.host, self.port), &self.cors, deadline));
        // Dropping it drops the connections that are left, and with them their requests.
        runtime.shutdown_timeout(Duration::from_secs(1));
        engine.drain();
        thread.join().unwrap_or_else(|_| bail!("the engine panicked"))?;
        served
    }
}

impl Server {
    async fn serve(
        &'static self,
        (host, port): (&str, u16),
        origins: &[HeaderValue],
        deadline: Duration,
    ) -> Result<()> {
        let listener = TcpListener::bind((host, port))
            .await
            .with_context(|| format!("cannot listen at {host}:{port}"))?;
        let address = listener.local_addr()?;
        let mut signals = Signals::count();
        println!("listening at http://{address}, model {}", self.model);
        let app = routes::router(self, origins);
        let listener = listener.tap_io(|connection| {
            // A token does not wait for the next one's packet. Where this fails, tokens come late.
            let _ = connection.set_nodelay(true);
        });
        let mut late = signals.clone();
        let stop = async move {
            signals.wait(1).await;
            self.stopping.store(true, Ordering::Relaxed);
            let seconds = deadline.as_secs();
            eprintln!("stopping: requests have {seconds} s to end, or until the next signal");
        };
        let late = async move {
            late.wait(1).await;
            tokio::select! {
                () = tokio::time::sleep(deadline) => {}
                () = late.wait(2) => {}
            }
        };
        tokio::select! {
            served = axum::serve(listener, app).with_graceful_shutdown(stop) => Ok(served?),
            () = late => {
                eprintln!("requests that have not ended are given up");
                Ok(())
            }
        }
    }

    /// Whether requests are taken, for this model.
    fn check(&self, model: Option<&str>) -> Result<(), ApiError> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(ApiError::stopping());
        }
        match model.filter(|&model| model != self.model) {
            Some(other) => Err(ApiError::no_model(other)),
            None => Ok(()),
        }
    }

    /// Output tokens of a prompt, which is in this field and is checked: those that are wanted, or all
    /// that fit.
    fn max_tokens(&self, field: &str, prompt: &[u32], wanted: Wanted) -> Result<u32, ApiError> {
        if prompt.is_empty() {
            return Err(ApiError::field(field, "has no tokens"));
        }
        let vocab = self.limits.vocab;
        if let Some(token) = prompt.iter().find(|&&token| token as usize >= vocab) {
            let message = format!("{token} is not a token: the model has 0 to {}", vocab - 1);
            return Err(ApiError::field(field, message));
        }
        let (tokens, most) = (prompt.len(), self.max_model_len);
        let room = most.saturating_sub(tokens);
        if room == 0 {
            let message = format!("{tokens} tokens; with the output there are at most {most}");
            return Err(ApiError::too_long(field, message));
        }
        match wanted {
            Some((name, wanted)) if wanted > room as i64 => {
                let message = format!(
                    "{wanted} tokens of output, with {tokens} of the prompt, are more than {most}"
                );
                Err(ApiError::too_long(name, message))
            }
            Some((_, wanted)) => Ok(wanted as u32),
            None => Ok(room as u32),
        }
    }

    /// The tokens of a text. One that is too long by its bytes alone is not looked at.
    fn encode(
        &self,
        field: &str,
        text: &str,
        encode: impl FnOnce(&Tokenizer, &str) -> Result<Vec<u32>>,
    ) -> Result<Vec<u32>, ApiError> {
        let most = self.max_model_len.saturating_mul(self.tokenizer.longest());
        if text.len() > most {
            let message =
                format!("{} bytes are more than the model's tokens may have, {most}", text.len());
            return Err(ApiError::too_long(field, message));
        }
        // Long texts take a while, in which other clients get their tokens.
        tokio::task::block_in_place(|| encode(&self.tokenizer, text))
            .map_err(|error| ApiError::field(field, format!("{error:#}")))
    }

    async fn submit(
        &'static self,
        generations: Vec<Generation>,
        stops: Vec<String>,
        prompt_tokens: usize,
    ) -> Result<Answer, ApiError> {
        let rest = (stops, prompt_tokens);
        Answer::submit(&self.engine, &self.tokenizer, generations, rest, &self.metrics).await
    }

    /// A name for an answer: with the client's own for the request, where it has one.
    fn id(&self, kind: &str, params: &Params) -> String {
        if let Some(id) = &params.request_id {
            return format!("{kind}-{id}");
        }
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        format!("{kind}-{:08x}{number:08x}", self.started as u32)
    }

    fn now(&self) -> u64 {
        unix_time()
    }
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn entry(server: &Server) -> serde_json::Value {
    json!({
        "id": server.model,
        "object": "model",
        "created": server.started,
        "owned_by": "inflight",
        "max_model_len": server.max_model_len,
    })
}

async fn models(State(server): State<&'static Server>) -> Response {
    Json(json!({ "object": "list", "data": [entry(server)] })).into_response()
}

async fn model(
    State(server): State<&'static Server>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    // As at other paths, a slash may end it.
    let id = id.strip_suffix('/').unwrap_or(&id);
    match id == server.model {
        true => Ok(Json(entry(server)).into_response()),
        false => Err(ApiError::no_model(id)),
    }
}

async fn health(State(server): State<&'static Server>) -> Response {
    if server.stopping.load(Ordering::Relaxed) {
        return ApiError::stopping().into_response();
    }
    match server.engine.is_running() {
        true => "ok\n".into_response(),
        false => ApiError::no_engine().into_response(),
    }
}

async fn figures(State(server): State<&'static Server>) -> Response {
    let text = server.metrics.text(&server.engine.stats());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
