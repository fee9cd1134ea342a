//! What the tests stand on: two proxies in one process ([`Mesh`]), fake pods ([`Pod`]), clients as raw bytes ([`Wire`])
//! and as HTTP/2 ([`H2`]). Every wait ends after [`LIMIT`] with what was waited for.

mod frames;
mod h2client;
mod mesh;
mod pod;
mod wire;

use std::future::Future;
use std::time::Duration;

pub(crate) use frames::{FrameKind, Frames, Outcome};
pub(crate) use h2client::{H2, Reply, read_body, send_all};
pub(crate) use mesh::{A, B, End, Mesh, Node, Svc, Trust, pod_ip, refusing};
pub(crate) use pod::{Answering, Pod, answer, full};
pub(crate) use wire::{Answer, Wire};

/// The longest that anything is waited for; long, because the machine may be busy with other tests.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Waits for `work`, and fails the test with `what` when it takes too long.
pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, work).await {
        Ok(done) => done,
        Err(_) => panic!("waited {LIMIT:?} in vain for {what}"),
    }
}

/// Waits until `condition` holds: for counters of the workers' threads, which cannot be awaited.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// `len` bytes that differ from place to place, so that a lost, doubled or swapped piece is seen.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64: quick, and without a period that a buffer's size could fit.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Compares long bodies without printing them.
#[track_caller]
pub(crate) fn assert_same(got: &[u8], expected: &[u8], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    if let Some(at) = got.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("{what}: byte {at} of {} differs", got.len());
    }
}
