//! The public calls: each is a few lines over `names`, `locks`, `read`, `write` and `master`.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddrV4};
use std::rc::Rc;

use ring::Ring;
use ring::local::{Receiver, oneshot};
use wire::Inode;

use crate::files::{Budget, Events, Files};
use crate::locations::Locations;
use crate::master::Master;
use crate::pool::Pool;
use crate::read::Buffers;
use crate::types::*;
use crate::{Errno, MountError, Session, Settings};

/// One session with one master, on one core. Cheap to clone.
#[derive(Clone)]
pub struct Client(pub(crate) Rc<Inner>);

/// All state of a client. Modules add their own part as `impl Inner`.
pub(crate) struct Inner {
    pub(crate) ring: Ring,
    pub(crate) settings: Settings,
    pub(crate) master: Master,
    pub(crate) locations: Locations,
    pub(crate) files: Files,
    pub(crate) pool: Rc<Pool>,
    pub(crate) buffers: Buffers,
    pub(crate) write_budget: Budget,
    pub(crate) read_ahead_budget: Budget,
    pub(crate) events: Events,
    /// A task that syncs before it is asked to is at work.
    pub(crate) syncs_early: std::cell::Cell<bool>,
    pub(crate) last_lock_request: std::cell::Cell<u32>,
    pool_beat: RefCell<Option<ring::JoinHandle<()>>>,
}

impl Inner {
    pub(crate) fn bind(&self) -> Option<IpAddr> {
        self.settings.bind.map(IpAddr::V4)
    }
}

impl Client {
    /// Connect, register, and start the tasks that keep the session alive. Returns when the master has accepted, or
    /// at once with `Settings::delayed_init`. Spec 30, 5.1.
    pub async fn connect(ring: Ring, settings: Settings) -> Result<Client, MountError> {
        let is_delayed = settings.delayed_init;
        let pool = Rc::new(Pool::default());
        let inner = Rc::new(Inner {
            master: Master::new(ring.now(), settings.master.clone()),
            locations: Locations::default(),
            files: Files::default(),
            buffers: Buffers::default(),
            write_budget: Budget::new(settings.write_cache_bytes.max(1 << 20)),
            read_ahead_budget: Budget::new(settings.read_ahead_bytes.max(1 << 20)),
            events: Events::new(),
            syncs_early: std::cell::Cell::new(false),
            last_lock_request: std::cell::Cell::new(0),
            pool_beat: RefCell::new(Some(ring.spawn(pool.clone().beat(ring.clone())))),
            pool,
            settings,
            ring: ring.clone(),
        });
        let (first, is_accepted) = oneshot();
        drop(ring.spawn(inner.clone().run_master(first)));
        let client = Client(inner);
        if is_delayed {
            return Ok(client);
        }
        match is_accepted.await {
            Some(Ok(())) => Ok(client),
            Some(Err(error)) => {
                client.stop();
                Err(error)
            }
            None => Err(MountError::Protocol("the session ended while it began".into())),
        }
    }

    /// What the master said at the last registration; `None` before the first (delayed init).
    pub fn session(&self) -> Option<Session> {
        self.0.master.session()
    }

    /// Other addresses to try at the next reconnect: the caller has resolved the master's name again.
    pub fn set_master_addresses(&self, addresses: Vec<SocketAddrV4>) {
        self.0.master.set_addresses(addresses);
    }

    /// What the kernel should forget. Can be taken once; nobody reading it is no error.
    pub fn take_events(&self) -> Option<Receiver<Event>> {
        self.0.events.take()
    }

    /// Unmount: writes out everything, tells the master the last times and that the session is over. Spec 72, 1.5.
    pub async fn close(&self) {
        for file in self.0.files.all() {
            if let Err(errno) = self.0.flush_file(&file).await {
                tracing::warn!("inode {}: data is lost at unmount: {errno}", file.inode);
            }
        }
        self.0.close_session().await;
        self.stop();
    }

    fn stop(&self) {
        self.0.master.close();
        self.0.pool.close();
        self.0.events.close();
        if let Some(beat) = self.0.pool_beat.borrow_mut().take() {
            beat.abort();
        }
    }

    /// The kernel was given this inode once more (a lookup, create, mkdir, link, readdirplus reply).
    pub fn kernel_holds(&self, inode: Inode) {
        self.0.files.kernel_holds(inode);
    }

    /// The kernel dropped `count` of these references.
    pub fn kernel_forgot(&self, inode: Inode, count: u64) {
        self.0.files.kernel_forgot(inode, count);
        self.0.forget_unheld(inode);
    }

    /// Create and open for reading and writing; EEXIST if the name is taken.
    pub async fn create(
        &self,
        caller: &Caller,
        parent: Inode,
        name: &[u8],
        mode: u16,
        flags: OpenFlags,
    ) -> Result<(Entry, Opened), Errno> {
        self.0.create(caller, parent, name, mode, flags).await
    }

    /// Opens a file. Own unsent data of it is written out first. Spec 72, 5.1.
    pub async fn open(&self, caller: &Caller, inode: Inode, flags: OpenFlags) -> Result<Opened, Errno> {
        self.0.open(caller, inode, flags).await
    }

    /// Up to `size` bytes; fewer only at the end of the file. Sees this client's unsent writes.
    pub async fn read(&self, handle: Handle, offset: u64, size: u32) -> Result<ReadData, Errno> {
        let open = self.0.files.open(handle)?;
        if !open.flags.read {
            return Err(Errno::EBADF);
        }
        self.check_enabled(crate::disables::READ)?;
        self.0.read_file(&open, offset, size).await
    }

    /// Takes `data` over (no copy of large pieces) and returns when it is in the write cache. Waits while the cache
    /// is full. `offset` is ignored by append handles. Returns the bytes written: all.
    pub async fn write(&self, handle: Handle, offset: u64, data: WriteData) -> Result<u32, Errno> {
        let open = self.0.files.open(handle)?;
        if !open.flags.write {
            return Err(Errno::EBADF);
        }
        self.check_enabled(crate::disables::WRITE)?;
        open.tell_losses_to_writer()?;
        let offset = if open.flags.append || open.append_only {
            self.0.reserve(&open.file, data.len() as u64).await?
        } else {
            offset
        };
        self.0.write_file(&open, offset, data).await
    }

    /// close(2) of one descriptor: all dirty data of the inode is on the chunkservers and the master knows the
    /// length. With `lock_owner`, that owner's fcntl locks are dropped afterwards.
    pub async fn flush(&self, handle: Handle, lock_owner: Option<u64>) -> Result<(), Errno> {
        let open = self.0.files.open(handle)?;
        let _ = self.0.flush_file(&open.file).await; // told below, and again by others
        self.0.tell_times_of(open.file.inode);
        let flushed = open.tell_losses_at_close();
        if let Some(owner) = lock_owner
            && open.lock_owners.borrow_mut().remove(&owner)
        {
            self.0.drop_posix_locks(open.file.inode, owner).await?;
        }
        flushed
    }

    /// All written data of the file is acknowledged by every copy, and on its device; see `Settings::durable_fsync`.
    /// Errors: what was lost since this handle was last told so.
    pub async fn fsync(&self, handle: Handle) -> Result<(), Errno> {
        let open = self.0.files.open(handle)?;
        let synced = self.0.sync_file(&open.file).await;
        open.tell_losses().and(synced)
    }

    /// Last close: flushes what is left, drops left-over locks of the handle, forgets it. `flock_owner`: drop this
    /// owner's flock. Goes on by itself if it is dropped.
    pub async fn release(&self, handle: Handle, flock_owner: Option<u64>) -> Result<(), Errno> {
        let open = self.0.files.remove_open(handle)?;
        let inner = self.0.clone();
        self.0.ring.spawn(async move { inner.release(&open, flock_owner).await }).await.unwrap_or(Err(Errno::EIO))
    }

    /// A tool's request, sent in this session: packet type and its payload behind the msgid. Returns the answer's
    /// type and payload behind the msgid. Spec 72, 2.1.
    pub async fn forward(&self, kind: u32, payload: &[u8]) -> Result<(u32, Vec<u8>), Errno> {
        self.0.forward(kind, payload).await
    }

    /// Operations that the exports forbid are refused here too. Spec 30, 4.4.
    fn check_enabled(&self, disable: u32) -> Result<(), Errno> {
        let is_disabled = self.0.master.is_disabled(disable);
        if is_disabled { Err(Errno::EPERM) } else { Ok(()) }
    }
}
