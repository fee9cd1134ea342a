//! The workloads are what other tests trust, so they are tested themselves: real clients over 127.0.0.1:0.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{HOST, TE};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use posthouse_testkit::client::{Connection, Protocol, connect, tunnel};
use posthouse_testkit::greeter::proto::greeter_client::GreeterClient;
use posthouse_testkit::greeter::proto::{CountersReply, CountersRequest, HelloRequest};
use posthouse_testkit::{Place, Shutdown, echo, greeter, hello, tcp};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;
use tonic::Code;

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
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let place = Place::new("pod-1", "node-1");
        let task = tokio::spawn(server(listener, place, Shutdown::new(shutdown.clone())));
        Self { address, shutdown, task }
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    fn connection(&self, protocol: Protocol) -> Connection {
        Connection::new(None, self.address, protocol)
    }

    /// A request in the form that the protocol wants.
    fn request(&self, protocol: Protocol, method: &str, path: &str, body: &[u8]) -> Request<Full<Bytes>> {
        let uri = match protocol {
            Protocol::Http1 => path.to_owned(),
            Protocol::Http2 => format!("http://{}{path}", self.address),
        };
        let mut request = Request::builder().method(method).uri(uri);
        if protocol == Protocol::Http1 {
            request = request.header(HOST, self.address.to_string());
        }
        request.body(Full::new(Bytes::copy_from_slice(body))).unwrap()
    }

    async fn json(&self, protocol: Protocol, method: &str, path: &str, body: &[u8]) -> (StatusCode, Value) {
        let request = self.request(protocol, method, path, body);
        let (head, body) = self.connection(protocol).send(request).await.unwrap();
        (head.status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// Asks `/counters` until `wanted` holds.
    async fn until(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let (_, counters) = self.json(Protocol::Http1, "GET", "/counters", b"").await;
            if wanted(&counters) {
                return counters;
            }
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn hello_names_its_pod_and_node() {
    let server = Running::start(hello::serve).await;
    let request = server.request(Protocol::Http1, "GET", "/", b"");
    let (head, body) = server.connection(Protocol::Http1).send(request).await.unwrap();
    assert_eq!(body, "hello from pod-1 on node-1\n");
    assert_eq!(
        (&head.headers["x-pod"], &head.headers["x-node"]),
        (&"pod-1".parse().unwrap(), &"node-1".parse().unwrap())
    );
    assert_eq!(hello::parse("hello from pod-1 on node-1\n"), Some(Place::new("pod-1", "node-1")));
    server.end().await;
}

#[tokio::test]
async fn echo_answers_what_it_was_asked_over_both_protocols() {
    let server = Running::start(echo::serve).await;
    for (protocol, version) in [(Protocol::Http1, "HTTP/1.1"), (Protocol::Http2, "HTTP/2.0")] {
        let mut request = server.request(protocol, "PUT", "/a/b?c=d", b"text");
        request.headers_mut().append("x-two", "1".parse().unwrap());
        request.headers_mut().append("x-two", "2".parse().unwrap());
        let (head, body) = server.connection(protocol).send(request).await.unwrap();
        let answer: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(head.status, StatusCode::OK);
        assert_eq!(head.headers["x-pod"], "pod-1");
        assert_eq!(answer["http_version"], version);
        assert_eq!(
            (&answer["method"], &answer["path"], &answer["query"]),
            (&json!("PUT"), &json!("/a/b"), &json!("c=d"))
        );
        assert_eq!(answer["headers"]["x-two"], json!(["1", "2"]));
        assert_eq!((&answer["body"], &answer["body_encoding"]), (&json!("text"), &json!("utf-8")));
        assert_eq!((&answer["pod"], &answer["node"]), (&json!("pod-1"), &json!("node-1")));

        let (_, binary) = server.json(protocol, "POST", "/", &[0xff, 0x00]).await;
        assert_eq!((&binary["body"], &binary["body_encoding"]), (&json!("/wA="), &json!("base64")));
        let (status, _) = server.json(protocol, "GET", "/status/503", b"").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        let (status, none) = server.json(protocol, "GET", "/status/204", b"").await;
        assert_eq!((status, none), (StatusCode::NO_CONTENT, Value::Null));
        for wrong in ["/status/101", "/status/x", "/bytes/-1", "/bytes/10737418241", "/delay/600001"] {
            assert_eq!(server.json(protocol, "GET", wrong, b"").await.0, StatusCode::BAD_REQUEST, "{wrong}");
        }
        let (_, sunk) = server.json(protocol, "POST", "/sink", &vec![7; 300_000]).await;
        assert_eq!(sunk["bytes"], 300_000);
        assert_eq!(server.json(protocol, "POST", "/", &vec![7; (1 << 20) + 1]).await.0, StatusCode::PAYLOAD_TOO_LARGE);
        let request = server.request(protocol, "GET", "/bytes/200000", b"");
        let (head, bytes) = server.connection(protocol).send(request).await.unwrap();
        assert_eq!((head.headers["content-length"].as_bytes(), bytes.len()), (&b"200000"[..], 200_000));
    }
    server.end().await;
}

#[tokio::test]
async fn tcp_speaks_first_then_sends_all_bytes_back() {
    let server = Running::start(tcp::serve).await;
    let mut stream = connect(None, server.address).await.unwrap();
    let mut line = vec![0; "hello from pod-1 on node-1\n".len()];
    stream.read_exact(&mut line).await.unwrap();
    assert_eq!(line, b"hello from pod-1 on node-1\n");
    stream.write_all(b"one\ntwo").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"one\ntwo");
    server.end().await;
}

#[tokio::test]
async fn a_server_that_ends_finishes_what_is_under_way_and_closes() {
    let server = Running::start(echo::serve).await;
    let mut stream = connect(None, server.address).await.unwrap();
    stream.write_all(b"POST /letter HTTP/1.1\r\nHost: e\r\nContent-Length: 6\r\n\r\nlet").await.unwrap();
    server.until(|counters| counters["in_flight"] == 1).await;
    server.shutdown.cancel();
    // Nobody else gets in.
    while connect(None, server.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    stream.write_all(b"ter").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("connection: close\r\n"), "{answer}");
    server.end().await;
}

#[tokio::test]
async fn a_reader_that_stops_makes_bytes_stop() {
    let server = Running::start(echo::serve).await;
    let mut stream = connect(None, server.address).await.unwrap();
    stream.write_all(b"GET /bytes/10737418240 HTTP/1.1\r\nHost: e\r\n\r\n").await.unwrap();
    stream.read_exact(&mut [0; 1000]).await.unwrap();
    // Everything between is full once two looks, an answered request apart, see the same number.
    let mut last = 0;
    let made = loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let made = server.until(|_| true).await["bytes_made"].as_u64().unwrap();
        if made == last {
            break made;
        }
        last = made;
    };
    assert!(made < 64 << 20, "{made} bytes were made for a reader that took 1000");
    drop(stream);
    server.end().await;
}

#[tokio::test]
async fn echo_counts_clients_that_went_away() {
    let server = Running::start(echo::serve).await;
    let mut stream = connect(None, server.address).await.unwrap();
    stream.write_all(b"GET /delay/600000 HTTP/1.1\r\nHost: e\r\n\r\n").await.unwrap();
    server.until(|counters| counters["in_flight"] == 1).await;
    drop(stream);
    let counters = server.until(|counters| counters["cancelled"] == 1).await;
    assert_eq!(counters["in_flight"], 0);
    server.end().await;
}

#[tokio::test]
async fn trailers_follow_the_body() {
    let server = Running::start(echo::serve).await;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let mut request = server.request(protocol, "GET", "/trailers", b"");
        request.headers_mut().insert(TE, "trailers".parse().unwrap());
        let io = TokioIo::new(connect(None, server.address).await.unwrap());
        let collected = if protocol == Protocol::Http1 {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap().into_body().collect().await.unwrap()
        } else {
            let executor = hyper_util::rt::TokioExecutor::new();
            let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap().into_body().collect().await.unwrap()
        };
        let wanted = HeaderMap::from_iter([("x-echo-trailer".parse().unwrap(), "after the body".parse().unwrap())]);
        assert_eq!(collected.trailers(), Some(&wanted), "{protocol:?}");
    }
    server.end().await;
}

#[tokio::test]
async fn the_websocket_sends_messages_back() {
    let server = Running::start(echo::serve).await;
    let stream = connect(None, server.address).await.unwrap();
    let url = format!("ws://{}/ws", server.address);
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    for message in [Message::text("one"), Message::binary(vec![0, 255])] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    let (status, _) = server.json(Protocol::Http1, "GET", "/ws", b"").await;
    assert_eq!(status, StatusCode::UPGRADE_REQUIRED);
    server.end().await;
}

#[tokio::test]
async fn greeter_greets_streams_chats_and_counts_what_was_given_up() {
    let server = Running::start(greeter::serve).await;
    let mut client = GreeterClient::connect(format!("http://{}", server.address)).await.unwrap();
    let hello = |delay_ms, replies| HelloRequest { name: "you".to_owned(), delay_ms, replies };

    let reply = client.say_hello(hello(0, 0)).await.unwrap().into_inner();
    assert_eq!(reply.message, "Hello you from pod-1 on node-1");
    let replies = client.say_hello_stream(hello(0, 3)).await.unwrap().into_inner();
    assert_eq!(replies.collect::<Vec<_>>().await.len(), 3);
    let requests = tokio_stream_of(vec![hello(0, 0); 4]);
    let replies = client.chat(requests).await.unwrap().into_inner();
    assert_eq!(replies.collect::<Vec<_>>().await.len(), 4);

    let mut late = tonic::Request::new(hello(600_000, 0));
    late.set_timeout(Duration::from_millis(20));
    let status = client.say_hello(late).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    let mut given_up = client.say_hello_stream(hello(1, 1_000_000)).await.unwrap().into_inner();
    given_up.next().await.unwrap().unwrap();
    drop(given_up);

    let wanted = CountersReply { started: 5, finished: 3, cancelled: 2, in_flight: 0 };
    loop {
        let counters = client.counters(CountersRequest {}).await.unwrap().into_inner();
        if counters == wanted {
            break;
        }
        assert!(counters.cancelled <= 2 && counters.finished <= 3, "{counters:?}");
        tokio::task::yield_now().await;
    }
    drop(client);
    server.end().await;
}

fn tokio_stream_of<T: Send + 'static>(items: Vec<T>) -> impl futures_util::Stream<Item = T> + Send + 'static {
    futures_util::stream::iter(items)
}

#[tokio::test]
async fn a_refused_tunnel_says_how() {
    let server = Running::start(hello::serve).await;
    let stream = connect(None, server.address).await.unwrap();
    // hello answers every request with 200 and a body, even CONNECT: to its client that is a tunnel.
    assert!(tunnel(stream, "x:1").await.is_ok());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = connect(None, listener.local_addr().unwrap()).await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    accepted.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").await.unwrap();
    let error = tunnel(stream, "x:1").await.unwrap_err().to_string();
    assert_eq!(error, "CONNECT x:1: HTTP/1.1 403 Forbidden");
    server.end().await;
}
