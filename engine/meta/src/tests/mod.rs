//! Tests of the namespace as clients meet it, and of what must hold for every history of it.

mod chunks;
mod histories;
mod images;
mod locks;
mod names;
mod permissions;
mod snapshots;
mod times;
mod trash;

use wire::{Attr, Inode, MetaId, NodeKind, SessionId, Status, Time, VersionWord};

use crate::session::SessionParams;
use crate::{Caller, DirEntry, Namespace, Policy, READDIR_START};

const META_ID: MetaId = MetaId(0x1234_5678_9ABC_DEF0);
const START: u32 = 1_800_000_000;
const ROOT: Inode = Inode::ROOT;

/// A file system with one session of full access.
struct World {
    ns: Namespace,
    session: SessionId,
    /// Seconds, and nanoseconds behind them.
    now: u32,
    nanos: u32,
}

impl World {
    fn new() -> World {
        let mut ns = Namespace::new(META_ID, Policy::default(), START);
        let session = ns.session_add(START, SessionParams::full_access());
        World { ns, session, now: START, nanos: 0 }
    }

    fn session_with(&mut self, change: impl FnOnce(&mut SessionParams)) -> SessionId {
        let mut params = SessionParams::full_access();
        change(&mut params);
        self.ns.session_add(self.now, params)
    }

    fn caller<'a>(&self, uid: u32, gids: &'a [u32]) -> Caller<'a> {
        Caller { session: self.session, version: VersionWord::OURS, uid, gids, now: self.time() }
    }

    fn time(&self) -> Time {
        Time::at(i64::from(self.now), self.nanos)
    }

    fn root(&self) -> Caller<'static> {
        self.caller(0, &[0])
    }

    fn mkdir(&mut self, parent: Inode, name: &str) -> Inode {
        self.ns.mkdir(&self.root(), parent, name.as_bytes(), 0o777, 0, true).unwrap().0
    }

    fn file(&mut self, parent: Inode, name: &str) -> Inode {
        self.ns.mknod(&self.root(), parent, name.as_bytes(), NodeKind::File, 0o666, 0, 0).unwrap().0
    }

    fn owned(&mut self, inode: Inode, uid: u32, gid: u32, mode: u16) {
        use crate::setattr_flags::{GID, MODE, UID};
        let set = crate::SetAttr { mask: UID | GID | MODE, mode, uid, gid, ..Default::default() };
        self.ns.setattr(&self.root(), inode, false, &set).unwrap();
    }

    fn attr(&self, inode: Inode) -> Attr {
        self.ns.getattr(&self.root(), inode, true).unwrap()
    }

    fn lookup(&self, parent: Inode, name: &str) -> Result<Inode, Status> {
        self.ns.lookup(&self.root(), parent, name.as_bytes()).map(|found| found.inode)
    }

    fn list(&mut self, directory: Inode) -> Vec<String> {
        let mut names = Vec::new();
        let mut visit = |entry: DirEntry<'_>| names.push(String::from_utf8(entry.name.to_vec()).unwrap());
        self.ns.readdir(&self.root(), directory, 0, u32::MAX, READDIR_START, &mut visit).unwrap();
        names.split_off(2)
    }

    /// The journal so far gives the same state again, and an image of that is the same state, too.
    fn check_replay(&mut self, journal: &mut Vec<u8>) {
        journal.extend(self.ns.take_journal().bytes);
        let state = crate::state::State::new(START.into());
        let mut again = Namespace::from_state(state, Policy::default());
        again.replay_lines(journal).unwrap();
        assert_eq!(again.version(), self.ns.version());
        assert_eq!(again.digest(), self.ns.digest());
        let bytes = crate::image::to_bytes(&again.freeze(), self.now);
        let loaded = crate::image::load(&bytes, Policy::default()).unwrap();
        assert_eq!(loaded.digest(), self.ns.digest());
        assert_eq!(loaded.version(), self.ns.version());
    }
}

/// The sums that each directory keeps are those that adding up anew gives.
fn check_figures(ns: &mut Namespace) {
    let inodes: Vec<u32> = ns.state.inodes().collect();
    let kept: Vec<_> = inodes.iter().map(|inode| ns.state.figures(*inode)).collect();
    ns.state.recount();
    for (inode, kept) in inodes.iter().zip(kept) {
        assert_eq!(ns.state.figures(*inode), kept, "figures of inode {inode}");
    }
}
