//! Opening, creating and releasing files, and changing their length. Spec 31, 31.6 and 31.9; Spec 72, 5.

use std::rc::Rc;
use std::time::Duration;

use wire::{
    Attr, CltomaFuseCreate, CltomaFuseOpen, CltomaFuseRegister, CltomaFuseTruncate, Gids, Inode,
    MatoclFuseChunkHasChanged, MatoclFuseCreate, MatoclFuseOpen, MatoclFuseTruncate, Packet, Status, attr_flags,
    open_flags, opened_flags, truncate_flags,
};

use crate::client::Inner;
use crate::files::{File, Open};
use crate::locations::ChunkLocation;
use crate::names::name_of;
use crate::read::{chunk_index, in_chunk};
use crate::retry::pause;
use crate::types::*;
use crate::{Errno, Event};

impl Inner {
    pub(crate) async fn create(
        self: &Rc<Self>,
        caller: &Caller,
        parent: Inode,
        name: &[u8],
        mode: u16,
        flags: OpenFlags,
    ) -> Result<(Entry, Opened), Errno> {
        let name = name_of(name)?;
        let answer: MatoclFuseCreate = {
            let _creating = Creating::new(self);
            let answer = self
                .ask(|msgid| CltomaFuseCreate {
                    msgid,
                    parent,
                    name,
                    mode,
                    umask: caller.umask,
                    uid: caller.uid,
                    gids: Gids::list(&caller.gids),
                })
                .await;
            if let Ok(MatoclFuseCreate { inode, .. }) = &answer {
                // Held before the list of open inodes may be sent again.
                self.files.hold(*inode);
            }
            answer?
        };
        let file = self.files.find(answer.inode).expect("held above");
        let open = self.add_open(file, caller, flags, answer.oflags, &answer.attr);
        let entry = Entry { inode: answer.inode, attr: answer.attr, flags: 0 };
        let opened = opened_of(&open, answer.attr, answer.oflags);
        Ok((entry, opened))
    }

    pub(crate) async fn open(
        self: &Rc<Self>,
        caller: &Caller,
        inode: Inode,
        flags: OpenFlags,
    ) -> Result<Opened, Errno> {
        // Held from now on: a list of open inodes that is sent while OPEN is under way must name it.
        let file = self.files.hold(inode);
        let guard = HoldGuard { inner: self, file: Some(file.clone()) };
        // What is lost now is told by `fsync` and `close`.
        let _ = self.flush_file(&file).await;
        let notices = file.notices.get();
        let answer: MatoclFuseOpen = self
            .ask(|msgid| CltomaFuseOpen {
                msgid,
                inode,
                uid: caller.uid,
                gids: Gids::list(&caller.gids),
                flags: open_bits(flags),
            })
            .await?;
        if flags.truncate {
            self.length_was_set(&file, answer.attr.length_bytes());
            self.was_cut(inode, answer.attr.length_bytes());
        } else if notices == file.notices.get() {
            file.master_length.set(answer.attr.length_bytes());
        }
        guard.keep();
        let open = self.add_open(file, caller, flags, answer.oflags, &answer.attr);
        Ok(opened_of(&open, self.files.with_local(inode, answer.attr), answer.oflags))
    }

    fn add_open(&self, file: Rc<File>, caller: &Caller, flags: OpenFlags, oflags: u8, attr: &Attr) -> Rc<Open> {
        if file.dirty.is_empty() && file.master_length.get() == 0 {
            file.master_length.set(attr.length_bytes());
        }
        let append_only = oflags & opened_flags::APPENDONLY != 0;
        self.files.add_open(file, flags, append_only, caller.uid == 0)
    }

    pub(crate) async fn release(self: &Rc<Self>, open: &Open, flock_owner: Option<u64>) -> Result<(), Errno> {
        let file = &open.file;
        let _ = self.flush_file(file).await; // told here, and to others
        let flushed = open.tell_losses_at_close();
        let owners: Vec<u64> = open.lock_owners.borrow().iter().copied().collect();
        for owner in owners {
            let _ = self.drop_posix_locks(file.inode, owner).await; // the file is closed in any case
        }
        if let Some(owner) = flock_owner.filter(|_| open.used_flock.get()) {
            let _ = self.release_flock(file.inode, owner).await; // likewise
        }
        self.files.let_go(file);
        self.forget_unheld(file.inode);
        self.sync_surplus();
        flushed
    }

    /// Keeps a location for the next read, if the master will tell when it changes: only of inodes that it keeps for
    /// us. A fetch or a write may end after the last handle is gone.
    pub(crate) fn remember_location(&self, inode: Inode, index: u32, location: &ChunkLocation) {
        if self.files.is_held(inode) {
            self.locations.put(inode, index, location.clone());
        }
    }

    /// The inode may have lost its last reference: then no location of it may be remembered.
    pub(crate) fn forget_unheld(&self, inode: Inode) {
        if !self.files.is_held(inode) {
            self.locations.forget_from(inode, 0);
        }
    }

    /// Room for `size` bytes behind the end of the file, wherever other clients' appends have moved it. Returns the
    /// offset. Spec 31, 31.9.
    pub(crate) async fn reserve(&self, file: &Rc<File>, size: u64) -> Result<u64, Errno> {
        let flags = truncate_flags::OPENED | truncate_flags::UPDATE | truncate_flags::RESERVE;
        let answer = self.ask_truncate(file.inode, flags, &Caller::root(), size).await?;
        // The master does not know the end of our own unsent data.
        Ok(answer.prevlength.max(file.dirty.end()))
    }

    pub(crate) async fn truncate(
        self: &Rc<Self>,
        caller: &Caller,
        inode: Inode,
        handle: Option<Handle>,
        length: u64,
    ) -> Result<Attr, Errno> {
        if length >= wire::limits::FILE_BYTES_MAX {
            return Err(Errno::EFBIG);
        }
        let mut flags = 0;
        if let Some(handle) = handle {
            let open = self.files.open(handle)?;
            if !open.flags.write {
                return Err(Errno::EACCES);
            }
            flags |= truncate_flags::OPENED;
        }
        let file = self.files.find(inode);
        if let Some(file) = &file {
            self.flush_file(file).await?;
        }
        let answer = self.ask_truncate(inode, flags, caller, length).await?;
        if let Some(file) = &file {
            self.length_was_set(file, length);
        }
        self.locations.forget_from(inode, chunk_index(length));
        self.was_cut(inode, length);
        self.files.cancel_times(inode, false, true);
        Ok(self.files.with_local(inode, answer.attr))
    }

    /// TRUNCATE with its own retries. Spec 31, 31.9; Spec 72, 7.3.
    async fn ask_truncate(
        &self,
        inode: Inode,
        flags: u8,
        caller: &Caller,
        length: u64,
    ) -> Result<MatoclFuseTruncate, Errno> {
        let mut tries = 0;
        loop {
            let answer: Result<MatoclFuseTruncate, Status> = self
                .ask_status(|msgid| CltomaFuseTruncate {
                    msgid,
                    inode,
                    flags,
                    uid: caller.uid,
                    gids: Gids::list(&caller.gids),
                    length,
                })
                .await?;
            let status = match answer {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            match status {
                Status::LOCKED => self.ring.sleep(Duration::from_millis(10)).await,
                Status::EROFS
                | Status::EACCES
                | Status::EPERM
                | Status::ENOENT
                | Status::QUOTA
                | Status::NOSPACE
                | Status::EINVAL
                | Status::INDEXTOOBIG
                | Status::CHUNKLOST => return Err(Errno::from_status(status)),
                _ => {
                    tries += 1;
                    if crate::retry::tries_max(&self.settings).is_some_and(|max| tries >= max) {
                        return Err(Errno::from_status(status));
                    }
                    self.ring.sleep(pause(tries)).await;
                }
            }
        }
    }

    /// Our own change of a file's length: what was read of it is doubtful.
    fn length_was_set(&self, file: &File, length: u64) {
        file.noticed();
        file.master_length.set(length);
        file.bytes_changed(0, u64::MAX);
        self.locations.forget_from(file.inode, chunk_index(length));
    }

    /// We cut the file: what was written behind the cut and is kept must not come back.
    fn was_cut(&self, inode: Inode, length: u64) {
        if let Some(unsynced) = self.files.unsynced(inode) {
            unsynced.cut(chunk_index(length), in_chunk(length % u64::from(wire::limits::CHUNK_BYTES)));
        }
    }

    /// Notice 702. Spec 30, 6.
    pub(crate) fn chunk_has_changed(&self, notice: &MatoclFuseChunkHasChanged) {
        let inode = notice.inode;
        let start = u64::from(notice.index).saturating_mul(u64::from(wire::limits::CHUNK_BYTES));
        let is_truncated = notice.truncflag != 0;
        self.locations.replace(inode, notice.index, notice.chunkid, notice.version);
        if is_truncated {
            self.locations.forget_from(inode, notice.index.saturating_add(1));
        }
        if let Some(unsynced) = self.files.unsynced(inode) {
            unsynced.foreign_change(notice.index, is_truncated);
        }
        let end = if is_truncated { u64::MAX } else { start.saturating_add(u64::from(wire::limits::CHUNK_BYTES)) };
        if let Some(file) = self.files.find(inode) {
            file.noticed();
            file.master_length.set(notice.length);
            file.bytes_changed(start, end);
        }
        let length = if is_truncated { u64::MAX } else { end - start };
        self.events.tell(Event::DataChanged { inode, offset: start, length });
        self.events.tell(Event::LengthChanged { inode, length: notice.length });
    }

    /// Notice 703. Spec 30, 6.
    pub(crate) fn length_has_changed(&self, inode: Inode, length: u64) {
        if let Some(unsynced) = self.files.unsynced(inode) {
            unsynced.foreign_change(chunk_index(length), true);
        }
        if let Some(file) = self.files.find(inode) {
            file.noticed();
            file.master_length.set(length);
            file.bytes_changed(length, u64::MAX);
        }
        self.events.tell(Event::LengthChanged { inode, length });
        self.events.tell(Event::DataChanged { inode, offset: length, length: u64::MAX });
    }

    /// Last words to the master: times, the (shrunken) list of inodes, CLOSESESSION. Spec 30, 5.1.
    pub(crate) async fn close_session(&self) {
        self.master.begin_close();
        let Some(session) = self.master.session() else { return };
        self.tell_times();
        self.master.tell(wire::CltomaFuseSustainedInodes { inodes: Vec::new() }.encode());
        let request = CltomaFuseRegister::CloseSession { sessionid: session.id, metaid: Some(session.metaid) };
        self.master.tell(request.encode());
        self.drain_queue().await;
        // The answer or the end of the connection; half a second is what stock clients wait. Spec 72, 1.5.
        self.master.wait_down(&self.ring, Duration::from_millis(500)).await;
    }
}

fn open_bits(flags: OpenFlags) -> u8 {
    let bit = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
    bit(flags.read, open_flags::READ) | bit(flags.write, open_flags::WRITE) | bit(flags.truncate, open_flags::TRUNCATE)
}

fn opened_of(open: &Open, attr: Attr, oflags: u8) -> Opened {
    let direct = oflags & opened_flags::DIRECTMODE != 0
        || oflags & opened_flags::APPENDONLY != 0
        || open.flags.append
        || attr.flags & attr_flags::DIRECT_MODE != 0;
    Opened {
        handle: open.handle,
        attr,
        keep_cache: oflags & opened_flags::KEEPCACHE != 0 && !direct,
        direct_io: direct,
    }
}

/// Counts a CREATE under way.
struct Creating<'a>(&'a Inner);

impl<'a> Creating<'a> {
    fn new(inner: &'a Inner) -> Creating<'a> {
        inner.master.creating.set(inner.master.creating.get() + 1);
        Creating(inner)
    }
}

impl Drop for Creating<'_> {
    fn drop(&mut self) {
        self.0.master.creating.set(self.0.master.creating.get() - 1);
    }
}

/// Lets a file go again when its OPEN fails or is dropped.
struct HoldGuard<'a> {
    inner: &'a Inner,
    file: Option<Rc<File>>,
}

impl HoldGuard<'_> {
    fn keep(mut self) {
        self.file = None;
    }
}

impl Drop for HoldGuard<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            self.inner.files.let_go(&file);
        }
    }
}
