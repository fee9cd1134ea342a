//! Finds where a head ends, once over each byte however slowly the bytes come, and refuses line ends that are no CRLF:
//! httparse takes a bare LF, and two parsers that disagree on where a line ends disagree on what is a field.

use memchr::memchr;

use super::{HeadError, MAX_HEAD};

/// Remembers between two looks at a growing buffer what has been searched. Make a new one (or use the same again: a
/// found end resets it) for each head.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScan {
    /// No line end lies before this offset.
    searched: usize,
    /// Where the line begins that `searched` is in.
    line: usize,
    /// Empty lines before the first line; they belong to no head.
    empty: u8,
}

impl HeadScan {
    /// Nothing searched yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The length of the head at the start of `buf`, its empty line included, and how many bytes of empty lines come
    /// first. `None` when the end is not there yet. At most `leading` empty lines may come first.
    #[inline]
    pub(super) fn find_end(&mut self, buf: &[u8], leading: u8) -> Result<Option<(usize, usize)>, HeadError> {
        // Only what may belong to the head is looked at, so that the verdict does not depend on how much has come.
        let within = &buf[..buf.len().min(MAX_HEAD)];
        while let Some(at) = within.get(self.searched..).and_then(|rest| memchr(b'\n', rest)) {
            let lf = self.searched + at;
            if lf == self.line || within[lf - 1] != b'\r' {
                return Err(HeadError::LineEnd);
            }
            let start = usize::from(self.empty) * 2;
            let is_empty = lf - self.line == 1;
            self.searched = lf + 1;
            self.line = lf + 1;
            if is_empty {
                if lf > start + 1 {
                    *self = Self::default();
                    return Ok(Some((lf + 1, start)));
                }
                self.empty += 1;
                if self.empty > leading {
                    return Err(HeadError::EmptyLines);
                }
            }
        }
        if within.len() == MAX_HEAD {
            return Err(HeadError::TooLong);
        }
        self.searched = within.len();
        Ok(None)
    }
}
