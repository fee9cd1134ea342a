//! `tcp`: a protocol in which the server speaks first, so that nothing can be detected from the client's bytes: one line that
//! names the pod and node, then every byte comes back until the client ends.

use std::io;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use crate::{Place, Shutdown, hello, server};

/// Serves `tcp` on `listener` until `shutdown`; open connections then have its grace to end.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(listener: TcpListener, place: Place, shutdown: Shutdown) -> io::Result<()> {
    let line = hello::line(&place);
    server::accept(listener, shutdown, move |stream| {
        let line = line.clone();
        async move {
            // A client's broken connection is the client's matter.
            let _ = talk(stream, &line).await;
        }
    })
    .await
}

async fn talk(mut stream: TcpStream, line: &str) -> io::Result<()> {
    stream.write_all(line.as_bytes()).await?;
    let (mut reader, mut writer) = stream.split();
    tokio::io::copy(&mut reader, &mut writer).await?;
    writer.shutdown().await
}
