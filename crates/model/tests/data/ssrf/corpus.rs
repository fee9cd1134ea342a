//! Reads the corpus; included by the tests of three crates, each of which uses its own part. The format is in README.md.

/// A spelling and what must come of it.
pub(crate) struct Entry {
    pub(crate) spelling: &'static str,
    doors: &'static str,
    verdict: &'static str,
    exceptions: &'static str,
}

const FILES: [&str; 7] = [
    include_str!("cluster.tsv"),
    include_str!("embedded.tsv"),
    include_str!("loopback.tsv"),
    include_str!("metadata.tsv"),
    include_str!("ranges.tsv"),
    include_str!("spellings.tsv"),
    include_str!("unspecified.tsv"),
];

/// The corpus must not shrink unseen.
const AT_LEAST: usize = 540;

/// Every entry.
pub(crate) fn entries() -> Vec<Entry> {
    let lines = FILES.iter().flat_map(|text| text.lines()).filter(|line| !line.starts_with("# "));
    let entries: Vec<Entry> = lines
        .map(|line| {
            let columns: Vec<&str> = line.split('\t').collect();
            let (spelling, doors, verdict, exceptions) = match *columns.as_slice() {
                [spelling, doors, verdict] => (spelling, doors, verdict, ""),
                [spelling, doors, verdict, exceptions] => (spelling, doors, verdict, exceptions),
                _ => panic!("not three or four columns: '{line}'"),
            };
            for door in doors.split(',') {
                assert!(["request", "slice", "external"].contains(&door), "no such door: '{line}'");
            }
            Entry { spelling, doors, verdict, exceptions }
        })
        .collect();
    assert!(entries.len() >= AT_LEAST, "the corpus has shrunk to {}", entries.len());
    entries
}

/// The entries that are tried over `door`; none is an error.
pub(crate) fn over(door: &str) -> Vec<Entry> {
    let mut entries = entries();
    entries.retain(|entry| entry.doors.split(',').any(|d| d == door));
    assert!(!entries.is_empty(), "nothing for door {door}");
    entries
}

impl Entry {
    /// What is expected at one way in.
    pub(crate) fn verdict(&self, way: &str) -> &'static str {
        let exceptions = self.exceptions.split(' ').filter_map(|e| e.split_once('='));
        exceptions.into_iter().find(|(at, _)| *at == way).map_or(self.verdict, |(_, verdict)| verdict)
    }

    /// Whether the verdict is one about the address itself.
    pub(crate) fn is_refused_address(&self) -> bool {
        !["syntax", "unknown", "outside"].contains(&self.verdict)
    }

    /// Host and port, the host without its brackets; no port when none is plainly written.
    pub(crate) fn parts(&self) -> (&'static str, Option<u16>) {
        let text = self.spelling;
        let is_host = |host: &str| host.ends_with(']') || !host.contains(':');
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if is_host(host) && port.parse::<u16>().is_ok() => (host, port.parse().ok()),
            _ => (text, None),
        };
        (host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host), port)
    }
}
