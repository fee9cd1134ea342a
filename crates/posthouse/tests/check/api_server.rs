//! An API server that answers what the test wrote down: objects by their paths, reviews of permissions by a list of what is
//! denied, and port-forward as the real one does it (WebSocket, two channels a port), to ports of this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// What is there. Paths are without query.
#[derive(Default)]
pub(crate) struct Script {
    /// Objects and lists; what is not here is 404.
    pub(crate) answers: BTreeMap<String, (u16, Value)>,
    /// "verb resource" of reviews; everything else is allowed.
    pub(crate) denied: BTreeSet<&'static str>,
    /// How it refuses a pod on the host's network, if it does.
    pub(crate) pod_security: Option<(u16, &'static str)>,
    /// Its answers have no `Date`.
    pub(crate) no_date: bool,
    /// Where a pod's ports lead; what is not here refuses connections.
    pub(crate) forwards: BTreeMap<(&'static str, u16), SocketAddr>,
    /// Seconds by which the server's clock is wrong.
    pub(crate) clock: i64,
    /// Every path that was asked for, with its query.
    asked: Mutex<Vec<String>>,
}

impl Script {
    pub(crate) fn put(&mut self, path: &str, object: Value) {
        self.answers.insert(path.to_owned(), (200, object));
    }

    pub(crate) fn list(&mut self, path: &str, items: &[Value]) {
        self.put(path, json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}));
    }

    pub(crate) fn forbid(&mut self, path: &str) {
        self.answers.insert(path.to_owned(), (403, status(403, "you are not allowed to")));
    }
}

pub(crate) struct ApiServer {
    address: SocketAddr,
    script: Arc<Script>,
    _running: JoinSet<()>,
}

impl ApiServer {
    pub(crate) async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(script);
        let mut running = JoinSet::new();
        running.spawn(accept(listener, Arc::clone(&script)));
        Self { address, script, _running: running }
    }

    pub(crate) fn kubeconfig(&self) -> String {
        kubeconfig(self.address)
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.script.asked.lock().unwrap().clone()
    }
}

pub(crate) fn kubeconfig(server: SocketAddr) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": format!("http://{server}")}}],
        "users": [{"name": "test", "user": {}}],
    })
    .to_string()
}

fn status(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": "", "code": code})
}

async fn accept(listener: TcpListener, script: Arc<Script>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let script = Arc::clone(&script);
        connections.spawn(async move {
            let service = service_fn(|request| answer(request, Arc::clone(&script)));
            // The client leaves when it has what it wants.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        });
    }
}

async fn answer(request: Request<Incoming>, script: Arc<Script>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    script.asked.lock().unwrap().push(request.uri().to_string());
    let mut response = if path.ends_with("/portforward") && !script.answers.contains_key(&path) {
        forward(request, &path, &script)
    } else if request.method() == Method::POST && path.ends_with("/pods") {
        assert!(request.uri().query().unwrap().contains("dryRun=All"), "nothing is to be created");
        let pod = request.into_body().collect().await.unwrap().to_bytes();
        let pod: Value = serde_json::from_slice(&pod).unwrap();
        assert_eq!(pod["spec"]["hostNetwork"], true);
        match script.pod_security {
            Some((code, words)) => json_response(code, &status(code, words)),
            None => json_response(201, &pod),
        }
    } else if request.method() == Method::POST {
        let review = request.into_body().collect().await.unwrap().to_bytes();
        json_response(201, &reviewed(serde_json::from_slice(&review).unwrap(), &script))
    } else {
        let (code, object) = script.answers.get(&path).cloned().unwrap_or_else(|| (404, status(404, "not found")));
        json_response(code, &object)
    };
    if script.no_date {
        // hyper adds one of its own where there is none.
        response.headers_mut().insert(header::DATE, "unknown".parse().unwrap());
        return Ok(response);
    }
    let now = std::time::SystemTime::now();
    let wrong = std::time::Duration::from_secs(script.clock.unsigned_abs());
    let date = if script.clock < 0 { now - wrong } else { now + wrong };
    response.headers_mut().insert(header::DATE, httpdate::fmt_http_date(date).parse().unwrap());
    Ok(response)
}

fn json_response(code: u16, object: &Value) -> Response<Full<Bytes>> {
    let body = Full::new(object.to_string().into());
    Response::builder().status(code).header(header::CONTENT_TYPE, "application/json").body(body).unwrap()
}

/// A review of permissions with its answer.
fn reviewed(mut review: Value, script: &Script) -> Value {
    let attributes = &review["spec"]["resourceAttributes"];
    let action = format!("{} {}", attributes["verb"].as_str().unwrap(), attributes["resource"].as_str().unwrap());
    review["status"] = json!({"allowed": !script.denied.contains(action.as_str())});
    review
}

/// Answers the upgrade; what follows is [`carry`]'s.
fn forward(request: Request<Incoming>, path: &str, script: &Script) -> Response<Full<Bytes>> {
    let pod = path.rsplit('/').nth(1).unwrap();
    let query = request.uri().query().unwrap();
    let port: u16 = query.split('&').find_map(|pair| pair.strip_prefix("ports=")).unwrap().parse().unwrap();
    let target = script.forwards.iter().find(|((of, number), _)| *of == pod && *number == port).map(|(_, to)| *to);
    let accept = derive_accept_key(request.headers()["sec-websocket-key"].as_bytes());
    tokio::spawn(async move {
        let upgraded = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
        carry(WebSocketStream::from_raw_socket(upgraded, Role::Server, None).await, port, target).await;
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header("sec-websocket-accept", accept)
        .header("sec-websocket-protocol", "v4.channel.k8s.io")
        .body(Full::default())
        .unwrap()
}

/// Channel 0 is the port's bytes, channel 1 its error; each begins with the port's number.
async fn carry(mut socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>, port: u16, target: Option<SocketAddr>) {
    let on = |channel: u8, bytes: &[u8]| Message::binary([&[channel], bytes].concat());
    for channel in [0, 1] {
        socket.send(on(channel, &port.to_le_bytes())).await.unwrap();
    }
    let Some(target) = target else {
        let words = format!("error forwarding port {port}: dial tcp4 127.0.0.1:{port}: connect: connection refused");
        socket.send(on(1, words.as_bytes())).await.unwrap();
        // Until the client leaves.
        while let Some(Ok(_)) = socket.next().await {}
        return;
    };
    let mut stream = TcpStream::connect(target).await.unwrap();
    let mut buffer = vec![0; 16 << 10];
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Binary(bytes))) if bytes[0] == 0 => stream.write_all(&bytes[1..]).await.unwrap(),
                Some(Ok(Message::Binary(_))) => {}
                _ => return,
            },
            read = stream.read(&mut buffer) => match read {
                Ok(n) if n > 0 => {
                    if socket.send(on(0, &buffer[..n])).await.is_err() {
                        return;
                    }
                }
                // What was sent must arrive before the end does, so the client ends it.
                _ => {
                    while let Some(Ok(_)) = socket.next().await {}
                    return;
                }
            },
        }
    }
}
