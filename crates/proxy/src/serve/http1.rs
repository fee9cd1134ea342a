//! The loop of an HTTP/1 connection on the outbound port: read a head, handle the request, read the next one. Whatever is
//! malformed or ambiguous is answered and the connection closed; nothing behind it is ever parsed.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use metrics::counter;

use crate::body::{Body, BodyOf, H1Body};
use crate::client::Client;
use crate::downstream::H1Downstream;
use crate::error::{Error, ErrorKind};
use crate::exchange::{Request, Response, TunnelEnd, answer_error};
use crate::h1::{self, BodyLength, HeadError, HeadScan, RequestHead};
use crate::idle::IdleTimer;
use crate::metrics::{Direction, TUNNELS, failed_without_service, limit_reached};
use crate::outbound::{self, Handled};
use crate::serve::{close_politely, tunnel};
use crate::stream::{BufferedIo, SharedIo};
use crate::tunnel::{TUNNEL_IDLE, TunnelEndedBy, splice};

/// Serves requests until the connection ends.
pub(crate) async fn serve(client: Rc<Client>, io: SharedIo) {
    let timeouts = client.worker.proxy.config.timeouts;
    let mut waiting = IdleTimer::new(timeouts.client_idle);
    let mut exchange = IdleTimer::new(timeouts.stream_idle);
    loop {
        let head = match read_head(&client, &io, &mut waiting).await {
            Read::Head(head) => *head,
            Read::Closed => return,
            Read::Bad(error) => return refuse(&client, &io, &error).await,
        };
        if head.method == Method::CONNECT {
            return connect(client, io, head).await;
        }
        let body = match head.body {
            BodyLength::None | BodyLength::Length(0) => Body::Empty,
            length => Body::H1(H1Body::new(Rc::clone(&io), length, BodyOf::Request, None)),
        };
        let drain = || Rc::clone(&client.worker.drain);
        // Only a GET without a body is upgraded; what else asks for it is served without.
        let upgrade = head.upgrade.filter(|_| head.method == Method::GET && body.is_end());
        // After a refused upgrade the client may have sent bytes of the other protocol already, so the connection ends.
        let keep_alive = head.keep_alive && upgrade.is_none();
        let mut down = H1Downstream::new(Rc::clone(&io), &head.method, head.http10, keep_alive, drain());
        let mut request = Request {
            method: head.method,
            path: head.path,
            authority: head.authority,
            https: head.https,
            headers: head.headers,
            body,
            upgrade,
            h2: false,
        };
        match outbound::handle(&client, &mut request, &mut down, &mut exchange).await {
            // Dropped as it is: a close in good order would make a broken answer look complete.
            Handled::Done if down.aborted => return,
            Handled::Done => {
                // While draining, too, a connection whose client was not told yet is read from: its next answer tells.
                if !down.keep_alive || io.borrow().body_open {
                    return close_politely(&io).await;
                }
            }
            Handled::Switched(response, underway) => {
                // For hours, maybe, and the client chose its size.
                drop(request);
                upgraded(io, *response).await;
                drop(underway);
                return;
            }
        }
    }
}

enum Read {
    Head(Box<RequestHead>),
    Closed,
    Bad(Error),
}

/// The next request's head. Its time limit runs from its first byte; before that only the idle limit does.
async fn read_head(client: &Client, io: &SharedIo, waiting: &mut IdleTimer) -> Read {
    let timeouts = client.worker.proxy.config.timeouts;
    let mut scan = HeadScan::default();
    waiting.set_limit(timeouts.client_idle);
    io.borrow_mut().shrink();
    let mut begun = false;
    let mut drained = pin!(client.worker.drain.idle_ends());
    poll_fn(|cx| {
        loop {
            let mut io = io.borrow_mut();
            if !io.rbuf.is_empty() {
                match h1::parse_request(&mut io.rbuf, &mut scan) {
                    Ok(Some(head)) => return Poll::Ready(Read::Head(Box::new(head))),
                    Ok(None) => {}
                    Err(error) => return Poll::Ready(Read::Bad(head_error(&error))),
                }
                if !begun {
                    begun = true;
                    waiting.set_limit(timeouts.request_header);
                }
            }
            match io.poll_fill(cx, 0) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Read::Closed),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        if !begun && drained.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Read::Closed);
        }
        waiting.poll_expired(cx).map(|()| {
            if begun {
                limit_reached("header_timeout");
                Read::Bad(Error {
                    status: Some(StatusCode::REQUEST_TIMEOUT),
                    ..Error::client(ErrorKind::HttpRequestError, "the request's head did not arrive in time")
                })
            } else {
                limit_reached("client_idle");
                Read::Closed
            }
        })
    })
    .await
}

fn head_error(error: &HeadError) -> Error {
    Error { status: Some(error.status()), ..Error::client(ErrorKind::HttpRequestError, error.to_string()) }
}

/// Answers a request that was not understood and closes.
async fn refuse(client: &Client, io: &SharedIo, error: &Error) {
    failed_without_service(Direction::Outbound, error.kind);
    let mut down = H1Downstream::new(Rc::clone(io), &Method::GET, false, false, Rc::clone(&client.worker.drain));
    answer_error(&mut down, error, false, HeaderMap::new(), Duration::from_secs(1)).await;
    close_politely(io).await;
}

/// Answers a CONNECT and serves what is inside.
async fn connect(client: Rc<Client>, io: SharedIo, head: RequestHead) {
    let directory = client.worker.proxy.directory.load_full();
    let refused = if client.tunnel.is_some() {
        Err(Error::client(ErrorKind::HttpRequestDenied, "a CONNECT inside a tunnel is not served"))
    } else {
        // After the 200 nobody could be told any more that there is no endpoint.
        client
            .find(&directory, &head.authority, 443, std::time::Instant::now())
            .await
            .and_then(|found| outbound::check_usable(&found).map(|()| found))
    };
    drop(directory);
    let found = match refused {
        Ok(found) => found,
        Err(error) => {
            outbound::connect_refused(&client.worker, &head.authority, &error);
            // Bytes that the client sent early are of the tunnel's protocol and must never be read as a request.
            let mut down =
                H1Downstream::new(Rc::clone(&io), &Method::GET, head.http10, false, Rc::clone(&client.worker.drain));
            answer_error(&mut down, &error, false, HeaderMap::new(), Duration::from_secs(1)).await;
            return close_politely(&io).await;
        }
    };
    // No fields: neither a length nor a coding may stand in an answer to CONNECT (RFC 9110 §9.3.6).
    io.borrow_mut().wbuf.extend_from_slice(b"HTTP/1.1 200 Connection established\r\n\r\n");
    if poll_fn(|cx| io.borrow_mut().poll_flush(cx)).await.is_err() {
        return;
    }
    let Some(io) = own(io) else { return };
    tunnel(client, head.authority, found, io).await;
}

/// Takes a connection out of its shared form once nobody else holds it.
fn own(io: SharedIo) -> Option<BufferedIo> {
    Rc::try_unwrap(io).ok().map(std::cell::RefCell::into_inner)
}

/// Answers 101 and carries bytes until both sides are done.
async fn upgraded(io: SharedIo, response: Response) {
    let Some(end) = response.tunnel else { return };
    counter!(TUNNELS, "kind" => "upgrade").increment(1);
    h1::write_response_head(
        &mut io.borrow_mut().wbuf,
        StatusCode::SWITCHING_PROTOCOLS,
        &response.headers,
        BodyLength::None,
        true,
        false,
        response.upgrade.as_ref(),
    );
    if poll_fn(|cx| io.borrow_mut().poll_flush(cx)).await.is_err() {
        return;
    }
    let near = TunnelEnd::Io { io, open: crate::metrics::OpenGauge::tunnel(), revoked: None };
    if splice(near, end, TUNNEL_IDLE).await == TunnelEndedBy::Idle {
        limit_reached("tunnel_idle");
    }
}
