//! Regression tests of a hostile review: pods, clients and EndpointSlices that try to speak for others, to take the node's
//! proxy or a link away from others, or to reach what they may not. One module a kind of attacker.

mod answers;
mod links;
mod nodes;
mod pods;
mod requests;

use std::future::Future;
use std::sync::Arc;

use tokio::io::AsyncReadExt;

use crate::harness::{Frames, Pod, Wire, within};

/// A pod that writes HTTP/2 frame by frame; `serve` gets each connection and its number from 0.
async fn h2_pod<F, Fut>(node: &'static str, last: u8, serve: F) -> Pod
where
    F: Fn(Frames, usize) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let serve = Arc::new(serve);
    Pod::raw(node, last, move |wire, n| {
        let serve = Arc::clone(&serve);
        async move {
            if let Some(frames) = Frames::accept(wire, &[]).await {
                serve(frames, n).await;
            }
        }
    })
    .await
}

/// Opens a tunnel to port 80 of `web.demo`.
async fn connect(wire: &mut Wire) {
    wire.send("CONNECT web.demo:80 HTTP/1.1\r\nHost: web.demo:80\r\n\r\n").await;
    assert!(wire.head().await.line.starts_with("HTTP/1.1 200 "));
}

/// Reads until nothing more comes, and says whether it ended by a reset.
async fn is_broken_off(wire: &mut Wire) -> bool {
    within("the connection's end", async {
        loop {
            match wire.stream.read_buf(&mut wire.buf).await {
                Ok(0) => return false,
                Ok(_) => {}
                Err(_) => return true,
            }
        }
    })
    .await
}

fn contains(bytes: &[u8], what: &str) -> bool {
    memchr::memmem::find(bytes, what.as_bytes()).is_some()
}
