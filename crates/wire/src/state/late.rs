//! Two short memories with bounds: which streams we gave up, and how much the other end has asked and not yet taken.

use std::collections::{HashSet, VecDeque};

use super::Fatal;
use crate::error::Reason;
use crate::output::Output;

/// Streams that we gave up and remember: as many as may be open.
pub(super) const MAX_GIVEN_UP: usize = 4096;
/// Answers to the other end's frames (PING, SETTINGS, refused streams) that may wait for it to read them.
const MAX_REPLIES: usize = 8192;

/// Streams that we gave up while the other end may not have known: its frames for them are late, not wrong (RFC 9113 §5.1). The
/// newest are known by number; all up to the highest that was forgotten get the benefit of the doubt.
#[derive(Default)]
pub(super) struct GivenUp {
    pub(super) order: VecDeque<u32>,
    pub(super) known: HashSet<u32, foldhash::fast::RandomState>,
    forgotten: u32,
}

impl GivenUp {
    pub(super) fn add(&mut self, id: u32) {
        if self.known.insert(id) {
            self.order.push_back(id);
        }
        if self.order.len() > MAX_GIVEN_UP
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
            self.forgotten = self.forgotten.max(oldest);
        }
    }

    pub(super) fn has(&self, id: u32) -> bool {
        id <= self.forgotten || self.known.contains(&id)
    }
}

/// Answers to the other end's frames that it has not taken yet, counted so that one that asks and never reads cannot fill our
/// memory. The output may not be empty for hours, so they are counted in two parts: those before a mark in it, and those behind.
#[derive(Default)]
pub(super) struct Replies {
    before: usize,
    mark: u64,
    behind: usize,
}

impl Replies {
    pub(super) fn add(&mut self, out: &Output) -> Result<(), Fatal> {
        self.behind += 1;
        if out.written() >= self.mark {
            self.before = std::mem::take(&mut self.behind);
            self.mark = out.written() + out.len() as u64;
        }
        if self.before + self.behind > MAX_REPLIES {
            return Err((Reason::ENHANCE_YOUR_CALM, "questions faster than their answers are read"));
        }
        Ok(())
    }
}
