//! What many nodes have in common: user, group and trash time, kept once and counted.
//!
//! A cluster has few such triples and many nodes, so a node holds the handle of one. A triple that the last node lets
//! go of is forgotten: however often nodes change hands, there are never more of them than nodes.

use std::collections::BTreeMap;

use crate::arena::{Arena, Memory};

/// Whose a node is, and how long it stays in the trash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ownership {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) trash_hours: u16,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    ownership: Ownership,
    /// Nodes that hold it.
    nodes: u32,
}

#[derive(Debug)]
pub(crate) struct Owners {
    records: Arena<Counted>,
    handles: BTreeMap<Ownership, u32>,
    /// The one that was taken last: nodes come in runs.
    last: u32,
}

impl Owners {
    pub(crate) fn new() -> Owners {
        Owners { records: Arena::new(), handles: BTreeMap::new(), last: 0 }
    }

    /// A handle for one more node.
    pub(crate) fn take(&mut self, ownership: Ownership) -> u32 {
        let last = self.records.get(self.last);
        let handle = match last.nodes != 0 && last.ownership == ownership {
            true => self.last,
            false => {
                let records = &mut self.records;
                let insert = || records.insert(Counted { ownership, nodes: 0 });
                *self.handles.entry(ownership).or_insert_with(insert)
            }
        };
        self.last = handle;
        self.records.get_mut(handle).nodes += 1;
        handle
    }

    /// A node lets go of it.
    pub(crate) fn drop(&mut self, handle: u32) {
        let record = self.records.get_mut(handle);
        record.nodes -= 1;
        if record.nodes == 0 {
            let removed = self.records.remove(handle);
            self.handles.remove(&removed.ownership);
        }
    }

    #[inline]
    pub(crate) fn get(&self, handle: u32) -> Ownership {
        self.records.get(handle).ownership
    }

    pub(crate) fn memory(&self) -> Memory {
        self.records.memory()
    }

    /// The same records for a reader elsewhere; it cannot take new ones.
    pub(crate) fn freeze(&mut self) -> Owners {
        Owners { records: self.records.freeze(), handles: BTreeMap::new(), last: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_triple_lives_as_long_as_a_node_holds_it() {
        let mut owners = Owners::new();
        let of = |uid: u32, trash_hours: u16| Ownership { uid, gid: 7, trash_hours };
        let first = owners.take(of(1, 24));
        assert_eq!(owners.take(of(1, 24)), first);
        let second = owners.take(of(1, 25));
        assert_ne!(first, second);
        assert_eq!((owners.get(first), owners.get(second)), (of(1, 24), of(1, 25)));
        owners.drop(first);
        assert_eq!(owners.take(of(1, 24)), first, "one node still holds it");
        owners.drop(second);
        assert_eq!((owners.records.live(), owners.handles.len()), (1, 1));
        for uid in 0..10_000 {
            let handle = owners.take(of(uid, 24));
            owners.drop(handle);
        }
        assert_eq!((owners.records.live(), owners.handles.len()), (1, 1));
        assert_eq!(owners.records.end(), 3, "handles are used again");
    }
}
