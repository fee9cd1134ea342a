//! The program as a child process, and what it says of itself: log, admin API, metrics.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::api_server::Kind;
use crate::{NODE, until};

pub(crate) struct Posthouse {
    child: Child,
    log: Arc<Mutex<Vec<Value>>>,
    _folder: TempDir,
    pub(crate) outbound: SocketAddr,
    admin: SocketAddr,
    metrics: SocketAddr,
}

impl Posthouse {
    /// Starts on [`NODE`] as node-a and returns when it is ready.
    pub(crate) async fn start(kubeconfig: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        std::fs::write(&path, kubeconfig).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_posthouse"))
            .args(["run", "--source=kube", "--node-name=node-a", "--workers=2", "--log-format=json"])
            .args([format!("--node-ip={NODE}"), format!("--outbound-listen={NODE}:0")])
            .args([format!("--link-listen={NODE}:0"), format!("--metrics-listen={NODE}:0")])
            .arg("--admin-listen=127.0.0.1:0")
            .env_clear()
            .env("KUBECONFIG", path)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let log: Arc<Mutex<Vec<Value>>> = Arc::default();
        let lines = Arc::clone(&log);
        // Ends with the child.
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|_| line.into());
                lines.lock().unwrap().push(event);
            }
        });
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut posthouse = Self { child, log, _folder: folder, outbound: nowhere, admin: nowhere, metrics: nowhere };
        let admin = posthouse.event("admin listens").await;
        posthouse.admin = admin["admin"].as_str().unwrap().parse().unwrap();
        let ready = posthouse.event("ready").await;
        posthouse.metrics = ready["metrics"].as_str().unwrap().parse().unwrap();
        posthouse.outbound = ready["outbound"].as_str().unwrap().trim_matches(['[', ']']).parse().unwrap();
        posthouse
    }

    /// Waits for a log event with this message.
    async fn event(&self, message: &str) -> Value {
        let find = || self.log.lock().unwrap().iter().find(|event| event["message"] == message).cloned();
        until(message, async || find().is_some()).await;
        find().unwrap()
    }

    /// `/config`.
    pub(crate) async fn config(&self) -> Value {
        let (status, body) = get(self.admin, "/config").await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// What is wrong with an object that is being skipped.
    pub(crate) async fn problem(&self, object: &str) -> Option<String> {
        let config = self.config().await;
        let problems = config["discovery"]["problems"].as_array().unwrap();
        let problem = problems.iter().find(|problem| problem["object"] == object)?;
        Some(problem["error"].as_str().unwrap().to_owned())
    }

    /// How the watch of a kind fares.
    pub(crate) async fn watch(&self, kind: Kind) -> Value {
        self.config().await["discovery"]["watches"][kind as usize].take()
    }

    /// Complete lists of each kind so far.
    pub(crate) async fn lists(&self) -> [u64; 5] {
        let config = self.config().await;
        std::array::from_fn(|kind| config["discovery"]["watches"][kind]["lists"].as_u64().unwrap())
    }

    /// Whether each kind is watched without an error and was heard of within less than the minute's absence.
    pub(crate) async fn is_fresh(&self) -> bool {
        let config = self.config().await;
        config["discovery"]["watches"].as_array().unwrap().iter().all(|watch| {
            watch["phase"] == "watching"
                && watch["last_error"].is_null()
                && watch["age"].as_f64().is_some_and(|age| age < 60.0)
        })
    }

    /// A Service of the namespace shop, if there is one.
    pub(crate) async fn service(&self, name: &str) -> Option<Value> {
        let (status, body) = get(self.admin, &format!("/services/shop/{name}")).await;
        (status == 200).then(|| serde_json::from_str(&body).unwrap())
    }

    /// How many endpoints of a Service may be picked.
    pub(crate) async fn ready_endpoints(&self, name: &str) -> usize {
        let service = self.service(name).await.unwrap();
        let endpoints = service["ports"][0]["endpoints"].as_array().unwrap();
        endpoints.iter().filter(|endpoint| endpoint["state"] == "ready").count()
    }

    /// The values of a metric, one for each set of labels.
    pub(crate) async fn metrics(&self, name: &str) -> Vec<f64> {
        let (status, page) = get(self.metrics, "/metrics").await;
        assert_eq!(status, 200, "{page}");
        let values = page.lines().filter_map(|line| {
            let labels = line.strip_prefix(name)?;
            let value = labels.rsplit(' ').next()?;
            labels.starts_with([' ', '{']).then(|| value.parse().unwrap())
        });
        values.collect()
    }

    pub(crate) async fn metric_sum(&self, name: &str) -> f64 {
        self.metrics(name).await.iter().sum()
    }

    /// SIGTERM, and exit code 0.
    pub(crate) async fn ends(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let child = &mut self.child;
        let mut status = None;
        until("the end", async || {
            status = child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        assert_eq!(status.and_then(|status| status.code()), Some(0));
    }
}

impl Drop for Posthouse {
    #[allow(clippy::print_stderr, reason = "the program's log is half of a failed test's story")]
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            for event in self.log.lock().iter().flat_map(|log| log.iter()) {
                eprintln!("{event}");
            }
        }
    }
}

/// One request on a connection of its own.
async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}
