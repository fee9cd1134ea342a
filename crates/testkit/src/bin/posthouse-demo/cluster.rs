//! Brings the demo's cluster up: folders, manifests, certificates, nine pods, three proxies, each waited for; and says in one line what
//! is in the way when that fails.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::certificates::Certificates;
use crate::children::Children;
use crate::manifests::{self, POSTHOUSE};
use crate::topology::{NODES, Node, Pod, listeners, pods};

/// How long pods and proxies may take until they are ready.
const START: Duration = Duration::from_secs(20);
/// Pause between two looks at something that is coming up.
const LOOK: Duration = Duration::from_millis(50);

/// The running cluster.
pub(crate) struct Cluster {
    /// Holds everything below; removed at the end unless kept.
    folder: TempDir,
    pub(crate) source: PathBuf,
    pub(crate) certificates: Certificates,
    pub(crate) logs: PathBuf,
    pub(crate) children: Children,
}

/// The programs to run.
pub(crate) struct Programs {
    pub(crate) posthouse: PathBuf,
    pub(crate) app: PathBuf,
}

impl Programs {
    /// Both from the folder of this program, unless `posthouse` is given.
    ///
    /// # Errors
    /// When one is not there, with the command that makes it.
    pub(crate) fn find(posthouse: Option<PathBuf>) -> anyhow::Result<Self> {
        let here = std::env::current_exe()?;
        let beside = |name| here.with_file_name(name);
        let programs =
            Self { posthouse: posthouse.unwrap_or_else(|| beside("posthouse")), app: beside("posthouse-demo-app") };
        for program in [&programs.posthouse, &programs.app] {
            if !program.is_file() {
                bail!(
                    "no program at {}; build it with `cargo build --workspace`, or give --posthouse PATH",
                    program.display()
                );
            }
        }
        Ok(programs)
    }
}

impl Cluster {
    /// Checks the ports and writes the manifests; nothing runs yet.
    ///
    /// # Errors
    /// A port that is taken, an address that this machine does not have, a folder that cannot be written.
    pub(crate) fn prepare() -> anyhow::Result<Self> {
        for address in listeners() {
            check_free(address)?;
        }
        let folder = tempfile::Builder::new().prefix("posthouse-demo-").tempdir()?;
        let (source, logs) = (folder.path().join("manifests"), folder.path().join("logs"));
        std::fs::create_dir(&source)?;
        std::fs::create_dir(&logs)?;
        manifests::write(&source).context("writing the manifests")?;
        let certificates =
            Certificates::write(folder.path().join("certificates")).context("writing the certificates")?;
        Ok(Self { folder, source, certificates, children: Children::new(logs.clone()), logs })
    }

    /// Starts the pods, then the proxies, and waits until all are ready.
    ///
    /// # Errors
    /// Which child ended or did not get ready in time, with the end of its log.
    pub(crate) async fn start(&mut self, programs: &Programs) -> anyhow::Result<()> {
        for pod in pods() {
            self.children.start(&pod.name(), &programs.app, &pod_arguments(pod))?;
        }
        for pod in pods() {
            self.wait(&pod.name(), || async move { TcpStream::connect(pod.listen()).await.is_ok() }).await?;
        }
        for node in NODES {
            let arguments = proxy_arguments(node, &self.source, &self.certificates);
            self.children.start(&proxy_name(node), &programs.posthouse, &arguments)?;
        }
        for node in NODES {
            self.wait(&proxy_name(node), || async move { is_ready(node.metrics()).await.unwrap_or(false) }).await?;
        }
        Ok(())
    }

    async fn wait<F: Future<Output = bool>>(&mut self, name: &str, ready: impl Fn() -> F) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + START;
        loop {
            let is_ready = ready().await;
            // The child first: something else may answer on a dead child's port.
            self.children.check()?;
            if is_ready {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                let last_words = self.children.find(name).map(|process| process.last_words()).unwrap_or_default();
                bail!("{name} was not ready after {} s. {last_words}", START.as_secs());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Who runs where, for scripts.
    pub(crate) fn describe(&self) -> Value {
        let pid = |name: String| self.children.find(&name).map(|process| process.pid);
        let proxies: Vec<Value> = NODES
            .into_iter()
            .map(|node| {
                json!({
                    "node": node.name,
                    "pid": pid(proxy_name(node)),
                    "outbound": node.outbound().to_string(),
                    "link": node.link().to_string(),
                    "admin": node.admin().to_string(),
                    "metrics": node.metrics().to_string(),
                    "client_ip": node.client_ip().to_string(),
                })
            })
            .collect();
        let pods: Vec<Value> = pods()
            .map(|pod| {
                json!({
                    "service": pod.service.name,
                    "pod": pod.name(),
                    "node": pod.node.name,
                    "address": pod.listen().to_string(),
                    "pid": pid(pod.name()),
                })
            })
            .collect();
        json!({
            "demo": std::process::id(),
            "source": self.source,
            "certificates": self.certificates.folder(),
            "logs": self.logs,
            "proxies": proxies,
            "pods": pods,
        })
    }

    /// Ends all children; `keep` leaves the folder with the logs. Returns the names of those that had to be killed.
    pub(crate) async fn end(self, keep: bool) -> Vec<String> {
        let Self { mut folder, source: _, certificates: _, logs: _, children } = self;
        let stubborn = children.end().await;
        folder.disable_cleanup(keep);
        stubborn
    }
}

fn proxy_name(node: Node) -> String {
    format!("posthouse-{}", node.name)
}

fn pod_arguments(pod: Pod) -> Vec<String> {
    let listen = pod.listen().to_string();
    [pod.service.name, "--listen", &listen, "--pod", &pod.name(), "--node", pod.node.name].map(str::to_owned).to_vec()
}

fn proxy_arguments(node: Node, source: &Path, certificates: &Certificates) -> Vec<String> {
    let mut arguments = vec![
        "run".to_owned(),
        "--source".to_owned(),
        format!("dir:{}", source.display()),
        "--node-name".to_owned(),
        node.name.to_owned(),
        "--node-ip".to_owned(),
        node.ip().to_string(),
        "--outbound-listen".to_owned(),
        node.outbound().to_string(),
        "--link-listen".to_owned(),
        node.link().to_string(),
        "--admin-listen".to_owned(),
        node.admin().to_string(),
        "--metrics-listen".to_owned(),
        node.metrics().to_string(),
        "--namespace".to_owned(),
        POSTHOUSE.to_owned(),
        "--workers".to_owned(),
        "1".to_owned(),
    ];
    arguments.extend(certificates.arguments(node));
    arguments
}

/// Binds for a moment, so that a taken port is told before anything starts.
fn check_free(address: SocketAddr) -> anyhow::Result<()> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            bail!("{address} is taken: another demo or another proxy runs on this machine; end it first")
        }
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            bail!("{address} is no address of this machine; the demo needs Linux, where all of 127.0.0.0/8 is")
        }
        Err(error) => Err(error).with_context(|| format!("listening on {address}")),
    }
}

/// Whether `/readyz` answers 200.
async fn is_ready(metrics: SocketAddr) -> io::Result<bool> {
    let ask = async {
        let mut stream = TcpStream::connect(metrics).await?;
        let request = format!("GET /readyz HTTP/1.1\r\nHost: {metrics}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut status_line = [0; 12];
        stream.read_exact(&mut status_line).await?;
        Ok(status_line.ends_with(b" 200"))
    };
    tokio::time::timeout(Duration::from_secs(1), ask).await?
}
