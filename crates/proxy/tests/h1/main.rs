//! The HTTP/1.1 codec against its corpus (`tests/data/*.txt`), against properties over generated input, and against
//! hyper as a second parser.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail their test")]

mod chunks;
mod corpus;
mod heads;
mod properties;
mod second_parser;
