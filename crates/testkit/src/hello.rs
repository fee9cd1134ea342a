//! `hello`: answers every request with one line that names its pod and node.

use std::io;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::{BodyExt, Full};
use tokio::net::TcpListener;

use crate::{Place, Shutdown, server};

/// Serves `hello` on `listener` until `shutdown`.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(listener: TcpListener, place: Place, shutdown: Shutdown) -> io::Result<()> {
    let line = Bytes::from(line(&place));
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    place.mark(&mut headers);
    server::serve(listener, shutdown, move |_request| {
        let mut response = Response::new(Full::new(line.clone()).boxed_unsync());
        *response.headers_mut() = headers.clone();
        std::future::ready(response)
    })
    .await
}

/// How a pod introduces itself.
pub(crate) fn line(place: &Place) -> String {
    format!("hello from {} on {}\n", place.pod, place.node)
}

/// Reads `hello`'s line back.
#[must_use]
pub fn parse(line: &str) -> Option<Place> {
    let (pod, node) = line.trim_end().strip_prefix("hello from ")?.split_once(" on ")?;
    Some(Place::new(pod, node))
}
