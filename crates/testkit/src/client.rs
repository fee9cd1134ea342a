//! One kept-alive HTTP connection as a plain client has it: opened at the first request, opened anew when it has ended,
//! from a given local address, so that a test can be any pod of the demo.

use std::io;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::response::Parts;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// The longest answer to CONNECT that is read.
const MAX_CONNECT_ANSWER: usize = 8 * 1024;

/// What the connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// Why a request has no answer.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A connection that is opened when needed.
pub struct Connection {
    local: Option<IpAddr>,
    to: SocketAddr,
    protocol: Protocol,
    sender: Option<Sender>,
}

/// The sending end of an open connection; the connection's task ends with it.
pub(crate) enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

type TrySend<T> = Result<T, TrySendError<Request<Full<Bytes>>>>;

impl Connection {
    /// Will connect to `to`, from the address `local` when one is given.
    #[must_use]
    pub fn new(local: Option<IpAddr>, to: SocketAddr, protocol: Protocol) -> Self {
        Self { local, to, protocol, sender: None }
    }

    /// Sends `request` as it is (absolute form for a proxy, origin form with Host for a server) and reads the whole
    /// answer. When a kept-alive connection turns out to have ended before the request went out, the request goes to a
    /// fresh one, as every client's pool does; it is never sent twice.
    ///
    /// # Errors
    /// No connection, or it broke before the end of the answer.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<(Parts, Bytes), Failure> {
        let kept = self.sender.take();
        let reused = kept.is_some();
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.open().await?,
        };
        let response = match sender.try_send(request).await {
            Ok(response) => response,
            Err(mut refused) => match refused.take_message() {
                Some(request) if reused => {
                    sender = self.open().await?;
                    sender.try_send(request).await.map_err(|error| error.into_error())?
                }
                _ => return Err(refused.into_error().into()),
            },
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        self.sender = Some(sender);
        Ok((head, body))
    }

    async fn open(&self) -> Result<Sender, Failure> {
        let io = TokioIo::new(connect(self.local, self.to).await?);
        Ok(Sender::open(io, self.protocol).await?)
    }
}

impl Sender {
    /// Begins to speak `protocol` over `io`.
    pub(crate) async fn open<I>(io: I, protocol: Protocol) -> hyper::Result<Self>
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        match protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(io).await?;
                tokio::spawn(connection.with_upgrades());
                Ok(Self::Http1(sender))
            }
            Protocol::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                Ok(Self::Http2(sender))
            }
        }
    }

    /// Whether another request can be sent: not once the other side has ended the connection.
    pub(crate) async fn is_ready(&mut self) -> bool {
        match self {
            Self::Http1(sender) => sender.ready().await.is_ok(),
            Self::Http2(sender) => sender.ready().await.is_ok(),
        }
    }

    pub(crate) async fn try_send(&mut self, request: Request<Full<Bytes>>) -> TrySend<Response<Incoming>> {
        // An ended connection is not ready, and then hands the request back unsent.
        let _ = self.is_ready().await;
        match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
        }
    }
}

/// Opens a TCP connection, from the address `local` when one is given.
///
/// # Errors
/// As the socket has it.
pub async fn connect(local: Option<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(local) = local {
        socket.bind(SocketAddr::new(local, 0))?;
    }
    socket.set_nodelay(true)?;
    socket.connect(to).await
}

/// Opens a tunnel to `authority` through the proxy at the other end of `stream` (RFC 9110 §9.3.6).
///
/// # Errors
/// The proxy's refusal, with its status line.
pub async fn tunnel(mut stream: TcpStream, authority: &str) -> io::Result<TcpStream> {
    let head = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::with_capacity(256);
    // Byte by byte: what follows the empty line belongs to the tunnel.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() == MAX_CONNECT_ANSWER {
            return Err(io::Error::other("the answer to CONNECT has no end"));
        }
        answer.push(stream.read_u8().await?);
    }
    let status_line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    if status_line.split(|byte| *byte == b' ').nth(1) == Some(b"200") {
        return Ok(stream);
    }
    let status_line = String::from_utf8_lossy(status_line).into_owned();
    Err(io::Error::other(format!("CONNECT {authority}: {status_line}")))
}

/// An error with all its causes in one line, as logs and summaries want it.
#[must_use]
pub fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        // Many libraries repeat their cause in their own words.
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = error.source();
    }
    line
}
