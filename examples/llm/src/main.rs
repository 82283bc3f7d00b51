//! `llm`: a language model served by inflight.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use inflight_llm::{batch, bench, compare, generate, server, trace};

/// Generates text by continuous batching, on this machine's processor.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Continues one prompt, as it is computed
    Generate(generate::Generate),
    /// Compares the logits of all types of activations and caches
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
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
