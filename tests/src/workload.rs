//! A user of the file system who remembers everything: random work through `client`, and a plain map as the model.
//!
//! One worker owns one folder and changes only what lies in it. Each operation that was acknowledged goes into the
//! model; each later read, listing and audit must show it, byte for byte. An operation that failed while faults are
//! about may have happened or not: its names are then given up, neither used nor checked any more (they are counted, so
//! that a run in which nothing ever succeeds does not look like a good one). Without faults any failure is a broken
//! promise.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use client::{Caller, Client, Errno, Handle, Inode, OpenFlags};
use ring::Ring;

use crate::tree::Random;

/// The region of a file in which its bytes lie; in front of it is a hole. Two kinds: at the start of a file, and across
/// the end of its first chunk.
const BASES: [u64; 2] = [0, (64 << 20) - 70_000];
/// Files at the same time in one folder.
const FILES_MAX: usize = 12;
/// Bytes of a region at most: more than two blocks.
const REGION_BYTES_MAX: usize = 170_000;

const READ: OpenFlags = OpenFlags { read: true, write: false, append: false, truncate: false };
pub(crate) const READ_WRITE: OpenFlags = OpenFlags { read: true, write: true, append: false, truncate: false };

/// A promise that the file system broke, in a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken(pub String);

/// What a worker has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations that were acknowledged, and are in the model.
    pub acknowledged: usize,
    /// Operations that failed while faults were about.
    pub failed: usize,
    /// Reads whose every byte was compared.
    pub reads_compared: usize,
    pub bytes_compared: u64,
}

/// One user in one folder.
pub struct Worker {
    ring: Ring,
    client: Client,
    folder_name: String,
    folder: Inode,
    random: Random,
    has_faults: bool,
    files: BTreeMap<String, Model>,
    given_up: BTreeSet<String>,
    names_made: usize,
    counts: Counts,
}

/// What a file must hold: zeros up to `base`, then `bytes`.
#[derive(Debug, Clone)]
struct Model {
    base: u64,
    bytes: Vec<u8>,
}

impl Model {
    fn length(&self) -> u64 {
        if self.bytes.is_empty() { 0 } else { self.base + self.bytes.len() as u64 }
    }

    /// `length` must be 0 or at least `base`.
    fn resize(&mut self, length: u64) {
        let region = length.saturating_sub(self.base);
        self.bytes.resize(usize::try_from(region).expect("regions are small"), 0);
    }
}

impl Worker {
    /// Make the folder `folder_name` in the root, or take it over if it is there from a try before.
    ///
    /// Errors: the errno of the last of many tries.
    pub async fn new(
        ring: Ring,
        client: Client,
        folder_name: &str,
        seed: u64,
        has_faults: bool,
    ) -> Result<Worker, Errno> {
        let mut tries = 0;
        let folder = loop {
            let caller = Caller::root();
            let made = match client.mkdir(&caller, Inode::ROOT, folder_name.as_bytes(), 0o755).await {
                Err(Errno::EEXIST) => client.lookup(&caller, Inode::ROOT, folder_name.as_bytes()).await,
                made => made,
            };
            match made {
                Ok(entry) => break entry.inode,
                Err(errno) if tries == 20 => return Err(errno),
                Err(_) => tries += 1,
            }
            ring.sleep(Duration::from_millis(500)).await;
        };
        Ok(Worker {
            ring,
            client,
            folder_name: folder_name.to_owned(),
            folder,
            random: Random::new(seed),
            has_faults,
            files: BTreeMap::new(),
            given_up: BTreeSet::new(),
            names_made: 0,
            counts: Counts::default(),
        })
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// From now on a failure is tolerated, or not.
    pub fn expect_faults(&mut self, has_faults: bool) {
        self.has_faults = has_faults;
    }

    /// One random operation.
    ///
    /// Errors: `Broken`, when the file system did not keep what it had acknowledged, or failed without a fault.
    pub async fn step(&mut self) -> Result<(), Broken> {
        let choice = self.random.below(100);
        match self.any_file() {
            None => self.create().await,
            Some(_) if choice < 20 && self.files.len() < FILES_MAX => self.create().await,
            Some(name) if choice < 45 => self.overwrite(&name).await,
            Some(name) if choice < 75 => self.compare(&self.client.clone(), &name).await,
            Some(name) if choice < 83 => self.truncate(&name).await,
            Some(name) if choice < 92 => self.rename(&name).await,
            Some(name) if choice < 97 => self.unlink(&name).await,
            Some(_) => self.list(&self.client.clone()).await,
        }
    }

    /// The listing and every byte of every file, read through `client`, which may be another one.
    pub async fn audit(&mut self, client: &Client) -> Result<(), Broken> {
        self.list(client).await?;
        for name in self.files.keys().cloned().collect::<Vec<_>>() {
            self.compare(client, &name).await?;
        }
        Ok(())
    }

    // --- operations ---

    async fn create(&mut self) -> Result<(), Broken> {
        let name = self.new_name();
        let base = BASES[usize::from(self.random.below(30) == 0)];
        let mut model = Model { base, bytes: Vec::new() };
        let caller = Caller::root();
        let created = self.client.create(&caller, self.folder, name.as_bytes(), 0o644, READ_WRITE).await;
        let opened = match created {
            Ok((_, opened)) => Ok(opened.handle),
            // The first try was done, its answer was lost, and the client tried again.
            Err(Errno::EEXIST) if self.has_faults => self.open(&self.client.clone(), &name, READ_WRITE).await,
            Err(errno) => Err(errno),
        };
        let written = match opened {
            Ok(handle) => self.write_pieces(handle, &mut model).await,
            Err(errno) => Err(errno),
        };
        self.settle("create and write", name, written.map(|()| model))
    }

    async fn overwrite(&mut self, name: &str) -> Result<(), Broken> {
        let mut model = self.files[name].clone();
        let written = match self.open(&self.client.clone(), name, READ_WRITE).await {
            Ok(handle) => self.write_pieces(handle, &mut model).await,
            Err(errno) => Err(errno),
        };
        self.settle("overwrite", name.to_owned(), written.map(|()| model))
    }

    /// A few pieces at random places, then close; sometimes an fsync in between.
    async fn write_pieces(&mut self, handle: Handle, model: &mut Model) -> Result<(), Errno> {
        let mut outcome = Ok(());
        for _ in 0..=self.random.below(4) {
            let length = match self.random.below(4) {
                0 => 65536,
                1 => 1 + self.random.below(600),
                _ => 1 + self.random.below(80_000),
            };
            let place = self.random.below(model.bytes.len().min(REGION_BYTES_MAX - length) + 1);
            let place = if self.random.below(3) == 0 { place & !0xFFFF } else { place };
            let data = self.random.bytes(length);
            outcome = self.client.write(handle, model.base + place as u64, data.clone().into()).await.map(|_| ());
            if outcome.is_err() {
                break;
            }
            let end = (place + length).max(model.bytes.len());
            model.bytes.resize(end, 0);
            model.bytes[place..place + length].copy_from_slice(&data);
            if self.random.below(4) == 0 {
                outcome = self.client.fsync(handle).await;
                if outcome.is_err() {
                    break;
                }
            }
        }
        let flushed = self.client.flush(handle, None).await;
        let released = self.client.release(handle, None).await;
        outcome.and(flushed).and(released)
    }

    async fn truncate(&mut self, name: &str) -> Result<(), Broken> {
        let mut model = self.files[name].clone();
        let length = match self.random.below(4) {
            0 => 0,
            _ => model.base + self.random.below(REGION_BYTES_MAX) as u64,
        };
        model.resize(length);
        if model.bytes.is_empty() && length != 0 {
            model.bytes.clear();
            return Ok(()); // exactly at the base: a length without bytes, which the model cannot say
        }
        let caller = Caller::root();
        let outcome = match self.client.lookup(&caller, self.folder, name.as_bytes()).await {
            Ok(entry) => self.client.truncate(&caller, entry.inode, None, length).await.map(|_| model),
            Err(errno) => Err(errno),
        };
        self.settle("truncate", name.to_owned(), outcome)
    }

    async fn rename(&mut self, name: &str) -> Result<(), Broken> {
        // To a new name, or over another file.
        let target = match self.any_file() {
            Some(other) if other != name && self.random.below(2) == 0 => other,
            _ => self.new_name(),
        };
        let model = self.files.remove(name).expect("the caller has picked a file");
        let outcome = self.rename_call(name, &target).await;
        let outcome = match outcome {
            // The first try was done, its answer was lost, and the second one finds nothing to rename.
            Err(Errno::ENOENT) if self.has_faults => self.find(&target).await,
            outcome => outcome,
        };
        if outcome.is_err() {
            self.given_up.insert(name.to_owned());
        }
        self.settle("rename", target, outcome.map(|()| model))
    }

    async fn rename_call(&self, name: &str, target: &str) -> Result<(), Errno> {
        let caller = Caller::root();
        let moved = self.client.rename(&caller, self.folder, name.as_bytes(), self.folder, target.as_bytes()).await;
        moved.map(|_| ())
    }

    async fn unlink(&mut self, name: &str) -> Result<(), Broken> {
        self.files.remove(name);
        let outcome = self.client.unlink(&Caller::root(), self.folder, name.as_bytes()).await;
        match outcome {
            Ok(()) => self.counts.acknowledged += 1,
            Err(Errno::ENOENT) if self.has_faults => self.counts.acknowledged += 1,
            Err(errno) => {
                self.give_up(name.to_owned());
                self.tolerate("unlink", name, errno)?;
            }
        }
        Ok(())
    }

    async fn list(&mut self, client: &Client) -> Result<(), Broken> {
        let listing = match client.read_dir(&Caller::root(), self.folder, true).await {
            Ok(listing) => listing,
            Err(errno) => return self.tolerate("readdir", ".", errno),
        };
        let names: BTreeSet<String> =
            listing.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()).collect();
        let missing: Vec<&String> = self.files.keys().filter(|name| !names.contains(*name)).collect();
        let known = |name: &String| self.files.contains_key(name) || self.given_up.contains(name);
        let strange: Vec<&String> = names.iter().filter(|name| !name.starts_with('.') && !known(name)).collect();
        if !missing.is_empty() || !strange.is_empty() {
            return Err(self.broken(&format!("a listing lacks {missing:?} and has {strange:?}")));
        }
        for entry in &listing {
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            let (Some(model), Some(attr)) = (self.files.get(&name), &entry.attr) else { continue };
            if attr.extra != model.length() {
                let (is, was) = (attr.extra, model.length());
                return Err(self.broken(&format!("{name} is listed with {is} bytes instead of {was}")));
            }
        }
        self.counts.acknowledged += 1;
        Ok(())
    }

    /// Reads the whole region of a file and a piece of the hole in front of it.
    async fn compare(&mut self, client: &Client, name: &str) -> Result<(), Broken> {
        let handle = match self.open(client, name, READ).await {
            Ok(handle) => handle,
            Err(errno @ Errno::ENOENT) => return Err(self.broken(&format!("{name} is gone: {errno}"))),
            Err(errno) => return self.tolerate("open", name, errno),
        };
        let outcome = self.compare_opened(client, name, handle).await;
        client.release(handle, None).await.ok();
        outcome
    }

    async fn compare_opened(&mut self, client: &Client, name: &str, handle: Handle) -> Result<(), Broken> {
        let model = self.files[name].clone();
        if model.base > 0 && !model.bytes.is_empty() {
            match client.read(handle, model.base - 1000, 1000).await {
                Ok(hole) if hole.to_vec() == vec![0; 1000] => {}
                Ok(_) => return Err(self.broken(&format!("a hole of {name} does not read as zeros"))),
                Err(errno) => return self.tolerate("read", name, errno),
            }
        }
        let size = u32::try_from(REGION_BYTES_MAX + 1000).expect("regions are small");
        let found = match client.read(handle, model.base, size).await {
            Ok(found) => found.to_vec(),
            Err(errno) => return self.tolerate("read", name, errno),
        };
        if found != model.bytes {
            let differ = found.iter().zip(&model.bytes).position(|(is, was)| is != was);
            let count = found.iter().zip(&model.bytes).filter(|(is, was)| is != was).count();
            return Err(self.broken(&format!(
                "{name} (region at {}) reads {} bytes instead of {}; {count} differ, the first at {differ:?}",
                model.base,
                found.len(),
                model.bytes.len(),
            )));
        }
        self.counts.reads_compared += 1;
        self.counts.bytes_compared += found.len() as u64;
        Ok(())
    }

    // --- what the operations share ---

    async fn open(&self, client: &Client, name: &str, flags: OpenFlags) -> Result<Handle, Errno> {
        let caller = Caller::root();
        let entry = client.lookup(&caller, self.folder, name.as_bytes()).await?;
        client.open(&caller, entry.inode, flags).await.map(|opened| opened.handle)
    }

    async fn find(&self, name: &str) -> Result<(), Errno> {
        self.client.lookup(&Caller::root(), self.folder, name.as_bytes()).await.map(|_| ())
    }

    /// The end of an operation on `name`: its new content is promised, or nothing about it is known any more.
    fn settle(&mut self, what: &str, name: String, outcome: Result<Model, Errno>) -> Result<(), Broken> {
        match outcome {
            Ok(model) => {
                self.files.insert(name, model);
                self.counts.acknowledged += 1;
                Ok(())
            }
            Err(errno) => {
                self.files.remove(&name);
                self.give_up(name.clone());
                self.tolerate(what, &name, errno)
            }
        }
    }

    fn give_up(&mut self, name: String) {
        self.given_up.insert(name);
    }

    fn tolerate(&mut self, what: &str, name: &str, errno: Errno) -> Result<(), Broken> {
        self.counts.failed += 1;
        if self.has_faults { Ok(()) } else { Err(self.broken(&format!("{what} of {name} failed: {errno}"))) }
    }

    fn broken(&self, what: &str) -> Broken {
        let micros = self.ring.wall_micros();
        Broken(format!("{}: {what} (clock {}.{:06})", self.folder_name, micros / 1_000_000, micros % 1_000_000))
    }

    fn any_file(&mut self) -> Option<String> {
        let count = self.files.len();
        if count == 0 { None } else { self.files.keys().nth(self.random.below(count)).cloned() }
    }

    fn new_name(&mut self) -> String {
        self.names_made += 1;
        format!("f{}", self.names_made)
    }
}
