//! An HTTP/2 client with prior knowledge on the h2 crate, where streams, windows and resets are in the test's hands.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

use super::{Wire, within};

pub(crate) struct H2 {
    sender: SendRequest<Bytes>,
    /// Ends with the connection.
    pub(crate) connection: JoinHandle<Result<(), h2::Error>>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn field(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}")).to_str().unwrap()
    }
}

impl Drop for H2 {
    fn drop(&mut self) {
        // Whatever streams are still held: a client that is gone.
        self.connection.abort();
    }
}

impl H2 {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        Self::over(Wire::connect(to).await.stream).await
    }

    pub(crate) async fn connect_from(from: IpAddr, to: SocketAddr) -> Self {
        Self::over(Wire::connect_from(from, to).await.stream).await
    }

    /// Over any bytes, such as the inside of a tunnel.
    pub(crate) async fn over<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(io: T) -> Self {
        let (sender, connection) = within("an HTTP/2 handshake", h2::client::handshake(io)).await.unwrap();
        Self { sender, connection: tokio::spawn(connection) }
    }

    /// A handle for another stream at the same time.
    pub(crate) fn sender(&self) -> SendRequest<Bytes> {
        self.sender.clone()
    }

    /// Opens a stream; `end` when there is no body.
    pub(crate) async fn open(
        &self,
        request: Request<()>,
        end: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut sender = within("room for a stream", self.sender().ready()).await?;
        sender.send_request(request, end)
    }

    /// Waits until the server said that it takes extended CONNECTs, which its SETTINGS do.
    pub(crate) async fn takes_extended_connect(&self) {
        super::eventually("the server's SETTINGS", || self.sender.is_extended_connect_protocol_enabled()).await;
    }

    /// Sends a request with its body and reads the whole answer.
    pub(crate) async fn call(&self, request: Request<()>, body: &[u8]) -> Result<Reply, h2::Error> {
        let (response, mut send) = self.open(request, body.is_empty()).await?;
        let body = Bytes::copy_from_slice(body);
        // Side by side, since an echo fills the windows of both ways.
        let sending = async {
            if !body.is_empty() {
                // The answer, if any, says why it was not taken.
                let _ = send_all(&mut send, body, true).await;
            }
        };
        within("an HTTP/2 answer", async { tokio::join!(sending, Self::reply(response)).1 }).await
    }

    /// Reads a whole answer.
    pub(crate) async fn reply(response: ResponseFuture) -> Result<Reply, h2::Error> {
        within("an HTTP/2 answer", async {
            let (parts, mut recv) = response.await?.into_parts();
            let body = read_body(&mut recv).await?;
            let trailers = recv.trailers().await?;
            Ok(Reply { status: parts.status, headers: parts.headers, body, trailers })
        })
        .await
    }

    pub(crate) async fn get(&self, uri: &str) -> Result<Reply, h2::Error> {
        self.call(Request::get(uri).body(()).unwrap(), b"").await
    }
}

/// Reads to the end of the data, giving the windows back.
pub(crate) async fn read_body(recv: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut body = Vec::new();
    while let Some(data) = recv.data().await {
        let data = data?;
        recv.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    Ok(body)
}

/// Sends all of `data` as the windows allow.
pub(crate) async fn send_all(send: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), h2::Error> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let room = match poll_fn(|cx| send.poll_capacity(cx)).await {
            Some(room) => room?,
            None => return Err(h2::Reason::CANCEL.into()),
        };
        let part = data.split_to(room.min(data.len()));
        send.send_data(part, end && data.is_empty())?;
    }
    Ok(())
}
