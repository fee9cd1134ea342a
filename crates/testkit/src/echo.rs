//! `echo`: answers what it was asked, as JSON, over HTTP/1.1 and HTTP/2; and paths that make a proxy work hard:
//! `/status/N`, `/delay/MS`, `/bytes/N`, `/sink`, `/stall/MS`, `/trailers`, `/ws`. `/counters` says what this pod saw.

mod body;
mod websocket;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_TYPE, TRAILER};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::server::{self, Body};
use crate::{Place, Shutdown};

/// The longest body that is answered in full; longer ones are for `/sink`.
const MAX_ECHO: usize = 1 << 20;
/// The longest `/bytes/N`.
const MAX_BYTES: u64 = 10 << 30;
/// The longest `/delay/MS` and `/stall/MS`: ten minutes.
const MAX_WAIT: u64 = 600_000;

/// What one echo pod has seen, for tests that ask it past the proxy.
#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    in_flight: AtomicU64,
    /// Requests whose client went away before the answer's head was made.
    cancelled: AtomicU64,
    bytes_made: AtomicU64,
    bytes_taken: AtomicU64,
}

/// Serves `echo` on `listener` until `shutdown`.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(listener: TcpListener, place: Place, shutdown: Shutdown) -> io::Result<()> {
    let echo = Arc::new(Echo { place, counters: Arc::default(), shutdown: shutdown.begun.clone() });
    server::serve(listener, shutdown, move |request| {
        let echo = Arc::clone(&echo);
        async move { echo.handle(request).await }
    })
    .await
}

struct Echo {
    place: Place,
    counters: Arc<Counters>,
    shutdown: CancellationToken,
}

impl Echo {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let mut response = self.answer(request).await;
        self.place.mark(response.headers_mut());
        response
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        if path == "/counters" {
            return json_response(StatusCode::OK, &self.counters.as_json());
        }
        let in_flight = InFlight::begin(&self.counters);
        let response = match path.split('/').skip(1).collect::<Vec<_>>().as_slice() {
            ["status", code] => match code.parse().ok().and_then(final_status) {
                Some(status) => self.echo(status, request).await,
                None => refuse("/status/N wants a status from 200 to 599"),
            },
            ["delay", millis] => match bounded(millis, MAX_WAIT) {
                Some(millis) => {
                    tokio::time::sleep(Duration::from_millis(millis)).await;
                    self.echo(StatusCode::OK, request).await
                }
                None => refuse("/delay/MS wants at most 600000 milliseconds"),
            },
            ["bytes", count] => match bounded(count, MAX_BYTES) {
                Some(count) => Response::new(body::Made::new(count, Arc::clone(&self.counters)).boxed_unsync()),
                None => refuse("/bytes/N wants at most 10 GiB"),
            },
            ["sink"] => self.sink(request).await,
            ["stall", millis] => match bounded(millis, MAX_WAIT) {
                Some(millis) => {
                    tokio::time::sleep(Duration::from_millis(millis)).await;
                    self.sink(request).await
                }
                None => refuse("/stall/MS wants at most 600000 milliseconds"),
            },
            ["trailers"] => self.trailers(),
            ["ws"] => websocket::upgrade(request, &self.shutdown),
            _ => self.echo(StatusCode::OK, request).await,
        };
        in_flight.finish();
        response
    }

    /// The request as JSON. A status that has no body gets none.
    async fn echo(&self, status: StatusCode, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let Ok(collected) = Limited::new(body, MAX_ECHO).collect().await else {
            return json_response(
                StatusCode::PAYLOAD_TOO_LARGE,
                &json!({"error": "the body broke off or has more than 1 MiB; use /sink"}),
            );
        };
        let trailers = collected.trailers().map(headers_as_json);
        let bytes = collected.to_bytes();
        if matches!(status.as_u16(), 204 | 205 | 304) {
            let mut response = Response::new(Empty::new().boxed_unsync());
            *response.status_mut() = status;
            return response;
        }
        let (text, encoding) = match std::str::from_utf8(&bytes) {
            Ok(text) => (text.to_owned(), "utf-8"),
            Err(_) => (STANDARD.encode(&bytes), "base64"),
        };
        let mut answer = json!({
            "method": head.method.as_str(),
            "path": head.uri.path(),
            "query": head.uri.query(),
            "authority": head.uri.authority().map(|authority| authority.as_str()),
            "http_version": format!("{:?}", head.version),
            "headers": headers_as_json(&head.headers),
            "pod": self.place.pod,
            "node": self.place.node,
            "body": text,
            "body_encoding": encoding,
        });
        if let Some(trailers) = trailers {
            answer["trailers"] = trailers;
        }
        json_response(status, &answer)
    }

    /// Reads the body away as it comes and answers how many bytes it had.
    async fn sink(&self, request: Request<Incoming>) -> Response<Body> {
        let mut body = request.into_body();
        let mut count = 0_u64;
        while let Some(frame) = body.frame().await {
            match frame.as_ref().map(|frame| frame.data_ref().map_or(0, Bytes::len)) {
                Ok(len) => {
                    count += len as u64;
                    self.counters.bytes_taken.fetch_add(len as u64, Ordering::Relaxed);
                }
                Err(error) => {
                    return refuse(&format!("the body broke off after {count} bytes: {error}"));
                }
            }
        }
        let answer = json!({"bytes": count, "pod": self.place.pod, "node": self.place.node});
        json_response(StatusCode::OK, &answer)
    }

    /// An answer with trailers. HTTP/1.1 clients see them only when they sent `TE: trailers` (RFC 9110 §6.5.1).
    fn trailers(&self) -> Response<Body> {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-echo-trailer", HeaderValue::from_static("after the body"));
        // A stream has no known length, so HTTP/1.1 sends it in chunks: only those can have trailers.
        let frames = [Ok(Frame::data(Bytes::from_static(b"trailers follow\n"))), Ok(Frame::trailers(trailers))];
        let body = StreamBody::new(stream::iter(frames)).boxed_unsync();
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(TRAILER, HeaderValue::from_static("x-echo-trailer"));
        if let Ok(pod) = HeaderValue::from_str(&self.place.pod) {
            headers.insert("x-echo-pod", pod);
        }
        response
    }
}

impl Counters {
    fn as_json(&self) -> Value {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "requests": read(&self.requests),
            "in_flight": read(&self.in_flight),
            "cancelled": read(&self.cancelled),
            "bytes_made": read(&self.bytes_made),
            "bytes_taken": read(&self.bytes_taken),
        })
    }
}

/// Counts one request; dropped before [`InFlight::finish`], it counts as cancelled, because hyper drops the handler of
/// a client that is gone.
struct InFlight<'a> {
    counters: &'a Counters,
    finished: bool,
}

impl<'a> InFlight<'a> {
    fn begin(counters: &'a Counters) -> Self {
        counters.requests.fetch_add(1, Ordering::Relaxed);
        counters.in_flight.fetch_add(1, Ordering::Relaxed);
        Self { counters, finished: false }
    }

    fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.counters.in_flight.fetch_sub(1, Ordering::Relaxed);
        if !self.finished {
            self.counters.cancelled.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn final_status(code: u16) -> Option<StatusCode> {
    (200..600).contains(&code).then(|| StatusCode::from_u16(code).ok()).flatten()
}

fn bounded(text: &str, max: u64) -> Option<u64> {
    text.parse().ok().filter(|number| *number <= max)
}

fn refuse(why: &str) -> Response<Body> {
    json_response(StatusCode::BAD_REQUEST, &json!({"error": why}))
}

fn json_response(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{value}\n"))).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Each name with its values in order; bytes that are no text come as their lossy spelling.
fn headers_as_json(headers: &HeaderMap) -> Value {
    let mut by_name: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
        by_name.entry(name.as_str()).or_default().push(text);
    }
    json!(by_name)
}
