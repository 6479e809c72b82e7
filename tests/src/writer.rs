//! A program that changes a file through a mount, step by step, and knows at every moment what the file may hold.
//!
//! Known are the content that the last successful `fsync` promised, and every change that was asked for since, whether
//! it was acknowledged or failed. After trouble a byte may be the promised one or one of a later change; a length is the
//! promised one or that after a later change; and zeros stand only where the file grew. An `fsync` that returns 0 makes
//! what is there then the promise. A program that met an error reads the file again before it goes on, and syncs what it
//! found.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tree::Random;

/// A file is not longer.
const LENGTH_MAX: usize = 400_000;
/// After so many reads in vain, one after the other, a file of which nothing is promised is written anew.
const TRIES: usize = 2;
/// One program makes so many snapshots of its file.
const SNAPSHOTS_MAX: usize = 12;

/// One change of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Write { offset: usize, data: Vec<u8> },
    Length(usize),
}

/// What a file may hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    /// What the last `fsync` promised.
    pub promised: Vec<u8>,
    /// What was asked for since.
    pub since: Vec<Change>,
}

impl Model {
    /// The content if every change was carried out.
    pub fn newest(&self) -> Vec<u8> {
        let mut bytes = self.promised.clone();
        for change in &self.since {
            match change {
                Change::Length(length) => bytes.resize(*length, 0),
                Change::Write { offset, data } => {
                    let end = offset + data.len();
                    bytes.resize(bytes.len().max(end), 0);
                    bytes[*offset..end].copy_from_slice(data);
                }
            }
        }
        bytes
    }

    /// Everything that was asked for was done, and is on devices.
    pub fn synced(&mut self) {
        self.promised = self.newest();
        self.since.clear();
    }

    /// Errors: what is wrong with `found`, in words.
    pub fn check(&self, found: &[u8]) -> Result<(), String> {
        let (mut length, mut is_length) = (self.promised.len(), self.promised.len() == found.len());
        let mut legal: Vec<bool> =
            found.iter().enumerate().map(|(at, byte)| self.promised.get(at) == Some(byte)).collect();
        for change in &self.since {
            let before = length;
            let after = match change {
                Change::Length(length) => *length,
                Change::Write { offset, data } => {
                    for (at, byte) in (*offset..).zip(data) {
                        if found.get(at) == Some(byte) {
                            legal[at] = true;
                        }
                    }
                    before.max(offset + data.len())
                }
            };
            for at in before..after.min(found.len()) {
                legal[at] |= found[at] == 0;
            }
            // A write may have come to a part of itself.
            is_length |= after == found.len() || (before..after).contains(&found.len());
            length = after;
        }
        let changes = || {
            let spelled = self.since.iter().map(|change| match change {
                Change::Length(length) => format!("length {length}"),
                Change::Write { offset, data } => format!("{} bytes at {offset}", data.len()),
            });
            spelled.collect::<Vec<_>>().join(", ")
        };
        let promised = self.promised.len();
        if !is_length {
            return Err(format!("{} bytes long; promised are {promised}, and since then [{}]", found.len(), changes()));
        }
        let Some(first) = legal.iter().position(|legal| !legal) else { return Ok(()) };
        let count = legal.iter().filter(|legal| !**legal).count();
        let zeros = legal.iter().zip(found).filter(|(legal, byte)| !**legal && **byte == 0).count();
        Err(format!(
            "{count} bytes are neither the promised nor later ones, the first at {first} of {} ({zeros} of them are 0); \
             promised are {promised}, and since then [{}]",
            found.len(),
            changes()
        ))
    }
}

/// One program with its file.
pub struct Writer {
    pub path: PathBuf,
    pub model: Model,
    /// No change has failed since the file was read last.
    is_sure: bool,
    pub synced: u64,
    pub failed: u64,
    /// How often the file was lost before anything of it had been synced, and was written anew.
    pub written_anew: u64,
    /// How often it was read in vain.
    tries: usize,
    /// Snapshots that were acknowledged.
    pub snapshots: Vec<(PathBuf, Vec<u8>)>,
    snapshots_tried: usize,
    random: Random,
}

impl Writer {
    /// Makes the file, on a healthy cluster.
    pub fn begin(mount: &Path, number: u64, seed: u64) -> io::Result<Writer> {
        let path = mount.join(format!("file{number}"));
        let mut random = Random::new(seed.wrapping_mul(1000) + number);
        let promised = random.bytes(LENGTH_MAX / 2);
        let file = File::options().write(true).create_new(true).open(&path)?;
        file.write_all_at(&promised, 0)?;
        file.sync_all()?;
        Ok(Writer {
            path,
            model: Model { promised, since: Vec::new() },
            is_sure: true,
            synced: 0,
            failed: 0,
            written_anew: 0,
            tries: 0,
            snapshots: Vec::new(),
            snapshots_tried: 0,
            random,
        })
    }

    /// What the file holds is known for certain, and promised.
    pub fn is_settled(&self) -> bool {
        self.is_sure && self.model.since.is_empty()
    }

    /// A change has failed, and what became of it has not been seen yet.
    pub fn is_in_doubt(&self) -> bool {
        !self.is_sure
    }

    /// One step: changes and mostly an `fsync`; after an error, a look at what became of them.
    ///
    /// Errors: a promise was broken. That the file system fails meanwhile is none.
    pub fn step(&mut self) -> Result<(), String> {
        if !self.is_sure {
            return self.settle();
        }
        if self.is_settled() && self.snapshots_tried < SNAPSHOTS_MAX && self.random.below(12) == 0 {
            self.snapshot();
            return Ok(());
        }
        if self.random.below(6) == 0 {
            self.verify()?;
        } else if self.change().is_err() {
            self.is_sure = false;
            self.failed += 1;
        }
        Ok(())
    }

    /// Reads the whole file and compares it with what it may hold.
    pub fn verify(&mut self) -> Result<(), String> {
        match std::fs::read(&self.path) {
            Ok(found) => self.model.check(&found).map_err(|what| format!("{}: {what}", self.path.display())),
            Err(_) => {
                self.is_sure = false;
                self.failed += 1;
                Ok(())
            }
        }
    }

    /// Reads the file if it can be read now, and makes what is there the promise.
    pub fn settle(&mut self) -> Result<(), String> {
        let Some(found) = self.read_and_sync() else {
            self.tries += 1;
            if self.tries >= TRIES && self.nothing_is_promised() {
                self.write_anew();
            }
            return Ok(());
        };
        self.tries = 0;
        self.model.check(&found).map_err(|what| format!("{}: {what}", self.path.display()))?;
        self.model = Model { promised: found, since: Vec::new() };
        self.is_sure = true;
        Ok(())
    }

    /// No byte of what is in the file now was ever synced, so no disk need have any of it: it was cut to nothing since.
    fn nothing_is_promised(&self) -> bool {
        self.model.promised.is_empty() || self.model.since.contains(&Change::Length(0))
    }

    /// What a program does that finds its file lost, and knows that it never synced it.
    fn write_anew(&mut self) {
        let Ok(file) = File::options().write(true).open(&self.path) else { return };
        let written = self.cut(&file, 0).and_then(|()| self.write(&file, 0, LENGTH_MAX / 2));
        if written.and_then(|()| file.sync_all()).is_ok() {
            self.model.synced();
            (self.is_sure, self.tries) = (true, 0);
            self.written_anew += 1;
        }
    }

    /// None: it failed, or the file was not the same before and after.
    fn read_and_sync(&self) -> Option<Vec<u8>> {
        let file = File::options().read(true).write(true).open(&self.path).ok()?;
        let before = std::fs::read(&self.path).ok()?;
        file.sync_all().ok()?;
        let after = std::fs::read(&self.path).ok()?;
        (before == after).then_some(after)
    }

    fn change(&mut self) -> io::Result<()> {
        let file = File::options().read(true).write(true).open(&self.path)?;
        let length = self.model.newest().len();
        match self.random.below(8) {
            0 => {
                self.cut(&file, 0)?;
                let size = 1 + self.random.below(LENGTH_MAX);
                self.write(&file, 0, size)?;
            }
            1 => {
                let length = self.random.below(LENGTH_MAX);
                self.cut(&file, length)?;
            }
            2 => {
                let size = 1 + self.random.below(50_000);
                let offset = if length + size > LENGTH_MAX { 0 } else { length };
                self.write(&file, offset, size)?;
            }
            _ => {
                for _ in 0..1 + self.random.below(4) {
                    let offset = self.random.below(length.min(LENGTH_MAX - 100_000) + 1);
                    let size = 1 + self.random.below(100_000);
                    self.write(&file, offset, size)?;
                }
            }
        }
        if self.random.below(6) == 0 {
            return Ok(()); // whoever syncs next, syncs this too
        }
        file.sync_all()?;
        self.model.synced();
        self.synced += 1;
        Ok(())
    }

    fn write(&mut self, file: &File, offset: usize, size: usize) -> io::Result<()> {
        let data = self.random.bytes(size);
        self.model.since.push(Change::Write { offset, data: data.clone() });
        file.write_all_at(&data, offset as u64)
    }

    fn cut(&mut self, file: &File, length: usize) -> io::Result<()> {
        self.model.since.push(Change::Length(length));
        file.set_len(length as u64)
    }

    /// A snapshot shares the chunks with the file until that is written to again.
    fn snapshot(&mut self) {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".snapshot{}", self.snapshots_tried));
        self.snapshots_tried += 1;
        let target = PathBuf::from(name);
        let output = Command::new("mfsmakesnapshot").arg(&self.path).arg(&target).output();
        if output.is_ok_and(|output| output.status.success()) {
            self.snapshots.push((target, self.model.promised.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        let since = vec![Change::Length(2), Change::Write { offset: 4, data: vec![9, 9] }];
        Model { promised: vec![1, 2, 3, 4], since }
    }

    #[test]
    fn a_file_may_be_anywhere_between_the_promise_and_the_last_change() {
        for found in [&[1, 2, 3, 4][..], &[1, 2], &[1, 2, 0, 0, 9, 9], &[1, 2, 3, 4, 9, 9], &[1, 2, 0, 0, 0, 9]] {
            assert_eq!(model().check(found), Ok(()), "{found:?}");
        }
        assert_eq!(model().newest(), [1, 2, 0, 0, 9, 9]);
    }

    #[test]
    fn other_bytes_and_lengths_are_seen() {
        for found in [&[1, 2, 3, 4, 9, 9, 9][..], &[1, 7], &[0, 2], &[1, 2, 3, 4, 8, 9], &[]] {
            assert!(model().check(found).is_err(), "{found:?}");
        }
        // A cut that was not done leaves no zeros behind the new end.
        let cut = Model { promised: vec![1, 2, 3, 4], since: vec![Change::Length(2)] };
        assert!(cut.check(&[1, 2, 0, 0]).is_err());
    }
}
