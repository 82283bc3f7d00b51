//! The `inflight` program.

mod args;
mod decisions;
mod metrics;
mod numbers;
mod output;
mod replay;
mod report;
mod setup;
mod table;
mod trace;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

/// Why the program stops early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What was asked for makes no sense, or the trace does not: exit code 2.
    Usage(String),
    /// It made sense and did not work: exit code 1.
    Run(String),
}

/// Says something on standard error; where that is closed or full, nobody could be told of it.
pub(crate) fn tell(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

fn main() -> ExitCode {
    let args::Cli { command: args::Command::Replay(replay) } = args::Cli::parse();
    match replay::main(&replay) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let (code, what) = match failure {
                Failure::Usage(what) => (2, what),
                Failure::Run(what) => (1, what),
            };
            tell(&format!("inflight: {what}"));
            ExitCode::from(code)
        }
    }
}
