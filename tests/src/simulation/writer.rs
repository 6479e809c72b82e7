//! A user who overwrites, syncs, cuts and copies a few files while everything breaks, and the ledger of what they may
//! hold. The ledger outlives its user: one who is killed is followed by another, who goes on with it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use client::{Caller, Client, Errno, Handle, Inode};
use ring::{Instant, Ring};
use wire::{CltomaFuseSnapshot, Gids, MatoclFuseSnapshot, Name, Packet};

use super::copies;
use super::history::History;
use crate::tree::Random;
use crate::workload::{Broken, Counts, READ_WRITE};

/// Files of one user, copies included.
const FILES_MAX: usize = 6;
const FILE_BYTES_MAX: usize = 200_000;
/// What was asked for and failed is not under way any more after this.
const QUIET_AFTER: Duration = Duration::from_secs(60);

/// What a user's files may hold.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) files: BTreeMap<String, Entry>,
    pub(super) counts: Counts,
    prefix: String,
    names_made: usize,
    /// Nothing takes from a server what it has acknowledged: then a close makes sure as well as an `fsync`.
    closes_make_sure: bool,
}

#[derive(Clone)]
pub(super) struct Entry {
    pub(super) inode: Inode,
    pub(super) history: History,
    failed_at: Option<Instant>,
}

impl Ledger {
    pub(super) fn new(prefix: &str, closes_make_sure: bool) -> Ledger {
        Ledger { prefix: prefix.to_owned(), closes_make_sure, ..Ledger::default() }
    }

    /// The user has died.
    pub(super) fn user_died(&mut self, now: Instant) {
        for entry in self.files.values_mut() {
            entry.history.failed();
            if !entry.history.has_one_length() {
                entry.failed_at = Some(now);
            }
        }
    }
}

/// A user.
pub(super) struct Writer {
    pub(super) ring: Ring,
    pub(super) client: Client,
    pub(super) ledger: Rc<RefCell<Ledger>>,
    pub(super) random: RefCell<Random>,
}

impl Writer {
    /// One random operation. Errors: `Broken`, when what is seen is not legal.
    pub(super) async fn step(&self) -> Result<(), Broken> {
        let count = self.ledger.borrow().files.len();
        let choice = self.below(100);
        if count == 0 || (choice < 10 && count < FILES_MAX) {
            return self.create().await;
        }
        let name = self.ledger.borrow().files.keys().nth(self.below(count)).cloned().expect("below the count");
        if !self.entry(&name).history.has_one_length() || choice >= 80 {
            return self.look(&name).await;
        }
        let outcome = match choice {
            0..52 => self.overwrite(&name).await,
            52..60 => self.sync(&name).await,
            60..72 => self.truncate(&name).await,
            _ if count < FILES_MAX => self.copy(&name).await,
            _ => self.overwrite(&name).await,
        };
        self.count(outcome);
        Ok(())
    }

    /// Puts everything on devices that was not yet. Errors: the errno and the file.
    pub(super) async fn sync_all(&self) -> Result<(), Broken> {
        for name in self.names() {
            self.sync(&name).await.map_err(|errno| Broken(format!("{name} cannot be synced: {errno}")))?;
        }
        Ok(())
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.ledger.borrow().files.keys().cloned().collect()
    }

    pub(super) fn entry(&self, name: &str) -> Entry {
        self.ledger.borrow().files[name].clone()
    }

    /// Length and every byte of a file, as one reader sees them. Errors of the outer result: what it cannot see.
    pub(super) async fn examine(&self, client: &Client, name: &str) -> Result<Result<(), Broken>, Errno> {
        let entry = self.entry(name);
        let length = client.getattr(&Caller::root(), entry.inode, None).await?.extra;
        let is_quiet = entry.failed_at.is_none_or(|at| self.ring.now() >= at + QUIET_AFTER);
        let seen = self.with(name, |history| history.see_length(length, is_quiet));
        if let Err(what) = seen {
            return Ok(Err(self.broken(name, &what)));
        }
        let handle = client.open(&Caller::root(), entry.inode, READ_WRITE).await?.handle;
        let size = u32::try_from(length).expect("files are small");
        let found = client.read(handle, 0, size).await;
        client.release(handle, None).await.ok();
        let found = found?.to_vec();
        if let Err(what) = entry.history.check(0, &found) {
            return Ok(Err(self.broken(name, &what)));
        }
        let counts = &mut self.ledger.borrow_mut().counts;
        counts.reads_compared += 1;
        counts.bytes_compared += found.len() as u64;
        Ok(Ok(()))
    }

    pub(super) fn broken(&self, name: &str, what: &str) -> Broken {
        Broken(format!("{name}: {what} (after {:.3} s)", self.ring.now().as_micros() as f64 / 1e6))
    }

    async fn create(&self) -> Result<(), Broken> {
        let name = self.new_name();
        let created = self.client.create(&Caller::root(), Inode::ROOT, name.as_bytes(), 0o644, READ_WRITE).await;
        let outcome = match created {
            Ok((entry, opened)) => {
                let entry = Entry { inode: entry.inode, history: History::new(), failed_at: None };
                self.ledger.borrow_mut().files.insert(name.clone(), entry);
                self.write_and_close(&name, opened.handle).await
            }
            Err(errno) => Err(errno),
        };
        self.count(outcome);
        Ok(())
    }

    async fn overwrite(&self, name: &str) -> Result<(), Errno> {
        let handle = self.client.open(&Caller::root(), self.entry(name).inode, READ_WRITE).await?.handle;
        self.write_and_close(name, handle).await
    }

    async fn write_and_close(&self, name: &str, handle: Handle) -> Result<(), Errno> {
        let mut outcome = self.write_pieces(name, handle).await;
        if outcome.is_ok() && self.below(10) < 7 {
            self.pause(3000).await;
            outcome = self.client.fsync(handle).await;
            if outcome.is_ok() {
                self.with(name, History::synced);
            }
        }
        if outcome.is_ok() {
            outcome = self.client.flush(handle, None).await;
        }
        self.settle(name, outcome);
        let released = self.client.release(handle, None).await;
        if released.is_err() {
            self.settle(name, released);
        }
        outcome.and(released)
    }

    async fn write_pieces(&self, name: &str, handle: Handle) -> Result<(), Errno> {
        for _ in 0..=self.below(3) {
            let length = match self.below(4) {
                0 => 65_536,
                1 => 1 + self.below(600),
                _ => 1 + self.below(60_000),
            };
            let present = usize::try_from(self.entry(name).history.wanted).expect("files are small");
            let place = self.below(present.min(FILE_BYTES_MAX - length) + 1);
            let place = if self.below(3) == 0 { place & !0xFFFF } else { place } as u64;
            let data = self.random.borrow_mut().bytes(length);
            self.with(name, |history| history.write(place, &data));
            self.client.write(handle, place, data.into()).await?;
            if self.below(2) == 0 {
                self.pause(1500).await;
            }
        }
        Ok(())
    }

    async fn sync(&self, name: &str) -> Result<(), Errno> {
        let handle = self.client.open(&Caller::root(), self.entry(name).inode, READ_WRITE).await?.handle;
        let outcome = self.client.fsync(handle).await;
        if outcome.is_ok() {
            self.with(name, History::synced);
        }
        self.settle(name, outcome);
        self.client.release(handle, None).await.ok();
        outcome
    }

    async fn truncate(&self, name: &str) -> Result<(), Errno> {
        let Entry { inode, history, .. } = self.entry(name);
        let length = match self.below(4) {
            0 => 0,
            1 => self.below(FILE_BYTES_MAX) as u64,
            _ => history.wanted.saturating_sub(self.below(70_000) as u64),
        };
        self.with(name, |history| history.truncate(length));
        let outcome = self.client.truncate(&Caller::root(), inode, None, length).await;
        if outcome.is_ok() {
            self.with(name, |history| history.truncated(length));
        }
        self.settle(name, outcome.map(|_| ()));
        outcome.map(|_| ())
    }

    /// A copy that shares its chunk with the original: the next to write to either gets a chunk of its own.
    async fn copy(&self, name: &str) -> Result<(), Errno> {
        let copy = self.new_name();
        let (source, umask, gids) = (self.entry(name).inode, 0, Gids::list(&[0]));
        let copied = Name::new(copy.as_bytes()).expect("names are short");
        let request =
            CltomaFuseSnapshot { msgid: 0, source, parent: Inode::ROOT, name: copied, uid: 0, gids, smode: 0, umask };
        let (_, payload) = copies::ask(&self.client, &request).await?;
        let status = MatoclFuseSnapshot::decode(&payload).map_err(|_| Errno::EIO)?.status;
        status.into_result().map_err(Errno::from_status)?;
        let made = self.client.lookup(&Caller::root(), Inode::ROOT, copy.as_bytes()).await?;
        let mut entry = Entry { inode: made.inode, ..self.entry(name) };
        entry.history.failed(); // nobody who syncs the copy has written it
        self.ledger.borrow_mut().files.insert(copy, entry);
        self.overwrite(name).await
    }

    async fn look(&self, name: &str) -> Result<(), Broken> {
        match self.examine(&self.client, name).await {
            Ok(outcome) => outcome,
            Err(errno) => {
                self.count(Err(errno));
                Ok(())
            }
        }
    }

    /// An operation on a file has ended; all that it wrote was flushed.
    fn settle(&self, name: &str, outcome: Result<(), Errno>) {
        let (now, sure) = (self.ring.now(), self.ledger.borrow().closes_make_sure);
        let mut ledger = self.ledger.borrow_mut();
        let entry = ledger.files.get_mut(name).expect("files are never removed");
        match outcome {
            Ok(()) if sure => entry.history.synced(),
            Ok(()) => entry.history.flushed(),
            Err(_) => {
                entry.history.failed();
                entry.failed_at = Some(now);
            }
        }
    }

    fn count(&self, outcome: Result<(), Errno>) {
        let counts = &mut self.ledger.borrow_mut().counts;
        match outcome {
            Ok(()) => counts.acknowledged += 1,
            Err(_) => counts.failed += 1,
        }
    }

    fn with<T>(&self, name: &str, change: impl FnOnce(&mut History) -> T) -> T {
        change(&mut self.ledger.borrow_mut().files.get_mut(name).expect("files are never removed").history)
    }

    fn new_name(&self) -> String {
        let mut ledger = self.ledger.borrow_mut();
        ledger.names_made += 1;
        format!("{}{}", ledger.prefix, ledger.names_made)
    }

    fn below(&self, bound: usize) -> usize {
        self.random.borrow_mut().below(bound)
    }

    async fn pause(&self, millis_max: usize) {
        let millis = self.below(millis_max);
        self.ring.sleep(Duration::from_millis(millis as u64)).await;
    }
}
