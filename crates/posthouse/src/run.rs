//! `posthouse run`: what is started in which order, and how it ends.
//!
//! The admin API comes first, so that a proxy that waits can be asked why. What pods, peers and the kubelet connect to comes
//! last, once the directory is complete: a predecessor may share these ports, and a proxy that knows nothing must neither take
//! its connections nor answer its probes. At the end readiness goes first, together with the ports that a successor
//! shares: its probes must not be answered "draining" by us. The Unix socket of the admin API goes last.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use posthouse_discovery::{Discovery, Settings, StartError, Status};
use posthouse_identity::{Backends, Certificates};
use posthouse_model::DirectoryHandle;
use posthouse_model::transport::LinkTransport;
use posthouse_model::workload::Workloads;
use posthouse_proxy::{Proxy, SystemOutside, Timeouts, Workers};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::Failure;
use crate::admin::Admin;
use crate::args::{Config, TlsConfig, VERSION};
use crate::readiness::Readiness;
use crate::security::Security;
use crate::server::Listener;
use crate::telemetry::{MetricsListener, Recorder, Telemetry};
use crate::{logging, process, server};

/// Control threads: one for what takes long (a big list to translate), one for the kubelet's probes meanwhile.
const CONTROL_THREADS: usize = 2;
/// Tasks of the control runtime that do not end when told are left behind after this.
const CONTROL_STOP: Duration = Duration::from_secs(1);

/// Runs until a signal ends it.
pub(crate) fn run(config: Config) -> Result<(), Failure> {
    let started = SystemTime::now();
    logging::install(&config.log, config.log_format)?;
    logging::install_panic_hook();
    let open_files = process::raise_open_files();
    let recorder = Recorder::install()?;
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .context("the control runtime cannot start")?;
    let outcome = control.block_on(serve(config, recorder, open_files, started));
    control.shutdown_timeout(CONTROL_STOP);
    outcome
}

async fn serve(
    config: Config,
    recorder: Recorder,
    open_files: Option<u64>,
    started: SystemTime,
) -> Result<(), Failure> {
    let mut signals = Signals::install()?;
    let readiness = Readiness::default();
    let loading = readiness
        .pending("directory: the first complete view is not loaded yet; /config on --admin-listen shows each watch");
    let binding = readiness.pending("listeners: outbound and link are not bound yet");

    server::check_bind("--link-listen", config.link_listen)?;
    server::check_bind("--metrics-listen", config.metrics_listen)?;
    for address in &config.outbound_listen {
        server::check_bind("--outbound-listen", *address)?;
    }
    let directory = DirectoryHandle::default();
    let security = Security::new(&config, Timeouts::default().connect).await?;
    let discovery = discover(&config, &directory).await?;
    // From here on there is something to log; what was wrong so far is told by one line alone.
    tracing::info!(
        version = VERSION,
        node = config.node_name,
        node_ips = ?config.node_ips,
        source = %config.source,
        workers = config.workers,
        tls = config.tls.as_ref().map_or("off", TlsConfig::mode),
        open_files_limit = open_files,
        "starting"
    );
    let proxy = data_plane(&config, &directory, Arc::clone(&security.transport), discovery.workloads());
    let certificates = security.certificates().cloned();
    let mut control = Control::start(&config, recorder, &readiness, &directory, &discovery, &proxy, security, started)?;

    let ended = tokio::select! {
        () = async {
            complete(&directory).await;
            certified(certificates.as_ref()).await;
        } => None,
        signal = signals.next() => Some(signal),
    };
    if let Some(signal) = ended {
        tracing::info!(signal, "ended before the directory was complete and the node had its certificate");
        control.stop().await;
        return Ok(());
    }
    drop(loading);
    warn_of_foreign_node(&config, &directory);
    let workers = Workers::start(&proxy, config.workers, &config.outbound_listen, config.link_listen)
        .map_err(anyhow::Error::from)?;
    let metrics = control.serve_metrics(config.metrics_listen)?;
    drop(binding);
    let size = directory.load().size();
    tracing::info!(
        outbound = ?workers.outbound_addresses(),
        link = %workers.link_address(),
        %metrics,
        services = size.services,
        endpoints = size.endpoints,
        "ready"
    );

    let signal = signals.next().await;
    let _draining = readiness.pending("draining: the process was told to end");
    control.leave_ports();
    tracing::info!(signal, deadline = ?config.drain, "draining: listeners close, requests in flight may finish");
    let in_time = tokio::select! {
        in_time = workers.drain(config.drain) => in_time,
        _ = signals.next() => return Err(Failure::Forced),
    };
    if in_time {
        tracing::info!("ended, every request was finished");
    } else {
        tracing::warn!("ended at the deadline, requests in flight were cut off");
    }
    control.stop().await;
    Ok(())
}

/// Starts to fill the directory. What only a change of flags or folders can mend is a usage error.
async fn discover(config: &Config, directory: &DirectoryHandle) -> Result<Arc<Discovery>, Failure> {
    let settings = Settings {
        source: config.source.clone(),
        node_name: Arc::from(config.node_name.as_str()),
        namespace: Arc::from(config.namespace.as_str()),
        snapshot: config.snapshot.clone(),
        tls_secret_namespaces: config.tls_secret_namespaces.iter().map(|name| Arc::from(name.as_str())).collect(),
    };
    match posthouse_discovery::start(settings, directory.clone()).await {
        Ok(discovery) => Ok(Arc::new(discovery)),
        Err(error @ (StartError::Folder { .. } | StartError::Kube(_))) => Err(Failure::Usage(error.to_string())),
    }
}

fn data_plane(
    config: &Config,
    directory: &DirectoryHandle,
    transport: Arc<dyn LinkTransport>,
    workloads: Arc<dyn Workloads>,
) -> Arc<Proxy> {
    let settings = posthouse_proxy::Config {
        node_name: Arc::from(config.node_name.as_str()),
        node_ips: config.node_ips.clone(),
        cluster_domain: Arc::from(config.cluster_domain.as_str()),
        trust_domain: Arc::from(config.trust_domain.as_str()),
        service_certificates: config.tls.as_ref().is_some_and(|tls| tls.by_service),
        missing_peer: config.missing_peer,
        own_addresses: config.listeners().map(|(_, address)| address).collect(),
        egress: posthouse_proxy::Egress {
            allow: config.egress_allow.iter().cloned().collect(),
            // Here, on the control runtime: a resolver that hangs must not hold a worker.
            outside: Arc::new(SystemOutside::new(Handle::current())),
        },
        timeouts: Timeouts::default(),
    };
    let trust = posthouse_proxy::Trust { links: transport, pods: Arc::new(Backends::default()), workloads };
    Proxy::new(settings, directory.clone(), trust)
}

/// Returns once the node has a certificate, if it needs one.
async fn certified(certificates: Option<&Certificates>) {
    let Some(certificates) = certificates else { return };
    let mut changes = certificates.changed();
    while certificates.epoch() == 0 {
        // The handle that we hold keeps the sender alive.
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Returns once every kind of object has been listed.
async fn complete(directory: &DirectoryHandle) {
    let mut changes = directory.subscribe();
    while !directory.load().complete {
        // The handle that we hold keeps the sender alive.
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A wrong --node-name looks well from inside, but everything that this proxy judges by it comes out wrong.
fn warn_of_foreign_node(config: &Config, directory: &DirectoryHandle) {
    let directory = directory.load();
    let known = directory.node(&config.node_name);
    if known.is_none_or(|node| !config.node_ips.iter().any(|ip| node.addresses.contains(ip))) {
        tracing::warn!(
            node = config.node_name,
            node_ips = ?config.node_ips,
            api_addresses = ?known.map(|node| node.addresses.clone()).unwrap_or_default(),
            "no Node of this name with this address is known: pods and peers may be refused; check --node-name and --node-ip"
        );
    }
}

/// What runs beside the data plane: the admin and the metrics listener and the recorder's upkeep.
struct Control {
    tasks: JoinSet<()>,
    telemetry: Arc<Telemetry>,
    /// Ends what listens on a port that a successor may share.
    ports: watch::Sender<()>,
    stop: watch::Sender<()>,
}

impl Control {
    #[expect(clippy::too_many_arguments, reason = "the parts of the process, once")]
    fn start(
        config: &Config,
        recorder: Recorder,
        readiness: &Readiness,
        directory: &DirectoryHandle,
        discovery: &Arc<Discovery>,
        proxy: &Arc<Proxy>,
        security: Security,
        started: SystemTime,
    ) -> anyhow::Result<Self> {
        let admin = server::bind("--admin-listen", config.admin_listen)?;
        let socket =
            config.admin_socket.as_deref().map(|path| server::bind_unix("--admin-socket", path)).transpose()?;
        let status = || -> Box<dyn Fn() -> Status + Send + Sync> {
            let discovery = Arc::clone(discovery);
            Box::new(move || discovery.status())
        };
        let upkeep = recorder.clone().upkeep();
        let telemetry = Arc::new(Telemetry::new(recorder, readiness.clone(), directory.clone(), status(), started));
        let proxy = Arc::clone(proxy);
        let api = Admin {
            config: config.clone(),
            directory: directory.clone(),
            discovery: status(),
            links: Box::new(move || proxy.links()),
            certificates: security.certificates().cloned(),
            telemetry: Arc::clone(&telemetry),
            started,
        };
        if !config.admin_listen.ip().is_loopback() {
            tracing::warn!(address = %config.admin_listen, "the admin API is not on a loopback address: whoever reaches it can read what the proxy knows");
        }
        tracing::info!(admin = %admin.local_addr()?, "admin listens");
        let (stop, stopped) = watch::channel(());
        let (ports, left) = watch::channel(());
        let mut tasks = JoinSet::new();
        tasks.spawn(until(stopped.clone(), upkeep));
        tasks.spawn(until(stopped.clone(), security.start(readiness)));
        let api = Arc::new(api);
        if let Some(socket) = socket {
            tasks.spawn(server::serve(Listener::Unix(socket), Arc::clone(&api) as _, stopped));
        }
        tasks.spawn(server::serve(Listener::Tcp(admin), api, left));
        Ok(Self { tasks, telemetry, ports, stop })
    }

    /// Opens the metrics listener and says where.
    fn serve_metrics(&mut self, address: SocketAddr) -> anyhow::Result<SocketAddr> {
        let listener = server::bind("--metrics-listen", address)?;
        let address = listener.local_addr()?;
        let handler = Arc::new(MetricsListener(Arc::clone(&self.telemetry)));
        self.tasks.spawn(server::serve(Listener::Tcp(listener), handler, self.ports.subscribe()));
        Ok(address)
    }

    /// Leaves the TCP ports to a successor; answers that are under way are finished.
    fn leave_ports(&self) {
        self.ports.send_replace(());
    }

    /// Ends the tasks; answers that are under way are finished.
    async fn stop(self) {
        let Self { mut tasks, telemetry: _, ports, stop } = self;
        drop((ports, stop));
        while tasks.join_next().await.is_some() {}
    }
}

pub(crate) async fn until(mut stop: watch::Receiver<()>, task: impl Future<Output = ()>) {
    tokio::select! {
        _ = stop.changed() => {}
        () = task => {}
    }
}

/// SIGTERM and SIGINT.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn install() -> anyhow::Result<Self> {
        let install = |kind| signal(kind).context("the signal handlers cannot be installed");
        Ok(Self { terminate: install(SignalKind::terminate())?, interrupt: install(SignalKind::interrupt())? })
    }

    /// Waits for the next one and names it.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
