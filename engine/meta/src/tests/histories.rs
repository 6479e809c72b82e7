//! Random histories: the namespace against a naive model, and replay against the live state.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::random::Random;
use crate::{ClassChange, Truncate, smode};

/// What a person would draw on paper: who contains whom.
#[derive(Default)]
struct Model {
    /// Entries of directories, newest first.
    directories: BTreeMap<u32, Vec<(Vec<u8>, u32)>>,
    lengths: BTreeMap<u32, u64>,
}

impl Model {
    fn find(&self, parent: u32, name: &[u8]) -> Option<u32> {
        self.directories[&parent].iter().find(|(own, _)| own == name).map(|(_, inode)| *inode)
    }

    fn links(&self, inode: u32) -> usize {
        self.directories.values().flatten().filter(|(_, child)| *child == inode).count()
    }

    fn insert(&mut self, parent: u32, name: &[u8], inode: u32) {
        self.directories.get_mut(&parent).unwrap().insert(0, (name.to_vec(), inode));
    }

    fn take(&mut self, parent: u32, name: &[u8]) -> u32 {
        let entries = self.directories.get_mut(&parent).unwrap();
        let at = entries.iter().position(|(own, _)| own == name).unwrap();
        entries.remove(at).1
    }

    fn forget_if_unlinked(&mut self, inode: u32) {
        if self.links(inode) == 0 {
            self.directories.remove(&inode);
            self.lengths.remove(&inode);
        }
    }

    fn is_below(&self, inode: u32, top: u32) -> bool {
        inode == top
            || self.directories.iter().any(|(parent, entries)| {
                entries.iter().any(|(_, child)| *child == inode) && self.is_below(*parent, top)
            })
    }

    fn length_below(&self, directory: u32) -> u64 {
        let entries = self.directories[&directory].iter();
        entries
            .map(|(_, child)| match self.directories.contains_key(child) {
                true => self.length_below(*child),
                false => self.lengths.get(child).copied().unwrap_or(0),
            })
            .sum()
    }
}

struct History {
    world: World,
    model: Model,
    random: Random,
    journal: Vec<u8>,
}

impl History {
    fn new(seed: u64) -> History {
        let mut model = Model::default();
        model.directories.insert(1, Vec::new());
        History { world: World::new(), model, random: Random::new(seed), journal: Vec::new() }
    }

    fn directory(&mut self) -> u32 {
        let all: Vec<u32> = self.model.directories.keys().copied().collect();
        *self.random.pick(&all)
    }

    fn node(&mut self) -> u32 {
        let all: BTreeSet<u32> = self.model.lengths.keys().chain(self.model.directories.keys()).copied().collect();
        let all: Vec<u32> = all.into_iter().collect();
        *self.random.pick(&all)
    }

    fn name(&mut self) -> Vec<u8> {
        format!("n{}", self.random.below(12)).into_bytes()
    }

    fn step(&mut self) {
        self.world.now += self.random.below(3) as u32;
        self.world.nanos = self.random.below(1_000_000_000) as u32;
        match self.random.below(20) {
            0..=3 => self.make(NodeKind::File),
            4..=5 => self.make(NodeKind::Directory),
            6 => self.make(NodeKind::Socket),
            7..=8 => self.link(),
            9..=10 => self.unlink(),
            11 => self.rmdir(),
            12..=14 => self.rename(),
            15..=16 => self.write(),
            17 => self.truncate(),
            _ => self.other(),
        }
    }

    fn make(&mut self, kind: NodeKind) {
        let (parent, name) = (self.directory(), self.name());
        let root = self.world.root();
        let made = match kind {
            NodeKind::Directory => self.world.ns.mkdir(&root, Inode(parent), &name, 0o755, 0, true),
            _ => self.world.ns.mknod(&root, Inode(parent), &name, kind, 0o644, 0, 0),
        };
        if self.model.find(parent, &name).is_some() {
            assert_eq!(made.unwrap_err(), Status::EEXIST);
            return;
        }
        let inode = made.unwrap().0.0;
        self.model.insert(parent, &name, inode);
        if kind == NodeKind::Directory {
            self.model.directories.insert(inode, Vec::new());
        } else {
            self.model.lengths.insert(inode, 0);
        }
    }

    fn link(&mut self) {
        let (inode, parent, name) = (self.node(), self.directory(), self.name());
        let linked = self.world.ns.link(&self.world.root(), Inode(inode), Inode(parent), &name);
        if self.model.directories.contains_key(&inode) {
            assert_eq!(linked.unwrap_err(), Status::EPERM);
        } else if self.model.find(parent, &name).is_some() {
            assert_eq!(linked.unwrap_err(), Status::EEXIST);
        } else {
            assert_eq!(linked.unwrap().1.nlink as usize, self.model.links(inode) + 1);
            self.model.insert(parent, &name, inode);
        }
    }

    fn unlink(&mut self) {
        let (parent, name) = (self.directory(), self.name());
        let done = self.world.ns.unlink(&self.world.root(), Inode(parent), &name);
        match self.model.find(parent, &name) {
            None => assert_eq!(done, Err(Status::ENOENT)),
            Some(inode) if self.model.directories.contains_key(&inode) => assert_eq!(done, Err(Status::EPERM)),
            Some(inode) => {
                assert_eq!(done, Ok(Inode(inode)));
                self.model.take(parent, &name);
                self.model.forget_if_unlinked(inode);
            }
        }
    }

    fn rmdir(&mut self) {
        let (parent, name) = (self.directory(), self.name());
        let done = self.world.ns.rmdir(&self.world.root(), Inode(parent), &name);
        let Some(inode) = self.model.find(parent, &name) else {
            assert_eq!(done, Err(Status::ENOENT));
            return;
        };
        match self.model.directories.get(&inode).map(Vec::is_empty) {
            None => assert_eq!(done, Err(Status::ENOTDIR)),
            Some(false) => assert_eq!(done, Err(Status::ENOTEMPTY)),
            Some(true) => {
                assert_eq!(done, Ok(Inode(inode)));
                self.model.take(parent, &name);
                self.model.forget_if_unlinked(inode);
            }
        }
    }

    fn rename(&mut self) {
        let (source, target) = ((self.directory(), self.name()), (self.directory(), self.name()));
        let (from, to) = ((Inode(source.0), &source.1[..]), (Inode(target.0), &target.1[..]));
        let done = self.world.ns.rename(&self.world.root(), from, to).map(|(inode, _)| inode.0);
        let Some(inode) = self.model.find(source.0, &source.1) else {
            assert_eq!(done, Err(Status::ENOENT));
            return;
        };
        if self.model.directories.contains_key(&inode) && self.model.is_below(target.0, inode) {
            assert_eq!(done, Err(Status::EINVAL));
            return;
        }
        if source == target {
            assert_eq!(done, Ok(inode));
            return;
        }
        let there = self.model.find(target.0, &target.1);
        if there.is_some_and(|there| self.model.directories.get(&there).is_some_and(|entries| !entries.is_empty())) {
            assert_eq!(done, Err(Status::ENOTEMPTY));
            return;
        }
        assert_eq!(done, Ok(inode));
        if let Some(there) = there {
            self.model.take(target.0, &target.1);
            self.model.forget_if_unlinked(there);
        }
        self.model.take(source.0, &source.1);
        self.model.insert(target.0, &target.1, inode);
        // Its length is forgotten if the target was another link of it and the only one left for a moment.
        if !self.model.directories.contains_key(&inode) && !self.model.lengths.contains_key(&inode) {
            let length = self.world.ns.getattr(&self.world.root(), Inode(inode), false).unwrap().extra;
            self.model.lengths.insert(inode, length);
        }
    }

    fn write(&mut self) {
        let inode = self.node();
        let index = self.random.below(3) as u32;
        let (session, now) = (self.world.session, self.world.time());
        let target = self.world.ns.check_write(session, VersionWord::OURS, Inode(inode), index);
        let is_file = self.world.ns.kind(session, Inode(inode)) == Ok(NodeKind::File);
        assert_eq!(target.is_ok(), is_file);
        if !is_file {
            return;
        }
        let raise = self.random.below(2) == 0;
        let grant = self.world.ns.grant_write(now, Inode(inode), index, raise, raise).unwrap();
        if self.random.below(4) == 0 {
            self.world.ns.rollback(now, Inode(inode), index, grant.previous, grant.chunk).unwrap();
            self.model.lengths.insert(inode, grant.length);
            return;
        }
        if self.random.below(8) > 0 {
            self.settle(grant.chunk);
        }
        let end = u64::from(index) * u64::from(wire::limits::CHUNK_BYTES) + self.random.below(1 << 26);
        let length = grant.length.max(end);
        let ended = self.world.ns.write_end(session, VersionWord::OURS, now, Inode(inode), grant.chunk, length, false);
        assert_eq!(ended, Ok((length > 0).then_some(length)));
        self.model.lengths.insert(inode, length);
    }

    /// The servers are done, some of them perhaps at a second try.
    fn settle(&mut self, chunk: wire::ChunkId) {
        let (now, mut version) = (self.world.time(), self.world.ns.chunk(chunk).unwrap().version);
        if self.random.below(4) == 0 {
            version = version.next();
            self.world.ns.raise_chunk(now, chunk, version).unwrap();
        }
        self.world.ns.set_chunk_version(now, chunk, version).unwrap();
    }

    fn truncate(&mut self) {
        let inode = self.node();
        let length = self.random.below(3 << 26) >> self.random.below(20);
        let root = self.world.root();
        match self.world.ns.truncate(&root, Inode(inode), 0, length) {
            Ok(Truncate::Done { .. }) => {}
            Ok(Truncate::Chunk { index, .. }) => {
                let grant = self.world.ns.grant_truncate(self.world.time(), Inode(inode), index, length).unwrap();
                if self.random.below(8) > 0 {
                    self.settle(grant.chunk);
                }
                self.world.ns.truncate_finish(&root, Inode(inode), 0, length, grant.chunk).unwrap();
            }
            Err(status) => {
                assert_eq!(status, Status::EPERM);
                return;
            }
        }
        self.model.lengths.insert(inode, length);
    }

    fn other(&mut self) {
        let (inode, root, now) = (Inode(self.node()), self.world.root(), self.world.time());
        let session = self.world.session;
        match self.random.below(12) {
            0 => {
                let goal = 1 + self.random.below(9) as u8;
                let _ = self.world.ns.set_class(&root, inode, ClassChange::Goal(goal), smode::RECURSIVE);
            }
            1 => {
                let hours = self.random.below(2) as u32;
                let _ = self.world.ns.set_trash_time(&root, inode, hours * 3600, smode::SET);
            }
            2 => {
                let _ = self.world.ns.open(&root, inode, 1);
            }
            3 => {
                let open: Vec<Inode> = self.world.ns.open_files(session).step_by(2).collect();
                self.world.ns.sustained_inodes(now, session, &open);
            }
            4 => {
                self.world.now += 5000;
                self.world.ns.tick_second(self.world.now);
            }
            5 => {
                self.world.now += 100_000;
                self.world.ns.tick_minute(self.world.now);
            }
            6 => {
                let source = Inode(self.node());
                let target = self.node();
                if self.world.ns.append_slice(&root, 0, Inode(target), source, (0, 2)).is_ok() {
                    let length = self.world.attr(Inode(target)).extra;
                    self.model.lengths.insert(target, length);
                }
            }
            7 => {
                for chunk in self.world.ns.take_released_chunks() {
                    let version = self.world.ns.chunk(chunk).unwrap().version;
                    let _ = self.world.ns.chunk_delete(now, chunk, version);
                }
            }
            8 => self.snapshot(),
            9 => {
                use crate::setattr_flags::{ATIME, GID, MTIME, UID};
                let mut time = || Time(self.random.next().cast_signed() >> self.random.below(60));
                let (atime, mtime) = (time(), time());
                let (mask, uid) =
                    (self.random.below(256) as u8 & (ATIME | MTIME | UID | GID), self.random.below(3) as u32);
                let set = crate::SetAttr { mask, uid, gid: 7, atime, mtime, ..Default::default() };
                let _ = self.world.ns.setattr(&root, inode, false, &set);
            }
            10 => {
                let near = now.0 + self.random.below(1 << 32).cast_signed() - (1 << 31);
                self.world.ns.amtime(now, session, inode, Time(near), Time(near + 5));
            }
            _ => {
                let _ = self.world.ns.set_xattr(&root, inode, false, b"user.a,b(c)%", &[0, 255, b'\n'], 0);
            }
        }
    }

    fn snapshot(&mut self) {
        let (source, parent, name) = (self.node(), self.directory(), self.name());
        if self.model.directories.contains_key(&source) && self.model.is_below(parent, source)
            || self.model.find(parent, &name).is_some()
            || self.model.directories.len() > 60
        {
            return;
        }
        let links = if self.random.below(2) == 0 { crate::snapshot_flags::PRESERVE_HARDLINKS } else { 0 };
        let root = self.world.root();
        self.world.ns.snapshot(&root, Inode(source), Inode(parent), &name, links, 0).unwrap();
        let copy = self.world.ns.lookup(&root, Inode(parent), &name).unwrap().inode.0;
        self.model.insert(parent, &name, copy);
        self.learn(copy);
    }

    /// Takes over a tree that was just made, after comparing nothing: later steps do.
    fn learn(&mut self, inode: u32) {
        let root = self.world.root();
        if self.world.ns.kind(self.world.session, Inode(inode)) != Ok(NodeKind::Directory) {
            self.model.lengths.insert(inode, self.world.attr(Inode(inode)).extra);
            return;
        }
        let mut entries = Vec::new();
        let mut visit = |entry: DirEntry<'_>| entries.push((entry.name.to_vec(), entry.inode.0));
        self.world.ns.readdir(&root, Inode(inode), 0, u32::MAX, 0, &mut visit).unwrap();
        let entries = entries.split_off(2);
        self.model.directories.insert(inode, entries.clone());
        for (_, child) in entries {
            self.learn(child);
        }
    }

    fn check_model(&mut self) {
        let model = std::mem::take(&mut self.model);
        for (directory, entries) in &model.directories {
            let mut listed = Vec::new();
            let mut visit = |entry: DirEntry<'_>| listed.push((entry.name.to_vec(), entry.inode.0));
            let root = self.world.root();
            self.world.ns.readdir(&root, Inode(*directory), 0, u32::MAX, 0, &mut visit).unwrap();
            assert_eq!(listed[2..], entries[..], "directory {directory}");
            let subdirectories = entries.iter().filter(|(_, child)| model.directories.contains_key(child)).count();
            assert_eq!(self.world.attr(Inode(*directory)).nlink as usize, 2 + subdirectories);
            let sums = self.world.ns.dir_stats(self.world.session, Inode(*directory)).unwrap();
            assert_eq!(sums.length, model.length_below(*directory));
        }
        for (inode, length) in &model.lengths {
            let attr = self.world.attr(Inode(*inode));
            assert_eq!((attr.extra, attr.nlink as usize), (*length, model.links(*inode)), "inode {inode}");
        }
        self.model = model;
        check_figures(&mut self.world.ns);
    }
}

#[test]
fn any_history_agrees_with_the_model_and_with_its_replay_and_image() {
    for seed in 0..12 {
        let mut history = History::new(seed);
        for step in 0..600 {
            history.step();
            if step % 150 == 149 {
                history.check_model();
                history.world.check_replay(&mut history.journal);
            }
        }
    }
}

#[test]
fn a_journal_cut_at_any_byte_gives_the_state_after_its_last_whole_line() {
    let mut history = History::new(99);
    let mut digests = BTreeMap::new();
    let mut journal = Vec::new();
    for _ in 0..60 {
        history.step();
        journal.extend(history.world.ns.take_journal().bytes);
        digests.insert(journal.len(), history.world.ns.digest());
    }
    let line_ends: BTreeSet<usize> =
        journal.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
    for cut in 0..=journal.len() {
        let survey = crate::journal::survey(&journal[..cut]);
        let sound = line_ends.range(..=cut).next_back().copied().unwrap_or(0);
        assert_eq!(survey.sound_bytes, sound);
        if let Some(digest) = digests.get(&cut) {
            let mut again = Namespace::from_state(crate::state::State::new(START.into()), Policy::default());
            again.replay_lines(&journal[..survey.sound_bytes]).unwrap();
            assert_eq!(again.digest(), *digest, "cut at {cut}");
        }
    }
}

#[test]
fn replay_stops_at_a_gap_and_at_a_line_that_does_not_fit() {
    use crate::ReplayError;
    let mut world = World::new();
    world.mkdir(ROOT, "a");
    world.mkdir(ROOT, "b");
    let journal = world.ns.take_journal().bytes;
    let lines: Vec<&[u8]> = journal.split_inclusive(|byte| *byte == b'\n').collect();
    let fresh = || Namespace::from_state(crate::state::State::new(START.into()), Policy::default());
    let gap = [lines[0], lines[1], lines[3]].concat();
    assert_eq!(fresh().replay_lines(&gap), Err(ReplayError::Gap { expected: 3, found: 4 }));
    // The same lines on a state that has the name already.
    let mut other = fresh();
    other.replay_lines(&[lines[0], lines[1]].concat()).unwrap();
    let root = Caller { session: SessionId(1), version: VersionWord::OURS, uid: 0, gids: &[0], now: START.into() };
    other.mkdir(&root, ROOT, b"b", 0o777, 0, true).unwrap();
    let refused = other.replay_lines(lines[3]).unwrap_err();
    assert!(matches!(refused, ReplayError::Refused { version: 4, status: Status::EEXIST, .. }), "{refused}");
    let mut third = fresh();
    third.replay_lines(&[lines[0], lines[1]].concat()).unwrap();
    third.mkdir(&root, ROOT, b"x", 0o777, 0, true).unwrap();
    third.rmdir(&root, ROOT, b"x").unwrap();
    let mut wrong = Vec::new();
    let entry = crate::journal::parse(lines[3].strip_suffix(b"\n").unwrap()).unwrap();
    crate::journal::format(5, START.into(), &entry.change, &crate::journal::Outcome::of([2]), &mut wrong);
    let mismatch = third.replay_lines(&wrong).unwrap_err();
    assert!(matches!(mismatch, ReplayError::Mismatch { version: 5, .. }), "{mismatch}");
}

#[test]
fn metaloggers_get_lines_without_version_and_newline() {
    let mut world = World::new();
    world.ns.take_journal();
    world.mkdir(ROOT, "a");
    world.ns.idle(START + 1);
    let batch = world.ns.take_journal();
    assert_eq!((batch.first, batch.next), (3, 5));
    let lines: Vec<(u64, String)> =
        batch.lines().map(|(version, text)| (version, String::from_utf8(text.to_vec()).unwrap())).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0].0, 3);
    assert!(lines[0].1.starts_with("1800000000|CREATE(1,a,2,511,0,0,0,0,#"), "{}", lines[0].1);
    assert!(lines[0].1.ends_with("):2"));
    assert!(lines[1].1.starts_with("1800000001|IDLE(#"));
    assert!(world.ns.take_journal().is_empty());
}

#[test]
fn the_lines_are_those_that_mfsmaster_writes_for_the_same_operations() {
    // Seen from mfsmaster 3.0.117: mkdir d; ln -s; mkfifo; mkdir; echo hello > file; ln; truncate -s 200M sparse.
    let expected = "\
        CREATE(1,d,2,511,18,0,0,0):2\n\
        SYMLINK(2,sym,targetxyz,0,0):3\n\
        CREATE(2,ff,4,438,18,0,0,0):4\n\
        CREATE(2,sub,2,511,18,0,0,0):5\n\
        CREATE(2,file,1,438,18,0,0,0):6\n\
        ACQUIRE(1,6)\n\
        WRITE(6,0,1,0):1\n\
        LENGTH(6,6,0)\n\
        UNLOCK(1)\n\
        LINK(6,2,hard)\n\
        CREATE(2,sparse,1,438,18,0,0,0):7\n\
        ACQUIRE(1,7)\n\
        LENGTH(7,209715200,1)\n";
    let mut world = World::new();
    world.ns.take_journal();
    let (root, session, now) = (world.root(), world.session, world.now);
    let ns = &mut world.ns;
    let (d, _) = ns.mkdir(&root, ROOT, b"d", 0o777, 0o022, true).unwrap();
    ns.symlink(&root, d, b"sym", b"targetxyz").unwrap();
    ns.mknod(&root, d, b"ff", NodeKind::Fifo, 0o666, 0o022, 0).unwrap();
    ns.mkdir(&root, d, b"sub", 0o777, 0o022, true).unwrap();
    let file = ns.create(&root, d, b"file", 0o666, 0o022).unwrap().inode;
    let grant = ns.grant_write(now, file, 0, true, false).unwrap();
    ns.write_end(session, VersionWord::OURS, now, file, grant.chunk, 6, false).unwrap();
    ns.link(&root, file, d, b"hard").unwrap();
    let sparse = ns.create(&root, d, b"sparse", 0o666, 0o022).unwrap().inode;
    ns.truncate(&root, sparse, crate::truncate_flags::OPENED, 200 << 20).unwrap();
    let batch = ns.take_journal();
    let lines = batch.lines().map(|(_, text)| {
        let text = String::from_utf8(text.to_vec()).unwrap();
        let (before, behind) = text.split_once(",#").unwrap();
        format!("{}{}\n", before.split_once('|').unwrap().1, &behind[8..])
    });
    assert_eq!(lines.collect::<String>(), expected);
    // What `mfsdirinfo` said there.
    let sums = ns.dir_stats(session, d).unwrap();
    assert_eq!((sums.inodes, sums.dirs, sums.files, sums.chunks), (7, 2, 3, 2));
    assert_eq!((sums.length, sums.size, sums.realsize), (209_715_221, 147_456, 294_912));
    assert_eq!(ns.getattr(&root, d, false).unwrap().extra, 2_020_000);
}
