//! The examples of RFC 7541, what must be refused, and both ends against each other.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, header};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;

use super::field::Name;
use super::{DecodeError, Decoder, Encoder, Field, Pseudo, huffman, static_table};

const NO_LIMIT: usize = usize::MAX;

/// A field's name and value as they would be written.
fn text(field: &Field) -> (String, Vec<u8>) {
    let pseudo = |name: Pseudo, value: &[u8]| (name.as_str().to_owned(), value.to_vec());
    match field {
        Field::Method(method) => pseudo(Pseudo::Method, method.as_str().as_bytes()),
        Field::Scheme(scheme) => pseudo(Pseudo::Scheme, scheme.as_str().as_bytes()),
        Field::Authority(authority) => pseudo(Pseudo::Authority, authority.as_str().as_bytes()),
        Field::Path(path) => pseudo(Pseudo::Path, path.as_str().as_bytes()),
        Field::Protocol(protocol) => pseudo(Pseudo::Protocol, protocol.as_bytes()),
        Field::Status(status) => pseudo(Pseudo::Status, status.as_str().as_bytes()),
        Field::Regular(name, value) => (name.as_str().to_owned(), value.as_bytes().to_vec()),
        Field::Malformed(why) => ("malformed".to_owned(), why.as_bytes().to_vec()),
    }
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<Field>, DecodeError> {
    let mut fields = Vec::new();
    assert!(decoder.decode(block, NO_LIMIT, &mut |field| fields.push(field))?);
    Ok(fields)
}

/// The one field of a block for a fresh decoder.
fn one(block: &[u8]) -> Field {
    let mut fields = decode(&mut Decoder::new(4096), block).unwrap();
    assert_eq!(fields.len(), 1, "{fields:?}");
    fields.remove(0)
}

fn refused(block: &[u8]) -> &'static str {
    decode(&mut Decoder::new(4096), block).unwrap_err().0
}

/// A literal without indexing, name and value shorter than 127 octets.
fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0x00, name.len() as u8], name, &[value.len() as u8], value].concat()
}

fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(u8::is_ascii_hexdigit).collect();
    let value = |digit: u8| char::from(digit).to_digit(16).unwrap() as u8;
    digits.chunks(2).map(|pair| value(pair[0]) << 4 | value(pair[1])).collect()
}

/// Names with values, as the RFC's examples list them.
type Fields<'a> = &'a [(&'a str, &'a str)];

/// Decodes blocks one after the other and compares; then the table must have the fields `table`, the newest first, and
/// no more.
fn example(max: usize, blocks: &[(&str, Fields<'_>, Fields<'_>)]) {
    let expected = |fields: Fields<'_>| -> Vec<(String, Vec<u8>)> {
        fields.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect()
    };
    let mut decoder = Decoder::new(max);
    for (block, fields, table) in blocks {
        let decoded = decode(&mut decoder, &hex(block)).unwrap();
        assert_eq!(decoded.iter().map(text).collect::<Vec<_>>(), expected(fields), "{block}");
        let indices: Vec<u8> = (0..table.len()).map(|position| 0x80 | (62 + position) as u8).collect();
        let held = decode(&mut decoder, &indices).unwrap();
        assert_eq!(held.iter().map(text).collect::<Vec<_>>(), expected(table), "the table after {block}");
        assert!(decode(&mut decoder, &[0x80 | (62 + table.len()) as u8]).is_err(), "more after {block}");
    }
}

#[test]
fn appendix_c_2() {
    let custom = [("custom-key", "custom-header")];
    example(4096, &[("400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572", &custom, &custom)]);
    example(4096, &[("040c 2f73 616d 706c 652f 7061 7468", &[(":path", "/sample/path")], &[])]);
    example(4096, &[("1008 7061 7373 776f 7264 0673 6563 7265 74", &[("password", "secret")], &[])]);
    example(4096, &[("82", &[(":method", "GET")], &[])]);
}

#[test]
fn appendix_c_3_and_c_4() {
    let first = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")].as_slice();
    let second = [first, &[("cache-control", "no-cache")]].concat();
    let third = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/index.html"),
        (":authority", "www.example.com"),
        ("custom-key", "custom-value"),
    ]
    .as_slice();
    let table =
        [("custom-key", "custom-value"), ("cache-control", "no-cache"), (":authority", "www.example.com")].as_slice();
    let plain = [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ];
    let coded = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    for blocks in [plain, coded] {
        example(4096, &[(blocks[0], first, &table[2..]), (blocks[1], &second, &table[1..]), (blocks[2], third, table)]);
    }
}

#[test]
fn appendix_c_5_and_c_6() {
    const DATE: (&str, &str) = ("date", "Mon, 21 Oct 2013 20:13:21 GMT");
    const LATER: (&str, &str) = ("date", "Mon, 21 Oct 2013 20:13:22 GMT");
    const PRIVATE: (&str, &str) = ("cache-control", "private");
    const LOCATION: (&str, &str) = ("location", "https://www.example.com");
    const COOKIE: (&str, &str) = ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1");
    const GZIP: (&str, &str) = ("content-encoding", "gzip");
    let plain = [
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d
         546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f
         6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b
         2076 6572 7369 6f6e 3d31",
    ];
    let coded = [
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7
         8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335
         dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ];
    for blocks in [plain, coded] {
        example(
            256,
            &[
                (
                    blocks[0],
                    &[(":status", "302"), PRIVATE, DATE, LOCATION],
                    &[LOCATION, DATE, PRIVATE, (":status", "302")],
                ),
                (
                    blocks[1],
                    &[(":status", "307"), PRIVATE, DATE, LOCATION],
                    &[(":status", "307"), LOCATION, DATE, PRIVATE],
                ),
                (blocks[2], &[(":status", "200"), PRIVATE, LATER, LOCATION, GZIP, COOKIE], &[COOKIE, GZIP, LATER]),
            ],
        );
    }
}

#[test]
fn integers_are_bounded() {
    let index = "an index that no entry has";
    assert_eq!(refused(&[0x80]), index);
    assert_eq!(refused(&[0xbe]), index);
    assert_eq!(refused(&[0x7f, 0x00]), index);
    // 2^32 - 1, the most; then one more.
    assert_eq!(refused(&[0xff, 0x80, 0xff, 0xff, 0xff, 0x0f]), index);
    assert_eq!(refused(&[0xff, 0x81, 0xff, 0xff, 0xff, 0x0f]), "an integer of more than 32 bits");
    assert_eq!(refused(&[0xff, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00]), "an integer of more than 32 bits");
    for cut in [[0xff].as_slice(), &[0xff, 0x80], &[0x40], &[0x00], &[0x00, 0x7f, 0x80]] {
        assert_eq!(refused(cut), "a block that ends within a field");
    }
    // Appendix C.1.2 as an update: 1337 in a prefix of five bits.
    assert_eq!(decode(&mut Decoder::new(1337), &[0x3f, 0x9a, 0x0a]), Ok(vec![]));
    assert!(decode(&mut Decoder::new(1336), &[0x3f, 0x9a, 0x0a]).is_err());
}

#[test]
fn strings_end_with_their_block() {
    let long = "a string that is longer than its block";
    assert_eq!(refused(&[0x00, 0x01]), long);
    assert_eq!(refused(&[0x00, 0x01, b'a', 0x02, b'b']), long);
    assert_eq!(refused(&[0x00, 0x7f, 0x80, 0xff, 0xff, 0xff, 0x0f]), long);
    assert_eq!(refused(&[0x00, 0x81]), long);
}

#[test]
fn size_updates_have_their_place() {
    assert_eq!(refused(&[0x82, 0x20]), "a table size update after a field");
    assert_eq!(refused(&[0x3f, 0xe2, 0x1f]), "a table size update above what was announced");
    let mut decoder = Decoder::new(4096);
    decode(&mut decoder, &hex("400161 0162")).unwrap();
    assert_eq!(decode(&mut decoder, &[0xbe]).unwrap().len(), 1);
    // To nothing and back, with a field after both.
    assert_eq!(decode(&mut decoder, &[0x20, 0x3f, 0xe1, 0x1f, 0x82]).unwrap().len(), 1);
    assert!(decode(&mut decoder, &[0xbe]).is_err());
}

#[test]
fn an_entry_larger_than_the_table_empties_it() {
    let mut decoder = Decoder::new(64);
    decode(&mut decoder, &hex("400161 0162")).unwrap();
    let large = [b"\x40\x01a\x20".as_slice(), &[b'x'; 32]].concat();
    assert_eq!(decode(&mut decoder, &large).unwrap().len(), 1);
    assert!(decode(&mut decoder, &[0xbe]).is_err());
}

#[test]
fn fields_beyond_the_limit_are_dropped_and_keep_the_table_in_step() {
    let mut decoder = Decoder::new(4096);
    let mut fields = Vec::new();
    // a: b and c: d are 34 octets each.
    let block = hex("400161 0162 400163 0164 82");
    assert_eq!(decoder.decode(&block, 67, &mut |field| fields.push(text(&field).0)), Ok(false));
    assert_eq!(fields, ["a"]);
    let held = decode(&mut decoder, &[0xbe, 0xbf]).unwrap();
    assert_eq!(held.iter().map(|field| text(field).0).collect::<Vec<_>>(), ["c", "a"]);
    assert_eq!(decoder.decode(&[0xbe, 0xbf], 68, &mut |_| ()), Ok(true));
}

/// Each symbol's bits one after the other, padded with ones.
fn huffman_coded(text: &[u8]) -> Vec<u8> {
    let mut bits: Vec<bool> = Vec::new();
    for &octet in text {
        let (code, length) = huffman::CODES[usize::from(octet)];
        bits.extend((0..length).rev().map(|bit| code >> bit & 1 == 1));
    }
    bits.resize(bits.len().next_multiple_of(8), true);
    bits.chunks(8).map(|bits| bits.iter().fold(0, |octet, &bit| octet << 1 | u8::from(bit))).collect()
}

#[test]
fn every_octet_has_a_code() {
    // A few of Appendix B, the longest and the shortest and the last.
    assert_eq!(huffman::CODES[0], (0x1ff8, 13));
    assert_eq!(huffman::CODES[usize::from(b'0')], (0x0, 5));
    assert_eq!(huffman::CODES[22], (0x3fff_fffe, 30));
    assert_eq!(huffman::CODES[249], (0xfff_fffe, 28));
    assert_eq!(huffman::CODES[255], (0x3ff_ffee, 26));
    assert_eq!(huffman::CODES[256], (0x3fff_ffff, 30));

    let mut out = Vec::new();
    for octet in 0..=255u8 {
        for text in [vec![octet], vec![octet; 8], vec![b'a', octet, b'&', octet]] {
            huffman::decode(&huffman_coded(&text), &mut out).unwrap();
            assert_eq!(out, text);
        }
    }
    let all: Vec<u8> = (0..=255).collect();
    huffman::decode(&huffman_coded(&all), &mut out).unwrap();
    assert_eq!(out, all);
}

#[test]
fn huffman_strings_end_as_they_must() {
    let mut out = Vec::new();
    assert_eq!(huffman::decode(&[], &mut out), Ok(()));
    // The five bits of '0', then three zeros, or two ones and a zero.
    let padding = Err(DecodeError("a string's padding is not up to seven ones"));
    assert_eq!(huffman::decode(&[0b0000_0000], &mut out), padding);
    assert_eq!(huffman::decode(&[0b0000_0110], &mut out), padding);
    assert_eq!(huffman::decode(&[0b0000_0111], &mut out), Ok(()));
    // The eight bits of '&', then eight ones; those alone.
    assert_eq!(huffman::decode(&[0xf8], &mut out), Ok(()));
    assert_eq!(huffman::decode(&[0xf8, 0xff], &mut out), padding);
    assert_eq!(huffman::decode(&[0xff], &mut out), padding);
    // Eleven ones after a '0'.
    assert_eq!(huffman::decode(&[0b0000_0111, 0b1111_1111], &mut out), padding);
    let end = Err(DecodeError("the end-of-string symbol in a string"));
    assert_eq!(huffman::decode(&[0xff, 0xff, 0xff, 0xff], &mut out), end);
    assert_eq!(huffman::decode(&[0x07, 0xff, 0xff, 0xff, 0xff], &mut out), end);
    assert_eq!(refused(&[0x00, 0x84, 0xff, 0xff, 0xff, 0xff, 0x00]), "the end-of-string symbol in a string");
}

#[test]
fn what_no_message_may_have_is_malformed() {
    for (name, value) in [
        ("", "a"),
        ("Accept", "a"),
        ("a b", "a"),
        (":unknown", "a"),
        (":", "a"),
        (":Path", "/"),
        ("connection", "close"),
        ("proxy-connection", "close"),
        ("keep-alive", "timeout=5"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("te", "trailers, gzip"),
        ("a", "b\nc"),
        ("a", "b\0"),
        ("a", "b\r"),
        (":method", ""),
        (":method", "GET /"),
        (":scheme", ""),
        (":scheme", "ht/tp"),
        (":scheme", "1http"),
        (":authority", ""),
        (":authority", "a/b"),
        (":authority", "user@host"),
        (":path", ""),
        (":path", "a"),
        (":path", "?a"),
        (":path", "#a"),
        (":path", "/a#b"),
        (":path", "/a?b#c"),
        (":path", "**"),
        (":path", "/a b"),
        (":protocol", ""),
        (":status", "20"),
        (":status", "099"),
        (":status", "2000"),
        (":status", "2x0"),
    ] {
        let field = one(&literal(name.as_bytes(), value.as_bytes()));
        assert!(matches!(field, Field::Malformed(_)), "{name}: {value} is {field:?}");
    }
    // Entries of the static table: an authority of no characters, and a field of HTTP/1.
    assert!(matches!(one(&[0x81]), Field::Malformed(_)));
    assert!(matches!(one(&[0x80 | 57]), Field::Malformed(_)));
    assert!(matches!(one(&[0x0f, 57 - 15, 0x01, b'a']), Field::Malformed(_)));
}

#[test]
fn what_a_message_may_have_is_read() {
    for (name, value) in [
        ("te", "trailers"),
        ("x-custom", ""),
        ("x-custom", "tab\tand \u{e4}"),
        (":method", "CONNECT"),
        (":method", "PROPFIND"),
        (":scheme", "grpc"),
        (":authority", "[::1]:8080"),
        (":path", "*"),
        (":path", "/a?b=c"),
        (":protocol", "websocket"),
        (":status", "100"),
        (":status", "999"),
    ] {
        let field = one(&literal(name.as_bytes(), value.as_bytes()));
        assert_eq!(text(&field), (name.to_owned(), value.as_bytes().to_vec()));
    }
}

#[test]
fn a_malformed_entry_lends_its_name() {
    let mut decoder = Decoder::new(4096);
    // a: a control character; then its index; then its name with a good value.
    let fields = decode(&mut decoder, &hex("400161 0101 be 7e0162")).unwrap();
    assert!(matches!(fields[..2], [Field::Malformed(_), Field::Malformed(_)]), "{fields:?}");
    assert_eq!(text(&fields[2]), ("a".to_owned(), b"b".to_vec()));
    // A: b; then its name with another value.
    let fields = decode(&mut decoder, &hex("400141 0162 7e0163")).unwrap();
    assert!(matches!(fields[..], [Field::Malformed(_), Field::Malformed(_)]), "{fields:?}");
}

#[test]
fn never_indexed_makes_a_value_sensitive() {
    let Field::Regular(_, value) = one(&hex("10 0161 0162")) else { panic!("not a field") };
    assert!(value.is_sensitive());
    let Field::Regular(_, value) = one(&hex("00 0161 0162")) else { panic!("not a field") };
    assert!(!value.is_sensitive());
}

#[test]
fn both_ends_have_one_static_table() {
    for (position, entry) in static_table::TABLE.iter().enumerate() {
        let index = position + 1;
        let (name, value) = match (&entry.name, &entry.field) {
            (Name::Pseudo(Pseudo::Authority), _) => (":authority".to_owned(), vec![]),
            (Name::Bad { .. }, _) => ("transfer-encoding".to_owned(), vec![]),
            (_, field) => text(field),
        };
        assert_eq!(entry.size, name.len() + value.len() + 32, "{name}");
        let first = static_table::name_index(&name).unwrap();
        if let Name::Pseudo(pseudo) = entry.name
            && pseudo != Pseudo::Authority
        {
            assert_eq!(static_table::pseudo_index(pseudo, &value), Some(index), "{name}");
        }
        // Only pseudo-fields are there with several values.
        let repeated = index > 1 && static_table::TABLE[index - 2].name.len() == name.len() && name.starts_with(':');
        assert!(first == index || first < index && repeated, "{name}");
    }
    assert_eq!(static_table::name_index(":protocol"), None);
}

/// One block with this field alone.
fn written(encoder: &mut Encoder, name: &'static str, value: &'static str) -> BytesMut {
    let mut out = BytesMut::new();
    encoder.begin(&mut out);
    encoder.field(&HeaderName::from_static(name), &HeaderValue::from_static(value), &mut out);
    out
}

#[test]
fn the_second_time_makes_an_entry() {
    let mut encoder = Encoder::new(4096);
    assert_eq!(written(&mut encoder, "x-a", "one")[..], *b"\x00\x03x-a\x03one");
    assert_eq!(written(&mut encoder, "x-a", "one")[..], *b"\x40\x03x-a\x03one");
    assert_eq!(written(&mut encoder, "x-a", "one")[..], [0x80 | 62]);
    // Another value has the name's index, and leaves the table alone.
    assert_eq!(written(&mut encoder, "x-a", "two")[..], *b"\x0f\x2f\x03two");
    assert_eq!(written(&mut encoder, "accept", "a")[..], *b"\x0f\x04\x01a");
    assert_eq!(written(&mut encoder, "accept", "a")[..], *b"\x53\x01a");
    assert_eq!(written(&mut encoder, "accept", "a")[..], [0x80 | 62]);
    assert_eq!(written(&mut encoder, "x-a", "one")[..], [0x80 | 63]);

    let mut out = BytesMut::new();
    for (name, value) in [
        (Pseudo::Method, "GET"),
        (Pseudo::Method, "POST"),
        (Pseudo::Scheme, "http"),
        (Pseudo::Path, "/"),
        (Pseudo::Status, "200"),
        (Pseudo::Status, "500"),
    ] {
        encoder.pseudo(name, value.as_bytes(), &mut out);
    }
    assert_eq!(out[..], [0x82, 0x83, 0x86, 0x84, 0x88, 0x8e]);
}

#[test]
fn secrets_paths_and_large_fields_stay_out_of_the_table() {
    let mut encoder = Encoder::new(4096);
    for name in ["cookie", "set-cookie", "authorization", "proxy-authorization"] {
        for _ in 0..4 {
            assert_eq!(written(&mut encoder, name, "secret")[0] & 0xf0, 0x10, "{name}");
        }
    }
    let mut sensitive = HeaderValue::from_static("secret");
    sensitive.set_sensitive(true);
    let name = HeaderName::from_static("x-key");
    for _ in 0..4 {
        written(&mut encoder, "x-key", "secret");
        let mut out = BytesMut::new();
        encoder.field(&name, &sensitive, &mut out);
        assert_eq!(out[0] & 0xf0, 0x10);
    }
    for _ in 0..4 {
        let mut out = BytesMut::new();
        encoder.pseudo(Pseudo::Path, b"/a", &mut out);
        assert_eq!(out[..], *b"\x04\x02/a");
    }
    let quarter = HeaderValue::from_bytes(&[b'a'; 1024 - 32 - 5]).unwrap();
    let larger = HeaderValue::from_bytes(&[b'a'; 1024 - 32 - 4]).unwrap();
    for (value, indexed) in [(&quarter, true), (&larger, false)] {
        let mut out = BytesMut::new();
        for _ in 0..3 {
            out.clear();
            encoder.field(&name, value, &mut out);
        }
        assert_eq!(out.len() == 1, indexed);
    }
}

#[test]
fn size_changes_are_told_with_the_next_block() {
    let begun = |encoder: &mut Encoder| {
        let mut out = BytesMut::new();
        encoder.begin(&mut out);
        out.to_vec()
    };
    let mut encoder = Encoder::new(4096);
    assert_eq!(begun(&mut encoder), []);
    encoder.set_peer_size(4096);
    assert_eq!(begun(&mut encoder), []);
    // More than we want: nothing changes, until it is less again.
    encoder.set_peer_size(65536);
    assert_eq!(begun(&mut encoder), []);
    encoder.set_peer_size(8192);
    assert_eq!(begun(&mut encoder), [0x3f, 0xe1, 0x1f]);
    assert_eq!(begun(&mut encoder), []);
    // Down and up: both, and what was there is gone.
    for _ in 0..3 {
        written(&mut encoder, "a", "b");
    }
    encoder.set_peer_size(20);
    encoder.set_peer_size(0);
    encoder.set_peer_size(4096);
    assert_eq!(begun(&mut encoder), [0x20, 0x3f, 0xe1, 0x1f]);
    assert_eq!(written(&mut encoder, "a", "b").len(), 5);
    // Down only.
    encoder.set_peer_size(16);
    assert_eq!(begun(&mut encoder), [0x30]);
    // Up twice: the last.
    encoder.set_peer_size(17);
    encoder.set_peer_size(18);
    assert_eq!(begun(&mut encoder), [0x32]);

    assert_eq!(begun(&mut Encoder::new(16384)), []);
    let mut small = Encoder::new(16);
    assert_eq!(begun(&mut small), [0x30]);
    small.set_peer_size(4096);
    assert_eq!(begun(&mut small), []);
}

#[test]
fn a_value_does_not_hold_its_block() {
    let mut decoder = Decoder::new(4096);
    let fields = decode(&mut decoder, &hex("40 0161 0162 00 0163 0164 00 0165 0166")).unwrap();
    let value = |field: &Field| match field {
        Field::Regular(_, value) => value.as_bytes().as_ptr() as usize,
        other => panic!("not a regular field: {other:?}"),
    };
    // As far apart as in the block they would lie in a copy of it.
    assert_ne!(value(&fields[2]).wrapping_sub(value(&fields[1])), 5);
    assert_ne!(value(&fields[1]).wrapping_sub(value(&fields[0])), 5);
    // An indexed field is the table's.
    assert_eq!(value(&decode(&mut decoder, &[0xbe]).unwrap()[0]), value(&fields[0]));
}

#[derive(Clone, Debug)]
enum Sent {
    Pseudo(Pseudo, String),
    Regular(HeaderName, HeaderValue),
}

const NAMES: [&str; 6] =
    ["accept", "cookie", "x-a", "x-b", "content-type", "x-a-name-that-takes-a-good-part-of-a-small-table"];

fn sent() -> impl Strategy<Value = Sent> {
    let pseudo = prop_oneof![
        (Just(Pseudo::Method), "GET|POST|PUT|DELETE|[A-Z]{1,20}"),
        (Just(Pseudo::Scheme), "http|https"),
        (Just(Pseudo::Authority), "[a-c]\\.example(:80)?"),
        (Just(Pseudo::Path), "/|/index\\.html|\\*|/[a-z/]{0,30}(\\?[a-z=&]{0,10})?"),
        (Just(Pseudo::Protocol), "websocket|connect-udp"),
        (Just(Pseudo::Status), "200|404|418|[1-9][0-9]{2}"),
    ];
    let name = prop_oneof![
        4 => select(&NAMES[..]).prop_map(str::to_owned),
        1 => "x[a-z0-9_-]{0,40}",
    ];
    let value = prop_oneof![
        4 => select(&["", "a", "b", "application/grpc", "a value of some length, that is in the table or is not"][..])
            .prop_map(|value| value.as_bytes().to_vec()),
        2 => vec(prop_oneof![Just(b'\t'), 0x20..0x7fu8, 0x80..=0xffu8], 0..150),
        1 => vec(0x20..0x7fu8, 0..5000),
    ];
    let regular = (name, value, prop::bool::weighted(0.1)).prop_map(|(name, value, sensitive)| {
        let mut value = HeaderValue::from_bytes(&value).unwrap();
        value.set_sensitive(sensitive);
        Sent::Regular(HeaderName::from_lowercase(name.as_bytes()).unwrap(), value)
    });
    prop_oneof![1 => pseudo.prop_map(|(name, value)| Sent::Pseudo(name, value)), 2 => regular]
}

const SIZES: [u32; 7] = [0, 64, 200, 1000, 4096, 5000, 16384];

proptest! {
    /// What one end writes, the other reads, whatever both tables may hold and however that changes.
    #[test]
    fn fields_come_as_they_went(
        ours in select(&SIZES[..]),
        theirs in select(&SIZES[..]),
        blocks in vec((vec(select(&SIZES[..]), 0..3), vec(sent(), 0..20)), 1..20),
    ) {
        let mut encoder = Encoder::new(ours as usize);
        let mut decoder = Decoder::new(theirs as usize);
        encoder.set_peer_size(theirs);
        let mut out = BytesMut::new();
        for (sizes, fields) in &blocks {
            for &size in sizes {
                encoder.set_peer_size(size.min(theirs));
            }
            out.clear();
            encoder.begin(&mut out);
            let mut expected = Vec::new();
            for field in fields {
                match field {
                    Sent::Pseudo(name, value) => {
                        encoder.pseudo(*name, value.as_bytes(), &mut out);
                        expected.push((name.as_str().to_owned(), value.as_bytes().to_vec()));
                    }
                    Sent::Regular(name, value) => {
                        encoder.field(name, value, &mut out);
                        expected.push((name.as_str().to_owned(), value.as_bytes().to_vec()));
                    }
                }
            }
            let decoded = decode(&mut decoder, &out).unwrap();
            prop_assert_eq!(decoded.iter().map(text).collect::<Vec<_>>(), expected);
        }
    }

    /// A block that comes again is indices from the third time on, whichever of its fields share what.
    #[test]
    fn what_comes_again_is_short(values in btree_set("[a-z]{1,8}", 1..=4)) {
        let mut encoder = Encoder::new(4096);
        let mut out = BytesMut::new();
        for _ in 0..3 {
            out.clear();
            encoder.begin(&mut out);
            for value in &values {
                encoder.field(&header::USER_AGENT, &HeaderValue::from_str(value).unwrap(), &mut out);
            }
        }
        prop_assert_eq!(out.len(), values.len());
    }

    #[test]
    fn any_octets_are_decoded_or_refused(blocks in vec(vec(any::<u8>(), 0..200), 1..5), max in select(&SIZES[..])) {
        let mut decoder = Decoder::new(max as usize);
        for block in &blocks {
            let mut size = 0;
            let result = decoder.decode(block, 1000, &mut |field| {
                if let Field::Regular(name, value) = field {
                    size += name.as_str().len() + value.len() + 32;
                }
            });
            prop_assert!(size <= 1000);
            if result.is_err() {
                break;
            }
        }
    }

    /// Mostly well coded, so that it gets past the first field.
    #[test]
    fn any_literals_are_decoded(
        literals in vec(
            (select(&[0x00, 0x10, 0x40][..]), vec(any::<u8>(), 0..20), vec(any::<u8>(), 0..60), any::<bool>()),
            0..20,
        ),
        max in select(&SIZES[..]),
    ) {
        let mut block = BytesMut::new();
        for (pattern, name, value, coded) in &literals {
            block.put_u8(*pattern);
            for text in [name, value] {
                let text = if *coded { huffman_coded(text) } else { text.clone() };
                let flag = if *coded { 0x80 } else { 0x00 };
                if text.len() < 127 {
                    block.put_u8(flag | text.len() as u8);
                } else {
                    // At most 225: two more octets are always enough.
                    let rest = text.len() - 127;
                    block.put_slice(&[flag | 0x7f, (rest & 0x7f) as u8 | 0x80, (rest >> 7) as u8]);
                }
                block.put_slice(&text);
            }
        }
        let block = Bytes::from(block);
        prop_assert_eq!(decode(&mut Decoder::new(max as usize), &block).unwrap().len(), literals.len());
    }

    #[test]
    fn huffman_decodes_what_was_coded(text in vec(any::<u8>(), 0..100)) {
        let mut out = Vec::new();
        prop_assert_eq!(huffman::decode(&huffman_coded(&text), &mut out), Ok(()));
        prop_assert_eq!(out, text);
    }

    #[test]
    fn huffman_takes_no_more_room_than_said(coded in vec(any::<u8>(), 0..100)) {
        let mut out = Vec::new();
        if huffman::decode(&coded, &mut out).is_ok() {
            prop_assert!(out.len() <= coded.len() * 8 / 5);
            prop_assert_eq!(huffman_coded(&out), coded);
        }
    }
}
