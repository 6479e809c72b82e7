//! Names and nodes: one request to the master each. Spec 31, 31.3 to 31.6; Spec 72, 4.3.

use wire::{
    Acl, AclEntry, Attr, CltomaFuseAccess, CltomaFuseGetattr, CltomaFuseGetfacl, CltomaFuseGetsclass,
    CltomaFuseGettrashtime, CltomaFuseGetxattr, CltomaFuseLink, CltomaFuseLookup, CltomaFuseMkdir, CltomaFuseMknod,
    CltomaFuseReaddir, CltomaFuseReadlink, CltomaFuseRename, CltomaFuseRmdir, CltomaFuseSetfacl, CltomaFuseSetsclass,
    CltomaFuseSettrashtime, CltomaFuseSetxattr, CltomaFuseStatfs, CltomaFuseSymlink, CltomaFuseUnlink,
    CltomaSetattrLong, Field, Gids, Inode, Input, LONG_TIMES, MatoclFuseGetattr, MatoclFuseGetfacl,
    MatoclFuseGetsclass, MatoclFuseGettrashtime, MatoclFuseGetxattr, MatoclFuseLink, MatoclFuseLookup, MatoclFuseMkdir,
    MatoclFuseMknod, MatoclFuseReadlink, MatoclFuseRename, MatoclFuseSetattr, MatoclFuseSetsclass,
    MatoclFuseSettrashtime, MatoclFuseStatfsFree, MatoclFuseSymlink, Name, NodeKind, Packet, Rest, Text, Time,
    ask_for_long_times, readdir_flags, set_mask,
};

use crate::client::{Client, Inner};
use crate::master::Answer;
use crate::types::*;
use crate::{Errno, disables};

/// What Linux clients send with SETATTR: the kernel's own rule for suid and sgid. Spec 31, 31.5: EXT.
const SUGID_CLEAR_MODE_EXT: u8 = 4;
/// Everything in one answer. Spec 31, 31.6.
const ENTRIES_ALL: u32 = u32::MAX;

/// A name as it goes to the master. Errors: ENAMETOOLONG.
pub(crate) fn name_of(name: &[u8]) -> Result<Name, Errno> {
    Name::new(name).map_err(|_| Errno::ENAMETOOLONG)
}

impl Client {
    pub async fn lookup(&self, caller: &Caller, parent: Inode, name: &[u8]) -> Result<Entry, Errno> {
        let name = name_of(name)?;
        let gids = Gids::list(&caller.gids);
        let found: MatoclFuseLookup =
            self.0.ask(|msgid| CltomaFuseLookup { msgid, parent, name, uid: caller.uid, gids }).await?;
        let attr = self.0.files.with_local(found.inode, found.attr);
        Ok(Entry { inode: found.inode, attr, flags: found.lflags })
    }

    pub async fn readlink(&self, inode: Inode) -> Result<Vec<u8>, Errno> {
        let answer: MatoclFuseReadlink = self.0.ask(|msgid| CltomaFuseReadlink { msgid, inode }).await?;
        let mut target = answer.target.0;
        while target.last() == Some(&0) {
            target.pop();
        }
        Ok(target)
    }

    pub async fn symlink(&self, caller: &Caller, parent: Inode, name: &[u8], target: &[u8]) -> Result<Entry, Errno> {
        if target.len() >= wire::limits::SYMLINK_BYTES_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let name = name_of(name)?;
        let mut target = target.to_vec();
        target.push(0);
        let made: MatoclFuseSymlink = self
            .0
            .ask(|msgid| CltomaFuseSymlink {
                msgid,
                parent,
                name,
                target: Text(target),
                uid: caller.uid,
                gids: Gids::list(&caller.gids),
            })
            .await?;
        Ok(Entry { inode: made.inode, attr: made.attr, flags: 0 })
    }

    /// `mode`: permission bits; the caller's umask goes along. `rdev`: of a device, else 0.
    pub async fn mknod(
        &self,
        caller: &Caller,
        parent: Inode,
        name: &[u8],
        kind: NodeKind,
        mode: u16,
        rdev: u32,
    ) -> Result<Entry, Errno> {
        let name = name_of(name)?;
        let made: MatoclFuseMknod = self
            .0
            .ask(|msgid| CltomaFuseMknod {
                msgid,
                parent,
                name,
                kind,
                mode: mode & 0o7777,
                umask: caller.umask,
                uid: caller.uid,
                gids: Gids::list(&caller.gids),
                rdev,
            })
            .await?;
        Ok(Entry { inode: made.inode, attr: made.attr, flags: 0 })
    }

    pub async fn mkdir(&self, caller: &Caller, parent: Inode, name: &[u8], mode: u16) -> Result<Entry, Errno> {
        let name = name_of(name)?;
        let made: MatoclFuseMkdir = self
            .0
            .ask(|msgid| CltomaFuseMkdir {
                msgid,
                parent,
                name,
                mode: mode & 0o7777,
                umask: caller.umask,
                uid: caller.uid,
                gids: Gids::list(&caller.gids),
                copysgid: u8::from(self.0.settings.mkdir_copies_sgid),
            })
            .await?;
        Ok(Entry { inode: made.inode, attr: made.attr, flags: 0 })
    }

    pub async fn unlink(&self, caller: &Caller, parent: Inode, name: &[u8]) -> Result<(), Errno> {
        let name = name_of(name)?;
        let gids = Gids::list(&caller.gids);
        self.0.ask_done(|msgid| CltomaFuseUnlink { msgid, parent, name, uid: caller.uid, gids }).await
    }

    pub async fn rmdir(&self, caller: &Caller, parent: Inode, name: &[u8]) -> Result<(), Errno> {
        let name = name_of(name)?;
        let gids = Gids::list(&caller.gids);
        self.0.ask_done(|msgid| CltomaFuseRmdir { msgid, parent, name, uid: caller.uid, gids }).await
    }

    /// Replaces an existing target. Flags of renameat2 are the caller's to refuse (Spec 72, 4.3).
    pub async fn rename(
        &self,
        caller: &Caller,
        parent: Inode,
        name: &[u8],
        new_parent: Inode,
        new_name: &[u8],
    ) -> Result<Entry, Errno> {
        let (name_src, name_dst) = (name_of(name)?, name_of(new_name)?);
        let moved: MatoclFuseRename = self
            .0
            .ask(|msgid| CltomaFuseRename {
                msgid,
                parent_src: parent,
                name_src,
                parent_dst: new_parent,
                name_dst,
                uid: caller.uid,
                gids: Gids::list(&caller.gids),
                mode: None,
            })
            .await?;
        Ok(Entry { inode: moved.inode, attr: self.0.files.with_local(moved.inode, moved.attr), flags: 0 })
    }

    pub async fn link(
        &self,
        caller: &Caller,
        inode: Inode,
        new_parent: Inode,
        new_name: &[u8],
    ) -> Result<Entry, Errno> {
        let name = name_of(new_name)?;
        let made: Result<MatoclFuseLink, wire::Status> = self
            .0
            .ask_status(|msgid| CltomaFuseLink {
                msgid,
                inode,
                parent_dst: new_parent,
                name,
                uid: caller.uid,
                gids: Gids::list(&caller.gids),
            })
            .await?;
        // A 3.x master says NOSPACE when a file has too many links. Spec 72, 4.3.
        let made = made.map_err(|status| match status {
            wire::Status::NOSPACE => Errno::EMLINK,
            other => Errno::from_status(other),
        })?;
        Ok(Entry { inode: made.inode, attr: self.0.files.with_local(made.inode, made.attr), flags: 0 })
    }

    /// The whole directory, "." and ".." first. With `with_attr`, attributes come along unless the caller may only
    /// read the directory. Errors: EIO above 512 MiB of listing.
    pub async fn read_dir(&self, caller: &Caller, inode: Inode, with_attr: bool) -> Result<Vec<DirEntry>, Errno> {
        if self.0.master.is_disabled(disables::READDIR) {
            return Err(Errno::EPERM);
        }
        let listing = self.0.ask_listing(caller, inode, with_attr).await;
        match listing {
            Err(Errno::EACCES) if with_attr => self.0.ask_listing(caller, inode, false).await,
            listing => listing,
        }
    }

    /// Attributes; length and times include what this client has written and not sent yet. `handle`: an open file
    /// stays reachable after its deletion.
    pub async fn getattr(&self, caller: &Caller, inode: Inode, handle: Option<Handle>) -> Result<Attr, Errno> {
        let is_open = handle.is_some() || self.0.files.find(inode).is_some();
        let gid = caller.gids.first().copied().unwrap_or(u32::MAX);
        let opened = u8::from(is_open);
        let answer: MatoclFuseGetattr =
            self.0.ask(|msgid| CltomaFuseGetattr { msgid, inode, opened, uid: caller.uid, gid }).await?;
        Ok(self.0.files.with_local(inode, answer.attr))
    }

    /// Several fields at once; `size` first (flushes, then TRUNCATE), then the rest in one SETATTR. No field at all
    /// changes ctime. Spec 72, 4.3.
    pub async fn setattr(
        &self,
        caller: &Caller,
        inode: Inode,
        handle: Option<Handle>,
        change: &AttrChange,
    ) -> Result<Attr, Errno> {
        if let Some(length) = change.size {
            let attr = self.truncate(caller, inode, handle, length).await?;
            let is_only_length = AttrChange { size: None, ..change.clone() } == AttrChange::default();
            if is_only_length {
                return Ok(attr);
            }
        }
        let (atime_bits, atime) = time_bits(change.atime, set_mask::ATIME, set_mask::ATIME_NOW);
        let (mtime_bits, mtime) = time_bits(change.mtime, set_mask::MTIME, set_mask::MTIME_NOW);
        let bit = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        let setmask = bit(change.mode.is_some(), set_mask::MODE)
            | bit(change.uid.is_some(), set_mask::UID)
            | bit(change.gid.is_some(), set_mask::GID)
            | atime_bits
            | mtime_bits;
        // Before the request, so that no time of ours overtakes it.
        self.0.files.cancel_times(inode, change.atime.is_some(), change.mtime.is_some());
        let is_open = handle.is_some() || self.0.files.find(inode).is_some();
        // An empty group list crashes a 3.0.117 master (Spec 31, 31.5): then "no group" goes as a list of one.
        let gids = if caller.gids.is_empty() { Gids::list(&[u32::MAX]) } else { Gids::list(&caller.gids) };
        let request = |msgid| CltomaSetattrLong {
            msgid,
            inode,
            opened: u8::from(is_open),
            uid: caller.uid,
            gids,
            setmask,
            mode: change.mode.unwrap_or(0) & 0o7777,
            attruid: change.uid.unwrap_or(0),
            attrgid: change.gid.unwrap_or(0),
            atime,
            mtime,
            winattr: 0,
            sugidclearmode: SUGID_CLEAR_MODE_EXT,
        };
        let answer: MatoclFuseSetattr = match self.0.master.has_long_times() {
            true => self.0.ask(request).await?,
            false => self.0.ask(|msgid| request(msgid).in_seconds()).await?,
        };
        Ok(self.0.files.with_local(inode, answer.attr))
    }

    /// `mask`: 4 read, 2 write, 1 search or execute.
    pub async fn access(&self, caller: &Caller, inode: Inode, mask: u8) -> Result<(), Errno> {
        let gids = caller.gids.clone();
        self.0
            .ask_done(|msgid| CltomaFuseAccess { msgid, inode, uid: caller.uid, gids, mask: u16::from(mask & 7) })
            .await
    }

    pub async fn statfs(&self) -> Result<StatFs, Errno> {
        let answer: MatoclFuseStatfsFree = self.0.ask(|msgid| CltomaFuseStatfs { msgid }).await?;
        Ok(StatFs {
            total_bytes: answer.total,
            available_bytes: answer.avail,
            free_bytes: answer.free,
            trash_bytes: answer.trash,
            sustained_bytes: answer.sustained,
            inodes: answer.inodes,
        })
    }

    /// New length of a file. Flushes its dirty data first. Errors: EFBIG; EACCES if `handle` was not opened for
    /// writing; the master's.
    pub async fn truncate(
        &self,
        caller: &Caller,
        inode: Inode,
        handle: Option<Handle>,
        length: u64,
    ) -> Result<Attr, Errno> {
        self.0.truncate(caller, inode, handle, length).await
    }

    /// The value of an attribute. `system.posix_acl_access` and `_default` are the caller's to turn into `get_acl`.
    /// Errors: ENODATA; ERANGE for a name over 255 bytes.
    pub async fn getxattr(&self, caller: &Caller, inode: Inode, name: &[u8]) -> Result<Vec<u8>, Errno> {
        if name.is_empty() {
            return Err(Errno::EINVAL);
        }
        self.0.ask_xattr(caller, inode, name).await
    }

    /// All names, each with a NUL behind it.
    pub async fn listxattr(&self, caller: &Caller, inode: Inode) -> Result<Vec<u8>, Errno> {
        self.0.ask_xattr(caller, inode, b"").await
    }

    /// Errors: ERANGE for a name over 255 or a value over 65536 bytes; EEXIST, ENODATA by `mode`.
    pub async fn setxattr(
        &self,
        caller: &Caller,
        inode: Inode,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<(), Errno> {
        self.0.change_xattr(caller, inode, name, value, mode as u8).await
    }

    pub async fn removexattr(&self, caller: &Caller, inode: Inode, name: &[u8]) -> Result<(), Errno> {
        const REMOVE: u8 = 3; // Spec 32, 32.7
        self.0.change_xattr(caller, inode, name, b"", REMOVE).await
    }

    /// The ACL of a node: `is_default` for the one that new children inherit. Errors: ENODATA. Spec 32, 32.7.
    pub async fn get_acl(&self, inode: Inode, is_default: bool) -> Result<AccessList, Errno> {
        let acltype = acl_type(is_default);
        let answer: MatoclFuseGetfacl =
            self.0.ask(|msgid| CltomaFuseGetfacl { msgid, inode, acltype, ignored: Rest::default() }).await?;
        let entries = |list: Vec<AclEntry>| list.into_iter().map(|entry| (entry.id, entry.perm)).collect();
        Ok(AccessList {
            owner: answer.acl.userperm,
            group: answer.acl.groupperm,
            other: answer.acl.otherperm,
            mask: answer.acl.mask,
            users: entries(answer.acl.users),
            groups: entries(answer.acl.groups),
        })
    }

    /// Sets it; all fields absent and no entries removes it. Spec 32, 32.7.
    pub async fn set_acl(
        &self,
        caller: &Caller,
        inode: Inode,
        is_default: bool,
        acl: &AccessList,
    ) -> Result<(), Errno> {
        if acl.users.len() > usize::from(u16::MAX) || acl.groups.len() > usize::from(u16::MAX) {
            return Err(Errno::EINVAL);
        }
        let entries = |list: &[(u32, u16)]| list.iter().map(|(id, perm)| AclEntry { id: *id, perm: *perm }).collect();
        let acl = Acl {
            userperm: acl.owner,
            groupperm: acl.group,
            otherperm: acl.other,
            mask: acl.mask,
            users: entries(&acl.users),
            groups: entries(&acl.groups),
        };
        let acltype = acl_type(is_default);
        self.0.ask_done(|msgid| CltomaFuseSetfacl { msgid, inode, uid: caller.uid, acltype, acl }).await
    }

    /// Copies wanted of a file or folder; `None` for a storage class that is no simple goal.
    pub async fn goal(&self, inode: Inode) -> Result<Option<u8>, Errno> {
        let answer: MatoclFuseGetsclass = self.0.ask(|msgid| CltomaFuseGetsclass { msgid, inode, gmode: 0 }).await?;
        Ok(answer.entries.into_iter().find_map(|entry| match entry {
            wire::ClassCount::Goal { goal, .. } => Some(goal),
            wire::ClassCount::Class { .. } => None,
        }))
    }

    /// Copies wanted, 1 to 9. Returns how many nodes were changed. Errors: EPERM, EINVAL.
    pub async fn set_goal(&self, caller: &Caller, inode: Inode, goal: u8, recursive: bool) -> Result<u32, Errno> {
        let smode = if recursive { 4 } else { 0 };
        let answer: MatoclFuseSetsclass = self
            .0
            .ask(|msgid| CltomaFuseSetsclass { msgid, inode, uid: caller.uid, goal, smode, names: Vec::new() })
            .await?;
        Ok(answer.changed)
    }

    /// Seconds that a deleted file stays in the trash.
    pub async fn trash_time(&self, inode: Inode) -> Result<u32, Errno> {
        let answer: MatoclFuseGettrashtime =
            self.0.ask(|msgid| CltomaFuseGettrashtime { msgid, inode, gmode: 0 }).await?;
        answer.entries.first().map(|entry| entry.seconds).ok_or(Errno::EIO)
    }

    /// Returns how many nodes were changed.
    pub async fn set_trash_time(
        &self,
        caller: &Caller,
        inode: Inode,
        seconds: u32,
        recursive: bool,
    ) -> Result<u32, Errno> {
        let smode = if recursive { 4 } else { 0 };
        let answer: MatoclFuseSettrashtime =
            self.0.ask(|msgid| CltomaFuseSettrashtime { msgid, inode, uid: caller.uid, seconds, smode }).await?;
        Ok(answer.changed)
    }
}

fn acl_type(is_default: bool) -> u8 {
    if is_default { 2 } else { 1 }
}

fn time_bits(change: Option<TimeChange>, set: u8, now: u8) -> (u8, Time) {
    match change {
        None => (0, Time(0)),
        Some(TimeChange::Now) => (now, Time(0)),
        Some(TimeChange::At(time)) => (set, time),
    }
}

impl Inner {
    async fn ask_xattr(&self, caller: &Caller, inode: Inode, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let name = Name::new(name).map_err(|_| Errno::ERANGE)?;
        let gids = Gids::list(&caller.gids);
        let answer: MatoclFuseGetxattr = self
            .ask(|msgid| CltomaFuseGetxattr { msgid, inode, name, mode: 0, opened: 0, uid: caller.uid, gids })
            .await?;
        Ok(answer.value.0)
    }

    async fn change_xattr(
        &self,
        caller: &Caller,
        inode: Inode,
        name: &[u8],
        value: &[u8],
        mode: u8,
    ) -> Result<(), Errno> {
        if name.is_empty() {
            return Err(Errno::EINVAL);
        }
        if value.len() > wire::limits::XATTR_BYTES_MAX {
            return Err(Errno::ERANGE);
        }
        let name = Name::new(name).map_err(|_| Errno::ERANGE)?;
        let (value, gids) = (Text(value.to_vec()), Gids::list(&caller.gids));
        self.ask_done(|msgid| CltomaFuseSetxattr { msgid, inode, name, value, mode, opened: 0, uid: caller.uid, gids })
            .await
    }

    async fn ask_listing(&self, caller: &Caller, inode: Inode, with_attr: bool) -> Result<Vec<DirEntry>, Errno> {
        let long_times = self.master.has_long_times();
        let answer = self
            .master
            .call(&self.ring, |msgid| {
                let request = CltomaFuseReaddir {
                    msgid,
                    inode,
                    uid: caller.uid,
                    gids: Gids::list(&caller.gids),
                    flags: if with_attr { readdir_flags::WITHATTR } else { 0 },
                    maxentries: ENTRIES_ALL,
                    nedgeid: wire::EDGE_ID_START,
                };
                let mut packet = request.encode();
                if long_times {
                    ask_for_long_times(&mut packet);
                }
                packet
            })
            .await?;
        if let [_, _, _, _, status] = answer.payload[..] {
            return Err(Errno::from_status(wire::Status(status)));
        }
        self.entries_of(&answer, with_attr).map_err(|error| {
            tracing::warn!("listing of inode {inode} is not understood: {error}");
            Errno::EIO
        })
    }

    /// Decoded entry by entry: a listing may be long, and an entry of `wire` holds its name inline.
    fn entries_of(&self, answer: &Answer, with_attr: bool) -> Result<Vec<DirEntry>, wire::WireError> {
        let mut input = Input::with_times(&answer.payload, answer.kind >= LONG_TIMES);
        let (_msgid, _next) = (u32::take(&mut input)?, u64::take(&mut input)?);
        let mut entries = Vec::new();
        while !input.is_empty() {
            let length = u8::take(&mut input)?;
            let name = input.bytes(usize::from(length), "name")?.into();
            let inode = Inode::take(&mut input)?;
            let (kind, attr) = if with_attr {
                let attr = self.files.with_local(inode, Attr::take(&mut input)?);
                (attr.kind, Some(attr))
            } else {
                (NodeKind::take(&mut input)?, None)
            };
            entries.push(DirEntry { name, inode, kind, attr });
        }
        Ok(entries)
    }

    /// A packet of somebody else's making, with a message id of ours in front.
    pub(crate) async fn forward(&self, kind: u32, payload: &[u8]) -> Result<(u32, Vec<u8>), Errno> {
        let answer = self
            .master
            .call(&self.ring, |msgid| {
                let length = u32::try_from(payload.len() + 4).expect("the caller bounds what tools send");
                let mut packet = wire::Header { kind, length }.encode().to_vec();
                msgid.put(&mut packet);
                packet.extend_from_slice(payload);
                packet
            })
            .await?;
        let mut payload = answer.payload;
        payload.drain(..4);
        Ok((answer.kind, payload))
    }
}
