//! The transport that always works: requests read from and answered to /dev/fuse.
//!
//! `fuser` mounts (mount(2) as root, `fusermount3` for others) and shakes hands with the kernel; from then on the
//! device is ours. Its own request loop is not used, for two reasons: it answers FUSE_INTERRUPT with ENOSYS, after
//! which the kernel never again lets a process be killed while it waits for us; and it knows one time-out where the
//! kernel has two (name and attributes). What remains is small: whoever reads decodes, and whoever has the answer
//! writes it, from any thread.
//!
//! Who reads: the core itself ([`Mounted::read_requests_here`]), which spares every request a change of threads; or a
//! few threads ([`Mounted::read_requests`]), which take the copying of large writes off the core.
//!
//! One 4 KiB request costs one read(2) and one writev(2), with threads also one message to the core. The data of a WRITE stays in the
//! buffer that the kernel filled. Limits: [`WRITE_BYTES_MAX`], and the kernel's `max_background`.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use ring::Ring;

use fuser::{Config, InitFlags, KernelConfig, MountOption, SessionACL};

use crate::kernel;
use crate::reply::{Errno, Reply};
use crate::request::{Operation, Payload, Request};

/// The largest write that the kernel sends in one piece; `fs.fuse.max_pages_limit` is 256 pages.
pub const WRITE_BYTES_MAX: u32 = 1 << 20;
/// The largest read-ahead that we ask for.
const READ_AHEAD_BYTES: u32 = 1 << 20;
/// Requests on the kernel's own account (read-ahead, asynchronous direct I/O) that may be under way at a time.
const BACKGROUND_REQUESTS_MAX: u16 = 128;
/// The core reads so many requests before others get their turn.
const REQUESTS_PER_TURN: usize = 16;
/// A smaller write is copied out of the request buffer.
const COPY_BYTES_BELOW: usize = WRITE_BYTES_MAX as usize / 2;

/// Whoever brings answers back to the kernel.
pub trait Transport: Send + Sync {
    /// Answer request `unique`. A kernel that does not want the answer any more is no error.
    fn answer(&self, unique: u64, answer: &Result<Reply, Errno>);
}

/// What to mount and how.
#[derive(Debug, Clone)]
pub struct MountSettings {
    /// An existing directory.
    pub mount_point: PathBuf,
    /// First column of the mount table, `mfs#HOST:PORT`.
    pub source: String,
    /// Everybody may use the mount, not only who mounted it.
    pub allow_other: bool,
    /// Options for the kernel or fusermount3, already understood to be such (`ro`, `noexec`, `max_read=` ...).
    pub options: Vec<String>,
    /// flock(2) locks are kept by the file system; else by this machine alone.
    pub flock_locks: bool,
    /// fcntl(2) locks are kept by the file system; else by this machine alone.
    pub posix_locks: bool,
    /// Threads that read requests, for [`Mounted::read_requests`].
    pub threads: usize,
}

/// A mounted file system whose requests nobody reads yet.
#[derive(Debug)]
pub struct Mounted {
    session: fuser::Session<Handshake>,
    device: Arc<Device>,
    threads: usize,
}

/// The kernel's side of one mount: where answers and notifications go.
#[derive(Debug)]
pub struct Device {
    file: File,
}

/// Unmounts, from any thread.
#[derive(Debug)]
pub struct Unmounter {
    unmounter: Mutex<fuser::SessionUnmounter>,
}

impl Mounted {
    /// Mount and shake hands. When this returns, the mount is visible.
    ///
    /// Errors: the system's, or fusermount3's message as `io::ErrorKind::Other`.
    pub fn new(settings: &MountSettings) -> io::Result<Mounted> {
        let mut config = Config::default();
        config.mount_options = mount_options(settings);
        config.acl = if settings.allow_other { SessionACL::All } else { SessionACL::Owner };
        let handshake = Handshake { flock_locks: settings.flock_locks, posix_locks: settings.posix_locks };
        let mount_point = settings.mount_point.canonicalize()?;
        let session = fuser::Session::new(handshake, &mount_point, &config)?;
        let file = File::from(session.as_fd().try_clone_to_owned()?);
        raise_read_ahead(&mount_point);
        Ok(Mounted { session, device: Arc::new(Device { file }), threads: settings.threads.max(1) })
    }

    /// Where answers and notifications go.
    pub fn device(&self) -> Arc<Device> {
        self.device.clone()
    }

    /// What unmounts this mount.
    pub fn unmounter(&mut self) -> Unmounter {
        Unmounter { unmounter: Mutex::new(self.session.unmount_callable()) }
    }

    /// Read requests until the file system is unmounted, and give each to `accept` (called from several threads).
    ///
    /// Errors: the device's; unmounting is none. The mount, if it still stands, is taken down on the way out.
    pub fn read_requests(self, accept: impl Fn(Request) + Clone + Send + 'static) -> io::Result<()> {
        let mut readers = Vec::new();
        for number in 0..self.threads {
            let (device, accept) = (self.device.clone(), accept.clone());
            let reader = thread::Builder::new().name(format!("fuse-{number}"));
            readers.push(reader.spawn(move || read_requests(device, accept))?);
        }
        let mut outcome = Ok(());
        for reader in readers {
            let ended = reader.join().unwrap_or_else(|_| Err(io::Error::other("a thread that reads requests died")));
            outcome = outcome.and(ended);
        }
        outcome
    }
}

impl Mounted {
    /// The same on this core: `accept` is called here, between other tasks.
    pub async fn read_requests_here(self, ring: &Ring, accept: impl Fn(Request)) -> io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(&self.device.file)?;
        rustix::fs::fcntl_setfl(&self.device.file, flags | rustix::fs::OFlags::NONBLOCK)?;
        let watched = ring.watch(self.device.file.try_clone()?.into());
        let mut reader = Reader { device: self.device.clone(), buffer: new_buffer() };
        loop {
            for _ in 0..REQUESTS_PER_TURN {
                match reader.read()? {
                    Event::Request(request) => accept(request),
                    Event::Nothing => watched.readable().await?,
                    Event::Unmounted => return Ok(()),
                }
            }
            ring.yield_now().await;
        }
    }
}

impl Unmounter {
    /// Unmount; with files open, detach: no new path leads in, and the mount goes when the last file is closed.
    pub fn unmount(&self, mount_point: &Path) -> io::Result<()> {
        let first = self.unmounter.lock().expect("no thread panics while it unmounts").unmount();
        let Err(error) = first else { return Ok(()) };
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(error);
        }
        match rustix::mount::unmount(mount_point, rustix::mount::UnmountFlags::DETACH) {
            Ok(()) => Ok(()),
            // Not root: the setuid helper may.
            Err(_) => {
                let helper =
                    std::process::Command::new("fusermount3").args(["-u", "-z", "--"]).arg(mount_point).output();
                if helper.is_ok_and(|output| output.status.success()) { Ok(()) } else { Err(error) }
            }
        }
    }
}

impl Transport for Device {
    fn answer(&self, unique: u64, answer: &Result<Reply, Errno>) {
        let head = kernel::encode(unique, answer);
        let written = match answer {
            Ok(Reply::Data(parts)) => {
                let mut slices = Vec::with_capacity(1 + parts.len());
                slices.push(IoSlice::new(&head));
                slices.extend(parts.iter().map(|part| IoSlice::new(part.as_ref().as_ref())));
                (&self.file).write_vectored(&slices)
            }
            _ => (&self.file).write(&head),
        };
        match written {
            Ok(_) => {}
            // Nobody waits for this answer any more.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {}
            Err(error) => {
                tracing::warn!(unique, %error, "the kernel does not take an answer");
                // It may have been the data (a page that cannot be written to); the process must not wait for ever.
                let _ = (&self.file).write(&kernel::encode(unique, &Err(Errno(libc::EIO))));
            }
        }
    }
}

/// What the kernel is told without having asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notification {
    /// Drop pages and attributes; see [`kernel::invalidate_inode`].
    Inode {
        /// Of which inode.
        inode: u64,
        /// From here on; negative: attributes only.
        offset_bytes: i64,
        /// For so long; 0: to the end.
        length_bytes: i64,
    },
    /// Forget a name; see [`kernel::invalidate_entry`].
    Entry {
        /// In which directory.
        parent: u64,
        /// Which name.
        name: Vec<u8>,
    },
}

/// Start the thread that passes notifications on.
///
/// They have a thread of their own because the kernel may keep its writer waiting: for a page that is just being read
/// (by us), or a directory whose lock a process holds while it waits (for us).
pub fn start_notifier(device: Arc<Device>) -> io::Result<mpsc::Sender<Notification>> {
    let (sender, receiver) = mpsc::channel::<Notification>();
    thread::Builder::new().name("fuse-notify".to_owned()).spawn(move || {
        for notification in receiver {
            let message = match &notification {
                Notification::Inode { inode, offset_bytes, length_bytes } => {
                    kernel::invalidate_inode(*inode, *offset_bytes, *length_bytes)
                }
                Notification::Entry { parent, name } => kernel::invalidate_entry(*parent, name),
            };
            match (&device.file).write(&message) {
                Ok(_) => {}
                // The kernel does not have it cached, or a directory is not empty.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTEMPTY | libc::ENOTDIR)) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return,
                Err(error) => tracing::debug!(?notification, %error, "the kernel does not take a notification"),
            }
        }
    })?;
    Ok(sender)
}

fn read_requests(device: Arc<Device>, accept: impl Fn(Request)) -> io::Result<()> {
    let mut reader = Reader { device, buffer: new_buffer() };
    loop {
        match reader.read()? {
            Event::Request(request) => accept(request),
            Event::Nothing => {}
            Event::Unmounted => return Ok(()),
        }
    }
}

/// Reads one request after the other.
struct Reader {
    device: Arc<Device>,
    buffer: Vec<u8>,
}

enum Event {
    Request(Request),
    /// The request was withdrawn, or none is there.
    Nothing,
    Unmounted,
}

impl Reader {
    fn read(&mut self) -> io::Result<Event> {
        let size = match (&self.device.file).read(&mut self.buffer) {
            Ok(size) => size,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENODEV) => return Ok(Event::Unmounted),
                Some(libc::EINTR | libc::EAGAIN | libc::ENOENT) => return Ok(Event::Nothing),
                _ => return Err(error),
            },
        };
        match decode(&mut self.buffer, size) {
            Ok(Request { operation: Operation::Destroy, .. }) => Ok(Event::Unmounted),
            Ok(request) => Ok(Event::Request(request)),
            Err(malformed) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the kernel sent a request that makes no sense, operation {}", malformed.opcode),
            )),
        }
    }
}

fn new_buffer() -> Vec<u8> {
    vec![0; WRITE_BYTES_MAX as usize + kernel::REQUEST_OVERHEAD_BYTES]
}

/// Decode the first `size` bytes of `buffer`. The data of a large write keeps the buffer, and a new one takes its
/// place; a small one is copied out, so that it does not hold a megabyte while it waits in the write cache.
fn decode(buffer: &mut Vec<u8>, size: usize) -> Result<Request, kernel::Malformed> {
    let mut keep = None;
    let mut request = kernel::decode(&buffer[..size], |range| {
        if range.len() < COPY_BYTES_BELOW {
            return Payload::from(buffer[range].to_vec());
        }
        keep = Some(range);
        Payload::from(Vec::new()) // until the buffer can move
    })?;
    if let (Some(range), Operation::Write { data, .. }) = (keep, &mut request.operation) {
        *data = Payload::new(std::mem::replace(buffer, new_buffer()), range);
    }
    Ok(request)
}

/// The file system that `fuser` knows: it agrees on capabilities and serves nothing. Spec 72, 1.4.
#[derive(Debug)]
struct Handshake {
    flock_locks: bool,
    posix_locks: bool,
}

impl fuser::Filesystem for Handshake {
    fn init(&mut self, _request: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = vec![
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_EXPORT_SUPPORT,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // Without it the kernel asks for `security.capability` before every write.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        if self.flock_locks {
            wanted.push(InitFlags::FUSE_FLOCK_LOCKS);
        }
        if self.posix_locks {
            wanted.push(InitFlags::FUSE_POSIX_LOCKS);
        }
        for capability in wanted {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "this kernel's FUSE does not have it");
            }
        }
        // Each of these returns the nearest value that the kernel allows.
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        if let Err(most) = config.set_max_readahead(READ_AHEAD_BYTES) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(BACKGROUND_REQUESTS_MAX);
        // Ours stores nanoseconds; another master cuts them itself, and its answers say what it stored.
        let _ = config.set_time_granularity(Duration::from_nanos(1));
        Ok(())
    }
}

fn mount_options(settings: &MountSettings) -> Vec<MountOption> {
    let mut options = vec![MountOption::FSName(settings.source.clone())];
    for option in &settings.options {
        options.push(match option.as_str() {
            "ro" => MountOption::RO,
            "rw" => MountOption::RW,
            "dev" => MountOption::Dev,
            "nodev" => MountOption::NoDev,
            "suid" => MountOption::Suid,
            "nosuid" => MountOption::NoSuid,
            "exec" => MountOption::Exec,
            "noexec" => MountOption::NoExec,
            "atime" => MountOption::Atime,
            "noatime" => MountOption::NoAtime,
            "dirsync" => MountOption::DirSync,
            "sync" => MountOption::Sync,
            "async" => MountOption::Async,
            "auto_unmount" => MountOption::AutoUnmount,
            "default_permissions" => MountOption::DefaultPermissions,
            other => match other.strip_prefix("subtype=") {
                Some(subtype) => MountOption::Subtype(subtype.to_owned()),
                None => MountOption::CUSTOM(other.to_owned()),
            },
        });
    }
    options
}

/// Raise the kernel's read-ahead for this mount to [`READ_AHEAD_BYTES`]; the handshake can only lower it from the
/// default of 128 KiB. Needs root; without, sequential reads come in smaller pieces. `mount_point` is resolved, and
/// the mount table is asked for its device, because nobody serves the file system itself yet.
fn raise_read_ahead(mount_point: &Path) {
    let Ok(table) = std::fs::read("/proc/self/mountinfo") else { return };
    let Some(mount) = crate::mount_table::find(&table, mount_point) else { return };
    let path = format!("/sys/class/bdi/{}/read_ahead_kb", mount.device);
    if let Err(error) = std::fs::write(&path, (READ_AHEAD_BYTES >> 10).to_string()) {
        tracing::debug!(%path, %error, "the kernel's read-ahead stays as it is");
    }
}
