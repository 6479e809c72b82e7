//! Points in time and sleeping.
//!
//! Time is monotonic and counted in microseconds: on the real drivers since the first ring of this process started,
//! in the simulation since the world began. Deadlines sit in one heap per ring; a sleeping ring wakes for the first of
//! them, so an idle connection's time-out costs one entry and no system call.

use std::future::Future;
use std::ops::{Add, AddAssign, Sub};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::Ring;
use crate::core::Core;
use crate::sys::calls;

/// A point in monotonic time, comparable between all rings of a process (or all nodes of a simulated world).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant {
    micros: u64,
}

impl Instant {
    /// The instant `micros` microseconds after the start.
    pub const fn from_micros(micros: u64) -> Instant {
        Instant { micros }
    }

    /// Microseconds since the start.
    pub const fn as_micros(self) -> u64 {
        self.micros
    }

    /// Time that has passed since then; zero when `self` lies ahead.
    pub fn elapsed(self, ring: &Ring) -> Duration {
        ring.now() - self
    }

    /// Time from `earlier` to `self`; zero when `earlier` is the later one.
    pub fn saturating_duration_since(self, earlier: Instant) -> Duration {
        self - earlier
    }
}

impl Ring {
    /// Minutes since the epoch as a clock on the wall shows them: local time counted as if it were UTC. In the
    /// simulation they are the same.
    pub fn local_minutes(&self) -> u64 {
        let seconds = i64::try_from(self.wall_micros() / 1_000_000).unwrap_or(i64::MAX);
        let ahead = if self.core.sim.is_some() { 0 } else { calls::local_offset_seconds(seconds) };
        u64::try_from(seconds.saturating_add(ahead)).unwrap_or(0) / 60
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, duration: Duration) -> Instant {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Instant { micros: self.micros.saturating_add(micros) }
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;

    fn sub(self, duration: Duration) -> Instant {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Instant { micros: self.micros.saturating_sub(micros) }
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Instant) -> Duration {
        Duration::from_micros(self.micros.saturating_sub(earlier.micros))
    }
}

/// The future did not end in time and was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimedOut;

impl std::fmt::Display for TimedOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("timed out")
    }
}

impl std::error::Error for TimedOut {}

impl From<TimedOut> for std::io::Error {
    fn from(_: TimedOut) -> std::io::Error {
        std::io::Error::from(std::io::ErrorKind::TimedOut)
    }
}

/// Ends at a point in time. Given by [`Ring::sleep`].
pub struct Sleep {
    core: Rc<Core>,
    deadline: Instant,
    /// Set while the deadline is in the ring's heap.
    entry: Option<TimerKey>,
}

impl Sleep {
    pub(crate) fn new(core: Rc<Core>, deadline: Instant) -> Sleep {
        Sleep { core, deadline, entry: None }
    }

    /// When this sleep ends.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.core.now() >= self.deadline {
            if let Some(entry) = self.entry.take() {
                self.core.timers.borrow_mut().remove(entry);
            }
            return Poll::Ready(());
        }
        let mut timers = self.core.timers.borrow_mut();
        let entry = match self.entry {
            Some(entry) if timers.set_waker(entry, context.waker()) => entry,
            _ => timers.insert(self.deadline, context.waker().clone()),
        };
        drop(timers);
        self.entry = Some(entry);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            self.core.timers.borrow_mut().remove(entry);
        }
    }
}

/// A timer's place in the table, and a number that tells it from those that had the place before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimerKey {
    place: u32,
    number: u64,
}

/// The deadlines of one ring: a heap of places in a table, so that setting and taking back a timer allocates nothing
/// once as many were set at a time. Of equal deadlines the one set first is due first.
#[derive(Default)]
pub(crate) struct Timers {
    table: Vec<Timer>,
    free: Vec<u32>,
    heap: Vec<u32>,
    next_number: u64,
}

struct Timer {
    due: (Instant, u64),
    /// Where `heap` has this timer's place. Meaningless while the place is free.
    at: usize,
    /// None: the place is free.
    waker: Option<Waker>,
}

impl Timers {
    fn insert(&mut self, deadline: Instant, waker: Waker) -> TimerKey {
        let number = self.next_number;
        self.next_number += 1;
        let timer = Timer { due: (deadline, number), at: self.heap.len(), waker: Some(waker) };
        let place = match self.free.pop() {
            Some(place) => {
                self.table[place as usize] = timer;
                place
            }
            None => {
                self.table.push(timer);
                u32::try_from(self.table.len() - 1).expect("fewer than 2^32 timers")
            }
        };
        self.heap.push(place);
        self.rise(self.heap.len() - 1);
        TimerKey { place, number }
    }

    fn get(&mut self, key: TimerKey) -> Option<&mut Timer> {
        self.table.get_mut(key.place as usize).filter(|timer| timer.due.1 == key.number && timer.waker.is_some())
    }

    fn set_waker(&mut self, key: TimerKey, waker: &Waker) -> bool {
        match self.get(key).and_then(|timer| timer.waker.as_mut()) {
            Some(old) => {
                old.clone_from(waker);
                true
            }
            None => false,
        }
    }

    fn remove(&mut self, key: TimerKey) {
        if let Some(timer) = self.get(key) {
            let at = timer.at;
            drop(self.take(at));
        }
    }

    /// The first deadline, if there is one.
    pub(crate) fn first(&self) -> Option<Instant> {
        self.heap.first().map(|place| self.table[*place as usize].due.0)
    }

    /// Takes out one timer that is due at `now`.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Waker> {
        if self.first()? <= now { self.take(0) } else { None }
    }

    /// Takes the timer at `at` out of the heap and frees its place.
    fn take(&mut self, at: usize) -> Option<Waker> {
        let place = self.heap.swap_remove(at);
        if at < self.heap.len() {
            self.table[self.heap[at] as usize].at = at;
            let at = self.rise(at);
            self.sink(at);
        }
        self.free.push(place);
        self.table[place as usize].waker.take()
    }

    fn due_at(&self, at: usize) -> (Instant, u64) {
        self.table[self.heap[at] as usize].due
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.heap.swap(one, other);
        self.table[self.heap[one] as usize].at = one;
        self.table[self.heap[other] as usize].at = other;
    }

    fn rise(&mut self, mut at: usize) -> usize {
        while at > 0 && self.due_at(at) < self.due_at((at - 1) / 2) {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
        at
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let children = 2 * at + 1..(2 * at + 3).min(self.heap.len());
            match children.min_by_key(|child| self.due_at(*child)) {
                Some(child) if self.due_at(child) < self.due_at(at) => {
                    self.swap(at, child);
                    at = child;
                }
                _ => return,
            }
        }
    }
}

/// Monotonic microseconds since the first call in this process.
pub(crate) fn process_micros() -> u64 {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    let start = START.get_or_init(std::time::Instant::now);
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn timers_come_due_in_order_whatever_was_taken_back() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state >> 8
        };
        let mut timers = Timers::default();
        let mut model = BTreeMap::new();
        for step in 0..20_000 {
            match random() % 4 {
                0 | 1 => {
                    let deadline = Instant::from_micros(random() % 500);
                    let key = timers.insert(deadline, Waker::noop().clone());
                    model.insert((deadline, key.number), key);
                }
                2 => {
                    let number = random() as usize % model.len().max(1);
                    if let Some(key) = model.values().copied().nth(number) {
                        model.retain(|_, other| *other != key);
                        timers.remove(key);
                        timers.remove(key); // does nothing
                        assert!(!timers.set_waker(key, Waker::noop()), "step {step}");
                    }
                }
                _ => {
                    let first = model.pop_first();
                    assert_eq!(timers.first(), first.map(|((deadline, _), _)| deadline), "step {step}");
                    let due = timers.take_due(Instant::from_micros(500));
                    assert_eq!(due.is_some(), first.is_some(), "step {step}");
                    assert!(first.is_none_or(|(_, key)| timers.get(key).is_none()), "step {step}");
                }
            }
            assert!(timers.take_due(Instant::default()).is_none() || model.pop_first().is_some());
            assert_eq!(timers.heap.len(), model.len());
        }
    }
}
