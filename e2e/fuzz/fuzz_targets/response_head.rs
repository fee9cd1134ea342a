//! Any bytes as a response head: no panic, the same outcome however they are cut, and what is taken means the same once
//! it is written again. The first byte chooses the request's method.
#![no_main]

use bytes::BytesMut;
use http::Method;
use libfuzzer_sys::fuzz_target;
use posthouse_proxy::h1::{
    BodyLength, HeadScan, MAX_FIELDS, MAX_HEAD, ResponseHead, parse_response, write_response_head,
};

fn parse(pieces: &[&[u8]], method: &Method) -> (String, Option<ResponseHead>) {
    let (mut buf, mut scan) = (BytesMut::new(), HeadScan::new());
    let mut fed = 0;
    for piece in pieces {
        buf.extend_from_slice(piece);
        fed += piece.len();
        match parse_response(&mut buf, &mut scan, method) {
            Ok(None) => {}
            Ok(Some(head)) => return (format!("{head:?} {}", fed - buf.len()), Some(head)),
            Err(error) => return (format!("{error:?}"), None),
        }
    }
    ("more".to_owned(), None)
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let method = [Method::GET, Method::HEAD, Method::CONNECT][usize::from(*choice) % 3].clone();
    let (whole, head) = parse(&[data], &method);
    let cut = data.last().map_or(0, |last| data.len() * usize::from(*last) / 256);
    assert_eq!(parse(&[&data[..cut], &data[cut..]], &method).0, whole);
    let Some(head) = head else { return };
    if head.body == BodyLength::UntilClose {
        assert!(!head.keep_alive, "a body that ends with the connection ends it");
    }
    if head.status.is_informational() {
        assert_eq!(head.body, BodyLength::None);
        return;
    }
    let mut out = BytesMut::new();
    write_response_head(&mut out, head.status, &head.headers, head.body, head.keep_alive, false, None);
    // What we add (Host, framing, Connection, Upgrade) may pass our own limits.
    if out.len() >= MAX_HEAD || head.headers.len() + 4 > MAX_FIELDS {
        return;
    }
    let again = parse(&[&out], &method).1.expect("what we write we take");
    assert_eq!((again.status, again.body, again.keep_alive), (head.status, head.body, head.keep_alive));
    assert_eq!(again.headers, head.headers);
});
