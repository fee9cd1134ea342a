//! The seam between the link and its security. The link's code dials and accepts only through [`LinkTransport`]; its
//! implementations (crate `identity`) are the only places that know whether there is TLS.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::directory::{BackendTls, Directory, Peer, Service, ServiceKey};

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
    /// The Service that the peer asked for by name, proven to it by that Service's own certificate: this link's streams go to
    /// no other.
    pub service: Option<ServiceKey>,
    /// When the peer's certificate ends: no new stream is taken after that.
    pub expires: Option<SystemTime>,
}

impl PeerIdentity {
    /// A peer of which nothing is known but its node.
    #[must_use]
    pub fn unauthenticated(node: Arc<str>) -> Self {
        Self { node, authenticated: false, service: None, expires: None }
    }
}

/// Makes TLS to pods whose Service asks for it.
pub trait PodTls: Send + Sync {
    /// Shakes hands on a connection to a pod, agreeing on `protocol` (ALPN). Bounds its own time. What is wrong with the pod's
    /// certificate or with what it shall be verified by comes as [`io::ErrorKind::InvalidData`].
    fn connect<'a>(
        &'a self,
        stream: TcpStream,
        backend: &'a Arc<BackendTls>,
        protocol: &'static [u8],
    ) -> Connecting<'a, BoxIo>;
}

/// Makes and takes links. Implementations bound their own time (connect, handshake).
pub trait LinkTransport: Send + Sync {
    /// Dials `peer`. Fails when the other end is not that node or, with a `service` that has a certificate of its own, when it
    /// does not prove to be that Service.
    fn connect<'a>(&'a self, peer: &'a Peer, service: Option<&'a Service>) -> Connecting<'a, BoxIo>;

    /// Takes an accepted connection and says which node is at its other end; refuses strangers with
    /// [`io::ErrorKind::PermissionDenied`].
    fn accept<'a>(
        &'a self,
        stream: TcpStream,
        remote: SocketAddr,
        directory: &'a Directory,
    ) -> Connecting<'a, (PeerIdentity, BoxIo)>;

    /// Moves when links are secured by other certificates than before (a renewal, a new root): links that were made in an
    /// earlier epoch get no new streams.
    fn epoch(&self) -> u64 {
        0
    }
}
