//! The trust bundle: every root that nodes have to trust, kept in a ConfigMap that says of each root since when it is there
//! and until when it has to stay. A root that signs nothing any more stays until the last certificate by it has ended, whoever
//! replaced it: we by a rotation, or somebody by a new Secret. No IO.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::api::core::v1::ConfigMap;
use posthouse_model::issuance::{BUNDLE_ANNOTATION, BUNDLE_KEY};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::authority::{certificates, end_of, to_pem};

/// On the ConfigMap: what is known of each root, as JSON by its fingerprint.
const ROOTS_ANNOTATION: &str = "posthouse.io/roots";

/// What is known of a root beside its certificate; seconds since 1970.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Times {
    since: u64,
    /// When it may go; none while it is in use.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    until: Option<u64>,
}

/// The roots that are published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bundle {
    /// By time and fingerprint, so that the text does not change when only a root's part does.
    roots: BTreeMap<(u64, String), Root>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Root {
    certificate: CertificateDer<'static>,
    until: Option<u64>,
}

impl Bundle {
    /// What a ConfigMap has. What cannot be read of it is as good as not there.
    pub(crate) fn read(map: &ConfigMap) -> Self {
        let text = map.data.as_ref().and_then(|data| data.get(BUNDLE_KEY)).map_or("", String::as_str);
        let times: BTreeMap<String, Times> = map
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get(ROOTS_ANNOTATION))
            .and_then(|json| serde_json::from_str(json).ok())
            .unwrap_or_default();
        let mut roots = BTreeMap::new();
        for certificate in certificates(text.as_bytes()).unwrap_or_default() {
            let name = fingerprint(&certificate);
            // One that we know nothing of was put there by somebody else: it gets its time now, see `wanted`.
            let Times { since, until } = times.get(&name).copied().unwrap_or(Times { since: 0, until: None });
            roots.insert((since, name), Root { certificate, until });
        }
        Self { roots }
    }

    /// The bundle that has to be there next to `self`: `used` are the roots that sign or will, `longest` is how long a
    /// certificate lives at most.
    pub(crate) fn wanted<'a>(
        &self,
        used: impl Iterator<Item = &'a CertificateDer<'static>>,
        now: SystemTime,
        longest: Duration,
    ) -> Self {
        let mut next = self.clone();
        let now = seconds(now);
        let mut names = Vec::new();
        for certificate in used {
            let name = fingerprint(certificate);
            match next.roots.iter_mut().find(|((_, known), _)| *known == name) {
                Some((_, root)) => root.until = None,
                None => {
                    let root = Root { certificate: certificate.clone(), until: None };
                    next.roots.insert((now, name.clone()), root);
                }
            }
            names.push(name);
        }
        for ((_, name), root) in &mut next.roots {
            if !names.contains(name) {
                root.until = Some(root.until.unwrap_or(now + longest.as_secs().max(1)));
            }
        }
        next.roots
            .retain(|_, root| root.until.is_none_or(|until| now < until && now < seconds(end_of(&root.certificate))));
        next
    }

    /// Whether nodes may not know this root yet, because it came later than others that they trust; and since when it is
    /// there. `None` for a root that is not in the bundle.
    pub(crate) fn newcomer(&self, root: &CertificateDer<'_>) -> Option<(bool, SystemTime)> {
        let name = fingerprint(root);
        let ((since, _), _) = self.roots.iter().find(|((_, known), _)| *known == name)?;
        let older = self.roots.keys().any(|(other, _)| other < since);
        Some((older, SystemTime::UNIX_EPOCH + Duration::from_secs(*since)))
    }

    /// All roots as PEM.
    pub(crate) fn text(&self) -> String {
        self.roots.values().map(|root| to_pem(&root.certificate)).collect()
    }

    /// The name of this set of roots; what nodes report back.
    pub(crate) fn id(&self) -> String {
        hex(self.text().as_bytes())
    }

    /// How many roots there are.
    pub(crate) fn len(&self) -> usize {
        self.roots.len()
    }

    /// Writes it into a ConfigMap and says whether that changes anything.
    pub(crate) fn write(&self, map: &mut ConfigMap) -> bool {
        let times: BTreeMap<&str, Times> = self
            .roots
            .iter()
            .map(|((since, name), root)| (name.as_str(), Times { since: *since, until: root.until }))
            .collect();
        // A map of plain numbers always has a JSON form.
        let times = serde_json::to_string(&times).unwrap_or_default();
        let before = (map.data.clone(), map.metadata.annotations.clone());
        map.data.get_or_insert_default().insert(BUNDLE_KEY.to_owned(), self.text());
        let annotations = map.metadata.annotations.get_or_insert_default();
        annotations.insert(BUNDLE_ANNOTATION.to_owned(), self.id());
        annotations.insert(ROOTS_ANNOTATION.to_owned(), times);
        before != (map.data.clone(), map.metadata.annotations.clone())
    }
}

/// The SHA-256 of a certificate, as people see it in other tools.
pub(crate) fn fingerprint(der: &CertificateDer<'_>) -> String {
    hex(der)
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(64);
    for byte in digest(&SHA256, bytes).as_ref() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;
