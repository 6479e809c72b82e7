//! What a file may hold after whatever has happened: per byte the last value that is sure, and every later one.
//!
//! A change is noted before it is asked for, so that a user who dies in the middle leaves a true history. A change that
//! nobody has confirmed stays possible for ever, until one that is confirmed covers it: it may have happened or not. What
//! a successful `fsync` covers (or, while nothing can lose its memory, a successful `close`) is sure: of each byte the
//! last acknowledged value, or a later one. The length works alike: all lengths that the file may have, until one of
//! them is seen and nothing is under way any more.

use std::ops::RangeInclusive;

/// The history of one file.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    /// Value of each byte that is sure, or was before `later`. Zeros follow.
    sure: Vec<u8>,
    /// Number of the change that made it sure.
    sure_since: Vec<u32>,
    /// Changes that are not sure, oldest first.
    later: Vec<Change>,
    numbers: u32,
    /// Every length that the file may have.
    lengths: Vec<RangeInclusive<u64>>,
    /// The length if everything that was asked for has happened.
    pub(super) wanted: u64,
}

#[derive(Debug, Clone)]
struct Change {
    number: u32,
    start: usize,
    bytes: Vec<u8>,
    /// It was acknowledged, or will have been when the next flush succeeds.
    is_acknowledged: bool,
    /// It is the cut of a truncate that nobody has confirmed: to this length.
    cut_to: Option<u64>,
}

impl History {
    pub(super) fn new() -> History {
        History { lengths: vec![0..=0], ..History::default() }
    }

    /// Bytes are about to be written.
    pub(super) fn write(&mut self, start: u64, bytes: &[u8]) {
        let end = start + bytes.len() as u64;
        self.wanted = self.wanted.max(end);
        for lengths in &mut self.lengths {
            *lengths = *lengths.start()..=end.max(*lengths.end());
        }
        self.note(start, bytes.to_vec(), true, None);
    }

    /// All that was written is acknowledged.
    pub(super) fn flushed(&mut self) {
        if self.later.iter().all(|change| change.cut_to.is_none()) {
            self.lengths = vec![self.wanted..=self.wanted];
        }
    }

    /// All that was acknowledged is sure.
    pub(super) fn synced(&mut self) {
        self.flushed();
        for change in self.later.extract_if(.., |change| change.is_acknowledged) {
            let end = change.start + change.bytes.len();
            if self.sure.len() < end {
                self.sure.resize(end, 0);
                self.sure_since.resize(end, 0);
            }
            self.sure[change.start..end].copy_from_slice(&change.bytes);
            self.sure_since[change.start..end].fill(change.number);
        }
    }

    /// Something was refused, or its user has died: whatever is not sure may have happened or not.
    pub(super) fn failed(&mut self) {
        for change in &mut self.later {
            change.is_acknowledged = false;
        }
    }

    /// The file is about to be cut, or to be made longer.
    pub(super) fn truncate(&mut self, length: u64) {
        let end = self.lengths.iter().map(|lengths| *lengths.end()).max().unwrap_or(0);
        let cut = usize::try_from(end.saturating_sub(length)).expect("files are small");
        self.note(length, vec![0; cut], false, Some(length));
        self.lengths.push(length..=length);
    }

    /// That truncate was acknowledged.
    pub(super) fn truncated(&mut self, length: u64) {
        if let Some(change) = self.later.iter_mut().rev().find(|change| change.cut_to == Some(length)) {
            (change.is_acknowledged, change.cut_to) = (true, None);
        }
        // What was not confirmed before has had its last chance.
        for change in &mut self.later {
            change.cut_to = None;
        }
        self.lengths = vec![length..=length];
        self.wanted = length;
    }

    /// The file is seen with a length. `is_quiet`: nothing that was asked for can still be under way.
    ///
    /// Errors: the lengths that it may have.
    pub(super) fn see_length(&mut self, length: u64, is_quiet: bool) -> Result<(), String> {
        if !self.lengths.iter().any(|lengths| lengths.contains(&length)) {
            return Err(format!("{length} bytes long, and may be {:?}", self.lengths));
        }
        if is_quiet {
            for change in &mut self.later {
                change.cut_to = None;
            }
            self.lengths = vec![length..=length];
            self.wanted = length;
        }
        Ok(())
    }

    /// The length is known.
    pub(super) fn has_one_length(&self) -> bool {
        matches!(&self.lengths[..], [lengths] if lengths.start() == lengths.end())
    }

    /// Whether the bytes found at `start` are legal. Errors: where they are not.
    pub(super) fn check(&self, start: u64, found: &[u8]) -> Result<(), String> {
        let start = usize::try_from(start).expect("files are small");
        let known = |at: usize| self.sure.get(at).copied().unwrap_or(0);
        let mut wrong: Vec<usize> = (start..start + found.len()).filter(|at| found[at - start] != known(*at)).collect();
        for change in &self.later {
            wrong.retain(|at| {
                let here = at.checked_sub(change.start).and_then(|place| change.bytes.get(place));
                let is_later = self.sure_since.get(*at).is_none_or(|since| *since < change.number);
                !(is_later && here == Some(&found[at - start]))
            });
        }
        let (Some(first), Some(last)) = (wrong.first(), wrong.last()) else { return Ok(()) };
        let zeros = wrong.iter().filter(|at| found[**at - start] == 0).count();
        Err(format!("{} bytes are wrong, {zeros} of them zeros, from {first} to {last}", wrong.len()))
    }

    fn note(&mut self, start: u64, bytes: Vec<u8>, is_acknowledged: bool, cut_to: Option<u64>) {
        self.numbers += 1;
        let start = usize::try_from(start).expect("files are small");
        self.later.push(Change { number: self.numbers, start, bytes, is_acknowledged, cut_to });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fsync_confirmed_is_the_least_that_must_be_there() {
        let mut history = History::new();
        history.write(0, &[1; 4]);
        assert!(history.check(0, &[0, 1, 0, 1]).is_ok(), "nothing is sure yet");
        history.synced();
        assert!(history.check(0, &[1; 4]).is_ok() && history.check(0, &[0, 1, 1, 1]).is_err());
        history.write(2, &[2; 4]);
        assert!(history.check(0, &[1, 1, 2, 1, 0, 2]).is_ok());
        assert!(history.check(0, &[1, 1, 3, 1, 0, 2]).is_err());
        history.synced();
        assert!(history.check(0, &[1, 1, 2, 2, 2, 2]).is_ok() && history.check(0, &[1, 1, 1, 2, 2, 2]).is_err());
    }

    #[test]
    fn what_failed_may_be_there_until_something_later_is_sure() {
        let mut history = History::new();
        history.write(0, &[1; 2]);
        history.failed();
        history.write(1, &[2; 2]);
        history.synced();
        assert!(history.check(0, &[0, 2, 2]).is_ok() && history.check(0, &[1, 2, 2]).is_ok());
        assert!(history.check(0, &[1, 1, 2]).is_err(), "a late packet must not undo what is sure");
        history.write(1, &[3; 1]);
        history.failed();
        history.synced();
        assert!(history.check(0, &[0, 3, 2]).is_ok() && history.check(0, &[0, 2, 2]).is_ok());
    }

    #[test]
    fn an_uncertain_truncate_allows_both_lengths_until_one_is_seen() {
        let mut history = History::new();
        history.write(0, &[1; 10]);
        history.synced();
        history.truncate(4);
        history.failed();
        assert!(history.clone().see_length(10, true).is_ok() && history.clone().see_length(7, true).is_err());
        assert!(history.see_length(4, true).is_ok() && history.see_length(10, true).is_err());
        history.truncate(6);
        history.truncated(6);
        assert!(history.see_length(6, false).is_ok() && history.check(0, &[1, 1, 1, 1, 0, 0]).is_ok());
    }
}
