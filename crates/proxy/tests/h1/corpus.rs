//! Reads the data files: see the text at the top of `tests/data/request_heads.txt`.

/// One entry.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) method: Option<String>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) expect: String,
    pub(crate) carried: Vec<(String, Vec<u8>)>,
    pub(crate) gone: Vec<String>,
}

impl Entry {
    /// The words of the expectation after `refuse`, if it is one.
    pub(crate) fn refusal(&self) -> Option<Vec<&str>> {
        self.expect.strip_prefix("refuse ").map(|rest| rest.split(' ').collect())
    }
}

/// All entries of a data file's text; panics with the line when one is malformed.
pub(crate) fn read(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (mark, rest) = (line.as_bytes()[0], line.get(2..).unwrap_or_default());
        if mark == b'?' {
            entries.push(Entry { name: rest.to_owned(), ..Entry::default() });
            continue;
        }
        let entry = entries.last_mut().unwrap_or_else(|| panic!("line {}: no entry has begun", number + 1));
        match mark {
            b'@' => entry.method = Some(rest.to_owned()),
            b'<' => entry.bytes.extend(unescape(rest)),
            b'>' => entry.expect = String::from_utf8(unescape(rest)).unwrap(),
            b'+' => {
                let (name, value) = rest.split_once(':').unwrap();
                entry.carried.push((name.to_owned(), unescape(value.strip_prefix(' ').unwrap_or(value))));
            }
            b'-' => entry.gone.push(rest.to_owned()),
            _ => panic!("line {}: unknown mark in '{line}'", number + 1),
        }
    }
    for entry in &entries {
        assert!(!entry.expect.is_empty(), "'{}' expects nothing", entry.name);
    }
    entries
}

/// Reads the escapes.
pub(crate) fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&b, after)) = rest.split_first() {
        rest = after;
        if b != b'\\' {
            out.push(b);
            continue;
        }
        let (&kind, after) = rest.split_first().unwrap();
        rest = after;
        match kind {
            b'r' => out.push(b'\r'),
            b'n' => out.push(b'\n'),
            b't' => out.push(b'\t'),
            b'0' => out.push(0),
            b'\\' => out.push(b'\\'),
            b'x' => {
                let (digits, after) = rest.split_at(2);
                out.push(u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap());
                rest = after;
            }
            b'*' => {
                let open = rest.iter().position(|b| *b == b'(').unwrap();
                let close = rest.iter().position(|b| *b == b')').unwrap();
                let times: usize = std::str::from_utf8(&rest[..open]).unwrap().parse().unwrap();
                let unit = unescape(std::str::from_utf8(&rest[open + 1..close]).unwrap());
                out.extend(unit.repeat(times));
                rest = &rest[close + 1..];
            }
            other => panic!("unknown escape \\{} in '{text}'", char::from(other)),
        }
    }
    out
}
