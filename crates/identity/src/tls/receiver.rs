//! The receiver's end: takes a connection, has the peer prove to be a node of this cluster, and says which one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use posthouse_model::directory::{Directory, ServiceKey};
use posthouse_model::transport::{BoxIo, LinkTransport, PeerIdentity};
use rustls::server::{Acceptor, ServerConfig};
use rustls::{HandshakeKind, ServerConnection};
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;

use super::ahead::Ahead;
use super::configs::{Configs, check_client};
use super::failure::{Failure, Reason};
use super::gate::Place;
use super::stream::{HANDSHAKE_RECORD, PlainLink};
use super::{ALPN, HANDSHAKE, Tls, count};

pub(super) async fn accept(
    tls: &Tls,
    stream: TcpStream,
    remote: SocketAddr,
    directory: &Directory,
) -> io::Result<(PeerIdentity, BoxIo)> {
    let shaken = tokio::time::timeout(HANDSHAKE, async {
        // A stranger's before the first byte: also who connects and says nothing has one.
        let place = match is_stranger(remote, directory) {
            true => Some(tls.inbound.place(remote.ip().to_canonical(), true)?),
            false => None,
        };
        if first_byte(&stream).await? != HANDSHAKE_RECORD {
            return Ok(Taken::Plain(stream));
        }
        handshake(tls, stream, place, remote, directory).await
    })
    .await
    .unwrap_or_else(|_| Err(Failure::new(Reason::Timeout, format!("no TLS handshake within {HANDSHAKE:?}"))));
    let failure = match shaken {
        Ok(Taken::Secure(peer, io, kind)) => {
            count("in", Ok(kind));
            return Ok((peer, io));
        }
        Ok(Taken::Plain(stream)) if tls.permissive => {
            let (peer, io) = tls.plain.accept(stream, remote, directory).await?;
            return Ok((peer, Box::new(PlainLink::new(io, "in"))));
        }
        Ok(Taken::Plain(_)) => Failure::new(
            Reason::Plain,
            "the peer speaks no TLS; is it run with --tls off? --tls-permissive would let it in",
        ),
        Err(failure) => failure,
    };
    count("in", Err(failure.reason));
    tls.notes.refused(remote, &failure);
    Err(failure.into())
}

/// Whether the directory knows nobody at this address who could be a peer.
fn is_stranger(remote: SocketAddr, directory: &Directory) -> bool {
    let ip = remote.ip().to_canonical();
    directory.node_by_ip(ip).is_none() && directory.peers().all(|peer| peer.address.ip().to_canonical() != ip)
}

enum Taken {
    Secure(PeerIdentity, BoxIo, Option<HandshakeKind>),
    Plain(TcpStream),
}

/// Looks at the first byte, which stays where it is.
async fn first_byte(stream: &TcpStream) -> Result<u8, Failure> {
    let mut byte = [0];
    match stream.peek(&mut byte).await {
        Ok(0) => Err(Failure::new(Reason::Closed, "the connection was closed before a word")),
        Ok(_) => Ok(byte[0]),
        Err(error) => Err(Failure::of(&error)),
    }
}

async fn handshake(
    tls: &Tls,
    stream: TcpStream,
    place: Option<Place<'_>>,
    remote: SocketAddr,
    directory: &Directory,
) -> Result<Taken, Failure> {
    stream.set_nodelay(true).map_err(|error| Failure::of(&error))?;
    let configs = tls.configs()?;
    // The turn comes after the ClientHello: who connects and says nothing takes nobody's turn.
    let hello = LazyConfigAcceptor::new(Acceptor::default(), Ahead::new(stream)).await;
    let hello = hello.map_err(|error| Failure::of(&error))?;
    // A node's comes here, so that a pod whose connections bear its node's address (masquerading) must at least shake hands to keep it out.
    let place = match place {
        Some(place) => place,
        None => tls.inbound.place(remote.ip().to_canonical(), false)?,
    };
    let _turn = place.turn().await?;
    let (config, service) = presented(tls, &configs, hello.client_hello().server_name(), directory)?;
    let stream = hello.into_stream(config).await.map_err(|error| Failure::of(&error))?;
    let connection = stream.get_ref().1;
    let peer = judge(tls, connection, remote, directory, service)?;
    let kind = connection.handshake_kind();
    Ok(Taken::Secure(peer, Box::new(stream), kind))
}

/// The certificate to present: a Service's own where its name is asked for in mode `service`, the node's otherwise.
fn presented(
    tls: &Tls,
    configs: &Configs,
    name: Option<&str>,
    directory: &Directory,
) -> Result<(Arc<ServerConfig>, Option<ServiceKey>), Failure> {
    if let (Some(services), Some(name)) = (&tls.services, name)
        && let Some(key) = services.key_of(name)
        && let Some(service) = directory.service(&key)
        && service.tls.is_some()
    {
        let config = services.server(service, configs, tls.now())?;
        return Ok((config, Some(service.key())));
    }
    Ok((Arc::clone(&configs.server), None))
}

/// After each handshake, resumed or not, by the roots, the clock and the directory of now.
fn judge(
    tls: &Tls,
    connection: &ServerConnection,
    remote: SocketAddr,
    directory: &Directory,
    service: Option<ServiceKey>,
) -> Result<PeerIdentity, Failure> {
    if connection.alpn_protocol() != Some(ALPN) {
        return Err(Failure::new(Reason::NoAlpn, "the peer does not offer HTTP/2 (ALPN h2)"));
    }
    let Some((leaf, between)) = connection.peer_certificates().and_then(<[_]>::split_first) else {
        return Err(Failure::new(Reason::NoCertificate, "the peer has presented no certificate"));
    };
    let Some(current) = tls.certificates.current() else {
        return Err(Failure::new(Reason::OwnCertificate, "this node has no certificate"));
    };
    let material = &current.material;
    let (node, facts) = check_client(&material.roots, material.id.trust_domain(), leaf, between, tls.now())?;
    if directory.node(&node).is_none() && directory.peer(&node).is_none() {
        return Err(Failure::new(
            Reason::UnknownNode,
            format!("the certificate is {node}'s, which is no node of this cluster"),
        ));
    }
    // Not the reverse: with NAT between nodes a peer may come from an address of nobody.
    if let Some(owner) = directory.node_by_ip(remote.ip().to_canonical())
        && owner.name != node
    {
        let text =
            format!("the certificate is {node}'s, the address {} is {}'s", remote.ip().to_canonical(), owner.name);
        return Err(Failure::new(Reason::Address, text));
    }
    Ok(PeerIdentity { node, authenticated: true, service, expires: Some(facts.not_after) })
}
