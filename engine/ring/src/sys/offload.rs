//! Threads for calls that block: file operations of the epoll driver, what an old kernel's ring cannot do, and
//! `run_blocking`.
//!
//! A ring starts them one by one as they are needed, up to a bound. Each takes a job from the common queue, performs
//! it, and hands the result to the ring's [`Remote`], which rings the doorbell if the ring sleeps.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::calls::kernel_result;
use super::operation::{Key, Op};
use crate::remote::Remote;

/// Threads of one ring, started when the others are busy. Enough to keep disks' queues busy, also while one disk hangs
/// and holds some of them.
const THREADS_MAX: usize = 64;

/// The threads of one ring.
pub(crate) struct Offload {
    shared: Arc<Shared>,
    threads: usize,
}

struct Shared {
    remote: Arc<Remote>,
    queue: Mutex<Queue>,
    filled: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
    stopped: bool,
}

enum Job {
    Operation(Key, Op),
    Call(Box<dyn FnOnce() + Send>),
}

impl Offload {
    pub(crate) fn new(remote: Arc<Remote>) -> Offload {
        let shared = Shared { remote, queue: Mutex::default(), filled: Condvar::new() };
        Offload { shared: Arc::new(shared), threads: 0 }
    }

    /// Performs `op` on a thread; its result comes with the ring's finished operations.
    pub(crate) fn operation(&mut self, key: Key, op: Op) {
        self.push(Job::Operation(key, op));
    }

    /// Calls `call` on a thread.
    pub(crate) fn call(&mut self, call: Box<dyn FnOnce() + Send>) {
        self.push(Job::Call(call));
    }

    fn push(&mut self, job: Job) {
        let mut queue = self.shared.lock();
        queue.jobs.push_back(job);
        let starts_thread = queue.jobs.len() > queue.idle && self.threads < THREADS_MAX;
        drop(queue);
        if starts_thread {
            let shared = self.shared.clone();
            let started = std::thread::Builder::new().name("ring-offload".into()).spawn(move || shared.work());
            match started {
                Ok(_) => self.threads += 1,
                // Those that run will get to it. Without any we cannot go on at all.
                Err(error) => assert!(self.threads > 0, "no thread for blocking calls: {error}"),
            }
        }
        self.shared.filled.notify_one();
    }
}

impl Drop for Offload {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.filled.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let mut queue = self.lock();
            let job = loop {
                if let Some(job) = queue.jobs.pop_front() {
                    break job;
                }
                if queue.stopped {
                    return;
                }
                queue.idle += 1;
                queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            };
            drop(queue);
            match job {
                Job::Operation(key, op) => self.remote.finish(key, perform(op)),
                // The caller sees its channel closed; this thread goes on.
                Job::Call(call) => drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(call))),
            }
        }
    }
}

/// Performs a file operation here and now. The result is as the kernel's ring gives it.
pub(super) fn perform(op: Op) -> i32 {
    const HERE: i32 = libc::AT_FDCWD;
    let offset_of = |offset: u64| i64::try_from(offset).unwrap_or(i64::MAX);
    loop {
        // SAFETY: the operation's slot keeps what `op` points to until we give the result (see `operation`).
        let result = unsafe {
            match op {
                Op::Read { file, into, offset, flags } => {
                    let part = libc::iovec { iov_base: into.start.cast(), iov_len: into.length as usize };
                    libc::preadv2(file, &raw const part, 1, offset_of(offset), flags) as i64
                }
                Op::Write { file, from, offset, flags } => {
                    let part = libc::iovec { iov_base: from.start.cast(), iov_len: from.length as usize };
                    libc::pwritev2(file, &raw const part, 1, offset_of(offset), flags) as i64
                }
                Op::Sync { file, data_only: true } => i64::from(libc::fdatasync(file)),
                Op::Sync { file, data_only: false } => i64::from(libc::fsync(file)),
                Op::Open { path, flags, mode } => i64::from(libc::openat(HERE, path, flags, mode)),
                Op::Stat { file, path, out } => {
                    i64::from(libc::statx(file, path, stat_flags(file), super::operation::STAT_MASK, out))
                }
                Op::Rename { from, to } => i64::from(libc::renameat(HERE, from, HERE, to)),
                Op::Remove { path, folder } => {
                    i64::from(libc::unlinkat(HERE, path, if folder { libc::AT_REMOVEDIR } else { 0 }))
                }
                Op::MakeFolder { path, mode } => i64::from(libc::mkdirat(HERE, path, mode)),
                Op::Allocate { file, offset, length } => {
                    i64::from(libc::fallocate64(file, 0, offset_of(offset), offset_of(length)))
                }
                Op::Truncate { file, length } => i64::from(libc::ftruncate64(file, offset_of(length))),
                Op::Accept { .. }
                | Op::Connect { .. }
                | Op::Receive { .. }
                | Op::Send { .. }
                | Op::SendParts { .. }
                | Op::Ready { .. } => return -libc::EOPNOTSUPP,
            }
        };
        match kernel_result(result) {
            result if result == -libc::EINTR => {}
            result => return result,
        }
    }
}

/// Flags of `statx`: of an open file when there is one, of a path otherwise.
pub(super) fn stat_flags(file: i32) -> i32 {
    if file == libc::AT_FDCWD { 0 } else { libc::AT_EMPTY_PATH }
}
