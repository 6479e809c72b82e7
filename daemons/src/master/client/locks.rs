//! File locks: requests go to the namespace, late answers come from it. Spec 31, 31.10.

use meta::{LockReply, LockRequest, RangeWanted};
use wire::{CltomaFuseFlock, CltomaFusePosixLock, MatoclFuseFlock, MatoclFusePosixLock, Packet, encode_status};

use super::Request;
use crate::master::core::Core;

impl Request<'_> {
    pub(super) fn flock(&mut self, packet: &CltomaFuseFlock) {
        let CltomaFuseFlock { msgid, inode, reqid, owner, cmd } = *packet;
        let request = LockRequest { session: self.session, owner, msgid, reqid };
        let reply = self.core.namespace.flock(self.core.time, inode, request, cmd);
        self.lock_reply(msgid, reply);
    }

    pub(super) fn posix_lock(&mut self, packet: &CltomaFusePosixLock) {
        let CltomaFusePosixLock { msgid, inode, reqid, owner, pid, cmd, kind, start, end } = *packet;
        let request = LockRequest { session: self.session, owner, msgid, reqid };
        let wanted = RangeWanted { pid, kind, start, end };
        let reply = self.core.namespace.posix_lock(self.core.time, inode, request, cmd, &wanted);
        self.lock_reply(msgid, reply);
    }

    fn lock_reply(&mut self, msgid: u32, reply: LockReply) {
        match reply {
            LockReply::Now(status) => self.status(msgid, status),
            LockReply::Wait => {}
            LockReply::Found(RangeWanted { pid, kind, start, end }) => {
                self.finish(msgid, Ok(MatoclFusePosixLock { msgid, pid, kind, start, end }.encode()));
            }
        }
    }
}

/// Sends the answers of requests that waited and need not any more, to the newest connection of their session.
pub(in crate::master) fn deliver(core: &mut Core) {
    for answer in core.namespace.take_lock_answers() {
        let link = core.clients.values().rev().find(|link| link.session == Some(answer.session) && link.is_mount());
        let Some(outbox) = link.map(|link| link.outbox.clone()) else { continue };
        let kind = if answer.posix { MatoclFusePosixLock::TYPE } else { MatoclFuseFlock::TYPE };
        core.reply(&outbox, encode_status(kind, answer.msgid, answer.status));
    }
}
