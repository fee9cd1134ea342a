//! Any bytes as what a peer sends on a link, to both roles, cut anywhere, while streams are answered, read and dropped: no panic, no
//! endless loop, no more streams than may be open, and an output that is bounded although nobody may read it.
#![no_main]

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, uri};
use libfuzzer_sys::fuzz_target;
use posthouse_wire::{Ask, Config, RecvStream, SendStream, accept, connect};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const CONFIG: Config =
    Config { stream_window: 1 << 16, connection_window: 1 << 17, max_frame: 1 << 14, max_streams: 16, max_header_list: 1 << 14 };

/// Gives the bytes in pieces, with a wait between; takes all, or nothing.
struct Pipe<'a> {
    bytes: &'a [u8],
    piece: usize,
    waited: bool,
    takes: bool,
}

impl AsyncRead for Pipe<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.waited = !self.waited;
        if self.waited || self.bytes.is_empty() {
            return Poll::Pending;
        }
        let n = self.piece.min(self.bytes.len()).min(buf.remaining());
        let (now, later) = self.bytes.split_at(n);
        buf.put_slice(now);
        self.bytes = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.takes { Poll::Ready(Ok(buf.len())) } else { Poll::Pending }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What a task might do with its stream; whether it goes on.
fn act(recv: &mut RecvStream, send: &mut SendStream, what: u8, cx: &mut Context<'_>) -> bool {
    while recv.interim().is_some() {}
    let _ = recv.poll_head(cx);
    match what % 6 {
        0 => drop(send.answer(StatusCode::OK, &HeaderMap::new(), what & 8 != 0)),
        1 => drop(send.poll_send(cx, &mut Bytes::from_static(&[7; 3_000]), what & 8 != 0)),
        2 => drop(send.end()),
        3 => return false,
        _ => {
            while let Poll::Ready(Some(Ok(data))) = recv.poll_data(cx) {
                recv.release(data.len());
            }
            let _ = recv.poll_trailers(cx);
        }
    }
    true
}

fuzz_target!(|data: &[u8]| {
    let [role, piece, acts, bytes @ ..] = data else { return };
    let mut cx = Context::from_waker(Waker::noop());
    let io = Pipe { bytes, piece: usize::from(*piece) + 1, waited: false, takes: role & 2 != 0 };
    let mut streams: Vec<(RecvStream, SendStream)> = Vec::new();
    let mut connection = if role & 1 == 0 {
        let (opener, connection) = connect(io, CONFIG);
        let path = uri::PathAndQuery::from_static("/");
        for _ in 0..3 {
            let ask = Ask {
                method: &Method::POST,
                scheme: Some(&uri::Scheme::HTTP),
                authority: b"web",
                path: Some(&path),
                protocol: None,
                headers: &HeaderMap::new(),
                extra: &[],
            };
            streams.extend(opener.open(&ask, false));
        }
        connection
    } else {
        // The preface is of no interest here.
        let said = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes].concat();
        return server(Pipe { bytes: &said, ..io }, *acts);
    };
    for turn in 0..2 * bytes.len() + 4 {
        let over = connection.poll_closed(&mut cx).is_ready();
        let mut number = turn as u8;
        streams.retain_mut(|(recv, send)| {
            number = number.wrapping_add(*acts);
            act(recv, send, number, &mut cx)
        });
        if over {
            break;
        }
    }
});

fn server(io: Pipe<'_>, acts: u8) {
    let mut cx = Context::from_waker(Waker::noop());
    let mut streams: Vec<(RecvStream, SendStream)> = Vec::new();
    let turns = 2 * io.bytes.len() + 4;
    let mut accepting = Box::pin(accept(io, CONFIG));
    let mut connection = loop {
        match accepting.as_mut().poll(&mut cx) {
            Poll::Ready(connection) => break connection.expect("the preface is right"),
            Poll::Pending => {}
        }
    };
    for turn in 0..turns {
        let mut number = turn as u8;
        loop {
            match connection.poll_accept(&mut cx) {
                Poll::Ready(Some(Ok(accepted))) => streams.push((accepted.recv, accepted.send)),
                Poll::Ready(_) => return,
                Poll::Pending => break,
            }
        }
        assert!(streams.len() <= 32, "twice as many as may be open");
        streams.retain_mut(|(recv, send)| {
            number = number.wrapping_add(acts);
            act(recv, send, number, &mut cx)
        });
    }
}
