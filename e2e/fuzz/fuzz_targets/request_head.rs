//! Any bytes as a request head: no panic, the same outcome however they are cut, and what is taken means the same once
//! it is written again.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use posthouse_proxy::h1::{HeadScan, MAX_FIELDS, MAX_HEAD, RequestHead, TargetForm, parse_request, write_request_head};

/// The outcome as text, and what a taken head left.
fn parse(pieces: &[&[u8]]) -> (String, Option<RequestHead>) {
    let (mut buf, mut scan) = (BytesMut::new(), HeadScan::new());
    let mut fed = 0;
    for piece in pieces {
        buf.extend_from_slice(piece);
        fed += piece.len();
        match parse_request(&mut buf, &mut scan) {
            Ok(None) => {}
            Ok(Some(head)) => return (format!("{head:?} {}", fed - buf.len()), Some(head)),
            Err(error) => return (format!("{error:?}"), None),
        }
    }
    ("more".to_owned(), None)
}

fuzz_target!(|data: &[u8]| {
    let (whole, head) = parse(&[data]);
    let cut = data.last().map_or(0, |last| data.len() * usize::from(*last) / 256);
    assert_eq!(parse(&[&data[..cut], &data[cut..]]).0, whole);
    if data.len() < 300 {
        let bytes: Vec<&[u8]> = data.chunks(1).collect();
        assert_eq!(parse(&bytes).0, whole);
    }
    let Some(head) = head else { return };
    posthouse_model::Authority::parse(head.authority.as_str()).expect("only what parses is taken");
    let path = if head.form == TargetForm::Authority { head.authority.as_str() } else { head.path.as_str() };
    let mut out = BytesMut::new();
    write_request_head(
        &mut out,
        &head.method,
        path,
        head.authority.as_str(),
        &head.headers,
        head.body,
        head.upgrade.as_ref(),
    );
    // What we add (Host, framing, Connection, Upgrade) may pass our own limits.
    if out.len() >= MAX_HEAD || head.headers.len() + 4 > MAX_FIELDS {
        return;
    }
    let again = parse(&[&out]).1.expect("what we write we take");
    assert_eq!((&again.method, &again.path, &again.authority), (&head.method, &head.path, &head.authority));
    assert_eq!((&again.headers, again.body, &again.upgrade), (&head.headers, head.body, &head.upgrade));
});
