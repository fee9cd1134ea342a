//! Why a handshake failed: a closed set of reasons for the metric, and words for people.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::{AlertDescription, CertificateError};

use super::configs::system_time;
use crate::roots::Verdict;

/// The metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    NoCertificate,
    Expired,
    NotYetValid,
    UnknownIssuer,
    Identity,
    Certificate,
    UnknownNode,
    Address,
    PeerRefused,
    NoAlpn,
    Plain,
    Protocol,
    Closed,
    Timeout,
    Limit,
    OwnCertificate,
    ServiceCertificate,
}

impl Reason {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::UnknownIssuer => "unknown_issuer",
            Self::Identity => "identity",
            Self::Certificate => "certificate",
            Self::UnknownNode => "unknown_node",
            Self::Address => "address",
            Self::PeerRefused => "peer_refused",
            Self::NoAlpn => "no_alpn",
            Self::Plain => "plain",
            Self::Protocol => "protocol",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Limit => "limit",
            Self::OwnCertificate => "own_certificate",
            Self::ServiceCertificate => "service_certificate",
        }
    }

    /// As the link's code sees it: who is not let in, what is no TLS, what took too long.
    fn kind(self) -> io::ErrorKind {
        match self {
            Self::Plain | Self::Protocol | Self::NoAlpn => io::ErrorKind::InvalidData,
            Self::Closed => io::ErrorKind::UnexpectedEof,
            Self::Timeout | Self::Limit => io::ErrorKind::TimedOut,
            Self::OwnCertificate | Self::ServiceCertificate => io::ErrorKind::NotConnected,
            Self::NoCertificate
            | Self::Expired
            | Self::NotYetValid
            | Self::UnknownIssuer
            | Self::Identity
            | Self::Certificate
            | Self::UnknownNode
            | Self::Address
            | Self::PeerRefused => io::ErrorKind::PermissionDenied,
        }
    }
}

#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: Reason,
    text: String,
}

impl Failure {
    pub(super) fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }

    /// A handshake's error, which is rustls' inside of tokio's.
    pub(super) fn of(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(error)) => Self::from(verdict(error)),
            Some(rustls::Error::NoCertificatesPresented) => {
                Self::new(Reason::NoCertificate, "the peer has presented no certificate")
            }
            Some(rustls::Error::AlertReceived(alert)) => Self::alert(*alert),
            Some(rustls::Error::NoApplicationProtocol) => {
                Self::new(Reason::NoAlpn, "the peer does not offer HTTP/2 (ALPN h2)")
            }
            Some(error) => Self::new(Reason::Protocol, format!("the TLS handshake failed: {error}")),
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                Self::new(Reason::Closed, "the peer closed the connection in the TLS handshake")
            }
            None => Self::new(Reason::Closed, format!("the connection broke in the TLS handshake: {error}")),
        }
    }

    fn alert(alert: AlertDescription) -> Self {
        match alert {
            AlertDescription::NoApplicationProtocol => {
                Self::new(Reason::NoAlpn, "the peer does not speak HTTP/2 on this port (ALPN h2)")
            }
            alert => {
                Self::new(Reason::PeerRefused, format!("the peer refused by the TLS alert {alert:?}; its log says why"))
            }
        }
    }
}

impl From<Verdict> for Failure {
    fn from(verdict: Verdict) -> Self {
        let reason = match verdict {
            Verdict::Expired(_) => Reason::Expired,
            Verdict::NotYetValid(_) => Reason::NotYetValid,
            Verdict::UnknownIssuer(_) => Reason::UnknownIssuer,
            Verdict::NoUri | Verdict::SeveralUris(_) | Verdict::OtherIdentity { .. } | Verdict::OtherName(_) => {
                Reason::Identity
            }
            Verdict::Unreadable | Verdict::Usage(_) | Verdict::Chain(_) => Reason::Certificate,
        };
        Self::new(reason, format!("peer: {verdict}"))
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        Self::new(failure.reason.kind(), failure.text)
    }
}

/// In rustls' words, which choose the alert that the peer gets to see.
pub(super) fn certificate_error(verdict: Verdict, now: rustls_pki_types::UnixTime) -> CertificateError {
    let unix = |at: std::time::SystemTime| {
        rustls_pki_types::UnixTime::since_unix_epoch(at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default())
    };
    match verdict {
        Verdict::Expired(at) => CertificateError::ExpiredContext { time: now, not_after: unix(at) },
        Verdict::NotYetValid(at) => CertificateError::NotValidYetContext { time: now, not_before: unix(at) },
        Verdict::UnknownIssuer(issuer) => {
            // The alert has no room for the issuer, so it is told here.
            tracing::debug!(issuer, "a peer's certificate is not signed by a root of the trust bundle");
            CertificateError::UnknownIssuer
        }
        verdict => CertificateError::Other(rustls::OtherError(std::sync::Arc::new(verdict))),
    }
}

fn verdict(error: &CertificateError) -> Verdict {
    match error {
        CertificateError::ExpiredContext { not_after, .. } => Verdict::Expired(system_time(*not_after)),
        CertificateError::NotValidYetContext { not_before, .. } => Verdict::NotYetValid(system_time(*not_before)),
        CertificateError::UnknownIssuer => Verdict::UnknownIssuer("at debug level in the log".to_owned()),
        CertificateError::Other(other) => match other.0.downcast_ref::<Verdict>() {
            Some(verdict) => verdict.clone(),
            None => Verdict::Chain(other.to_string()),
        },
        other => Verdict::Chain(other.to_string()),
    }
}

/// One line in this time at most: whoever can reach the port could fill the log otherwise.
const NOTE_EACH: Duration = Duration::from_secs(10);

/// Refusals that were told in the log, and those that were not.
#[derive(Default)]
pub(super) struct Notes(Mutex<(Option<Instant>, u64)>);

impl Notes {
    /// Logs a refusal, unless there was one just now; then it is counted for the next line.
    pub(super) fn refused(&self, remote: SocketAddr, failure: &Failure) {
        if failure.reason == Reason::Closed {
            // A port scan or a probe: nobody wanted a link.
            return;
        }
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, untold) = &mut *notes;
        if last.is_some_and(|last| last.elapsed() < NOTE_EACH) {
            *untold += 1;
            return;
        }
        *last = Some(Instant::now());
        let untold = std::mem::take(untold);
        tracing::info!(%remote, reason = failure.reason.label(), error = failure.text, others_untold = untold, "link refused");
    }
}
