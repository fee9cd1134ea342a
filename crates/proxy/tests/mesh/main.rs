//! The data plane as a whole: two proxies on loopback over hand-made directories, fake pods behind them, clients that
//! speak real HTTP or raw bytes. One module a subject; `harness` is what they share.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail their test")]

mod back_pressure;
mod bodies;
mod cancel;
mod early;
mod forward;
mod framing;
mod harness;
mod hostile;
mod interim;
mod malformed;
mod retry;
mod reuse;
