//! The chunk decoder: its corpus, and a plain reference over whole bodies that it must agree with on any bytes, cut in
//! any way.

use bytes::BytesMut;
use http::HeaderMap;
use posthouse_proxy::h1::{CHUNK_END, Chunk, ChunkDecoder, ChunkError, write_chunk_head, write_last_chunk};
use proptest::prelude::*;

use crate::corpus::{read, unescape};

#[derive(Debug, PartialEq)]
enum Outcome {
    More,
    Refused(String),
    /// The body, the trailers and how many bytes they took.
    Body(Vec<u8>, Vec<(String, Vec<u8>)>, usize),
}

#[test]
fn bodies_are_decoded_or_refused_as_the_corpus_says() {
    let entries = read(include_str!("../data/chunked_bodies.txt"));
    assert!(entries.len() >= 55, "the corpus has shrunk to {}", entries.len());
    for entry in &entries {
        let whole = decode([&entry.bytes[..]]);
        match (&whole, entry.refusal()) {
            (Outcome::Refused(error), Some(words)) => assert_eq!(words, [error], "{}", entry.name),
            (Outcome::More, None) => assert_eq!(entry.expect, "more", "{}", entry.name),
            (Outcome::Body(body, trailers, used), None) => {
                let (want, rest) = entry.expect.split_once(" rest=").unwrap_or((&entry.expect, "0"));
                let want = want.strip_prefix("body=").unwrap_or_else(|| panic!("{}: {whole:?}", entry.name));
                assert_eq!(body, &unescape(want), "{}", entry.name);
                assert_eq!(entry.bytes.len() - used, rest.parse::<usize>().unwrap(), "{}", entry.name);
                assert_eq!(trailers, &entry.carried, "{}", entry.name);
            }
            _ => panic!("{}: expected '{}', got {whole:?}", entry.name, entry.expect),
        }
        if entry.bytes.len() < 1000 {
            for at in 0..=entry.bytes.len() {
                let (head, tail) = entry.bytes.split_at(at);
                assert_eq!(decode([head, tail]), whole, "{} cut at {at}", entry.name);
            }
        }
        assert_eq!(decode(entry.bytes.chunks(1)), whole, "{} byte by byte", entry.name);
    }
}

#[test]
fn the_end_is_told_again_and_takes_nothing() {
    let mut decoder = ChunkDecoder::new();
    let mut buf = BytesMut::from("0\r\n\r\nnext");
    assert!(!decoder.is_done());
    for _ in 0..2 {
        assert!(matches!(decoder.decode(&mut buf), Ok(Chunk::End(None))));
        assert!(decoder.is_done());
        assert_eq!(buf, "next");
    }
}

#[test]
fn a_written_trailer_section_leaves_out_what_may_not_be_one() {
    let mut trailers = HeaderMap::new();
    for name in ["x-sum", "content-length", "host", "set-cookie", "te", "posthouse-load"] {
        trailers.insert(name, "1".parse().unwrap());
    }
    let mut out = BytesMut::new();
    write_last_chunk(&mut out, Some(&trailers));
    assert_eq!(out, "0\r\nx-sum: 1\r\n\r\n");
    out.clear();
    write_last_chunk(&mut out, None);
    assert_eq!(out, "0\r\n\r\n");
}

proptest! {
    #[test]
    fn what_is_written_is_read_however_it_is_cut(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..600), 0..8),
        sum in prop::option::of("[a-z0-9]{0,20}"),
        cuts in prop::collection::vec(1_usize..200, 1..12),
    ) {
        let mut wire = BytesMut::new();
        for chunk in &chunks {
            write_chunk_head(&mut wire, chunk.len());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(CHUNK_END);
        }
        let trailers: Option<HeaderMap> =
            sum.as_ref().map(|sum| [("x-sum".parse().unwrap(), sum.parse().unwrap())].into_iter().collect());
        write_last_chunk(&mut wire, trailers.as_ref());
        let want = sum.map(|sum| ("x-sum".to_owned(), sum.into_bytes())).into_iter().collect();
        prop_assert_eq!(decode(pieces(&wire, &cuts)), Outcome::Body(chunks.concat(), want, wire.len()));
    }

    #[test]
    fn any_bytes_end_as_the_reference_says(
        parts in prop::collection::vec(part(), 0..14),
        cuts in prop::collection::vec(1_usize..12, 1..12),
    ) {
        let wire = parts.concat();
        let got = decode(pieces(&wire, &cuts));
        match reference(&wire) {
            Some(Ok((body, used))) => prop_assert!(
                matches!(&got, Outcome::Body(b, _, u) if *b == body && *u == used), "{got:?}, reference {body:?} {used}"),
            // The reference has no trailers: what begins like one is anything but a body without.
            Some(Err(())) => prop_assert!(matches!(got, Outcome::Refused(_)), "{:?}", got),
            None => prop_assert!(!matches!(&got, Outcome::Body(_, t, _) if t.is_empty() && !wire.contains(&b':')), "{:?}", got),
        }
    }
}

/// Pieces that chunked bodies, and nearly chunked bodies, are made of.
fn part() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => (0_usize..20, any::<u8>()).prop_map(|(len, b)| {
            let mut chunk = format!("{len:x}\r\n").into_bytes();
            chunk.extend(std::iter::repeat_n(b, len));
            chunk.extend(b"\r\n");
            chunk
        }),
        1 => prop::sample::select(vec!["0\r\n\r\n", "\r\n", "\r", "\n", "5", ";a=b", "0", " ", "f;x\r\n", "A: b\r\n", "\0"])
            .prop_map(|s| s.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..6),
    ]
}

fn pieces<'a>(wire: &'a [u8], cuts: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = wire;
    cuts.iter().cycle().map_while(move |cut| {
        let (piece, after) = rest.split_at((*cut).min(rest.len()));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut decoder = ChunkDecoder::new();
    let mut buf = BytesMut::new();
    let mut body = Vec::new();
    let mut fed = 0;
    for piece in pieces {
        buf.extend_from_slice(piece);
        fed += piece.len();
        loop {
            match decoder.decode(&mut buf) {
                Ok(Chunk::NeedMore) => break,
                Ok(Chunk::Data(data)) => {
                    assert!(!data.is_empty());
                    body.extend_from_slice(&data);
                }
                Ok(Chunk::End(trailers)) => {
                    let trailers = trailers.into_iter().flat_map(|map| {
                        map.iter().map(|(n, v)| (n.to_string(), v.as_bytes().to_vec())).collect::<Vec<_>>()
                    });
                    return Outcome::Body(body, trailers.collect(), fed - buf.len());
                }
                Err(error @ ChunkError::Trailer(_)) => {
                    assert!(error.to_string().starts_with("the trailers are malformed"));
                    return Outcome::Refused("Trailer".to_owned());
                }
                Err(error) => return Outcome::Refused(format!("{error:?}")),
            }
        }
    }
    Outcome::More
}

/// RFC 9112 §7.1 without trailers, over the whole body: `Err` when it is malformed, `None` when it has not ended or has
/// trailers.
fn reference(wire: &[u8]) -> Option<Result<(Vec<u8>, usize), ()>> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let line_end = match wire[at..].iter().position(|b| *b == b'\n') {
            Some(lf) => at + lf,
            None => return None,
        };
        let Some(line) = wire[at..line_end].strip_suffix(b"\r") else {
            return Some(Err(()));
        };
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let extension = &line[digits..];
        let blanks = extension.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
        let starts_well = extension.is_empty() || extension.get(blanks) == Some(&b';');
        let allowed = |b: &u8| *b == b'\t' || (b' '..0x7f).contains(b) || *b >= 0x80;
        if !(1..=16).contains(&digits) || !starts_well || !extension.iter().all(allowed) {
            return Some(Err(()));
        }
        let size = u64::from_str_radix(std::str::from_utf8(&line[..digits]).unwrap(), 16).unwrap();
        if size > i64::MAX as u64 {
            return Some(Err(()));
        }
        at = line_end + 1;
        if size == 0 {
            return wire[at..].starts_with(b"\r\n").then_some(Ok((body, at + 2)));
        }
        let data_end = at.checked_add(usize::try_from(size).unwrap())?;
        if wire.len() < data_end + 2 {
            return None;
        }
        body.extend_from_slice(&wire[at..data_end]);
        if &wire[data_end..data_end + 2] != b"\r\n" {
            return Some(Err(()));
        }
        at = data_end + 2;
    }
}
