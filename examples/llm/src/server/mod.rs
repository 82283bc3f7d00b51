//! `llm serve`: an OpenAI-compatible server.

mod answer;
mod chat;
mod choice;
mod completions;
mod error;
mod metrics;
mod params;
mod signals;
mod stop;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
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
}

/// Requests that wait at most, where nothing is said: more are answered with 429.
const MAX_WAITING: usize = 1024;
/// Bytes of a request's body at most.
const MAX_BODY: usize = 16 << 20;

/// What handlers share. There is one, as long as the program runs.
pub struct Server {
    engine: Handle,
    tokenizer: Tokenizer,
    template: Template,
    model: String,
    max_model_len: usize,
    vocab: usize,
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
            vocab,
            metrics: Metrics::default(),
            started: unix_time(),
            requests: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        }));
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(1).enable_all().build()?;
        let deadline = Duration::from_secs(self.drain_seconds);
        let served = runtime.block_on(server.serve(&self.host, self.port, deadline));
        // Dropping it drops the connections that are left, and with them their requests.
        runtime.shutdown_timeout(Duration::from_secs(1));
        engine.drain();
        thread.join().unwrap_or_else(|_| bail!("the engine panicked"))?;
        served
    }
}

impl Server {
    async fn serve(&'static self, host: &str, port: u16, deadline: Duration) -> Result<()> {
        let listener = TcpListener::bind((host, port))
            .await
            .with_context(|| format!("cannot listen at {host}:{port}"))?;
        let address = listener.local_addr()?;
        let mut signals = Signals::count();
        println!("listening at http://{address}, model {}", self.model);
        let app = Router::new()
            .route("/v1/completions", post(completions::completions))
            .route("/v1/chat/completions", post(chat::chat))
            .route("/v1/models", get(models))
            .route("/v1/models/{*id}", get(model))
            .route("/health", get(health))
            .route("/metrics", get(figures))
            .fallback(async || ApiError::no_path())
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .with_state(self);
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

    /// Output tokens of a prompt, which is checked: those that are wanted, or all that fit.
    fn max_tokens(&self, prompt: &[u32], wanted: Option<u32>) -> Result<u32, ApiError> {
        if prompt.is_empty() {
            return Err(ApiError::field("prompt", "has no tokens"));
        }
        if let Some(token) = prompt.iter().find(|&&token| token as usize >= self.vocab) {
            return Err(ApiError::field("prompt", format!("there is no token {token}")));
        }
        if wanted == Some(0) {
            return Err(ApiError::field("max_tokens", "is 0"));
        }
        let room = self.max_model_len.saturating_sub(prompt.len());
        let wanted = wanted.unwrap_or(room.max(1) as u32);
        if wanted as usize > room {
            let (tokens, most) = (prompt.len(), self.max_model_len);
            return Err(ApiError::too_long(format!(
                "{tokens} tokens of prompt and {wanted} of output; {most} are the most together"
            )));
        }
        Ok(wanted)
    }

    /// The tokens of a text. One that is too long by its bytes alone is not looked at.
    fn encode(&self, field: &str, text: &str) -> Result<Vec<u32>, ApiError> {
        let most = self.max_model_len.saturating_mul(self.tokenizer.longest());
        if text.len() > most {
            let message = format!("{} bytes of prompt, and {most} are the most", text.len());
            return Err(ApiError::too_long(message));
        }
        // Long texts take a while, in which other clients get their tokens.
        tokio::task::block_in_place(|| self.tokenizer.encode(text))
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

    /// A name for an answer.
    fn id(&self, kind: &str) -> String {
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
    match id == server.model {
        true => Ok(Json(entry(server)).into_response()),
        false => Err(ApiError::no_model(&id)),
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
