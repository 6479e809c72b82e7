//! The io_uring driver.
//!
//! One ring per executor, used by its thread alone. Operations are queued without a system call; one `enter` per turn
//! of the executor's loop submits them all and waits. What the kernel lacks is found out at the start and done on
//! threads; each step down is said in the log.
//!
//! `user_data` of an entry is the operation's key; keys never reach the two highest values, which mean "nobody waits"
//! and "the doorbell".

use std::cell::RefCell;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};

use super::arena::{Pool, SLOT_BYTES};
use super::offload::{Offload, stat_flags};
use super::operation::{Key, Memory, Op, STAT_MASK, Table};
use crate::driver::{Driver, Wait};
use crate::features::Features;
use crate::remote::Remote;
use crate::time::{Instant, process_micros};

const NOBODY: u64 = u64::MAX;
const DOORBELL: u64 = u64::MAX - 1;
/// Slots that are registered together, when the first of them is used: what is registered is pinned memory, and a pool
/// is as large as its ring may ever need. 2.1 MiB; the kernel takes up to 1 GiB as one buffer.
const SLOTS_PER_REGISTRATION: usize = 32;
/// Buffers that a kernel registers at most.
const REGISTRATIONS_MAX: usize = 16_384;
/// Kernel threads for calls that block (open, rename, fsync ...), per ring: bounded, and unbounded (sockets). So many
/// that a disk which hangs does not hold them all before it is left alone.
const KERNEL_WORKERS_MAX: [u32; 2] = [64, 4];

pub(crate) struct Uring {
    ring: IoUring,
    remote: Arc<Remote>,
    offload: Offload,
    pool: Rc<Pool>,
    /// By number of registration.
    registrations: Vec<Registration>,
    supported: Supported,
    doorbell_armed: bool,
    /// Reaped since the last `park`, to make room for entries.
    reaped: Vec<(Key, i32)>,
}

/// Whether the kernel knows a part of the pool.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Registration {
    NotAsked,
    Registered,
    Refused,
}

/// Which operations the kernel's ring can do beyond those that all have.
struct Supported {
    rename: bool,
    remove: bool,
    make_folder: bool,
    truncate: bool,
}

impl Uring {
    /// Sets up a ring with `entries` submission entries. Errors: io_uring is missing or forbidden.
    pub(crate) fn new(entries: u32, features: Features, pool: Rc<Pool>, remote: Arc<Remote>) -> io::Result<Uring> {
        let ring = set_up(entries.clamp(8, 4096).next_power_of_two(), features)?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel's io_uring is too old (before 5.11)"));
        }
        let mut probe = Probe::new();
        if let Err(error) = ring.submitter().register_probe(&mut probe) {
            tracing::info!(%error, "io_uring: cannot probe operations; files go through threads");
        }
        for (code, name) in NEEDED {
            if !probe.is_supported(code) {
                return Err(io::Error::new(io::ErrorKind::Unsupported, format!("io_uring lacks {name}")));
            }
        }
        let supported = Supported {
            rename: probe.is_supported(opcode::RenameAt::CODE),
            remove: probe.is_supported(opcode::UnlinkAt::CODE),
            make_folder: probe.is_supported(opcode::MkDirAt::CODE),
            truncate: probe.is_supported(opcode::Ftruncate::CODE),
        };
        if !(supported.rename && supported.remove && supported.make_folder && supported.truncate) {
            tracing::info!("io_uring: some path operations are missing and go through threads");
        }
        let mut workers = KERNEL_WORKERS_MAX;
        if let Err(error) = ring.submitter().register_iowq_max_workers(&mut workers) {
            tracing::debug!(%error, "io_uring: cannot bound the kernel's threads");
        }
        let registrations = if features.registered_buffers { prepare_registrations(&ring, &pool) } else { Vec::new() };
        Ok(Uring {
            ring,
            offload: Offload::new(remote.clone()),
            remote,
            pool,
            registrations,
            supported,
            doorbell_armed: false,
            reaped: Vec::new(),
        })
    }

    /// Queues an entry.
    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: what the entry points to is kept by the operation's slot until its completion is reaped (see
            // `operation`), or is static.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // Full: let the kernel take what is there. It may refuse until its completions are reaped.
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if is_transient(&error) => {
                    let mut reaped = std::mem::take(&mut self.reaped);
                    self.reap(&mut reaped);
                    self.reaped = reaped;
                }
                Err(error) => panic!("io_uring refuses entries: {error}"),
            }
        }
    }

    fn arm_doorbell(&mut self) {
        if let Some(doorbell) = self.remote.doorbell()
            && !self.doorbell_armed
        {
            let entry = opcode::PollAdd::new(Fd(doorbell.fd()), libc::POLLIN as u32).build().user_data(DOORBELL);
            self.push(&entry);
            self.doorbell_armed = true;
        }
    }

    /// The index of the registered buffer that holds `memory`.
    fn registered(&mut self, memory: Memory) -> Option<u16> {
        let (start, bytes) = self.pool.extent();
        let offset = (memory.start as usize).checked_sub(start as usize)?;
        if offset >= bytes {
            return None;
        }
        let number = offset / SLOT_BYTES / SLOTS_PER_REGISTRATION;
        let registration = self.registrations.get_mut(number)?;
        let index = u16::try_from(number).expect("REGISTRATIONS_MAX is below");
        if *registration == Registration::NotAsked {
            *registration = register(&self.ring, &self.pool, number);
            if *registration == Registration::Refused {
                // The limit is reached: the rest would be refused too.
                self.registrations.truncate(number);
            }
        }
        (self.registrations.get(number) == Some(&Registration::Registered)).then_some(index)
    }

    fn reap(&mut self, finished: &mut Vec<(Key, i32)>) {
        let mut doorbell_rang = false;
        for completion in self.ring.completion() {
            match completion.user_data() {
                NOBODY => {}
                DOORBELL => doorbell_rang = true,
                key => finished.push((Key(key), completion.result())),
            }
        }
        if doorbell_rang {
            self.doorbell_armed = false;
            self.remote.doorbell().expect("armed by it").clear();
        }
    }

    fn enter(&mut self, wait: Wait) -> io::Result<usize> {
        let deadline = match wait {
            Wait::Not => return self.submit_if_needed(),
            Wait::Until(None) => return self.ring.submit_and_wait(1),
            Wait::Until(Some(deadline)) => deadline,
        };
        let now = Instant::from_micros(process_micros());
        if deadline <= now {
            return self.submit_if_needed();
        }
        let timeout = Timespec::from(deadline - now);
        self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timeout))
    }
}

impl Uring {
    /// Enters the kernel unless there is nothing to hand over and nothing that waits for us to come by.
    fn submit_if_needed(&mut self) -> io::Result<usize> {
        let queue = self.ring.submission();
        if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
            return Ok(0);
        }
        drop(queue);
        self.ring.submit()
    }
}

impl Driver for Uring {
    fn name(&self) -> &'static str {
        "uring"
    }

    fn submit(&mut self, key: Key, _node: u32, op: Op) {
        let here = Fd(libc::AT_FDCWD);
        let entry = match op {
            Op::Accept { socket } => {
                let none = std::ptr::null_mut();
                opcode::Accept::new(Fd(socket), none, none.cast()).flags(libc::SOCK_CLOEXEC).build()
            }
            Op::Connect { socket, address, address_bytes, .. } => {
                opcode::Connect::new(Fd(socket), address, address_bytes).build()
            }
            Op::Receive { socket, into, whole } => opcode::Recv::new(Fd(socket), into.start, into.length)
                .flags(if whole { libc::MSG_WAITALL } else { 0 })
                .build(),
            Op::Send { socket, from } => opcode::Send::new(Fd(socket), from.start, from.length)
                .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
                .build(),
            Op::SendParts { socket, message } => {
                opcode::SendMsg::new(Fd(socket), message).flags((libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32).build()
            }
            Op::Read { file, into, offset, flags } => {
                let Memory { start, length } = into;
                match self.registered(into) {
                    Some(index) => {
                        opcode::ReadFixed::new(Fd(file), start, length, index).offset(offset).rw_flags(flags).build()
                    }
                    None => opcode::Read::new(Fd(file), start, length).offset(offset).rw_flags(flags).build(),
                }
            }
            Op::Write { file, from, offset, flags } => {
                let Memory { start, length } = from;
                match self.registered(from) {
                    Some(index) => {
                        opcode::WriteFixed::new(Fd(file), start, length, index).offset(offset).rw_flags(flags).build()
                    }
                    None => opcode::Write::new(Fd(file), start, length).offset(offset).rw_flags(flags).build(),
                }
            }
            Op::Sync { file, data_only } => opcode::Fsync::new(Fd(file))
                .flags(if data_only { FsyncFlags::DATASYNC } else { FsyncFlags::empty() })
                .build(),
            Op::Open { path, flags, mode } => opcode::OpenAt::new(here, path).flags(flags).mode(mode).build(),
            Op::Stat { file, path, out } => {
                opcode::Statx::new(Fd(file), path, out.cast()).flags(stat_flags(file)).mask(STAT_MASK).build()
            }
            Op::Rename { from, to } if self.supported.rename => opcode::RenameAt::new(here, from, here, to).build(),
            Op::Remove { path, folder } if self.supported.remove => {
                opcode::UnlinkAt::new(here, path).flags(if folder { libc::AT_REMOVEDIR } else { 0 }).build()
            }
            Op::MakeFolder { path, mode } if self.supported.make_folder => {
                opcode::MkDirAt::new(here, path).mode(mode).build()
            }
            Op::Allocate { file, offset, length } => opcode::Fallocate::new(Fd(file), length).offset(offset).build(),
            Op::Truncate { file, length } if self.supported.truncate => {
                opcode::Ftruncate::new(Fd(file), length).build()
            }
            Op::Ready { fd } => opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32).build(),
            Op::Rename { .. } | Op::Remove { .. } | Op::MakeFolder { .. } | Op::Truncate { .. } => {
                return self.offload.operation(key, op);
            }
        };
        self.push(&entry.user_data(key.0));
    }

    fn cancel(&mut self, key: Key) {
        self.push(&opcode::AsyncCancel::new(key.0).build().user_data(NOBODY));
    }

    fn close(&mut self, fd: RawFd) {
        self.push(&opcode::Close::new(Fd(fd)).build().user_data(NOBODY));
    }

    fn forget_socket(&mut self, _fd: RawFd) {}

    fn park(&mut self, wait: Wait, _table: &RefCell<Table>, finished: &mut Vec<(Key, i32)>) {
        self.arm_doorbell();
        finished.append(&mut self.reaped);
        if wait != Wait::Not {
            // Something may have come in without our asking.
            self.reap(finished);
        }
        let wait = if finished.is_empty() { wait } else { Wait::Not };
        match self.enter(wait) {
            Ok(_) => {}
            Err(error) if is_transient(&error) => {}
            Err(error) => panic!("io_uring_enter: {error}"),
        }
        self.reap(finished);
    }

    fn call(&mut self, call: Box<dyn FnOnce() + Send>) {
        self.offload.call(call);
    }

    fn wants_nonblocking_sockets(&self) -> bool {
        false
    }
}

/// Operations without which the driver is not chosen; all are in Linux 5.6.
const NEEDED: [(u8, &str); 12] = [
    (opcode::Accept::CODE, "ACCEPT"),
    (opcode::Connect::CODE, "CONNECT"),
    (opcode::Recv::CODE, "RECV"),
    (opcode::Send::CODE, "SEND"),
    (opcode::SendMsg::CODE, "SENDMSG"),
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::OpenAt::CODE, "OPENAT"),
    (opcode::Statx::CODE, "STATX"),
    (opcode::Fallocate::CODE, "FALLOCATE"),
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
    (opcode::Close::CODE, "CLOSE"),
];

/// The way of running completions, best first. The kernel refuses what it does not know with EINVAL.
fn set_up(entries: u32, features: Features) -> io::Result<IoUring> {
    type Step = (bool, &'static str, fn(&mut io_uring::Builder));
    let Features { defer_taskrun, coop_taskrun, .. } = features;
    let steps: [Step; 4] = [
        (defer_taskrun, "deferred completions, no index array (Linux 6.6)", |builder| {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_no_sqarray();
            builder.setup_submit_all();
        }),
        (defer_taskrun, "deferred completions (Linux 6.1)", |builder| {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
        }),
        (coop_taskrun, "cooperative completions (Linux 5.19)", |builder| {
            builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
        }),
        (true, "plain completions", |_| {}),
    ];
    let mut last_error = None;
    for (_, name, set) in steps.into_iter().filter(|(wanted, ..)| *wanted) {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_clamp().setup_cqsize(entries * 4);
        set(&mut builder);
        match builder.build(entries) {
            Ok(ring) => {
                tracing::debug!(mode = name, entries, "io_uring is set up");
                return Ok(ring);
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                tracing::info!(mode = name, "io_uring: this kernel lacks the mode, stepping down");
                last_error = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(last_error.expect("there are steps"))
}

/// Makes room for the pool's parts among the kernel's registered buffers. None when the kernel cannot (before 5.19).
fn prepare_registrations(ring: &IoUring, pool: &Pool) -> Vec<Registration> {
    let count = pool.extent().1.div_ceil(SLOTS_PER_REGISTRATION * SLOT_BYTES).min(REGISTRATIONS_MAX);
    if count == 0 {
        return Vec::new();
    }
    match ring.submitter().register_buffers_sparse(u32::try_from(count).expect("bounded above")) {
        Ok(()) => vec![Registration::NotAsked; count],
        Err(error) => {
            tracing::info!(%error, "io_uring: buffers cannot be registered, using plain ones");
            Vec::new()
        }
    }
}

/// Registers one part of the pool.
fn register(ring: &IoUring, pool: &Pool, number: usize) -> Registration {
    let (start, bytes) = pool.extent();
    let part_bytes = SLOTS_PER_REGISTRATION * SLOT_BYTES;
    let offset = number * part_bytes;
    let part = libc::iovec { iov_base: start.wrapping_add(offset).cast(), iov_len: part_bytes.min(bytes - offset) };
    let index = u32::try_from(number).expect("REGISTRATIONS_MAX is below");
    // SAFETY: the driver holds the pool, so the mapping outlives the ring's use of it.
    match unsafe { ring.submitter().register_buffers_update(index, &[part], None) } {
        Ok(()) => Registration::Registered,
        Err(error) => {
            let mib = offset >> 20;
            tracing::info!(%error, "io_uring: buffers behind {mib} MiB are not registered (RLIMIT_MEMLOCK?)");
            Registration::Refused
        }
    }
}

/// Errors of `enter` after which one goes on: interrupted, timed out, or completions must be reaped first.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN))
}
