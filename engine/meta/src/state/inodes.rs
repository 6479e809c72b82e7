//! Numbers of inodes: those in use, and those that wait until they may be given again.

use std::collections::VecDeque;

use wire::limits::RESERVED_INODE_MIN;

/// Which inode numbers are taken, and those that wait until they may be used again. Spec 50, 8.3; Spec 51, 9.
#[derive(Clone, Debug)]
pub(crate) struct InodeNumbers {
    /// Bit set: taken or waiting.
    taken: Vec<u64>,
    /// All words before this one are full.
    search_from: usize,
    /// (inode, Unix seconds when it became free), in order.
    pub(crate) waiting: VecDeque<(u32, u32)>,
}

impl InodeNumbers {
    pub(super) fn new() -> InodeNumbers {
        InodeNumbers { taken: vec![1], search_from: 0, waiting: VecDeque::new() }
    }

    /// Marks a number as taken; false if it was already, or is none that a master may give.
    pub(crate) fn take(&mut self, inode: u32) -> bool {
        if inode == 0 || inode >= RESERVED_INODE_MIN {
            return false;
        }
        let word = inode as usize / 64;
        if word >= self.taken.len() {
            self.taken.resize(word + 1, 0);
        }
        let bit = 1 << (inode % 64);
        let was_free = self.taken[word] & bit == 0;
        self.taken[word] |= bit;
        was_free
    }

    pub(super) fn end(&self) -> u32 {
        let last = self.taken.iter().rposition(|word| *word != 0).expect("number 0 is taken");
        last as u32 * 64 + (64 - self.taken[last].leading_zeros())
    }

    pub(super) fn lowest(&self) -> u32 {
        let words = self.taken[self.search_from..].iter().position(|word| *word != u64::MAX);
        match words.map(|words| words + self.search_from) {
            Some(word) => word as u32 * 64 + self.taken[word].trailing_ones(),
            None => u32::try_from(self.taken.len() * 64).expect("numbers end below 2^31"),
        }
    }

    pub(super) fn has_free(&self) -> bool {
        self.lowest() < RESERVED_INODE_MIN
    }

    pub(super) fn take_lowest(&mut self) -> Option<u32> {
        let inode = self.lowest();
        self.search_from = inode as usize / 64;
        self.take(inode).then_some(inode)
    }

    /// The number waits from now on. If the clock went back, numbers that wait since later count from now, too.
    pub(crate) fn release_later(&mut self, inode: u32, now: u32) {
        for (_, since) in self.waiting.iter_mut().rev().take_while(|(_, since)| *since > now) {
            *since = now;
        }
        self.waiting.push_back((inode, now));
    }

    /// The number may be used again.
    pub(crate) fn release(&mut self, inode: u32) {
        let word = inode as usize / 64;
        self.taken[word] &= !(1 << (inode % 64));
        self.search_from = self.search_from.min(word);
    }
}
