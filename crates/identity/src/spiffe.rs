//! Names of nodes in certificates: `spiffe://<trust-domain>/node/<node>`. Compared byte by byte, never normalised: our own CA
//! writes them, and two spellings of one name would be two ways to be let in.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// The longest trust domain: 255 bytes (SPIFFE ID §2.3).
const MAX_TRUST_DOMAIN: usize = 255;
/// The longest node name: 253 bytes, as any Kubernetes name that is a DNS subdomain (RFC 1123).
const MAX_NODE: usize = 253;

/// The root of trust of a mesh, for instance `cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TrustDomain(Arc<str>);

/// Why a text is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Not a SPIFFE trust domain.
    #[error("a trust domain is 1 to 255 lower-case letters, digits, '.', '-' and '_', as in 'cluster.local'")]
    TrustDomain,
    /// Not a node's name.
    #[error("a node's name is a DNS name: 1 to 253 lower-case letters, digits, '-' and '.'")]
    Node,
}

impl TrustDomain {
    /// Checks `text` by SPIFFE's rules for trust domains.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > MAX_TRUST_DOMAIN || !text.bytes().all(allowed) {
            return Err(NameError::TrustDomain);
        }
        Ok(Self(Arc::from(text)))
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The node that `uri` names in this trust domain, if it is a node's name of it.
    #[must_use]
    pub fn node_of<'a>(&self, uri: &'a str) -> Option<&'a str> {
        let node = uri.strip_prefix("spiffe://")?.strip_prefix(&*self.0)?.strip_prefix("/node/")?;
        is_node(node).then_some(node)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_node(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.len() <= MAX_NODE
        && name.split('.').all(|label| {
            let label = label.as_bytes();
            label.len() <= 63
                && edge(label.first())
                && edge(label.last())
                && label.iter().all(|&b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

/// A node's identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    node: Arc<str>,
    uri: Arc<str>,
}

impl SpiffeId {
    /// The identity of `node`.
    pub fn node(trust_domain: &TrustDomain, node: &str) -> Result<Self, NameError> {
        if !is_node(node) {
            return Err(NameError::Node);
        }
        let uri = Arc::from(format!("spiffe://{trust_domain}/node/{node}"));
        Ok(Self { trust_domain: trust_domain.clone(), node: Arc::from(node), uri })
    }

    /// The whole URI.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The node's name.
    #[must_use]
    pub fn node_name(&self) -> &Arc<str> {
        &self.node
    }

    /// Whose names these are.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_nodes_name_of_the_same_trust_domain_is_one() {
        let domain = TrustDomain::parse("cluster.local").unwrap();
        assert_eq!(domain.node_of("spiffe://cluster.local/node/node-1"), Some("node-1"));
        assert_eq!(domain.node_of("spiffe://cluster.local/node/a.b.example"), Some("a.b.example"));
        for uri in [
            "spiffe://cluster.local/node/",
            "spiffe://cluster.local/node/a/b",
            "spiffe://cluster.local/node/A",
            "spiffe://cluster.local/node/a?b",
            "spiffe://cluster.local/node/a%2e",
            "spiffe://cluster.local/node/..",
            "spiffe://cluster.local/node/a.",
            "spiffe://cluster.local/node/-a",
            "spiffe://cluster.local.evil/node/a",
            "spiffe://cluster.local/ns/a/sa/b",
            "SPIFFE://cluster.local/node/a",
            "https://cluster.local/node/a",
            "",
        ] {
            assert_eq!(domain.node_of(uri), None, "{uri}");
        }
        let id = SpiffeId::node(&domain, "node-1").unwrap();
        assert_eq!(domain.node_of(id.as_str()), Some("node-1"));
        assert_eq!(SpiffeId::node(&domain, "a/b"), Err(NameError::Node));
    }

    #[test]
    fn trust_domains_are_checked() {
        for text in ["cluster.local", "a", "my_td-1.example"] {
            assert_eq!(TrustDomain::parse(text).unwrap().as_str(), text);
        }
        for text in ["", "Cluster.local", "a/b", "spiffe://a", "a b", "a:1", &"a".repeat(256)] {
            assert_eq!(TrustDomain::parse(text), Err(NameError::TrustDomain), "{text}");
        }
    }
}
