//! Logs go to stderr, one line an event, and a panic is an event, too: it ends one task, not the process, so the line and
//! the counter are all that an operator will ever see of it.

use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::args::LogFormat;

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Sends events of `filter` (checked with the command line) to stderr.
pub(crate) fn install(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = targets(filter)?;
    let to_stderr = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let layer = match format {
        LogFormat::Text => to_stderr.boxed(),
        LogFormat::Json => to_stderr.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init()?;
    Ok(())
}

/// The Kubernetes client logs each failed request as an error; discovery tells of an outage once, and of its end. Who asks for
/// `kube_client` gets it.
fn targets(filter: &str) -> anyhow::Result<Targets> {
    let targets: Targets = filter.parse()?;
    let quiet = !filter.contains("kube_client");
    Ok(if quiet { targets.with_target("kube_client", LevelFilter::OFF) } else { targets })
}

/// Panics become one log line and a count instead of the several lines that the standard library writes.
pub(crate) fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::current();
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        let message = message(info).split_whitespace().collect::<Vec<_>>().join(" ");
        tracing::error!(message, location, thread = thread.name().unwrap_or("unnamed"), "a task panicked");
    }));
}

/// Panics since the start.
pub(crate) fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

fn message<'a>(info: &'a PanicHookInfo<'_>) -> &'a str {
    info.payload_as_str().unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubernetes_client_is_quiet_unless_it_is_asked_for() {
        let errors =
            |filter| targets(filter).unwrap().would_enable("kube_client::client::builder", &tracing::Level::ERROR);
        assert!(!errors("info") && !errors("debug,posthouse_proxy=trace"));
        assert!(errors("info,kube_client=debug"));
        assert!(targets("info").unwrap().would_enable("posthouse::run", &tracing::Level::INFO));
    }

    #[test]
    fn a_panic_is_counted_and_stays_in_its_task() {
        install_panic_hook();
        let before = panics();
        let outcome = std::thread::spawn(|| panic!("two\nlines")).join();
        let _ = std::panic::take_hook();
        assert!(outcome.is_err());
        assert!(panics() > before);
    }
}
