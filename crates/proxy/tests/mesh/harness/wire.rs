//! One end of a TCP connection as bytes, with just enough of HTTP/1.1 to read a message: an independent, lenient reader,
//! so that what the proxy writes is judged by somebody else.

use std::net::{IpAddr, SocketAddr};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::within;

pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    pub(crate) buf: BytesMut,
}

/// The start line and the fields of a message, names in lower case.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) line: String,
    pub(crate) fields: Vec<(String, String)>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
}

impl Head {
    /// The value of a field that must be there once.
    #[track_caller]
    pub(crate) fn field(&self, name: &str) -> &str {
        let values = self.all(name);
        assert_eq!(values.len(), 1, "field {name} once in {self:?}");
        values[0]
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    }

    /// The fields' names in order of the alphabet.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.fields.iter().map(|(n, _)| n.as_str()).collect();
        names.sort_unstable();
        names
    }
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Asserts that it is an error of the proxy itself.
    #[track_caller]
    pub(crate) fn is_error(&self, status: u16, token: &str) {
        assert_eq!(self.status, status, "{self:?}");
        let start = format!("posthouse; error={token};");
        assert!(self.head.field("proxy-status").starts_with(&start), "{self:?}");
        assert!(self.text().contains(token), "{self:?}");
    }
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, buf: BytesMut::new() }
    }

    /// From 127.0.0.1, which the proxies take for the node itself.
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        Self::new(within("a connection", TcpStream::connect(to)).await.unwrap())
    }

    /// From an address of its own.
    pub(crate) async fn connect_from(from: IpAddr, to: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from, 0)).unwrap();
        Self::new(within("a connection", socket.connect(to)).await.unwrap())
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("bytes to be taken", self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Sends while what comes is read into the buffer, so that an echo does not block both ways.
    pub(crate) async fn pour(&mut self, bytes: &[u8]) {
        let (mut read, mut write) = self.stream.split();
        let buf = &mut self.buf;
        within("bytes to be taken", async {
            let mut writing = std::pin::pin!(write.write_all(bytes));
            loop {
                tokio::select! {
                    done = &mut writing => break done.unwrap(),
                    read = read.read_buf(buf) => assert!(matches!(read, Ok(1..)), "ended while sending"),
                }
            }
        })
        .await;
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }

    /// Ends this side's bytes; the other side's still come.
    pub(crate) async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    async fn fill(&mut self) -> std::io::Result<usize> {
        self.stream.read_buf(&mut self.buf).await
    }

    /// The next head; fails when the connection ends before.
    pub(crate) async fn head(&mut self) -> Head {
        match self.try_head().await {
            Some(head) => head,
            None => panic!("the connection ended before a head; so far: {:?}", self.buf),
        }
    }

    /// The next head, `None` when the connection ends before.
    pub(crate) async fn try_head(&mut self) -> Option<Head> {
        within("a message's head", async {
            loop {
                if let Some(end) = find(&self.buf, b"\r\n\r\n") {
                    let bytes = self.buf.split_to(end + 4);
                    return Some(read_head(&bytes[..end]));
                }
                if !matches!(self.fill().await, Ok(1..)) {
                    return None;
                }
            }
        })
        .await
    }

    /// Exactly `n` bytes.
    pub(crate) async fn exactly(&mut self, n: usize) -> Vec<u8> {
        match self.try_exactly(n).await {
            Some(bytes) => bytes,
            None => panic!("the connection ended after {} of {n} bytes", self.buf.len()),
        }
    }

    /// Exactly `n` bytes, `None` when the connection ends before.
    pub(crate) async fn try_exactly(&mut self, n: usize) -> Option<Vec<u8>> {
        within("more bytes", async {
            while self.buf.len() < n {
                if !matches!(self.fill().await, Ok(1..)) {
                    return None;
                }
            }
            Some(self.buf.split_to(n).to_vec())
        })
        .await
    }

    async fn line(&mut self) -> String {
        within("a line", async {
            loop {
                if let Some(end) = find(&self.buf, b"\r\n") {
                    let line = String::from_utf8(self.buf.split_to(end).to_vec()).unwrap();
                    self.buf.advance(2);
                    return line;
                }
                assert!(matches!(self.fill().await, Ok(1..)), "ended in a line: {:?}", self.buf);
            }
        })
        .await
    }

    /// Everything until the connection ends, in order or not.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        within("the connection's end", async { while matches!(self.fill().await, Ok(1..)) {} }).await;
        self.buf.split().to_vec()
    }

    /// Asserts that the connection ends and nothing comes before.
    pub(crate) async fn ended(&mut self) {
        let rest = self.rest().await;
        assert!(rest.is_empty(), "came before the end: {:?}", String::from_utf8_lossy(&rest));
    }

    /// The body that follows `head`, and its trailers.
    pub(crate) async fn body(&mut self, head: &Head) -> (Vec<u8>, Vec<(String, String)>) {
        if head.all("transfer-encoding") == ["chunked"] {
            return self.chunks().await;
        }
        match head.all("content-length").first() {
            Some(length) => (self.exactly(length.parse().unwrap()).await, Vec::new()),
            None if head.line.starts_with("HTTP/") => (self.rest().await, Vec::new()),
            None => (Vec::new(), Vec::new()),
        }
    }

    async fn chunks(&mut self) -> (Vec<u8>, Vec<(String, String)>) {
        let mut body = Vec::new();
        loop {
            let size = self.line().await;
            let size = usize::from_str_radix(&size, 16).unwrap_or_else(|_| panic!("chunk size {size:?}"));
            if size == 0 {
                break;
            }
            body.extend(self.exactly(size).await);
            assert_eq!(self.line().await, "", "after a chunk's data");
        }
        let mut trailers = Vec::new();
        loop {
            let line = self.line().await;
            if line.is_empty() {
                return (body, trailers);
            }
            trailers.push(read_field(&line));
        }
    }

    /// The next answer to a request that is not HEAD; interim ones are answers, too.
    pub(crate) async fn answer(&mut self) -> Answer {
        let head = self.head().await;
        let status = status(&head);
        let bodiless = matches!(status, 100..200 | 204 | 304);
        let (body, trailers) = if bodiless { Default::default() } else { self.body(&head).await };
        Answer { status, head, body, trailers }
    }

    /// The next request with its body, `None` when the connection ends before.
    pub(crate) async fn request(&mut self) -> Option<(Head, Vec<u8>)> {
        let head = self.try_head().await?;
        let (body, _) = self.body(&head).await;
        Some((head, body))
    }

    /// Sends a request and reads its answer.
    pub(crate) async fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        self.send(request).await;
        self.answer().await
    }

    /// `GET path` for `host` in absolute-form.
    pub(crate) async fn get(&mut self, host: &str, path: &str) -> Answer {
        self.ask(format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await
    }
}

fn status(head: &Head) -> u16 {
    let status = head.line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.split(' ').next());
    status.and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("no status line: {head:?}"))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, what)
}

fn read_head(bytes: &[u8]) -> Head {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let mut lines = text.split("\r\n");
    let line = lines.next().unwrap_or_default().to_owned();
    Head { line, fields: lines.map(read_field).collect() }
}

fn read_field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no field: {line:?}"));
    (name.to_ascii_lowercase(), value.trim().to_owned())
}
