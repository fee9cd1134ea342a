//! A small API server on loopback: versioned objects, lists in pages of two, watches that first send what changed after
//! the version asked for. Beside that it does, for one answer or for a while, whatever the test tells it to.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Objects a page, whatever the client would like.
const PAGE: usize = 2;

/// What is listed and watched, in the order of the admin API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Service,
    EndpointSlice,
    Pod,
    Node,
    AuthorizationPolicy,
}

/// What the next watch gets instead of events.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// A Status object.
    Status(u16),
    /// Nothing, not even a head.
    Silence,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<(Kind, String), (u64, Value)>,
    open: Vec<(Kind, mpsc::UnboundedSender<io::Result<Bytes>>)>,
    next_watch: HashMap<Kind, Answer>,
    /// Its lists are empty.
    forgotten: Option<Kind>,
    /// The page tokens of all lists.
    tokens: Vec<(Kind, Option<String>)>,
    /// The versions that all watches were to begin with.
    watches: Vec<(Kind, u64)>,
}

type AnyBody = UnsyncBoxBody<Bytes, io::Error>;

pub(crate) struct ApiServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    running: JoinSet<()>,
}

impl ApiServer {
    pub(crate) async fn start(ip: &str) -> Self {
        let address = SocketAddr::new(ip.parse().unwrap(), 0);
        let mut server = Self { address, state: Arc::default(), running: JoinSet::new() };
        server.come_back().await;
        server
    }

    /// Listens, again where it did before.
    pub(crate) async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        self.running.spawn(accept(listener, Arc::clone(&self.state)));
    }

    /// Closes the listener and cuts every connection.
    pub(crate) async fn go_away(&mut self) {
        self.running.shutdown().await;
    }

    pub(crate) fn kubeconfig(&self) -> String {
        let server = format!("http://{}", self.address);
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": server}}],
            "users": [{"name": "test", "user": {}}],
        })
        .to_string()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Adds or replaces an object and tells the watches.
    pub(crate) fn put(&self, kind: Kind, object: Value) {
        let object = self.put_unseen(kind, object);
        self.lock().send(kind, &event("MODIFIED", &object));
    }

    /// The same without telling; gives the object as it is kept.
    pub(crate) fn put_unseen(&self, kind: Kind, mut object: Value) -> Value {
        let mut state = self.lock();
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let version = state.version;
        state.objects.insert((kind, name), (version, object.clone()));
        object
    }

    /// Sends a bookmark with a version of its own and gives that.
    pub(crate) fn bookmark(&self, kind: Kind) -> u64 {
        let mut state = self.lock();
        state.version += 1;
        let version = state.version;
        let object = json!({"metadata": {"resourceVersion": version.to_string()}});
        state.send(kind, &event("BOOKMARK", &object));
        version
    }

    /// Sends bytes to the watch as they are.
    pub(crate) fn raw(&self, kind: Kind, text: &str) {
        self.lock().send(kind, text);
    }

    /// The watch's answer ends.
    pub(crate) fn end(&self, kind: Kind) {
        self.lock().open.retain(|(of, _)| *of != kind);
    }

    /// The watch's connection breaks.
    pub(crate) fn cut(&self, kind: Kind) {
        let mut state = self.lock();
        for (_, watch) in state.open.extract_if(.., |(of, _)| *of == kind) {
            let _ = watch.send(Err(io::ErrorKind::ConnectionReset.into()));
        }
    }

    /// Waits until there is a watch to send to.
    pub(crate) async fn watched(&self, kind: Kind) {
        crate::until("a watch", async || self.lock().open.iter().any(|(of, watch)| *of == kind && !watch.is_closed()))
            .await;
    }

    pub(crate) fn next_watch(&self, kind: Kind, answer: Answer) {
        self.lock().next_watch.insert(kind, answer);
    }

    /// From now on the lists of this kind are empty, as if it had never heard of any.
    pub(crate) fn set_forgotten(&self, kind: Option<Kind>) {
        self.lock().forgotten = kind;
    }

    /// The page tokens that were asked for so far.
    pub(crate) fn tokens(&self, kind: Kind) -> Vec<Option<String>> {
        self.lock().tokens.iter().filter(|(of, _)| *of == kind).map(|(_, token)| token.clone()).collect()
    }

    /// How many watches were asked for so far.
    pub(crate) fn watches(&self, kind: Kind) -> usize {
        self.lock().watches.iter().filter(|(of, _)| *of == kind).count()
    }

    /// The version that the last watch was to begin with.
    pub(crate) fn last_watch(&self, kind: Kind) -> Option<u64> {
        self.lock().watches.iter().rev().find(|(of, _)| *of == kind).map(|(_, version)| *version)
    }
}

impl State {
    fn send(&mut self, kind: Kind, text: &str) {
        for (_, watch) in self.open.iter().filter(|(of, _)| *of == kind) {
            // A client that has left hears of it with its next watch.
            let _ = watch.send(Ok(Bytes::copy_from_slice(text.as_bytes())));
        }
    }

    fn page(&mut self, kind: Kind, token: Option<String>) -> String {
        let begin: usize = token.as_deref().map_or(0, |token| token.parse().unwrap());
        self.tokens.push((kind, token));
        let all = self.objects.iter().filter(|((of, _), _)| *of == kind && self.forgotten != Some(kind));
        let all: Vec<&Value> = all.map(|(_, (_, object))| object).collect();
        let end = all.len().min(begin + PAGE);
        let mut metadata = json!({"resourceVersion": self.version.to_string()});
        if end < all.len() {
            metadata["continue"] = end.to_string().into();
        }
        json!({"kind": "SomeList", "metadata": metadata, "items": all[begin..end]}).to_string()
    }

    /// A watch: what changed after `version` first, then whatever is sent.
    fn watch(&mut self, kind: Kind, version: u64) -> Option<(u16, AnyBody)> {
        self.watches.push((kind, version));
        match self.next_watch.remove(&kind) {
            Some(Answer::Status(code)) => return Some((code, whole(status(code).to_string()))),
            Some(Answer::Silence) => return None,
            None => {}
        }
        let (watch, events) = mpsc::unbounded_channel();
        for ((of, _), (changed, object)) in &self.objects {
            if *of == kind && *changed > version {
                let _ = watch.send(Ok(event("MODIFIED", object).into()));
            }
        }
        self.open.retain(|(_, watch)| !watch.is_closed());
        self.open.push((kind, watch));
        Some((200, Sent(events).boxed_unsync()))
    }
}

/// One line of a watch.
pub(crate) fn event(name: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": name, "object": object}))
}

/// A failure as the API words it.
pub(crate) fn status(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "scripted", "code": code})
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>) {
    // Ends, and with it each connection, when this task is aborted.
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(|request| answer(request, Arc::clone(&state)));
            // A watch that is cut ends in an error.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: Request<Incoming>, state: Arc<Mutex<State>>) -> Result<Response<AnyBody>, Infallible> {
    let kind = match request.uri().path() {
        "/api/v1/services" => Kind::Service,
        "/apis/discovery.k8s.io/v1/endpointslices" => Kind::EndpointSlice,
        "/api/v1/pods" => Kind::Pod,
        "/api/v1/nodes" => Kind::Node,
        "/apis/posthouse.io/v1alpha1/authorizationpolicies" => Kind::AuthorizationPolicy,
        other => return Ok(response(404, whole(format!("nobody may ask for {other}")))),
    };
    let pairs = request.uri().query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let query: HashMap<&str, &str> = pairs.collect();
    let answered = if query.get("watch") == Some(&"true") {
        let version = query["resourceVersion"].parse().unwrap();
        state.lock().unwrap().watch(kind, version)
    } else {
        let token = query.get("continue").map(|token| (*token).to_owned());
        Some((200, whole(state.lock().unwrap().page(kind, token))))
    };
    match answered {
        Some((code, body)) => Ok(response(code, body)),
        None => std::future::pending().await,
    }
}

fn response(code: u16, body: AnyBody) -> Response<AnyBody> {
    Response::builder().status(code).body(body).unwrap()
}

fn whole(text: String) -> AnyBody {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync()
}

/// A body that is sent as the test says: dropping the sender ends it, an error cuts it off.
struct Sent(mpsc::UnboundedReceiver<io::Result<Bytes>>);

impl Body for Sent {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(cx).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}
