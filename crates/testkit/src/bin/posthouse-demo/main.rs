//! `make demo`: three nodes on one machine, each with a proxy and three pods, traffic between them, and a table that shows
//! where it goes. Read `topology.rs` for what the little cluster is, `cluster.rs` for how it starts, `traffic.rs` for
//! what is asked, `table.rs` for what is shown.

mod certificates;
mod children;
mod cluster;
mod manifests;
mod screen;
mod stats;
mod table;
mod topology;
mod traffic;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, Programs};
use crate::screen::Screen;
use crate::traffic::Traffic;

/// The pod that a reader is invited to kill.
const VICTIM: &str = "echo-b";

/// Runs a little cluster on loopback: three nodes, three proxies, nine pods, and traffic between them.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// End after so many seconds: exit code 0 when every request succeeded, more than half crossed a link and
    /// every pod answered, 1 otherwise.
    #[arg(long, value_name = "N", env = "DEMO_SECONDS")]
    seconds: Option<u64>,
    /// The proxy's program [default: `posthouse` beside this program].
    #[arg(long, value_name = "PATH")]
    posthouse: Option<PathBuf>,
    /// Send nothing and show no table: for tests that bring their own clients.
    #[arg(long)]
    idle: bool,
    /// Write who runs where (process ids, addresses, folders) to this file, as JSON, once everything is ready.
    #[arg(long, value_name = "FILE")]
    pids: Option<PathBuf>,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == children::BECOME_CHILD) {
        return complain(&children::become_child(arguments).to_string());
    }
    let arguments = Arguments::parse();
    // One thread: the kernel ties each child to the thread that started it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ran = runtime.context("starting the runtime").and_then(|runtime| runtime.block_on(run(arguments)));
    match ran {
        Ok(code) => code,
        Err(error) => complain(&format!("{error:#}")),
    }
}

fn complain(text: &str) -> ExitCode {
    // Nowhere left to say that standard error is gone.
    let _ = writeln!(io::stderr(), "posthouse-demo: {text}");
    ExitCode::FAILURE
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { seconds, posthouse, idle, pids } = arguments;
    let stop = stop_signals()?;
    let programs = Programs::find(posthouse)?;
    let mut cluster = Cluster::prepare()?;
    let started = tokio::select! {
        started = cluster.start(&programs) => started,
        () = stop.cancelled() => Err(anyhow::anyhow!("ended before everything was ready")),
    };
    let outcome = match started {
        Err(error) => Err(error),
        Ok(()) => match announce(&cluster, pids.as_deref()) {
            Err(error) => Err(error),
            Ok(()) if idle => stand_by(seconds, &stop).await,
            Ok(()) => play(&mut cluster, seconds, &stop).await,
        },
    };
    let keep = !matches!(outcome, Ok(ExitCode::SUCCESS));
    let logs = cluster.logs.clone();
    let stubborn = cluster.end(keep).await;
    if !stubborn.is_empty() {
        complain(&format!("had to be killed: {}", stubborn.join(", ")));
    }
    if keep {
        complain(&format!("the logs are kept in {}", logs.display()));
    }
    outcome
}

/// Cancelled at the first SIGINT, SIGTERM or SIGHUP.
fn stop_signals() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let (mut signal, stop) = (signal(kind)?, stop.clone());
        tokio::spawn(async move {
            signal.recv().await;
            stop.cancel();
        });
    }
    Ok(stop)
}

/// Writes the description beside its name first, so that a script never reads half of it.
fn announce(cluster: &Cluster, pids: Option<&Path>) -> anyhow::Result<()> {
    let Some(path) = pids else { return Ok(()) };
    let unfinished = path.with_extension("unfinished");
    std::fs::write(&unfinished, format!("{:#}\n", cluster.describe()))
        .and_then(|()| std::fs::rename(&unfinished, path))
        .with_context(|| format!("writing {}", path.display()))
}

async fn stand_by(seconds: Option<u64>, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
    screen::print(&["posthouse-demo: everything is ready; Ctrl-C ends it".to_owned()])?;
    tokio::select! {
        () = elapsed(seconds) => {}
        () = stop.cancelled() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Traffic and table until the time is over or the user has seen enough.
async fn play(cluster: &mut Cluster, seconds: Option<u64>, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
    let victim = cluster.children.find(VICTIM).map(|process| (VICTIM, process.pid));
    let mut screen =
        Screen::new(table::commands(&cluster.source, cluster.certificates.folder(), &cluster.logs, victim));
    screen.open()?;
    let start = Instant::now();
    let traffic = Traffic::start();
    let mut redraw = tokio::time::interval_at(start + screen.period(), screen.period());
    let over = elapsed(seconds);
    tokio::pin!(over);
    let timed_out = loop {
        tokio::select! {
            () = &mut over => break true,
            () = stop.cancelled() => break false,
            _ = redraw.tick() => {
                let lines = table::live(&traffic.stats(), start.elapsed(), &cluster.children.ended());
                screen.draw(&lines)?;
            }
        }
    };
    let took = start.elapsed();
    let stats = traffic.end().await;
    let ended = cluster.children.ended();
    screen.draw(&table::live(&stats, took, &ended))?;
    // A run that the user ended early is not judged: there may have been no time for every pod to answer.
    let problems = if timed_out { table::problems(&stats, &ended) } else { Vec::new() };
    screen::print(&table::summary(&stats, &problems))?;
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn elapsed(seconds: Option<u64>) {
    match seconds {
        Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
        None => std::future::pending().await,
    }
}
