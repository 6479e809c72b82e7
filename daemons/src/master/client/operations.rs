//! How often each session asked for what, in this hour and in the last one. Spec 70, 4.3.

use std::collections::BTreeMap;

use wire::{
    CltomaFuseCreate, CltomaFuseGetattr, CltomaFuseLink, CltomaFuseLookup, CltomaFuseMkdir, CltomaFuseMknod,
    CltomaFuseOpen, CltomaFuseReadChunk, CltomaFuseReaddir, CltomaFuseReadlink, CltomaFuseRename, CltomaFuseRmdir,
    CltomaFuseSetattr, CltomaFuseStatfs, CltomaFuseSymlink, CltomaFuseUnlink, CltomaFuseWriteChunk, Packet, SessionId,
};

/// Counters of a session.
pub(in crate::master) const COUNT: usize = 16;
/// Places of two counters that CREATE moves, since it is a MKNOD and an OPEN in one.
const MKNOD: usize = 8;
const OPEN: usize = 13;

pub(super) type Counts = [u32; COUNT];

/// The counters of all sessions. They live as long as the master's process.
#[derive(Debug, Default)]
pub(in crate::master) struct Operations {
    sessions: BTreeMap<SessionId, Hours>,
    totals: [u64; COUNT],
}

#[derive(Debug, Default)]
struct Hours {
    present: Counts,
    last: Counts,
}

impl Operations {
    /// One request of this packet type.
    pub(super) fn count(&mut self, session: SessionId, kind: u32) {
        let (first, second) = match kind {
            CltomaFuseCreate::TYPE => (MKNOD, Some(OPEN)),
            kind => match place(kind) {
                Some(place) => (place, None),
                None => return,
            },
        };
        let present = &mut self.sessions.entry(session).or_default().present;
        for at in std::iter::once(first).chain(second) {
            present[at] = present[at].saturating_add(1);
            self.totals[at] += 1;
        }
    }

    /// Of all sessions since the start.
    pub(in crate::master) fn totals(&self) -> &[u64; COUNT] {
        &self.totals
    }

    /// This hour's counters, and the last one's.
    pub(super) fn of(&self, session: SessionId) -> (Counts, Counts) {
        self.sessions.get(&session).map_or(([0; COUNT], [0; COUNT]), |hours| (hours.present, hours.last))
    }

    /// A full hour: what was present is the last one. `lives`: whether there is still such a session.
    pub(in crate::master) fn end_hour(&mut self, lives: impl Fn(SessionId) -> bool) {
        self.sessions.retain(|session, _| lives(*session));
        for hours in self.sessions.values_mut() {
            hours.last = std::mem::take(&mut hours.present);
        }
    }
}

/// The counter of a packet type. Spec 70, 4.3.
fn place(kind: u32) -> Option<usize> {
    Some(match kind {
        CltomaFuseStatfs::TYPE => 0,
        CltomaFuseGetattr::TYPE => 1,
        CltomaFuseSetattr::TYPE => 2,
        CltomaFuseLookup::TYPE => 3,
        CltomaFuseMkdir::TYPE => 4,
        CltomaFuseRmdir::TYPE => 5,
        CltomaFuseSymlink::TYPE => 6,
        CltomaFuseReadlink::TYPE => 7,
        CltomaFuseMknod::TYPE => MKNOD,
        CltomaFuseUnlink::TYPE => 9,
        CltomaFuseRename::TYPE => 10,
        CltomaFuseLink::TYPE => 11,
        CltomaFuseReaddir::TYPE => 12,
        CltomaFuseOpen::TYPE => OPEN,
        CltomaFuseReadChunk::TYPE => 14,
        CltomaFuseWriteChunk::TYPE => 15,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_session_and_hour() {
        let (one, two) = (SessionId(1), SessionId(2));
        let mut operations = Operations::default();
        for kind in [CltomaFuseLookup::TYPE, CltomaFuseLookup::TYPE, CltomaFuseCreate::TYPE, 999] {
            operations.count(one, kind);
        }
        operations.count(two, CltomaFuseWriteChunk::TYPE);
        let mut expected = [0; COUNT];
        (expected[3], expected[MKNOD], expected[OPEN]) = (2, 1, 1);
        assert_eq!(operations.of(one), (expected, [0; COUNT]));
        operations.end_hour(|session| session == one);
        assert_eq!(operations.of(one), ([0; COUNT], expected));
        assert_eq!(operations.of(two), ([0; COUNT], [0; COUNT]), "the session is gone");
        assert_eq!((operations.totals()[3], operations.totals()[15]), (2, 1), "what it did is not");
    }
}
