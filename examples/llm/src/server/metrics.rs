//! What `/metrics` tells, as Prometheus reads it.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::worker::Stats;

/// Upper bounds of the histograms, in seconds.
const BOUNDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Times of requests.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Times>);

#[derive(Default)]
struct Times {
    open: AtomicU64,
    first: Mutex<Histogram>,
    between: Mutex<Histogram>,
    whole: Mutex<Histogram>,
}

#[derive(Default)]
struct Histogram {
    counts: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        for (count, _) in self.counts.iter_mut().zip(BOUNDS).filter(|&(_, bound)| seconds <= bound)
        {
            *count += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }

    fn write(&self, to: &mut String, name: &str, help: &str) {
        let mut line = |text: String| {
            to.push_str(&text);
            to.push('\n');
        };
        line(format!("# HELP {name} {help}"));
        line(format!("# TYPE {name} histogram"));
        for (bound, count) in BOUNDS.iter().zip(self.counts) {
            line(format!("{name}_bucket{{le=\"{bound}\"}} {count}"));
        }
        line(format!("{name}_bucket{{le=\"+Inf\"}} {}", self.count));
        line(format!("{name}_sum {}", self.sum));
        line(format!("{name}_count {}", self.count));
    }
}

fn add(histogram: &Mutex<Histogram>, time: Duration) {
    histogram.lock().unwrap_or_else(PoisonError::into_inner).add(time);
}

/// Measures one HTTP request.
pub struct Watch {
    times: Arc<Times>,
    started: Instant,
    last: Option<Instant>,
}

impl Watch {
    /// A token has come.
    pub fn token(&mut self) {
        let now = Instant::now();
        match self.last {
            None => add(&self.times.first, now - self.started),
            Some(last) => add(&self.times.between, now - last),
        }
        self.last = Some(now);
    }

    /// All has come.
    pub fn finish(&self) {
        add(&self.times.whole, self.started.elapsed());
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.times.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Measures an HTTP request from now on.
    pub fn watch(&self) -> Watch {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        Watch { times: Arc::clone(&self.0), started: Instant::now(), last: None }
    }

    /// All figures, in the text format of Prometheus.
    pub fn text(&self, stats: &Stats) -> String {
        let mut text = String::new();
        let mut value = |kind: &str, name: &str, help: &str, value: f64| {
            writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}")
                .expect("a String takes all");
        };
        let open = self.0.open.load(Ordering::Relaxed);
        let used = stats.num_blocks - stats.free_blocks;
        let usage = used as f64 / stats.num_blocks.max(1) as f64;
        for (name, help, number) in [
            ("llm_http_requests_open", "HTTP requests being answered.", open as f64),
            ("llm_requests_running", "Requests in the running batch.", stats.running as f64),
            ("llm_requests_waiting", "Requests in the queue.", stats.waiting as f64),
            ("llm_kv_cache_usage_ratio", "Part of the KV blocks that requests hold.", usage),
        ] {
            value("gauge", name, help, number);
        }
        for (name, help, number) in [
            ("llm_steps_total", "Steps run.", stats.steps as f64),
            ("llm_step_seconds_total", "Seconds spent in steps.", stats.busy_seconds),
            ("llm_requests_finished_total", "Requests that ended.", stats.finished as f64),
            ("llm_requests_cancelled_total", "Requests given up.", stats.cancelled as f64),
            ("llm_requests_refused_total", "Requests not taken.", stats.refused as f64),
            ("llm_preemptions_total", "Preemptions.", stats.preemptions as f64),
            ("llm_computed_tokens_total", "Tokens computed.", stats.computed_tokens as f64),
            ("llm_output_tokens_total", "Tokens delivered.", stats.output_tokens as f64),
            (
                "llm_prefix_queries_total",
                "Tokens looked for in the prefix cache.",
                stats.queried_tokens as f64,
            ),
            ("llm_prefix_hits_total", "Tokens found in the prefix cache.", stats.hit_tokens as f64),
        ] {
            value("counter", name, help, number);
        }
        for (histogram, name, help) in [
            (&self.0.first, "llm_time_to_first_token_seconds", "From request to first token."),
            (&self.0.between, "llm_inter_token_seconds", "Between two tokens of an HTTP request."),
            (&self.0.whole, "llm_request_seconds", "From request to end."),
        ] {
            let histogram = histogram.lock().unwrap_or_else(PoisonError::into_inner);
            histogram.write(&mut text, name, help);
        }
        text
    }
}
