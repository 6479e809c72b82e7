//! Names: look-up, creation, removal, renaming, linking, listing. Spec 31, 31.4 and 31.6.

use wire::{Attr, ChunkId, Inode, NodeKind, Status, VersionWord};

use crate::access::{EXECUTE, READ, WRITE, Who};
use crate::apply::{borrowed, name_is_legal};
use crate::change::Change;
use crate::namespace::{Caller, Namespace};
use crate::node::{Figures, eattr, mark};
use crate::session::{disables, session_flags};

/// Bits of the flags of a look-up. The low eight say which accesses are allowed. Spec 31, 31.4.
pub mod lookup_flags {
    pub const CHUNK_ZERO_DATA: u16 = 0x0100;
    pub const RO_FILESYSTEM: u16 = 0x0200;
    pub const KEEPCACHE: u16 = 0x0400;
    pub const IMMUTABLE: u16 = 0x0800;
    pub const DIRECTMODE: u16 = 0x1000;
    pub const APPENDONLY: u16 = 0x2000;
    /// Access bits that need no W.
    pub(crate) const WITHOUT_WRITE: u16 = 0xFF33;
}

/// Bits of the request flags of READDIR.
pub mod readdir_flags {
    pub const WITH_ATTR: u8 = 0x01;
}

/// Continuation ids of READDIR. Spec 31, 31.6.
pub const READDIR_START: u64 = 0;
pub const READDIR_AT_PARENT: u64 = 1;
pub const READDIR_END: u64 = 0x7FFF_FFFF_FFFF_FFFF;

/// Listings that stopped on their way and are remembered.
const LISTINGS_MAX: usize = 64;

/// A directory entry that a look-up found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// As the session sees it: its root is 1.
    pub inode: Inode,
    pub real: Inode,
    /// ALLOWDATACACHE is set if the node allows it; whoever does not give KEEPCACHE clears it.
    pub attr: Attr,
    /// `lookup_flags`, all but KEEPCACHE and CHUNK_ZERO_DATA.
    pub flags: u16,
    /// The chunk of a file that has exactly one slot and may be read: its location may be told at once.
    pub only_chunk: Option<ChunkId>,
}

/// One entry of a listing.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    pub name: &'a [u8],
    /// As the session sees it.
    pub inode: Inode,
    pub kind: NodeKind,
    /// If asked for.
    pub attr: Option<Attr>,
}

impl Namespace {
    /// Spec 31, 31.4.
    pub fn lookup(&self, caller: &Caller<'_>, parent: Inode, name: &[u8]) -> Result<Found, Status> {
        let who = self.who(caller)?;
        let missing = |status: Status| {
            let old = who.version < VersionWord::new(3, 0, 25) && status == Status::ENOENT_NOCACHE;
            if old { Status::ENOENT } else { status }
        };
        let parent = self.resolve(&who, parent, false).map_err(|_| missing(Status::ENOENT_NOCACHE))?;
        if !self.state.at(parent).is_directory() {
            return Err(Status::ENOTDIR);
        }
        self.must_allow(&who, parent, EXECUTE)?;
        let inode = match name {
            b"." => parent,
            b".." if parent == who.root => parent,
            b".." => self.state.parent_of_directory(parent),
            name if !name_is_legal(name) => return Err(Status::EINVAL),
            name => self.state.find_child(parent, name).ok_or_else(|| {
                let uncached = self.state.at(parent).has_eattr(eattr::NO_ENTRY_CACHE);
                missing(if uncached { Status::ENOENT_NOCACHE } else { Status::ENOENT })
            })?,
        };
        let flags = self.lookup_flags(&who, inode);
        Ok(Found {
            inode: who.shown(inode),
            real: Inode(inode),
            attr: self.attr(&who, inode, Some(parent)),
            flags,
            only_chunk: self.only_chunk(&who, inode, flags),
        })
    }

    fn lookup_flags(&self, who: &Who<'_>, inode: u32) -> u16 {
        let node = self.state.at(inode);
        let mut flags = u16::from(self.access_bits(who, inode));
        if who.has(session_flags::READ_ONLY) {
            flags |= lookup_flags::RO_FILESYSTEM;
        }
        if node.has_eattr(eattr::NO_DATA_CACHE) {
            flags |= lookup_flags::DIRECTMODE;
        }
        if node.has_eattr(eattr::IMMUTABLE) {
            flags = flags & lookup_flags::WITHOUT_WRITE | lookup_flags::IMMUTABLE;
        }
        if node.has_eattr(eattr::APPEND_ONLY) {
            match who.knows_append_only() {
                true => flags |= lookup_flags::APPENDONLY,
                false => flags &= lookup_flags::WITHOUT_WRITE,
            }
        }
        flags
    }

    fn only_chunk(&self, who: &Who<'_>, inode: u32, flags: u16) -> Option<ChunkId> {
        let node = self.state.at(inode);
        let accessible = flags & (1 << READ | 1 << WRITE) != 0 && !who.is_disabled(disables::READ);
        if node.kind() != NodeKind::File || !accessible || node.marked(mark::CHUNK_LIST) || node.chunks == 0 {
            return None;
        }
        Some(self.state.chunks.at(node.chunks).id)
    }

    /// The directory that a path names, for the root of a session. Errors: `EINVAL`, `ENOENT`, `ENOTDIR`.
    /// Spec 30, 3.2.
    pub fn resolve_root(&self, path: &[u8]) -> Result<Inode, Status> {
        let mut here = Inode::ROOT.0;
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            if !name_is_legal(part) {
                return Err(Status::EINVAL);
            }
            here = self.state.find_child(here, part).ok_or(Status::ENOENT)?;
            if !self.state.at(here).is_directory() {
                return Err(Status::ENOTDIR);
            }
        }
        Ok(Inode(here))
    }

    /// A symlink. Spec 31, 31.6 "Creating".
    pub fn symlink(
        &mut self,
        caller: &Caller<'_>,
        parent: Inode,
        name: &[u8],
        target: &[u8],
    ) -> Result<(Inode, Attr), Status> {
        let who = self.who(caller)?;
        who.must_not_be_disabled(disables::SYMLINK)?;
        who.must_be_writable()?;
        let target = &target[..target.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)];
        if !(1..=wire::limits::SYMLINK_BYTES_MAX).contains(&target.len()) || target.contains(&0) {
            return Err(Status::EINVAL);
        }
        let parent = self.check_new_entry(&who, parent, name)?;
        let more = Figures { inodes: 1, length: target.len() as u64, ..Figures::default() };
        self.must_fit_quotas(parent, &more)?;
        let gid = self.gid_of_new(&who, parent);
        let change = Change::Symlink {
            parent: Inode(parent),
            name: borrowed(name),
            target: borrowed(target),
            uid: who.uid,
            gid,
        };
        self.created(&who, parent, &change)
    }

    /// A file, FIFO, socket or device; or, as MKNOD allows, a directory. Spec 31, 31.6 "Creating".
    #[allow(clippy::too_many_arguments, reason = "the fields of the packet")]
    pub fn mknod(
        &mut self,
        caller: &Caller<'_>,
        parent: Inode,
        name: &[u8],
        kind: NodeKind,
        mode: u16,
        umask: u16,
        rdev: u32,
    ) -> Result<(Inode, Attr), Status> {
        let disabled = match kind {
            NodeKind::Fifo => disables::MKFIFO,
            NodeKind::BlockDevice | NodeKind::CharDevice => disables::MKDEV,
            NodeKind::Socket => disables::MKSOCK,
            NodeKind::Directory => disables::MKDIR,
            _ => disables::CREATE,
        };
        self.make(caller, parent, name, (kind, disabled), (mode, umask), false, rdev)
    }

    /// A directory. `copy_sgid`: it gets the sgid bit of its parent. Spec 31, 31.6 "Creating".
    pub fn mkdir(
        &mut self,
        caller: &Caller<'_>,
        parent: Inode,
        name: &[u8],
        mode: u16,
        umask: u16,
        copy_sgid: bool,
    ) -> Result<(Inode, Attr), Status> {
        self.make(caller, parent, name, (NodeKind::Directory, disables::MKDIR), (mode, umask), copy_sgid, 0)
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of the packets")]
    pub(crate) fn make(
        &mut self,
        caller: &Caller<'_>,
        parent: Inode,
        name: &[u8],
        (kind, disabled): (NodeKind, u32),
        (mode, umask): (u16, u16),
        copy_sgid: bool,
        rdev: u32,
    ) -> Result<(Inode, Attr), Status> {
        let who = self.who(caller)?;
        who.must_not_be_disabled(disabled)?;
        who.must_be_writable()?;
        if matches!(kind, NodeKind::Symlink | NodeKind::Trash | NodeKind::Sustained) {
            return Err(Status::EINVAL);
        }
        let parent = self.check_new_entry(&who, parent, name)?;
        self.must_fit_quotas(parent, &Figures { inodes: 1, ..Figures::default() })?;
        let gid = self.gid_of_new(&who, parent);
        let mut mode = mode & 0o7777;
        if kind == NodeKind::Directory && copy_sgid && self.state.at(parent).mode() & 0o2000 != 0 {
            mode |= 0o2000;
        }
        let change = Change::Create {
            parent: Inode(parent),
            name: borrowed(name),
            kind: kind as u8,
            mode,
            umask: (umask | who.umask) & 0o777,
            uid: who.uid,
            gid,
            rdev,
        };
        self.created(&who, parent, &change)
    }

    fn created(&mut self, who: &Who<'_>, parent: u32, change: &Change<'_>) -> Result<(Inode, Attr), Status> {
        let inode = self.commit(who.now, change)?.first() as u32;
        Ok((Inode(inode), self.attr(who, inode, Some(parent))))
    }

    fn gid_of_new(&self, who: &Who<'_>, parent: u32) -> u32 {
        let above = self.state.at(parent);
        if above.mode() & 0o2000 != 0 { self.state.owner(above).1 } else { who.gid }
    }

    /// The tests that a new entry must pass, up to `EEXIST`. Spec 31, 31.6 "Creating".
    fn check_new_entry(&self, who: &Who<'_>, parent: Inode, name: &[u8]) -> Result<u32, Status> {
        let parent = self.resolve(who, parent, false)?;
        self.check_directory_change(who, parent, eattr::IMMUTABLE)?;
        if !name_is_legal(name) {
            return Err(Status::EINVAL);
        }
        if self.state.find(parent, name).is_some() { Err(Status::EEXIST) } else { Ok(parent) }
    }

    /// A directory, without the extra attributes that forbid the change, that the caller may change.
    fn check_directory_change(&self, who: &Who<'_>, directory: u32, forbidding: u8) -> Result<(), Status> {
        let node = self.state.at(directory);
        if !node.is_directory() {
            return Err(Status::ENOTDIR);
        }
        if node.has_eattr(forbidding) {
            return Err(Status::EPERM);
        }
        self.must_allow(who, directory, WRITE | EXECUTE)
    }

    /// Removes a name of what is no directory; says the inode. Spec 31, 31.6 "Removing".
    pub fn unlink(&mut self, caller: &Caller<'_>, parent: Inode, name: &[u8]) -> Result<Inode, Status> {
        self.remove(caller, parent, name, disables::UNLINK, false)
    }

    /// Removes an empty directory; says the inode. Spec 31, 31.6 "Removing".
    pub fn rmdir(&mut self, caller: &Caller<'_>, parent: Inode, name: &[u8]) -> Result<Inode, Status> {
        self.remove(caller, parent, name, disables::RMDIR, true)
    }

    fn remove(
        &mut self,
        caller: &Caller<'_>,
        parent: Inode,
        name: &[u8],
        disabled: u32,
        directory: bool,
    ) -> Result<Inode, Status> {
        let who = self.who(caller)?;
        who.must_not_be_disabled(disabled)?;
        who.must_be_writable()?;
        let parent = self.resolve(&who, parent, false)?;
        let child = self.check_removable_entry(&who, parent, name)?;
        let node = self.state.at(child);
        if node.has_eattr(eattr::UNDELETABLE | eattr::IMMUTABLE | eattr::APPEND_ONLY) {
            return Err(Status::EPERM);
        }
        match (directory, node.is_directory()) {
            (false, true) => return Err(Status::EPERM),
            (true, false) => return Err(Status::ENOTDIR),
            (true, true) if self.state.directory(child).children != 0 => return Err(Status::ENOTEMPTY),
            _ => {}
        }
        let change = Change::Unlink { parent: Inode(parent), name: borrowed(name) };
        self.commit(who.now, &change).map(|outcome| Inode(outcome.first() as u32))
    }

    /// The child of an entry that the caller may take out of its directory.
    fn check_removable_entry(&self, who: &Who<'_>, parent: u32, name: &[u8]) -> Result<u32, Status> {
        self.check_directory_change(who, parent, eattr::IMMUTABLE | eattr::APPEND_ONLY)?;
        if !name_is_legal(name) {
            return Err(Status::EINVAL);
        }
        let child = self.state.find_child(parent, name).ok_or(Status::ENOENT)?;
        if self.passes_sticky(who, parent, child) { Ok(child) } else { Err(Status::EPERM) }
    }

    /// Moves an entry, over an existing one if there is one. Spec 31, 31.6 "RENAME".
    ///
    /// A name moved onto itself stays (the kernel never sends that, but two clients may race to it).
    pub fn rename(
        &mut self,
        caller: &Caller<'_>,
        source: (Inode, &[u8]),
        target: (Inode, &[u8]),
    ) -> Result<(Inode, Attr), Status> {
        let who = self.who(caller)?;
        let (no_rename, no_move) = (who.is_disabled(disables::RENAME), who.is_disabled(disables::MOVE));
        if no_rename && (no_move || source.1 != target.1) || no_move && source.0 != target.0 {
            return Err(Status::EPERM);
        }
        who.must_be_writable()?;
        let source_parent = self.resolve(&who, source.0, false)?;
        let target_parent = self.resolve(&who, target.0, false)?;
        let child = self.check_removable_entry(&who, source_parent, source.1)?;
        self.check_directory_change(&who, target_parent, eattr::IMMUTABLE)?;
        let node = self.state.at(child);
        if node.has_eattr(eattr::IMMUTABLE) {
            return Err(Status::EPERM);
        }
        if node.is_directory() {
            if self.state.directory_is_below(target_parent, child) {
                return Err(Status::EINVAL);
            }
            if source_parent != target_parent {
                self.must_allow(&who, child, WRITE)?;
            }
        }
        if !name_is_legal(target.1) {
            return Err(Status::EINVAL);
        }
        if (source_parent, source.1) == (target_parent, target.1) {
            return Ok((Inode(child), self.attr(&who, child, Some(target_parent))));
        }
        let overwritten = self.state.find_child(target_parent, target.1);
        if let Some(there) = overwritten {
            let is_directory = self.state.at(there).is_directory();
            who.must_not_be_disabled(if is_directory { disables::RMDIR } else { disables::UNLINK })?;
        }
        self.must_fit_quotas_of_move(child, overwritten, source_parent, target_parent)?;
        if let Some(there) = overwritten {
            let node = self.state.at(there);
            if node.is_directory() && self.state.directory(there).children != 0 {
                return Err(Status::ENOTEMPTY);
            }
            let frozen = eattr::UNDELETABLE | eattr::IMMUTABLE | eattr::APPEND_ONLY;
            if !self.passes_sticky(&who, target_parent, there) || node.has_eattr(frozen) {
                return Err(Status::EPERM);
            }
        }
        let change = Change::Move {
            source_parent: Inode(source_parent),
            source_name: borrowed(source.1),
            target_parent: Inode(target_parent),
            target_name: borrowed(target.1),
        };
        self.created(&who, target_parent, &change)
    }

    /// Another name for what is no directory. Spec 31, 31.6 "LINK".
    pub fn link(
        &mut self,
        caller: &Caller<'_>,
        inode: Inode,
        parent: Inode,
        name: &[u8],
    ) -> Result<(Inode, Attr), Status> {
        let who = self.who(caller)?;
        who.must_not_be_disabled(disables::LINK)?;
        who.must_be_writable()?;
        let inode = self.resolve(&who, inode, false)?;
        let target = self.resolve(&who, parent, false)?;
        let node = self.state.at(inode);
        if node.has_eattr(eattr::IMMUTABLE) {
            return Err(Status::EPERM);
        }
        match node.kind() {
            NodeKind::Trash | NodeKind::Sustained => return Err(Status::ENOENT),
            NodeKind::Directory => return Err(Status::EPERM),
            _ if node.links >= self.policy.hard_links_max => return Err(Status::NOSPACE),
            _ => {}
        }
        self.check_new_entry(&who, parent, name)?;
        self.must_fit_quotas(target, &self.state.figures(inode))?;
        self.commit(who.now, &Change::Link { inode: Inode(inode), parent: Inode(target), name: borrowed(name) })?;
        Ok((Inode(inode), self.attr(&who, inode, Some(target))))
    }

    /// Lists a directory: ".", "..", then the children, newest first. Spec 31, 31.6 "READDIR".
    ///
    /// `from`: `READDIR_START` or what an earlier call returned. Calls `visit` at most `entries_max` times and returns
    /// where to go on, `READDIR_END` at the end.
    pub fn readdir(
        &mut self,
        caller: &Caller<'_>,
        inode: Inode,
        flags: u8,
        entries_max: u32,
        from: u64,
        visit: &mut impl FnMut(DirEntry<'_>),
    ) -> Result<u64, Status> {
        let who = self.who(caller)?;
        who.must_not_be_disabled(disables::READDIR)?;
        let directory = self.resolve(&who, inode, false)?;
        if !self.state.at(directory).is_directory() {
            return Err(Status::ENOTDIR);
        }
        let with_attr = flags & readdir_flags::WITH_ATTR != 0;
        if from == READDIR_START {
            self.must_allow(&who, directory, if with_attr { READ | EXECUTE } else { READ })?;
        }
        self.touch_atime(&who, directory)?;
        let above = if directory == who.root { directory } else { self.state.parent_of_directory(directory) };
        let in_uncached = with_attr.then(|| self.is_uncached(directory));
        let mut left = entries_max;
        for (start, name, inode) in [(READDIR_START, &b"."[..], directory), (READDIR_AT_PARENT, b"..", above)] {
            if from <= start {
                if left == 0 {
                    return Ok(start);
                }
                left -= 1;
                visit(self.dir_entry(&who, name, inode, in_uncached));
            }
        }
        let mut next = self.edge_from(directory, from);
        while next != 0 {
            let edge = self.state.edge(next);
            if left == 0 {
                let id = edge.id();
                self.remember_listing(directory, id, next);
                return Ok(id);
            }
            left -= 1;
            visit(self.dir_entry(&who, self.state.name(next), edge.child, in_uncached));
            next = edge.older;
        }
        Ok(READDIR_END)
    }

    /// The first edge of a directory, newest first, whose id is not below `id`.
    fn edge_from(&self, directory: u32, id: u64) -> u32 {
        let stopped = self.listings.iter().rev().find(|(own, stop, _)| (*own, *stop) == (directory, id));
        if let Some((_, _, edge)) = stopped {
            // The handle may stand for another edge by now; ids are never used twice.
            let there = self.state.edge(*edge);
            if there.parent == directory && there.id() == id {
                return *edge;
            }
        }
        self.state.children(directory).find(|edge| self.state.edge(*edge).id() >= id).unwrap_or(0)
    }

    fn remember_listing(&mut self, directory: u32, id: u64, edge: u32) {
        if self.listings.len() == LISTINGS_MAX {
            self.listings.pop_front();
        }
        self.listings.push_back((directory, id, edge));
    }

    /// `in_uncached`: with attributes, `is_uncached` of the directory.
    #[inline]
    fn dir_entry<'a>(&self, who: &Who<'_>, name: &'a [u8], inode: u32, in_uncached: Option<bool>) -> DirEntry<'a> {
        let node = self.state.at(inode);
        let attr = in_uncached.map(|in_uncached| self.attr_of(who, inode, node, in_uncached));
        DirEntry { name, inode: who.shown(inode), kind: node.kind(), attr }
    }
}
