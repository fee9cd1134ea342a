//! Reads header blocks. The dynamic table holds fields that were parsed when they came as literals, so one that is
//! there already costs a look-up and a clone.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use super::field::Name;
use super::{DEFAULT_TABLE_SIZE, DecodeError, ENTRY_OVERHEAD, FIRST_DYNAMIC, Field, huffman, static_table};

/// What the buffer for Huffman-coded strings may keep between blocks, in octets: one long cookie must not cost each
/// link its size for good.
const MAX_SCRATCH: usize = 4096;

/// One direction's decoder.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// The table size that the peer may choose at most.
    max: usize,
    table: Table,
    /// Where Huffman-coded strings are decoded.
    scratch: Vec<u8>,
}

/// An entry of the static or the dynamic table.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Name,
    pub(super) field: Field,
    /// By RFC 7541 §4.1.
    pub(super) size: usize,
}

impl Decoder {
    /// `max` is the table size that we announced in our SETTINGS, in octets. Below 4096 the peer must know it from the
    /// start: until it does, its table may be larger than ours.
    pub(crate) fn new(max: usize) -> Self {
        let table = Table { entries: VecDeque::new(), size: 0, limit: max.min(DEFAULT_TABLE_SIZE) };
        Self { max, table, scratch: Vec::new() }
    }

    /// Decodes a whole header block. Calls `field` for each, until their sizes (name, value and 32 octets each, RFC
    /// 9113 §6.5.2) exceed `limit`: the rest is decoded for the table's sake and dropped. Returns whether all fitted.
    ///
    /// # Errors
    /// The table is out of step with the peer's, and the connection lost.
    pub(crate) fn decode(
        &mut self,
        block: &[u8],
        limit: usize,
        field: &mut impl FnMut(Field),
    ) -> Result<bool, DecodeError> {
        let mut input = Input { block, at: 0 };
        let mut total = 0usize;
        let mut at_start = true;
        while let Some(&first) = block.get(input.at) {
            // The representations of RFC 7541 §6, told apart by their highest bits.
            if first & 0x80 != 0 {
                let index = input.integer(7)?;
                let entry = self.table.entry(index)?;
                total = total.saturating_add(entry.size);
                if total <= limit {
                    field(entry.field.clone());
                }
            } else if first & 0xe0 == 0x20 {
                if !at_start {
                    return Err(DecodeError("a table size update after a field"));
                }
                let size = input.integer(5)?;
                if size > self.max {
                    return Err(DecodeError("a table size update above what was announced"));
                }
                self.table.resize(size);
                continue;
            } else {
                let (literal, size) = self.literal(first, &mut input)?;
                total = total.saturating_add(size);
                if total <= limit {
                    field(literal);
                }
            }
            at_start = false;
        }
        self.scratch.clear();
        self.scratch.shrink_to(MAX_SCRATCH);
        Ok(total <= limit)
    }

    /// A literal, RFC 7541 §6.2, with its size; puts it into the table if it is to go there.
    fn literal(&mut self, first: u8, input: &mut Input<'_>) -> Result<(Field, usize), DecodeError> {
        let indexing = first & 0x40 != 0;
        let never = !indexing && first & 0x10 != 0;
        let index = input.integer(if indexing { 6 } else { 4 })?;
        let parsed;
        let name = if index == 0 {
            let text = input.string(&mut self.scratch)?;
            parsed = Name::parse(text.bytes(input.block));
            &parsed
        } else {
            &self.table.entry(index)?.name
        };
        let text = input.string(&mut self.scratch)?;
        let value = text.bytes(input.block);
        let size = name.len() + value.len() + ENTRY_OVERHEAD;
        // A copy each: a value may stay for as long as the connection (here, or in a map of its reader's) and must not keep a
        // whole block with it.
        let field = Field::parse(name, value, never, || Bytes::copy_from_slice(value));
        if indexing {
            let name = name.clone();
            self.table.insert(Entry { name, field: field.clone(), size });
        }
        Ok((field, size))
    }
}

/// The dynamic table.
#[derive(Debug)]
struct Table {
    /// The newest first, as they are numbered.
    entries: VecDeque<Entry>,
    /// The sum of the entries' sizes.
    size: usize,
    /// What the sum may be.
    limit: usize,
}

impl Table {
    /// The entry of either table that `index` means.
    #[inline]
    fn entry(&self, index: usize) -> Result<&Entry, DecodeError> {
        let entry = match index.checked_sub(FIRST_DYNAMIC) {
            Some(position) => self.entries.get(position),
            None => index.checked_sub(1).and_then(|position| static_table::TABLE.get(position)),
        };
        entry.ok_or(DecodeError("an index that no entry has"))
    }

    /// Makes room for the entry and adds it. One that is larger than the table empties it, RFC 7541 §4.4.
    fn insert(&mut self, entry: Entry) {
        self.evict(self.limit.saturating_sub(entry.size));
        if entry.size <= self.limit {
            self.size += entry.size;
            self.entries.push_front(entry);
        }
    }

    fn resize(&mut self, limit: usize) {
        self.limit = limit;
        self.evict(limit);
    }

    /// Drops the oldest entries until the others are not larger than `target`.
    fn evict(&mut self, target: usize) {
        while self.size > target
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size;
        }
    }
}

/// A block while it is read.
struct Input<'a> {
    block: &'a [u8],
    at: usize,
}

/// A string literal.
enum Text<'a> {
    /// As it is in the block, there.
    Plain(Range<usize>),
    Decoded(&'a [u8]),
}

impl<'a> Text<'a> {
    fn bytes(&self, block: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Plain(range) => block.get(range.clone()).unwrap_or_default(),
            Self::Decoded(bytes) => bytes,
        }
    }
}

impl Input<'_> {
    fn next(&mut self) -> Result<u8, DecodeError> {
        let octet = self.block.get(self.at).copied().ok_or(DecodeError("a block that ends within a field"))?;
        self.at += 1;
        Ok(octet)
    }

    /// An integer whose prefix has `bits` bits, RFC 7541 §5.1. One that needs more than 32 bits, or is written in more
    /// octets than these need, is refused.
    #[inline]
    fn integer(&mut self, bits: u8) -> Result<usize, DecodeError> {
        let mask = (1u8 << bits) - 1;
        let prefix = self.next()? & mask;
        if prefix < mask {
            return Ok(usize::from(prefix));
        }
        let mut value = u64::from(prefix);
        for shift in [0, 7, 14, 21, 28] {
            let octet = self.next()?;
            value += u64::from(octet & 0x7f) << shift;
            if octet & 0x80 == 0 {
                let value = u32::try_from(value).ok().and_then(|value| usize::try_from(value).ok());
                return value.ok_or(DecodeError("an integer of more than 32 bits"));
            }
        }
        Err(DecodeError("an integer of more than 32 bits"))
    }

    /// A string literal, RFC 7541 §5.2; it is decoded into `scratch` if that is needed.
    fn string<'s>(&mut self, scratch: &'s mut Vec<u8>) -> Result<Text<'s>, DecodeError> {
        let coded = self.block.get(self.at).is_some_and(|first| first & 0x80 != 0);
        let len = self.integer(7)?;
        let left = self.block.get(self.at..).unwrap_or_default();
        let bytes = left.get(..len).ok_or(DecodeError("a string that is longer than its block"))?;
        let start = self.at;
        self.at += len;
        if coded {
            huffman::decode(bytes, scratch)?;
            Ok(Text::Decoded(scratch))
        } else {
            Ok(Text::Plain(start..self.at))
        }
    }
}
