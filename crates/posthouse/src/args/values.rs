//! How the values of single flags are read. Each error says what is wrong and shows what would be right, since it is
//! all that a newcomer sees.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use http::Uri;
use posthouse_identity::TrustDomain;

/// An address to listen on.
pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write IP:PORT, as in 127.0.0.1:4140 or [::1]:4140".to_owned())
}

/// A node's address: one that other machines could dial.
pub(super) fn node_ip(text: &str) -> Result<IpAddr, String> {
    let ip: IpAddr = text.trim().parse().map_err(|_| format!("'{text}' is no IP address"))?;
    let ip = ip.to_canonical();
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(format!("{ip} is no address of a node"));
    }
    Ok(ip)
}

/// A node's name: a DNS subdomain (Kubernetes "Object Names and IDs").
pub(super) fn node_name(text: &str) -> Result<String, String> {
    let label = |part: &str| {
        let bytes = part.as_bytes();
        !bytes.is_empty()
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    if text.len() <= 253 && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err(format!("'{text}' is no node name: lower-case letters, digits, '-' and '.' are allowed"))
    }
}

/// A namespace: a DNS label.
pub(super) fn dns_label(text: &str) -> Result<String, String> {
    match node_name(text) {
        Ok(name) if name.len() <= 63 && !name.contains('.') => Ok(name),
        _ => Err("lower-case letters, digits and '-' are allowed, at most 63".into()),
    }
}

/// A DNS suffix; dots at its ends are taken off.
pub(super) fn domain(text: &str) -> Result<String, String> {
    node_name(&text.trim_matches('.').to_ascii_lowercase()).map_err(|_| "write a DNS name, as in cluster.local".into())
}

/// A SPIFFE trust domain.
pub(super) fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(text).map_err(|why| why.to_string())
}

/// A name, an address or an IPv4 network as it stands in NO_PROXY. Only what all programs take for the same: no wildcards
/// (curl, Python and gRPC do not know them), no brackets and no IPv6 networks (Python's httpx fails on them), no ports (a
/// name with one matches nothing in some).
pub(super) fn no_proxy(text: &str) -> Result<String, String> {
    const HELP: &str = "write a name or an address, as in api.example.com, .example.com or 192.0.2.7";
    let good = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    let host = text.split_once("://").map_or(text, |(_, rest)| rest);
    match text {
        "" => Err("an empty name; write names with commas between them, without spaces".into()),
        text if text.bytes().all(good) || text.parse::<Ipv6Addr>().is_ok() || ipv4_network(text) => Ok(text.to_owned()),
        _ if host.contains('[') => Err("write an IPv6 address without brackets, as in fd00::1".into()),
        _ if host.contains('*') => Err("write .example.com for every name below example.com".into()),
        _ => match host.split(['/', ':', '?', '#']).next() {
            _ if host.matches(':').count() > 1 => Err("write an IPv6 address alone, as in fd00::1".into()),
            Some(name) if name.len() < text.len() && !name.is_empty() && name.bytes().all(good) => {
                Err(format!("write the name alone, {name}, without scheme, path or port"))
            }
            _ => Err(HELP.into()),
        },
    }
}

/// Whether this is an IPv4 address with a prefix length.
fn ipv4_network(text: &str) -> bool {
    text.split_once('/').is_some_and(|(address, length)| {
        address.parse::<Ipv4Addr>().is_ok() && length.parse().is_ok_and(|bits: u8| bits <= 32)
    })
}

/// A number of threads.
pub(super) fn workers(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().ok().filter(|n: &NonZeroUsize| n.get() <= 1024).ok_or_else(|| "write a number from 1 to 1024".into())
}

/// A duration with its unit: ms, s, m or h. A bare number is refused, because every reader takes it for another unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    const HELP: &str = "write a number and a unit (ms, s, m, h), as in 500ms or 30s";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or(HELP)?;
    let number: u64 = number.parse().map_err(|_| HELP)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(HELP.into()),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(|| "that is too long".into())
}

/// A time limit: a duration that is not zero.
pub(super) fn patience(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|limit| if limit.is_zero() { Err("that is no time at all".into()) } else { Ok(limit) })
}

/// A URL that a proxy can be asked for as it stands.
pub(super) fn probe_url(text: &str) -> Result<Uri, String> {
    const HELP: &str = "write a URL as in http://web.shop/healthz";
    let url: Uri = text.parse().map_err(|_| HELP)?;
    match (url.scheme_str(), url.authority()) {
        (Some("http"), Some(authority)) if !authority.as_str().contains('@') && !authority.host().is_empty() => Ok(url),
        (Some("https"), _) => Err("only http: what an application encrypts itself, no proxy can answer for".into()),
        _ => Err(HELP.into()),
    }
}

/// A log level or a list of `module=level`. Stricter than the filter itself, which takes any word for a module.
pub(super) fn log_filter(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let good = |part: &str| {
        let (module, level) = part.split_once('=').unwrap_or(("all", part));
        !module.is_empty() && LEVELS.contains(&level)
    };
    if text.split(',').all(good) {
        Ok(text.to_owned())
    } else {
        Err("write error, warn, info, debug or trace, or a list as in 'info,posthouse_proxy=debug'".into())
    }
}
