//! What the data plane is told of the world outside of the cluster: which of it is open ([`AllowList`]) and how it is reached
//! ([`Outside`]). The decision about a request is in `outbound/egress.rs`.

mod allow;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::metrics::limit_reached;
pub use allow::{Allow, AllowError, AllowList};
pub(crate) use allow::{Verdict, is_of_cluster};

/// Lookups of the whole process at a time; more wait, within the limit of their request. A lookup takes a thread until the
/// resolver gives up, however short the request's own patience is.
const LOOKUPS: usize = 16;

/// A boxed future: lookups and connections are rare against requests.
pub type Work<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

/// The way to what is outside of the cluster; a trait so that tests can have a world of their own.
pub trait Outside: fmt::Debug + Send + Sync {
    /// Every address of a name (in lower case, without its final dot). The caller bounds the time.
    fn resolve(&self, name: &str) -> Work<Vec<IpAddr>>;
    /// A connection to an address that was checked; it must not be looked up or changed any more. The caller bounds the time.
    fn connect(&self, address: SocketAddr) -> Work<TcpStream>;
}

/// Settings for what is outside of the cluster.
#[derive(Clone, Debug)]
pub struct Egress {
    /// What may be reached.
    pub allow: AllowList,
    /// By which way.
    pub outside: Arc<dyn Outside>,
}

impl Egress {
    /// Nothing outside is served.
    #[must_use]
    pub fn closed() -> Self {
        Self { allow: AllowList::default(), outside: Arc::new(Nowhere) }
    }
}

/// No world at all, for a list that is empty.
#[derive(Debug)]
struct Nowhere;

impl Outside for Nowhere {
    fn resolve(&self, _: &str) -> Work<Vec<IpAddr>> {
        Box::pin(std::future::ready(Err(io::ErrorKind::Unsupported.into())))
    }

    fn connect(&self, _: SocketAddr) -> Work<TcpStream> {
        Box::pin(std::future::ready(Err(io::ErrorKind::Unsupported.into())))
    }
}

/// The machine's own resolver, on the blocking threads of the runtime that it was made for.
#[derive(Debug)]
pub struct SystemOutside {
    runtime: Handle,
    lookups: Arc<Semaphore>,
}

impl SystemOutside {
    /// Looks up on `runtime`, which should not be a worker's: its threads may outlive their requests.
    #[must_use]
    pub fn new(runtime: Handle) -> Self {
        Self { runtime, lookups: Arc::new(Semaphore::new(LOOKUPS)) }
    }
}

impl Outside for SystemOutside {
    fn resolve(&self, name: &str) -> Work<Vec<IpAddr>> {
        // The final dot keeps the resolver's search list out: `api.example.com` must not become a name of the cluster.
        let name = format!("{name}.");
        let (runtime, lookups) = (self.runtime.clone(), Arc::clone(&self.lookups));
        Box::pin(async move {
            let permit = match Arc::clone(&lookups).try_acquire_owned() {
                Ok(permit) => permit,
                Err(_) => {
                    limit_reached("egress_lookups");
                    lookups.acquire_owned().await.map_err(io::Error::other)?
                }
            };
            let lookup = runtime.spawn_blocking(move || {
                let _permit = permit;
                Ok((name.as_str(), 0).to_socket_addrs()?.map(|address| address.ip()).collect())
            });
            lookup.await.map_err(io::Error::other)?
        })
    }

    fn connect(&self, address: SocketAddr) -> Work<TcpStream> {
        Box::pin(TcpStream::connect(address))
    }
}
