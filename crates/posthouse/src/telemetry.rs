//! What the outside is told of this proxy's health: `/livez`, `/readyz` and `/metrics`, on the metrics listener and on the
//! admin listener alike. Counters and histograms come from the process's recorder (`recorder.rs`), the state of
//! directory and process is read when somebody asks (`state.rs`).

mod exposition;
mod recorder;
mod state;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::request::Parts;
use http::{Method, Response, StatusCode, header};
use posthouse_discovery::Status;
use posthouse_model::DirectoryHandle;
use tokio::sync::Semaphore;

use crate::readiness::Readiness;
use crate::server::{Body, Handler, full, set, text};

pub(crate) use recorder::Recorder;
#[cfg(test)]
pub(crate) use state::METRICS;

/// Writing the metrics may take this part of one core at most, whoever asks and how often: pods can reach the port.
const RENDER_SHARE: u32 = 5;
/// No scraper waits longer than this for its turn; the worst case is a pod that asks all the time.
const RENDER_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Answers for health and metrics.
pub(crate) struct Telemetry {
    recorder: Recorder,
    readiness: Readiness,
    directory: DirectoryHandle,
    discovery: Box<dyn Fn() -> Status + Send + Sync>,
    started: SystemTime,
    rendering: Arc<Semaphore>,
}

impl Telemetry {
    /// Puts the parts together; nothing runs.
    pub(crate) fn new(
        recorder: Recorder,
        readiness: Readiness,
        directory: DirectoryHandle,
        discovery: Box<dyn Fn() -> Status + Send + Sync>,
        started: SystemTime,
    ) -> Self {
        Self { recorder, readiness, directory, discovery, started, rendering: Arc::new(Semaphore::new(1)) }
    }

    /// What the proxy waits for; empty when it is ready.
    pub(crate) fn pending(&self) -> Vec<&'static str> {
        self.readiness.reasons()
    }

    /// `/livez`.
    pub(crate) fn livez(&self) -> Response<Body> {
        text(StatusCode::OK, "ok\n")
    }

    /// `/readyz`.
    pub(crate) fn readyz(&self) -> Response<Body> {
        let pending = self.pending();
        if pending.is_empty() {
            return text(StatusCode::OK, "ok\n");
        }
        let mut page = String::from("not ready, pending:\n");
        for reason in pending {
            page.push_str(&format!("- {reason}\n"));
        }
        text(StatusCode::SERVICE_UNAVAILABLE, page)
    }

    /// `/metrics`.
    pub(crate) async fn metrics(&self) -> Response<Body> {
        // The semaphore is never closed.
        let turn = Arc::clone(&self.rendering).acquire_owned().await.ok();
        let recorder = self.recorder.clone();
        let mut page = state::render(&self.directory, &(self.discovery)(), self.pending().is_empty(), self.started);
        let begun = Instant::now();
        // Thousands of series take milliseconds, which the control threads have better uses for.
        let recorded = tokio::task::spawn_blocking(move || recorder.render()).await;
        let pause = (begun.elapsed() * (RENDER_SHARE - 1)).min(RENDER_PAUSE_MAX);
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            drop(turn);
        });
        match recorded {
            Ok(recorded) => page.push_str(&recorded),
            Err(error) => {
                return text(StatusCode::INTERNAL_SERVER_ERROR, format!("the metrics cannot be written: {error}\n"));
            }
        }
        let mut response = Response::new(full(page));
        set(&mut response, header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
        response
    }
}

/// The metrics listener: these three paths and nothing else, since pods can reach it.
pub(crate) struct MetricsListener(pub(crate) Arc<Telemetry>);

impl Handler for MetricsListener {
    fn handle(&self, request: Parts) -> Pin<Box<dyn Future<Output = Response<Body>> + Send + '_>> {
        Box::pin(async move {
            if request.method != Method::GET {
                let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
                set(&mut response, header::ALLOW, "GET");
                return response;
            }
            match request.uri.path() {
                "/metrics" => self.0.metrics().await,
                "/livez" => self.0.livez(),
                "/readyz" => self.0.readyz(),
                _ => text(
                    StatusCode::NOT_FOUND,
                    "only /metrics, /livez and /readyz are here; the rest is on --admin-listen\n",
                ),
            }
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
