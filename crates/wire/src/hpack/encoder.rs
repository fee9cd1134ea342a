//! Writes header blocks. What is in the dynamic table is found by one hash over name and value; what goes into it is
//! chosen so that it holds what will come again, and nothing that is secret.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher};

use bytes::{BufMut, BytesMut};
use foldhash::fast::RandomState;
use http::{HeaderName, HeaderValue, header};

use super::{DEFAULT_TABLE_SIZE, ENTRY_OVERHEAD, FIRST_DYNAMIC, Pseudo, static_table};

/// Buckets of each look-up. Two for an entry of 32 octets in a table of 4096, one for an ordinary entry in one of
/// 16384.
const BUCKETS: usize = 256;

/// Sets of what has been seen, and how many fields each remembers. Four, for with one a set two fields of every message
/// that share it would take each other's place for ever: a matter of chance, but one connection in four has two.
const SETS: usize = 64;
const WAYS: usize = 4;

/// One direction's encoder.
#[derive(Debug)]
pub(crate) struct Encoder {
    /// What we are ready to keep, whatever the peer allows, in octets.
    max: usize,
    /// What the peer allows, by its last SETTINGS.
    peer: usize,
    /// The table's size from the next block on.
    wanted: usize,
    /// The smallest `wanted` since the last block, if the next one must tell the peer of a change.
    change: Option<usize>,
    table: Table,
    /// Tags of the fields that came lately, by their hashes; in each set the latest first.
    seen: Box<[[u32; WAYS]; SETS]>,
    /// Seeded at random: names and values are chosen by clients, which must not be able to choose what collides.
    hasher: RandomState,
}

/// The literals of RFC 7541 §6.2: the bits that tell them apart, and how many are left for the name's index.
#[derive(Clone, Copy)]
enum Literal {
    Indexing,
    Plain,
    Never,
}

impl Literal {
    fn prefix(self) -> (u8, u8) {
        match self {
            Self::Indexing => (0x40, 6),
            Self::Plain => (0x00, 4),
            Self::Never => (0x10, 4),
        }
    }
}

impl Encoder {
    /// Keeps a table of `max` octets at most, and of 4096 at most until the peer's SETTINGS are known.
    pub(crate) fn new(max: usize) -> Self {
        let wanted = max.min(DEFAULT_TABLE_SIZE);
        Self {
            max,
            peer: DEFAULT_TABLE_SIZE,
            wanted,
            // The peer's table begins with 4096.
            change: (wanted != DEFAULT_TABLE_SIZE).then_some(wanted),
            table: Table::new(DEFAULT_TABLE_SIZE),
            seen: Box::new([[0; WAYS]; SETS]),
            hasher: RandomState::default(),
        }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE, in octets. Takes effect with the next block.
    pub(crate) fn set_peer_size(&mut self, size: u32) {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let wanted = size.min(self.max);
        // After a reduction the peer waits for an update even if we never used all of it (RFC 9113 §4.3.1).
        if wanted != self.wanted || size < self.peer {
            self.change = Some(self.change.map_or(wanted, |smallest| smallest.min(wanted)));
        }
        self.peer = size;
        self.wanted = wanted;
    }

    /// Begins a block; call once for each, before its fields. Tells the peer of changes of the table's size: the
    /// smallest since the last block, for what it evicts, then the last (RFC 7541 §4.2).
    pub(crate) fn begin(&mut self, out: &mut BytesMut) {
        let Some(smallest) = self.change.take() else { return };
        if smallest < self.wanted && smallest < self.table.limit {
            self.table.resize(smallest);
            integer(out, 0x20, 5, smallest);
        }
        self.table.resize(self.wanted);
        integer(out, 0x20, 5, self.wanted);
    }

    /// Writes a pseudo-field.
    ///
    /// A `:path` that is not in the static table never goes into the dynamic one: a service has more paths than the
    /// table has room for, and each would push out a field that every request has.
    pub(crate) fn pseudo(&mut self, name: Pseudo, value: &[u8], out: &mut BytesMut) {
        if let Some(index) = static_table::pseudo_index(name, value) {
            integer(out, 0x80, 7, index);
        } else if name == Pseudo::Path {
            self.literal(Literal::Plain, Key::Pseudo(name), value, out);
        } else {
            self.shared(Key::Pseudo(name), value, out);
        }
    }

    /// Writes any other field.
    ///
    /// Values that are sensitive, and those of fields that carry credentials, are never indexed (RFC 7541 §7.1): a link
    /// carries many clients' requests through one table, and one who can send requests of his own and see how long the
    /// link's records are could guess another's secret, and know by the length when he is right.
    pub(crate) fn field(&mut self, name: &HeaderName, value: &HeaderValue, out: &mut BytesMut) {
        if value.is_sensitive() || is_secret(name) {
            self.literal(Literal::Never, Key::Regular(name), value.as_bytes(), out);
        } else {
            self.shared(Key::Regular(name), value.as_bytes(), out);
        }
    }

    /// Writes a field as an index if the table has it, and puts it there if it is worth it.
    ///
    /// It is when it comes for the second time: values that differ in each message (trace contexts, entity tags,
    /// deadlines, request ids) would otherwise push out those that do not, and cost an allocation at both ends. And not
    /// if it takes more than a quarter of the table, for what it would push out is worth more.
    fn shared(&mut self, key: Key<'_>, value: &[u8], out: &mut BytesMut) {
        let size = key.as_str().len() + value.len() + ENTRY_OVERHEAD;
        if size > self.table.limit / 4 {
            return self.literal(Literal::Plain, key, value, out);
        }
        let hash = self.hash(key.as_str(), value);
        if let Some(index) = self.table.field_index(hash, key, value) {
            return integer(out, 0x80, 7, index);
        }
        if !self.seen_before(hash) {
            return self.literal(Literal::Plain, key, value, out);
        }
        self.literal(Literal::Indexing, key, value, out);
        let name_hash = static_table::name_index(key.as_str()).is_none().then(|| self.hash(key.as_str(), &[]));
        self.table.insert(hash, name_hash, size, key, value);
    }

    /// Whether a field of this hash came lately; remembers it if not.
    fn seen_before(&mut self, hash: u64) -> bool {
        let set = &mut self.seen[(hash >> 8) as usize % SETS];
        let tag = (hash >> 32) as u32;
        let seen = set.contains(&tag);
        if !seen {
            set.rotate_right(1);
            set[0] = tag;
        }
        seen
    }

    /// Writes name and value, the name as an index if either table has it. Never Huffman-coded: bytes are cheap where
    /// links run, and what comes often is an index by then.
    fn literal(&self, literal: Literal, key: Key<'_>, value: &[u8], out: &mut BytesMut) {
        let name = key.as_str();
        let index = static_table::name_index(name)
            .or_else(|| self.table.name_index(self.hash(name, &[]), key))
            .unwrap_or_default();
        let (pattern, bits) = literal.prefix();
        integer(out, pattern, bits, index);
        if index == 0 {
            string(out, name.as_bytes());
        }
        string(out, value);
    }

    #[inline]
    fn hash(&self, name: &str, value: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(name.as_bytes());
        hasher.write(value);
        hasher.finish()
    }
}

fn is_secret(name: &HeaderName) -> bool {
    *name == header::COOKIE
        || *name == header::AUTHORIZATION
        || *name == header::SET_COOKIE
        || *name == header::PROXY_AUTHORIZATION
}

/// A field's name as the caller has it.
#[derive(Clone, Copy)]
enum Key<'a> {
    Pseudo(Pseudo),
    Regular(&'a HeaderName),
}

impl<'a> Key<'a> {
    #[inline]
    fn as_str(self) -> &'a str {
        match self {
            Self::Pseudo(pseudo) => pseudo.as_str(),
            Self::Regular(name) => name.as_str(),
        }
    }
}

/// A field's name as the table has it.
#[derive(Debug)]
enum Name {
    Pseudo(Pseudo),
    Regular(HeaderName),
}

impl Name {
    #[inline]
    fn is(&self, key: Key<'_>) -> bool {
        match (self, key) {
            (Self::Pseudo(own), Key::Pseudo(other)) => *own == other,
            (Self::Regular(own), Key::Regular(other)) => own == other,
            (Self::Pseudo(_), Key::Regular(_)) | (Self::Regular(_), Key::Pseudo(_)) => false,
        }
    }
}

/// The dynamic table. Entries are numbered from 1 as they come. A bucket holds the number of its newest entry, and each
/// entry that of the next older one there. An eviction leaves the buckets alone: a number below the oldest entry's is
/// no entry, and ends its chain.
#[derive(Debug)]
struct Table {
    /// The oldest first.
    entries: VecDeque<Entry>,
    /// The newest entry's number.
    newest: u64,
    /// The sum of the entries' sizes.
    size: usize,
    /// What the sum may be.
    limit: usize,
    /// By the hashes of name and value.
    fields: Box<[u64; BUCKETS]>,
    /// By the hashes of the names that are not in the static table.
    names: Box<[u64; BUCKETS]>,
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    older_field: u64,
    older_name: u64,
    name: Name,
    /// A copy: a slice of what the caller has would keep the buffer behind it for as long as the entry stays.
    value: Box<[u8]>,
}

impl Entry {
    fn size(&self) -> usize {
        let name = match &self.name {
            Name::Pseudo(pseudo) => pseudo.as_str(),
            Name::Regular(name) => name.as_str(),
        };
        name.len() + self.value.len() + ENTRY_OVERHEAD
    }
}

impl Table {
    fn new(limit: usize) -> Self {
        let (fields, names) = (Box::new([0; BUCKETS]), Box::new([0; BUCKETS]));
        Self { entries: VecDeque::new(), newest: 0, size: 0, limit, fields, names }
    }

    /// The entry of this number, if it is still there, and its index.
    #[inline]
    fn entry(&self, number: u64) -> Option<(&Entry, usize)> {
        let age = usize::try_from(self.newest - number).ok()?;
        let position = self.entries.len().checked_sub(age + 1)?;
        Some((self.entries.get(position)?, FIRST_DYNAMIC + age))
    }

    #[inline]
    fn field_index(&self, hash: u64, key: Key<'_>, value: &[u8]) -> Option<usize> {
        let mut number = self.fields[hash as usize % BUCKETS];
        while let Some((entry, index)) = self.entry(number) {
            if entry.hash == hash && entry.name.is(key) && *entry.value == *value {
                return Some(index);
            }
            number = entry.older_field;
        }
        None
    }

    fn name_index(&self, hash: u64, key: Key<'_>) -> Option<usize> {
        let mut number = self.names[hash as usize % BUCKETS];
        while let Some((entry, index)) = self.entry(number) {
            if entry.name.is(key) {
                return Some(index);
            }
            number = entry.older_name;
        }
        None
    }

    /// Adds an entry, which must not be larger than the table, and evicts what it has no room for. Without a
    /// `name_hash` its name is not to be found.
    fn insert(&mut self, hash: u64, name_hash: Option<u64>, size: usize, key: Key<'_>, value: &[u8]) {
        self.evict(self.limit.saturating_sub(size));
        self.size += size;
        self.newest += 1;
        let older_field = std::mem::replace(&mut self.fields[hash as usize % BUCKETS], self.newest);
        let older_name =
            name_hash.map_or(0, |hash| std::mem::replace(&mut self.names[hash as usize % BUCKETS], self.newest));
        let name = match key {
            Key::Pseudo(pseudo) => Name::Pseudo(pseudo),
            Key::Regular(name) => Name::Regular(name.clone()),
        };
        self.entries.push_back(Entry { hash, older_field, older_name, name, value: value.into() });
    }

    fn resize(&mut self, limit: usize) {
        self.limit = limit;
        self.evict(limit);
    }

    /// Drops the oldest entries until the others are not larger than `target`.
    fn evict(&mut self, target: usize) {
        while self.size > target
            && let Some(oldest) = self.entries.pop_front()
        {
            self.size -= oldest.size();
        }
    }
}

/// An integer behind `pattern`, which leaves `bits` bits of its octet to it (RFC 7541 §5.1).
#[inline]
fn integer(out: &mut BytesMut, pattern: u8, bits: u8, value: usize) {
    let max = (1usize << bits) - 1;
    if value < max {
        return out.put_u8(pattern | value as u8);
    }
    out.put_u8(pattern | max as u8);
    let mut rest = value - max;
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// A string literal as it is (RFC 7541 §5.2).
fn string(out: &mut BytesMut, bytes: &[u8]) {
    integer(out, 0x00, 7, bytes.len());
    out.put_slice(bytes);
}
