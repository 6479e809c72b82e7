//! The executor: tasks, what is ready, and the loop between tasks and driver.
//!
//! One turn of the loop: poll what is ready; hand all new operations to the driver and wait in one call; note results
//! and due timers, which makes tasks ready again. Nothing here blocks but the driver's one wait.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;

use crate::driver::{Driver, Wait};
use crate::random::Random;
use crate::remote::{Entered, Remote, TaskKey, TaskWaker};
use crate::sim::SharedState;
use crate::sys::arena::Pool;
use crate::sys::calls;
use crate::sys::operation::{Completed, Key, Message, Op, Table};
use crate::time::{Instant, Timers, process_micros};

/// Tasks polled before the driver gets its turn again.
const POLLS_PER_TURN: usize = 256;
/// How long a ring that ends waits for its last operations.
const LAST_OPERATIONS_WAIT: Duration = Duration::from_secs(5);
/// The future given to `run`, which lives on the stack and not in the table.
const MAIN: TaskKey = TaskKey { index: u32::MAX, generation: 0 };

/// One ring: what all handles share.
pub(crate) struct Core {
    pub(crate) remote: Arc<Remote>,
    pub(crate) table: RefCell<Table>,
    pub(crate) timers: RefCell<Timers>,
    pub(crate) pool: Rc<Pool>,
    #[allow(clippy::vec_box, reason = "the kernel gets the address of each")]
    pub(crate) messages: RefCell<Vec<Box<Message>>>,
    /// The world, when this is a simulation.
    pub(crate) sim: Option<SharedState>,
    pub(crate) nonblocking_sockets: bool,
    pub(crate) driver_name: &'static str,
    /// What the ring was made of; not set in the simulation.
    pub(crate) options: OnceCell<crate::Options>,
    driver: RefCell<Box<dyn Driver>>,
    tasks: RefCell<Slab<Task>>,
    next_generation: Cell<u32>,
    closing: RefCell<Vec<RawFd>>,
    finished: RefCell<Vec<(Key, i32)>>,
    random: RefCell<Random>,
    stopped: Cell<bool>,
}

struct Task {
    generation: u32,
    node: u32,
    /// None while it is being polled.
    body: Option<Body>,
}

struct Body {
    future: Pin<Box<dyn Future<Output = ()>>>,
    waker: Waker,
    handle: Arc<TaskWaker>,
}

impl Core {
    pub(crate) fn new(
        driver: Box<dyn Driver>,
        remote: Arc<Remote>,
        pool: Rc<Pool>,
        sim: Option<SharedState>,
    ) -> Rc<Core> {
        Rc::new(Core {
            remote,
            table: RefCell::default(),
            timers: RefCell::default(),
            pool,
            messages: RefCell::default(),
            sim,
            nonblocking_sockets: driver.wants_nonblocking_sockets(),
            driver_name: driver.name(),
            options: OnceCell::new(),
            driver: RefCell::new(driver),
            tasks: RefCell::default(),
            next_generation: Cell::new(1),
            closing: RefCell::default(),
            finished: RefCell::default(),
            random: RefCell::default(),
            stopped: Cell::new(false),
        })
    }

    pub(crate) fn now(&self) -> Instant {
        match &self.sim {
            Some(world) => world.borrow().now(),
            None => Instant::from_micros(process_micros()),
        }
    }

    pub(crate) fn random_u64(&self) -> u64 {
        match &self.sim {
            Some(world) => world.borrow_mut().random_for_tasks(),
            None => self.random.borrow_mut().next(),
        }
    }

    /// Polls `main` and all tasks until `main` ends; then drops the tasks and finishes their operations.
    pub(crate) fn run<F: Future>(&self, main: F) -> F::Output {
        let entered = Entered::new(&self.remote);
        let output = {
            let mut main = std::pin::pin!(main);
            let handle = self.waker_of(MAIN);
            let waker = Waker::from(handle.clone());
            waker.wake_by_ref();
            let mut output = None;
            while output.is_none() {
                self.turn(&entered, None, &mut || {
                    handle.scheduled.store(false, Ordering::Release);
                    if let Poll::Ready(value) = main.as_mut().poll(&mut Context::from_waker(&waker)) {
                        output = Some(value);
                    }
                    output.is_some()
                });
            }
            output.expect("the loop ends with it")
        };
        self.shut_down();
        output
    }

    /// One turn. `limit`: do not wait beyond it. `poll_main` says whether the main future has ended.
    pub(crate) fn turn(&self, entered: &Entered, limit: Option<Instant>, poll_main: &mut dyn FnMut() -> bool) {
        let mut finished = self.finished.take();
        entered.with_ready(|ready| self.remote.collect(ready, &mut finished));
        let mut main_ended = false;
        for _ in 0..POLLS_PER_TURN {
            let Some(task) = self.next_ready(entered) else { break };
            if task != MAIN {
                if self.lives_on(task) {
                    self.poll_task(task);
                }
            } else if poll_main() {
                main_ended = true;
                break;
            }
        }
        self.close_descriptors();

        let is_idle = !main_ended && finished.is_empty() && entered.with_ready(|ready| ready.is_empty());
        let wait = if is_idle && self.remote.fall_asleep() {
            let first_timer = self.timers.borrow().first();
            Wait::Until(first_timer.into_iter().chain(limit).min())
        } else {
            Wait::Not
        };
        self.driver.borrow_mut().park(wait, &self.table, &mut finished);
        self.remote.awake();
        self.drop_tasks_of_failed();

        for (key, result) in finished.drain(..) {
            self.complete(key, result);
        }
        self.finished.replace(finished);
        self.wake_due_timers();
    }

    /// In a simulated world: counts the poll of this task, before which its node may fail. A node that is frozen gets
    /// its polls when it goes on.
    fn lives_on(&self, task: TaskKey) -> bool {
        let Some(world) = &self.sim else { return true };
        let Some(node) = self.with_task(task, |entry| entry.node) else { return true };
        if world.borrow_mut().hold_back(node, task) {
            return false;
        }
        let lives = world.borrow_mut().step(node, &mut self.table.borrow_mut());
        self.drop_tasks_of_failed();
        lives
    }

    fn drop_tasks_of_failed(&self) {
        let Some(world) = &self.sim else { return };
        let failed = world.borrow_mut().take_failed();
        for node in failed {
            self.drop_tasks(Some(node));
        }
    }

    fn next_ready(&self, entered: &Entered) -> Option<TaskKey> {
        entered.with_ready(|ready| match &self.sim {
            // Any order must do: the simulation tries them all.
            Some(world) if ready.len() > 1 => {
                let place = world.borrow_mut().random_below(ready.len() as u64);
                ready.swap_remove_back(usize::try_from(place).expect("below a usize"))
            }
            _ => ready.pop_front(),
        })
    }

    fn wake_due_timers(&self) {
        if self.timers.borrow().first().is_none() {
            return;
        }
        let now = self.now();
        loop {
            let due = self.timers.borrow_mut().take_due(now);
            match due {
                Some(waker) => waker.wake(),
                None => return,
            }
        }
    }

    fn waker_of(&self, task: TaskKey) -> Arc<TaskWaker> {
        Arc::new(TaskWaker { task, remote: self.remote.clone(), scheduled: AtomicBool::new(false) })
    }

    /// Adds a task and makes it ready.
    pub(crate) fn spawn(&self, node: u32, future: Pin<Box<dyn Future<Output = ()>>>) -> TaskKey {
        let generation = self.next_generation.get();
        self.next_generation.set(generation.wrapping_add(1));
        let mut tasks = self.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let index = u32::try_from(entry.key()).expect("fewer than 2^32 tasks");
        let task = TaskKey { index, generation };
        let handle = self.waker_of(task);
        let waker = Waker::from(handle.clone());
        entry.insert(Task { generation, node, body: Some(Body { future, waker: waker.clone(), handle }) });
        drop(tasks);
        if self.stopped.get() {
            self.abort(task);
        } else {
            waker.wake();
        }
        task
    }

    fn poll_task(&self, task: TaskKey) {
        let Some(mut body) = self.with_task(task, |entry| entry.body.take()).flatten() else { return };
        body.handle.scheduled.store(false, Ordering::Release);
        let poll = body.future.as_mut().poll(&mut Context::from_waker(&body.waker));
        match poll {
            Poll::Ready(()) => self.remove_task(task),
            Poll::Pending => {
                let mut body = Some(body);
                self.with_task(task, |entry| entry.body = body.take());
                drop(body); // it was aborted meanwhile
            }
        }
    }

    fn with_task<T>(&self, task: TaskKey, f: impl FnOnce(&mut Task) -> T) -> Option<T> {
        let mut tasks = self.tasks.borrow_mut();
        let entry = tasks.get_mut(task.index as usize)?;
        (entry.generation == task.generation).then(|| f(entry))
    }

    fn remove_task(&self, task: TaskKey) {
        if self.with_task(task, |_| ()).is_some() {
            let removed = self.tasks.borrow_mut().remove(task.index as usize);
            drop(removed); // outside the borrow: its future may spawn or abort in its drop
        }
    }

    /// Drops a task's future. One that is being polled is dropped right after.
    pub(crate) fn abort(&self, task: TaskKey) {
        self.remove_task(task);
    }

    /// Drops all tasks of a node; of every node when it is None.
    pub(crate) fn drop_tasks(&self, node: Option<u32>) {
        loop {
            // One at a time: dropping a task may drop or abort others.
            let mut tasks = self.tasks.borrow_mut();
            let found = tasks.iter().find(|(_, task)| node.is_none_or(|node| task.node == node));
            let Some((index, _)) = found else { return };
            let task = tasks.remove(index);
            drop(tasks);
            drop(task);
        }
    }

    /// Hands an operation to the driver.
    pub(crate) fn submit(&self, node: u32, op: Op) -> Key {
        let key = self.table.borrow_mut().insert(op);
        if self.stopped.get() {
            self.complete(key, -libc::ECANCELED);
        } else {
            self.driver.borrow_mut().submit(key, node, op);
        }
        key
    }

    pub(crate) fn cancel(&self, key: Key) {
        if !self.stopped.get() {
            self.driver.borrow_mut().cancel(key);
        }
    }

    pub(crate) fn call(&self, call: Box<dyn FnOnce() + Send>) {
        self.driver.borrow_mut().call(call);
    }

    pub(crate) fn complete(&self, key: Key, result: i32) {
        let completed = self.table.borrow_mut().complete(key, result);
        match completed {
            Completed::Wake(Some(waker)) => waker.wake(),
            Completed::Wake(None) | Completed::Stale => {}
            Completed::Orphan { kept, close } => {
                drop(kept);
                if let Some(fd) = close {
                    self.close_later(fd);
                }
            }
        }
    }

    /// Closes a descriptor before the driver's next wait.
    pub(crate) fn close_later(&self, fd: RawFd) {
        if self.stopped.get() && self.sim.is_none() {
            calls::close(fd);
        } else {
            self.closing.borrow_mut().push(fd);
        }
    }

    /// A socket leaves this ring.
    pub(crate) fn forget_socket(&self, fd: RawFd) {
        self.driver.borrow_mut().forget_socket(fd);
    }

    fn close_descriptors(&self) {
        loop {
            let Some(fd) = self.closing.borrow_mut().pop() else { return };
            self.driver.borrow_mut().close(fd);
        }
    }

    /// Drops all tasks, then waits until the kernel has let go of all memory.
    fn shut_down(&self) {
        self.drop_tasks(None);
        let deadline = self.now() + LAST_OPERATIONS_WAIT;
        for key in self.table.borrow().keys_under_way() {
            self.driver.borrow_mut().cancel(key);
        }
        let mut finished = Vec::new();
        while self.table.borrow().under_way() > 0 && self.now() < deadline {
            self.close_descriptors();
            let mut ready = std::collections::VecDeque::new();
            self.remote.collect(&mut ready, &mut finished);
            let soon = self.now() + Duration::from_millis(20);
            self.driver.borrow_mut().park(Wait::Until(Some(soon)), &self.table, &mut finished);
            for (key, result) in finished.drain(..) {
                self.complete(key, result);
            }
        }
        self.close_descriptors();
        self.driver.borrow_mut().park(Wait::Not, &self.table, &mut finished);
        self.stopped.set(true);
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let mut table = self.table.borrow_mut();
        if table.under_way() > 0 && self.sim.is_none() {
            tracing::warn!(operations = table.under_way(), "ring ends with operations under way; their memory stays");
            table.leak_orphans();
            std::mem::forget(self.pool.clone());
        }
    }
}
