//! Who may do what, and how nodes look to whom: mapping of identities, permission tests, attribute records.
//!
//! Spec 30, 4.3; 31, 31.1 and 31.2.

use wire::{Attr, Inode, NodeKind, SessionId, Status, Time, VersionWord, attr_flags};

use crate::acl::{self, masks_within};
use crate::namespace::{Caller, Namespace};
use crate::node::{Node, eattr, mark};
use crate::session::session_flags;
use crate::state::{ROOT, State};
use crate::times::Times;

pub(crate) const READ: u16 = 4;
pub(crate) const WRITE: u16 = 2;
pub(crate) const EXECUTE: u16 = 1;

/// A caller after the session's mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who<'a> {
    pub(crate) session: SessionId,
    pub(crate) version: VersionWord,
    pub(crate) now: Time,
    /// Directory that the session sees as its root; 0 for META.
    pub(crate) root: u32,
    pub(crate) flags: u8,
    pub(crate) umask: u16,
    disables: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    more_gids: &'a [u32],
    sent_uid: u32,
    sent_gid: u32,
}

impl Who<'_> {
    pub(crate) fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.more_gids.contains(&gid)
    }

    pub(crate) fn groups(&self) -> Vec<u32> {
        std::iter::once(self.gid).chain(self.more_gids.iter().copied()).collect()
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(crate) fn is_disabled(&self, operation: u32) -> bool {
        self.disables & operation != 0
    }

    /// The first test of every operation. Spec 30, 4.4.
    pub(crate) fn must_not_be_disabled(&self, operations: u32) -> Result<(), Status> {
        if self.is_disabled(operations) { Err(Status::EPERM) } else { Ok(()) }
    }

    /// The second test of every change.
    pub(crate) fn must_be_writable(&self) -> Result<(), Status> {
        if self.has(session_flags::READ_ONLY) { Err(Status::EROFS) } else { Ok(()) }
    }

    /// A node's number as this session sees it.
    pub(crate) fn shown(&self, inode: u32) -> Inode {
        if inode == self.root { Inode::ROOT } else { Inode(inode) }
    }

    /// True if the client knows the flag APPENDONLY and the answers that go with it. Spec 31, 31.4.
    pub(crate) fn knows_append_only(&self) -> bool {
        self.version.in_either_line((3, 0, 113), (4, 22, 0))
    }
}

impl Namespace {
    /// Errors: `BADSESSIONID`.
    pub(crate) fn who<'a>(&self, caller: &Caller<'a>) -> Result<Who<'a>, Status> {
        let params = &self.state.sessions.get(&caller.session).ok_or(Status::BADSESSIONID)?.params;
        let (sent_gid, more_gids) = match caller.gids.split_first() {
            Some((first, more)) => (*first, more),
            None => (u32::MAX, caller.gids),
        };
        let (uid, gid) = if caller.uid == 0 {
            (params.root_uid, params.root_gid)
        } else if params.flags & session_flags::MAP_ALL != 0 {
            (params.map_all_uid, params.map_all_gid)
        } else {
            (caller.uid, sent_gid)
        };
        Ok(Who {
            session: caller.session,
            version: caller.version,
            now: caller.now,
            root: params.root.0,
            flags: params.flags,
            umask: params.umask,
            disables: params.disables,
            uid,
            gid,
            more_gids,
            sent_uid: caller.uid,
            sent_gid,
        })
    }

    /// A session's own rights, where no user counts.
    pub(crate) fn session_itself(&self, session: SessionId, now: Time) -> Result<Who<'static>, Status> {
        self.who(&Caller { session, version: VersionWord(0), uid: 0, gids: &[0], now })
    }

    /// The node that a session means by an inode number. `opened`: the client holds a handle, so where the node is
    /// now does not count. Errors: `ENOENT`. Spec 31, 31.1 "Inode resolution".
    pub(crate) fn resolve(&self, who: &Who<'_>, inode: Inode, opened: bool) -> Result<u32, Status> {
        let inode = match (who.root, inode.0) {
            (0, inode) => {
                let node = self.state.node(inode).ok_or(Status::ENOENT)?;
                let detached = matches!(node.kind(), NodeKind::Trash | NodeKind::Sustained);
                return if detached { Ok(inode) } else { Err(Status::ENOENT) };
            }
            (root, 1) => root,
            (_, inode) => inode,
        };
        if self.state.node(inode).is_none() {
            return Err(Status::ENOENT);
        }
        if who.root == ROOT || opened || self.state.is_below(inode, who.root) { Ok(inode) } else { Err(Status::ENOENT) }
    }

    pub(crate) fn access_bits(&self, who: &Who<'_>, inode: u32) -> u8 {
        let ignore_gid = who.has(session_flags::IGNORE_GID);
        self.state.access_bits(inode, who.uid, ignore_gid, &|gid| who.in_group(gid))
    }

    pub(crate) fn allows(&self, who: &Who<'_>, inode: u32, mask: u16) -> bool {
        self.access_bits(who, inode) & 1 << (mask & 7) != 0
    }

    /// Errors: `EACCES`.
    pub(crate) fn must_allow(&self, who: &Who<'_>, inode: u32, mask: u16) -> Result<(), Status> {
        if self.allows(who, inode, mask) { Ok(()) } else { Err(Status::EACCES) }
    }

    /// root, the owner, or anybody if nobody owns it.
    pub(crate) fn is_owner(&self, who: &Who<'_>, inode: u32) -> bool {
        let node = self.state.at(inode);
        who.uid == 0 || node.has_eattr(eattr::NO_OWNER) || self.state.owner(node).0 == who.uid
    }

    /// May the caller take an entry out of a directory? Spec 31, 31.1 "Sticky test".
    pub(crate) fn passes_sticky(&self, who: &Who<'_>, parent: u32, inode: u32) -> bool {
        self.state.at(parent).mode() & 0o1000 == 0 || self.is_owner(who, parent) || self.is_owner(who, inode)
    }

    /// The attribute record of a node as the caller sees it. `reached_through`: the directory of the answer, if there
    /// is one. Spec 31, 31.2.
    pub(crate) fn attr(&self, who: &Who<'_>, inode: u32, reached_through: Option<u32>) -> Attr {
        self.attr_of(who, inode, self.state.at(inode), reached_through.is_some_and(|above| self.is_uncached(above)))
    }

    /// Are the entries of this directory not to be kept by clients?
    pub(crate) fn is_uncached(&self, directory: u32) -> bool {
        self.state.at(directory).has_eattr(eattr::NO_ENTRY_CACHE)
    }

    /// As `attr`. `in_uncached`: `is_uncached` of the directory that it was reached through.
    #[inline]
    pub(crate) fn attr_of(&self, who: &Who<'_>, inode: u32, node: &Node, in_uncached: bool) -> Attr {
        let (uid, gid) = self.shown_owner(who, node);
        let (kind, extra) = match node.kind() {
            NodeKind::Trash | NodeKind::Sustained | NodeKind::File => (NodeKind::File, node.length()),
            NodeKind::Directory => (NodeKind::Directory, self.state.directory_of(node).below.pseudo_length()),
            NodeKind::Symlink => (NodeKind::Symlink, node.target().1 as u64),
            kind @ (NodeKind::BlockDevice | NodeKind::CharDevice) => (kind, Attr::extra_of_device(node.rdev())),
            kind => (kind, 0),
        };
        let nlink = match kind {
            NodeKind::Directory => 2 + self.state.directory_of(node).subdirectories,
            _ => u32::from(node.links),
        };
        let Times { atime, mtime, ctime } = self.state.times(node);
        Attr {
            flags: Self::attr_flags(who, node, in_uncached),
            kind,
            mode: self.shown_mode(who, inode, node),
            uid,
            gid,
            atime,
            mtime,
            ctime,
            nlink,
            extra,
            winattr: node.winattr(),
        }
    }

    #[inline]
    fn attr_flags(who: &Who<'_>, node: &Node, in_uncached: bool) -> u8 {
        let frozen = eattr::UNDELETABLE | eattr::IMMUTABLE | eattr::APPEND_ONLY;
        let by_caller = node.has_eattr(eattr::NO_OWNER | eattr::NO_ATTR_CACHE) || who.has(session_flags::MAP_ALL);
        let direct = node.has_eattr(eattr::NO_DATA_CACHE);
        let named = node.marked(mark::XATTR | mark::ACCESS_ACL | mark::DEFAULT_ACL);
        [
            (attr_flags::NO_ATTR_CACHE, by_caller),
            (attr_flags::NO_ENTRY_CACHE, in_uncached),
            (attr_flags::ALLOW_DATA_CACHE, !direct),
            (attr_flags::NO_XATTR, !named),
            (attr_flags::DIRECT_MODE, direct),
            (attr_flags::UNDELETABLE, node.has_eattr(frozen)),
        ]
        .into_iter()
        .fold(0, |flags, (flag, set)| if set { flags | flag } else { flags })
    }

    #[inline]
    fn shown_mode(&self, who: &Who<'_>, inode: u32, node: &Node) -> u16 {
        let mut mode = node.mode();
        if node.marked(mark::ACCESS_ACL) {
            let acl = &self.state.acls[&(inode, acl::ACCESS)];
            let group = if acl.mask == acl::ABSENT { acl.group } else { acl.mask };
            mode = mode & 0o7000 | (acl.user & 7) << 6 | (group & 7) << 3 | acl.other & 7;
        }
        if node.has_eattr(eattr::NO_OWNER) && who.uid != 0 {
            let user = mode >> 6 & 7;
            mode = mode & 0o7700 | user << 3 | user;
        }
        mode
    }

    #[inline]
    fn shown_owner(&self, who: &Who<'_>, node: &Node) -> (u32, u32) {
        let map_all = who.has(session_flags::MAP_ALL);
        if node.has_eattr(eattr::NO_OWNER) && who.uid != 0 {
            return if map_all { (who.sent_uid, who.sent_gid) } else { (who.uid, who.gid) };
        }
        let (uid, gid) = self.state.owner(node);
        if map_all && who.sent_uid != 0 {
            let own = |real: u32, mapped: u32, sent: u32| if real == mapped { sent } else { 0 };
            return (own(uid, who.uid, who.sent_uid), own(gid, who.gid, who.sent_gid));
        }
        (uid, gid)
    }
}

impl State {
    /// Which accesses to a node are allowed: bit `1 << mask` for each mask of rwx. Spec 31, 31.1 "Access test".
    pub(crate) fn access_bits(&self, inode: u32, uid: u32, ignore_gid: bool, in_group: &dyn Fn(u32) -> bool) -> u8 {
        if uid == 0 {
            return 0xFF;
        }
        let node = self.at(inode);
        let (owner, group) = self.owner(node);
        if node.marked(mark::ACCESS_ACL) {
            return self.acls[&(inode, acl::ACCESS)].access_bits(uid, owner, group, in_group);
        }
        let mode = node.mode();
        let perm = if uid == owner || node.has_eattr(eattr::NO_OWNER) {
            mode >> 6
        } else if ignore_gid {
            mode >> 3 | mode
        } else if in_group(group) {
            mode >> 3
        } else {
            mode
        };
        masks_within(perm)
    }
}
