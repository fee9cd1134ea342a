//! `hello`: answers every request with one line that names its pod and node.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use http_body_util::{BodyExt, Full};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{Place, server};

/// Serves `hello` on `listener` until `shutdown` is cancelled.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(listener: TcpListener, place: Place, shutdown: CancellationToken) -> io::Result<()> {
    let line: Arc<str> = format!("hello from {} on {}\n", place.pod, place.node).into();
    server::serve(listener, shutdown, move |_request| {
        let line = Arc::clone(&line);
        async move {
            let body = Full::new(Bytes::copy_from_slice(line.as_bytes())).boxed_unsync();
            let mut response = Response::new(body);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            response
        }
    })
    .await
}

/// Reads `hello`'s line back.
#[must_use]
pub fn parse(line: &str) -> Option<Place> {
    let (pod, node) = line.trim_end().strip_prefix("hello from ")?.split_once(" on ")?;
    Some(Place::new(pod, node))
}
