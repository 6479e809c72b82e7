//! Whether a disk hangs.
//!
//! A disk that does not answer must not take the server with it: every request for it would hold a buffer, a place
//! among the requests under way, and a client that could read another copy. So operations are noted while they last. A
//! disk that has work and ends none of it for some time is left alone: requests for it are answered NOTDONE until
//! something ends. A disk that is merely slow ends one thing after the other and is not meant.
//!
//! Each core notes its own operations, and takes no lock for that. The first core puts together what all have under way
//! and judges: a disk that answers one core does not hang for another, and a change is said once.

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
}

/// What is under way on a disk, of one core or of all.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// When the oldest operation began.
    oldest: Option<Instant>,
    /// When something ended last.
    ended: Instant,
    operations: usize,
    /// Those that began `HANG_AFTER` ago or earlier.
    old: usize,
}

impl Load {
    /// Both.
    pub(crate) fn and(self, other: Load) -> Load {
        Load {
            oldest: self.oldest.into_iter().chain(other.oldest).min(),
            ended: self.ended.max(other.ended),
            operations: self.operations + other.operations,
            old: self.old + other.old,
        }
    }

    /// Does a disk with this load hang? Pure.
    pub(crate) fn hangs(self, now: Instant) -> bool {
        let Some(oldest) = self.oldest else { return false };
        let quiet = now.saturating_duration_since(oldest.max(self.ended));
        let is_crowded = self.operations >= CROWD;
        quiet >= HANG_AFTER || (is_crowded && quiet >= CROWD_HANG_AFTER) || self.old >= OLD
    }
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

    /// What this core has under way.
    pub(crate) fn load(&self, now: Instant) -> Load {
        let slots = self.slots.borrow();
        let began = || slots.began.iter().flatten();
        Load {
            oldest: began().min().copied(),
            ended: self.ended.get(),
            operations: began().count(),
            old: began().filter(|began| now.saturating_duration_since(**began) >= HANG_AFTER).count(),
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
            let hangs = || health.load(ring.now()).hangs(ring.now());
            ring.sleep(Duration::from_secs(100)).await;
            let first = health.begin(&ring);
            ring.sleep(Duration::from_secs(4)).await;
            assert!(!hangs());
            drop(health.begin(&ring));
            ring.sleep(Duration::from_secs(4)).await;
            assert!(!hangs(), "something ended four seconds ago");
            ring.sleep(Duration::from_secs(1)).await;
            assert!(hangs());
            let second = health.begin(&ring);
            ring.sleep(Duration::from_secs(9)).await;
            assert!(hangs());
            drop((first, second));
            assert!(!hangs());
            assert_eq!(health.slots.borrow().began.len(), 2, "slots are used again");
            ring.sleep(Duration::from_secs(100)).await;
            assert!(!hangs(), "a disk without work does not hang");
        });
    }

    #[test]
    fn a_crowd_makes_it_hang_earlier_and_many_old_ones_always() {
        in_time(|ring| async move {
            let health = Rc::new(Health::default());
            let hangs = || health.load(ring.now()).hangs(ring.now());
            let mut crowd: Vec<UnderWay> = (0..CROWD).map(|_| health.begin(&ring)).collect();
            ring.sleep(Duration::from_millis(900)).await;
            assert!(!hangs());
            ring.sleep(Duration::from_millis(100)).await;
            assert!(hangs());
            ring.sleep(Duration::from_secs(5)).await;
            crowd.truncate(OLD);
            assert!(hangs(), "those left are too old");
            crowd.pop();
            assert!(!hangs());
        });
    }

    #[test]
    fn what_all_cores_have_under_way_decides() {
        in_time(|ring| async move {
            let cores = [Rc::new(Health::default()), Rc::new(Health::default())];
            let hangs = || {
                let load = cores.iter().map(|core| core.load(ring.now())).fold(Load::default(), Load::and);
                load.hangs(ring.now())
            };
            ring.sleep(Duration::from_secs(100)).await;
            let stuck: Vec<UnderWay> = (0..CROWD).map(|at| cores[at % 2].begin(&ring)).collect();
            ring.sleep(Duration::from_secs(1)).await;
            assert!(hangs(), "a crowd, half of it on each core");
            drop(cores[1].begin(&ring));
            assert!(!hangs(), "the disk answered one core");
            ring.sleep(Duration::from_secs(4)).await;
            assert!(hangs());
            drop(stuck);
            assert!(!hangs());
        });
    }
}
