//! The whole program from its start to its end: a folder of manifests, all listeners on ports that the system chooses,
//! readiness, a change of the folder, SIGTERM. Addresses are read from the program's own log.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails in a helper fails its test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Far longer than anything here takes; only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(60);

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: node-a}
spec: {podCIDR: 127.0.1.0/24}
status: {addresses: [{type: InternalIP, address: 127.0.0.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [127.0.1.7], nodeName: node-a, conditions: {ready: true}}]
ports: [{name: http, port: 8080}]
"#;

/// A running posthouse; killed when a test fails.
struct Posthouse {
    child: Child,
    log: BufReader<ChildStderr>,
}

impl Posthouse {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_posthouse"))
            .args(["run", "--node-name=node-a", "--node-ip=127.0.0.1", "--workers=1", "--drain=5s"])
            .args(["--outbound-listen=127.0.0.1:0", "--link-listen=127.0.0.1:0"])
            .args(["--admin-listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0", "--log-format=json"])
            .arg(format!("--source=dir:{}", folder.display()))
            .env_clear()
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log }
    }

    /// Reads the log up to an event with this message.
    fn event(&mut self, message: &str) -> Value {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            assert!(self.log.read_line(&mut line).unwrap() > 0, "the log ended before {message:?}:\n{seen}");
            let event: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            if event["message"] == message {
                return event;
            }
            seen.push_str(&line);
        }
    }

    fn signal(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// The exit code, within bounds.
    fn exit_code(&mut self) -> Option<i32> {
        let begun = Instant::now();
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status.code(),
                None => assert!(begun.elapsed() < PATIENCE, "the program does not end"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Posthouse {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn address(value: &Value) -> SocketAddr {
    value.as_str().unwrap().parse().unwrap()
}

fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Asks until the answer fits.
fn until(address: SocketAddr, path: &str, fits: impl Fn(u16, &str) -> bool) {
    let begun = Instant::now();
    loop {
        let (status, body) = get(address, path);
        if fits(status, &body) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{path} still answers {status}: {body}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn from_a_folder_of_manifests_to_ready_and_with_sigterm_to_exit_code_0() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), MANIFESTS).unwrap();
    let mut posthouse = Posthouse::start(folder.path());
    let health = posthouse.event("admin and metrics listen");
    let (admin, metrics) = (address(&health["admin"]), address(&health["metrics"]));
    let ready = posthouse.event("ready");
    assert_eq!(get(metrics, "/readyz").0, 200);
    assert!(TcpStream::connect(address(&ready["link"])).is_ok());

    let (status, body) = get(admin, "/services/shop/web");
    let service: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &service["ports"][0]["endpoints"][0]["address"]), (200, &"127.0.1.7:8080".into()));
    until(metrics, "/metrics", |_, page| page.contains("posthouse_directory_objects{kind=\"services\"} 1\n"));

    std::fs::write(folder.path().join("broken.yaml"), "kind: Service\napiVersion: v1\nmetadata: [\n").unwrap();
    until(admin, "/config", |_, body| body.contains("broken.yaml"));
    assert_eq!(get(metrics, "/readyz").0, 200, "one bad file spoils nothing");

    posthouse.signal();
    posthouse.event("draining: listeners close, requests in flight may finish");
    assert_eq!(posthouse.exit_code(), Some(0));
    assert!(TcpStream::connect(metrics).is_err());
}
