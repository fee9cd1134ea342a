//! Names, addresses and the directory: what leads to an endpoint, what leads nowhere, and that the indexes stay true.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail their test")]

mod authority;
#[path = "../data/ssrf/corpus.rs"]
#[allow(dead_code, reason = "each test uses its own part")]
mod corpus;
mod directory;
mod fixture;
mod resolve;
mod ssrf;
