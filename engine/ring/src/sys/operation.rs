//! Operations under way: what the kernel was asked, who waits for it, and who owns the memory meanwhile.
//!
//! Life of an operation:
//!
//! ```text
//! InFlight::start -> slot Waiting, driver told     kept by the future: buffer, path, descriptor
//!   completion    -> slot Done, future woken
//!   future polled -> slot freed, kept given back
//! dropped early   -> slot Orphaned, kept moves into the slot, driver told to cancel
//!   completion    -> slot freed, kept dropped, a descriptor that was opened for nobody is closed
//! ```
//!
//! A key carries a generation, so that a late completion never reaches a slot that was reused.

use std::any::Any;
use std::cell::Cell;
use std::ffi::CStr;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::buffer::{IoBuf, IoBufMut};
use super::gather::{Gather, PARTS_MAX};
use crate::core::Core;

/// One operation is at most this long; longer ones are cut and continued by the caller. The kernel's own limit.
const OPERATION_BYTES_MAX: usize = 0x7fff_f000;

/// What `statx` is asked for: the basic fields, and the alignment of direct IO (STATX_DIOALIGN, Linux 6.1).
pub(crate) const STAT_MASK: u32 = libc::STATX_BASIC_STATS | 0x2000;

/// Generation (upper half) and index (lower half) of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key(pub(crate) u64);

impl Key {
    fn new(index: u32, generation: u32) -> Key {
        Key(u64::from(generation) << 32 | u64::from(index))
    }

    fn index(self) -> usize {
        (self.0 & 0xffff_ffff) as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Memory lent to an operation: valid while the operation's slot is not finished.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(super) start: *mut u8,
    pub(super) length: u32,
}

impl Memory {
    fn to_read(bytes: &[u8]) -> Memory {
        let length = bytes.len().min(OPERATION_BYTES_MAX);
        Memory { start: bytes.as_ptr().cast_mut(), length: u32::try_from(length).expect("at most 2 GiB") }
    }

    fn to_write(bytes: &mut [u8]) -> Memory {
        let length = bytes.len().min(OPERATION_BYTES_MAX);
        Memory { start: bytes.as_mut_ptr(), length: u32::try_from(length).expect("at most 2 GiB") }
    }
}

/// What the kernel is asked to do. Plain numbers and addresses; what they point to is kept by the future or its slot.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Op {
    Accept {
        socket: RawFd,
    },
    Connect {
        socket: RawFd,
        to: SocketAddr,
        address: *const libc::sockaddr,
        address_bytes: libc::socklen_t,
    },
    Receive {
        socket: RawFd,
        into: Memory,
        whole: bool,
    },
    Send {
        socket: RawFd,
        from: Memory,
    },
    /// All parts of a message, in order.
    SendParts {
        socket: RawFd,
        message: *const libc::msghdr,
    },
    /// `flags`: RWF_..., as preadv2(2).
    Read {
        file: RawFd,
        into: Memory,
        offset: u64,
        flags: i32,
    },
    Write {
        file: RawFd,
        from: Memory,
        offset: u64,
        flags: i32,
    },
    Sync {
        file: RawFd,
        data_only: bool,
    },
    Open {
        path: *const libc::c_char,
        flags: i32,
        mode: u32,
    },
    Stat {
        file: RawFd,
        path: *const libc::c_char,
        out: *mut libc::statx,
    },
    Rename {
        from: *const libc::c_char,
        to: *const libc::c_char,
    },
    Remove {
        path: *const libc::c_char,
        folder: bool,
    },
    MakeFolder {
        path: *const libc::c_char,
        mode: u32,
    },
    Allocate {
        file: RawFd,
        offset: u64,
        length: u64,
    },
    Truncate {
        file: RawFd,
        length: u64,
    },
    Ready {
        fd: RawFd,
    },
}

// SAFETY: an Op is numbers; those who follow its addresses (kernel, offload threads) do so while the slot keeps what
// they point to, and nobody else touches that memory meanwhile.
unsafe impl Send for Op {}

impl Op {
    /// Whether a result >= 0 is a new descriptor.
    fn opens(&self) -> bool {
        matches!(self, Op::Accept { .. } | Op::Open { .. })
    }
}

/// An operation with its memory as slices, for the simulated driver, which does the work itself.
pub(crate) enum Request<'a> {
    Accept { socket: RawFd },
    Connect { socket: RawFd, to: SocketAddr },
    Receive { socket: RawFd, into: &'a mut [u8] },
    Send { socket: RawFd, parts: Parts<'a> },
    Read { file: RawFd, into: &'a mut [u8], offset: u64 },
    Write { file: RawFd, from: &'a [u8], offset: u64 },
    Sync { file: RawFd },
    Open { path: &'a CStr, flags: i32 },
    Stat { file: RawFd, path: &'a CStr, out: &'a mut libc::statx },
    Rename { from: &'a CStr, to: &'a CStr },
    Remove { path: &'a CStr, folder: bool },
    MakeFolder { path: &'a CStr },
    Allocate { file: RawFd, offset: u64, length: u64 },
    Truncate { file: RawFd, length: u64 },
    Ready,
}

impl Request<'_> {
    /// Whether it is one for a disk, and not for the network.
    pub(crate) fn is_on_disk(&self) -> bool {
        !matches!(
            self,
            Request::Accept { .. }
                | Request::Connect { .. }
                | Request::Receive { .. }
                | Request::Send { .. }
                | Request::Ready
        )
    }
}

/// What is to be sent, for the simulated driver.
#[derive(Clone, Copy)]
pub(crate) enum Parts<'a> {
    One(&'a [u8]),
    Many(&'a [io::IoSlice<'a>]),
}

impl<'a> Parts<'a> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let (one, many) = match *self {
            Parts::One(bytes) => (Some(bytes), &[][..]),
            Parts::Many(parts) => (None, parts),
        };
        one.into_iter().chain(many.iter().map(|part| &**part))
    }
}

/// The operations under way on one ring.
#[derive(Default)]
pub(crate) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Operations that the driver has not finished.
    under_way: usize,
}

struct Slot {
    generation: u32,
    op: Op,
    state: State,
}

enum State {
    Free,
    Waiting(Option<Waker>),
    Done(i32),
    Orphaned(Option<Box<dyn Any>>),
}

/// What is to be done after a completion, outside the table's borrow.
pub(crate) enum Completed {
    Wake(Option<Waker>),
    /// Drop what was kept; close this descriptor, which nobody waits for any more.
    Orphan {
        kept: Option<Box<dyn Any>>,
        close: Option<RawFd>,
    },
    /// The slot is not this operation's any more.
    Stale,
}

impl Table {
    pub(crate) fn insert(&mut self, op: Op) -> Key {
        self.under_way += 1;
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.op = op;
            slot.state = State::Waiting(None);
            return Key::new(index, slot.generation);
        }
        let index = u32::try_from(self.slots.len()).expect("fewer than 2^32 operations at a time");
        self.slots.push(Slot { generation: 1, op, state: State::Waiting(None) });
        Key::new(index, 1)
    }

    /// Operations that the driver has not finished.
    pub(crate) fn under_way(&self) -> usize {
        self.under_way
    }

    /// Keys of the operations that the driver has not finished.
    pub(crate) fn keys_under_way(&self) -> Vec<Key> {
        let unfinished = |slot: &Slot| matches!(slot.state, State::Waiting(_) | State::Orphaned(_));
        (0u32..)
            .zip(&self.slots)
            .filter(|(_, slot)| unfinished(slot))
            .map(|(index, slot)| Key::new(index, slot.generation))
            .collect()
    }

    /// Notes the result of `key`.
    pub(crate) fn complete(&mut self, key: Key, result: i32) -> Completed {
        let Some(slot) = self.slots.get_mut(key.index()).filter(|slot| slot.generation == key.generation()) else {
            return Completed::Stale;
        };
        match &mut slot.state {
            State::Waiting(waker) => {
                let waker = waker.take();
                slot.state = State::Done(result);
                self.under_way -= 1;
                Completed::Wake(waker)
            }
            State::Orphaned(kept) => {
                let kept = kept.take();
                let close = (slot.op.opens() && result >= 0).then_some(result);
                self.under_way -= 1;
                self.release(key);
                Completed::Orphan { kept, close }
            }
            State::Free | State::Done(_) => Completed::Stale,
        }
    }

    /// The result of `key`, whose slot is then free; or None, and `waker` will be woken.
    fn take_result(&mut self, key: Key, waker: &Waker) -> Option<i32> {
        let slot = &mut self.slots[key.index()];
        assert_eq!(slot.generation, key.generation(), "a future keeps its slot");
        match &mut slot.state {
            State::Done(result) => {
                let result = *result;
                self.release(key);
                Some(result)
            }
            State::Waiting(Some(old)) => {
                old.clone_from(waker);
                None
            }
            State::Waiting(empty) => {
                *empty = Some(waker.clone());
                None
            }
            State::Free | State::Orphaned(_) => unreachable!("a future's slot is waiting or done"),
        }
    }

    /// The future of `key` goes away. Gives back `kept` when the operation is over, with a descriptor to close.
    /// Otherwise the slot keeps it until then.
    fn abandon(&mut self, key: Key, kept: Box<dyn Any>) -> Abandoned {
        let slot = &mut self.slots[key.index()];
        assert_eq!(slot.generation, key.generation(), "a future keeps its slot");
        match slot.state {
            State::Done(result) => {
                let close = (slot.op.opens() && result >= 0).then_some(result);
                self.release(key);
                Abandoned::Over { kept, close }
            }
            _ => {
                slot.state = State::Orphaned(Some(kept));
                Abandoned::Cancel
            }
        }
    }

    fn release(&mut self, key: Key) {
        let slot = &mut self.slots[key.index()];
        slot.generation = slot.generation.wrapping_add(1) & 0x7fff_ffff;
        slot.state = State::Free;
        self.free.push(u32::try_from(key.index()).expect("made from a u32"));
    }

    /// The operation of `key` while it is under way.
    pub(crate) fn request(&mut self, key: Key) -> Option<Request<'_>> {
        let slot = self.slots.get_mut(key.index()).filter(|slot| slot.generation == key.generation())?;
        if !matches!(slot.state, State::Waiting(_) | State::Orphaned(_)) {
            return None;
        }
        // SAFETY: the operation is under way, so its future or this slot keeps all that the Op points to; the borrow
        // of the table keeps it from being finished. Memory to write to came from a `&mut` of the buffer.
        Some(unsafe {
            let read = |memory: Memory| std::slice::from_raw_parts(memory.start, memory.length as usize);
            let write = |memory: Memory| std::slice::from_raw_parts_mut(memory.start, memory.length as usize);
            match slot.op {
                Op::Accept { socket } => Request::Accept { socket },
                Op::Connect { socket, to, .. } => Request::Connect { socket, to },
                Op::Receive { socket, into, .. } => Request::Receive { socket, into: write(into) },
                Op::Send { socket, from } => Request::Send { socket, parts: Parts::One(read(from)) },
                Op::SendParts { socket, message } => {
                    // An IoSlice has the layout of an iovec.
                    let first = (*message).msg_iov.cast::<io::IoSlice<'_>>().cast_const();
                    let parts = std::slice::from_raw_parts(first, (*message).msg_iovlen);
                    Request::Send { socket, parts: Parts::Many(parts) }
                }
                Op::Read { file, into, offset, .. } => Request::Read { file, into: write(into), offset },
                Op::Write { file, from, offset, .. } => Request::Write { file, from: read(from), offset },
                Op::Sync { file, .. } => Request::Sync { file },
                Op::Open { path, flags, .. } => Request::Open { path: CStr::from_ptr(path), flags },
                Op::Stat { file, path, out } => Request::Stat { file, path: CStr::from_ptr(path), out: &mut *out },
                Op::Rename { from, to } => Request::Rename { from: CStr::from_ptr(from), to: CStr::from_ptr(to) },
                Op::Remove { path, folder } => Request::Remove { path: CStr::from_ptr(path), folder },
                Op::MakeFolder { path, .. } => Request::MakeFolder { path: CStr::from_ptr(path) },
                Op::Allocate { file, offset, length } => Request::Allocate { file, offset, length },
                Op::Truncate { file, length } => Request::Truncate { file, length },
                Op::Ready { .. } => Request::Ready,
            }
        })
    }

    /// What unfinished operations keep, for a driver that no longer touches it.
    pub(crate) fn take_orphans(&mut self) -> Vec<Box<dyn Any>> {
        let orphans = self.slots.iter_mut().filter_map(|slot| match &mut slot.state {
            State::Orphaned(kept) => kept.take(),
            _ => None,
        });
        orphans.collect()
    }

    /// Gives up what unfinished operations keep, without freeing it: the kernel may still write there.
    pub(crate) fn leak_orphans(&mut self) {
        for slot in &mut self.slots {
            if let State::Orphaned(kept) = &mut slot.state {
                std::mem::forget(kept.take());
            }
        }
    }
}

enum Abandoned {
    Over { kept: Box<dyn Any>, close: Option<RawFd> },
    Cancel,
}

/// An operation that was handed to the driver. Ends with its result and what was kept for it.
pub(crate) struct InFlight<K: 'static> {
    core: Rc<Core>,
    key: Key,
    /// Present until the end.
    kept: Option<K>,
}

// Nothing is ever pinned to our fields.
impl<K> Unpin for InFlight<K> {}

impl<K: 'static> InFlight<K> {
    /// Hands `op` to the driver.
    ///
    /// # Safety
    /// `kept` owns everything that `op` points to, at addresses that do not change when `kept` is moved, and nobody
    /// else writes to it (nor reads what the operation writes to) until the future gives `kept` back.
    unsafe fn start(core: Rc<Core>, node: u32, op: Op, kept: K) -> InFlight<K> {
        let key = core.submit(node, op);
        InFlight { core, key, kept: Some(kept) }
    }
}

impl<K: 'static> Future for InFlight<K> {
    type Output = (io::Result<u32>, K);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(self.kept.is_some(), "polled after its end");
        let result = self.core.table.borrow_mut().take_result(self.key, context.waker());
        match result {
            Some(result) => {
                let kept = self.kept.take().expect("asserted above");
                let result = u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
                Poll::Ready((result, kept))
            }
            None => Poll::Pending,
        }
    }
}

impl<K: 'static> Drop for InFlight<K> {
    fn drop(&mut self) {
        let Some(kept) = self.kept.take() else { return };
        let abandoned = self.core.table.borrow_mut().abandon(self.key, Box::new(kept));
        match abandoned {
            Abandoned::Over { kept, close } => {
                drop(kept);
                if let Some(fd) = close {
                    self.core.close_later(fd);
                }
            }
            Abandoned::Cancel => self.core.cancel(self.key),
        }
    }
}

/// A descriptor of the driver: a file or a socket. Closed when the last handle and the last operation on it are gone,
/// so that its number cannot be reused under an operation that was not submitted yet.
pub(crate) struct Descriptor {
    pub(crate) core: Rc<Core>,
    pub(crate) node: u32,
    pub(crate) fd: RawFd,
    /// Of every read and write: RWF_..., as preadv2(2).
    pub(crate) rw_flags: Cell<i32>,
}

impl Descriptor {
    /// Gives up the descriptor without closing it. No operation is under way on it: each would hold a handle.
    pub(crate) fn into_fd(mut self) -> RawFd {
        self.core.forget_socket(self.fd);
        std::mem::replace(&mut self.fd, -1)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if self.fd >= 0 {
            self.core.close_later(self.fd);
        }
    }
}

/// The structures of a SENDMSG of some parts; recycled by the ring or by a [`super::gather::Gather`].
pub(crate) struct Message {
    header: libc::msghdr,
    parts: [libc::iovec; PARTS_MAX],
}

impl Message {
    pub(crate) fn new() -> Box<Message> {
        // SAFETY: zeros are a valid, empty msghdr and iovec.
        unsafe { Box::new(std::mem::zeroed()) }
    }

    /// Points to `parts` without their first `skip` bytes; at most `PARTS_MAX`. The Box's address is what the kernel
    /// gets.
    pub(super) fn set<'a>(
        self: &mut Box<Self>,
        parts: impl Iterator<Item = &'a [u8]>,
        mut skip: usize,
    ) -> *const libc::msghdr {
        let mut count = 0;
        for bytes in parts {
            let skipped = skip.min(bytes.len());
            skip -= skipped;
            let rest = &bytes[skipped..];
            if !rest.is_empty() {
                self.parts[count] = libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
                count += 1;
            }
        }
        self.header.msg_iov = self.parts.as_mut_ptr();
        self.header.msg_iovlen = count;
        &raw const self.header
    }
}

/// An empty structure for `Stat`.
pub(crate) fn empty_statx() -> Box<libc::statx> {
    // SAFETY: zeros are a valid statx.
    unsafe { Box::new(std::mem::zeroed()) }
}

type Handle = Rc<Descriptor>;
type Path = std::ffi::CString;

// Each of these owns in `kept` all that its `Op` points to: heap blocks (of a Box, a CString, a buffer) and numbers.
impl Descriptor {
    fn run<K: 'static>(self: &Handle, op: Op, kept: K) -> InFlight<(Handle, K)> {
        // SAFETY: the callers below are all there are; each puts into `kept` what its `op` points to.
        unsafe { InFlight::start(self.core.clone(), self.node, op, (self.clone(), kept)) }
    }

    pub(crate) fn accept(self: &Handle) -> InFlight<(Handle, ())> {
        self.run(Op::Accept { socket: self.fd }, ())
    }

    pub(crate) fn connect(self: &Handle, to: SocketAddr) -> InFlight<(Handle, Box<socket2::SockAddr>)> {
        let address = Box::new(socket2::SockAddr::from(to));
        let op = Op::Connect { socket: self.fd, to, address: address.as_ptr().cast(), address_bytes: address.len() };
        self.run(op, address)
    }

    /// Receives into `buffer[skip..]`; `whole`: waits until it is full where the driver can.
    pub(crate) fn receive<B: IoBufMut>(
        self: &Handle,
        mut buffer: B,
        skip: usize,
        whole: bool,
    ) -> InFlight<(Handle, B)> {
        let into = Memory::to_write(&mut buffer.as_bytes_mut()[skip..]);
        self.run(Op::Receive { socket: self.fd, into, whole }, buffer)
    }

    /// Sends `buffer[skip..]`.
    pub(crate) fn send<B: IoBuf>(self: &Handle, buffer: B, skip: usize) -> InFlight<(Handle, B)> {
        let from = Memory::to_read(&buffer.as_bytes()[skip..]);
        self.run(Op::Send { socket: self.fd, from }, buffer)
    }

    /// Sends what follows the first `skip` bytes of `first` and `second`.
    #[expect(clippy::type_complexity, reason = "what comes back is what went in")]
    pub(crate) fn send_two<A: IoBuf, B: IoBuf>(
        self: &Handle,
        mut message: Box<Message>,
        first: A,
        second: B,
        skip: usize,
    ) -> InFlight<(Handle, (Box<Message>, A, B))> {
        let parts = [first.as_bytes(), second.as_bytes()];
        let op = Op::SendParts { socket: self.fd, message: message.set(parts.into_iter(), skip) };
        self.run(op, (message, first, second))
    }

    /// Sends what follows the first `skip` bytes of `gather`.
    pub(crate) fn send_gather(self: &Handle, mut gather: Gather, skip: usize) -> InFlight<(Handle, Gather)> {
        let op = Op::SendParts { socket: self.fd, message: gather.message(skip) };
        self.run(op, gather)
    }

    /// Reads into `buffer[skip..]`.
    pub(crate) fn read<B: IoBufMut>(self: &Handle, mut buffer: B, skip: usize, offset: u64) -> InFlight<(Handle, B)> {
        let into = Memory::to_write(&mut buffer.as_bytes_mut()[skip..]);
        self.run(Op::Read { file: self.fd, into, offset, flags: self.rw_flags.get() }, buffer)
    }

    /// Writes `buffer[skip..]`.
    pub(crate) fn write<B: IoBuf>(self: &Handle, buffer: B, skip: usize, offset: u64) -> InFlight<(Handle, B)> {
        let from = Memory::to_read(&buffer.as_bytes()[skip..]);
        self.run(Op::Write { file: self.fd, from, offset, flags: self.rw_flags.get() }, buffer)
    }

    pub(crate) fn sync(self: &Handle, data_only: bool) -> InFlight<(Handle, ())> {
        self.run(Op::Sync { file: self.fd, data_only }, ())
    }

    pub(crate) fn allocate(self: &Handle, offset: u64, length: u64) -> InFlight<(Handle, ())> {
        self.run(Op::Allocate { file: self.fd, offset, length }, ())
    }

    pub(crate) fn truncate(self: &Handle, length: u64) -> InFlight<(Handle, ())> {
        self.run(Op::Truncate { file: self.fd, length }, ())
    }

    /// Waits until something can be read.
    pub(crate) fn ready(self: &Handle) -> InFlight<(Handle, ())> {
        self.run(Op::Ready { fd: self.fd }, ())
    }

    pub(crate) fn stat(self: &Handle) -> InFlight<(Handle, Box<libc::statx>)> {
        let mut out = empty_statx();
        self.run(Op::Stat { file: self.fd, path: c"".as_ptr(), out: &raw mut *out }, out)
    }
}

/// Operations on paths.
pub(crate) mod paths {
    use super::{Core, InFlight, Op, Path, Rc, empty_statx};

    pub(crate) fn open(core: &Rc<Core>, node: u32, path: Path, flags: i32, mode: u32) -> InFlight<Path> {
        let op = Op::Open { path: path.as_ptr(), flags, mode };
        // SAFETY: `op` points to the heap block of `path`, which is kept.
        unsafe { InFlight::start(core.clone(), node, op, path) }
    }

    pub(crate) fn stat(core: &Rc<Core>, node: u32, path: Path) -> InFlight<(Path, Box<libc::statx>)> {
        let mut out = empty_statx();
        let op = Op::Stat { file: libc::AT_FDCWD, path: path.as_ptr(), out: &raw mut *out };
        // SAFETY: `op` points to the heap blocks of `path` and `out`, which are kept.
        unsafe { InFlight::start(core.clone(), node, op, (path, out)) }
    }

    pub(crate) fn rename(core: &Rc<Core>, node: u32, from: Path, to: Path) -> InFlight<(Path, Path)> {
        let op = Op::Rename { from: from.as_ptr(), to: to.as_ptr() };
        // SAFETY: `op` points to the heap blocks of both paths, which are kept.
        unsafe { InFlight::start(core.clone(), node, op, (from, to)) }
    }

    pub(crate) fn remove(core: &Rc<Core>, node: u32, path: Path, folder: bool) -> InFlight<Path> {
        let op = Op::Remove { path: path.as_ptr(), folder };
        // SAFETY: `op` points to the heap block of `path`, which is kept.
        unsafe { InFlight::start(core.clone(), node, op, path) }
    }

    pub(crate) fn make_folder(core: &Rc<Core>, node: u32, path: Path, mode: u32) -> InFlight<Path> {
        let op = Op::MakeFolder { path: path.as_ptr(), mode };
        // SAFETY: `op` points to the heap block of `path`, which is kept.
        unsafe { InFlight::start(core.clone(), node, op, path) }
    }
}
