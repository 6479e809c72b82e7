//! What other threads may touch of a ring: the list of tasks to wake, the list of finished calls, the doorbell.
//!
//! A ring announces that it is about to sleep, looks at both lists once more, and only then sleeps; who adds to a list
//! looks at the announcement afterwards and rings if it is there. So a wake-up is never lost, and costs a system call
//! only when the ring sleeps.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Wake;

use crate::sys::calls::Doorbell;
use crate::sys::operation::Key;

/// A task: place in the ring's table and generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TaskKey {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

pub(crate) struct Remote {
    id: u64,
    woken: Mutex<Vec<TaskKey>>,
    finished: Mutex<Vec<(Key, i32)>>,
    /// Set when either list may have something. Saves the locks in the common case.
    filled: AtomicBool,
    sleeping: AtomicBool,
    /// None in the simulation, which never sleeps.
    doorbell: Option<Doorbell>,
}

impl Remote {
    pub(crate) fn new(doorbell: Option<Doorbell>) -> Arc<Remote> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Arc::new(Remote {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            woken: Mutex::default(),
            finished: Mutex::default(),
            filled: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            doorbell,
        })
    }

    pub(crate) fn doorbell(&self) -> Option<&Doorbell> {
        self.doorbell.as_ref()
    }

    /// From any thread: the result of a call that was performed elsewhere.
    pub(crate) fn finish(&self, key: Key, result: i32) {
        lock(&self.finished).push((key, result));
        self.announce();
    }

    fn wake(&self, task: TaskKey) {
        let here = HERE.with(|here| {
            let is_here = here.ring_id.get() == self.id;
            if is_here {
                here.ready.borrow_mut().push_back(task);
            }
            is_here
        });
        if !here {
            lock(&self.woken).push(task);
            self.announce();
        }
    }

    fn announce(&self) {
        self.filled.store(true, Ordering::SeqCst);
        if self.sleeping.swap(false, Ordering::SeqCst)
            && let Some(doorbell) = &self.doorbell
        {
            doorbell.ring();
        }
    }

    /// Moves what other threads left into the ring's own lists.
    pub(crate) fn collect(&self, ready: &mut VecDeque<TaskKey>, finished: &mut Vec<(Key, i32)>) {
        if self.filled.swap(false, Ordering::SeqCst) {
            ready.extend(lock(&self.woken).drain(..));
            finished.append(&mut lock(&self.finished));
        }
    }

    /// Announces that the ring sleeps. False: there is something to do, do not sleep.
    pub(crate) fn fall_asleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        let may_sleep = !self.filled.load(Ordering::SeqCst);
        if !may_sleep {
            self.awake();
        }
        may_sleep
    }

    pub(crate) fn awake(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wakes one task, from any thread.
pub(crate) struct TaskWaker {
    pub(crate) task: TaskKey,
    pub(crate) remote: Arc<Remote>,
    /// The task is in a list already.
    pub(crate) scheduled: AtomicBool,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.scheduled.swap(true, Ordering::AcqRel) {
            self.remote.wake(self.task);
        }
    }
}

thread_local! {
    static HERE: Here = const { Here { ring_id: Cell::new(0), ready: RefCell::new(VecDeque::new()) } };
}

/// The ring that runs on this thread now, and its tasks that are ready.
struct Here {
    ring_id: Cell<u64>,
    ready: RefCell<VecDeque<TaskKey>>,
}

/// While it lives, wakes on this thread go straight to the ring's own list.
pub(crate) struct Entered {
    outer_id: u64,
    outer_ready: VecDeque<TaskKey>,
}

impl Entered {
    pub(crate) fn new(remote: &Remote) -> Entered {
        HERE.with(|here| Entered {
            outer_id: here.ring_id.replace(remote.id),
            outer_ready: std::mem::take(&mut *here.ready.borrow_mut()),
        })
    }

    /// The ready tasks of the ring that was entered.
    pub(crate) fn with_ready<T>(&self, f: impl FnOnce(&mut VecDeque<TaskKey>) -> T) -> T {
        HERE.with(|here| f(&mut here.ready.borrow_mut()))
    }

    /// Leaves: gives back the list of tasks that are still ready.
    pub(crate) fn leave(self) -> VecDeque<TaskKey> {
        HERE.with(|here| std::mem::take(&mut *here.ready.borrow_mut()))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        HERE.with(|here| {
            here.ring_id.set(self.outer_id);
            *here.ready.borrow_mut() = std::mem::take(&mut self.outer_ready);
        });
    }
}
