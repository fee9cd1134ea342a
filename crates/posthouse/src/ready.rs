//! `posthouse ready`: asks the proxy of this container, and no other, whether it is ready. An HTTP probe cannot: during an
//! upgrade the old and the new proxy of a node share their TCP ports (SO_REUSEPORT), so the old one would answer for the new
//! one and be ended before the new one serves.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// The answer is made from what is in memory; only a proxy that hangs takes longer. Shorter than the chart's probe waits, so
/// that the reason is told.
const PATIENCE: Duration = Duration::from_secs(3);

/// Asks by the proxy's `--admin-socket`.
///
/// # Errors
/// It is not ready, or does not answer; in one line.
pub(crate) fn ready(socket: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match tokio::time::timeout(PATIENCE, ask(socket)).await {
            Ok(outcome) => outcome,
            Err(_) => bail!("the proxy does not answer within {PATIENCE:?} on {}", socket.display()),
        }
    })
}

async fn ask(socket: &Path) -> anyhow::Result<()> {
    let hint = || format!("no proxy answers on {}; is it running, with --admin-socket?", socket.display());
    let stream = UnixStream::connect(socket).await.with_context(hint)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/readyz").header("host", "localhost").body(Empty::<Bytes>::new())?;
    let exchange = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        anyhow::Ok((head.status, body.collect().await?.to_bytes()))
    };
    let (status, text) = tokio::select! {
        answer = exchange => answer.with_context(hint)?,
        _ = connection => bail!(hint()),
    };
    match status {
        StatusCode::OK => Ok(()),
        _ => bail!("{}", String::from_utf8_lossy(&text).trim()),
    }
}
