//! A server that answers whatever it is asked, for tools that judge an HTTP/2 server from outside:
//!
//! ```sh
//! go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1
//! cargo run --release -p posthouse-wire --example serve -- 127.0.0.1:8080 &
//! h2spec -h 127.0.0.1 -p 8080 --strict
//! ```

use std::future::poll_fn;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use posthouse_wire::{Accepted, Config, Error, accept};
use tokio::net::{TcpListener, TcpStream};

const CONFIG: Config = Config {
    stream_window: 1 << 20,
    connection_window: 1 << 24,
    max_frame: 1 << 14,
    max_streams: 100,
    max_header_list: 16 << 10,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let listener = TcpListener::bind(address).await?;
    tokio::task::LocalSet::new()
        .run_until(async {
            loop {
                let (io, _) = listener.accept().await?;
                tokio::task::spawn_local(connection(io));
            }
        })
        .await
}

async fn connection(io: TcpStream) -> Result<(), Error> {
    let mut connection = accept(io, CONFIG).await?;
    while let Some(accepted) = poll_fn(|cx| connection.poll_accept(cx)).await {
        tokio::task::spawn_local(answer(accepted?));
    }
    Ok(())
}

/// Reads the request to its end, then answers with a few bytes.
async fn answer(Accepted { mut recv, mut send, .. }: Accepted) -> Result<(), Error> {
    while let Some(data) = poll_fn(|cx| recv.poll_data(cx)).await {
        recv.release(data?.len());
    }
    poll_fn(|cx| recv.poll_trailers(cx)).await?;
    send.answer(StatusCode::OK, &HeaderMap::new(), false)?;
    let mut body = Bytes::from_static(b"a few bytes\n");
    poll_fn(|cx| send.poll_send(cx, &mut body, true)).await
}
