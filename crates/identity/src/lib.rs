//! Link security: who is at the other end of a link. This crate implements the model's `LinkTransport`; nothing outside
//! of it knows whether a link is encrypted.
//! [`Plain`] (`--tls off`) has bytes in the clear and tells the peer by its address alone.

mod backend;
mod certificates;
mod files;
pub mod kube;
mod material;
mod metrics;
mod roots;
mod spiffe;
#[cfg(test)]
mod test_ca;
mod tls;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use posthouse_model::directory::{Directory, Peer, Service};
use posthouse_model::transport::{BoxIo, Connecting, LinkTransport, PeerIdentity};
use rustls::crypto::CryptoProvider;
use tokio::net::{TcpSocket, TcpStream};

pub use backend::Backends;
pub use certificates::{CertificateState, Certificates, Current, Rejected, State};
pub use files::{Files, FilesError};
pub use material::{Material, MaterialError, Part, Pem, Problem};
pub use metrics::METRICS;
pub use roots::{Root, Verdict, rfc3339};
pub use spiffe::{NameError, SpiffeId, TrustDomain};
pub use tls::{Options, Tls};

/// The cryptography of every link: AWS-LC, X25519MLKEM768 preferred.
fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
}

/// Links without TLS. The peer is who its address says, so this is for trusted networks, development and the demo.
#[derive(Clone, Debug)]
pub struct Plain {
    /// The address that links are dialled from; the receiver tells our node by it.
    source: IpAddr,
    connect_timeout: Duration,
}

impl Plain {
    /// Dials from `source`, the node's own address, within `connect_timeout`.
    #[must_use]
    pub fn new(source: IpAddr, connect_timeout: Duration) -> Self {
        Self { source, connect_timeout }
    }

    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if self.source.is_ipv4() == address.is_ipv4() && !self.source.is_unspecified() {
            socket.bind(SocketAddr::new(self.source, 0))?;
        }
        socket.set_nodelay(true)?;
        let stream = tokio::time::timeout(self.connect_timeout, socket.connect(address))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection to {address} in time")))??;
        Ok(stream)
    }
}

impl LinkTransport for Plain {
    fn connect<'a>(&'a self, peer: &'a Peer, _service: Option<&'a Service>) -> Connecting<'a, BoxIo> {
        Box::pin(async { Ok(Box::new(self.dial(peer.address).await?) as BoxIo) })
    }

    fn accept<'a>(
        &'a self,
        stream: TcpStream,
        remote: SocketAddr,
        directory: &'a Directory,
    ) -> Connecting<'a, (PeerIdentity, BoxIo)> {
        Box::pin(async move {
            let node = node_of(remote.ip().to_canonical(), directory).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    format!(
                        "{} is no node's address and no peer's: only proxies of this cluster may link",
                        remote.ip()
                    ),
                )
            })?;
            stream.set_nodelay(true)?;
            Ok((PeerIdentity::unauthenticated(node), Box::new(stream) as BoxIo))
        })
    }
}

/// The node that an address belongs to: a Node object's address or, where Nodes are not known, a peer's link address.
fn node_of(ip: IpAddr, directory: &Directory) -> Option<std::sync::Arc<str>> {
    directory.node_by_ip(ip).map(|node| std::sync::Arc::clone(&node.name)).or_else(|| {
        directory.peers().find(|peer| peer.address.ip() == ip).map(|peer| std::sync::Arc::clone(&peer.node))
    })
}

#[cfg(test)]
mod tests;
