//! What the client knows of each inode that it holds: open handles, length, unsent data, times, losses.
//!
//! A `File` exists while it has handles or unsent data. The kernel's references (lookup to forget) are counted beside
//! it, since they keep an inode alive at the master but need no state. Spec 30, 5.2; Spec 72, 5.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use ring::local::Semaphore;
use wire::{AmtimeEntryLong, Attr, Inode, NodeKind, Time};

use crate::readahead::Reader;
use crate::types::{Handle, OpenFlags};
use crate::unsynced::Unsynced;
use crate::write::Dirty;
use crate::{Errno, Event};

/// One inode with open handles or unsent data.
pub(crate) struct File {
    pub(crate) inode: Inode,
    /// The length that the master knows.
    pub(crate) master_length: Cell<u64>,
    /// Raised by every notice and every change of our own that makes bytes read before doubtful.
    pub(crate) changes: Cell<u64>,
    /// Raised whenever the master tells where chunks are or how long the file is: an answer to a question asked
    /// before may be older than that.
    pub(crate) notices: Cell<u64>,
    /// Acknowledged or unsent data that was lost.
    pub(crate) losses: Losses,
    pub(crate) dirty: Dirty,
    /// When this client last wrote, unless the time was set by hand since.
    pub(crate) written_at: Cell<Time>,
    /// Chunks that were written and not put on a device since; see `sync`.
    pub(crate) unsynced: Rc<Unsynced>,
    handles: Cell<u32>,
    /// Read-ahead of every handle, so that changes reach them all.
    readers: RefCell<Vec<Rc<Reader>>>,
}

impl File {
    /// The length that this client's processes see: unsent data counts.
    pub(crate) fn length(&self) -> u64 {
        self.master_length.get().max(self.dirty.end())
    }

    /// The master has told something about this file.
    pub(crate) fn noticed(&self) {
        self.notices.set(self.notices.get() + 1);
    }

    /// Bytes of this range were changed: nothing read before may serve a later read.
    pub(crate) fn bytes_changed(&self, start: u64, end: u64) {
        self.changes.set(self.changes.get() + 1);
        for reader in self.readers.borrow().iter() {
            reader.forget(start, end);
        }
    }
}

/// Written data of a file that was lost, as the handles hear of it: each once, as with Linux's `errseq_t`. What is
/// written after a loss has nothing to do with it.
#[derive(Default)]
pub(crate) struct Losses {
    /// How many there were.
    count: Cell<u64>,
    last: Cell<Option<Errno>>,
    /// So many of them were told to some handle. The others are news to a handle that is opened later, too.
    told: Cell<u64>,
}

impl Losses {
    pub(crate) fn add(&self, errno: Errno) {
        self.count.set(self.count.get() + 1);
        self.last.set(Some(errno));
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.get()
    }

    /// The last one, if there was one after the first `seen`.
    pub(crate) fn since(&self, seen: u64) -> Result<(), Errno> {
        if self.count.get() == seen { Ok(()) } else { Err(self.last.get().expect("a loss has its error")) }
    }
}

impl Open {
    /// What this handle's `fsync` has not told yet. It counts as told from now on.
    pub(crate) fn tell_losses(&self) -> Result<(), Errno> {
        let told = self.heard_of.replace(self.file.losses.count());
        self.file.losses.told.set(self.file.losses.count());
        self.file.losses.since(told)
    }

    /// The same for `close`, of which there may be several, since descriptors are copied: each of them tells it.
    pub(crate) fn tell_losses_at_close(&self) -> Result<(), Errno> {
        self.file.losses.told.set(self.file.losses.count());
        self.file.losses.since(self.heard_of.get())
    }

    /// The same for `write`: one is refused, so that a program that only writes stops. `fsync` and `close` tell it all
    /// the same.
    pub(crate) fn tell_losses_to_writer(&self) -> Result<(), Errno> {
        let told = self.writer_heard_of.replace(self.file.losses.count());
        self.file.losses.since(told.max(self.heard_of.get()))
    }
}

/// One open handle.
pub(crate) struct Open {
    pub(crate) handle: Handle,
    pub(crate) file: Rc<File>,
    pub(crate) flags: OpenFlags,
    /// The master says that only appending is allowed.
    pub(crate) append_only: bool,
    /// Opened by the superuser, who may use reserved space. Spec 31, 31.9.
    pub(crate) is_root: bool,
    pub(crate) reader: Rc<Reader>,
    /// Losses that were told to who uses this handle, and to its writer.
    heard_of: Cell<u64>,
    writer_heard_of: Cell<u64>,
    /// Owners that hold or held fcntl locks through this handle.
    pub(crate) lock_owners: RefCell<BTreeSet<u64>>,
    pub(crate) used_flock: Cell<bool>,
}

#[derive(Default)]
pub(crate) struct Files {
    files: RefCell<BTreeMap<Inode, Rc<File>>>,
    opens: RefCell<BTreeMap<Handle, Rc<Open>>>,
    last_handle: Cell<u64>,
    /// References that the kernel holds.
    kernel: RefCell<BTreeMap<Inode, u64>>,
    times: RefCell<BTreeMap<Inode, Times>>,
    /// Of files that were closed: whoever opens one again and calls `fsync` means these writes, too.
    closed: RefCell<BTreeMap<Inode, Rc<Unsynced>>>,
    /// Closed files of which there were too many to remember, and which are to be synced instead.
    to_sync: RefCell<VecDeque<(Inode, Rc<Unsynced>)>>,
}

/// Closed files whose unsynced chunks are remembered. When there are more, one is synced for each that comes.
const CLOSED_MAX: usize = 50_000;

/// Times that the master has not been told. `NONE`: no time. Spec 30, 5.3.
///
/// MooseFS's mount tells each of them in two successive seconds, also after `close`, and so undoes what another client
/// set meanwhile. Ours tells each once: in the first second, or sooner if a write session ends or the file is closed. A
/// time of a write that a broken connection may have swallowed is told again with the end of the session.
#[derive(Clone, Copy, Default)]
struct Times {
    atime: Time,
    mtime: Time,
}

const NONE: Time = Time(0);

impl Files {
    /// The file with this inode, made if it is not held yet. Counts one handle.
    pub(crate) fn hold(&self, inode: Inode) -> Rc<File> {
        let mut files = self.files.borrow_mut();
        let file = files.entry(inode).or_insert_with(|| {
            Rc::new(File {
                inode,
                master_length: Cell::new(0),
                changes: Cell::new(0),
                notices: Cell::new(0),
                losses: Losses::default(),
                dirty: Dirty::default(),
                written_at: Cell::new(NONE),
                unsynced: self.closed.borrow_mut().remove(&inode).unwrap_or_default(),
                handles: Cell::new(0),
                readers: RefCell::default(),
            })
        });
        file.handles.set(file.handles.get() + 1);
        file.clone()
    }

    /// Takes back one `hold`. With the last one the file is forgotten.
    pub(crate) fn let_go(&self, file: &Rc<File>) {
        file.handles.set(file.handles.get() - 1);
        if file.handles.get() == 0 {
            self.files.borrow_mut().remove(&file.inode);
            if !file.unsynced.is_empty() {
                file.unsynced.unwatch(); // the master speaks of open files only
                let mut closed = self.closed.borrow_mut();
                closed.insert(file.inode, file.unsynced.clone());
                if closed.len() > CLOSED_MAX {
                    // Inodes are given out in order: likely the oldest.
                    self.to_sync.borrow_mut().extend(closed.pop_first());
                }
            }
        }
    }

    /// What is unsynced of a file, open or closed.
    pub(crate) fn unsynced(&self, inode: Inode) -> Option<Rc<Unsynced>> {
        let open = self.files.borrow().get(&inode).map(|file| file.unsynced.clone());
        open.or_else(|| self.closed.borrow().get(&inode).cloned())
    }

    /// A closed file that is to be synced because too many were closed.
    pub(crate) fn next_to_sync(&self) -> Option<(Inode, Rc<Unsynced>)> {
        self.to_sync.borrow_mut().pop_front()
    }

    /// Forgets the bytes of closed files, one after the other, until `enough`. What is unsynced stays known.
    pub(crate) fn drop_closed_bytes(&self, enough: impl Fn() -> bool) {
        for unsynced in self.closed.borrow().values() {
            if enough() {
                return;
            }
            unsynced.drop_bytes();
        }
    }

    pub(crate) fn find(&self, inode: Inode) -> Option<Rc<File>> {
        self.files.borrow().get(&inode).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Rc<File>> {
        self.files.borrow().values().cloned().collect()
    }

    pub(crate) fn add_open(&self, file: Rc<File>, flags: OpenFlags, append_only: bool, is_root: bool) -> Rc<Open> {
        self.last_handle.set(self.last_handle.get() + 1);
        let handle = Handle(self.last_handle.get());
        let reader = Rc::new(Reader::default());
        file.readers.borrow_mut().push(reader.clone());
        let heard_of = Cell::new(file.losses.told.get());
        let open = Rc::new(Open {
            handle,
            heard_of,
            writer_heard_of: Cell::new(0),
            file,
            flags,
            append_only,
            is_root,
            reader,
            lock_owners: RefCell::default(),
            used_flock: Cell::new(false),
        });
        self.opens.borrow_mut().insert(handle, open.clone());
        open
    }

    /// Errors: EBADF.
    pub(crate) fn open(&self, handle: Handle) -> Result<Rc<Open>, Errno> {
        self.opens.borrow().get(&handle).cloned().ok_or(Errno::EBADF)
    }

    /// The handle is gone; the file stays held until `let_go`. Errors: EBADF.
    pub(crate) fn remove_open(&self, handle: Handle) -> Result<Rc<Open>, Errno> {
        let open = self.opens.borrow_mut().remove(&handle).ok_or(Errno::EBADF)?;
        open.file.readers.borrow_mut().retain(|reader| !Rc::ptr_eq(reader, &open.reader));
        Ok(open)
    }

    /// Forgets what was read for handles that nobody has used since the last sweep.
    pub(crate) fn sweep_readers(&self) {
        for open in self.opens.borrow().values() {
            open.reader.sweep();
        }
    }

    pub(crate) fn kernel_holds(&self, inode: Inode) {
        *self.kernel.borrow_mut().entry(inode).or_default() += 1;
    }

    pub(crate) fn kernel_forgot(&self, inode: Inode, count: u64) {
        let mut kernel = self.kernel.borrow_mut();
        if let Some(held) = kernel.get_mut(&inode) {
            *held = held.saturating_sub(count);
            if *held == 0 {
                kernel.remove(&inode);
            }
        }
    }

    /// Some handle, unsent data or the kernel refers to it.
    pub(crate) fn is_held(&self, inode: Inode) -> bool {
        self.files.borrow().contains_key(&inode) || self.kernel.borrow().contains_key(&inode)
    }

    /// All inodes that the master must keep for us, ascending.
    pub(crate) fn held_inodes(&self) -> Vec<Inode> {
        let mut inodes: BTreeSet<Inode> = self.kernel.borrow().keys().copied().collect();
        inodes.extend(self.files.borrow().keys().copied());
        inodes.retain(|inode| inode.0 != 0 && inode.0 < wire::limits::RESERVED_INODE_MIN);
        inodes.into_iter().collect()
    }

    /// The connection was lost: notices may have been missed.
    pub(crate) fn all_changed(&self) {
        for file in self.all() {
            file.bytes_changed(0, u64::MAX);
            file.unsynced.unwatch();
        }
    }

    pub(crate) fn note_read(&self, inode: Inode, now: Time) {
        let mut times = self.times.borrow_mut();
        times.entry(inode).or_default().atime = now;
    }

    pub(crate) fn note_write(&self, inode: Inode, now: Time) {
        let mut times = self.times.borrow_mut();
        times.entry(inode).or_default().mtime = now;
        drop(times);
        if let Some(file) = self.find(inode) {
            file.written_at.set(now);
        }
    }

    /// Somebody set these times by hand: ours no longer count.
    pub(crate) fn cancel_times(&self, inode: Inode, atime: bool, mtime: bool) {
        let mut times = self.times.borrow_mut();
        if let Some(entry) = times.get_mut(&inode) {
            if atime {
                entry.atime = NONE;
            }
            if mtime {
                entry.mtime = NONE;
            }
            if (entry.atime, entry.mtime) == (NONE, NONE) {
                times.remove(&inode);
            }
        }
        drop(times);
        if mtime && let Some(file) = self.find(inode) {
            file.written_at.set(NONE);
        }
    }

    /// What to tell the master this second.
    pub(crate) fn take_times(&self) -> Vec<AmtimeEntryLong> {
        let times = self.times.take().into_iter();
        times.map(|(inode, Times { atime, mtime })| AmtimeEntryLong { inode, atime, mtime }).collect()
    }

    /// The same of one inode.
    pub(crate) fn take_times_of(&self, inode: Inode) -> Option<AmtimeEntryLong> {
        let Times { atime, mtime } = self.times.borrow_mut().remove(&inode)?;
        Some(AmtimeEntryLong { inode, atime, mtime })
    }

    /// The master's attributes with what only we know: length of unsent data, times. Spec 72, 4.1.
    pub(crate) fn with_local(&self, inode: Inode, mut attr: Attr) -> Attr {
        if attr.kind == NodeKind::File
            && let Some(file) = self.find(inode)
        {
            attr.extra = attr.extra.max(file.dirty.end());
        }
        if let Some(times) = self.times.borrow().get(&inode) {
            if times.atime != NONE {
                attr.atime = attr.atime.max(times.atime);
            }
            if times.mtime != NONE {
                attr.mtime = attr.mtime.max(times.mtime);
                attr.ctime = attr.ctime.max(times.mtime);
            }
        }
        attr
    }
}

/// Events for the mount: the last ones, should it not keep up.
#[derive(Default)]
pub(crate) struct Events {
    sender: RefCell<Option<ring::local::Sender<Event>>>,
    receiver: RefCell<Option<ring::local::Receiver<Event>>>,
}

/// Events that may wait for the mount. When they are more, the newest are dropped: kernel caches then live out their
/// time, which is what the protocol promises at least.
const EVENTS_MAX: usize = 16_384;

impl Events {
    pub(crate) fn new() -> Events {
        let (sender, receiver) = ring::local::channel(EVENTS_MAX);
        Events { sender: RefCell::new(Some(sender)), receiver: RefCell::new(Some(receiver)) }
    }

    pub(crate) fn take(&self) -> Option<ring::local::Receiver<Event>> {
        self.receiver.borrow_mut().take()
    }

    pub(crate) fn tell(&self, event: Event) {
        if self.receiver.borrow().is_none()
            && let Some(sender) = self.sender.borrow().as_ref()
        {
            let _ = sender.try_send(event); // full, or nobody listens any more: see EVENTS_MAX
        }
    }

    pub(crate) fn close(&self) {
        self.sender.borrow_mut().take();
    }
}

/// Bytes of memory shared by many; who finds too little free waits, first come, first served.
pub(crate) struct Budget {
    total: usize,
    free: Semaphore,
}

/// A part of a budget; given back when dropped.
pub(crate) struct Share {
    free: Semaphore,
    bytes: usize,
}

impl Budget {
    pub(crate) fn new(total: usize) -> Budget {
        Budget { total, free: Semaphore::new(total) }
    }

    /// Waits until `bytes` are free; never asks for more than there is in all.
    pub(crate) async fn take(&self, bytes: usize) -> Share {
        let bytes = bytes.min(self.total);
        self.free.acquire(bytes).await.forget();
        Share { free: self.free.clone(), bytes }
    }

    /// The bytes now, or nothing.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<Share> {
        self.free.try_acquire(bytes)?.forget();
        Some(Share { free: self.free.clone(), bytes })
    }

    /// Half of it is free.
    pub(crate) fn is_ample(&self) -> bool {
        self.free.available() >= self.total / 2
    }

    /// Less than a quarter is free: what can go should go.
    pub(crate) fn is_scarce(&self) -> bool {
        self.free.available() < self.total / 4
    }
}

impl Share {
    /// Makes one share of two.
    pub(crate) fn absorb(&mut self, mut other: Share) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.free.add(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn a_share_gives_its_bytes_back_and_two_become_one() {
        let budget = Budget::new(100);
        let mut first = budget.try_take(60).unwrap();
        first.absorb(budget.try_take(40).unwrap());
        assert!(budget.try_take(1).is_none());
        assert!(budget.take(1).now_or_never().is_none());
        drop(first);
        assert!(budget.try_take(100).is_some());
    }

    #[test]
    fn a_request_larger_than_the_budget_takes_all_of_it() {
        let budget = Budget::new(100);
        assert!(budget.take(1000).now_or_never().is_some());
    }

    #[test]
    fn every_time_is_told_once_and_a_set_time_cancels_ours() {
        let files = Files::default();
        files.note_write(Inode(5), Time(1000));
        files.note_read(Inode(6), Time(1001));
        let entry =
            |inode, atime, mtime| AmtimeEntryLong { inode: Inode(inode), atime: Time(atime), mtime: Time(mtime) };
        let both = [entry(5, 0, 1000), entry(6, 1001, 0)];
        assert_eq!(files.take_times(), both);
        assert_eq!(files.take_times(), []);
        files.note_write(Inode(5), Time(1002));
        files.cancel_times(Inode(5), false, true);
        assert_eq!(files.take_times(), []);
    }

    #[test]
    fn an_inode_is_held_by_handles_and_by_the_kernel() {
        let files = Files::default();
        let file = files.hold(Inode(9));
        files.kernel_holds(Inode(3));
        files.kernel_holds(Inode(3));
        files.kernel_holds(Inode(9));
        assert_eq!(files.held_inodes(), [Inode(3), Inode(9)]);
        files.kernel_forgot(Inode(3), 2);
        files.kernel_forgot(Inode(9), 1);
        assert_eq!(files.held_inodes(), [Inode(9)]);
        files.let_go(&file);
        assert!(!files.is_held(Inode(9)));
        assert_eq!(files.held_inodes(), []);
    }
}
