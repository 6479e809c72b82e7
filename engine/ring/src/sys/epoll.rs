//! The driver for machines where io_uring is forbidden: epoll for sockets, threads for files.
//!
//! Sockets are non-blocking and registered edge-triggered at their first operation. An operation is tried at once; if
//! it would block it waits in its socket's queue until epoll says that the socket changed, and is tried again. Results
//! are always given at the next `park`, as the ring's are, so that a busy socket cannot keep other tasks from running.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::calls::{self, kernel_result};
use super::offload::Offload;
use super::operation::{Key, Op, Table};
use crate::driver::{Driver, Wait};
use crate::remote::Remote;
use crate::time::{Instant, process_micros};

/// Events taken from the kernel at a time.
const EVENTS_PER_WAIT: usize = 256;

pub(crate) struct Epoll {
    epoll: OwnedFd,
    remote: Arc<Remote>,
    offload: Offload,
    /// Sockets by descriptor.
    sockets: BTreeMap<RawFd, Socket>,
    /// Which socket an operation waits on.
    waiting_on: HashMap<Key, RawFd>,
    /// Finished since the last `park`.
    finished: Vec<(Key, i32)>,
    events: Vec<libc::epoll_event>,
}

#[derive(Default)]
struct Socket {
    /// Operations that wait until it can be read: accept, receive.
    readers: VecDeque<Waiting>,
    /// Operations that wait until it can be written: connect, send.
    writers: VecDeque<Waiting>,
}

struct Waiting {
    key: Key,
    op: Op,
    /// A connect was begun.
    begun: bool,
}

enum Attempt {
    Done(i32),
    WouldBlock,
}

impl Epoll {
    pub(crate) fn new(remote: Arc<Remote>) -> io::Result<Epoll> {
        // SAFETY: a new descriptor, owned by nobody else.
        let epoll = unsafe {
            match libc::epoll_create1(libc::EPOLL_CLOEXEC) {
                -1 => return Err(io::Error::last_os_error()),
                fd => OwnedFd::from_raw_fd(fd),
            }
        };
        let driver = Epoll {
            epoll,
            offload: Offload::new(remote.clone()),
            remote,
            sockets: BTreeMap::new(),
            waiting_on: HashMap::new(),
            finished: Vec::new(),
            events: Vec::with_capacity(EVENTS_PER_WAIT),
        };
        if let Some(doorbell) = driver.remote.doorbell() {
            driver.register(doorbell.fd(), libc::EPOLLIN)?;
        }
        Ok(driver)
    }

    fn register(&self, fd: RawFd, events: i32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events.cast_unsigned(), u64: u64::from(fd.cast_unsigned()) };
        // SAFETY: reads a local.
        match unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    fn submit_to_socket(&mut self, key: Key, fd: RawFd, op: Op) {
        if !self.sockets.contains_key(&fd) {
            let events = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
            if let Err(error) = self.register(fd, events) {
                self.finished.push((key, -error.raw_os_error().unwrap_or(libc::EIO)));
                return;
            }
            self.sockets.insert(fd, Socket::default());
        }
        let mut waiting = Waiting { key, op, begun: false };
        let queue = self.sockets.get_mut(&fd).expect("inserted above").queue(&op);
        // Behind others it waits for its turn.
        let attempt = if queue.is_empty() { waiting.attempt() } else { Attempt::WouldBlock };
        match attempt {
            Attempt::Done(result) => self.finished.push((key, result)),
            Attempt::WouldBlock => {
                queue.push_back(waiting);
                self.waiting_on.insert(key, fd);
            }
        }
    }

    /// Tries again what waits on `fd`.
    fn retry(&mut self, fd: RawFd, events: u32) {
        let broken = (libc::EPOLLERR | libc::EPOLLHUP).cast_unsigned();
        let readable = broken | (libc::EPOLLIN | libc::EPOLLRDHUP).cast_unsigned();
        let writable = broken | libc::EPOLLOUT.cast_unsigned();
        let Some(socket) = self.sockets.get_mut(&fd) else { return };
        for (queue, mask) in [(&mut socket.readers, readable), (&mut socket.writers, writable)] {
            if events & mask == 0 {
                continue;
            }
            while let Some(first) = queue.front_mut() {
                let Attempt::Done(result) = first.attempt() else { break };
                let key = first.key;
                queue.pop_front();
                self.waiting_on.remove(&key);
                self.finished.push((key, result));
            }
        }
    }

    fn wait(&mut self, wait: Wait) {
        let timeout_millis = match wait {
            Wait::Not => 0,
            Wait::Until(None) => -1,
            Wait::Until(Some(deadline)) => {
                let left = deadline - Instant::from_micros(process_micros());
                i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
            }
        };
        let events = self.events.spare_capacity_mut();
        let capacity = i32::try_from(events.len()).expect("a small constant");
        // SAFETY: the kernel writes at most `capacity` events into the vector's spare capacity and says how many.
        let count = unsafe {
            let count = libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr().cast(), capacity, timeout_millis);
            let count = usize::try_from(count).unwrap_or(0); // interrupted: none
            self.events.set_len(count);
            count
        };
        for place in 0..count {
            let event = self.events[place];
            let fd = RawFd::try_from(event.u64).expect("we put a descriptor there");
            match self.remote.doorbell() {
                Some(doorbell) if doorbell.fd() == fd => doorbell.clear(),
                _ => self.retry(fd, event.events),
            }
        }
        self.events.clear();
    }
}

impl Driver for Epoll {
    fn name(&self) -> &'static str {
        "epoll"
    }

    fn submit(&mut self, key: Key, _node: u32, op: Op) {
        match op {
            Op::Accept { socket }
            | Op::Connect { socket, .. }
            | Op::Receive { socket, .. }
            | Op::Send { socket, .. }
            | Op::SendParts { socket, .. }
            | Op::Ready { fd: socket } => self.submit_to_socket(key, socket, op),
            _ => self.offload.operation(key, op),
        }
    }

    fn cancel(&mut self, key: Key) {
        // Without an entry it is done already, or a thread is at it and will finish.
        let Some(fd) = self.waiting_on.remove(&key) else { return };
        let socket = self.sockets.get_mut(&fd).expect("an operation that waits has its socket");
        socket.readers.retain(|waiting| waiting.key != key);
        socket.writers.retain(|waiting| waiting.key != key);
        self.finished.push((key, -libc::ECANCELED));
    }

    fn close(&mut self, fd: RawFd) {
        // Closing takes it out of epoll too.
        self.sockets.remove(&fd);
        calls::close(fd);
    }

    fn forget_socket(&mut self, fd: RawFd) {
        if self.sockets.remove(&fd).is_some() {
            let none = std::ptr::null_mut();
            // SAFETY: numbers only. It fails only if it is not there, which is what we want.
            unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, none) };
        }
    }

    fn park(&mut self, wait: Wait, _table: &RefCell<Table>, finished: &mut Vec<(Key, i32)>) {
        let wait = if self.finished.is_empty() { wait } else { Wait::Not };
        self.wait(wait);
        finished.append(&mut self.finished);
    }

    fn call(&mut self, call: Box<dyn FnOnce() + Send>) {
        self.offload.call(call);
    }

    fn wants_nonblocking_sockets(&self) -> bool {
        true
    }
}

impl Socket {
    fn queue(&mut self, op: &Op) -> &mut VecDeque<Waiting> {
        match op {
            Op::Accept { .. } | Op::Receive { .. } | Op::Ready { .. } => &mut self.readers,
            _ => &mut self.writers,
        }
    }
}

impl Waiting {
    /// Tries the operation.
    fn attempt(&mut self) -> Attempt {
        loop {
            let begun = std::mem::replace(&mut self.begun, true);
            // SAFETY: the operation's slot keeps what the addresses point to until we give its result.
            let result = unsafe {
                match self.op {
                    Op::Accept { socket } => {
                        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
                        i64::from(libc::accept4(socket, std::ptr::null_mut(), std::ptr::null_mut(), flags))
                    }
                    Op::Connect { socket, .. } if begun => match connect_result(socket) {
                        0 => 0,
                        error => return Attempt::Done(-error),
                    },
                    Op::Connect { socket, address, address_bytes, .. } => {
                        i64::from(libc::connect(socket, address, address_bytes))
                    }
                    Op::Receive { socket, into, .. } => {
                        libc::recv(socket, into.start.cast(), into.length as usize, 0) as i64
                    }
                    Op::Send { socket, from } => {
                        libc::send(socket, from.start.cast_const().cast(), from.length as usize, libc::MSG_NOSIGNAL)
                            as i64
                    }
                    Op::SendParts { socket, message } => libc::sendmsg(socket, message, libc::MSG_NOSIGNAL) as i64,
                    Op::Ready { fd } => {
                        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
                        match libc::poll(&raw mut poll, 1, 0) {
                            0 => return Attempt::WouldBlock,
                            result => i64::from(result),
                        }
                    }
                    _ => unreachable!("only operations on sockets wait"),
                }
            };
            match kernel_result(result) {
                error if error == -libc::EAGAIN || error == -libc::EINPROGRESS => return Attempt::WouldBlock,
                error if error == -libc::EINTR => {}
                result => return Attempt::Done(result),
            }
        }
    }
}

/// The errno of a connect that was begun: 0 once it is connected, EAGAIN while it is under way.
fn connect_result(socket: RawFd) -> i32 {
    calls::with_socket(socket, |socket| match socket.take_error() {
        Ok(None) if socket.peer_addr().is_ok() => 0,
        Ok(None) => libc::EAGAIN,
        Ok(Some(error)) | Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    })
}
