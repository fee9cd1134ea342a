//! One request like curl's, for containers that hold no other program: HTTP through the proxy or inside a CONNECT tunnel, a
//! WebSocket, or a line of text over bare TCP. Each answer is one JSON object.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::client::{Failure, Protocol, Sender, connect, in_one_line};
use crate::proxies::Proxies;
use crate::target::{Form, Target};
use crate::{millis, unix_seconds};

/// What to ask.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is asked for, `http://…`.
    pub url: Uri,
    /// The way to it.
    pub proxies: Proxies,
    /// The local address to ask from.
    pub local: Option<IpAddr>,
    /// Ask for a tunnel to here and do the rest inside of it.
    pub connect: Option<Authority>,
    /// What to do on the connection or in the tunnel.
    pub task: Task,
    /// No answer after this time is an error.
    pub timeout: Duration,
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Task {
    /// A request.
    Http {
        /// HTTP/1.1, or HTTP/2 with prior knowledge.
        protocol: Protocol,
        /// GET, POST and so on.
        method: Method,
        /// Beside Host.
        headers: HeaderMap,
        /// Sent with the request.
        body: Bytes,
    },
    /// Read a line, send this one, read the line that comes back.
    Line(String),
    /// Upgrade, send this text, read the message that comes back.
    WebSocket(String),
}

/// What came back; what did not apply is left out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Answer {
    /// When it was asked for, in seconds since 1970.
    pub time: f64,
    /// Until the answer was complete.
    pub took_ms: f64,
    /// Of the answer, or of a tunnel's refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// By name in lower case; several values are joined by commas.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// As text; bytes that are none are replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// What followed the body.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub trailers: BTreeMap<String, String>,
    /// What the server said before it was spoken to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
    /// What came back of the line or message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub echo: Option<String>,
    /// Why the answer is missing or incomplete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Asks, and keeps an HTTP connection for the next time.
pub struct Client {
    plan: Plan,
    target: Target,
    kept: Option<Sender>,
}

/// A way to the server: the connection itself or a tunnel through the proxy, or the proxy's refusal of one.
enum Way {
    Straight(TcpStream),
    Tunnel(Upgraded),
    Refused(Response<Incoming>),
}

impl Client {
    /// Finds out whom to connect to.
    ///
    /// # Errors
    /// When the URL or the authority of the tunnel has no host, or no address can be found.
    pub async fn new(plan: Plan) -> Result<Self, Failure> {
        let target = match &plan.connect {
            Some(authority) => {
                let port = authority.port_u16().ok_or_else(|| format!("'{authority}' has no port"))?;
                // Without a proxy for it, the tunnel is a plain connection.
                Target::at(&plan.url, authority.host(), port, &plan.proxies).await?
            }
            None => Target::of(&plan.url, &plan.proxies).await?,
        };
        Ok(Self { plan, target, kept: None })
    }

    /// Forgets the kept connection.
    pub fn forget(&mut self) {
        self.kept = None;
    }

    /// Asks once.
    pub async fn ask(&mut self) -> Answer {
        let mut answer = Answer { time: unix_seconds(SystemTime::now()), ..Answer::default() };
        let begun = Instant::now();
        let limit = self.plan.timeout;
        let error = match timeout(limit, self.try_ask(&mut answer)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(in_one_line(&*error)),
            Err(_) => Some(format!("no answer within {} s", limit.as_secs_f64())),
        };
        answer.took_ms = millis(begun.elapsed());
        answer.error = error;
        answer
    }

    async fn try_ask(&mut self, answer: &mut Answer) -> Result<(), Failure> {
        match self.plan.task.clone() {
            Task::Http { protocol, method, headers, body } => {
                let Some(mut sender) = self.sender(protocol, answer).await? else { return Ok(()) };
                let form = if protocol == Protocol::Http2 { Form::Absolute } else { self.inner_form() };
                let mut request = self.target.request(form, method, headers, body)?;
                if protocol == Protocol::Http2 {
                    // The authority says it; both would be one too many.
                    request.headers_mut().remove(HOST);
                }
                let response = sender.try_send(request).await.map_err(|error| error.into_error())?;
                answer.read(response).await?;
                self.kept = Some(sender);
                Ok(())
            }
            Task::Line(line) => match self.way().await? {
                Way::Straight(stream) => answer.talk(stream, &line).await,
                Way::Tunnel(tunnel) => answer.talk(TokioIo::new(tunnel), &line).await,
                Way::Refused(refusal) => answer.read(refusal).await,
            },
            Task::WebSocket(text) => {
                let Some(mut sender) = self.sender(Protocol::Http1, answer).await? else { return Ok(()) };
                let key = generate_key();
                let mut headers = HeaderMap::new();
                headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
                headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key)?);
                let request = self.target.request(self.inner_form(), Method::GET, headers, Bytes::new())?;
                let response = sender.try_send(request).await.map_err(|error| error.into_error())?;
                answer.converse(response, &key, text).await
            }
        }
    }

    /// The kept connection while it is good, else a new one. `None` when there is no tunnel for it: the refusal is the answer.
    async fn sender(&mut self, protocol: Protocol, answer: &mut Answer) -> Result<Option<Sender>, Failure> {
        if let Some(mut kept) = self.kept.take()
            && kept.is_ready().await
        {
            return Ok(Some(kept));
        }
        match self.way().await? {
            Way::Straight(stream) => Ok(Some(Sender::open(TokioIo::new(stream), protocol).await?)),
            Way::Tunnel(tunnel) => Ok(Some(Sender::open(tunnel, protocol).await?)),
            Way::Refused(refusal) => answer.read(refusal).await.map(|()| None),
        }
    }

    /// How the requests on the way are written: inside of a tunnel as for the server itself.
    fn inner_form(&self) -> Form {
        if self.plan.connect.is_some() { Form::Origin } else { self.target.form }
    }

    async fn way(&self) -> Result<Way, Failure> {
        let stream = connect(self.plan.local, self.target.address).await?;
        let Some(authority) = self.plan.connect.as_ref().filter(|_| self.target.form == Form::Absolute) else {
            return Ok(Way::Straight(stream));
        };
        let mut request = Request::new(Full::default());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = authority.clone().into();
        request.headers_mut().insert(HOST, HeaderValue::from_str(authority.as_str())?);
        let mut sender = Sender::open(TokioIo::new(stream), Protocol::Http1).await?;
        let response = sender.try_send(request).await.map_err(|error| error.into_error())?;
        if response.status().is_success() {
            return Ok(Way::Tunnel(hyper::upgrade::on(response).await?));
        }
        Ok(Way::Refused(response))
    }
}

impl Answer {
    /// Whether a server or a proxy answered at all, whatever it said.
    #[must_use]
    pub fn came(&self) -> bool {
        self.error.is_none()
    }

    fn read_head(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status = Some(status.as_u16());
        self.headers = as_text(headers);
    }

    async fn read(&mut self, response: Response<Incoming>) -> Result<(), Failure> {
        let (head, mut body) = response.into_parts();
        self.read_head(head.status, &head.headers);
        let mut bytes = Vec::new();
        let mut outcome = Ok(());
        while let Some(frame) = body.frame().await {
            match frame.map(http_body::Frame::into_data) {
                Ok(Ok(data)) => bytes.extend_from_slice(&data),
                Ok(Err(frame)) => self.trailers = frame.trailers_ref().map(as_text).unwrap_or_default(),
                Err(error) => {
                    outcome = Err(error.into());
                    break;
                }
            }
        }
        // What came before a break is shown, too.
        self.body = Some(String::from_utf8_lossy(&bytes).into_owned());
        outcome
    }

    async fn talk(&mut self, io: impl AsyncRead + AsyncWrite + Unpin, line: &str) -> Result<(), Failure> {
        let mut io = BufReader::new(io);
        let mut read = String::new();
        io.read_line(&mut read).await?;
        self.first = Some(read.trim_end().to_owned());
        io.write_all(format!("{line}\n").as_bytes()).await?;
        io.flush().await?;
        let mut read = String::new();
        if io.read_line(&mut read).await? == 0 {
            return Err("the connection was closed before the line came back".into());
        }
        self.echo = Some(read.trim_end().to_owned());
        io.shutdown().await?;
        Ok(())
    }

    async fn converse(&mut self, response: Response<Incoming>, key: &str, text: String) -> Result<(), Failure> {
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return self.read(response).await;
        }
        self.read_head(response.status(), response.headers());
        let accept = response.headers().get(SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
        if accept != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
            return Err("Sec-WebSocket-Accept does not belong to the key".into());
        }
        let io = TokioIo::new(hyper::upgrade::on(response).await?);
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
        socket.send(Message::text(text)).await?;
        let message = socket.next().await.ok_or("the WebSocket was closed before the message came back")??;
        self.echo = Some(message.into_text()?.to_string());
        // Until the server has closed its side, too.
        socket.close(None).await?;
        while let Some(Ok(_)) = socket.next().await {}
        Ok(())
    }
}

fn as_text(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut by_name = BTreeMap::<String, String>::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        let known = by_name.entry(name.to_string()).or_default();
        if !known.is_empty() {
            known.push_str(", ");
        }
        known.push_str(&value);
    }
    by_name
}
