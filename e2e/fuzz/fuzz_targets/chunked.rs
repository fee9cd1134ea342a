//! Any bytes as a chunked body: no panic, no endless loop, the same outcome however they are cut, and no more data than
//! came in.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use posthouse_proxy::h1::{Chunk, ChunkDecoder};

fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (String, Vec<u8>) {
    let (mut decoder, mut buf, mut body) = (ChunkDecoder::new(), BytesMut::new(), Vec::new());
    for piece in pieces {
        buf.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buf) {
                Ok(Chunk::NeedMore) => break,
                Ok(Chunk::Data(data)) => {
                    assert!(!data.is_empty());
                    body.extend_from_slice(&data);
                }
                Ok(Chunk::End(trailers)) => {
                    assert!(decoder.is_done());
                    for name in trailers.iter().flat_map(|map| map.keys()) {
                        assert!(!["content-length", "transfer-encoding", "host"].contains(&name.as_str()));
                    }
                    return (format!("end {trailers:?}"), body);
                }
                Err(error) => return (format!("{error:?}"), body),
            }
        }
    }
    ("more".to_owned(), body)
}

fuzz_target!(|data: &[u8]| {
    let whole = decode([data]);
    assert!(whole.1.len() <= data.len());
    let cut = data.last().map_or(0, |last| data.len() * usize::from(*last) / 256);
    assert_eq!(decode([&data[..cut], &data[cut..]]), whole);
    assert_eq!(decode(data.chunks(1)), whole);
});
