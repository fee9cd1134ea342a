//! The seam between the link and its security. The link's code dials and accepts only through [`LinkTransport`]; its
//! implementations (crate `identity`) are the only places that know whether there is TLS.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::directory::{Directory, Peer};

/// A byte stream in both directions, plain or secured.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A byte stream whose kind no longer matters.
pub type BoxIo = Box<dyn Io>;

/// A boxed future: connecting is rare, so its allocation does not count.
pub type Connecting<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// Who is at the other end of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The node that the peer speaks for.
    pub node: Arc<str>,
    /// Whether a certificate proved it; with TLS off it is only told by the peer's address.
    pub authenticated: bool,
}

/// Makes and takes links. Implementations bound their own time (connect, handshake).
pub trait LinkTransport: Send + Sync {
    /// Dials `peer`. Fails when the other end is not that node.
    fn connect<'a>(&'a self, peer: &'a Peer) -> Connecting<'a, BoxIo>;

    /// Takes an accepted connection and says which node is at its other end; refuses strangers with
    /// [`io::ErrorKind::PermissionDenied`].
    fn accept<'a>(
        &'a self,
        stream: TcpStream,
        remote: SocketAddr,
        directory: &'a Directory,
    ) -> Connecting<'a, (PeerIdentity, BoxIo)>;
}
