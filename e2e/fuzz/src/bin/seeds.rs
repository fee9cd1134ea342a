//! Writes each entry of the codec's and the authority's test corpora as a file of its own below `corpus/<target>`, for
//! the fuzzer to begin with.

use std::fs;
use std::path::Path;

#[path = "../../../../crates/proxy/tests/h1/corpus.rs"]
#[allow(dead_code, reason = "only the bytes are wanted here")]
mod corpus;

fn main() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let data = root.join("../../crates/proxy/tests/data");
    for (target, file) in [
        ("request_head", "request_heads.txt"),
        ("response_head", "response_heads.txt"),
        ("chunked", "chunked_bodies.txt"),
    ] {
        let entries = corpus::read(&fs::read_to_string(data.join(file))?);
        let seeds = entries.into_iter().map(|entry| match (target, entry.method.as_deref()) {
            ("response_head", Some("HEAD")) => [b"\x01", &entry.bytes[..]].concat(),
            ("response_head", Some("CONNECT")) => [b"\x02", &entry.bytes[..]].concat(),
            ("response_head", _) => [b"\x00", &entry.bytes[..]].concat(),
            _ => entry.bytes,
        });
        write(&root.join("corpus").join(target), seeds)?;
    }
    // SETTINGS, then a POST with a few bytes and trailers, or its answer; to a server, to a client, and to ends that write nothing.
    let settings = b"\0\0\0\x04\0\0\0\0\0";
    let request = b"\0\0\x03\x01\x04\0\0\0\x01\x83\x86\x84\0\0\x03\0\0\0\0\0\x01abc\0\0\x05\x01\x05\0\0\0\x01\0\x01x\x01y";
    let answer = b"\0\0\x01\x01\x04\0\0\0\x01\x88\0\0\x03\0\x01\0\0\0\x01abc";
    let frames = [[&settings[..], request].concat(), [&settings[..], answer].concat()];
    let links = (0..4u8).map(|role| [&[role, 200, 1][..], &frames[usize::from(role & 1 == 0)]].concat());
    write(&root.join("corpus/link"), links)?;
    let mut spellings = String::new();
    for file in fs::read_dir(root.join("../../crates/model/tests/data/ssrf"))? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "tsv") {
            spellings += &fs::read_to_string(path)?;
        }
    }
    let spellings = spellings.lines().filter(|line| !line.starts_with("# "));
    let names = ["web", "web.shop.svc.cluster.local.", "web-0.web.shop:8080", "[fd00::1]:80", "10.0.0.1:443"];
    write(
        &root.join("corpus/authority"),
        spellings.chain(names).map(|text| text.split('\t').next().unwrap_or_default().as_bytes().to_vec()),
    )
}

fn write(folder: &Path, seeds: impl Iterator<Item = Vec<u8>>) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    for (number, seed) in seeds.enumerate() {
        fs::write(folder.join(format!("seed-{number:03}")), seed)?;
    }
    Ok(())
}
