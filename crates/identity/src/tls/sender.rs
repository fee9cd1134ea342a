//! The sender's end: dials a peer, proves to be this node and has the peer prove to be the dialled node or, in mode `service`,
//! the Service that was asked for.

use std::io;
use std::sync::Arc;

use posthouse_model::directory::{Peer, Service};
use posthouse_model::transport::BoxIo;
use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::ServerName;
use tokio::io::AsyncBufReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::configs::{Configs, Expected};
use super::failure::{Failure, Reason};
use super::stream::{Noting, PlainLink};
use super::{ALPN, HANDSHAKE, Tls, count};
use crate::roots::SharedRoots;

pub(super) async fn connect(tls: &Tls, peer: &Peer, service: Option<&Service>) -> io::Result<BoxIo> {
    let service = service.filter(|service| tls.services.is_some() && service.tls.is_some());
    let stream = tls.plain.dial(peer.address).await?;
    let shaken = tokio::time::timeout(HANDSHAKE, handshake(tls, stream, peer, service)).await.unwrap_or_else(|_| {
        let text = format!("no TLS handshake with {} within {HANDSHAKE:?}", peer.address);
        Err(Refused::Failed(Failure::new(Reason::Timeout, text)))
    });
    match shaken {
        Ok((stream, kind)) => {
            count("out", Ok(kind));
            Ok(Box::new(stream))
        }
        Err(Refused::Failed(failure)) => {
            count("out", Err(failure.reason));
            Err(failure.into())
        }
        Err(Refused::NoTls) if tls.permissive => {
            count("out", Err(Reason::Plain));
            let stream = tls.plain.dial(peer.address).await?;
            tracing::debug!(peer = %peer.node, address = %peer.address, "the peer speaks no TLS: a plain link is made");
            Ok(Box::new(PlainLink::new(stream, "out")))
        }
        Err(Refused::NoTls) => {
            count("out", Err(Reason::Plain));
            Err(Failure::new(Reason::Plain, "the peer does not speak TLS on its link port; is it run with --tls off?")
                .into())
        }
    }
}

#[derive(Debug)]
pub(super) enum Refused {
    /// The peer closed at the ClientHello or answered with something else than TLS.
    NoTls,
    Failed(Failure),
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What a handshake is made with, and what it has to prove.
struct Plan {
    config: Arc<ClientConfig>,
    roots: SharedRoots,
    expected: Expected,
    name: ServerName<'static>,
}

impl Plan {
    fn new(tls: &Tls, configs: &Configs, peer: &Peer, service: Option<&Service>) -> Result<Self, Failure> {
        if let (Some(services), Some(service)) = (&tls.services, service) {
            let (config, roots) = services.client(service, configs, tls.now())?;
            let name = services.name_of(service);
            return Ok(Self { config, roots, expected: Expected::Service, name: server_name(name)? });
        }
        let material = &configs.current.material;
        Ok(Self {
            config: Arc::clone(&configs.client),
            roots: Arc::clone(&material.roots),
            expected: Expected::Node(material.id.trust_domain().clone()),
            name: server_name(peer.node.to_string())?,
        })
    }
}

fn server_name(name: String) -> Result<ServerName<'static>, Failure> {
    let text = format!("'{name}' is no DNS name: TLS cannot ask for it");
    ServerName::try_from(name).map_err(|_| Failure::new(Reason::Identity, text))
}

pub(super) async fn handshake(
    tls: &Tls,
    stream: TcpStream,
    peer: &Peer,
    service: Option<&Service>,
) -> Result<(TlsStream<Noting>, Option<HandshakeKind>), Refused> {
    let configs = tls.configs()?;
    let plan = Plan::new(tls, &configs, peer, service)?;
    let place = tls.outbound.place(peer.address.ip(), false)?;
    let _turn = place.turn().await?;
    let connecting = TlsConnector::from(Arc::clone(&plan.config)).connect(plan.name.clone(), Noting::new(stream));
    let mut stream = match connecting.into_fallible().await {
        Ok(stream) => stream,
        Err((_, io)) if !io.spoke_tls() => return Err(Refused::NoTls),
        Err((error, _)) => return Err(Failure::of(&error).into()),
    };
    judge(tls, &stream, &plan)?;
    let kind = stream.get_ref().1.handshake_kind();
    // In TLS 1.3 the client is done before the server has seen its certificate. The receiver's HTTP/2 speaks first, so what
    // comes next is its word or its refusal; better now than as a broken stream.
    match stream.fill_buf().await {
        Ok([_, ..]) => Ok((stream, kind)),
        Err(error) if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => {
            Err(Failure::of(&error).into())
        }
        // An end, or a reset: the peer was not to its liking, but nothing is wrong with the TLS.
        Ok([]) | Err(_) => {
            let text = "the peer closed the link after the handshake; its log says why";
            Err(Failure::new(Reason::PeerRefused, text).into())
        }
    }
}

/// After each handshake, resumed or not, by the roots and the clock of now.
fn judge(tls: &Tls, stream: &TlsStream<Noting>, plan: &Plan) -> Result<(), Failure> {
    let (_, connection) = stream.get_ref();
    if connection.alpn_protocol() != Some(ALPN) {
        return Err(Failure::new(Reason::NoAlpn, "the peer did not choose HTTP/2 (ALPN h2)"));
    }
    let roots = match &plan.expected {
        Expected::Node(_) => tls.certificates.current().map(|current| Arc::clone(&current.material.roots)),
        Expected::Service => None,
    };
    let roots = roots.as_ref().unwrap_or(&plan.roots);
    let chain = connection.peer_certificates().unwrap_or_default();
    Ok(plan.expected.check(roots, chain, &plan.name, tls.now())?)
}
