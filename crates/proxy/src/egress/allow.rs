//! Which destinations outside of the cluster are open: the entries of `--egress-allow`, how they are written and what they match.
//! An entry opens exactly what it says: a name is not opened by a network that its addresses lie in, nor the other way round.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use posthouse_model::address::{self, Refusal};
use posthouse_model::{Authority, Host};

/// The ports of an entry that names none: plain HTTP and HTTPS. Whoever opens another one says so.
const DEFAULT_PORTS: [u16; 2] = [80, 443];

/// Every entry; empty: nothing outside is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList(Vec<Allow>);

/// One entry: `NAME`, `*.NAME`, `IPV4[/LENGTH]` or `[IPV6[/LENGTH]]`, each with `:PORT` or `:FIRST-LAST` behind it if need be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    hosts: Hosts,
    ports: Ports,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hosts {
    /// This name alone, in lower case.
    Name(Box<str>),
    /// Every name below this one at any depth, not the name itself.
    Below(Box<str>),
    Net(IpNet),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ports {
    Default,
    Range(u16, u16),
}

/// What the list says of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    /// Its host is listed, for other ports.
    OtherPorts,
    NotListed,
}

/// Why an entry is not understood or can do nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllowError {
    /// Nothing between two commas.
    #[error("an empty entry; write entries with commas between them")]
    Empty,
    /// `https://...`
    #[error("write the host alone, without scheme and path, as in api.example.com or api.example.com:8443")]
    Url,
    /// No port and no range.
    #[error("write the port as a number from 1 to 65535 or as FIRST-LAST, as in api.example.com:8000-8099")]
    Port,
    /// A colon too many.
    #[error("write IPv6 in brackets with the length inside, as in [2001:db8::/32] or [2001:db8::1]:443")]
    Bracket,
    /// `203.0.113.7/24`
    #[error("{net} has bits behind its length; write {} for the network or leave the length away for the address", .net.trunc())]
    HostBits {
        /// As it was written.
        net: IpNet,
    },
    /// Digits and dots that are no address.
    #[error("no IPv4 address or network; write 203.0.113.7 or 203.0.113.0/24")]
    Ipv4,
    /// A star that is not the first label.
    #[error("'*' stands for whole labels at the beginning only, as in *.example.com")]
    Star,
    /// `web`
    #[error(
        "a single label is a Service's short name, never a host outside; write the whole name, as in api.example.com"
    )]
    Single,
    /// No DNS name.
    #[error("no DNS name; write letters, digits, '-' and '.', other scripts in their xn-- form")]
    Name,
    /// Loopback, metadata and the like.
    #[error("is {0}, which is never dialled")]
    Never(Refusal),
}

impl AllowList {
    /// Whether nothing outside is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The verdict on a name in lower case without its final dot.
    pub(crate) fn name(&self, name: &str, port: u16) -> Verdict {
        self.verdict(port, |hosts| match hosts {
            Hosts::Name(listed) => **listed == *name,
            Hosts::Below(base) => name.strip_suffix(&**base).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            Hosts::Net(_) => false,
        })
    }

    /// The verdict on an address that was written as such.
    pub(crate) fn address(&self, ip: IpAddr, port: u16) -> Verdict {
        self.verdict(port, |hosts| matches!(hosts, Hosts::Net(net) if net.contains(&ip)))
    }

    /// Whether a private address is listed as such: by a network that is private itself, and not as a part of the whole world.
    pub(crate) fn private(&self, ip: IpAddr, port: u16) -> bool {
        let of =
            |hosts: &Hosts| matches!(hosts, Hosts::Net(net) if net.contains(&ip) && address::is_private_network(net));
        self.verdict(port, of) == Verdict::Allowed
    }

    fn verdict(&self, port: u16, matches: impl Fn(&Hosts) -> bool) -> Verdict {
        let mut verdict = Verdict::NotListed;
        for entry in self.0.iter().filter(|entry| matches(&entry.hosts)) {
            if entry.ports.contains(port) {
                return Verdict::Allowed;
            }
            verdict = Verdict::OtherPorts;
        }
        verdict
    }
}

impl FromIterator<Allow> for AllowList {
    fn from_iter<T: IntoIterator<Item = Allow>>(entries: T) -> Self {
        Self(entries.into_iter().collect())
    }
}

impl Ports {
    fn contains(self, port: u16) -> bool {
        match self {
            Self::Default => DEFAULT_PORTS.contains(&port),
            Self::Range(first, last) => (first..=last).contains(&port),
        }
    }
}

impl Allow {
    /// Whether it names the cluster's own names, which never go out.
    #[must_use]
    pub fn is_of_cluster(&self, cluster_domain: &str) -> bool {
        match &self.hosts {
            Hosts::Name(name) | Hosts::Below(name) => is_of_cluster(name, cluster_domain),
            Hosts::Net(_) => false,
        }
    }
}

/// Whether a name in lower case is one of the cluster's, known or not: such a name is never asked of a resolver.
pub(crate) fn is_of_cluster(name: &str, cluster_domain: &str) -> bool {
    let below = |base: &str| name.strip_suffix(base).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    below("svc") || below(cluster_domain)
}

impl FromStr for Allow {
    type Err = AllowError;

    fn from_str(text: &str) -> Result<Self, AllowError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(AllowError::Empty);
        }
        if text.contains("://") {
            return Err(AllowError::Url);
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (inside, after) = rest.split_once(']').ok_or(AllowError::Bracket)?;
            let ports = match after.strip_prefix(':') {
                Some(ports) => ports.parse()?,
                None if after.is_empty() => Ports::Default,
                None => return Err(AllowError::Bracket),
            };
            let net = network::<Ipv6Addr>(inside, AllowError::Bracket)?;
            return Ok(Self { hosts: Hosts::Net(net), ports });
        }
        let (host, ports) = match text.split_once(':') {
            Some((_, more)) if more.contains(':') => return Err(AllowError::Bracket),
            Some((host, ports)) => (host, ports.parse()?),
            None => (text, Ports::Default),
        };
        let hosts = if host.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b'/') {
            Hosts::Net(network::<Ipv4Addr>(host, AllowError::Ipv4)?)
        } else if host.contains('/') {
            return Err(AllowError::Url);
        } else if let Some(base) = host.strip_prefix("*.") {
            Hosts::Below(dns_name(base)?)
        } else {
            let name = dns_name(host)?;
            if !name.contains('.') {
                return Err(AllowError::Single);
            }
            Hosts::Name(name)
        };
        Ok(Self { hosts, ports })
    }
}

/// An address or a network of one family. What is never dialled anyway is refused, since whoever writes it expects otherwise.
fn network<T: FromStr + Into<IpAddr>>(text: &str, unreadable: AllowError) -> Result<IpNet, AllowError> {
    let (ip, length) = text.split_once('/').map_or((text, None), |(ip, length)| (ip, Some(length)));
    let ip: IpAddr = ip.parse::<T>().map_err(|_| unreadable.clone())?.into();
    let net = match length {
        None => IpNet::from(ip),
        Some(length) if length.bytes().all(|b| b.is_ascii_digit()) => {
            length.parse().ok().and_then(|length| IpNet::new(ip, length).ok()).ok_or(unreadable)?
        }
        Some(_) => return Err(unreadable),
    };
    if net.trunc() != net {
        return Err(AllowError::HostBits { net });
    }
    match (address::check_range(net.network()), address::check_range(net.broadcast())) {
        (Err(first), Err(last)) if first == last => Err(AllowError::Never(first)),
        _ => Ok(net),
    }
}

/// A DNS name in lower case, as strictly as in requests.
fn dns_name(text: &str) -> Result<Box<str>, AllowError> {
    if text.contains('*') {
        return Err(AllowError::Star);
    }
    match Authority::parse(text) {
        Ok(Authority { host: Host::Name(name), port: None }) => Ok(name.to_ascii_lowercase().into()),
        Ok(_) | Err(_) => Err(AllowError::Name),
    }
}

impl FromStr for Ports {
    type Err = AllowError;

    fn from_str(text: &str) -> Result<Self, AllowError> {
        let port = |text: &str| {
            let plain = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
            text.parse::<u16>().ok().filter(|_| plain).ok_or(AllowError::Port)
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        if first > last { Err(AllowError::Port) } else { Ok(Self::Range(first, last)) }
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hosts {
            Hosts::Name(name) => write!(f, "{name}")?,
            Hosts::Below(base) => write!(f, "*.{base}")?,
            Hosts::Net(net) => {
                let alone = net.prefix_len() == net.max_prefix_len();
                match net {
                    IpNet::V4(net) if alone => write!(f, "{}", net.addr())?,
                    IpNet::V4(net) => write!(f, "{net}")?,
                    IpNet::V6(net) if alone => write!(f, "[{}]", net.addr())?,
                    IpNet::V6(net) => write!(f, "[{net}]")?,
                }
            }
        }
        match self.ports {
            Ports::Default => Ok(()),
            Ports::Range(first, last) if first == last => write!(f, ":{first}"),
            Ports::Range(first, last) => write!(f, ":{first}-{last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&str]) -> AllowList {
        entries.iter().map(|text| text.parse::<Allow>().unwrap_or_else(|error| panic!("{text}: {error}"))).collect()
    }

    #[test]
    fn names_match_alone_and_stars_at_any_depth_below() {
        let list = list(&["api.Example.com.", "*.example.org", "*.corp:8443", "db.example.net:5000-5002"]);
        let table = [
            ("api.example.com", 443, Verdict::Allowed),
            ("api.example.com", 80, Verdict::Allowed),
            ("api.example.com", 8443, Verdict::OtherPorts),
            ("example.com", 443, Verdict::NotListed),
            ("www.api.example.com", 443, Verdict::NotListed),
            ("xapi.example.com", 443, Verdict::NotListed),
            ("api.example.com.evil.net", 443, Verdict::NotListed),
            ("a.example.org", 443, Verdict::Allowed),
            ("a.b.c.example.org", 80, Verdict::Allowed),
            ("example.org", 443, Verdict::NotListed),
            (".example.org", 443, Verdict::NotListed),
            ("evilexample.org", 443, Verdict::NotListed),
            ("x.corp", 8443, Verdict::Allowed),
            ("x.corp", 443, Verdict::OtherPorts),
            ("db.example.net", 5000, Verdict::Allowed),
            ("db.example.net", 5002, Verdict::Allowed),
            ("db.example.net", 5003, Verdict::OtherPorts),
            ("db.example.net", 443, Verdict::OtherPorts),
        ];
        for (name, port, verdict) in table {
            assert_eq!(list.name(name, port), verdict, "{name}:{port}");
        }
        assert_eq!(AllowList::default().name("api.example.com", 443), Verdict::NotListed);
    }

    #[test]
    fn addresses_match_by_network_and_names_do_not_open_them() {
        let list =
            list(&["203.0.113.0/24", "198.51.100.7:22", "[2001:db8::/32]:443", "[2001:db9::1]", "api.example.com"]);
        let table = [
            ("203.0.113.0", 80, Verdict::Allowed),
            ("203.0.113.255", 443, Verdict::Allowed),
            ("203.0.113.255", 22, Verdict::OtherPorts),
            ("203.0.114.0", 443, Verdict::NotListed),
            ("198.51.100.7", 22, Verdict::Allowed),
            ("198.51.100.8", 22, Verdict::NotListed),
            ("2001:db8:ffff::1", 443, Verdict::Allowed),
            ("2001:db8:ffff::1", 80, Verdict::OtherPorts),
            ("2001:db9::1", 80, Verdict::Allowed),
            ("2001:db9::2", 80, Verdict::NotListed),
            ("::ffff:203.0.113.1", 80, Verdict::NotListed),
        ];
        for (ip, port, verdict) in table {
            assert_eq!(list.address(ip.parse().unwrap(), port), verdict, "{ip}:{port}");
        }
        assert_eq!(list.name("203.0.113.0", 80), Verdict::NotListed);
    }

    #[test]
    fn entries_are_written_as_they_were_read() {
        for text in [
            "api.example.com",
            "*.example.com:443",
            "api.example.com:8000-8099",
            "203.0.113.0/24",
            "203.0.113.7:22",
            "0.0.0.0/0:1-65535",
            "[2001:db8::/32]:443",
            "[2001:db8::1]",
            "[::/0]",
            "10.0.0.0/8",
            "xn--bcher-kva.example",
            "_sip.example.com",
        ] {
            assert_eq!(text.parse::<Allow>().unwrap().to_string(), text);
        }
        assert_eq!(" API.example.com. ".parse::<Allow>().unwrap().to_string(), "api.example.com");
    }

    #[test]
    fn what_is_ambiguous_or_can_do_nothing_is_refused_with_the_right_spelling() {
        let table = [
            ("", "commas between them"),
            ("https://api.example.com", "without scheme"),
            ("api.example.com/v1", "without scheme and path"),
            ("api.example.com:", "a number from 1 to 65535"),
            ("api.example.com:0", "a number from 1 to 65535"),
            ("api.example.com:080", "a number from 1 to 65535"),
            ("api.example.com:+80", "a number from 1 to 65535"),
            ("api.example.com:65536", "a number from 1 to 65535"),
            ("api.example.com:https", "a number from 1 to 65535"),
            ("api.example.com:90-80", "FIRST-LAST"),
            ("api.example.com:80-", "FIRST-LAST"),
            ("api.example.com:80-90-100", "FIRST-LAST"),
            ("*", "at the beginning only"),
            ("*.", "no DNS name"),
            ("*.*.example.com", "at the beginning only"),
            ("api.*.com", "at the beginning only"),
            ("a*.example.com", "at the beginning only"),
            ("web", "a Service's short name"),
            ("localhost", "a Service's short name"),
            ("bücher.example", "xn--"),
            ("user@example.com", "no DNS name"),
            (".example.com", "no DNS name"),
            ("api..example.com", "no DNS name"),
            ("0x7f.example.0x1", "no DNS name"),
            ("2001:db8::/32", "in brackets"),
            ("2001:db8::1:443", "in brackets"),
            ("[2001:db8::]/32:443", "the length inside"),
            ("[2001:db8::/129]", "in brackets"),
            ("[2001:db8::1", "in brackets"),
            ("[203.0.113.7]", "in brackets"),
            ("203.0.113", "no IPv4 address"),
            ("203.0.113.07", "no IPv4 address"),
            ("203.0.113.0/33", "no IPv4 address"),
            ("203.0.113.0/+8", "without scheme and path"),
            ("203.0.113.0/", "no IPv4 address"),
            ("203.0.113.7/24", "write 203.0.113.0/24"),
            ("[2001:db8::1/32]", "write 2001:db8::/32"),
            ("127.0.0.1", "a loopback address"),
            ("127.0.0.0/8", "a loopback address"),
            ("169.254.169.254", "a link-local address"),
            ("169.254.0.0/16:80", "a link-local address"),
            ("100.100.100.200", "metadata"),
            ("0.0.0.0", "an unspecified address"),
            ("[::1]", "a loopback address"),
            ("[fe80::/10]", "a link-local address"),
            ("[::ffff:203.0.113.7]", "an IPv6 spelling"),
            ("[64:ff9b::/96]", "an IPv6 spelling"),
        ];
        for (text, words) in table {
            let error = text.parse::<Allow>().map(|entry| panic!("'{text}' was taken as {entry}")).unwrap_err();
            let error: String = error.to_string();
            assert!(error.contains(words), "'{text}': {error}");
        }
    }

    #[test]
    fn names_of_the_cluster_are_known_by_their_end() {
        for name in ["web.shop.svc", "svc", "a.svc.cluster.local", "cluster.local", "x.cluster.local"] {
            assert!(is_of_cluster(name, "cluster.local"), "{name}");
        }
        for name in ["example.com", "mysvc", "web.mysvc", "xcluster.local", "cluster.local.example.com"] {
            assert!(!is_of_cluster(name, "cluster.local"), "{name}");
        }
        assert!("*.svc.cluster.local".parse::<Allow>().unwrap().is_of_cluster("cluster.local"));
        assert!(!"*.local".parse::<Allow>().unwrap().is_of_cluster("cluster.local"));
    }
}
