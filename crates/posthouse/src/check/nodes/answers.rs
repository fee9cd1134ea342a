//! As much of a proxy's answers as the checks read. Every field may be missing: the proxy may be of another version.

use http::HeaderMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;

/// `/config`.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct NodeConfig {
    pub(super) version: String,
    #[serde(default)]
    pub(super) ready: bool,
    #[serde(default)]
    pub(super) pending: Vec<String>,
    #[serde(default)]
    pub(super) config: Effective,
    #[serde(default)]
    pub(super) discovery: Discovery,
}

/// The flags in force.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct Effective {
    pub(super) node_name: String,
    pub(super) node_ip: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Discovery {
    pub(super) watches: Vec<Watch>,
    pub(super) problems: Vec<Problem>,
    pub(super) problems_dropped: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Watch {
    pub(super) kind: String,
    /// Seconds.
    pub(super) age: Option<f64>,
    pub(super) last_error: Option<String>,
    pub(super) from_snapshot: Option<f64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Problem {
    pub(super) source: String,
    pub(super) object: String,
    pub(super) error: String,
}

/// `/identity`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Identity {
    pub(super) tls: String,
    pub(super) permissive: bool,
    pub(super) certificate: Option<Certificate>,
    pub(super) last_error: Option<Rejected>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Certificate {
    pub(super) not_before: Option<Time>,
    pub(super) not_after: Option<Time>,
    pub(super) expires_in_seconds: Option<u64>,
}

/// What stands in the way of a newer certificate.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Rejected {
    pub(super) source: String,
    pub(super) error: String,
}

/// `/peers`.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Peers {
    pub(super) peers: Vec<Peer>,
}

impl Peers {
    /// Those that a link may lead to.
    pub(super) fn others(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| !peer.this_node && peer.ready)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Peer {
    pub(super) node: String,
    pub(super) address: String,
    pub(super) ready: bool,
    pub(super) this_node: bool,
    pub(super) link: Option<Link>,
}

impl Peer {
    /// Nobody has tried to reach it, or the first attempt is under way: links are opened when a request needs one.
    pub(super) fn is_untried(&self) -> bool {
        self.link.as_ref().is_none_or(|link| link.connections == 0 && link.opened == 0 && link.last_error.is_none())
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Link {
    pub(super) connections: u64,
    pub(super) opened: u64,
    /// Of the last attempt, when it failed.
    pub(super) last_error: Option<String>,
}

/// "0.1.0 (commit 1a2b3c, release, …)" without how it was built; the commit only when it is known.
pub(super) fn short(version: &str) -> String {
    let number = version.split(' ').next().unwrap_or_default();
    let commit = version.split_once("(commit ").and_then(|(_, rest)| rest.split([',', ')']).next());
    match commit.filter(|commit| *commit != "unknown") {
        // As long as git's own short names in a large repository, with what follows the hash ("-dirty").
        Some(commit) => {
            let hash = commit.bytes().take_while(u8::is_ascii_hexdigit).count();
            let (hash, rest) = commit.split_at_checked(hash).unwrap_or((commit, ""));
            format!("{number} (commit {}{rest})", hash.get(..12).unwrap_or(hash))
        }
        None => number.to_owned(),
    }
}

/// What a proxy says about an answer of its own (RFC 9209).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProxyStatus {
    pub(super) error: Option<String>,
    pub(super) details: String,
}

/// Reads `posthouse; error=TOKEN; details="…"`; `None` where no posthouse speaks.
pub(super) fn proxy_status(headers: &HeaderMap) -> Option<ProxyStatus> {
    let value = headers.get("proxy-status")?.to_str().ok()?;
    let parameters = value.strip_prefix("posthouse")?;
    let after = |key: &str| parameters.split_once(key).map(|(_, rest)| rest);
    let error = after("; error=").map(|rest| rest.split([';', ',']).next().unwrap_or_default().trim().to_owned());
    let mut details = String::new();
    let mut escaped = false;
    for c in after("; details=\"").unwrap_or_default().chars() {
        match c {
            '\\' if !escaped => escaped = true,
            '"' if !escaped => break,
            c => {
                escaped = false;
                details.push(c);
            }
        }
    }
    Some(ProxyStatus { error, details })
}
