//! flock and fcntl locks: the master keeps them, a waiting request waits there. Spec 31, 31.10; Spec 72, 5.5.

use std::rc::Rc;
use std::time::Duration;

use wire::{CltomaFuseFlock, CltomaFusePosixLock, Inode, MatoclFusePosixLock};

use crate::Errno;
use crate::client::{Client, Inner};
use crate::types::*;

/// `cmd` of FLOCK. Spec 31, 31.10.
mod flock_cmd {
    pub(super) const UNLOCK: u8 = 0;
    pub(super) const TRY_SHARED: u8 = 1;
    pub(super) const LOCK_SHARED: u8 = 2;
    pub(super) const TRY_EXCLUSIVE: u8 = 3;
    pub(super) const LOCK_EXCLUSIVE: u8 = 4;
    pub(super) const INTERRUPT: u8 = 5;
    pub(super) const RELEASE: u8 = 6;
}

/// `cmd` of POSIX_LOCK. Spec 31, 31.10.
mod posix_cmd {
    pub(super) const GET: u8 = 0;
    pub(super) const SET: u8 = 1;
    pub(super) const TRY: u8 = 2;
    pub(super) const INTERRUPT: u8 = 3;
}

/// Takes a waiting request back at the master when its future is dropped.
struct Interrupt {
    inner: Rc<Inner>,
    inode: Inode,
    request: u32,
    owner: u64,
    is_flock: bool,
    is_over: bool,
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let (inner, inode, reqid, owner, is_flock) =
            (self.inner.clone(), self.inode, self.request, self.owner, self.is_flock);
        drop(self.inner.ring.spawn(async move {
            // The request itself may still be on its way: say it twice. Spec 72, 5.5.
            for _ in 0..2 {
                let done = if is_flock {
                    let cmd = flock_cmd::INTERRUPT;
                    inner.ask_done(|msgid| CltomaFuseFlock { msgid, inode, reqid, owner, cmd }).await
                } else {
                    inner
                        .ask_done(|msgid| CltomaFusePosixLock {
                            msgid,
                            inode,
                            reqid,
                            owner,
                            pid: 0,
                            cmd: posix_cmd::INTERRUPT,
                            kind: 0,
                            start: 0,
                            end: 0,
                        })
                        .await
                };
                if done.is_err() {
                    return;
                }
                inner.ring.sleep(Duration::from_millis(100)).await;
            }
        }));
    }
}

impl Client {
    /// flock(2). EAGAIN if it would wait and `wait` is false. Dropping the future takes a waiting request back.
    /// Unlocking flushes the file first.
    pub async fn flock(&self, handle: Handle, owner: u64, kind: LockKind, wait: bool) -> Result<(), Errno> {
        let open = self.0.files.open(handle)?;
        let inode = open.file.inode;
        if kind == LockKind::Unlock {
            self.0.flush_file(&open.file).await?;
        } else {
            open.used_flock.set(true);
        }
        let cmd = match (kind, wait) {
            (LockKind::Unlock, _) => flock_cmd::UNLOCK,
            (LockKind::Shared, false) => flock_cmd::TRY_SHARED,
            (LockKind::Shared, true) => flock_cmd::LOCK_SHARED,
            (LockKind::Exclusive, false) => flock_cmd::TRY_EXCLUSIVE,
            (LockKind::Exclusive, true) => flock_cmd::LOCK_EXCLUSIVE,
        };
        let reqid = self.0.next_lock_request();
        let is_waiting = wait && kind != LockKind::Unlock;
        let mut interrupt = self.0.interrupt(inode, reqid, owner, true, is_waiting);
        let done = self.0.ask_done(|msgid| CltomaFuseFlock { msgid, inode, reqid, owner, cmd }).await;
        interrupt.is_over = true;
        done
    }

    /// fcntl F_SETLK (`wait` false), F_SETLKW; unlocking flushes first. Dropping the future takes it back.
    pub async fn posix_lock(&self, handle: Handle, owner: u64, lock: PosixLock, wait: bool) -> Result<(), Errno> {
        let open = self.0.files.open(handle)?;
        let inode = open.file.inode;
        let is_unlock = lock.kind == LockKind::Unlock;
        if is_unlock {
            self.0.flush_file(&open.file).await?;
        } else {
            open.lock_owners.borrow_mut().insert(owner);
        }
        let reqid = self.0.next_lock_request();
        let cmd = if wait || is_unlock { posix_cmd::SET } else { posix_cmd::TRY };
        let mut interrupt = self.0.interrupt(inode, reqid, owner, false, wait && !is_unlock);
        let done = self
            .0
            .ask_done(|msgid| CltomaFusePosixLock {
                msgid,
                inode,
                reqid,
                owner,
                pid: lock.pid,
                cmd,
                kind: kind_number(lock.kind),
                start: lock.start,
                end: lock.end,
            })
            .await;
        interrupt.is_over = true;
        done
    }

    /// fcntl F_GETLK: the lock that is in the way of `lock`, if any.
    pub async fn posix_lock_test(
        &self,
        handle: Handle,
        owner: u64,
        lock: PosixLock,
    ) -> Result<Option<PosixLock>, Errno> {
        let inode = self.0.files.open(handle)?.file.inode;
        let answer: MatoclFusePosixLock = self
            .0
            .ask(|msgid| CltomaFusePosixLock {
                msgid,
                inode,
                reqid: 0,
                owner,
                pid: lock.pid,
                cmd: posix_cmd::GET,
                kind: kind_number(lock.kind),
                start: lock.start,
                end: lock.end,
            })
            .await?;
        let kind = match answer.kind {
            1 => LockKind::Shared,
            2 => LockKind::Exclusive,
            _ => return Ok(None),
        };
        Ok(Some(PosixLock { kind, start: answer.start, end: answer.end, pid: answer.pid }))
    }
}

fn kind_number(kind: LockKind) -> u8 {
    match kind {
        LockKind::Unlock => 0,
        LockKind::Shared => 1,
        LockKind::Exclusive => 2,
    }
}

impl Inner {
    fn next_lock_request(&self) -> u32 {
        let next = self.last_lock_request.get().wrapping_add(1).max(1);
        self.last_lock_request.set(next);
        next
    }

    fn interrupt(
        self: &Rc<Self>,
        inode: Inode,
        request: u32,
        owner: u64,
        is_flock: bool,
        is_waiting: bool,
    ) -> Interrupt {
        Interrupt { inner: self.clone(), inode, request, owner, is_flock, is_over: !is_waiting }
    }

    /// Drops every fcntl lock of this owner on the file. Spec 31, 31.10: request 0, pid 0.
    pub(crate) async fn drop_posix_locks(&self, inode: Inode, owner: u64) -> Result<(), Errno> {
        self.ask_done(|msgid| CltomaFusePosixLock {
            msgid,
            inode,
            reqid: 0,
            owner,
            pid: 0,
            cmd: posix_cmd::SET,
            kind: 0,
            start: 0,
            end: u64::MAX,
        })
        .await
    }

    pub(crate) async fn release_flock(&self, inode: Inode, owner: u64) -> Result<(), Errno> {
        let cmd = flock_cmd::RELEASE;
        self.ask_done(|msgid| CltomaFuseFlock { msgid, inode, reqid: 0, owner, cmd }).await
    }
}
