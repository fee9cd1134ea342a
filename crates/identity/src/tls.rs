//! Links with TLS 1.3 and certificates at both ends. The door is [`Tls`]: `sender.rs` dials, `receiver.rs` takes; both judge the
//! peer's certificate anew after each handshake, so that a resumed session is worth no more than a new one.
//!
//! Resumption saves the signatures of a handshake, not the judgement: the session holds the peer's chain, which is checked
//! against the roots and the clock of now. Each installed certificate starts with empty session caches.

mod ahead;
mod configs;
mod failure;
mod gate;
mod receiver;
mod sender;
mod services;
mod stream;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use posthouse_model::directory::{Directory, Peer, Service};
use posthouse_model::transport::{BoxIo, Connecting, LinkTransport, PeerIdentity};
use rustls::HandshakeKind;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use tokio::net::TcpStream;

use crate::Plain;
use crate::certificates::Certificates;
use configs::Configs;
use failure::{Failure, Notes, Reason};
use gate::Gate;
use services::Services;

use crate::metrics::HANDSHAKES;

/// From the connection to the end of the handshake. Source: design default, TLS accept 10 s.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The protocol inside, by ALPN (RFC 9113 §3.2). A name of our own would keep standard tools away from the port, and the peer's
/// certificate says more than a protocol's name could.
const ALPN: &[u8] = b"h2";

/// How links are secured.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address that links are dialled from.
    pub source: IpAddr,
    /// Limit of a TCP connect.
    pub connect_timeout: Duration,
    /// Whether peers without TLS are served, too: for the time in which a cluster goes over to TLS. Whoever can change packets
    /// between nodes can then keep a link from TLS.
    pub permissive: bool,
    /// In mode `service`, the suffix of Service names, without dots at its ends.
    pub service_domain: Option<Arc<str>>,
}

/// Links with TLS.
pub struct Tls {
    plain: Plain,
    certificates: Certificates,
    permissive: bool,
    services: Option<Services>,
    time: Arc<dyn TimeProvider>,
    configs: ArcSwapOption<Configs>,
    building: Mutex<()>,
    inbound: Gate,
    outbound: Gate,
    notes: Notes,
}

impl Tls {
    /// Secures links by the certificate that is found in `certificates` at each handshake.
    #[must_use]
    pub fn new(certificates: Certificates, options: Options) -> Self {
        Self::at(certificates, options, Arc::new(DefaultTimeProvider))
    }

    /// [`Self::new`] by another clock.
    fn at(certificates: Certificates, options: Options, time: Arc<dyn TimeProvider>) -> Self {
        let Options { source, connect_timeout, permissive, service_domain } = options;
        Self {
            plain: Plain::new(source, connect_timeout),
            certificates,
            permissive,
            services: service_domain.map(Services::new),
            time,
            configs: ArcSwapOption::empty(),
            building: Mutex::new(()),
            inbound: Gate::default(),
            outbound: Gate::default(),
            notes: Notes::default(),
        }
    }

    fn now(&self) -> SystemTime {
        self.time.current_time().map_or_else(SystemTime::now, configs::system_time)
    }

    /// What handshakes use as long as the current certificate is the current one.
    fn configs(&self) -> Result<Arc<Configs>, Failure> {
        let Some(current) = self.certificates.current() else {
            return Err(Failure::new(Reason::OwnCertificate, "this node has no certificate yet"));
        };
        if let Err(verdict) = current.material.facts.valid_at(self.now()) {
            return Err(Failure::new(Reason::OwnCertificate, format!("this node cannot link: {verdict}")));
        }
        let built = |configs: &Arc<Configs>| configs.epoch() == current.epoch;
        if let Some(configs) = self.configs.load_full().filter(built) {
            return Ok(configs);
        }
        let _building = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(configs) = self.configs.load_full().filter(built) {
            return Ok(configs);
        }
        let configs = Arc::new(Configs::build(current, &self.time)?);
        self.configs.store(Some(Arc::clone(&configs)));
        Ok(configs)
    }
}

impl LinkTransport for Tls {
    fn connect<'a>(&'a self, peer: &'a Peer, service: Option<&'a Service>) -> Connecting<'a, BoxIo> {
        Box::pin(sender::connect(self, peer, service))
    }

    fn accept<'a>(
        &'a self,
        stream: TcpStream,
        remote: SocketAddr,
        directory: &'a Directory,
    ) -> Connecting<'a, (PeerIdentity, BoxIo)> {
        Box::pin(receiver::accept(self, stream, remote, directory))
    }

    fn epoch(&self) -> u64 {
        self.certificates.epoch()
    }
}

fn count(direction: &'static str, result: Result<Option<HandshakeKind>, Reason>) {
    let (result, kind) = match result {
        Ok(Some(HandshakeKind::Resumed)) => ("ok", "resumed"),
        Ok(_) => ("ok", "full"),
        Err(reason) => (reason.label(), "none"),
    };
    metrics::counter!(HANDSHAKES, "direction" => direction, "result" => result, "kind" => kind).increment(1);
}

#[cfg(test)]
mod tests;
