//! The data plane: what happens to a request between the pod that sends it and the pod that answers.
//!
//! The door: [`Proxy`] holds what the workers share, [`Workers`] runs one current-thread runtime a core with listeners,
//! links and pools of its own. Start reading at `outbound.rs` (the sender's side) and `inbound.rs` (the receiver's).

mod authorise;
mod backend;
mod balance;
mod body;
mod client;
mod coalesce;
pub mod config;
mod detect;
mod downstream;
pub mod egress;
pub mod error;
mod exchange;
// Public for the fuzz targets only.
#[doc(hidden)]
pub mod h1;
mod h2conn;
mod h2pool;
mod h2stream;
mod idle;
mod inbound;
mod link;
mod link_conn;
mod link_server;
mod metrics;
mod outbound;
mod pods;
mod pressure;
mod serve;
pub mod status;
mod stream;
mod tunnel;
mod worker;
pub mod workers;

pub use config::{Config, MissingPeer, Timeouts};
pub use egress::{Allow, AllowList, Egress, Outside, SystemOutside};
pub use error::ErrorKind;
pub use metrics::METRICS;
pub use status::{LinkStatus, Proxy, Trust};
pub use workers::Workers;
