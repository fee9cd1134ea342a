//! Who sends, beyond the node: a stream on a link claims a pod as its source, and the receiver has the claim checked. A node
//! may speak only for pods that are scheduled on it. `discovery` implements [`Workloads`]; `proxy` asks it.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use crate::directory::PodRef;

/// What a stream says of its source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    /// `namespace/pod/uid/service-account`, each part not empty.
    text: Arc<str>,
}

impl Claim {
    /// Reads the value of `posthouse-source`; `None` for anything but four parts of printable ASCII.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let parts = text.split('/').filter(|part| !part.is_empty()).count();
        let sound = parts == 4 && text.matches('/').count() == 3 && text.len() <= 1024;
        (sound && text.bytes().all(|b| b.is_ascii_graphic())).then(|| Self { text: text.into() })
    }

    fn part(&self, n: usize) -> &str {
        self.text.split('/').nth(n).unwrap_or_default()
    }

    /// The pod's namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.part(0)
    }

    /// The pod's name.
    #[must_use]
    pub fn pod(&self) -> &str {
        self.part(1)
    }

    /// The pod's uid.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.part(2)
    }

    /// The pod's service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        self.part(3)
    }

    /// As it came.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// A pod that is what it claims to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its namespace, name and uid.
    pub pod: PodRef,
    /// Its service account.
    pub service_account: Arc<str>,
    /// The node that it is scheduled on.
    pub node: Arc<str>,
    /// Its address, of the family of the pod network's first.
    pub address: Option<IpAddr>,
}

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// It is so.
    Verified(Arc<Identity>),
    /// It is not so; why, in words.
    False(Arc<str>),
    /// It cannot be told now (the API is away, a limit is reached); why, in words.
    Unknown(&'static str),
}

/// The answer of a check.
pub type Checking<'a> = Pin<Box<dyn Future<Output = Checked> + Send + 'a>>;

/// Checks claims against the API.
pub trait Workloads: Send + Sync {
    /// The answer, when it is known without asking anybody.
    fn known(&self, claim: &Claim, node: &str) -> Option<Checked>;

    /// Whether the pod of `claim` exists, is what the claim says and is scheduled on `node`. Bounds its own time.
    fn check<'a>(&'a self, claim: &'a Claim, node: &'a str) -> Checking<'a>;
}

/// Knows nobody: every claim is [`Checked::Unknown`].
#[derive(Clone, Copy, Debug, Default)]
pub struct NoWorkloads;

impl Workloads for NoWorkloads {
    fn known(&self, _: &Claim, _: &str) -> Option<Checked> {
        Some(Checked::Unknown("nobody checks claims here"))
    }

    fn check<'a>(&'a self, claim: &'a Claim, node: &'a str) -> Checking<'a> {
        let checked = self.known(claim, node).unwrap_or(Checked::Unknown("nobody checks claims here"));
        Box::pin(std::future::ready(checked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_has_four_parts() {
        let claim = Claim::parse("shop/web-1/0af3/web").unwrap();
        let parts = (claim.namespace(), claim.pod(), claim.uid(), claim.service_account());
        assert_eq!(parts, ("shop", "web-1", "0af3", "web"));
        for bad in ["-", "", "shop/web-1/0af3", "shop/web-1//web", "a/b/c/d/e", "/a/b/c/d", "a/b/c/d/", "a/b/c/d e"] {
            assert_eq!(Claim::parse(bad), None, "{bad}");
        }
        assert_eq!(Claim::parse(&format!("a/b/c/{}", "d".repeat(2000))), None);
    }
}
