//! The trash, files that are deleted and open, and what happens by time alone. Spec 32, 32.8 and 32.9.

use wire::limits::PATH_BYTES_MAX;
use wire::{Attr, Inode, NodeKind, SessionId, Status, Time};

use crate::access::Who;
use crate::apply::{borrowed, trash_expired};
use crate::change::Change;
use crate::namespace::{Caller, Namespace};
use crate::state::{SUSTAINED_BUCKETS, TRASH_BUCKETS};

/// Which buckets come next. Not kept over a restart: where a sweep begins does not matter.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    last_second: u32,
    trash_bucket: u32,
    sustained_bucket: u32,
    pub(crate) archive_at: u32,
}

/// Longest name in a listing of the trash; longer paths are cut. Spec 32, 32.8.
const LISTED_BYTES_MAX: usize = 240;
const CUT_MARK: &[u8] = b"(...)";

impl Namespace {
    /// Once a second: one bucket of the trash and one of the sustained files, more if seconds were missed; soft
    /// quotas.
    pub fn tick_second(&mut self, now: impl Into<Time>) {
        let now = now.into();
        let second = now.seconds();
        let missed = second.saturating_sub(self.timers.last_second);
        let seconds = if self.timers.last_second == 0 { 1 } else { missed };
        self.timers.last_second = second;
        for _ in 0..seconds.min(TRASH_BUCKETS) {
            let bucket = self.timers.trash_bucket;
            self.timers.trash_bucket = (bucket + 1) % TRASH_BUCKETS;
            let child = |edge: u32| self.state.edge(edge).child;
            let expired = self.state.trash_bucket(bucket).any(|edge| trash_expired(&self.state, child(edge), second));
            if expired {
                self.commit(now, &Change::EmptyTrash { bucket }).expect("buckets exist");
            }
        }
        for _ in 0..seconds.min(SUSTAINED_BUCKETS) {
            let bucket = self.timers.sustained_bucket;
            self.timers.sustained_bucket = (bucket + 1) % SUSTAINED_BUCKETS;
            let closed =
                self.state.sustained_bucket(bucket).any(|edge| !self.state.is_open(self.state.edge(edge).child));
            if closed {
                self.commit(now, &Change::EmptySustained { bucket }).expect("buckets exist");
            }
        }
        self.tick_quotas(now);
    }

    /// Once a minute: numbers of removed nodes become usable again.
    pub fn tick_minute(&mut self, now: impl Into<Time>) {
        let now = now.into();
        let delay_seconds = self.policy.inode_reuse_delay_seconds;
        let due = |since: u32| u64::from(since) + u64::from(delay_seconds) < u64::from(now.seconds());
        if self.state.free_queue().front().is_some_and(|(_, since)| due(*since)) {
            self.commit(now, &Change::FreeInodes { delay_seconds }).expect("any delay will do");
        }
    }

    /// Names and inodes in a bucket of the trash, or (None) in all. Spec 32, 32.8 "GETTRASH".
    pub fn trash_list(&self, session: SessionId, bucket: Option<u32>) -> Result<Vec<(Vec<u8>, Inode)>, Status> {
        self.meta_session(session)?;
        let buckets = match bucket {
            Some(bucket) if bucket < TRASH_BUCKETS => bucket..bucket + 1,
            _ => 0..TRASH_BUCKETS,
        };
        let edges = buckets.flat_map(|bucket| self.state.trash_bucket(bucket));
        Ok(edges.map(|edge| self.listed(edge)).collect())
    }

    /// Spec 32, 32.8 "GETSUSTAINED".
    pub fn sustained_list(&self, session: SessionId) -> Result<Vec<(Vec<u8>, Inode)>, Status> {
        self.meta_session(session)?;
        let edges = (0..SUSTAINED_BUCKETS).flat_map(|bucket| self.state.sustained_bucket(bucket));
        Ok(edges.map(|edge| self.listed(edge)).collect())
    }

    fn listed(&self, edge: u32) -> (Vec<u8>, Inode) {
        let path = self.state.name(edge);
        let mut name: Vec<u8> = path.iter().map(|byte| if *byte == b'/' { b'|' } else { *byte }).collect();
        if name.len() > LISTED_BYTES_MAX {
            name.drain(..name.len() - (LISTED_BYTES_MAX - CUT_MARK.len()));
            name.splice(..0, CUT_MARK.iter().copied());
        }
        (name, Inode(self.state.edge(edge).child))
    }

    /// `dtype`: 0 any, 1 trash only, 2 sustained only. Spec 32, 32.8 "GETDETACHEDATTR".
    pub fn detached_attr(&self, session: SessionId, inode: Inode, dtype: u8) -> Result<Attr, Status> {
        let who = self.meta_session(session)?;
        if dtype > 2 {
            return Err(Status::EINVAL);
        }
        let inode = self.resolve(&who, inode, false)?;
        let kind = self.state.at(inode).kind();
        let other = if dtype == 1 { NodeKind::Sustained } else { NodeKind::Trash };
        if dtype != 0 && kind == other {
            return Err(Status::ENOENT);
        }
        Ok(self.attr(&who, inode, None))
    }

    /// The path that a file in the trash goes back to. Spec 32, 32.8 "GETTRASHPATH".
    pub fn trash_path(&self, session: SessionId, inode: Inode) -> Result<&[u8], Status> {
        let who = self.meta_session(session)?;
        let inode = self.trash_inode(&who, inode)?;
        Ok(self.state.name(self.state.at(inode).edge))
    }

    /// Spec 32, 32.8 "SETTRASHPATH".
    pub fn set_trash_path(&mut self, caller: &Caller<'_>, inode: Inode, path: &[u8]) -> Result<(), Status> {
        let who = self.meta_session(caller.session)?;
        who.must_be_writable()?;
        let path = &path[..path.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)];
        if !(1..=PATH_BYTES_MAX).contains(&path.len()) || path.contains(&0) {
            return Err(Status::EINVAL);
        }
        let inode = Inode(self.trash_inode(&who, inode)?);
        self.commit(caller.now, &Change::SetPath { inode, path: borrowed(path) }).map(drop)
    }

    /// Back from the trash to the path. Spec 32, 32.8 "UNDEL".
    pub fn undelete(&mut self, caller: &Caller<'_>, inode: Inode) -> Result<(), Status> {
        let who = self.meta_session(caller.session)?;
        who.must_be_writable()?;
        let inode = self.trash_inode(&who, inode)?;
        self.must_not_exceed_quota(self.state.name(self.state.at(inode).edge))?;
        self.commit(caller.now, &Change::Undelete { inode: Inode(inode) }).map(drop)
    }

    /// Out of the trash for good. Spec 32, 32.8 "PURGE".
    pub fn purge(&mut self, caller: &Caller<'_>, inode: Inode) -> Result<(), Status> {
        let who = self.meta_session(caller.session)?;
        who.must_be_writable()?;
        let inode = Inode(self.trash_inode(&who, inode)?);
        self.commit(caller.now, &Change::Purge { inode }).map(drop)
    }

    fn meta_session(&self, session: SessionId) -> Result<Who<'static>, Status> {
        let who = self.session_itself(session, Time(0))?;
        if who.root == 0 { Ok(who) } else { Err(Status::EPERM) }
    }

    fn trash_inode(&self, who: &Who<'_>, inode: Inode) -> Result<u32, Status> {
        let inode = self.resolve(who, inode, false)?;
        if self.state.at(inode).kind() == NodeKind::Trash { Ok(inode) } else { Err(Status::ENOENT) }
    }
}
