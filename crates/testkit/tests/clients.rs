//! The clients that other tests count with: what they send through a proxy, what they count, and when they end.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use posthouse_testkit::client::Protocol;
use posthouse_testkit::load::{Line, Pace};
use posthouse_testkit::proxies::Proxies;
use posthouse_testkit::{Place, Shutdown, echo, follow, get, hello, load, tcp};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longer than any test may take: it only bounds what hangs.
const LONG: Duration = Duration::from_secs(60);

/// A server that runs until the test ends it; joining shows its panics.
struct Running {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<io::Result<()>>,
}

impl Running {
    async fn start<F>(server: impl FnOnce(TcpListener, Place, Shutdown) -> F) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::start_on(listener, "pod-1", server)
    }

    fn start_on<F>(listener: TcpListener, pod: &str, server: impl FnOnce(TcpListener, Place, Shutdown) -> F) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(server(listener, Place::new(pod, "node-1"), Shutdown::new(shutdown.clone())));
        Self { address, shutdown, task }
    }

    fn as_proxy(&self) -> Proxies {
        Proxies::always(format!("http://{}", self.address))
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// A proxy that opens tunnels to any address, except to the host `refused`; it ends with its task.
async fn tunnels() -> (Proxies, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxies = Proxies::always(format!("http://{}", listener.local_addr().unwrap()));
    let task = tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            tokio::spawn(open_tunnel(client));
        }
    });
    (proxies, task)
}

async fn open_tunnel(client: TcpStream) {
    let mut client = BufReader::new(client);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        client.read_line(&mut head).await.unwrap();
    }
    let to = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap();
    if to.starts_with("refused:") {
        let refusal = b"HTTP/1.1 403 Forbidden\r\nProxy-Status: p; error=x\r\nContent-Length: 4\r\n\r\nwhy\n";
        client.write_all(refusal).await.unwrap();
        return;
    }
    let mut server = TcpStream::connect(to).await.unwrap();
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}

fn load_plan(proxies: Proxies, path: &str, rate: u32, seconds: Option<u32>) -> load::Plan {
    load::Plan {
        url: format!("http://web.shop{path}").parse().unwrap(),
        proxies,
        local: None,
        method: Method::GET,
        body: Bytes::new(),
        pace: Pace::Rate { rate, max_connections: 256 },
        seconds,
        timeout: LONG,
    }
}

#[tokio::test]
async fn load_counts_good_and_bad_answers_by_second_and_pod() {
    let server = Running::start(echo::serve).await;
    let mut seconds = Vec::new();
    let plan = load_plan(server.as_proxy(), "/status/200", 40, Some(1));
    let tell = |line| match line {
        Line::Second(second) => seconds.push((second.ok, second.failed, second.by_pod)),
        Line::Failed(failed) => assert!(failed.failure.is_empty(), "{}", failed.failure),
    };
    let report = load::run(&plan, CancellationToken::new(), tell).await.unwrap();
    let by_pod = BTreeMap::from([("pod-1".to_owned(), 40)]);
    assert_eq!(seconds, [(40, 0, by_pod.clone())]);
    assert_eq!((report.ok, report.failed, report.seconds, report.by_pod), (40, 0, 1, by_pod));

    let (mut failures, mut unlisted) = (Vec::new(), 0);
    let tell = |line| match line {
        Line::Second(second) => unlisted += second.unlisted,
        Line::Failed(failed) => failures.push(failed.failure),
    };
    let plan = load_plan(server.as_proxy(), "/status/503", 40, Some(1));
    let report = load::run(&plan, CancellationToken::new(), tell).await.unwrap();
    assert_eq!((report.ok, report.failed, report.reasons["status 503"]), (0, 40, 40));
    assert_eq!((failures, unlisted), (vec!["status 503".to_owned(); 20], 20));
    server.end().await;
}

#[tokio::test]
async fn load_sends_bodies_as_fast_as_answers_come() {
    let server = Running::start(echo::serve).await;
    let mut plan = load_plan(server.as_proxy(), "/sink", 0, None);
    (plan.method, plan.body, plan.pace) = (Method::POST, Bytes::from(vec![7; 1000]), Pace::Closed(2));
    let stop = CancellationToken::new();
    let mut told = (0, 0);
    let tell = |line| {
        if let Line::Second(second) = line {
            told = (told.0 + second.ok, told.1 + second.failed);
            stop.cancel();
        }
    };
    let report = load::run(&plan, stop.clone(), tell).await.unwrap();
    assert_eq!((report.ok, report.failed), told, "each request is in one second's line");
    assert!(report.ok > 0 && report.failed == 0, "{report:?}");
    let way = Client::straight(server.address);
    let counters: Value = serde_json::from_str(&way.get("/counters").await.body.unwrap()).unwrap();
    assert_eq!(counters["bytes_taken"], report.ok * 1000);
    server.end().await;
}

#[tokio::test]
async fn load_keeps_its_rate_when_answers_stop() {
    // Takes connections and is silent, until the load has nothing left to send.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxies = Proxies::always(listener.local_addr().unwrap().to_string());
    let over = CancellationToken::new();
    let silent = over.clone();
    let server = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => held.push(accepted.unwrap().0),
                () = silent.cancelled() => return,
            }
        }
    });
    let mut plan = load_plan(proxies, "/", 24, Some(1));
    plan.pace = Pace::Rate { rate: 24, max_connections: 4 };
    let mut unsent = 0;
    let tell = |line| {
        if matches!(line, Line::Failed(failed) if failed.failure == "no connection free") {
            unsent += 1;
            if unsent == 20 {
                over.cancel();
            }
        }
    };
    let report = load::run(&plan, CancellationToken::new(), tell).await.unwrap();
    server.await.unwrap();
    assert_eq!((report.ok, report.failed, report.seconds), (0, 24, 1));
    assert_eq!(report.reasons["no connection free"], 20, "{:?}", report.reasons);
}

#[tokio::test]
async fn follow_tells_when_another_pod_answers() {
    // Both pods have the same address; between them, connections wait to be accepted.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let again = TcpListener::from_std(listener.try_clone().unwrap()).unwrap();
    let first = Running::start_on(TcpListener::from_std(listener).unwrap(), "pod-1", hello::serve);
    let plan = follow::Plan {
        url: "http://web.shop/".parse().unwrap(),
        proxies: first.as_proxy(),
        local: None,
        every: Duration::from_millis(1),
        seconds: None,
        timeout: LONG,
    };
    let (stop, (heard, mut hears)) = (CancellationToken::new(), tokio::sync::mpsc::unbounded_channel());
    let following = tokio::spawn({
        let stop = stop.clone();
        async move { follow::run(&plan, stop, |change| heard.send(change.answer.clone()).unwrap()).await.unwrap() }
    });
    let answer = hears.recv().await.unwrap();
    assert_eq!(
        (answer.pod.as_deref(), answer.node.as_deref(), answer.status),
        (Some("pod-1"), Some("node-1"), Some(200))
    );
    first.end().await;
    let second = Running::start_on(again, "pod-2", hello::serve);
    let mut changes = 1;
    loop {
        let answer = hears.recv().await.unwrap();
        changes += 1;
        if answer.pod.is_some() {
            assert_eq!(answer.pod.as_deref(), Some("pod-2"), "each change is another answer");
            break;
        }
        assert!(answer.failure.is_some(), "{answer:?}");
    }
    stop.cancel();
    let report = following.await.unwrap();
    assert_eq!(report.changes, changes);
    assert!(report.answers >= 2, "{report:?}");
    second.end().await;
}

/// `get` with its usual settings.
struct Client(get::Plan);

impl Client {
    fn new(url: &str, proxies: Proxies, connect: Option<&str>, task: get::Task) -> Self {
        let connect = connect.map(|authority| authority.parse().unwrap());
        Self(get::Plan { url: url.parse().unwrap(), proxies, local: None, connect, task, timeout: LONG })
    }

    fn straight(address: SocketAddr) -> Self {
        Self::new(&format!("http://{address}/"), Proxies::default(), None, http(Protocol::Http1))
    }

    async fn get(mut self, path: &str) -> get::Answer {
        let mut parts = self.0.url.into_parts();
        parts.path_and_query = Some(path.parse().unwrap());
        self.0.url = parts.try_into().unwrap();
        self.ask().await
    }

    async fn ask(self) -> get::Answer {
        get::Client::new(self.0).await.unwrap().ask().await
    }
}

fn http(protocol: Protocol) -> get::Task {
    let headers = HeaderMap::from_iter([("te".parse().unwrap(), "trailers".parse().unwrap())]);
    get::Task::Http { protocol, method: Method::POST, headers, body: Bytes::from("text") }
}

fn body(answer: &get::Answer) -> Value {
    assert_eq!((answer.status, &answer.error), (Some(200), &None), "{answer:?}");
    serde_json::from_str(answer.body.as_ref().unwrap()).unwrap()
}

#[tokio::test]
async fn get_asks_a_proxy_for_the_whole_url_and_a_server_for_the_path() {
    let server = Running::start(echo::serve).await;
    for (protocol, version) in [(Protocol::Http1, "HTTP/1.1"), (Protocol::Http2, "HTTP/2.0")] {
        let answer = Client::new("http://web.shop/a?b", server.as_proxy(), None, http(protocol)).ask().await;
        let seen = body(&answer);
        assert_eq!((&seen["http_version"], &seen["authority"]), (&json!(version), &json!("web.shop")));
        assert_eq!((&seen["path"], &seen["query"], &seen["body"]), (&json!("/a"), &json!("b"), &json!("text")));
        assert_eq!((&*answer.headers["x-pod"], &*answer.headers["x-node"]), ("pod-1", "node-1"));
    }
    let seen = body(&Client::straight(server.address).get("/a").await);
    assert_eq!((&seen["authority"], &seen["headers"]["host"]), (&Value::Null, &json!([server.address.to_string()])));
    let answer = Client::straight(server.address).get("/trailers").await;
    assert_eq!(answer.trailers["x-echo-trailer"], "after the body");

    let plan = Client::straight(server.address).0;
    let mut kept = get::Client::new(plan).await.unwrap();
    assert!(kept.ask().await.came() && kept.ask().await.came());
    server.end().await;
    assert!(kept.ask().await.error.is_some());
}

#[tokio::test]
async fn get_goes_through_a_tunnel() {
    let (proxies, proxy) = tunnels().await;
    let (web, raw) = (Running::start(echo::serve).await, Running::start(tcp::serve).await);
    let (web_at, raw_at) = (web.address.to_string(), raw.address.to_string());

    let tunnel = Client::new("http://web.shop/a", proxies.clone(), Some(&web_at), http(Protocol::Http1));
    let seen = body(&tunnel.ask().await);
    assert_eq!((&seen["authority"], &seen["headers"]["host"]), (&Value::Null, &json!(["web.shop"])));
    let tunnel = Client::new("http://web.shop/a", proxies.clone(), Some(&web_at), http(Protocol::Http2));
    assert_eq!(body(&tunnel.ask().await)["http_version"], "HTTP/2.0");

    let socket = get::Task::WebSocket("message".to_owned());
    let answer = Client::new("http://web.shop/ws", proxies.clone(), Some(&web_at), socket.clone()).ask().await;
    assert_eq!((answer.status, answer.echo.as_deref(), answer.error), (Some(101), Some("message"), None));
    let answer = Client::new("http://web.shop/ws", web.as_proxy(), None, socket.clone()).ask().await;
    assert_eq!((answer.status, answer.echo.as_deref(), answer.error), (Some(101), Some("message"), None));
    let answer = Client::new("http://web.shop/status/404", web.as_proxy(), None, socket).ask().await;
    assert_eq!((answer.status, answer.echo, answer.error), (Some(404), None, None));

    let line = get::Task::Line("a line".to_owned());
    for proxies in [proxies.clone(), Proxies::default()] {
        let answer = Client::new("http://x/", proxies, Some(&raw_at), line.clone()).ask().await;
        assert_eq!(answer.first.as_deref(), Some("hello from pod-1 on node-1"), "{answer:?}");
        assert_eq!((answer.echo.as_deref(), answer.error), (Some("a line"), None));
    }
    for task in [line, http(Protocol::Http1)] {
        let answer = Client::new("http://x/", proxies.clone(), Some("refused:1"), task).ask().await;
        assert_eq!((answer.status, answer.body.as_deref(), &answer.error), (Some(403), Some("why\n"), &None));
        assert_eq!(answer.headers["proxy-status"], "p; error=x");
    }
    web.end().await;
    raw.end().await;
    proxy.abort();
}

/// The program with nothing in its environment but these.
fn program(variables: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_posthouse-demo-app"));
    command.env_clear().envs(variables.iter().copied()).args(arguments).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

fn terminate(child: &tokio::process::Child) {
    let pid = child.id().and_then(|id| Pid::from_raw(id.try_into().unwrap())).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
}

#[tokio::test]
async fn the_program_takes_its_proxy_from_the_variables_and_ends_on_sigterm() {
    let server = Running::start(echo::serve).await;
    let proxy = format!("http://{}", server.address);
    let variables = [("HTTP_PROXY", &*proxy), ("NO_PROXY", "localhost,10.0.0.0/8")];
    let arguments = ["load", "--url", "http://web.shop/", "--rate", "50", "--seconds", "0"];
    let mut child = program(&variables, &arguments).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    assert_eq!((&first["ok"], &first["failed"]), (&first["by_pod"]["pod-1"], &json!(0)), "{first}");
    terminate(&child);
    let (mut told, mut last) = (first["ok"].as_u64().unwrap(), Value::Null);
    while let Some(line) = lines.next_line().await.unwrap() {
        last = serde_json::from_str(&line).unwrap();
        told += last.get("time").and_then(|_| last["ok"].as_u64()).unwrap_or_default();
    }
    assert_eq!((&last["ok"], &last["failed"]), (&json!(told), &json!(0)), "{last}");
    assert!(child.wait().await.unwrap().success());

    // A name that is exempt is looked up, and this one is none.
    let exempt = [("HTTP_PROXY", &*proxy), ("NO_PROXY", "nowhere.invalid")];
    for (variables, wanted) in [(variables, 0), (exempt, 1)] {
        let mut command = program(&variables, &["get", "http://nowhere.invalid/status/503", "-H", "x-one: 1"]);
        let output = command.stderr(Stdio::piped()).output().await.unwrap();
        assert_eq!(output.status.code(), Some(wanted), "{output:?}");
        if wanted == 0 {
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!((&answer["status"], &answer["headers"]["x-pod"]), (&json!(503), &json!("pod-1")), "{answer}");
            assert!(answer["body"].as_str().unwrap().contains(r#""x-one":["1"]"#), "{answer}");
        }
    }
    server.end().await;
}

#[tokio::test]
async fn a_server_learns_its_names_from_the_variables() {
    // The port is chosen by the system and freed for the program: another process may take it, then this one ends at once.
    loop {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let variables = [("POD_NAME", "pod-7"), ("NODE_NAME", "node-7")];
        let mut child = program(&variables, &["tcp", "--listen", &free, "--grace", "100ms"]).spawn().unwrap();
        let stream = loop {
            match TcpStream::connect(&free).await {
                Ok(stream) => break Some(stream),
                Err(_) if child.try_wait().unwrap().is_some() => break None,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let Some(mut stream) = stream else { continue };
        let mut line = [0; "hello from pod-7 on node-7\n".len()];
        stream.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"hello from pod-7 on node-7\n");
        // The open connection is cut off after the grace.
        terminate(&child);
        assert!(child.wait().await.unwrap().success());
        assert_eq!(stream.read(&mut line).await.unwrap_or_default(), 0);
        return;
    }
}
