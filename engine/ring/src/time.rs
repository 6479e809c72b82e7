//! Points in time and sleeping.
//!
//! Time is monotonic and counted in microseconds: on the real drivers since the first ring of this process started,
//! in the simulation since the world began. Deadlines sit in one ordered map per ring; a sleeping ring wakes for the
//! first of them, so an idle connection's time-out costs one map entry and no system call.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::Ring;
use crate::core::Core;

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
    /// Set while the deadline is in the ring's map.
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

/// A deadline, and a number that tells apart those of the same microsecond.
pub(crate) type TimerKey = (Instant, u64);

/// The deadlines of one ring.
#[derive(Default)]
pub(crate) struct Timers {
    entries: BTreeMap<TimerKey, Waker>,
    next_number: u64,
}

impl Timers {
    fn insert(&mut self, deadline: Instant, waker: Waker) -> TimerKey {
        let key = (deadline, self.next_number);
        self.next_number += 1;
        self.entries.insert(key, waker);
        key
    }

    fn set_waker(&mut self, key: TimerKey, waker: &Waker) -> bool {
        match self.entries.get_mut(&key) {
            Some(old) => {
                old.clone_from(waker);
                true
            }
            None => false,
        }
    }

    fn remove(&mut self, key: TimerKey) {
        self.entries.remove(&key);
    }

    /// The first deadline, if there is one.
    pub(crate) fn first(&self) -> Option<Instant> {
        self.entries.first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// Takes out one timer that is due at `now`.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Waker> {
        let entry = self.entries.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }
}

/// Monotonic microseconds since the first call in this process.
pub(crate) fn process_micros() -> u64 {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    let start = START.get_or_init(std::time::Instant::now);
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}
