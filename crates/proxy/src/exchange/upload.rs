//! The request's body on its way up, over HTTP/2 or HTTP/1, as fast as the other side takes it.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::body::{Body, Frame};
use crate::error::{Error, ErrorKind};
use crate::h1::{self, BodyLength};
use crate::h2stream::{Reason, SendStream};
use crate::pressure::Stall;
use crate::stream::SharedIo;

/// The request's body on its way up. `Ok` when all was sent or the other side wants no more.
pub(crate) type Upload = Pin<Box<dyn Future<Output = Result<(), Error>>>>;

/// Sends a body on an HTTP/2 stream.
pub(crate) async fn upload_h2(mut body: Body, mut send: SendStream) -> Result<(), Error> {
    loop {
        // While the body is quiet, notice when the other side wants no more of it.
        let frame = poll_fn(|cx| match body.poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => match send.poll_reset(cx) {
                Poll::Ready(_) => Poll::Ready(Err(())),
                Poll::Pending => Poll::Pending,
            },
        })
        .await;
        let sent = match frame {
            Err(()) => return Ok(()),
            Ok(Some(Ok(Frame::Data(mut data)))) => {
                let end = body.is_end();
                let mut stall = Stall::default();
                let sent = poll_fn(|cx| {
                    let before = data.len();
                    let sent = send.poll_send(cx, &mut data, end);
                    if sent.is_pending() {
                        poll_stalled(&mut stall, data.len() != before, &mut body, cx)?;
                    }
                    sent.map_err(Ok)
                })
                .await;
                let sent = match sent {
                    Err(Err(error)) => {
                        send.reset(Reason::CANCEL);
                        return Err(error);
                    }
                    Err(Ok(gone)) => Err(gone),
                    Ok(()) => Ok(()),
                };
                if end && sent.is_ok() {
                    return Ok(());
                }
                sent
            }
            Ok(Some(Ok(Frame::Trailers(trailers)))) => {
                let _ = send.end(Some(trailers));
                return Ok(());
            }
            Ok(None) => {
                let _ = send.end(None);
                return Ok(());
            }
            Ok(Some(Err(error))) => {
                send.reset(Reason::CANCEL);
                return Err(error);
            }
        };
        if sent.is_err() {
            // The stream is closed: what the other side answers, if anything, says why.
            return Ok(());
        }
    }
}

/// While the other side takes nothing of a body: read ahead, and give the exchange up when memory is short.
pub(super) fn poll_stalled<E>(
    stall: &mut Stall,
    moved: bool,
    body: &mut Body,
    cx: &mut Context<'_>,
) -> Result<(), Result<E, Error>> {
    if moved {
        stall.moved();
    }
    body.prefetch(cx);
    if stall.poll(cx).is_ready() {
        return Err(Err(Error::internal(
            ErrorKind::ConnectionLimitReached,
            "given up: its reader has stalled, and stalled streams hold more memory than they may",
        )));
    }
    Ok(())
}

/// Sends a body on an HTTP/1 connection whose head is already in its write buffer.
pub(crate) async fn upload_h1(mut body: Body, io: SharedIo, length: BodyLength) -> Result<(), Error> {
    let chunked = length == BodyLength::Chunked;
    let mut left = match length {
        BodyLength::Length(n) => n,
        BodyLength::None | BodyLength::Chunked | BodyLength::UntilClose => 0,
    };
    let mut trailers = None;
    loop {
        let frame = poll_fn(|cx| match body.poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            // Nothing to send at the moment: what is buffered must not wait for it.
            Poll::Pending => match io.borrow_mut().poll_flush(cx) {
                Poll::Ready(Err(_)) => Poll::Ready(Err(())),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            },
        })
        .await;
        match frame {
            Err(()) => return Ok(()),
            Ok(Some(Ok(Frame::Data(mut data)))) => {
                if chunked {
                    h1::write_chunk_head(&mut io.borrow_mut().wbuf, data.len());
                } else if left < data.len() as u64 {
                    return Err(Error::client(
                        ErrorKind::HttpRequestError,
                        "the body is longer than its Content-Length",
                    ));
                } else {
                    left -= data.len() as u64;
                }
                let mut stall = Stall::default();
                let written = poll_fn(|cx| {
                    let before = data.len();
                    let written = io.borrow_mut().poll_write_data(cx, &mut data);
                    if written.is_pending() {
                        poll_stalled(&mut stall, data.len() != before, &mut body, cx)?;
                    }
                    written.map_err(|_| Ok(()))
                })
                .await;
                match written {
                    Ok(()) => {}
                    Err(Err(error)) => return Err(error),
                    // The pod may have answered early and closed: its answer decides, if there is one.
                    Err(Ok(())) => return Ok(()),
                }
                if chunked {
                    io.borrow_mut().wbuf.extend_from_slice(h1::CHUNK_END);
                }
            }
            Ok(Some(Ok(Frame::Trailers(fields)))) => trailers = Some(fields),
            Ok(None) => break,
            Ok(Some(Err(error))) => return Err(error),
        }
    }
    if chunked {
        if let Some(fields) = &mut trailers {
            h1::strip_hop_by_hop(fields);
        }
        h1::write_last_chunk(&mut io.borrow_mut().wbuf, trailers.as_ref());
    } else if left > 0 {
        return Err(Error::client(ErrorKind::HttpRequestError, "the body is shorter than its Content-Length"));
    }
    if poll_fn(|cx| io.borrow_mut().poll_flush(cx)).await.is_ok() {
        io.borrow_mut().body_open = false;
    }
    Ok(())
}

/// Polls an upload that may still run; `Err` ends the exchange.
pub(crate) fn poll_upload(upload: &mut Option<Upload>, cx: &mut Context<'_>) -> Result<(), Error> {
    if let Some(running) = upload
        && let Poll::Ready(done) = running.as_mut().poll(cx)
    {
        *upload = None;
        done?;
    }
    Ok(())
}
