//! Whether a disk hangs.
//!
//! A disk that does not answer must not take the server with it: every request for it would hold a buffer, a place
//! among the requests under way, and a client that could read another copy. So operations are noted while they last. A
//! disk that has work and ends none of it for some time is left alone: requests for it are answered NOTDONE until
//! something ends. A disk that is merely slow ends one thing after the other and is not meant.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use ring::{Instant, Ring};

/// Nothing ended for so long: the disk hangs.
const HANG_AFTER: Duration = Duration::from_secs(5);
/// So long is enough while so many operations wait: they would soon take all that other disks need.
const CROWD_HANG_AFTER: Duration = Duration::from_secs(1);
const CROWD: usize = 32;
/// So many operations of that age also mean it, whatever else ends: that may come from the system's cache.
const OLD: usize = 16;

#[derive(Default)]
pub(crate) struct Health {
    /// When the operations under way began. Slots are used again, so that none is made once there are enough.
    slots: RefCell<Slots>,
    /// When something ended last.
    ended: Cell<Instant>,
    hangs: Cell<bool>,
}

#[derive(Default)]
struct Slots {
    began: Vec<Option<Instant>>,
    free: Vec<usize>,
}

/// An operation under way.
pub(crate) struct UnderWay {
    health: Rc<Health>,
    ring: Ring,
    slot: usize,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut slots = self.health.slots.borrow_mut();
        slots.began[self.slot] = None;
        slots.free.push(self.slot);
        self.health.ended.set(self.ring.now());
    }
}

/// A disk began to hang, or works again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Hangs,
    Works,
}

impl Health {
    /// Notes that an operation begins; it ends when what this gives is dropped.
    pub(crate) fn begin(self: &Rc<Self>, ring: &Ring) -> UnderWay {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.free.pop().unwrap_or_else(|| {
            slots.began.push(None);
            slots.began.len() - 1
        });
        slots.began[slot] = Some(ring.now());
        UnderWay { health: self.clone(), ring: ring.clone(), slot }
    }

    pub(crate) fn hangs(&self) -> bool {
        self.hangs.get()
    }

    /// Looks at what is under way. Gives the change, if there is one.
    pub(crate) fn look(&self, now: Instant) -> Option<Change> {
        let slots = self.slots.borrow();
        let began = || slots.began.iter().flatten();
        let hangs = began().min().is_some_and(|oldest| {
            let quiet = now - (*oldest).max(self.ended.get());
            let old = began().filter(|began| now - **began >= HANG_AFTER).count();
            let is_crowded = began().count() >= CROWD;
            quiet >= HANG_AFTER || (is_crowded && quiet >= CROWD_HANG_AFTER) || old >= OLD
        });
        match (self.hangs.replace(hangs), hangs) {
            (false, true) => Some(Change::Hangs),
            (true, false) => Some(Change::Works),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::sim::{Settings, World};

    /// Calls `check` with a ring whose clock it may let run.
    fn in_time<Fut: Future<Output = ()> + 'static>(check: impl FnOnce(Ring) -> Fut) {
        let world = World::new(1, Settings::default());
        let node = world.node([10, 0, 0, 1].into());
        world.run(node, check).expect("it ends");
    }

    #[test]
    fn a_disk_hangs_when_it_has_work_and_ends_none_of_it() {
        in_time(|ring| async move {
            let health = Rc::new(Health::default());
            ring.sleep(Duration::from_secs(100)).await;
            let first = health.begin(&ring);
            ring.sleep(Duration::from_secs(4)).await;
            assert_eq!(health.look(ring.now()), None);
            drop(health.begin(&ring));
            ring.sleep(Duration::from_secs(4)).await;
            assert_eq!(health.look(ring.now()), None, "something ended four seconds ago");
            ring.sleep(Duration::from_secs(1)).await;
            assert_eq!((health.look(ring.now()), health.hangs()), (Some(Change::Hangs), true));
            let second = health.begin(&ring);
            ring.sleep(Duration::from_secs(9)).await;
            assert_eq!((health.look(ring.now()), health.hangs()), (None, true));
            drop((first, second));
            assert_eq!((health.look(ring.now()), health.hangs()), (Some(Change::Works), false));
            assert_eq!(health.slots.borrow().began.len(), 2, "slots are used again");
            ring.sleep(Duration::from_secs(100)).await;
            assert_eq!(health.look(ring.now()), None, "a disk without work does not hang");
        });
    }

    #[test]
    fn a_crowd_makes_it_hang_earlier_and_many_old_ones_always() {
        in_time(|ring| async move {
            let health = Rc::new(Health::default());
            let mut crowd: Vec<UnderWay> = (0..CROWD).map(|_| health.begin(&ring)).collect();
            ring.sleep(Duration::from_millis(900)).await;
            assert_eq!(health.look(ring.now()), None);
            ring.sleep(Duration::from_millis(100)).await;
            assert_eq!(health.look(ring.now()), Some(Change::Hangs));
            ring.sleep(Duration::from_secs(5)).await;
            crowd.truncate(OLD);
            assert_eq!(health.look(ring.now()), None, "those left are too old");
            crowd.pop();
            assert_eq!(health.look(ring.now()), Some(Change::Works));
        });
    }
}
