//! Requests that leave the cluster: what the directory does not know goes out when `--egress-allow` opens it. A name is
//! resolved once, every address that came back is checked, and the checked addresses themselves become the endpoints of a
//! destination, so that nothing can be looked up again on the way.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use metrics::counter;
use posthouse_model::address::{self, Refusal};
use posthouse_model::{
    AppProtocol, Authority, Destination, Directory, Endpoint, EndpointSet, EndpointState, Host, Service, ServiceKind,
    ServicePort, Unresolved,
};
use tokio::sync::OnceCell;
use tracing::debug;

use super::unresolved_error;
use crate::client::Client;
use crate::egress::{Verdict, is_of_cluster};
use crate::error::{Error, ErrorKind, Retry};
use crate::exchange::Request;
use crate::inbound::Delivery;
use crate::metrics::{EGRESS_REFUSED, limit_reached};
use crate::pods;
use crate::status::Proxy;

/// What stands for all destinations outside in metrics: their names are the clients' to choose.
const SERVICE: &str = "egress";
/// Names whose addresses a worker remembers.
const MAX_NAMES: usize = 1024;
/// Addresses of one name that are used; all are checked.
const MAX_ADDRESSES: usize = 16;
/// How long a lookup that failed is answered by the same failure.
const FAILED_LIFE: Duration = Duration::from_secs(1);

/// A destination outside, and how long its addresses may be used.
pub(super) struct Way {
    pub(super) destination: Destination,
    pub(super) life: Duration,
}

/// What the client asks for outside.
enum Asked {
    Name(String),
    Ip(IpAddr),
}

/// The way out for an authority that the directory does not know, or why there is none.
pub(super) async fn leave(
    client: &Client,
    directory: &Directory,
    authority: &Authority<'_>,
    default_port: u16,
    unresolved: Unresolved,
) -> Result<Way, Error> {
    let proxy = &client.worker.proxy;
    let config = &proxy.config;
    let Some(asked) = asked(authority, &unresolved, &config.cluster_domain) else {
        return Err(unresolved_error(&unresolved));
    };
    let port = authority.port.unwrap_or(default_port);
    let verdict = match &asked {
        Asked::Name(name) => config.egress.allow.name(name, port),
        Asked::Ip(ip) => config.egress.allow.address(*ip, port),
    };
    match verdict {
        Verdict::Allowed => {}
        Verdict::NotListed => return Err(refused("not_listed", unresolved_error(&unresolved))),
        Verdict::OtherPorts => {
            let details = format!("--egress-allow opens {} for other ports only, not for {port}", asked.text());
            return Err(refused("port", Error::client(ErrorKind::HttpRequestDenied, details)));
        }
    }
    let (addresses, life) = match &asked {
        Asked::Name(name) => client.worker.names.lookup(proxy, name).await?,
        Asked::Ip(ip) => (Rc::from([*ip]), config.timeouts.egress_life),
    };
    // One bad address spoils the name: whoever answers so wants to lead us somewhere, by this answer or the next.
    for ip in addresses.iter() {
        check(proxy, directory, SocketAddr::new(*ip, port)).map_err(|refusal| {
            let details = match &asked {
                Asked::Name(name) => format!("'{name}' is refused: it resolves to {ip}, {refusal}"),
                Asked::Ip(ip) => format!("{ip} is refused: {refusal}"),
            };
            refused("address", Error::client(ErrorKind::DestinationIpProhibited, details))
        })?;
    }
    Ok(Way { destination: destination(&addresses, port), life })
}

/// What could be outside of all that the directory does not know. The cluster's own names never are.
fn asked(authority: &Authority<'_>, unresolved: &Unresolved, cluster_domain: &str) -> Option<Asked> {
    let host = match unresolved {
        Unresolved::UnknownName { .. } | Unresolved::UnknownAddress { .. } => authority.host,
        Unresolved::ExternalName { target, .. } => {
            let target = Authority::parse(target).ok()?;
            if target.port.is_some() {
                return None;
            }
            target.host
        }
        Unresolved::NeedsNamespace { .. }
        | Unresolved::UnknownPort { .. }
        | Unresolved::UnknownHostname { .. }
        | Unresolved::Refused { .. } => return None,
    };
    match host {
        Host::Ip(ip) => Some(Asked::Ip(ip)),
        Host::Name(name) => {
            let name = name.to_ascii_lowercase();
            (name.contains('.') && !is_of_cluster(&name, cluster_domain)).then_some(Asked::Name(name))
        }
    }
}

impl Asked {
    fn text(&self) -> String {
        match self {
            Self::Name(name) => format!("'{name}'"),
            Self::Ip(ip) => ip.to_string(),
        }
    }
}

fn refused(reason: &'static str, error: Error) -> Error {
    counter!(EGRESS_REFUSED, "reason" => reason).increment(1);
    error
}

/// Whether an address outside may be dialled: asked when a destination is made, and again before each dial.
fn check(proxy: &Proxy, directory: &Directory, address: SocketAddr) -> Result<(), Refusal> {
    // The Node object may not be there (yet).
    if proxy.config.node_ips.contains(&address.ip()) {
        return Err(Refusal::Node);
    }
    address::check_outside(address, directory)?;
    // A listed name may lead to a pod then; a private network that is listed is the operator's own word.
    let listed = || proxy.config.egress.allow.private(address.ip(), address.port());
    if address::may_be_pod(address.ip(), directory) && !listed() {
        return Err(Refusal::PerhapsPod);
    }
    Ok(())
}

/// [`check`] on the way.
pub(super) fn check_again(proxy: &Proxy, directory: &Directory, address: SocketAddr) -> Result<(), Error> {
    check(proxy, directory, address).map_err(|refusal| {
        let details = format!("{address} is refused: it is {refusal}");
        refused("address", Error::upstream(ErrorKind::DestinationIpProhibited, Retry::Safe, details))
    })
}

/// The addresses as a Service that no directory has. Those that this machine has no route to (IPv6 where there is none) are
/// left out unless there are no others.
fn destination(addresses: &[IpAddr], port: u16) -> Destination {
    let endpoint = |ip: &IpAddr| {
        Arc::new(Endpoint {
            address: SocketAddr::new(*ip, port),
            node: None,
            zone: None,
            hostname: None,
            pod: None,
            state: EndpointState::Ready,
            refusal: None,
            stats: Arc::default(),
        })
    };
    let routed: Vec<&IpAddr> = addresses.iter().filter(|ip| pods::has_route(SocketAddr::new(**ip, port))).collect();
    let used: Vec<_> = if routed.is_empty() { addresses.iter().collect() } else { routed };
    let endpoints = used.into_iter().take(MAX_ADDRESSES).map(endpoint).collect();
    let service = Service {
        namespace: Arc::from(""),
        name: Arc::from(SERVICE),
        kind: ServiceKind::Headless,
        tls: None,
        backend: None,
        ports: vec![ServicePort {
            name: Arc::from(""),
            port,
            app_protocol: AppProtocol::Unknown,
            endpoints: Arc::new(EndpointSet::new(endpoints)),
        }],
        changed: SystemTime::now(),
    };
    Destination { service: Arc::new(service), port: 0, endpoint: None }
}

/// How a request is handed to a host outside. Servers there speak HTTP/1.1 in the clear; HTTP/2 goes to who must understand it.
pub(super) fn delivery(client: &Client, request: &Request) -> Result<Delivery, Error> {
    if client.tunnel.is_none() && request.https {
        let details = "https to a host outside of the cluster goes by CONNECT: the proxy makes no TLS of its own";
        return Err(refused("https", Error::client(ErrorKind::HttpRequestDenied, details)));
    }
    let as_it_came = request.is_grpc() || client.tunnel.is_some();
    Ok(if request.h2 && request.upgrade.is_none() && as_it_came { Delivery::Http2 } else { Delivery::Http1 })
}

/// A lookup's answer, kept with its failure.
type Answer = Result<Rc<[IpAddr]>, (ErrorKind, String)>;

struct Known {
    since: Instant,
    answer: Rc<OnceCell<Answer>>,
}

impl Known {
    /// How much longer the answer may be used.
    fn left(&self, life: Duration, now: Instant) -> Duration {
        let life = match self.answer.get() {
            Some(Err(_)) => FAILED_LIFE.min(life),
            Some(Ok(_)) | None => life,
        };
        life.saturating_sub(now.saturating_duration_since(self.since))
    }
}

/// The addresses of names that a worker has asked for lately. Those who ask for one name at a time share one lookup.
#[derive(Default)]
pub(crate) struct Names(RefCell<HashMap<Box<str>, Known>>);

impl Names {
    /// The addresses of `name`, and how long they may be used.
    async fn lookup(&self, proxy: &Proxy, name: &str) -> Result<(Rc<[IpAddr]>, Duration), Error> {
        let life = proxy.config.timeouts.egress_life;
        let (answer, left) = self.known(name, life, Instant::now());
        match answer.get_or_init(|| ask(proxy, name)).await {
            Ok(addresses) => Ok((Rc::clone(addresses), left)),
            Err((kind, details)) => Err(refused(kind.token(), Error::client(*kind, details.clone()))),
        }
    }

    fn known(&self, name: &str, life: Duration, now: Instant) -> (Rc<OnceCell<Answer>>, Duration) {
        let mut names = self.0.borrow_mut();
        if let Some(known) = names.get(name) {
            let left = known.left(life, now);
            if !left.is_zero() {
                return (Rc::clone(&known.answer), left);
            }
        }
        if names.len() >= MAX_NAMES {
            names.retain(|_, known| !known.left(life, now).is_zero());
            if names.len() >= MAX_NAMES {
                limit_reached("egress_names");
                names.clear();
            }
        }
        let answer = Rc::new(OnceCell::new());
        names.insert(Box::from(name), Known { since: now, answer: Rc::clone(&answer) });
        (answer, life)
    }
}

async fn ask(proxy: &Proxy, name: &str) -> Answer {
    let limit = proxy.config.timeouts.dns;
    let answer = match tokio::time::timeout(limit, proxy.config.egress.outside.resolve(name)).await {
        Ok(Ok(addresses)) if addresses.is_empty() => Err((ErrorKind::DnsError, format!("'{name}' has no address"))),
        Ok(Ok(addresses)) => Ok(Rc::from(addresses)),
        Ok(Err(error)) => Err((ErrorKind::DnsError, format!("'{name}' cannot be resolved: {error}"))),
        Err(_) => Err((ErrorKind::DnsTimeout, format!("no resolver answered for '{name}' in {limit:?}"))),
    };
    debug!(name, ?answer, "looked up a name outside");
    answer
}
