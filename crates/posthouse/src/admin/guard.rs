//! Which requests the admin API answers at all. A web page that an operator has open could make the browser ask
//! `http://localhost:9990/…`; what it could learn there is the cluster's inner life. Browsers give such requests away by
//! `Origin` and `Sec-Fetch-Site` and, where the page's own name was rebound to 127.0.0.1, by `Host`.

use http::request::Parts;
use http::{HeaderMap, header};
use posthouse_model::{Authority, Host};

/// Says whether the request may be answered.
///
/// # Errors
/// What was wrong with it and what to do instead.
pub(super) fn check(request: &Parts) -> Result<(), &'static str> {
    let host = match (request.uri.authority(), single(&request.headers, header::HOST)?) {
        (Some(authority), _) => Some(authority.as_str()),
        (None, host) => host,
    };
    // HTTP/1.0 tools send none; browsers always do.
    if host.is_some_and(|host| !is_local(host)) {
        return Err("the Host is a name, which a foreign web page could have rebound; ask by IP address or localhost");
    }
    if single(&request.headers, header::HeaderName::from_static("sec-fetch-site"))? == Some("cross-site") {
        return Err("a page of another site asked; open the address by hand or use curl");
    }
    match single(&request.headers, header::ORIGIN)? {
        None => Ok(()),
        Some(origin) if origin.strip_prefix("http://").is_some_and(|origin| Some(origin) == host) => Ok(()),
        Some(_) => Err("a page of another origin asked; open the address by hand or use curl"),
    }
}

/// The one value of a header, if it is there.
fn single(headers: &HeaderMap, name: header::HeaderName) -> Result<Option<&str>, &'static str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| "a header holds bytes that are no text"),
        (Some(_), Some(_)) => Err("a header that may come once came twice"),
    }
}

/// An IP literal or localhost, with or without a port.
fn is_local(host: &str) -> bool {
    match Authority::parse(host) {
        Ok(Authority { host: Host::Ip(_), .. }) => true,
        Ok(Authority { host: Host::Name(name), .. }) => name.eq_ignore_ascii_case("localhost"),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(uri: &str, headers: &[(&str, &str)]) -> bool {
        let mut request = http::Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap().into_parts().0).is_ok()
    }

    #[test]
    fn only_requests_that_a_person_here_can_have_made_are_answered() {
        for host in ["127.0.0.1", "127.0.0.1:9990", "localhost:1234", "LOCALHOST", "[::1]:9990", "10.0.0.7:9990"] {
            assert!(asked("/", &[("host", host)]), "{host}");
            assert!(asked(&format!("http://{host}/"), &[("host", "ignored.example")]), "{host} in the target");
        }
        for host in ["evil.example", "localhost.evil.example:9990", "127.0.0.1.evil.example", "", "[::1", "0x7f.1"] {
            assert!(!asked("/", &[("host", host)]), "{host}");
        }
        assert!(asked("/", &[]), "HTTP/1.0 without a Host");
        assert!(!asked("/", &[("host", "localhost"), ("host", "evil.example")]), "two hosts");
        assert!(!asked("http://evil.example/", &[("host", "localhost")]), "the target wins over Host");
    }

    #[test]
    fn browsers_tell_on_foreign_pages() {
        let local = ("host", "localhost:9990");
        assert!(asked("/", &[local, ("sec-fetch-site", "none")]), "typed by hand");
        assert!(asked("/", &[local, ("sec-fetch-site", "same-origin"), ("origin", "http://localhost:9990")]));
        assert!(!asked("/", &[local, ("sec-fetch-site", "cross-site")]));
        assert!(!asked("/", &[local, ("origin", "https://evil.example")]));
        assert!(!asked("/", &[local, ("origin", "http://localhost:3000")]), "another local server's page");
        assert!(!asked("/", &[local, ("origin", "null")]));
    }
}
