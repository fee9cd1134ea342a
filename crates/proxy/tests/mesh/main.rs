//! The data plane as a whole: two proxies on loopback over hand-made directories, fake pods behind them, clients that
//! speak real HTTP or raw bytes. One module a subject; `harness` is what they share.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail their test")]

mod back_pressure;
mod bodies;
mod cancel;
mod clients;
mod connect;
#[path = "../../../model/tests/data/ssrf/corpus.rs"]
mod corpus;
mod drain;
mod early;
mod egress;
mod endpoints;
mod errors;
mod forward;
mod framing;
mod h2_edges;
mod harness;
mod hostile;
mod interim;
mod limits;
mod link;
mod malformed;
mod missing_peer;
mod origination;
mod policies;
mod retry;
mod reuse;
mod ssrf;
mod translate;
mod trust;
mod upgrade;
