//! The command line: every flag with its environment variable, default and help, turned into one plain [`Config`].
//! Nothing else in the process reads the environment. A flag that nobody uses does not compile, because
//! [`RunArgs::into_config`] takes the struct apart by name.
//! Never name a variable `POSTHOUSE_PORT*` or `POSTHOUSE_SERVICE_*`: Kubernetes sets those in every pod of a namespace
//! that has a Service called `posthouse`.

mod check;
mod controller;
mod env;
mod message;
mod values;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use posthouse_discovery::Source;
use posthouse_identity::{Files, SpiffeId, TrustDomain};
use posthouse_proxy::{Allow, MissingPeer};

pub(crate) use check::{CheckArgs, OutputFormat};
pub(crate) use controller::{ControllerArgs, ControllerConfig};
pub(crate) use env::{EnvArgs, EnvFormat};
pub(crate) use message::one_line;

/// Where Kubernetes writes a pod's own namespace.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// What `posthouse --version` prints after the name.
pub(crate) const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (commit ",
    env!("POSTHOUSE_BUILD_COMMIT"),
    ", ",
    env!("POSTHOUSE_BUILD_PROFILE"),
    ", ",
    env!("POSTHOUSE_BUILD_TARGET"),
    ", rustc ",
    env!("POSTHOUSE_BUILD_RUSTC"),
    ")"
);

/// One proxy on each Kubernetes node makes the cluster a service mesh without sidecars: pods send their requests to it
/// with HTTP_PROXY, it balances them and carries them to the proxy on the receiver's node.
#[derive(Debug, Parser)]
#[command(name = "posthouse", version = VERSION, max_term_width = 110, subcommand_required = true)]
#[command(disable_help_subcommand = true)]
#[command(
    after_help = "On a cluster: 'posthouse check --pre', then helm install; for an application: 'posthouse env'."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the proxy of this node
    ///
    /// Every flag can also be set by the environment variable shown with it; the flag wins. Wrong flags or a source that
    /// cannot be read end the program with one line on stderr and exit code 64. SIGTERM and SIGINT drain and exit 0; a
    /// second signal ends at once.
    Run(Box<RunArgs>),
    /// Give the nodes' proxies their certificates: keep the certificate authority, sign, rotate
    ///
    /// Runs as a Deployment beside the proxies; of several replicas one acts. SIGTERM gives the lead up and exits 0.
    Controller(Box<ControllerArgs>),
    /// Ask the proxy that runs beside this program whether it is ready; the container's start-up probe
    ///
    /// Exit code 0 when it is, 1 when it is not or does not answer, with the reason on stderr.
    Ready(ReadyArgs),
    /// Say what stands in the way of an installation in a cluster, or what is wrong with one
    ///
    /// Asks the API server by the kubeconfig and, once installed, each node's proxy through it (port-forward). Changes
    /// nothing. Each line is one thing that was looked at, with a hint where something is wrong. Exit code 0 when nothing
    /// failed (warnings are allowed), 1 when something did, 64 when a flag or the kubeconfig is wrong.
    Check(Box<CheckArgs>),
    /// Print the environment that sends a workload's requests through its node's proxy
    ///
    /// As YAML for a container's manifest, or as a patch of a workload. Nothing is changed in any cluster.
    Env(EnvArgs),
}

/// The flags of `posthouse run`.
#[derive(Args, Debug)]
#[command(
    max_term_width = 110,
    after_help = "Example, from a folder of manifests instead of a cluster:\n  \
    posthouse run --source dir:./manifests --node-name node-a --node-ip 127.0.1.1"
)]
pub(crate) struct RunArgs {
    /// Name of the node this proxy runs on, as Kubernetes has it (spec.nodeName); required
    ///
    /// The variable NODE_NAME is used when POSTHOUSE_NODE_NAME is not set.
    #[arg(long, env = "POSTHOUSE_NODE_NAME", value_name = "NAME", help_heading = "Node")]
    node_name: Option<String>,

    /// Address of this node (status.hostIP); required. Several, one for each IP family, are separated by commas
    ///
    /// Links to other nodes are dialled from the first. The variable NODE_IP is used when POSTHOUSE_NODE_IP is not set.
    #[arg(long, env = "POSTHOUSE_NODE_IP", value_name = "IP", value_delimiter = ',', help_heading = "Node")]
    #[arg(value_parser = values::node_ip)]
    node_ip: Vec<IpAddr>,

    /// Where Services, endpoints, pods and nodes are read from: 'kube' or 'dir:PATH'
    ///
    /// 'kube' watches the Kubernetes API (in a pod with its service account, elsewhere with the kubeconfig). 'dir:PATH'
    /// reads and watches a folder of the same manifests as YAML or JSON files, for development, tests and machines
    /// outside of a cluster.
    #[arg(long, env = "POSTHOUSE_SOURCE", value_name = "SOURCE", default_value = "kube", help_heading = "Discovery")]
    source: Source,

    /// Namespace that holds the Service 'posthouse', by which the proxies find each other
    ///
    /// [default: this pod's own namespace; 'posthouse' outside of a pod]
    #[arg(long, env = "POSTHOUSE_NAMESPACE", value_name = "NAMESPACE", help_heading = "Discovery")]
    #[arg(value_parser = values::dns_label)]
    namespace: Option<String>,

    /// DNS suffix of the cluster: 'web.shop.svc.SUFFIX' names the Service web in the namespace shop
    #[arg(long, env = "POSTHOUSE_CLUSTER_DOMAIN", value_name = "SUFFIX", default_value = "cluster.local")]
    #[arg(value_parser = values::domain, help_heading = "Discovery")]
    cluster_domain: String,

    /// File that keeps the last view of the cluster, for a start while the Kubernetes API is away
    ///
    /// [default: none, nothing is kept]
    #[arg(long, env = "POSTHOUSE_SNAPSHOT", value_name = "PATH", help_heading = "Discovery")]
    snapshot: Option<PathBuf>,

    /// Namespaces whose TLS Secrets and ConfigMaps are read, for Services with a certificate of their own; repeat or separate by
    /// commas
    ///
    /// They are read for Services with the annotations posthouse.io/tls-secret and posthouse.io/backend-tls-ca. It needs a Role in each
    /// of them (the chart's tlsSecretNamespaces). With --source dir the folder's are read, whatever is said here.
    ///
    /// [default: none, no Secret is read]
    #[arg(long, env = "POSTHOUSE_TLS_SECRET_NAMESPACES", value_name = "NAMESPACE", value_delimiter = ',')]
    #[arg(value_parser = values::dns_label, help_heading = "Discovery")]
    tls_secret_namespaces: Vec<String>,

    /// Where this node's pods send their requests (their HTTP_PROXY); repeat or separate by commas
    ///
    /// [default: port 4140 of each --node-ip and of the loopback address of the same family]
    #[arg(long, env = "POSTHOUSE_OUTBOUND_LISTEN", value_name = "IP:PORT", value_delimiter = ',')]
    #[arg(value_parser = values::listen, help_heading = "Listeners")]
    outbound_listen: Vec<SocketAddr>,

    /// Where the other nodes' proxies connect
    ///
    /// [default: port 4141 of the first --node-ip]
    #[arg(long, env = "POSTHOUSE_LINK_LISTEN", value_name = "IP:PORT", value_parser = values::listen)]
    #[arg(help_heading = "Listeners")]
    link_listen: Option<SocketAddr>,

    /// Where operators see what the proxy knows: /services, /peers, /config. It asks for no password: keep it on loopback
    #[arg(long, env = "POSTHOUSE_ADMIN_LISTEN", value_name = "IP:PORT", default_value = "127.0.0.1:9990")]
    #[arg(value_parser = values::listen, help_heading = "Listeners")]
    admin_listen: SocketAddr,

    /// A Unix socket with the same admin API, which only this very process answers
    ///
    /// TCP ports are shared with a successor during an upgrade, so an answer there may be the other's; 'posthouse ready' asks
    /// here. Only this process' user may connect.
    ///
    /// [default: none]
    #[arg(long, env = "POSTHOUSE_ADMIN_SOCKET", value_name = "PATH", help_heading = "Listeners")]
    admin_socket: Option<PathBuf>,

    /// Where Prometheus and the kubelet ask: /metrics, /livez, /readyz
    ///
    /// [default: port 9991 of the first --node-ip]
    #[arg(long, env = "POSTHOUSE_METRICS_LISTEN", value_name = "IP:PORT", value_parser = values::listen)]
    #[arg(help_heading = "Listeners")]
    metrics_listen: Option<SocketAddr>,

    /// Threads that carry requests, 1 to 1024
    ///
    /// [default: the number of cores that the process may use]
    #[arg(long, env = "POSTHOUSE_WORKERS", value_name = "N", value_parser = values::workers)]
    #[arg(help_heading = "Requests")]
    workers: Option<NonZeroUsize>,

    /// What to do with a pod on a node that has no ready proxy: connect to it directly, or fail the request
    ///
    /// [default: direct with --tls off, fail otherwise: a direct connection is not encrypted]
    #[arg(long, env = "POSTHOUSE_MISSING_PEER", value_name = "MODE", help_heading = "Requests")]
    missing_peer: Option<MissingPeerMode>,

    /// Hosts outside of the cluster that pods may reach through the proxy; repeat or separate by commas
    ///
    /// NAME, *.NAME (every name below NAME, at any depth, not NAME itself), an IPv4 address or network, an IPv6 address or
    /// network in brackets ([2001:db8::/32]), each with :PORT or :FIRST-LAST behind it; without, the ports are 80 and 443. What
    /// is not listed is refused. Loopback, link-local and metadata addresses, nodes, pods and Services are never reached this
    /// way, also when a listed name resolves to one or a listed network covers it. Where the Nodes' podCIDRs do not tell
    /// all pods' addresses, a private address may be a pod's, so a listed network that is private itself must cover it.
    ///
    /// [default: none, nothing outside is served]
    #[arg(long, env = "POSTHOUSE_EGRESS_ALLOW", value_name = "HOST", value_delimiter = ',')]
    #[arg(help_heading = "Requests")]
    egress_allow: Vec<Allow>,

    /// How long requests in flight may go on after SIGTERM, as in 500ms, 30s, 2m
    #[arg(long, env = "POSTHOUSE_DRAIN", value_name = "DURATION", default_value = "30s")]
    #[arg(value_parser = values::duration, help_heading = "Requests")]
    drain: Duration,

    /// How the links between nodes are secured: not at all, by certificates of the nodes, or of Services, too
    ///
    /// 'off': requests cross in the clear, and a peer is who its address says. 'node': TLS 1.3, each node proves its name to the
    /// other. 'service': where a Service has a certificate of its own, the receiver proves to be that Service instead.
    #[arg(long, env = "POSTHOUSE_TLS", value_name = "MODE", default_value = "off", help_heading = "Security")]
    tls: TlsMode,

    /// File with this node's certificate and those between it and a root, in PEM. Its one URI is
    /// spiffe://TRUST-DOMAIN/node/NODE-NAME, and it is good for TLS servers and clients. Read again whenever it changes
    ///
    /// [default: none; with --source kube the cluster's 'posthouse controller' issues certificates]
    #[arg(long, env = "POSTHOUSE_TLS_CERT", value_name = "FILE", help_heading = "Security")]
    tls_cert: Option<PathBuf>,

    /// File with that certificate's private key in PEM: PKCS#8, SEC1 or PKCS#1, without a passphrase
    ///
    /// [default: none]
    #[arg(long, env = "POSTHOUSE_TLS_KEY", value_name = "FILE", help_heading = "Security")]
    tls_key: Option<PathBuf>,

    /// File with the certificates of the CAs that nodes' certificates are verified by, in PEM; old and new while they rotate
    ///
    /// [default: none]
    #[arg(long, env = "POSTHOUSE_TLS_CA", value_name = "FILE", help_heading = "Security")]
    tls_ca: Option<PathBuf>,

    /// File in which the certificate that the cluster's controller issued is kept with its key, so that a restart has it while the API
    /// server is away
    ///
    /// Its folder must exist, on a file system in memory that goes with the pod. It is written with mode 600, and not read when others than
    /// its owner, which must be the user of the process, may use it. Not used with --tls-cert.
    ///
    /// [default: none, a restart asks for a new certificate]
    #[arg(long, env = "POSTHOUSE_IDENTITY_CACHE", value_name = "FILE", help_heading = "Security")]
    identity_cache: Option<PathBuf>,

    /// Also link with peers that speak no TLS, for the time in which a cluster goes over to it
    ///
    /// Such peers are taken for who their address says. posthouse_link_plain_connections_total shows when it can be taken away.
    /// Until then, who can change packets between nodes can keep a link from TLS.
    ///
    /// [default: off]
    #[arg(long, env = "POSTHOUSE_TLS_PERMISSIVE", help_heading = "Security")]
    tls_permissive: bool,

    /// The first part of the names in the nodes' certificates: spiffe://TRUST-DOMAIN/node/NODE-NAME
    #[arg(long, env = "POSTHOUSE_TRUST_DOMAIN", value_name = "NAME", default_value = "cluster.local")]
    #[arg(value_parser = values::trust_domain, help_heading = "Security")]
    trust_domain: TrustDomain,

    /// What is logged to stderr: error, warn, info, debug or trace, also by module as in 'info,posthouse_proxy=debug'
    #[arg(long, env = "POSTHOUSE_LOG", value_name = "LEVEL", default_value = "info", help_heading = "Logs")]
    #[arg(value_parser = values::log_filter)]
    log: String,

    /// One line of text or one JSON object for each log event
    #[arg(long, env = "POSTHOUSE_LOG_FORMAT", value_name = "FORMAT", default_value = "text", help_heading = "Logs")]
    log_format: LogFormat,
}

/// The flags of `posthouse ready`.
#[derive(Args, Debug)]
pub(crate) struct ReadyArgs {
    /// The proxy's --admin-socket
    #[arg(long, env = "POSTHOUSE_ADMIN_SOCKET", value_name = "PATH")]
    pub(crate) admin_socket: PathBuf,
}

/// `--missing-peer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MissingPeerMode {
    Direct,
    Fail,
}

/// `--tls`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TlsMode {
    Off,
    Node,
    Service,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// What the process was told, checked and complete. Made once by [`RunArgs::into_config`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) node_name: String,
    /// At least one; links are dialled from the first.
    pub(crate) node_ips: Vec<IpAddr>,
    pub(crate) source: Source,
    pub(crate) namespace: String,
    /// Without dots at its ends.
    pub(crate) cluster_domain: String,
    pub(crate) snapshot: Option<PathBuf>,
    pub(crate) tls_secret_namespaces: Vec<String>,
    /// At least one.
    pub(crate) outbound_listen: Vec<SocketAddr>,
    pub(crate) link_listen: SocketAddr,
    pub(crate) admin_listen: SocketAddr,
    pub(crate) admin_socket: Option<PathBuf>,
    pub(crate) metrics_listen: SocketAddr,
    pub(crate) workers: usize,
    pub(crate) missing_peer: MissingPeer,
    /// Empty: nothing outside of the cluster.
    pub(crate) egress_allow: Vec<Allow>,
    pub(crate) drain: Duration,
    /// None: in the clear.
    pub(crate) tls: Option<TlsConfig>,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) log: String,
    pub(crate) log_format: LogFormat,
}

/// How links are secured, if they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsConfig {
    /// Who this node is.
    pub(crate) id: SpiffeId,
    /// `--tls service`.
    pub(crate) by_service: bool,
    pub(crate) permissive: bool,
    /// Where its certificate is; none: the controller of the cluster issues it.
    pub(crate) files: Option<Files>,
    /// Where what the controller issued is kept.
    pub(crate) cache: Option<PathBuf>,
}

impl TlsConfig {
    /// `--tls` as it is written.
    pub(crate) fn mode(&self) -> &'static str {
        if self.by_service { "service" } else { "node" }
    }
}

impl Config {
    /// Every address that the process listens on, with the flag that says so.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> + '_ {
        let outbound = self.outbound_listen.iter().map(|address| ("--outbound-listen", *address));
        outbound.chain([
            ("--link-listen", self.link_listen),
            ("--admin-listen", self.admin_listen),
            ("--metrics-listen", self.metrics_listen),
        ])
    }
}

/// What surrounds the process and is not on its command line; a value of its own so that tests can make one.
pub(crate) struct Surroundings {
    pub(crate) env: fn(&str) -> Option<OsString>,
    pub(crate) namespace_file: PathBuf,
    pub(crate) cores: usize,
}

impl Surroundings {
    /// The real ones.
    pub(crate) fn of_process() -> Self {
        Self {
            env: |name| std::env::var_os(name),
            namespace_file: PathBuf::from(NAMESPACE_FILE),
            cores: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        }
    }

    /// Whether a terminal gets colours: NO_COLOR, when it is set, says no (<https://no-color.org>).
    pub(crate) fn colours(&self) -> bool {
        self.text("NO_COLOR").is_none()
    }

    /// A variable's text; an empty one counts as not set.
    fn text(&self, name: &str) -> Option<String> {
        (self.env)(name).and_then(|value| value.into_string().ok()).filter(|value| !value.is_empty())
    }
}

impl RunArgs {
    /// Fills in what is not given and checks what one flag alone cannot show to be wrong.
    ///
    /// # Errors
    /// One line that says which flag is wrong and what would be right.
    pub(crate) fn into_config(self, around: &Surroundings) -> Result<Config, String> {
        let Self {
            node_name,
            node_ip,
            source,
            namespace,
            cluster_domain,
            snapshot,
            tls_secret_namespaces,
            outbound_listen,
            link_listen,
            admin_listen,
            admin_socket,
            metrics_listen,
            workers,
            missing_peer,
            egress_allow,
            drain,
            tls,
            tls_cert,
            tls_key,
            tls_ca,
            identity_cache,
            tls_permissive,
            trust_domain,
            log,
            log_format,
        } = self;

        let node_name = match node_name.or_else(|| around.text("NODE_NAME")) {
            Some(name) => values::node_name(&name).map_err(|why| format!("--node-name: {why}"))?,
            None => {
                return Err(
                    "--node-name is missing: give this node's name there, in POSTHOUSE_NODE_NAME or in NODE_NAME"
                        .into(),
                );
            }
        };
        let node_ips = match (node_ip.is_empty(), around.text("NODE_IP")) {
            (false, _) => node_ip,
            (true, Some(text)) => text
                .split(',')
                .map(values::node_ip)
                .collect::<Result<_, _>>()
                .map_err(|why| format!("NODE_IP: {why}"))?,
            (true, None) => {
                return Err(
                    "--node-ip is missing: give this node's address there, in POSTHOUSE_NODE_IP or in NODE_IP".into()
                );
            }
        };
        let first_ip = node_ips[0];
        let namespace = namespace_or_own(namespace, around);
        let files = tls_files(tls_cert, tls_key, tls_ca)?;
        let tls = match (tls, files) {
            (TlsMode::Off, Some(_)) => {
                return Err("--tls-cert, --tls-key, --tls-ca: they need --tls node or service".into());
            }
            (TlsMode::Off, None) if tls_permissive => {
                return Err("--tls-permissive: it needs --tls node or service".into());
            }
            (TlsMode::Off, None) if identity_cache.is_some() => {
                return Err("--identity-cache: it needs --tls node or service".into());
            }
            (TlsMode::Off, None) => None,
            (TlsMode::Node | TlsMode::Service, None) if source != Source::Kube => {
                return Err(format!(
                    "--tls: a certificate is needed and --source {source} has no CA; give --tls-cert, --tls-key and --tls-ca"
                ));
            }
            (mode, files) => Some(TlsConfig {
                id: SpiffeId::node(&trust_domain, &node_name).map_err(|why| format!("--node-name: {why}"))?,
                by_service: mode == TlsMode::Service,
                permissive: tls_permissive,
                files,
                cache: identity_cache,
            }),
        };
        if let Some(entry) = egress_allow.iter().find(|entry| entry.is_of_cluster(&cluster_domain)) {
            return Err(format!(
                "--egress-allow {entry}: the cluster's own names never go out, and its Services need not be listed"
            ));
        }
        let config = Config {
            outbound_listen: if outbound_listen.is_empty() { default_outbound(&node_ips) } else { outbound_listen },
            link_listen: link_listen.unwrap_or(SocketAddr::new(first_ip, 4141)),
            metrics_listen: metrics_listen.unwrap_or(SocketAddr::new(first_ip, 9991)),
            admin_listen,
            admin_socket,
            workers: workers.map_or(around.cores.max(1), NonZeroUsize::get),
            missing_peer: match missing_peer {
                Some(MissingPeerMode::Direct) => MissingPeer::Direct,
                Some(MissingPeerMode::Fail) => MissingPeer::Fail,
                None if tls.is_none() => MissingPeer::Direct,
                None => MissingPeer::Fail,
            },
            egress_allow,
            node_name,
            node_ips,
            source,
            namespace,
            cluster_domain,
            snapshot,
            tls_secret_namespaces,
            drain,
            tls,
            trust_domain,
            log,
            log_format,
        };
        check_listeners(&config)?;
        Ok(config)
    }
}

/// The namespace that was given, else this pod's own.
fn namespace_or_own(given: Option<String>, around: &Surroundings) -> String {
    given.unwrap_or_else(|| {
        std::fs::read_to_string(&around.namespace_file)
            .map(|text| text.trim().to_owned())
            .ok()
            .filter(|text| !text.is_empty())
            .unwrap_or_else(|| "posthouse".to_owned())
    })
}

/// All three or none.
fn tls_files(cert: Option<PathBuf>, key: Option<PathBuf>, ca: Option<PathBuf>) -> Result<Option<Files>, String> {
    match (cert, key, ca) {
        (None, None, None) => Ok(None),
        (Some(certificates), Some(key), Some(roots)) => Ok(Some(Files { certificates, key, roots })),
        (cert, key, ca) => {
            let given = [("--tls-cert", cert.is_some()), ("--tls-key", key.is_some()), ("--tls-ca", ca.is_some())];
            let missing: Vec<&str> = given.iter().filter(|(_, given)| !given).map(|(flag, _)| *flag).collect();
            Err(format!("{}: missing; --tls-cert, --tls-key and --tls-ca belong together", missing.join(" and ")))
        }
    }
}

/// Port 4140 of each node address, and of loopback for what runs on the node itself.
fn default_outbound(node_ips: &[IpAddr]) -> Vec<SocketAddr> {
    let loopback = |ip: &IpAddr| match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for ip in node_ips.iter().copied().chain(node_ips.iter().map(loopback)) {
        let address = SocketAddr::new(ip, 4140);
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

/// Listeners share their ports with a proxy that takes over (SO_REUSEPORT), so the kernel would let two of one process
/// share an address, too, and hand each half of the connections. `[::]` takes IPv6 alone, so `0.0.0.0` may stand beside it.
fn check_listeners(config: &Config) -> Result<(), String> {
    let mut seen: Vec<(&'static str, SocketAddr)> = Vec::new();
    for (flag, address) in config.listeners() {
        let clash = seen.iter().find(|(_, other)| {
            let any = other.ip().is_unspecified() || address.ip().is_unspecified();
            let same_ip = other.ip() == address.ip() || any && other.is_ipv4() == address.is_ipv4();
            address.port() != 0 && other.port() == address.port() && same_ip
        });
        if let Some((other_flag, other)) = clash {
            return Err(format!("{flag} {address}: {other_flag} {other} already takes that port"));
        }
        seen.push((flag, address));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
