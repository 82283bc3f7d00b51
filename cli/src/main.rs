//! The `inflight` program.

mod args;
mod cpu;
mod decisions;
mod info;
mod metrics;
mod numbers;
mod output;
mod replay;
mod report;
mod selftest;
mod sessions;
mod setup;
mod simulator;
mod table;
mod tensor;
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

/// Says something on standard error; where that is closed or full, there is no place to report it.
pub(crate) fn tell(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// Prints on standard output.
///
/// # Errors
/// It cannot be written to.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // The reader closed the pipe.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Run(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

fn main() -> ExitCode {
    let done = match args::Cli::parse().command {
        args::Command::Replay(args) => replay::main(&args),
        args::Command::Info(args) => info::main(&args),
        args::Command::Selftest(args) => selftest::main(&args),
    };
    match done {
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
