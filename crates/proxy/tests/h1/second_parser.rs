//! hyper as a second opinion: where both take a request they must see the same one, and what we write hyper must read as
//! we meant it. Where hyper is more lenient (both lengths, bare LF) ours alone refuses; that needs no agreement.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http::{Method, Response, Version};
use http_body_util::Empty;
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use posthouse_proxy::h1::{BodyLength, HeadScan, MAX_FIELDS, RequestHead, TargetForm, parse_request};
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

use crate::corpus::read;
use crate::properties::{pieces, rewrite};

/// What hyper saw.
#[derive(Debug)]
struct Seen {
    method: Method,
    target: http::Uri,
    version: Version,
    host: Option<Vec<u8>>,
    /// `None` when it is chunked.
    length: Option<u64>,
}

/// Gives `bytes` to a hyper server; `None` when it did not take them as a request.
fn hyper_sees(bytes: &[u8]) -> Option<Seen> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let seen = Rc::new(RefCell::new(None));
        let (mut client, server) = tokio::io::duplex(256 * 1024);
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let into = Rc::clone(&seen);
        let service = service_fn(move |request: http::Request<Incoming>| {
            let mut first = into.borrow_mut();
            if first.is_none() {
                *first = Some(Seen {
                    method: request.method().clone(),
                    target: request.uri().clone(),
                    version: request.version(),
                    host: request.headers().get("host").map(|v| v.as_bytes().to_vec()),
                    length: request.body().size_hint().exact(),
                });
            }
            std::future::ready(Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())))
        });
        // It ends with an error when the bytes are no request or the body is cut short; both are fine here.
        let _ = hyper::server::conn::http1::Builder::new()
            .max_buf_size(256 * 1024)
            .max_headers(MAX_FIELDS)
            .serve_connection(TokioIo::new(server), service)
            .with_upgrades()
            .await;
        seen.take()
    })
}

fn ours(bytes: &[u8]) -> Option<RequestHead> {
    parse_request(&mut BytesMut::from(bytes), &mut HeadScan::new()).ok().flatten()
}

/// Fails unless hyper's view of the same bytes is ours.
fn agree(ours: &RequestHead, hyper: &Seen, what: &str) {
    assert_eq!(ours.method, hyper.method, "{what}");
    assert_eq!(if ours.http10 { Version::HTTP_10 } else { Version::HTTP_11 }, hyper.version, "{what}");
    let length = match ours.body {
        BodyLength::None => Some(0),
        BodyLength::Length(length) => Some(length),
        BodyLength::Chunked => None,
        BodyLength::UntilClose => panic!("no request is framed so: {what}"),
    };
    assert_eq!(length, hyper.length, "{what}");
    match ours.form {
        TargetForm::Origin | TargetForm::Asterisk => {
            assert_eq!(hyper.target.path_and_query(), Some(&ours.path), "{what}");
            assert_eq!(hyper.host.as_deref(), Some(ours.authority.as_str().as_bytes()), "{what}");
        }
        TargetForm::Absolute => {
            assert_eq!(hyper.target.authority(), Some(&ours.authority), "{what}");
            let path = hyper.target.path_and_query().map_or("/", |p| p.as_str());
            if ours.path.as_str() == "*" {
                assert_eq!((path, &ours.method), ("/", &Method::OPTIONS), "{what}");
            } else if let Some(query) = path.strip_prefix('?') {
                assert_eq!(ours.path.as_str(), format!("/?{query}"), "{what}");
            } else {
                assert_eq!(path, ours.path.as_str(), "{what}");
            }
        }
        TargetForm::Authority => {
            assert_eq!(hyper.target.authority(), Some(&ours.authority), "{what}");
        }
    }
}

#[test]
fn hyper_and_we_agree_on_the_corpus() {
    let mut both = 0;
    for entry in read(include_str!("../data/request_heads.txt")) {
        let Some(head) = ours(&entry.bytes) else {
            continue;
        };
        if let Some(seen) = hyper_sees(&entry.bytes) {
            agree(&head, &seen, &entry.name);
            both += 1;
        }
        let written = rewrite(&head);
        let seen = hyper_sees(&written).unwrap_or_else(|| panic!("hyper does not read what we wrote: {}", entry.name));
        let again = ours(&written).unwrap();
        agree(&again, &seen, &format!("{} rewritten", entry.name));
        assert_eq!((again.body, &again.path), (head.body, &head.path), "{}", entry.name);
    }
    assert!(both > 70, "hyper took only {both} of those that we take");
}

proptest! {
    #[test]
    fn hyper_and_we_agree_on_pieces_of_requests(bytes in pieces()) {
        if let Some(head) = ours(&bytes) {
            let shown = bytes.escape_ascii().to_string();
            if let Some(seen) = hyper_sees(&bytes) {
                agree(&head, &seen, &shown);
            }
            let seen = hyper_sees(&rewrite(&head));
            prop_assert!(seen.is_some(), "hyper does not read what we wrote for {}", shown);
        }
    }
}
