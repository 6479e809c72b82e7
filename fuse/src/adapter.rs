//! The mount proper: each request of the kernel becomes a call of `client`, its result a reply.
//!
//! Thin on purpose. What needs memory lives beside it: open directories ([`crate::directory`]), groups of callers
//! ([`crate::groups`]), extended attributes ([`crate::xattr`]), hidden files ([`crate::special`]). Data, locks, retries
//! and sessions are the client's. Spec 72, 4 and 5.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::sync::mpsc;

use client::{Attr, AttrChange, Client, Handle, Inode, NodeKind, OpenFlags, Piece, WriteData, XattrMode};
use ring::Ring;
use wire::types::attr_flags;

use crate::acl;
use crate::device::Notification;
use crate::directory::{self, Directories};
use crate::groups::Groups;
use crate::reply::{DataPart, Errno, Opened, Reply};
use crate::request::{Caller, ForgetEntry, Lock, Operation, Payload, Request, SetAttributes};
use crate::serve::FuseOps;
use crate::special::{self, Special};
use crate::stats::Counters;
use crate::translate::{self, CacheTimes};
use crate::xattr::ExtendedAttributes;

/// Who keeps the pages of files. Spec 72, 5.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// As the master says for each open.
    #[default]
    Auto,
    /// Always, even over changes by others while the file was closed.
    Always,
    /// Not from one open to the next.
    Never,
    /// Not at all.
    Direct,
}

/// What a mount decides about the kernel's side. Times of what the mount itself keeps are in seconds of the options.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long the kernel may believe what it is told.
    pub cache_times: CacheTimes,
    /// How long extended attributes are remembered.
    pub xattr_life: std::time::Duration,
    /// How long the groups of a process are remembered; zero: not used.
    pub groups_life: std::time::Duration,
    /// Who keeps pages.
    pub cache_mode: CacheMode,
    /// No extended attributes at all.
    pub no_xattrs: bool,
    /// `name: value` lines for `.params`.
    pub params: Vec<(String, String)>,
}

/// A mounted tree. See the module.
pub struct Adapter {
    client: Client,
    settings: Settings,
    groups: Groups,
    directories: Directories,
    xattrs: ExtendedAttributes,
    files: RefCell<HashMap<u64, OpenFile>>,
    /// Inodes on which fcntl locks were set through this mount: their closes must release locks.
    posix_locked: RefCell<HashSet<u32>>,
    /// Contents of hidden files, made when they were opened.
    specials: RefCell<HashMap<u64, Rc<Vec<u8>>>>,
    next_handle: Cell<u64>,
    proxy: Cell<Option<SocketAddrV4>>,
    counters: Counters,
    notifier: mpsc::Sender<Notification>,
}

/// What the adapter remembers of an open file.
struct OpenFile {
    inode: u32,
    /// It may have suid, sgid or capabilities, which the first write must take away.
    may_have_privileges: bool,
    /// flock(2) was used through this handle.
    flocked: bool,
    /// Nothing kept: the kernel is to send each read and write.
    read_only: bool,
}

impl Adapter {
    /// A mount of what `client` is connected to. `notifier` leads to the kernel.
    pub fn new(ring: &Ring, client: Client, notifier: mpsc::Sender<Notification>, settings: Settings) -> Rc<Adapter> {
        Rc::new(Adapter {
            client,
            groups: Groups::new(ring.clone(), settings.groups_life),
            directories: Directories::default(),
            xattrs: ExtendedAttributes::new(ring.clone(), settings.xattr_life),
            settings,
            files: RefCell::default(),
            posix_locked: RefCell::default(),
            specials: RefCell::default(),
            next_handle: Cell::new(1),
            proxy: Cell::new(None),
            counters: Counters::default(),
            notifier,
        })
    }

    /// Where tools find the proxy; until then `.masterinfo` does not exist.
    pub fn set_proxy(&self, address: SocketAddrV4) {
        self.proxy.set(Some(address));
    }

    /// A number for a directory or a hidden file; files have the client's.
    fn new_handle(&self) -> u64 {
        let handle = self.next_handle.get();
        self.next_handle.set(handle + 1);
        handle
    }

    async fn caller(&self, caller: &Caller, umask: u32) -> client::Caller {
        let gids = self.groups.of(caller).await;
        client::Caller { uid: caller.uid, gids, pid: caller.pid, umask: translate::permissions(umask) }
    }

    /// The kernel gets a reference to this node.
    fn entry(&self, entry: &client::Entry) -> crate::reply::Entry {
        self.client.kernel_holds(entry.inode);
        self.seen(entry.inode, &entry.attr);
        translate::entry(entry.inode, &entry.attr, &self.settings.cache_times)
    }

    /// Remember what attributes say about extended ones.
    fn seen(&self, inode: Inode, attr: &Attr) {
        self.xattrs.seen(inode, attr.flags & attr_flags::NO_XATTR != 0);
    }

    fn attributes(&self, inode: Inode, attr: &Attr) -> Reply {
        self.seen(inode, attr);
        Reply::Attributes(translate::attributes(inode, attr), self.settings.cache_times.attributes(attr))
    }
}

impl FuseOps for Adapter {
    async fn handle(self: Rc<Self>, request: Request) -> Result<Reply, Errno> {
        self.counters.count(&request.operation);
        if request.inode >= special::FIRST_INODE {
            return self.special(request);
        }
        let inode = Inode(u32::try_from(request.inode).expect("below the inodes of hidden files"));
        let who = request.caller;
        use Operation as O;
        match request.operation {
            O::Lookup { name } => self.lookup(&who, inode, &name).await,
            O::GetAttributes { handle } => self.get_attributes(&who, inode, handle).await,
            O::SetAttributes(set) => self.set_attributes(&who, inode, &set).await,
            O::ReadLink => Ok(Reply::bytes(self.client.readlink(inode).await?)),
            O::SymbolicLink { name, target } => {
                checked_new_name(inode, &name)?;
                if target.len() + 1 > translate::LINK_TARGET_BYTES_MAX {
                    return Err(Errno(libc::ENAMETOOLONG));
                }
                let caller = self.caller(&who, 0).await;
                Ok(Reply::Entry(self.entry(&self.client.symlink(&caller, inode, &name, &target).await?)))
            }
            O::MakeNode { name, mode, umask, device } => {
                checked_new_name(inode, &name)?;
                let kind = translate::node_kind(mode)?;
                let caller = self.caller(&who, umask).await;
                let device = if matches!(kind, NodeKind::BlockDevice | NodeKind::CharDevice) { device } else { 0 };
                let mode = translate::permissions(mode);
                Ok(Reply::Entry(self.entry(&self.client.mknod(&caller, inode, &name, kind, mode, device).await?)))
            }
            O::MakeDirectory { name, mode, umask } => {
                checked_new_name(inode, &name)?;
                let caller = self.caller(&who, umask).await;
                let mode = translate::permissions(mode);
                Ok(Reply::Entry(self.entry(&self.client.mkdir(&caller, inode, &name, mode).await?)))
            }
            O::Unlink { name } => {
                checked_new_name(inode, &name)?;
                let caller = self.caller(&who, 0).await;
                self.client.unlink(&caller, inode, &name).await?;
                Ok(Reply::Empty)
            }
            O::RemoveDirectory { name } => {
                checked_new_name(inode, &name)?;
                let caller = self.caller(&who, 0).await;
                self.client.rmdir(&caller, inode, &name).await?;
                Ok(Reply::Empty)
            }
            O::Rename { name, new_directory, new_name, flags } => {
                let new_directory = ordinary(new_directory)?;
                checked_new_name(inode, &name)?;
                checked_new_name(new_directory, &new_name)?;
                if flags != 0 {
                    return Err(Errno(libc::EINVAL)); // as masters of 3.x cannot do it. Spec 72, 4.3
                }
                let caller = self.caller(&who, 0).await;
                self.client.rename(&caller, inode, &name, new_directory, &new_name).await?;
                Ok(Reply::Empty)
            }
            O::Link { source, name } => {
                checked_new_name(inode, &name)?;
                let source = ordinary(source)?;
                let caller = self.caller(&who, 0).await;
                // The master says "no space" when a node has all the links it may have.
                let link = self.client.link(&caller, source, inode, &name).await;
                let link =
                    link.map_err(|errno| if errno.0 == libc::ENOSPC { Errno(libc::EMLINK) } else { errno.into() });
                Ok(Reply::Entry(self.entry(&link?)))
            }
            O::Open { flags, clears_privileges } => {
                let flags = translate::open_flags(flags);
                let caller = self.caller(&who, 0).await;
                self.open(&caller, inode, flags, clears_privileges).await
            }
            O::Create { name, mode, umask, flags } => {
                checked_new_name(inode, &name)?;
                let caller = self.caller(&who, umask).await;
                self.create(&caller, inode, &name, mode, flags).await
            }
            O::Read { handle, offset_bytes, size_bytes } => {
                if offset_bytes >= translate::FILE_BYTES_MAX {
                    return Err(Errno(libc::EFBIG));
                }
                let data = self.client.read(Handle(handle), offset_bytes, size_bytes).await?;
                Ok(Reply::Data(data.into_pieces().into_iter().map(part).collect()))
            }
            O::Write { handle, offset_bytes, data, clears_privileges } => {
                self.write(&who, inode, handle, offset_bytes, data, clears_privileges).await
            }
            O::Flush { handle, lock_owner } => {
                let owner = self.posix_locked.borrow().contains(&inode.0).then_some(lock_owner);
                self.client.flush(Handle(handle), owner).await?;
                Ok(Reply::Empty)
            }
            O::Release { handle, lock_owner, .. } => {
                let file = self.files.borrow_mut().remove(&handle);
                let still_open = self.files.borrow().values().any(|file| file.inode == inode.0);
                if !still_open {
                    self.posix_locked.borrow_mut().remove(&inode.0);
                }
                let flock_owner = file.is_some_and(|file| file.flocked).then_some(lock_owner);
                self.client.release(Handle(handle), flock_owner).await?;
                Ok(Reply::Empty)
            }
            O::Sync { handle, .. } => {
                self.client.fsync(Handle(handle)).await?;
                Ok(Reply::Empty)
            }
            O::OpenDirectory { .. } => {
                let caller = self.caller(&who, 0).await;
                self.client.access(&caller, inode, 4).await?;
                let handle = self.new_handle();
                self.directories.open(handle);
                Ok(Reply::Opened(Opened { handle, ..Opened::default() }))
            }
            O::ReadDirectory { handle, offset, size_bytes, with_attributes } => {
                self.read_directory(&who, inode, handle, offset, size_bytes, with_attributes).await
            }
            O::ReleaseDirectory { handle } => {
                self.directories.close(handle);
                Ok(Reply::Empty)
            }
            O::SyncDirectory { .. } => Ok(Reply::Empty), // the master's changes are its own to keep
            O::FileSystemStatistics => Ok(Reply::Statistics(translate::statistics(&self.client.statfs().await?))),
            O::Access { mask } => {
                let mask = u8::try_from(mask & 7).expect("three bits");
                if mask != 0 {
                    let caller = self.caller(&who, 0).await;
                    self.client.access(&caller, inode, mask).await?;
                }
                Ok(Reply::Empty)
            }
            O::GetExtendedAttribute { name, size_bytes } => self.get_xattr(&who, inode, &name, size_bytes).await,
            O::SetExtendedAttribute { name, value, flags } => self.set_xattr(&who, inode, &name, &value, flags).await,
            O::ListExtendedAttributes { size_bytes } => self.list_xattrs(&who, inode, size_bytes).await,
            O::RemoveExtendedAttribute { name } => self.remove_xattr(&who, inode, &name).await,
            O::GetLock { handle, owner, lock } => {
                let found = self.client.posix_lock_test(Handle(handle), owner, translate::posix_lock(&lock)?).await?;
                Ok(Reply::Lock(translate::found_lock(found)))
            }
            O::SetLock { handle, owner, lock, wait, whole_file } => {
                self.set_lock(inode, handle, owner, &lock, wait, whole_file).await
            }
            // After ENOSYS the kernel does these itself, or tells the process that they cannot be done.
            O::Allocate { .. } | O::Seek { .. } | O::Unknown { .. } => Err(Errno(libc::ENOSYS)),
            O::Forget { .. } | O::Interrupt { .. } | O::Destroy => Ok(Reply::Empty), // served before they come here
        }
    }

    fn forget(&self, entries: &[ForgetEntry]) {
        for entry in entries {
            if let Ok(inode) = ordinary(entry.inode) {
                self.client.kernel_forgot(inode, entry.count);
            }
        }
    }
}

/// Names and attributes.
impl Adapter {
    async fn lookup(&self, who: &Caller, parent: Inode, name: &[u8]) -> Result<Reply, Errno> {
        checked_length(name)?;
        if parent.0 == ROOT
            && let Some(special) = self.special_by_name(name)
        {
            return Ok(Reply::Entry(special.entry()));
        }
        let caller = self.caller(who, 0).await;
        match self.client.lookup(&caller, parent, name).await {
            Ok(entry) => Ok(Reply::Entry(self.entry(&entry))),
            Err(errno) if errno.0 == libc::ENOENT => {
                if self.special_by_name(name) == Some(Special::MasterInfo) {
                    return Ok(Reply::Entry(Special::MasterInfo.entry()));
                }
                if self.settings.cache_times.negative_entry.is_zero() {
                    return Err(errno.into());
                }
                Ok(Reply::Entry(translate::negative_entry(&self.settings.cache_times)))
            }
            Err(errno) => Err(errno.into()),
        }
    }

    async fn get_attributes(&self, who: &Caller, inode: Inode, handle: Option<u64>) -> Result<Reply, Errno> {
        // Attributes do not depend on more of the caller than this. Spec 31, 31.5.
        let caller = client::Caller { uid: who.uid, gids: vec![who.gid], pid: who.pid, umask: 0 };
        let attr = self.client.getattr(&caller, inode, handle.map(Handle)).await?;
        Ok(self.attributes(inode, &attr))
    }

    async fn set_attributes(&self, who: &Caller, inode: Inode, set: &SetAttributes) -> Result<Reply, Errno> {
        let mut change = translate::attribute_change(set)?;
        let caller = self.caller(who, 0).await;
        if change.mode.is_some() {
            self.xattrs.forget(inode); // an access ACL changes with the mode
        }
        if change.mode.is_some_and(|mode| mode & 0o6000 != 0) {
            self.has_privileges(inode);
        }
        if change.size.is_some() && change.mode.is_none() {
            change.mode = self.mode_after_write(&caller, inode, set.clears_privileges).await?;
        }
        let handle = set.handle.filter(|handle| self.files.borrow().contains_key(handle)).map(Handle);
        let attr = self.client.setattr(&caller, inode, handle, &change).await?;
        Ok(self.attributes(inode, &attr))
    }

    async fn read_directory(
        &self,
        who: &Caller,
        inode: Inode,
        handle: u64,
        offset: u64,
        size_bytes: u32,
        with_attributes: bool,
    ) -> Result<Reply, Errno> {
        let listing = match self.directories.listing(handle, offset) {
            Some(listing) => listing,
            None => {
                let caller = self.caller(who, 0).await;
                let listing = Rc::new(self.client.read_dir(&caller, inode, with_attributes).await?);
                self.directories.keep(handle, &listing);
                listing
            }
        };
        let times = with_attributes.then_some(&self.settings.cache_times);
        let given = |listed: &client::DirEntry| {
            self.client.kernel_holds(listed.inode);
            if let Some(attr) = &listed.attr {
                self.seen(listed.inode, attr);
            }
        };
        Ok(Reply::bytes(directory::piece(&listing, offset, size_bytes as usize, times, given)))
    }
}

/// Files.
impl Adapter {
    async fn open(
        &self,
        caller: &client::Caller,
        inode: Inode,
        flags: OpenFlags,
        clears_privileges: bool,
    ) -> Result<Reply, Errno> {
        let opened = self.client.open(caller, inode, flags).await?;
        if flags.truncate
            && let Some(mode) = self.mode_after_write(caller, inode, clears_privileges).await?
        {
            let change = AttrChange { mode: Some(mode), ..AttrChange::default() };
            self.client.setattr(caller, inode, Some(opened.handle), &change).await?;
        }
        Ok(Reply::Opened(self.opened(inode, &opened, flags)))
    }

    fn opened(&self, inode: Inode, opened: &client::Opened, flags: OpenFlags) -> Opened {
        let attr = &opened.attr;
        self.seen(inode, attr);
        let file = OpenFile {
            inode: inode.0,
            may_have_privileges: attr.mode & 0o6000 != 0 || attr.flags & attr_flags::NO_XATTR == 0,
            flocked: false,
            read_only: !flags.write,
        };
        self.files.borrow_mut().insert(opened.handle.0, file);
        let direct_io = opened.direct_io || flags.append || self.settings.cache_mode == CacheMode::Direct;
        let keep_cache = match self.settings.cache_mode {
            CacheMode::Auto => opened.keep_cache,
            CacheMode::Always => true,
            CacheMode::Never | CacheMode::Direct => false,
        };
        Opened {
            handle: opened.handle.0,
            direct_io,
            keep_cache: keep_cache && !direct_io,
            // Nothing is dirty, so nothing is to be flushed; but locks end with a close.
            no_flush: false,
            parallel_direct_writes: !flags.append,
            cache_directory: false,
        }
    }

    /// CREATE. The kernel looked the name up before; if somebody else has made it since, it is opened, unless the
    /// process asked for exclusive creation.
    async fn create(
        &self,
        caller: &client::Caller,
        parent: Inode,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> Result<Reply, Errno> {
        let how = translate::open_flags(flags);
        match self.client.create(caller, parent, name, translate::permissions(mode), how).await {
            Ok((entry, opened)) => {
                self.xattrs.seen(entry.inode, true);
                Ok(Reply::Created(self.entry(&entry), self.opened(entry.inode, &opened, how)))
            }
            Err(errno) if errno.0 == libc::EEXIST && flags & libc::O_EXCL == 0 => {
                let entry = self.client.lookup(caller, parent, name).await?;
                if entry.attr.kind != NodeKind::File {
                    return Err(errno.into());
                }
                let opened = self.client.open(caller, entry.inode, how).await?;
                Ok(Reply::Created(self.entry(&entry), self.opened(entry.inode, &opened, how)))
            }
            Err(errno) => Err(errno.into()),
        }
    }

    async fn write(
        &self,
        who: &Caller,
        inode: Inode,
        handle: u64,
        offset_bytes: u64,
        data: Payload,
        clears_privileges: bool,
    ) -> Result<Reply, Errno> {
        if offset_bytes.saturating_add(data.len() as u64) >= translate::FILE_BYTES_MAX {
            return Err(Errno(libc::EFBIG));
        }
        let check = match self.files.borrow_mut().get_mut(&handle) {
            None => return Err(Errno(libc::EBADF)),
            Some(file) if file.read_only => return Err(Errno(libc::EACCES)),
            Some(file) => std::mem::take(&mut file.may_have_privileges),
        };
        if check {
            let caller = self.caller(who, 0).await;
            if let Some(mode) = self.mode_after_write(&caller, inode, clears_privileges).await? {
                let change = AttrChange { mode: Some(mode), ..AttrChange::default() };
                self.client.setattr(&caller, inode, Some(Handle(handle)), &change).await?;
            }
        }
        let (buffer, range) = data.into_parts();
        let written = self.client.write(Handle(handle), offset_bytes, WriteData::new(buffer, range)).await?;
        Ok(Reply::Written(written))
    }

    /// The kernel leaves it to us to take suid, sgid and capabilities from a file that is written to; see the
    /// capability HANDLE_KILLPRIV_V2 in [`crate::device`]. Capabilities go here, whoever writes. Returns the mode to
    /// set, if it has to change.
    async fn mode_after_write(
        &self,
        caller: &client::Caller,
        inode: Inode,
        clears_privileges: bool,
    ) -> Result<Option<u16>, Errno> {
        let attr = self.client.getattr(caller, inode, None).await?;
        if attr.kind == NodeKind::File && attr.flags & attr_flags::NO_XATTR == 0 {
            self.xattrs.forget(inode);
            // Not having any is the rule; a refusal must not stop a write that is allowed.
            let _ = self.client.removexattr(&client::Caller::root(), inode, b"security.capability").await;
        }
        Ok(if clears_privileges { translate::mode_without_privileges(&attr) } else { None })
    }

    /// From now on a write through any handle has to look whether privileges must go.
    fn has_privileges(&self, inode: Inode) {
        for file in self.files.borrow_mut().values_mut().filter(|file| file.inode == inode.0) {
            file.may_have_privileges = true;
        }
    }

    async fn set_lock(
        &self,
        inode: Inode,
        handle: u64,
        owner: u64,
        lock: &Lock,
        wait: bool,
        whole_file: bool,
    ) -> Result<Reply, Errno> {
        let kind = translate::lock_kind(lock.kind)?;
        if whole_file {
            if let Some(file) = self.files.borrow_mut().get_mut(&handle) {
                file.flocked = true;
            }
            self.client.flock(Handle(handle), owner, kind, wait).await?;
        } else {
            self.posix_locked.borrow_mut().insert(inode.0);
            self.client.posix_lock(Handle(handle), owner, translate::posix_lock(lock)?, wait).await?;
        }
        Ok(Reply::Empty)
    }
}

/// Extended attributes. Spec 72, 4.3.
impl Adapter {
    fn checked_xattr_name(&self, name: &[u8]) -> Result<(), Errno> {
        match name.len() {
            _ if self.settings.no_xattrs => Err(Errno(libc::ENOSYS)),
            0 => Err(Errno(libc::EINVAL)),
            length if length > translate::NAME_BYTES_MAX => Err(Errno(libc::ERANGE)),
            _ => Ok(()),
        }
    }

    async fn get_xattr(&self, who: &Caller, inode: Inode, name: &[u8], size_bytes: u32) -> Result<Reply, Errno> {
        self.checked_xattr_name(name)?;
        let known = self.xattrs.get(inode, who, name);
        let value = match known {
            Some(value) => value,
            None => {
                let caller = self.caller(who, 0).await;
                let asked = match acl::is_default_list(name) {
                    Some(is_default) => self.client.get_acl(inode, is_default).await.map(|list| acl::format(&list)),
                    None => self.client.getxattr(&caller, inode, name).await,
                };
                let value = match asked {
                    Ok(value) => Some(value),
                    Err(errno) if errno.0 == libc::ENODATA => None,
                    Err(errno) => return Err(errno.into()),
                };
                self.xattrs.keep(inode, who, name, value.as_deref());
                value
            }
        };
        sized(value.ok_or(Errno(libc::ENODATA))?, size_bytes)
    }

    async fn list_xattrs(&self, who: &Caller, inode: Inode, size_bytes: u32) -> Result<Reply, Errno> {
        if self.settings.no_xattrs {
            return Err(Errno(libc::ENOSYS));
        }
        if self.xattrs.has_none(inode) {
            return sized(Vec::new(), size_bytes);
        }
        let caller = self.caller(who, 0).await;
        sized(self.client.listxattr(&caller, inode).await?, size_bytes)
    }

    async fn set_xattr(
        &self,
        who: &Caller,
        inode: Inode,
        name: &[u8],
        value: &[u8],
        flags: i32,
    ) -> Result<Reply, Errno> {
        self.checked_xattr_name(name)?;
        if value.len() > translate::EXTENDED_ATTRIBUTE_BYTES_MAX {
            return Err(Errno(libc::ERANGE));
        }
        let mode = match flags & (libc::XATTR_CREATE | libc::XATTR_REPLACE) {
            0 => XattrMode::CreateOrReplace,
            libc::XATTR_CREATE => XattrMode::CreateOnly,
            libc::XATTR_REPLACE => XattrMode::ReplaceOnly,
            _ => return Err(Errno(libc::EINVAL)),
        };
        let caller = self.caller(who, 0).await;
        let outcome = match acl::is_default_list(name) {
            Some(is_default) => self.set_acl(&caller, inode, is_default, &acl::parse(value)?).await,
            None => Ok(self.client.setxattr(&caller, inode, name, value, mode).await?),
        };
        self.xattrs.forget(inode);
        self.has_privileges(inode);
        outcome.map(|()| Reply::Empty)
    }

    async fn remove_xattr(&self, who: &Caller, inode: Inode, name: &[u8]) -> Result<Reply, Errno> {
        self.checked_xattr_name(name)?;
        let caller = self.caller(who, 0).await;
        let outcome = match acl::is_default_list(name) {
            Some(is_default) => self.set_acl(&caller, inode, is_default, &acl::nothing()).await,
            None => Ok(self.client.removexattr(&caller, inode, name).await?),
        };
        self.xattrs.forget(inode);
        outcome.map(|()| Reply::Empty)
    }

    async fn set_acl(
        &self,
        caller: &client::Caller,
        inode: Inode,
        is_default: bool,
        list: &client::AccessList,
    ) -> Result<(), Errno> {
        self.client.set_acl(caller, inode, is_default, list).await?;
        if !is_default {
            // The mode has changed with the list; that nobody listens means that the mount is going away.
            let stale = Notification::Inode { inode: u64::from(inode.0), offset_bytes: -1, length_bytes: 0 };
            let _ = self.notifier.send(stale);
        }
        Ok(())
    }
}

/// Hidden files.
impl Adapter {
    fn special_by_name(&self, name: &[u8]) -> Option<Special> {
        let special = Special::by_name(name)?;
        (special != Special::MasterInfo || self.proxy.get().is_some()).then_some(special)
    }

    fn special(&self, request: Request) -> Result<Reply, Errno> {
        let Some(special) = Special::by_inode(request.inode) else { return Err(Errno(libc::ENOENT)) };
        use Operation as O;
        match request.operation {
            O::GetAttributes { .. } => {
                let entry = special.entry();
                Ok(Reply::Attributes(entry.attributes, entry.attributes_timeout))
            }
            O::SetAttributes(_) if special == Special::MasterInfo => Err(Errno(libc::EPERM)),
            O::SetAttributes(_) => Ok(Reply::Attributes(special.attributes(), std::time::Duration::ZERO)),
            O::Access { mask } if mask & 3 != 0 => Err(Errno(libc::EACCES)),
            O::Access { .. } | O::Flush { .. } | O::Sync { .. } => Ok(Reply::Empty),
            O::Open { flags, .. } => self.open_special(special, &request.caller, flags),
            O::Read { handle, offset_bytes, size_bytes } => {
                let contents = self.specials.borrow().get(&handle).cloned().ok_or(Errno(libc::EBADF))?;
                let start = usize::try_from(offset_bytes).unwrap_or(usize::MAX).min(contents.len());
                let end = start.saturating_add(size_bytes as usize).min(contents.len());
                Ok(Reply::bytes(contents[start..end].to_vec()))
            }
            O::Write { data, .. } if special == Special::Stats => {
                self.counters.reset();
                Ok(Reply::Written(u32::try_from(data.len()).expect("at most WRITE_BYTES_MAX")))
            }
            O::Write { .. } => Err(Errno(libc::EACCES)),
            O::Release { handle, .. } => {
                self.specials.borrow_mut().remove(&handle);
                Ok(Reply::Empty)
            }
            O::OpenDirectory { .. } => Err(Errno(libc::ENOTDIR)),
            O::GetExtendedAttribute { .. }
            | O::SetExtendedAttribute { .. }
            | O::ListExtendedAttributes { .. }
            | O::RemoveExtendedAttribute { .. }
            | O::GetLock { .. }
            | O::SetLock { .. } => Err(Errno(libc::EPERM)),
            O::FileSystemStatistics | O::Lookup { .. } => Err(Errno(libc::ENOENT)),
            _ => Err(Errno(libc::ENOSYS)),
        }
    }

    fn open_special(&self, special: Special, caller: &Caller, flags: i32) -> Result<Reply, Errno> {
        if special == Special::Params && caller.uid != 0 {
            return Err(Errno(libc::EPERM));
        }
        if special != Special::Stats && flags & libc::O_ACCMODE != libc::O_RDONLY {
            return Err(Errno(libc::EACCES));
        }
        let contents = match special {
            Special::MasterInfo => self.master_info().ok_or(Errno(libc::EIO))?,
            Special::Stats => self.counters.text().into_bytes(),
            Special::Params => {
                let lines = self.settings.params.iter().map(|(name, value)| format!("{name}: {value}\n"));
                lines.collect::<String>().into_bytes()
            }
        };
        let handle = self.new_handle();
        self.specials.borrow_mut().insert(handle, Rc::new(contents));
        // Sizes are not known to stat, and the session may change: the kernel keeps nothing.
        Ok(Reply::Opened(Opened { handle, direct_io: true, ..Opened::default() }))
    }

    fn master_info(&self) -> Option<Vec<u8>> {
        let (proxy, session) = (self.proxy.get()?, self.client.session()?);
        Some(special::master_info(proxy, session.id, session.master_version))
    }
}

/// The inode of the mount's root, for the kernel and for the master.
const ROOT: u32 = 1;

/// An inode of the tree. Errors: EACCES for those of hidden files, which take no part in names.
fn ordinary(inode: u64) -> Result<Inode, Errno> {
    if inode >= special::FIRST_INODE {
        return Err(Errno(libc::EACCES));
    }
    Ok(Inode(u32::try_from(inode).expect("below the inodes of hidden files")))
}

fn checked_length(name: &[u8]) -> Result<(), Errno> {
    if name.len() > translate::NAME_BYTES_MAX { Err(Errno(libc::ENAMETOOLONG)) } else { Ok(()) }
}

/// A name that is to be made or removed: hidden files are not for that.
fn checked_new_name(parent: Inode, name: &[u8]) -> Result<(), Errno> {
    checked_length(name)?;
    if parent.0 == ROOT && Special::by_name(name).is_some() { Err(Errno(libc::EACCES)) } else { Ok(()) }
}

/// The value, or with a size of 0 how long it is. Errors: ERANGE.
fn sized(value: Vec<u8>, size_bytes: u32) -> Result<Reply, Errno> {
    match size_bytes as usize {
        0 => Ok(Reply::Size(u32::try_from(value.len()).map_err(|_| Errno(libc::ERANGE))?)),
        size if size < value.len() => Err(Errno(libc::ERANGE)),
        _ => Ok(Reply::bytes(value)),
    }
}

/// A piece of what was read, as bytes of a reply.
fn part(piece: Piece) -> DataPart {
    struct Bytes(Piece);
    impl AsRef<[u8]> for Bytes {
        fn as_ref(&self) -> &[u8] {
            self.0.as_slice()
        }
    }
    Box::new(Bytes(piece))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_sized_fitted_or_refused() {
        assert!(matches!(sized(vec![1, 2, 3], 0), Ok(Reply::Size(3))));
        assert!(matches!(sized(vec![1, 2, 3], 3), Ok(Reply::Data(_))));
        assert!(matches!(sized(vec![1, 2, 3], 2), Err(Errno(libc::ERANGE))));
    }

    #[test]
    fn hidden_names_cannot_be_made_in_the_root_but_elsewhere() {
        assert_eq!(checked_new_name(Inode(1), b".stats"), Err(Errno(libc::EACCES)));
        assert_eq!(checked_new_name(Inode(2), b".stats"), Ok(()));
        assert_eq!(checked_new_name(Inode(2), &[b'x'; 256]), Err(Errno(libc::ENAMETOOLONG)));
    }
}
