//! `posthouse controller`: the controller crate, with a signal that ends it and a port that tells of it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use http::request::Parts;
use http::{Method, Response, StatusCode, header};
use posthouse_controller::{Health, Settings, Timing};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::Failure;
use crate::args::{ControllerConfig, VERSION};
use crate::logging;
use crate::run::Signals;
use crate::server::{self, Body, Handler, Listener, full, set, text};
use crate::telemetry::Recorder;

/// A watch that is silent for longer is dead: API servers end one after 290 s at most, as kube-rs asks them to.
const READ: Duration = Duration::from_secs(295);
/// How long the end may take: the lease is given up within 2 s.
const STOP: Duration = Duration::from_secs(5);

/// Runs until a signal ends it.
pub(crate) fn run(config: ControllerConfig) -> Result<(), Failure> {
    logging::install(&config.log, config.log_format)?;
    logging::install_panic_hook();
    let recorder = Recorder::install()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime cannot start")?;
    let outcome = runtime.block_on(serve(config, recorder));
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn serve(config: ControllerConfig, recorder: Recorder) -> Result<(), Failure> {
    let mut signals = Signals::install()?;
    let ControllerConfig {
        namespace,
        pod_name,
        proxy_account,
        trust_domain,
        ca,
        ca_lifetime,
        certificate_lifetime,
        metrics_listen,
        log: _,
        log_format: _,
    } = config;
    let client = posthouse_discovery::connect(Some(READ))
        .await
        .map_err(|why| Failure::Usage(format!("no usable cluster configuration: {why}")))?;
    let listener = server::bind("--metrics-listen", metrics_listen)?;
    tracing::info!(version = VERSION, namespace, pod = pod_name, trust_domain, %metrics_listen, "controller starts");
    let settings = Settings {
        namespace,
        identity: pod_name,
        trust_domain,
        proxy_account,
        ca,
        ca_lifetime,
        certificate_lifetime,
        timing: Timing::default(),
        clock: Arc::new(SystemTime::now),
    };
    let health = Health::default();
    let (stop, stopped) = watch::channel(());
    let mut tasks = JoinSet::new();
    tasks.spawn(crate::run::until(stopped.clone(), recorder.clone().upkeep()));
    let port = Arc::new(Port { health: health.clone(), recorder });
    tasks.spawn(server::serve(Listener::Tcp(listener), port, stopped.clone()));
    let controller = tasks.spawn(posthouse_controller::run(client, settings, health, stopped));

    let signal = tokio::select! {
        signal = signals.next() => signal,
        // None of the tasks ends by itself, unless by a bug's panic.
        _ = tasks.join_next() => return Err(anyhow::anyhow!("a part of the controller failed; see the log").into()),
    };
    tracing::info!(signal, "controller ends");
    drop(stop);
    let ended = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP, ended).await.is_err() {
        tracing::warn!("the lease could not be given up in time: the next leader waits it out");
        controller.abort();
    }
    Ok(())
}

/// The port: health and metrics.
struct Port {
    health: Health,
    recorder: Recorder,
}

impl Handler for Port {
    fn handle(&self, request: Parts) -> Pin<Box<dyn Future<Output = Response<Body>> + Send + '_>> {
        let response = match (&request.method, request.uri.path()) {
            (&Method::GET, "/livez") => text(StatusCode::OK, "ok\n"),
            (&Method::GET, "/readyz") if self.health.is_ready() => {
                text(StatusCode::OK, if self.health.leads() { "ok, leads\n" } else { "ok, stands by\n" })
            }
            (&Method::GET, "/readyz") => {
                text(StatusCode::SERVICE_UNAVAILABLE, "not ready: the API server has not answered yet\n")
            }
            (&Method::GET, "/metrics") => {
                let mut response = Response::new(full(self.recorder.render()));
                set(&mut response, header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
                response
            }
            (&Method::GET, _) => text(StatusCode::NOT_FOUND, "only /metrics, /livez and /readyz are here\n"),
            _ => {
                let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
                set(&mut response, header::ALLOW, "GET");
                response
            }
        };
        Box::pin(std::future::ready(response))
    }
}
