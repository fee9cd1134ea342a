//! A scripted API server: answers each list and each watch of a kind with the next answer of its script, or else as a
//! quiet, empty cluster would. It runs behind hyper on loopback or, where time is paused, right inside the client.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use hyper_util::rt::TokioIo;
use kube::{Client, Config};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::status::Kind;

/// What is answered to one request.
pub(super) enum Answer {
    /// A list of these objects as of a version, and the token of the next page.
    List(Vec<String>, &'static str, Option<&'static str>),
    /// A body as it is, with 200.
    Text(String),
    /// A status, as the API's Status object.
    Status(u16),
    /// What the API says to a path that it does not have.
    NoSuchPath,
    /// A body that is sent as the test says; dropping the sender ends it, an error cuts it off.
    Stream(mpsc::UnboundedReceiver<io::Result<Bytes>>),
    /// Nothing, ever.
    Silence,
    /// No connection (in-process only).
    Refused,
}

/// A request as the server saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) kind: Kind,
    pub(super) watch: bool,
    pub(super) query: HashMap<String, String>,
}

impl Asked {
    pub(super) fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }
}

type Answers = HashMap<(Kind, bool), VecDeque<Answer>>;

pub(super) struct Script {
    answers: Mutex<Answers>,
    asked: mpsc::UnboundedSender<Asked>,
    /// While true, nobody is at home.
    away: Mutex<bool>,
}

type AnyBody = UnsyncBoxBody<Bytes, io::Error>;

impl Script {
    pub(super) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Asked>) {
        let (asked, log) = mpsc::unbounded_channel();
        (Arc::new(Self { answers: Mutex::default(), asked, away: Mutex::new(false) }), log)
    }

    /// The next list of `kind` is answered so (after those that are already scripted).
    pub(super) fn list(&self, kind: Kind, answer: Answer) {
        self.answers.lock().unwrap().entry((kind, false)).or_default().push_back(answer);
    }

    /// The next watch of `kind` is answered so.
    pub(super) fn watch(&self, kind: Kind, answer: Answer) {
        self.answers.lock().unwrap().entry((kind, true)).or_default().push_back(answer);
    }

    /// The next watch of `kind` is a stream that the test sends.
    pub(super) fn stream(&self, kind: Kind) -> Events {
        let (send, receive) = mpsc::unbounded_channel();
        self.watch(kind, Answer::Stream(receive));
        Events(send)
    }

    /// The same of a list.
    pub(super) fn list_stream(&self, kind: Kind) -> Events {
        let (send, receive) = mpsc::unbounded_channel();
        self.list(kind, Answer::Stream(receive));
        Events(send)
    }

    pub(super) fn set_away(&self, away: bool) {
        *self.away.lock().unwrap() = away;
    }

    async fn answer(&self, uri: &http::Uri) -> io::Result<Response<AnyBody>> {
        let kind = match uri.path() {
            "/api/v1/services" => Kind::Service,
            "/apis/discovery.k8s.io/v1/endpointslices" => Kind::EndpointSlice,
            "/api/v1/pods" => Kind::Pod,
            "/api/v1/nodes" => Kind::Node,
            "/api/v1/namespaces/shop/secrets" => Kind::Secret,
            "/api/v1/namespaces/shop/configmaps" => Kind::ConfigMap,
            "/apis/posthouse.io/v1alpha1/authorizationpolicies" => Kind::AuthorizationPolicy,
            other => panic!("nobody may ask for {other}"),
        };
        let pairs = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        let query: HashMap<String, String> =
            pairs.map(|(name, value)| (name.to_owned(), value.replace("%3D", "=").replace("%2F", "/"))).collect();
        let watch = query.get("watch").is_some_and(|watch| watch == "true");
        // The test may have ended by now.
        let _ = self.asked.send(Asked { kind, watch, query });
        let away = *self.away.lock().unwrap();
        let scripted = if away {
            Some(Answer::Refused)
        } else {
            self.answers.lock().unwrap().get_mut(&(kind, watch)).and_then(VecDeque::pop_front)
        };
        let (status, body) = match scripted {
            None if watch => return std::future::pending().await,
            None => (200, whole(list(&[], "1", None))),
            Some(Answer::List(items, version, token)) => (200, whole(list(&items, version, token))),
            Some(Answer::Text(text)) => (200, whole(text)),
            Some(Answer::Status(code)) => (code, whole(status(code))),
            Some(Answer::NoSuchPath) => (404, whole("404 page not found\n".to_owned())),
            Some(Answer::Stream(receive)) => (200, Sent(receive).boxed_unsync()),
            Some(Answer::Silence) => return std::future::pending().await,
            Some(Answer::Refused) => return Err(io::ErrorKind::ConnectionRefused.into()),
        };
        Ok(Response::builder().status(status).body(body).unwrap())
    }

    /// A client that asks the script without any socket, so that paused time works.
    pub(super) fn client(self: &Arc<Self>) -> Client {
        let script = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let script = Arc::clone(&script);
            async move { script.answer(request.uri()).await }
        });
        Client::new(service, "default")
    }
}

fn whole(text: String) -> AnyBody {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync()
}

fn list(items: &[String], version: &str, token: Option<&str>) -> String {
    let token = token.map(|token| format!(r#","continue":"{token}""#)).unwrap_or_default();
    format!(
        r#"{{"kind":"SomeList","metadata":{{"resourceVersion":"{version}"{token}}},"items":[{}]}}"#,
        items.join(",")
    )
}

pub(super) fn status(code: u16) -> String {
    format!(
        r#"{{"kind":"Status","apiVersion":"v1","status":"Failure","message":"scripted","reason":"Scripted","code":{code}}}"#
    )
}

/// The sending end of a watch.
pub(super) struct Events(mpsc::UnboundedSender<io::Result<Bytes>>);

impl Events {
    pub(super) fn send(&self, event: &str, object: &str) {
        self.raw(&format!("{{\"type\":\"{event}\",\"object\":{object}}}\n"));
    }

    pub(super) fn bookmark(&self, version: &str) {
        self.send("BOOKMARK", &format!(r#"{{"kind":"Service","metadata":{{"resourceVersion":"{version}"}}}}"#));
    }

    pub(super) fn raw(&self, text: &str) {
        self.0.send(Ok(Bytes::copy_from_slice(text.as_bytes()))).unwrap();
    }

    /// The connection breaks.
    pub(super) fn cut(self) {
        self.0.send(Err(io::ErrorKind::ConnectionReset.into())).unwrap();
    }

    /// Whether the client has gone away from this watch.
    pub(super) async fn left(&self) {
        self.0.closed().await;
    }
}

struct Sent(mpsc::UnboundedReceiver<io::Result<Bytes>>);

impl Body for Sent {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(cx).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}

/// The script behind hyper on loopback.
pub(super) struct Server {
    script: Arc<Script>,
    pub(super) address: SocketAddr,
    running: JoinSet<()>,
}

impl Server {
    pub(super) async fn start(script: &Arc<Script>) -> Self {
        let mut server =
            Self { script: Arc::clone(script), address: ([127, 0, 0, 1], 0).into(), running: JoinSet::new() };
        server.come_back().await;
        server
    }

    /// Listens, again where it did before.
    pub(super) async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let script = Arc::clone(&self.script);
        self.running.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let script = Arc::clone(&script);
                connections.spawn(async move {
                    let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| {
                        let script = Arc::clone(&script);
                        async move { script.answer(request.uri()).await }
                    });
                    // A cut connection is what some tests want.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
    }

    /// Closes the listener and all connections.
    pub(super) async fn go_away(&mut self) {
        self.running.shutdown().await;
    }

    pub(super) fn client(&self) -> Client {
        let mut config = Config::new(format!("http://{}", self.address).parse().unwrap());
        config.default_retry = false;
        config.read_timeout = None;
        Client::try_from(config).unwrap()
    }
}

/// Waits until `done`, looking at each publication.
pub(super) async fn until(changes: &mut watch::Receiver<u64>, what: &str, done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            changes.changed().await.unwrap();
        }
    };
    // Only a limit to a test that fails; with paused time an hour passes at once.
    assert!(
        tokio::time::timeout(std::time::Duration::from_secs(3600), waiting).await.is_ok(),
        "waited in vain: {what}"
    );
}
