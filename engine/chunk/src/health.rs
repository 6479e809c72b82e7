//! How long the operations of one disk take, and whether it hangs.
//!
//! A disk that does not answer must not take the server with it: every request for it would hold a buffer, a place
//! among the requests under way, and a client that could read another copy. So operations are noted while they last. A
//! disk whose oldest operation is old is left alone: requests for it are answered NOTDONE until that operation ends.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use ring::Instant;

/// An operation that takes longer means that the disk hangs.
const HANG_AFTER: Duration = Duration::from_secs(5);
/// So does one that takes this long while so many others wait: they would soon take all that other disks need.
const CROWD_HANG_AFTER: Duration = Duration::from_secs(1);
const CROWD: usize = 64;

#[derive(Default)]
pub(crate) struct Health {
    /// When the operations under way began. Slots are used again, so that none is made once there are enough.
    slots: RefCell<Slots>,
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
    slot: usize,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut slots = self.health.slots.borrow_mut();
        slots.began[self.slot] = None;
        slots.free.push(self.slot);
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
    pub(crate) fn begin(self: &Rc<Self>, now: Instant) -> UnderWay {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.free.pop().unwrap_or_else(|| {
            slots.began.push(None);
            slots.began.len() - 1
        });
        slots.began[slot] = Some(now);
        UnderWay { health: self.clone(), slot }
    }

    pub(crate) fn hangs(&self) -> bool {
        self.hangs.get()
    }

    /// Looks at what is under way. Gives the change, if there is one.
    pub(crate) fn look(&self, now: Instant) -> Option<Change> {
        let slots = self.slots.borrow();
        let count = slots.began.len() - slots.free.len();
        let oldest = slots.began.iter().flatten().min().map_or(Duration::ZERO, |began| now - *began);
        let hangs = oldest >= HANG_AFTER || (count >= CROWD && oldest >= CROWD_HANG_AFTER);
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

    #[test]
    fn a_disk_hangs_while_its_oldest_operation_is_old() {
        let health = Rc::new(Health::default());
        let at = |millis: u64| Instant::from_micros(millis * 1000);
        let first = health.begin(at(0));
        drop(health.begin(at(100)));
        assert_eq!(health.look(at(4900)), None);
        assert_eq!(health.look(at(5000)), Some(Change::Hangs));
        let second = health.begin(at(5001));
        assert_eq!((health.look(at(9000)), health.hangs()), (None, true));
        drop(first);
        assert_eq!((health.look(at(9000)), health.hangs()), (Some(Change::Works), false));
        drop(second);
        assert_eq!(health.slots.borrow().began.len(), 2, "slots are used again");
    }

    #[test]
    fn a_crowd_makes_it_hang_earlier() {
        let health = Rc::new(Health::default());
        let crowd: Vec<UnderWay> = (0..CROWD).map(|_| health.begin(Instant::from_micros(0))).collect();
        assert_eq!(health.look(Instant::from_micros(900_000)), None);
        assert_eq!(health.look(Instant::from_micros(1_000_000)), Some(Change::Hangs));
        drop(crowd);
    }
}
