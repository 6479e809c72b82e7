//! Requests for BSD and POSIX locks, and who waits for them. Spec 31, 31.10.
//!
//! Locks that are held are part of the state and written down; waiting requests live only as long as this master.

use std::collections::{BTreeMap, VecDeque};

use wire::{Inode, SessionId, Status, Time};

use crate::change::{Change, LockLetter};
use crate::locks::{LockKind, LockOwner, RangeLock};
use crate::namespace::Namespace;

/// Commands of FLOCK.
pub mod flock_command {
    pub const UNLOCK: u8 = 0;
    pub const TRY_SHARED: u8 = 1;
    pub const LOCK_SHARED: u8 = 2;
    pub const TRY_EXCLUSIVE: u8 = 3;
    pub const LOCK_EXCLUSIVE: u8 = 4;
    pub const INTERRUPT: u8 = 5;
    pub const RELEASE: u8 = 6;
}

/// Commands of POSIX_LOCK.
pub mod posix_command {
    pub const GET: u8 = 0;
    pub const SET: u8 = 1;
    pub const TRY: u8 = 2;
    pub const INTERRUPT: u8 = 3;
}

/// Types of a POSIX lock.
pub mod posix_type {
    pub const UNLOCK: u8 = 0;
    pub const READ: u8 = 1;
    pub const WRITE: u8 = 2;
}

/// How a request is told from others: the packet's msgid, which the answer bears, and the client's number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRequest {
    pub session: SessionId,
    pub owner: u64,
    pub msgid: u32,
    pub reqid: u32,
}

impl LockRequest {
    fn holder(&self) -> LockOwner {
        LockOwner { session: self.session, owner: self.owner }
    }
}

/// What POSIX_LOCK asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeWanted {
    pub pid: u32,
    /// `posix_type`
    pub kind: u8,
    pub start: u64,
    /// Exclusive; u64::MAX = to infinity.
    pub end: u64,
}

/// The answer to a request for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockReply {
    Now(Status),
    /// It comes with `take_lock_answers`.
    Wait,
    /// Only for GET: the lock that is in the way, or one of type UNLOCK.
    Found(RangeWanted),
}

/// A request that waited and is answered now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockAnswer {
    pub session: SessionId,
    pub msgid: u32,
    /// True for POSIX_LOCK, false for FLOCK.
    pub posix: bool,
    pub status: Status,
}

#[derive(Debug)]
struct WholeWaiter {
    holder: LockOwner,
    kind: LockKind,
    /// (reqid, msgid) of all requests that wait for this.
    requests: Vec<(u32, u32)>,
}

#[derive(Debug)]
struct RangeWaiter {
    request: LockRequest,
    wanted: RangeLock,
}

#[derive(Debug, Default)]
pub(crate) struct LockQueues {
    whole: BTreeMap<u32, VecDeque<WholeWaiter>>,
    ranges: BTreeMap<u32, VecDeque<RangeWaiter>>,
    answers: Vec<LockAnswer>,
}

impl LockQueues {
    fn answer(&mut self, session: SessionId, msgid: u32, posix: bool, status: Status) {
        self.answers.push(LockAnswer { session, msgid, posix, status });
    }

    /// Ends all requests of a holder that wait for a file's BSD lock.
    fn end_whole(&mut self, inode: u32, holder: LockOwner, status: Status) {
        let Some(queue) = self.whole.get_mut(&inode) else { return };
        let mut ended = Vec::new();
        queue.retain(|waiter| {
            let is_his = waiter.holder == holder;
            if is_his {
                ended.extend(waiter.requests.iter().map(|(_, msgid)| *msgid));
            }
            !is_his
        });
        for msgid in ended {
            self.answer(holder.session, msgid, false, status);
        }
    }
}

impl Namespace {
    /// Requests that waited and have an answer now. To be asked after every call that may free a lock: lock calls,
    /// `sustained_inodes`, `session_remove`.
    pub fn take_lock_answers(&mut self) -> Vec<LockAnswer> {
        std::mem::take(&mut self.lock_queues.answers)
    }

    /// A BSD lock on a whole file. Spec 31, 31.10 "FLOCK".
    pub fn flock(&mut self, now: impl Into<Time>, inode: Inode, request: LockRequest, command: u8) -> LockReply {
        let now = now.into();
        use flock_command::*;
        let holder = request.holder();
        match command {
            INTERRUPT => {
                self.interrupt_whole(now, inode.0, &request);
                return LockReply::Now(Status::OK);
            }
            UNLOCK..=LOCK_EXCLUSIVE if !self.state.is_open_by(request.session, inode.0) => {
                return LockReply::Now(Status::NOTOPENED);
            }
            UNLOCK | RELEASE => {
                self.lock_queues.end_whole(inode.0, holder, Status::ECANCELED);
                self.drop_whole(now, inode.0, holder);
                self.advance_whole(now, inode.0);
                return LockReply::Now(Status::OK);
            }
            TRY_SHARED..=LOCK_EXCLUSIVE => {}
            _ => return LockReply::Now(Status::EINVAL),
        }
        let waits = matches!(command, LOCK_SHARED | LOCK_EXCLUSIVE);
        let kind = if command <= LOCK_SHARED { LockKind::Shared } else { LockKind::Exclusive };
        let held = self.held_whole(inode.0, holder);
        if held == Some(kind) {
            return LockReply::Now(Status::OK);
        }
        if waits {
            if held.is_some() {
                self.drop_whole(now, inode.0, holder);
                self.advance_whole(now, inode.0);
            }
            if self.enqueue_whole(inode.0, &request, kind) {
                return LockReply::Wait;
            }
        } else if self.waits_whole(inode.0, holder) {
            return LockReply::Now(Status::EAGAIN);
        }
        // Turning an own lock into the other kind does not stand in line; a new reader does.
        let in_line = self.lock_queues.whole.get(&inode.0).is_some_and(|queue| !queue.is_empty());
        if !(in_line && held.is_none()) && self.take_whole(now, inode.0, holder, kind) {
            self.advance_whole(now, inode.0);
            return LockReply::Now(Status::OK);
        }
        if !waits {
            return LockReply::Now(Status::EAGAIN);
        }
        let waiter = WholeWaiter { holder, kind, requests: vec![(request.reqid, request.msgid)] };
        self.lock_queues.whole.entry(inode.0).or_default().push_back(waiter);
        self.advance_whole(now, inode.0);
        LockReply::Wait
    }

    /// Adds a request to what its holder waits for already; false if he waits for nothing.
    fn enqueue_whole(&mut self, inode: u32, request: &LockRequest, kind: LockKind) -> bool {
        let holder = request.holder();
        let queue = self.lock_queues.whole.entry(inode).or_default();
        let Some(waiter) = queue.iter_mut().find(|waiter| waiter.holder == holder) else { return false };
        let mut canceled = Vec::new();
        if waiter.kind != kind {
            waiter.kind = kind;
            canceled = std::mem::take(&mut waiter.requests);
        }
        match waiter.requests.iter_mut().find(|(reqid, _)| *reqid == request.reqid) {
            Some((_, msgid)) => *msgid = request.msgid,
            None => waiter.requests.push((request.reqid, request.msgid)),
        }
        for (_, msgid) in canceled {
            self.lock_queues.answer(holder.session, msgid, false, Status::ECANCELED);
        }
        true
    }

    fn waits_whole(&self, inode: u32, holder: LockOwner) -> bool {
        let queue = self.lock_queues.whole.get(&inode);
        queue.is_some_and(|queue| queue.iter().any(|waiter| waiter.holder == holder))
    }

    fn held_whole(&self, inode: u32, holder: LockOwner) -> Option<LockKind> {
        self.state.locks.whole(inode).find(|(owner, _)| *owner == holder).map(|(_, kind)| kind)
    }

    fn take_whole(&mut self, now: Time, inode: u32, holder: LockOwner, kind: LockKind) -> bool {
        let lock = letter(kind);
        let LockOwner { session, owner } = holder;
        self.commit(now, &Change::Flock { inode: Inode(inode), session, owner, lock }).is_ok()
    }

    fn drop_whole(&mut self, now: Time, inode: u32, holder: LockOwner) {
        if self.held_whole(inode, holder).is_some() {
            let LockOwner { session, owner } = holder;
            let lock = LockLetter::Unlocked;
            self.commit(now, &Change::Flock { inode: Inode(inode), session, owner, lock }).expect("it is held");
        }
    }

    fn interrupt_whole(&mut self, now: Time, inode: u32, request: &LockRequest) {
        let holder = request.holder();
        let Some(queue) = self.lock_queues.whole.get_mut(&inode) else { return };
        let mut ended = Vec::new();
        for waiter in queue.iter_mut().filter(|waiter| waiter.holder == holder) {
            ended.extend(waiter.requests.extract_if(.., |(reqid, _)| *reqid == request.reqid));
        }
        queue.retain(|waiter| !waiter.requests.is_empty());
        for (_, msgid) in ended {
            self.lock_queues.answer(holder.session, msgid, false, Status::EINTR);
        }
        self.advance_whole(now, inode);
    }

    /// Lets in who stands first, as long as that is possible.
    fn advance_whole(&mut self, now: Time, inode: u32) {
        while let Some(first) = self.lock_queues.whole.get(&inode).and_then(VecDeque::front) {
            let (holder, kind) = (first.holder, first.kind);
            if !self.take_whole(now, inode, holder, kind) {
                return;
            }
            let queue = self.lock_queues.whole.get_mut(&inode).expect("it has a first");
            let waiter = queue.pop_front().expect("it has a first");
            for (_, msgid) in waiter.requests {
                self.lock_queues.answer(holder.session, msgid, false, Status::OK);
            }
        }
        self.lock_queues.whole.remove(&inode);
    }

    /// A POSIX lock on a range. Spec 31, 31.10 "POSIX_LOCK".
    pub fn posix_lock(
        &mut self,
        now: impl Into<Time>,
        inode: Inode,
        request: LockRequest,
        command: u8,
        wanted: &RangeWanted,
    ) -> LockReply {
        let now = now.into();
        use posix_command::*;
        if command == INTERRUPT {
            let queue = self.lock_queues.ranges.remove(&inode.0).unwrap_or_default();
            let is_it = |waiter: &RangeWaiter| {
                waiter.request.session == request.session && waiter.request.reqid == request.reqid
            };
            let (ended, kept): (VecDeque<_>, VecDeque<_>) = queue.into_iter().partition(is_it);
            if !kept.is_empty() {
                self.lock_queues.ranges.insert(inode.0, kept);
            }
            for RangeWaiter { request, .. } in ended {
                self.lock_queues.answer(request.session, request.msgid, true, Status::EINTR);
            }
            return LockReply::Now(Status::OK);
        }
        let kind = match wanted.kind {
            posix_type::UNLOCK => {
                if command == GET {
                    return LockReply::Found(RangeWanted { pid: 0, kind: posix_type::UNLOCK, start: 0, end: 0 });
                }
                self.drop_range(now, inode.0, request.holder(), wanted);
                self.advance_ranges(now, inode.0);
                return LockReply::Now(Status::OK);
            }
            posix_type::READ => LockKind::Shared,
            posix_type::WRITE => LockKind::Exclusive,
            _ => return LockReply::Now(Status::EINVAL),
        };
        if wanted.start >= wanted.end || command > TRY {
            return LockReply::Now(Status::EINVAL);
        }
        let lock = RangeLock { holder: request.holder(), pid: wanted.pid, start: wanted.start, end: wanted.end, kind };
        let conflict = self.state.locks.conflict(inode.0, &lock);
        if command == GET {
            return LockReply::Found(found(conflict, request.session));
        }
        if !self.state.is_open_by(request.session, inode.0) {
            return LockReply::Now(Status::NOTOPENED);
        }
        match (conflict, command) {
            (None, _) => {
                self.take_range(now, inode.0, &lock);
                self.advance_ranges(now, inode.0);
                LockReply::Now(Status::OK)
            }
            (Some(_), TRY) => LockReply::Now(Status::EAGAIN),
            (Some(_), _) => {
                let queue = self.lock_queues.ranges.entry(inode.0).or_default();
                let same = |waiter: &&mut RangeWaiter| {
                    waiter.request.holder() == request.holder() && waiter.request.reqid == request.reqid
                };
                match queue.iter_mut().find(same) {
                    Some(waiter) => waiter.request = request,
                    None => queue.push_back(RangeWaiter { request, wanted: lock }),
                }
                LockReply::Wait
            }
        }
    }

    fn take_range(&mut self, now: Time, inode: u32, lock: &RangeLock) -> bool {
        let LockOwner { session, owner } = lock.holder;
        let change = Change::PosixLock {
            inode: Inode(inode),
            session,
            owner,
            lock: letter(lock.kind),
            start: lock.start,
            end: lock.end,
            pid: lock.pid,
        };
        self.commit(now, &change).is_ok()
    }

    fn drop_range(&mut self, now: Time, inode: u32, holder: LockOwner, range: &RangeWanted) {
        let overlaps = |held: &RangeLock| held.holder == holder && held.start < range.end && range.start < held.end;
        if self.state.locks.ranges(inode).iter().any(overlaps) {
            let LockOwner { session, owner } = holder;
            let change = Change::PosixLock {
                inode: Inode(inode),
                session,
                owner,
                lock: LockLetter::Unlocked,
                start: range.start,
                end: range.end,
                pid: range.pid,
            };
            self.commit(now, &change).expect("unlocking is always possible");
        }
    }

    /// Grants every waiting range that fits now, in order.
    fn advance_ranges(&mut self, now: Time, inode: u32) {
        let Some(mut queue) = self.lock_queues.ranges.remove(&inode) else { return };
        let mut at = 0;
        while at < queue.len() {
            let wanted = queue[at].wanted;
            if self.take_range(now, inode, &wanted) {
                let waiter = queue.remove(at).expect("it is below the length");
                self.lock_queues.answer(waiter.request.session, waiter.request.msgid, true, Status::OK);
                // A grant may have turned an own write lock into a read lock: those before may fit now.
                at = 0;
            } else {
                at += 1;
            }
        }
        if !queue.is_empty() {
            self.lock_queues.ranges.insert(inode, queue);
        }
    }

    /// A session lost a file: what it waited for there vanishes without answer, others may get in.
    pub(crate) fn locks_released(&mut self, now: Time, session: SessionId, inode: u32) {
        if let Some(queue) = self.lock_queues.whole.get_mut(&inode) {
            queue.retain(|waiter| waiter.holder.session != session);
        }
        if let Some(queue) = self.lock_queues.ranges.get_mut(&inode) {
            queue.retain(|waiter| waiter.request.session != session);
        }
        self.advance_whole(now, inode);
        self.advance_ranges(now, inode);
    }

    /// All locks that are held, for monitoring.
    pub fn whole_file_locks(&self) -> impl Iterator<Item = (Inode, LockOwner, LockKind)> + '_ {
        self.state.locks.all_whole().map(|(inode, holder, kind)| (Inode(inode), holder, kind))
    }

    pub fn range_locks(&self) -> impl Iterator<Item = (Inode, &RangeLock)> {
        self.state.locks.all_ranges().map(|(inode, lock)| (Inode(inode), lock))
    }
}

fn letter(kind: LockKind) -> LockLetter {
    match kind {
        LockKind::Shared => LockLetter::Shared,
        LockKind::Exclusive => LockLetter::Exclusive,
    }
}

fn found(conflict: Option<RangeLock>, asking: SessionId) -> RangeWanted {
    match conflict {
        None => RangeWanted { pid: 0, kind: posix_type::UNLOCK, start: 0, end: 0 },
        Some(lock) => RangeWanted {
            pid: if lock.holder.session == asking { lock.pid } else { 0 },
            kind: if lock.kind == LockKind::Shared { posix_type::READ } else { posix_type::WRITE },
            start: lock.start,
            end: lock.end,
        },
    }
}
