//! The program: reads the command line, then runs the proxy of this node. Start reading at `run.rs` (what is started in
//! which order and how it ends); `args.rs` is the configuration, `admin.rs` and `telemetry.rs` are what operators see.
//! Exit codes: 0 after a drain, 64 when the command line or the source is wrong (sysexits' EX_USAGE), 1 otherwise.

mod admin;
mod args;
mod check;
mod controller;
mod env;
mod logging;
mod process;
mod readiness;
mod ready;
mod run;
mod security;
mod server;
mod telemetry;

#[cfg(test)]
mod reference;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use clap::error::ErrorKind;

use args::{Cli, Command, Surroundings};

/// Many small objects of all workers come and go; the system's allocator locks and fragments under that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Why the program ends other than by a signal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line or the source is wrong; the text is one line.
    #[error("{0}")]
    Usage(String),
    /// The machine does not give what is needed.
    #[error("{0:#}")]
    Start(#[from] anyhow::Error),
    /// A second signal came while requests were still in flight.
    #[error("ended by a second signal, requests in flight are lost")]
    Forced,
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,
            Self::Start(_) | Self::Forced => 1,
        }
    }
}

fn main() -> ExitCode {
    let argv: Vec<OsString> = std::env::args_os().collect();
    let command = match Cli::try_parse_from(&argv) {
        Ok(cli) => cli.command,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // Nothing is left to tell when stdout is closed.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&Failure::Usage(args::one_line(&error, &argv))),
    };
    let around = Surroundings::of_process();
    let outcome = match command {
        Command::Run(flags) => flags.into_config(&around).map_err(Failure::Usage).and_then(run::run),
        Command::Controller(flags) => flags.into_config(&around).map_err(Failure::Usage).and_then(controller::run),
        Command::Ready(flags) => ready::ready(&flags.admin_socket).map_err(Failure::from),
        Command::Check(flags) => match check::run(&flags, std::io::stdout().is_terminal() && around.colours()) {
            Ok(true) => Ok(()),
            // The report has said what failed.
            Ok(false) => return ExitCode::FAILURE,
            Err(failure) => Err(failure),
        },
        Command::Env(flags) => print(&env::render(&flags)).map_err(Failure::from),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure),
    }
}

/// Writes a command's output. A reader that has left (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("stdout cannot be written"),
        _ => Ok(()),
    }
}

/// One line on stderr and the exit code.
fn fail(failure: &Failure) -> ExitCode {
    let line = failure.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    let _ = writeln!(std::io::stderr(), "posthouse: {line}");
    ExitCode::from(failure.code())
}
