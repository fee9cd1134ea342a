//! The whole program from its start to its end: a folder of manifests, all listeners on ports that the system chooses,
//! readiness, a change of the folder, requests in flight, SIGTERM. Addresses are read from the program's own log.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails in a helper fails its test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Far longer than anything here takes; only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(60);

/// One node, whose pods live on 127.0.1.0/24, and the Service shop/web with one pod at `pod`.
fn manifests(pod: SocketAddr) -> String {
    format!(
        r#"
apiVersion: v1
kind: Node
metadata: {{name: node-a}}
spec: {{podCIDR: 127.0.1.0/24}}
status: {{addresses: [{{type: InternalIP, address: 127.0.0.1}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop}}
spec: {{clusterIP: 10.96.0.1, ports: [{{name: http, port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
endpoints: [{{addresses: [{}], nodeName: node-a, conditions: {{ready: true}}}}]
ports: [{{name: http, port: {}}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: web-1, namespace: shop, uid: web-1-uid}}
spec: {{nodeName: node-a}}
status: {{podIP: {}}}
"#,
        pod.ip(),
        pod.port(),
        pod.ip()
    )
}

/// A running posthouse; killed when a test fails.
struct Posthouse {
    child: Child,
    log: BufReader<ChildStderr>,
    socket: PathBuf,
}

impl Posthouse {
    fn start(folder: &Path) -> Self {
        let socket = folder.join(".admin.sock");
        let mut child = Command::new(env!("CARGO_BIN_EXE_posthouse"))
            .args(["run", "--node-name=node-a", "--node-ip=127.0.0.1", "--workers=1", "--drain=10m"])
            .args(["--outbound-listen=127.0.0.1:0", "--link-listen=127.0.0.1:0"])
            .args(["--admin-listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0", "--log-format=json"])
            .arg(format!("--source=dir:{}", folder.display()))
            .arg(format!("--admin-socket={}", socket.display()))
            .env_clear()
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log, socket }
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
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    ask(stream, path)
}

fn get_by_socket(socket: &Path, path: &str) -> (u16, String) {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    ask(stream, path)
}

fn ask(mut stream: impl Read + Write, path: &str) -> (u16, String) {
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
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
    std::fs::write(folder.path().join("all.yaml"), manifests("127.0.1.7:8080".parse().unwrap())).unwrap();
    let mut posthouse = Posthouse::start(folder.path());
    let admin = address(&posthouse.event("admin listens")["admin"]);
    let ready = posthouse.event("ready");
    let metrics = address(&ready["metrics"]);
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

/// A posthouse that was told to end while its pod has a request and has not answered yet.
struct Draining {
    posthouse: Posthouse,
    client: TcpStream,
    pod: TcpStream,
    metrics: SocketAddr,
    admin: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Draining {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.1.7:0").unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("all.yaml"), manifests(listener.local_addr().unwrap())).unwrap();
        let mut posthouse = Posthouse::start(folder.path());
        let admin = address(&posthouse.event("admin listens")["admin"]);
        let ready = posthouse.event("ready");
        let metrics = address(&ready["metrics"]);
        let outbound = ready["outbound"].as_str().unwrap().trim_matches(['[', ']']).parse::<SocketAddr>().unwrap();
        let mut client = TcpStream::connect(outbound).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"GET http://web.shop/ HTTP/1.1\r\nHost: web.shop\r\n\r\n").unwrap();
        let mut pod = accept(&listener);
        pod.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(pod.read(&mut [0; 1024]).unwrap() > 0, "the pod has the request");
        posthouse.signal();
        posthouse.event("draining: listeners close, requests in flight may finish");
        Self { posthouse, client, pod, metrics, admin, _folder: folder }
    }
}

/// The next connection; a request that is refused on its way ends the test instead of stopping it for good.
fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let begun = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                return stream;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(begun.elapsed() < PATIENCE, "the pod got no request");
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_request_in_flight_is_finished_while_readiness_is_off_and_the_ports_are_a_successors() {
    let Draining { mut posthouse, mut client, mut pod, metrics, admin, _folder } = Draining::start();
    let (status, body) = get_by_socket(&posthouse.socket, "/readyz");
    assert_eq!((status, body.contains("- draining")), (503, true), "{body}");
    assert_eq!(get_by_socket(&posthouse.socket, "/livez").0, 200);
    // The listeners are closed by tasks of their own, a moment after the event.
    for port in [metrics, admin] {
        let begun = Instant::now();
        while TcpStream::connect(port).is_ok() {
            assert!(begun.elapsed() < PATIENCE, "{port} is still open");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let (code, words) = ready(&posthouse.socket);
    assert!(code == Some(1) && words.contains("draining"), "{words}");
    pod.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").unwrap();
    let mut answer = String::new();
    // Up to the end of the connection, which therefore comes by itself.
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    posthouse.event("ended, every request was finished");
    assert_eq!(posthouse.exit_code(), Some(0));
}

/// What `posthouse ready` says.
fn ready(socket: &Path) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_posthouse"))
        .args(["ready", "--admin-socket"])
        .arg(socket)
        .env_clear()
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn ready_asks_this_very_proxy() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join(".admin.sock");
    let (code, words) = ready(&socket);
    assert!(code == Some(1) && words.contains("no proxy answers") && words.lines().count() == 1, "{words}");
    std::fs::write(folder.path().join("all.yaml"), manifests("127.0.1.7:8080".parse().unwrap())).unwrap();
    let mut first = Posthouse::start(folder.path());
    first.event("ready");
    assert_eq!(ready(&socket), (Some(0), String::new()));
    // It is killed, so that the socket stays behind: nobody answers there, and the next one takes its place.
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    let (code, words) = ready(&socket);
    assert!(code == Some(1) && words.contains("no proxy answers"), "{words}");
    let mut second = Posthouse::start(folder.path());
    second.event("ready");
    assert_eq!(ready(&socket), (Some(0), String::new()));
}

#[test]
fn a_second_signal_ends_at_once() {
    let Draining { mut posthouse, client: _client, pod: _pod, .. } = Draining::start();
    posthouse.signal();
    assert_eq!(posthouse.exit_code(), Some(1));
}
