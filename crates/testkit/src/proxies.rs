//! The proxy that an unmodified program takes: `http_proxy`, else `HTTP_PROXY`, unless `no_proxy` (else `NO_PROXY`) exempts
//! the host. Nothing else decides, so that what these clients show holds for other people's programs.

use std::net::{IpAddr, SocketAddr};

use http::Uri;
use ipnet::IpNet;

use crate::client::Failure;
use crate::target::resolve;

/// What the variables say, or a proxy that was given instead of them.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    proxy: Option<String>,
    exempt: String,
}

impl Proxies {
    /// Reads the variables by `lookup`, such as `std::env::var(name).ok()`; an empty one counts as none.
    #[must_use]
    pub fn from_variables(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let either =
            |lower, upper| [lower, upper].into_iter().filter_map(&lookup).find(|value| !value.trim().is_empty());
        Self { proxy: either("http_proxy", "HTTP_PROXY"), exempt: either("no_proxy", "NO_PROXY").unwrap_or_default() }
    }

    /// This proxy for every host.
    #[must_use]
    pub fn always(proxy: String) -> Self {
        Self { proxy: Some(proxy), exempt: String::new() }
    }

    /// The proxy's address for requests to `host:port`; `None` is the straight way.
    ///
    /// # Errors
    /// When the proxy is not of the form `http://HOST:PORT` or has no address.
    pub async fn address(&self, host: &str, port: u16) -> Result<Option<SocketAddr>, Failure> {
        let Some(proxy) = self.proxy.as_deref().filter(|_| !exempts(&self.exempt, host, port)) else {
            return Ok(None);
        };
        let malformed = || format!("the proxy '{proxy}' is not of the form http://HOST:PORT");
        let uri: Uri = proxy.trim().parse().map_err(|_| malformed())?;
        let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else { return Err(malformed().into()) };
        Ok(Some(resolve(host, port).await?))
    }
}

/// Whether the value of `no_proxy` exempts `host:port`, as curl and most libraries read it: entries separated by commas or
/// spaces, each `*`, a name (which covers the names below it, with a leading dot or without), an address or a range of
/// addresses, all but the last perhaps with a port.
#[must_use]
pub fn exempts(no_proxy: &str, host: &str, port: u16) -> bool {
    let host = host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
    let address: Option<IpAddr> = host.parse().ok();
    no_proxy.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let Ok(range) = entry.parse::<IpNet>() {
            return address.is_some_and(|address| range.contains(&address));
        }
        let (entry, entry_port) = split_port(entry);
        if entry_port.is_some_and(|only| only != port) {
            return false;
        }
        if let Ok(entry) = entry.parse::<IpAddr>() {
            return address == Some(entry);
        }
        let entry = entry.trim_matches('.').to_ascii_lowercase();
        let above = host.strip_suffix(&entry);
        address.is_none() && !entry.is_empty() && above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
    })
}

/// The port after the last colon, if there is one; the colons of a bare IPv6 address are none of it.
fn split_port(entry: &str) -> (&str, Option<u16>) {
    let bare = entry.trim_matches(['[', ']']);
    if bare.parse::<IpAddr>().is_ok() {
        return (bare, None);
    }
    match entry.rsplit_once(':').map(|(name, port)| (name, port.parse())) {
        Some((name, Ok(port))) => (name.trim_matches(['[', ']']), Some(port)),
        _ => (entry, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_means_what_it_means_to_others() {
        #[rustfmt::skip]
        let table = [
            ("", "web.shop", 80, false),
            (" , ", "web.shop", 80, false),
            ("*", "web.shop", 80, true),
            ("a,*", "10.0.0.1", 80, true),
            ("web.shop", "web.shop", 80, true),
            ("WEB.shop", "web.SHOP.", 80, true),
            ("web.shop", "v2.web.shop", 80, true),
            ("web.shop", "myweb.shop", 80, false),
            (".shop", "web.shop", 80, true),
            (".shop", "shop", 80, true),
            ("shop", "web.shop.svc", 80, false),
            ("web.shop:8080", "web.shop", 8080, true),
            ("web.shop:8080", "web.shop", 80, false),
            (".shop:8080", "web.shop", 8080, true),
            ("localhost, 127.0.0.1,kubernetes.default.svc", "kubernetes.default.svc", 443, true),
            ("localhost 127.0.0.1", "127.0.0.1", 80, true),
            ("127.0.0.1", "127.0.0.11", 80, false),
            ("127.0.0.1:80", "127.0.0.1", 80, true),
            ("127.0.0.1:80", "127.0.0.1", 81, false),
            ("0.0.1", "127.0.0.1", 80, false),
            ("10.96.0.0/16", "10.96.7.1", 80, true),
            ("10.96.0.0/16", "10.97.0.1", 80, false),
            ("10.96.0.0/16", "web.shop", 80, false),
            ("::1", "[::1]", 80, true),
            ("::1", "::2", 80, false),
            ("[::1]", "::1", 80, true),
            ("[::1]:8080", "::1", 8080, true),
            ("[::1]:8080", "::1", 80, false),
            ("fd00::/8", "[fd00::7]", 80, true),
            (".", "web.shop", 80, false),
        ];
        for (no_proxy, host, port, wanted) in table {
            assert_eq!(exempts(no_proxy, host, port), wanted, "no_proxy='{no_proxy}' for {host}:{port}");
        }
    }

    #[tokio::test]
    async fn lower_case_wins_and_empty_is_none() {
        type Variables = &'static [(&'static str, &'static str)];
        #[rustfmt::skip]
        let table: [(Variables, Option<&str>); 7] = [
            (&[], None),
            (&[("http_proxy", "http://127.0.0.1:1"), ("HTTP_PROXY", "http://127.0.0.1:2")], Some("127.0.0.1:1")),
            (&[("http_proxy", ""), ("HTTP_PROXY", "http://127.0.0.1:2/")], Some("127.0.0.1:2")),
            (&[("HTTP_PROXY", "127.0.0.1:2")], Some("127.0.0.1:2")),
            (&[("HTTP_PROXY", "http://[::1]:2")], Some("[::1]:2")),
            (&[("http_proxy", "http://127.0.0.1:1"), ("NO_PROXY", "web")], None),
            (&[("http_proxy", "http://127.0.0.1:1"), ("no_proxy", "x"), ("NO_PROXY", "web")], Some("127.0.0.1:1")),
        ];
        for (variables, wanted) in table {
            let lookup =
                |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            let address = Proxies::from_variables(lookup).address("web", 80).await.unwrap();
            assert_eq!(address, wanted.map(|wanted| wanted.parse().unwrap()), "{variables:?}");
        }
        let malformed = Proxies::always("http://127.0.0.1".to_owned()).address("web", 80).await.unwrap_err();
        assert_eq!(malformed.to_string(), "the proxy 'http://127.0.0.1' is not of the form http://HOST:PORT");
    }
}
