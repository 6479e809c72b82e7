//! Locks that are asked for, waited for, and lost.

use super::*;
use crate::{LockReply, LockRequest, RangeWanted, flock_command as flock, posix_command as posix, posix_type};

struct Locking {
    world: World,
    file: Inode,
    msgid: u32,
}

impl Locking {
    fn new() -> Locking {
        let mut world = World::new();
        let file = world.ns.create(&world.root(), ROOT, b"f", 0o600, 0).unwrap().inode;
        Locking { world, file, msgid: 0 }
    }

    fn request(&mut self, owner: u64, reqid: u32) -> LockRequest {
        self.msgid += 1;
        LockRequest { session: self.world.session, owner, msgid: self.msgid, reqid }
    }

    fn flock(&mut self, owner: u64, command: u8) -> LockReply {
        let request = self.request(owner, 100 + owner as u32);
        self.world.ns.flock(self.world.now, self.file, request, command)
    }

    fn range(&mut self, owner: u64, command: u8, kind: u8, range: (u64, u64)) -> LockReply {
        let request = self.request(owner, 100 + owner as u32);
        let wanted = RangeWanted { pid: 1000 + owner as u32, kind, start: range.0, end: range.1 };
        self.world.ns.posix_lock(self.world.now, self.file, request, command, &wanted)
    }

    /// (msgid, status) of requests that were answered meanwhile.
    fn answers(&mut self) -> Vec<(u32, Status)> {
        self.world.ns.take_lock_answers().into_iter().map(|answer| (answer.msgid, answer.status)).collect()
    }
}

const OK: LockReply = LockReply::Now(Status::OK);
const AGAIN: LockReply = LockReply::Now(Status::EAGAIN);

#[test]
fn readers_share_a_writer_waits_and_nobody_passes_him() {
    let mut t = Locking::new();
    assert_eq!(t.flock(1, flock::LOCK_SHARED), OK);
    assert_eq!(t.flock(2, flock::TRY_SHARED), OK);
    assert_eq!(t.flock(3, flock::TRY_EXCLUSIVE), AGAIN);
    assert_eq!(t.flock(3, flock::LOCK_EXCLUSIVE), LockReply::Wait);
    let writer = t.msgid;
    assert_eq!(t.flock(4, flock::TRY_SHARED), AGAIN, "a writer waits");
    assert_eq!(t.flock(4, flock::LOCK_SHARED), LockReply::Wait);
    let reader = t.msgid;
    assert_eq!(t.flock(5, flock::LOCK_SHARED), LockReply::Wait);
    let reader_too = t.msgid;
    assert_eq!(t.flock(1, flock::UNLOCK), OK);
    assert_eq!(t.answers(), []);
    assert_eq!(t.flock(2, flock::RELEASE), OK);
    assert_eq!(t.answers(), [(writer, Status::OK)]);
    assert_eq!(t.flock(3, flock::UNLOCK), OK);
    assert_eq!(t.answers(), [(reader, Status::OK), (reader_too, Status::OK)]);
    t.world.check_replay(&mut Vec::new());
}

#[test]
fn a_lock_changes_its_kind_and_lets_readers_in() {
    let mut t = Locking::new();
    assert_eq!(t.flock(1, flock::TRY_SHARED), OK);
    assert_eq!(t.flock(1, flock::TRY_EXCLUSIVE), OK, "a lone reader is upgraded");
    assert_eq!(t.flock(2, flock::LOCK_SHARED), LockReply::Wait);
    let reader = t.msgid;
    assert_eq!(t.flock(1, flock::TRY_SHARED), OK);
    assert_eq!(t.answers(), [(reader, Status::OK)]);
    assert_eq!(t.flock(1, flock::LOCK_EXCLUSIVE), LockReply::Wait, "the own shared lock is given up");
    let writer = t.msgid;
    assert_eq!(t.flock(2, flock::UNLOCK), OK);
    assert_eq!(t.answers(), [(writer, Status::OK)]);
}

#[test]
fn waiting_requests_are_interrupted_canceled_and_resent() {
    let mut t = Locking::new();
    assert_eq!(t.flock(1, flock::LOCK_EXCLUSIVE), OK);
    assert_eq!(t.flock(2, flock::LOCK_SHARED), LockReply::Wait);
    assert_eq!(t.flock(2, flock::LOCK_SHARED), LockReply::Wait, "resent with the same reqid");
    let resent = t.msgid;
    assert_eq!(t.flock(2, flock::TRY_SHARED), AGAIN, "he waits already");
    assert_eq!(t.flock(2, flock::LOCK_EXCLUSIVE), LockReply::Wait);
    assert_eq!(t.answers(), [(resent, Status::ECANCELED)]);
    let writer = t.msgid;
    assert_eq!(t.flock(2, flock::INTERRUPT), OK);
    assert_eq!(t.answers(), [(writer, Status::EINTR)]);
    assert_eq!(t.flock(3, flock::LOCK_SHARED), LockReply::Wait);
    let waiting = t.msgid;
    assert_eq!(t.flock(3, flock::UNLOCK), OK);
    assert_eq!(t.answers(), [(waiting, Status::ECANCELED)]);
    assert_eq!(t.flock(3, 9), LockReply::Now(Status::EINVAL));
}

#[test]
fn locks_need_an_open_file_and_go_with_it() {
    let mut t = Locking::new();
    let other = t.world.session_with(|_| {});
    let request = LockRequest { session: other, owner: 9, msgid: 77, reqid: 1 };
    let (now, file) = (t.world.now, t.file);
    let refused = t.world.ns.flock(now, file, request, flock::TRY_SHARED);
    assert_eq!(refused, LockReply::Now(Status::NOTOPENED));
    t.world.ns.sustained_inodes(now, other, &[file]);
    assert_eq!(t.flock(1, flock::LOCK_EXCLUSIVE), OK);
    assert_eq!(t.range(1, posix::SET, posix_type::WRITE, (0, 10)), OK);
    assert_eq!(t.world.ns.flock(now, file, request, flock::LOCK_SHARED), LockReply::Wait);
    let wanted = RangeWanted { pid: 1, kind: posix_type::READ, start: 5, end: u64::MAX };
    let range = LockRequest { msgid: 78, ..request };
    assert_eq!(t.world.ns.posix_lock(now, file, range, posix::SET, &wanted), LockReply::Wait);
    t.world.ns.session_remove(now, t.world.session).unwrap();
    assert_eq!(t.answers(), [(77, Status::OK), (78, Status::OK)]);
    t.world.ns.sustained_inodes(now, other, &[]);
    assert_eq!(t.world.ns.whole_file_locks().count() + t.world.ns.range_locks().count(), 0);
    t.world.check_replay(&mut Vec::new());
}

#[test]
fn ranges_conflict_only_where_they_meet_and_waiters_get_what_fits() {
    let mut t = Locking::new();
    assert_eq!(t.range(1, posix::SET, posix_type::WRITE, (0, 100)), OK);
    assert_eq!(t.range(2, posix::TRY, posix_type::READ, (100, 200)), OK);
    assert_eq!(t.range(2, posix::TRY, posix_type::READ, (99, 200)), AGAIN);
    let found = t.range(2, posix::GET, posix_type::READ, (50, 60));
    let expected = RangeWanted { pid: 1001, kind: posix_type::WRITE, start: 0, end: 100 };
    assert_eq!(found, LockReply::Found(expected));
    assert_eq!(t.range(2, posix::SET, posix_type::WRITE, (0, 50)), LockReply::Wait);
    let low = t.msgid;
    assert_eq!(t.range(3, posix::SET, posix_type::WRITE, (50, 100)), LockReply::Wait);
    let high = t.msgid;
    assert_eq!(t.range(1, posix::SET, posix_type::UNLOCK, (50, 100)), OK);
    assert_eq!(t.answers(), [(high, Status::OK)]);
    assert_eq!(t.range(2, posix::INTERRUPT, 0, (0, 0)), OK);
    assert_eq!(t.answers(), [(low, Status::EINTR)]);
    assert_eq!(t.range(1, posix::SET, posix_type::WRITE, (10, 10)), LockReply::Now(Status::EINVAL));
    t.world.check_replay(&mut Vec::new());
}
