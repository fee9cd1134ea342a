//! Our end of a connection against the `h2` crate's and against itself: what goes in comes out, whatever is split, reset or slow.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail their test")]

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, uri};
use posthouse_wire::{Accepted, Ask, Config, Error, Opener, Reason, RecvStream, SendStream, accept, connect};
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::task::{LocalSet, spawn_local};

const CONFIG: Config = Config {
    stream_window: 100_000,
    connection_window: 300_000,
    max_frame: 20_000,
    max_streams: 50,
    max_header_list: 64 << 10,
};

/// Long enough for anything here on a busy machine; a test that needs it hangs.
const LIMIT: Duration = Duration::from_secs(60);

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let test = async { tokio::time::timeout(LIMIT, test).await.expect("it hangs") };
    LocalSet::new().block_on(&runtime, test);
}

/// Bytes that tell where they come from.
fn body(len: usize, seed: usize) -> Bytes {
    (0..len).map(|i| (i.wrapping_mul(31) ^ (i >> 8) ^ seed) as u8).collect::<Vec<_>>().into()
}

fn fields(n: usize) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert("x-request-id", HeaderValue::try_from(format!("request-{n}")).unwrap());
    headers.insert("authorization", HeaderValue::from_static("Bearer abc"));
    headers.append("x-twice", HeaderValue::from_static("one"));
    headers.append("x-twice", HeaderValue::from_static("two"));
    headers.insert("x-bytes", HeaderValue::from_bytes(&[b'a', 0xe4, 0xff]).unwrap());
    if n.is_multiple_of(7) {
        headers.insert("x-long", HeaderValue::try_from("v".repeat(30_000)).unwrap());
    }
    headers
}

fn ask<'a>(method: &'a Method, path: &'a uri::PathAndQuery, headers: &'a HeaderMap) -> Ask<'a> {
    Ask {
        method,
        scheme: Some(&uri::Scheme::HTTP),
        authority: b"web.demo:80",
        path: Some(path),
        protocol: None,
        headers,
        extra: &[],
    }
}

/// A client of ours on `io`, driven by a task of its own.
fn our_client(io: DuplexStream, config: Config) -> Opener {
    let (opener, mut connection) = connect(io, config);
    spawn_local(async move { poll_fn(|cx| connection.poll_closed(cx)).await });
    opener
}

/// A server of ours on `io` that has each stream served by `serve`.
fn our_server<F>(io: DuplexStream, config: Config, serve: impl Fn(Accepted) -> F + 'static)
where
    F: Future<Output = ()> + 'static,
{
    spawn_local(async move {
        let mut connection = accept(io, config).await.unwrap();
        while let Some(Ok(accepted)) = poll_fn(|cx| connection.poll_accept(cx)).await {
            spawn_local(serve(accepted));
        }
    });
}

async fn read(recv: &mut RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), Error> {
    let mut all = Vec::new();
    while let Some(data) = poll_fn(|cx| recv.poll_data(cx)).await {
        let data = data?;
        all.extend_from_slice(&data);
        recv.release(data.len());
    }
    Ok((all, poll_fn(|cx| recv.poll_trailers(cx)).await?))
}

async fn write(send: &mut SendStream, mut data: Bytes, end: bool) -> Result<(), Error> {
    poll_fn(|cx| send.poll_send(cx, &mut data, end)).await
}

/// Gives back what it gets: fields, body and trailers.
async fn echo(Accepted { head, mut recv, mut send }: Accepted) {
    assert_eq!(head.authority.unwrap(), "web.demo:80");
    send.answer(StatusCode::EARLY_HINTS, &fields(1), false).unwrap();
    send.answer(StatusCode::OK, &head.headers, false).unwrap();
    while let Some(data) = poll_fn(|cx| recv.poll_data(cx)).await {
        let data = data.unwrap();
        let len = data.len();
        write(&mut send, data, false).await.unwrap();
        recv.release(len);
    }
    match poll_fn(|cx| recv.poll_trailers(cx)).await.unwrap() {
        Some(trailers) => send.trailers(&trailers).unwrap(),
        None => send.end().unwrap(),
    }
}

async fn ours_asks(opener: &Opener, n: usize, len: usize) {
    let (headers, path) = (fields(n), format!("/{n}?q=1").parse().unwrap());
    let (mut recv, mut send) = opener.open(&ask(&Method::POST, &path, &headers), false).unwrap();
    let upload = async {
        write(&mut send, body(len, n), false).await.unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from(n));
        send.trailers(&trailers).unwrap();
    };
    let download = async {
        let head = poll_fn(|cx| recv.poll_head(cx)).await.unwrap();
        assert_eq!(recv.interim().unwrap().status, StatusCode::EARLY_HINTS);
        assert_eq!((head.status, &head.headers), (StatusCode::OK, &headers));
        let (data, trailers) = read(&mut recv).await.unwrap();
        assert!(data == body(len, n), "{n}: {} bytes instead of {len}", data.len());
        assert_eq!(trailers.unwrap()["grpc-status"], n.to_string());
        assert!(recv.is_end());
    };
    tokio::join!(upload, download);
}

/// Sizes around every limit there is: nothing, less than what is merged, frames, windows.
const SIZES: [usize; 12] = [0, 1, 100, 4_095, 4_096, 8_192, 16_384, 20_001, 65_536, 99_999, 100_001, 700_000];

async fn many(opener: Opener) {
    let opener = Rc::new(opener);
    // The first answer brings the other end's limits.
    ours_asks(&opener, 0, 10).await;
    for round in 0..3 {
        let tasks: Vec<_> = (0..40)
            .map(|i| {
                let (opener, n) = (Rc::clone(&opener), round * 40 + i);
                spawn_local(async move { ours_asks(&opener, n, SIZES[n % SIZES.len()]).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    }
}

#[test]
fn ours_to_ours_gives_back_every_byte_field_and_trailer_through_pipes_of_any_size() {
    for pipe in [37, 1_000, 1 << 16, 1 << 22] {
        run(async move {
            let (a, b) = tokio::io::duplex(pipe);
            our_server(b, CONFIG, echo);
            many(our_client(a, CONFIG)).await;
        });
    }
}

#[test]
fn our_client_gets_back_from_h2_what_it_sent() {
    run(async {
        let (a, b) = tokio::io::duplex(1 << 16);
        spawn_local(async move {
            let mut server: h2::server::Connection<_, Bytes> = h2::server::Builder::new()
                .max_concurrent_streams(50)
                .initial_window_size(70_000)
                .max_header_list_size(64 << 10)
                .handshake(b)
                .await
                .unwrap();
            while let Some(Ok((request, mut respond))) = server.accept().await {
                spawn_local(async move {
                    let (parts, mut recv) = request.into_parts();
                    let mut hints = http::Response::new(());
                    *hints.status_mut() = StatusCode::EARLY_HINTS;
                    respond.send_informational(hints).unwrap();
                    let mut response = http::Response::new(());
                    *response.headers_mut() = parts.headers;
                    let mut send = respond.send_response(response, false).unwrap();
                    while let Some(data) = recv.data().await {
                        let data = data.unwrap();
                        recv.flow_control().release_capacity(data.len()).unwrap();
                        // It buffers what the window does not take.
                        send.send_data(data, false).unwrap();
                    }
                    send.send_trailers(recv.trailers().await.unwrap().unwrap()).unwrap();
                });
            }
        });
        many(our_client(a, CONFIG)).await;
    });
}

#[test]
fn an_h2_client_gets_back_from_our_server_what_it_sent() {
    run(async {
        let (a, b) = tokio::io::duplex(1 << 16);
        our_server(b, CONFIG, echo);
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(70_000)
            .max_header_list_size(64 << 10)
            .handshake::<_, Bytes>(a)
            .await
            .unwrap();
        spawn_local(connection);
        let tasks: Vec<_> = (0..120)
            .map(|n| {
                let sender = sender.clone();
                spawn_local(async move {
                    let mut request = http::Request::post(format!("http://web.demo:80/{n}")).body(()).unwrap();
                    *request.headers_mut() = fields(n);
                    let (response, mut send) = sender.ready().await.unwrap().send_request(request, false).unwrap();
                    let len = SIZES[n % SIZES.len()];
                    send.send_data(body(len, n), false).unwrap();
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from(n));
                    send.send_trailers(trailers).unwrap();
                    let (parts, mut recv) = response.await.unwrap().into_parts();
                    assert_eq!((parts.status, parts.headers), (StatusCode::OK, fields(n)));
                    let mut all = Vec::new();
                    while let Some(data) = recv.data().await {
                        let data = data.unwrap();
                        recv.flow_control().release_capacity(data.len()).unwrap();
                        all.extend_from_slice(&data);
                    }
                    assert!(all == body(len, n), "{n}: {} bytes instead of {len}", all.len());
                    assert_eq!(recv.trailers().await.unwrap().unwrap()["grpc-status"], n.to_string());
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

/// A request without a body, whose answer is awaited by the caller.
fn get(opener: &Opener, path: &'static str) -> Result<(RecvStream, SendStream), Error> {
    let path = uri::PathAndQuery::from_static(path);
    opener.open(&ask(&Method::GET, &path, &HeaderMap::new()), true)
}

#[test]
fn streams_that_are_given_up_cost_neither_room_nor_window() {
    run(async {
        let (a, b) = tokio::io::duplex(1 << 16);
        // Twenty streams' windows, and not a byte more: what is not given back is soon missed.
        let config = Config { connection_window: 2_000_000, ..CONFIG };
        // Sends as much as it may and waits for the reset.
        our_server(b, config, |Accepted { head, recv, mut send }| async move {
            send.answer(StatusCode::OK, &HeaderMap::new(), false).unwrap();
            if head.path.unwrap() == "/whole" {
                write(&mut send, body(250_000, 1), true).await.unwrap();
                return;
            }
            let sent = write(&mut send, body(400_000, 0), true).await;
            assert_eq!(sent, Err(Error::Reset(Reason::CANCEL)));
            drop(recv);
        });
        let opener = our_client(a, config);
        // In all 100 times the connection's window.
        for _ in 0..100 {
            let streams: Vec<_> = (0..20).map(|_| get(&opener, "/").unwrap()).collect();
            for (mut recv, send) in streams {
                poll_fn(|cx| recv.poll_head(cx)).await.unwrap();
                let data = poll_fn(|cx| recv.poll_data(cx)).await.unwrap().unwrap();
                assert!(!data.is_empty());
                drop((recv, send));
            }
        }
        let (mut recv, _send) = get(&opener, "/whole").unwrap();
        poll_fn(|cx| recv.poll_head(cx)).await.unwrap();
        assert_eq!(read(&mut recv).await.unwrap().0.len(), 250_000);
    });
}

#[test]
fn a_reader_that_stops_stops_its_own_writer_alone() {
    run(async {
        let (a, b) = tokio::io::duplex(1 << 16);
        let config = Config { connection_window: 1 << 30, ..CONFIG };
        our_server(b, config, |Accepted { mut send, .. }| async move {
            send.answer(StatusCode::OK, &HeaderMap::new(), false).unwrap();
            // Only the one that is read gets to the end.
            let _ = write(&mut send, body(1_000_000, 0), true).await;
        });
        let opener = our_client(a, config);
        let mut stopped: Vec<_> = (0..20).map(|_| get(&opener, "/").unwrap().0).collect();
        for _ in 0..10 {
            let mut recv = get(&opener, "/").unwrap().0;
            poll_fn(|cx| recv.poll_head(cx)).await.unwrap();
            assert_eq!(read(&mut recv).await.unwrap().0.len(), 1_000_000);
        }
        for recv in &mut stopped {
            let head = poll_fn(|cx| recv.poll_head(cx)).await.unwrap();
            assert_eq!(head.status, StatusCode::OK);
            assert_eq!(recv.used(), 100_000, "as much as the stream's window");
            assert_eq!(read(recv).await.unwrap().0, body(1_000_000, 0));
        }
    });
}

#[test]
fn an_early_answer_is_whole_although_the_request_is_not() {
    run(async {
        let (a, b) = tokio::io::duplex(1 << 16);
        our_server(b, CONFIG, |Accepted { mut send, .. }| async move {
            send.answer(StatusCode::PAYLOAD_TOO_LARGE, &HeaderMap::new(), false).unwrap();
            write(&mut send, body(90_000, 3), true).await.unwrap();
        });
        let opener = our_client(a, CONFIG);
        let path = "/".parse().unwrap();
        let (mut recv, mut send) = opener.open(&ask(&Method::POST, &path, &HeaderMap::new()), false).unwrap();
        let upload = write(&mut send, body(10_000_000, 0), true).await;
        assert_eq!(upload, Err(Error::Reset(Reason::NO_ERROR)));
        let head = poll_fn(|cx| recv.poll_head(cx)).await.unwrap();
        assert_eq!(head.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(read(&mut recv).await.unwrap().0, body(90_000, 3));
    });
}

#[test]
fn a_declared_length_is_what_comes_or_the_stream_is_broken() {
    run(async {
        let (a, b) = tokio::io::duplex(1 << 16);
        our_server(b, CONFIG, |Accepted { head, mut send, .. }| async move {
            let mut headers = HeaderMap::new();
            headers.insert("content-length", HeaderValue::from_static("5"));
            let path = head.path.unwrap();
            let status = if path == "/304" { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
            let len = path.as_str().trim_start_matches('/').parse().unwrap();
            let end = len == 304;
            send.answer(status, &headers, end || head.method == Method::HEAD).unwrap();
            if !end {
                let _ = write(&mut send, body(len, 0), true).await;
            }
        });
        let opener = our_client(a, CONFIG);
        for (method, path, whole) in [
            ("GET", "/5", true),
            ("GET", "/4", false),
            ("GET", "/6", false),
            ("HEAD", "/5", true),
            ("GET", "/304", true),
        ] {
            let (method, target) = (method.parse().unwrap(), path.parse().unwrap());
            let (mut recv, _send) = opener.open(&ask(&method, &target, &HeaderMap::new()), true).unwrap();
            let result = match poll_fn(|cx| recv.poll_head(cx)).await {
                Ok(_) => read(&mut recv).await.map(|_| ()),
                Err(error) => Err(error),
            };
            assert_eq!(result.is_ok(), whole, "{method} {path}: {result:?}");
        }
    });
}

#[test]
fn a_tunnel_has_no_length_and_closes_half_by_half() {
    run(async {
        let (a, b) = tokio::io::duplex(1 << 16);
        our_server(b, CONFIG, |Accepted { head, mut recv, mut send }| async move {
            assert_eq!((head.method, head.path, head.scheme), (Method::CONNECT, None, None));
            let mut headers = HeaderMap::new();
            headers.insert("content-length", HeaderValue::from_static("0"));
            send.answer(StatusCode::OK, &headers, false).unwrap();
            let (data, trailers) = read(&mut recv).await.unwrap();
            assert!(trailers.is_none());
            write(&mut send, data.into(), true).await.unwrap();
        });
        let opener = our_client(a, CONFIG);
        let extra = [(&HeaderName::from_static("x-extra"), &HeaderValue::from_static("1"))];
        let connect = Ask {
            method: &Method::CONNECT,
            scheme: None,
            authority: b"10.0.0.1:5432",
            path: None,
            protocol: None,
            headers: &HeaderMap::new(),
            extra: &extra,
        };
        let (mut recv, mut send) = opener.open(&connect, false).unwrap();
        poll_fn(|cx| recv.poll_head(cx)).await.unwrap();
        write(&mut send, body(300_000, 9), false).await.unwrap();
        send.end().unwrap();
        assert_eq!(read(&mut recv).await.unwrap().0, body(300_000, 9));
        assert_eq!(send.end(), Err(Error::Ended));
    });
}

#[test]
fn a_server_that_leaves_finishes_what_it_has_and_takes_no_more() {
    run(async {
        let (a, b) = tokio::io::duplex(1 << 16);
        let (leave, left) = tokio::sync::oneshot::channel::<()>();
        let server = spawn_local(async move {
            let mut connection = accept(b, CONFIG).await.unwrap();
            let mut left = Some(left);
            let mut streams = 0;
            let mut told = pin!(async move { left.take().unwrap().await });
            let mut gone = false;
            loop {
                let accepted = poll_fn(|cx| {
                    if !gone && told.as_mut().poll(cx).is_ready() {
                        gone = true;
                        connection.leave();
                    }
                    connection.poll_accept(cx)
                });
                match accepted.await {
                    Some(accepted) => {
                        streams += 1;
                        spawn_local(echo(accepted.unwrap()));
                    }
                    None => return streams,
                }
            }
        });
        let (opener, mut connection) = connect(a, CONFIG);
        let ended = spawn_local(async move { poll_fn(|cx| connection.poll_closed(cx)).await });
        let path = "/".parse().unwrap();
        let (mut recv, mut send) = opener.open(&ask(&Method::POST, &path, &HeaderMap::new()), false).unwrap();
        poll_fn(|cx| recv.poll_head(cx)).await.unwrap();
        leave.send(()).unwrap();
        while !opener.is_closed() {
            tokio::task::yield_now().await;
        }
        assert_eq!(opener.open(&ask(&Method::GET, &path, &HeaderMap::new()), true).unwrap_err(), Error::NoRoom);
        let (sent, back) = tokio::join!(write(&mut send, body(200_000, 5), true), read(&mut recv));
        assert_eq!((sent, back.unwrap().0), (Ok(()), body(200_000, 5).to_vec()));
        drop((recv, send));
        assert_eq!(ended.await.unwrap(), Ok(()));
        assert_eq!(server.await.unwrap(), 1);
    });
}

/// A frame.
fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&id.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[test]
fn streams_above_a_goaway_were_not_handled_and_say_so() {
    run(async {
        let (a, mut b) = tokio::io::duplex(1 << 16);
        let opener = our_client(a, CONFIG);
        let (mut one, _one) = get(&opener, "/1").unwrap();
        let (mut two, _two) = get(&opener, "/2").unwrap();
        // SETTINGS; GOAWAY after stream 1; the answer to that one, `:status: 200`.
        let goaway = [frame(4, 0, 0, &[]), frame(7, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]), frame(1, 5, 1, &[0x88])];
        b.write_all(&goaway.concat()).await.unwrap();
        assert_eq!(poll_fn(|cx| two.poll_head(cx)).await.unwrap_err(), Error::GoneAway);
        assert_eq!(poll_fn(|cx| one.poll_head(cx)).await.unwrap().status, StatusCode::OK);
        assert!(opener.is_closed());
    });
}

/// Under TLS all of this may be one record, after which a client that waits for its answer has nothing more to say.
#[test]
fn a_request_in_one_piece_with_the_preface_is_taken_although_nothing_follows() {
    run(async {
        let (mut a, b) = tokio::io::duplex(1 << 16);
        let said = [
            PREFACE.to_vec(),
            frame(4, 0, 0, &[]),
            // GET, http, /
            frame(1, 5, 1, &[0x82, 0x86, 0x84]),
            frame(4, 1, 0, &[]),
        ];
        a.write_all(&said.concat()).await.unwrap();
        let mut server = accept(b, CONFIG).await.unwrap();
        let accepted = poll_fn(|cx| server.poll_accept(cx)).await.unwrap().unwrap();
        assert_eq!(accepted.head.path.unwrap(), "/");
        drop(a);
    });
}

/// An end that asks and never reads gets no memory of ours for what it does not take.
#[test]
fn answers_that_nobody_reads_are_bounded() {
    run(async {
        let (mut a, b) = tokio::io::duplex(1 << 16);
        let server = spawn_local(async move {
            let mut connection = accept(b, CONFIG).await.unwrap();
            let mut answers = 0;
            while let Some(accepted) = poll_fn(|cx| connection.poll_accept(cx)).await {
                let mut headers = HeaderMap::new();
                // A cookie never goes into the table: each answer has its 2 KB.
                headers.insert("set-cookie", HeaderValue::try_from("v".repeat(2_000)).unwrap());
                match accepted {
                    Ok(mut accepted) => accepted.send.answer(StatusCode::OK, &headers, true).unwrap(),
                    Err(error) => return (answers, error),
                }
                answers += 1;
            }
            panic!("ended in good order after {answers}")
        });
        a.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).await.unwrap();
        for id in (1..100_000).step_by(2) {
            if a.write_all(&frame(1, 5, id, &[0x82, 0x86, 0x84])).await.is_err() {
                break;
            }
        }
        let (answers, ended) = server.await.unwrap();
        let calm = "questions faster than their answers are read";
        assert_eq!(ended, Error::Protocol(Reason::ENHANCE_YOUR_CALM, calm));
        assert!((2_000..2_300).contains(&answers), "{answers} answers of 2 KB: 4 MiB and what the pipe holds");
    });
}

/// What was sent before a reset was sent.
#[test]
fn bytes_before_a_reset_are_read() {
    run(async {
        let (a, mut b) = tokio::io::duplex(1 << 16);
        let opener = our_client(a, CONFIG);
        let (mut recv, _send) = get(&opener, "/").unwrap();
        let said = [
            frame(4, 0, 0, &[]),
            frame(1, 4, 1, &[0x88]),
            frame(0, 0, 1, b"last words"),
            frame(3, 0, 1, &[0, 0, 0, 2]),
        ];
        b.write_all(&said.concat()).await.unwrap();
        assert_eq!(poll_fn(|cx| recv.poll_head(cx)).await.unwrap().status, StatusCode::OK);
        assert_eq!(poll_fn(|cx| recv.poll_data(cx)).await.unwrap().unwrap(), "last words");
        assert_eq!(poll_fn(|cx| recv.poll_data(cx)).await, Some(Err(Error::Reset(Reason::INTERNAL_ERROR))));
    });
}

#[test]
fn what_breaks_the_connection_ends_its_streams_at_both_ends() {
    run(async {
        let (a, b) = tokio::io::duplex(1 << 16);
        let (broke, mut seen) = tokio::sync::mpsc::unbounded_channel();
        our_server(b, CONFIG, move |Accepted { mut send, .. }| {
            let broke = broke.clone();
            async move { broke.send(poll_fn(|cx| send.poll_reset(cx)).await).unwrap() }
        });
        let (opener, mut connection) = connect(a, CONFIG);
        let driver = spawn_local(async move { poll_fn(|cx| connection.poll_closed(cx)).await });
        let (mut recv, _send) = get(&opener, "/").unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        driver.abort();
        assert!(matches!(poll_fn(|cx| recv.poll_head(cx)).await, Err(Error::Io(_))));
        assert!(matches!(seen.recv().await, Some(Error::Io(_))));
        assert!(opener.is_closed());
    });
}

#[test]
fn a_ping_is_answered_and_every_byte_is_heard() {
    run(async {
        let (a, b) = tokio::io::duplex(1 << 16);
        our_server(b, CONFIG, echo);
        let (_opener, mut connection) = connect(a, CONFIG);
        let (mut pinger, heard) = (connection.pinger(), connection.heard());
        spawn_local(async move { poll_fn(|cx| connection.poll_closed(cx)).await });
        for _ in 0..3 {
            pinger.ping().await.unwrap();
            assert!(heard.take());
            assert!(!heard.take());
        }
    });
}
