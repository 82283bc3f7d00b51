//! `llm`: a language model served by inflight.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use inflight_llm::{batch, bench, compare, generate, print, server, trace};

/// A language model, run by continuous batching.
#[derive(Parser)]
#[command(name = "llm", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answers one prompt, as the text comes
    Generate(generate::Generate),
    /// Compares the logits of all ways to multiply and types of the cache
    Compare(compare::Compare),
    /// Replays a trace's arrivals under several policies
    Trace(trace::Trace),
    /// Measures tokens a second
    Bench(bench::Bench),
    /// Serves OpenAI's API over HTTP
    Serve(server::Serve),
    /// Runs a file of prompts, all at once
    Batch(batch::Batch),
}

fn main() -> ExitCode {
    // Errors of candle carry a backtrace where tests or containers ask panics for theirs.
    if std::env::var_os("RUST_LIB_BACKTRACE").is_none() {
        // SAFETY: there is no other thread yet.
        unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") };
    }
    let outcome = match Cli::parse().command {
        Command::Generate(command) => command.run(),
        Command::Batch(command) => command.run(),
        Command::Compare(command) => command.run(),
        Command::Trace(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Serve(command) => command.run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if print::is_unread(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
