//! Small system calls that no safer crate wraps as we need them.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The result of a call that gives -1 and errno, in the kernel's form: negative errno.
pub(super) fn kernel_result(result: i64) -> i32 {
    match result {
        -1 => -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
        result => i32::try_from(result).unwrap_or(i32::MAX),
    }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// An eventfd: any thread rings it, the ring's thread sleeps on it.
#[derive(Debug)]
pub(crate) struct Doorbell(OwnedFd);

impl Doorbell {
    pub(crate) fn new() -> io::Result<Doorbell> {
        // SAFETY: a new descriptor, owned by nobody else.
        Ok(Doorbell(unsafe { OwnedFd::from_raw_fd(check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?) }))
    }

    pub(crate) fn ring(&self) {
        let one = 1u64;
        // SAFETY: reads 8 bytes of a local. It can only fail when the counter is full: then it has been rung.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Makes it silent again.
    pub(crate) fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: writes 8 bytes to a local. Failing means that it was silent.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// How far local time is ahead of UTC at a moment of Unix time, in seconds; 0 where the system cannot say.
pub(crate) fn local_offset_seconds(unix_seconds: i64) -> i64 {
    // SAFETY: all zeros is a value of this plain structure, and the call fills it.
    let mut local: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: reads one local and writes another. It may read the variable TZ, which nobody here changes.
    let known = unsafe { !libc::localtime_r(&raw const unix_seconds, &raw mut local).is_null() };
    if known { local.tm_gmtoff } else { 0 }
}

/// Closes a descriptor that the ring owned.
pub(crate) fn close(fd: RawFd) {
    // SAFETY: `Descriptor` gives each number away once, after its last operation.
    unsafe { libc::close(fd) };
}

/// Takes over a descriptor that `Descriptor::into_fd` gave away.
pub(crate) fn take_over(fd: RawFd) -> OwnedFd {
    // SAFETY: it is open, and `into_fd` has ended all other use of it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Binds the calling thread to one core.
pub(crate) fn pin_to_core(core: usize) -> io::Result<()> {
    // SAFETY: an all-zero cpu_set_t is the empty set; CPU_SET checks its bounds in libc by indexing an array.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if core >= libc::CPU_SETSIZE as usize {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        libc::CPU_SET(core, &mut set);
        check(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set))?;
    }
    Ok(())
}

/// Ends both directions of a socket.
pub(crate) fn shutdown_socket(fd: RawFd) {
    // SAFETY: numbers only. ENOTCONN is fine.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

/// Runs `f` on a socket that `fd` names, without taking it over.
pub(crate) fn with_socket<T>(fd: RawFd, f: impl FnOnce(&socket2::Socket) -> T) -> T {
    // SAFETY: the descriptor is open while its `Descriptor` lives, which the caller holds; ManuallyDrop keeps the
    // borrowed socket from closing it.
    let socket = std::mem::ManuallyDrop::new(unsafe { socket2::Socket::from_raw_fd(fd) });
    f(&socket)
}

/// What `statvfs` says of the file system that holds `path`.
pub(crate) fn space(path: &CStr) -> io::Result<libc::statvfs> {
    // SAFETY: a path that ends with 0 and a local to write to.
    unsafe {
        let mut space: libc::statvfs = std::mem::zeroed();
        check(libc::statvfs(path.as_ptr(), &raw mut space))?;
        Ok(space)
    }
}

/// `syncfs` of the file system that holds an open file.
pub(crate) fn sync_file_system(file: &std::fs::File) -> io::Result<()> {
    // SAFETY: the descriptor is open while `file` lives; nothing else is passed.
    check(unsafe { libc::syncfs(file.as_raw_fd()) }).map(drop)
}

/// Takes the write lock of a whole file (fcntl); false when another process has it.
pub(crate) fn try_lock(fd: RawFd) -> io::Result<bool> {
    let lock = whole_file_lock();
    // SAFETY: reads a local.
    match check(unsafe { libc::fcntl(fd, libc::F_SETLK, &raw const lock) }) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EAGAIN)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The process that has a lock that keeps us from the write lock of the file.
pub(crate) fn lock_owner(fd: RawFd) -> io::Result<Option<i32>> {
    let mut lock = whole_file_lock();
    // SAFETY: writes to a local.
    check(unsafe { libc::fcntl(fd, libc::F_GETLK, &raw mut lock) })?;
    Ok((i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid))
}

fn whole_file_lock() -> libc::flock {
    // SAFETY: zeros are a valid flock: the whole file, from its start.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(libc::F_WRLCK).expect("a small constant");
    lock.l_whence = i16::try_from(libc::SEEK_SET).expect("a small constant");
    lock
}

/// Reads of this file come in no order: the kernel is not to read ahead. Advice: nothing depends on it.
pub(crate) fn advise_random(fd: RawFd) {
    // SAFETY: numbers only.
    unsafe { libc::posix_fadvise(fd, 0, 0, libc::POSIX_FADV_RANDOM) };
}
