//! Where a URL's requests go and how they are written: to a proxy in absolute form, to the host itself in origin form.

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::HOST;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use http_body_util::Full;

use crate::client::Failure;
use crate::proxies::Proxies;

/// A URL and the way to it, resolved once.
#[derive(Clone, Debug)]
pub struct Target {
    /// Whom to connect to: the proxy or the URL's host.
    pub address: SocketAddr,
    /// The form of the requests on this way.
    pub form: Form,
    uri: Uri,
    authority: Authority,
}

/// How a request names its target (RFC 9112 §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The whole URL: for a proxy, and for every HTTP/2 request.
    Absolute,
    /// The path, and the host in Host: for a server, also at the end of a tunnel.
    Origin,
}

impl Target {
    /// The way that `proxies` say to `url`.
    ///
    /// # Errors
    /// When the URL is not `http://HOST…`, or no address can be found.
    pub async fn of(url: &Uri, proxies: &Proxies) -> Result<Self, Failure> {
        let authority = authority(url)?;
        Self::at(url, authority.host(), authority.port_u16().unwrap_or(80), proxies).await
    }

    /// The way that `proxies` say to `host:port`, where `url` will be asked for, whatever host it names.
    ///
    /// # Errors
    /// As [`Target::of`].
    pub async fn at(url: &Uri, host: &str, port: u16, proxies: &Proxies) -> Result<Self, Failure> {
        let (address, form) = match proxies.address(host, port).await? {
            Some(proxy) => (proxy, Form::Absolute),
            None => (resolve(host, port).await?, Form::Origin),
        };
        Ok(Self { address, form, uri: url.clone(), authority: authority(url)?.clone() })
    }

    /// A request for the URL. `headers` may bring a Host of their own.
    ///
    /// # Errors
    /// When the host is none that a header can name.
    pub fn request(
        &self,
        form: Form,
        method: Method,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = match form {
            Form::Absolute => self.uri.clone(),
            Form::Origin => {
                let path = self.uri.path_and_query().cloned();
                path.unwrap_or_else(|| PathAndQuery::from_static("/")).into()
            }
        };
        *request.headers_mut() = headers;
        if !request.headers().contains_key(HOST) {
            request.headers_mut().insert(HOST, HeaderValue::from_str(self.authority.as_str())?);
        }
        Ok(request)
    }
}

fn authority(url: &Uri) -> Result<&Authority, Failure> {
    let authority = url.authority().filter(|_| url.scheme_str() == Some("http"));
    Ok(authority.ok_or_else(|| format!("'{url}' is not of the form http://HOST[:PORT]/PATH"))?)
}

/// The first address of `host:port`; brackets around an IPv6 address do no harm.
///
/// # Errors
/// When it has none.
pub async fn resolve(host: &str, port: u16) -> Result<SocketAddr, Failure> {
    let mut addresses = tokio::net::lookup_host((host.trim_matches(['[', ']']), port))
        .await
        .map_err(|error| format!("no address of '{host}': {error}"))?;
    Ok(addresses.next().ok_or_else(|| format!("'{host}' has no address"))?)
}
