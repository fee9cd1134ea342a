//! The loop of an HTTP/2 connection on the outbound port: each stream is a request of its own, routed and balanced on its
//! own, in a task of its own. This is what spreads one gRPC channel over all pods of a Service.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use metrics::counter;

use crate::body::{Body, BodyOf, H2Body};
use crate::client::Client;
use crate::coalesce::coalesce;
use crate::downstream::H2Downstream;
use crate::error::{Error, ErrorKind};
use crate::exchange::{Request, TunnelEnd, answer_error, is_grpc};
use crate::h1;
use crate::h2conn::{MAX_HEADER_LIST, POD_WINDOWS};
use crate::h2stream::{RecvStream, SendStream};
use crate::idle::IdleTimer;
use crate::metrics::{Direction, TUNNELS, failed_without_service, limit_reached};
use crate::outbound::{self, Handled};
use crate::serve::tunnel;
use crate::stream::{BufferedIo, Prefixed, Stream};
use crate::tunnel::{H2Io, TUNNEL_IDLE, TunnelEndedBy, splice};

/// Streams that a client may have open on one connection. Source: design default; Envoy 1024, ztunnel 200.
const MAX_STREAMS: u32 = 256;

/// Serves one HTTP/2 connection until it ends.
pub(crate) async fn client_h2(client: Rc<Client>, io: BufferedIo) {
    let timeouts = client.worker.proxy.config.timeouts;
    let BufferedIo { stream, rbuf, .. } = io;
    let (io, flusher) = coalesce(Prefixed { prefix: rbuf.freeze(), stream });
    let handshake = h2::server::Builder::new()
        .initial_window_size(POD_WINDOWS.stream)
        .initial_connection_window_size(POD_WINDOWS.connection)
        .max_frame_size(POD_WINDOWS.frame)
        .max_send_buffer_size(POD_WINDOWS.send_buffer)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_streams(MAX_STREAMS)
        .enable_connect_protocol()
        .handshake::<_, Bytes>(io);
    let mut connection = match tokio::time::timeout(timeouts.request_header, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(_)) => return,
        Err(_) => return limit_reached("header_timeout"),
    };
    flusher.defer();
    let mut drained = pin!(client.worker.drain.begun());
    let mut draining = false;
    let mut idle = IdleTimer::new(timeouts.client_idle);
    loop {
        let accepted = poll_fn(|cx| {
            if !draining && drained.as_mut().poll(cx).is_ready() {
                // GOAWAY: the client opens a connection elsewhere, streams under way finish.
                draining = true;
                connection.graceful_shutdown();
            }
            match connection.poll_accept(cx) {
                Poll::Ready(accepted) => Poll::Ready(accepted),
                Poll::Pending => {
                    if matches!(flusher.poll_flush(cx), Poll::Ready(Err(_))) {
                        return Poll::Ready(None);
                    }
                    if connection.has_streams() {
                        idle.touch();
                    }
                    if !draining && idle.poll_expired(cx).is_ready() {
                        limit_reached("client_idle");
                        draining = true;
                        connection.graceful_shutdown();
                        cx.waker().wake_by_ref();
                    }
                    Poll::Pending
                }
            }
        })
        .await;
        match accepted {
            Some(Ok((request, respond))) => {
                idle.touch();
                crate::worker::spawn_stream(serve_stream(Rc::clone(&client), request, respond));
            }
            Some(Err(_)) | None => return,
        }
    }
}

async fn serve_stream(
    client: Rc<Client>,
    request: http::Request<h2::RecvStream>,
    respond: h2::server::SendResponse<Bytes>,
) {
    let mut timer = IdleTimer::new(client.worker.proxy.config.timeouts.stream_idle);
    let mut down = H2Downstream::new(respond, request.method());
    let (mut parts, recv) = request.into_parts();
    let grpc = is_grpc(&parts.headers);
    let (authority, path) = match authority(&parts).and_then(|a| Ok((a, path(&parts)?))) {
        Ok(target) => target,
        Err(error) => {
            failed_without_service(Direction::Outbound, error.kind);
            return answer_error(&mut down, &error, grpc, HeaderMap::new(), std::time::Duration::from_secs(10)).await;
        }
    };
    parts.headers.remove(http::header::HOST);
    h1::strip_hop_by_hop(&mut parts.headers);
    let protocol = parts.extensions.remove::<h2::ext::Protocol>();
    if parts.method == Method::CONNECT && protocol.is_none() {
        return connect(client, authority, recv, down).await;
    }
    let upgrade = match protocol {
        None => None,
        Some(p) if p.as_str().eq_ignore_ascii_case("websocket") => Some(HeaderValue::from_static("websocket")),
        // RFC 8441 has no other; one that hides requests (h2c) would lead around routing.
        Some(_) => {
            let error = Error {
                status: Some(StatusCode::NOT_IMPLEMENTED),
                ..Error::client(ErrorKind::HttpRequestError, "an extended CONNECT is served for websocket only")
            };
            failed_without_service(Direction::Outbound, error.kind);
            return answer_error(&mut down, &error, grpc, HeaderMap::new(), std::time::Duration::from_secs(10)).await;
        }
    };
    let mut request = Request {
        method: parts.method,
        path,
        authority,
        https: parts.uri.scheme() == Some(&http::uri::Scheme::HTTPS),
        headers: parts.headers,
        body: Body::Empty,
        upgrade,
        h2: true,
    };
    if request.upgrade.is_none() {
        request.body = if recv.is_end_stream() {
            Body::Empty
        } else {
            Body::H2(H2Body::new(RecvStream::H2(recv), BodyOf::Request))
        };
        outbound::handle(&client, &mut request, &mut down, &mut timer).await;
        return;
    }
    // RFC 8441: WebSocket over HTTP/2. The pod gets an HTTP/1.1 upgrade, which needs a key of its own.
    down.ask_tunnel();
    request.method = Method::GET;
    request.headers.insert(http::header::SEC_WEBSOCKET_KEY, websocket_key());
    if let Handled::Switched(response, underway) = outbound::handle(&client, &mut request, &mut down, &mut timer).await
    {
        // For hours, maybe, and the client chose its size.
        drop(request);
        let Some(end) = response.tunnel else { return };
        counter!(TUNNELS, "kind" => "upgrade").increment(1);
        let mut headers = response.headers;
        headers.remove(http::header::SEC_WEBSOCKET_ACCEPT);
        h1::strip_hop_by_hop(&mut headers);
        if let Ok(send) = down.tunnel(StatusCode::OK, headers) {
            let near = TunnelEnd::H2 { send, recv: RecvStream::H2(recv), lease: None };
            if splice(near, end, TUNNEL_IDLE).await == TunnelEndedBy::Idle {
                limit_reached("tunnel_idle");
            }
        }
        drop(underway);
    }
}

/// `:authority`, else Host (RFC 9113 §8.3.1); when both are there, `:authority` wins and Host is replaced. As strict as for
/// HTTP/1: it may become a Host field there.
fn authority(parts: &http::request::Parts) -> Result<Authority, Error> {
    let bad = |what: &'static str| Error::client(ErrorKind::HttpRequestError, what);
    let authority = match parts.uri.authority() {
        Some(authority) => authority.clone(),
        None => {
            let mut hosts = parts.headers.get_all(http::header::HOST).iter();
            match (hosts.next(), hosts.next()) {
                (Some(host), None) => {
                    Authority::try_from(host.as_bytes()).map_err(|_| bad("the Host field is no valid authority"))?
                }
                (Some(_), Some(_)) => return Err(bad("the request has more than one Host field")),
                (None, _) => return Err(bad("the request has neither :authority nor Host")),
            }
        }
    };
    posthouse_model::Authority::parse(authority.as_str())
        .map_err(|error| Error::client(ErrorKind::HttpRequestError, format!("'{authority}': {error}")))?;
    Ok(authority)
}

/// `:path` as it may stand in an HTTP/1 request line (RFC 9113 §8.3.1).
fn path(parts: &http::request::Parts) -> Result<PathAndQuery, Error> {
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(crate::link::root_path);
    let text = path.as_str();
    let visible = text.bytes().all(|b| (0x21..=0x7e).contains(&b));
    if visible && (text.starts_with('/') || text == "*" && parts.method == Method::OPTIONS) {
        return Ok(path);
    }
    Err(Error::client(ErrorKind::HttpRequestError, "the :path is neither a path from the root nor the '*' of OPTIONS"))
}

/// Sixteen random bytes in base64 (RFC 6455 §4.1). They only guard against caches, so no secure randomness is needed.
fn websocket_key() -> HeaderValue {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    // 16 bytes are 22 characters, the last of which holds two bits only, and two of padding.
    let mut key: Vec<u8> = (0..21).map(|_| ALPHABET[fastrand::usize(..64)]).collect();
    key.push(ALPHABET[fastrand::usize(..4) * 16]);
    key.extend_from_slice(b"==");
    HeaderValue::from_bytes(&key).unwrap_or_else(|_| HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="))
}

/// A CONNECT on a stream: its bytes are a connection of their own.
async fn connect(client: Rc<Client>, authority: Authority, recv: h2::RecvStream, mut down: H2Downstream) {
    let directory = client.worker.proxy.directory.load_full();
    let found = if client.tunnel.is_some() {
        Err(Error::client(ErrorKind::HttpRequestDenied, "a CONNECT inside a tunnel is not served"))
    } else if authority.port_u16().is_none() {
        Err(Error::client(ErrorKind::HttpRequestError, "a CONNECT needs a port in its :authority"))
    } else {
        // After the 200 nobody could be told any more that there is no endpoint.
        client
            .find(&directory, &authority, 443, std::time::Instant::now())
            .await
            .and_then(|found| outbound::check_usable(&found).map(|()| found))
    };
    drop(directory);
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            outbound::connect_refused(&client.worker, &authority, &error);
            return answer_error(&mut down, &error, false, HeaderMap::new(), std::time::Duration::from_secs(10)).await;
        }
    };
    let Ok(SendStream::H2(send)) = down.tunnel(StatusCode::OK, HeaderMap::new()) else {
        return;
    };
    let stream = Stream::Boxed(Box::new(H2Io { send, recv, left: Bytes::new() }));
    tunnel(client, authority, found, BufferedIo::new(stream, BytesMut::new())).await;
}

#[cfg(test)]
mod tests {
    #[test]
    fn websocket_keys_are_sixteen_bytes_of_canonical_base64() {
        for _ in 0..100 {
            let key = super::websocket_key();
            let key = key.to_str().unwrap();
            assert_eq!(key.len(), 24);
            assert!(key.ends_with("==") && b"AQgw".contains(&key.as_bytes()[21]), "{key}");
        }
    }
}
