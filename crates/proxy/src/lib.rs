//! The data plane: what happens to a request between the pod that sends it and the pod that answers.
//!
//! The door: [`Proxy`] holds what the workers share, [`Workers`] runs one current-thread runtime a core with listeners,
//! links and pools of its own. Start reading at `outbound.rs` (the sender's side) and `inbound.rs` (the receiver's).

pub mod config;
pub mod status;
pub mod workers;

pub use config::{Config, MissingPeer, Timeouts};
pub use status::{LinkStatus, Proxy};
pub use workers::Workers;
