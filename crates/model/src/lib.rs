//! The words that the other crates share: names, addresses, the directory, statistics and the seam to the link's
//! transport. No IO and no policy live here. `discovery` writes the [`Directory`], `proxy` reads it, `identity`
//! implements [`transport::LinkTransport`]; they never use each other.
//! Start at [`directory`]: everything a request needs to know about the cluster is one immutable value.

pub mod address;
pub mod authority;
mod causes;
pub mod directory;
pub mod issuance;
pub mod metric;
pub mod resolve;
pub mod stats;
pub mod transport;
pub mod workload;

pub use authority::{Authority, AuthorityError, Host};
pub use causes::chain;
pub use directory::{
    AppProtocol, BackendTls, Directory, DirectoryHandle, Endpoint, EndpointSet, EndpointState, Node, Peer, Pod, PodRef,
    Service, ServiceKey, ServiceKind, ServicePort,
};
pub use metric::MetricDoc;
pub use resolve::{Destination, Unresolved};
pub use stats::EndpointStats;
