//! The node's certificate as it is now: installed by a source (files, the cluster's CA), read by each handshake. A bad new
//! one never replaces a good old one; it is remembered for the admin API and counted.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use crate::material::Material;
use crate::metrics::{CERTIFICATE_EXPIRY, INSTALLS};
use crate::roots::Root;
use crate::spiffe::SpiffeId;

/// Where the current certificate is found. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Certificates(Arc<Inner>);

struct Inner {
    id: SpiffeId,
    current: ArcSwapOption<Current>,
    rejected: Mutex<Option<Rejected>>,
    epoch: watch::Sender<u64>,
}

/// The certificate in use.
#[derive(Debug)]
pub struct Current {
    /// Chain, key and roots.
    pub material: Material,
    /// Where it came from, for people.
    pub source: String,
    /// Counts installations, from 1.
    pub epoch: u64,
    /// When it was installed.
    pub installed: SystemTime,
}

/// The last thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Where the certificate came from or should have.
    pub source: String,
    /// What was wrong with it.
    pub error: String,
    /// Since when it is so.
    pub at: SystemTime,
}

/// All that there is to say of the certificate, for the admin API.
#[derive(Clone, Debug)]
pub struct State {
    /// Whose certificate it is or will be.
    pub id: SpiffeId,
    /// 0 before the first certificate.
    pub epoch: u64,
    /// The certificate in use, if there is one.
    pub certificate: Option<CertificateState>,
    /// The last thing that went wrong, unless a good certificate came later.
    pub rejected: Option<Rejected>,
}

/// See [`State`].
#[derive(Clone, Debug)]
pub struct CertificateState {
    /// In hexadecimal.
    pub serial: String,
    /// Its SHA-256, in hexadecimal.
    pub fingerprint: String,
    /// Who signed it.
    pub issuer: String,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
    /// The trust bundle.
    pub roots: Vec<Root>,
    /// Where it came from.
    pub source: String,
    /// When it was installed.
    pub installed: SystemTime,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("id", &self.0.id).field("current", &self.current()).finish_non_exhaustive()
    }
}

impl Certificates {
    /// For `id`, with no certificate yet.
    #[must_use]
    pub fn new(id: SpiffeId) -> Self {
        let (epoch, _) = watch::channel(0);
        Self(Arc::new(Inner { id, current: ArcSwapOption::empty(), rejected: Mutex::new(None), epoch }))
    }

    /// Whose certificates these are.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.0.id
    }

    /// Makes `material` (checked against [`Self::id`]) the current one. The same chain and roots again change nothing
    /// but the last error, which is over. Returns whether something changed.
    pub fn install(&self, material: Material, source: &str) -> bool {
        let mut rejected = self.0.rejected.lock().unwrap_or_else(PoisonError::into_inner);
        *rejected = None;
        // Under the lock: two sources at once must not get one epoch.
        if self.current().is_some_and(|current| current.material.same_as(&material)) {
            return false;
        }
        let epoch = self.epoch() + 1;
        let expiry = material.not_after().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        metrics::gauge!(CERTIFICATE_EXPIRY).set(expiry.as_secs_f64());
        metrics::counter!(INSTALLS, "result" => "ok").increment(1);
        tracing::info!(
            source,
            serial = material.serial(),
            not_after = crate::roots::rfc3339(material.not_after()),
            roots = material.roots().count(),
            epoch,
            "certificate installed"
        );
        let current = Current { material, source: source.to_owned(), epoch, installed: SystemTime::now() };
        self.0.current.store(Some(Arc::new(current)));
        self.0.epoch.send_replace(epoch);
        true
    }

    /// Says that what `source` has (or should have) cannot be used. The current certificate stays. The same error again is
    /// neither logged nor counted again.
    pub fn rejected(&self, source: &str, error: &dyn fmt::Display) {
        let error = error.to_string();
        let mut rejected = self.0.rejected.lock().unwrap_or_else(PoisonError::into_inner);
        if rejected.as_ref().is_some_and(|last| last.source == source && last.error == error) {
            return;
        }
        metrics::counter!(INSTALLS, "result" => "rejected").increment(1);
        tracing::warn!(source, error, "new certificate not used; the one before is kept, if there is one");
        *rejected = Some(Rejected { source: source.to_owned(), error, at: SystemTime::now() });
    }

    /// The certificate in use.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Current>> {
        self.0.current.load_full()
    }

    /// The current one's number; 0 when there is none.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        *self.0.epoch.borrow()
    }

    /// Tells of each later installation by its epoch.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.epoch.subscribe()
    }

    /// All that there is to say.
    #[must_use]
    pub fn state(&self) -> State {
        let current = self.current();
        State {
            id: self.0.id.clone(),
            epoch: current.as_ref().map_or(0, |current| current.epoch),
            certificate: current.map(|current| {
                let Current { material, source, installed, epoch: _ } = &*current;
                CertificateState {
                    serial: material.facts.serial.clone(),
                    fingerprint: material.fingerprint.clone(),
                    issuer: material.facts.issuer.clone(),
                    not_before: material.not_before(),
                    not_after: material.not_after(),
                    roots: material.roots().cloned().collect(),
                    source: source.clone(),
                    installed: *installed,
                }
            }),
            rejected: self.0.rejected.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
