//! Attributes of nodes, and extended attributes. Spec 31, 31.3 and 31.5; 32, 32.7.

use wire::limits::XATTR_BYTES_MAX;
use wire::{Attr, Inode, NodeKind, SessionId, Status, Time};

use crate::access::{READ, WRITE, Who};
use crate::acl::{self, ABSENT, Acl};
use crate::apply::{acl_entry_bytes, borrowed};
use crate::change::Change;
use crate::namespace::{Caller, Namespace};
use crate::node::{Node, eattr, mark};
use crate::session::{disables, session_flags};
use crate::times::Times;

/// Bits of `SetAttr::mask`. Spec 31, 31.5.
pub mod setattr_flags {
    pub const WINATTR: u8 = 0x01;
    pub const MODE: u8 = 0x02;
    pub const UID: u8 = 0x04;
    pub const GID: u8 = 0x08;
    pub const MTIME_NOW: u8 = 0x10;
    pub const MTIME: u8 = 0x20;
    pub const ATIME: u8 = 0x40;
    pub const ATIME_NOW: u8 = 0x80;
}

/// What becomes of suid and sgid when the owner changes. Spec 31, 31.5 "sugidclearmode".
pub mod sugid_clear {
    pub const NEVER: u8 = 0;
    pub const ALWAYS: u8 = 1;
    pub const OSX: u8 = 2;
    pub const BSD: u8 = 3;
    pub const EXT: u8 = 4;
    pub const XFS: u8 = 5;
}

/// What SETATTR asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// `setattr_flags`: which of the fields count.
    pub mask: u8,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub atime: Time,
    pub mtime: Time,
    /// None: the packet has no such field.
    pub winattr: Option<u8>,
    /// `sugid_clear`
    pub sugid_clear_mode: u8,
}

/// Modes of SETXATTR. Spec 32, 32.7.
pub mod xattr_mode {
    pub const SET: u8 = 0;
    pub const CREATE: u8 = 1;
    pub const REPLACE: u8 = 2;
    pub const REMOVE: u8 = 3;
}

/// "No value" in AMTIME_INODES. Spec 30, 5.3.
const NO_TIME: Time = Time(0);

/// Entries of an ACL; each takes up to 18 bytes of a journal line, which may have 200000.
const ACL_ENTRIES_MAX: usize = 8192;

/// After so long relative atime is renewed in any case: a day. Spec 32, 32.9.
const RELATIVE_ATIME_NANOS: i64 = 86_400 * 1_000_000_000;

impl Namespace {
    /// Would an access succeed? Spec 31, 31.3.
    pub fn access(&self, caller: &Caller<'_>, inode: Inode, mask: u16) -> Result<(), Status> {
        let who = self.who(caller)?;
        let writes = mask & WRITE != 0;
        if writes {
            who.must_be_writable()?;
        }
        // Where the node lies does not count here (Spec 31, 31.1).
        let inode = self.resolve(&who, inode, true)?;
        if writes && self.state.at(inode).has_eattr(eattr::IMMUTABLE) {
            return Err(Status::EPERM);
        }
        self.must_allow(&who, inode, mask)
    }

    /// Spec 31, 31.5.
    pub fn getattr(&self, caller: &Caller<'_>, inode: Inode, opened: bool) -> Result<Attr, Status> {
        let who = self.who(caller)?;
        let inode = self.resolve(&who, inode, opened)?;
        Ok(self.attr(&who, inode, None))
    }

    /// Changes mode, owner, times, winattr. Spec 31, 31.5.
    pub fn setattr(&mut self, caller: &Caller<'_>, inode: Inode, opened: bool, set: &SetAttr) -> Result<Attr, Status> {
        use setattr_flags::*;
        let who = self.who(caller)?;
        if set.mask & (UID | GID) != 0 {
            who.must_not_be_disabled(disables::CHOWN)?;
        }
        if set.mask & MODE != 0 {
            who.must_not_be_disabled(disables::CHMOD)?;
        }
        if set.mask & WINATTR != 0 && set.winattr.is_none() {
            return Err(Status::EINVAL);
        }
        who.must_be_writable()?;
        let inode = self.resolve(&who, inode, opened)?;
        let node = *self.state.at(inode);
        if node.has_eattr(eattr::IMMUTABLE) {
            return Err(Status::EPERM);
        }
        let clears_sugid = set.mask == MODE && set.mode & 0o7777 == node.mode() & !0o6000 && node.mode() & 0o6000 != 0;
        if !clears_sugid {
            self.check_setattr(&who, inode, set)?;
        }
        let (old_uid, old_gid) = self.state.owner(&node);
        let uid = if set.mask & UID != 0 { set.uid } else { old_uid };
        let gid = if set.mask & GID != 0 { set.gid } else { old_gid };
        let time = |own: Time, explicit: u8, given: Time, now: u8| match set.mask {
            mask if mask & now != 0 => who.now,
            mask if mask & explicit != 0 => given,
            _ => own,
        };
        let own = self.state.times(&node);
        let atime = time(own.atime, ATIME, set.atime, ATIME_NOW);
        let mtime = time(own.mtime, MTIME, set.mtime, MTIME_NOW);
        let winattr = if set.mask & WINATTR != 0 { set.winattr.unwrap_or(0) } else { node.winattr() };
        let wanted = self.new_mode(&who, inode, set, gid);
        let (mode, acl_mode) = self.split_mode(inode, &node, wanted, set.mask & MODE != 0);
        let change = Change::Attributes { inode: Inode(inode), mode, uid, gid, atime, mtime, winattr, acl_mode };
        self.commit(who.now, &change)?;
        Ok(self.attr(&who, inode, None))
    }

    fn check_setattr(&self, who: &Who<'_>, inode: u32, set: &SetAttr) -> Result<(), Status> {
        use setattr_flags::*;
        if who.uid == 0 {
            return Ok(());
        }
        if who.has(session_flags::MAP_ALL) && set.mask & (UID | GID) != 0 {
            return Err(Status::EPERM);
        }
        if !self.is_owner(who, inode) {
            if set.mask & (MODE | UID | GID | ATIME | MTIME) != 0 {
                return Err(Status::EPERM);
            }
            if set.mask & (ATIME_NOW | MTIME_NOW) != 0 {
                self.must_allow(who, inode, WRITE)?;
            }
        }
        if set.mask & UID != 0 && set.uid != who.uid {
            return Err(Status::EPERM);
        }
        if set.mask & GID != 0 && !who.in_group(set.gid) && !who.has(session_flags::IGNORE_GID) {
            return Err(Status::EPERM);
        }
        Ok(())
    }

    /// The mode that a node shows after SETATTR. Spec 31, 31.5 "Then".
    fn new_mode(&self, who: &Who<'_>, inode: u32, set: &SetAttr, gid: u32) -> u16 {
        use setattr_flags::*;
        let node = self.state.at(inode);
        let shown = self.real_mode(inode, node);
        let changes_owner = set.mask & (UID | GID) != 0;
        let mut mode = shown;
        if set.mask & MODE != 0 {
            mode = set.mode & 0o7777;
            if changes_owner {
                mode |= shown & 0o6000;
            }
        }
        if changes_owner && shown & 0o6000 != 0 {
            let is_user = who.uid != 0;
            let like_ext = if mode & 0o010 != 0 { 0o6000 } else { 0o4000 };
            let cleared = match set.sugid_clear_mode {
                sugid_clear::NEVER => 0,
                sugid_clear::OSX if !is_user => 0,
                sugid_clear::BSD if !is_user || gid == self.state.owner(node).1 => 0,
                sugid_clear::EXT if node.is_directory() => 0,
                sugid_clear::XFS if node.is_directory() && !is_user => 0,
                sugid_clear::XFS if node.is_directory() => 0o6000,
                sugid_clear::EXT | sugid_clear::XFS => like_ext,
                _ => 0o6000,
            };
            mode &= !cleared;
        }
        let sets_sgid = set.mask & MODE != 0 && mode & 0o2000 != 0;
        if sets_sgid && who.uid != 0 && !who.in_group(gid) {
            mode &= !0o2000;
        }
        mode
    }

    /// The mode with the mask of an access ACL in the place of the group.
    fn real_mode(&self, inode: u32, node: &Node) -> u16 {
        match self.state.acls.get(&(inode, acl::ACCESS)) {
            Some(acl) => node.mode() & 0o7000 | (acl.user & 7) << 6 | (acl.mask & 7) << 3 | acl.other & 7,
            None => node.mode(),
        }
    }

    /// What a shown mode becomes: the node's own mode, and what goes to its access ACL. Spec 51, 6.1 "ATTR".
    fn split_mode(&self, inode: u32, node: &Node, shown: u16, sets_mode: bool) -> (u16, u16) {
        match self.state.acls.get(&(inode, acl::ACCESS)) {
            None => (shown, 0),
            Some(_) if sets_mode => (shown & 0o7707 | node.mode() & 0o070, 4096 | shown & 0o777),
            Some(acl) => {
                let kept = (acl.user & 7) << 6 | (acl.mask & 7) << 3 | acl.other & 7;
                (shown & 0o7000 | node.mode() & 0o777, 4096 | kept)
            }
        }
    }

    /// Entry of AMTIME_INODES: later times that a client saw, or `NO_TIME`. Spec 30, 5.3.
    pub fn amtime(
        &mut self,
        now: impl Into<Time>,
        session: SessionId,
        inode: Inode,
        atime: impl Into<Time>,
        mtime: impl Into<Time>,
    ) {
        let (now, atime, mtime) = (now.into(), atime.into(), mtime.into());
        let Ok(who) = self.session_itself(session, now) else { return };
        let Ok(inode) = self.resolve(&who, inode, true) else { return };
        let old = self.state.times(self.state.at(inode));
        let mut new = old;
        if atime > old.atime && atime != NO_TIME && self.atime_may_become(inode, atime) {
            new.atime = atime;
        }
        if mtime > old.mtime && mtime != NO_TIME {
            new.mtime = mtime;
            new.ctime = old.ctime.max(mtime);
        }
        if new != old {
            let Times { atime, mtime, ctime } = new;
            let change = Change::Times { inode: Inode(inode), atime, mtime, ctime };
            self.commit(now, &change).expect("the node was looked up");
        }
    }

    /// A directory or symlink was read. Where every read counts, one a second is written down.
    pub(crate) fn touch_atime(&mut self, who: &Who<'_>, inode: u32) -> Result<(), Status> {
        let atime = self.state.times(self.state.at(inode)).atime;
        let is_news = matches!(self.policy.atime_mode, 2 | 3) || atime.seconds() != who.now.seconds();
        if is_news && atime != who.now && self.atime_may_become(inode, who.now) {
            self.commit(who.now, &Change::Access { inode: Inode(inode) })?;
        }
        Ok(())
    }

    /// Does `ATIME_MODE` allow this atime? Spec 32, 32.9.
    fn atime_may_become(&self, inode: u32, atime: Time) -> bool {
        let node = self.state.at(inode);
        let (files_only, relative) = match self.policy.atime_mode {
            0 => (false, false),
            1 => (true, false),
            2 => (false, true),
            3 => (true, true),
            _ => return false,
        };
        if files_only && !node.has_data() {
            return false;
        }
        let old = self.state.times(node);
        let overdue = |time: Time| old.atime <= time && atime >= time;
        let is_old = old.atime.0.saturating_add(RELATIVE_ATIME_NANOS) < atime.0;
        !relative || overdue(old.ctime) || overdue(old.mtime) || is_old
    }

    /// Spec 31, 31.6.
    pub fn readlink(&mut self, caller: &Caller<'_>, inode: Inode) -> Result<Vec<u8>, Status> {
        let who = self.who(caller)?;
        let inode = self.resolve(&who, inode, false)?;
        if self.state.at(inode).kind() != NodeKind::Symlink {
            return Err(Status::EINVAL);
        }
        self.touch_atime(&who, inode)?;
        Ok(self.state.target(self.state.at(inode)).to_vec())
    }

    // --- extended attributes

    /// The value of an attribute. Spec 32, 32.7.
    pub fn get_xattr(&self, caller: &Caller<'_>, inode: Inode, opened: bool, name: &[u8]) -> Result<&[u8], Status> {
        let who = self.who(caller)?;
        let inode = self.resolve(&who, inode, opened)?;
        if name.starts_with(b"trusted.") && who.uid != 0 {
            return Err(Status::EPERM);
        }
        if !opened {
            self.must_allow(&who, inode, READ)?;
        }
        if name.contains(&0) {
            return Err(Status::EINVAL);
        }
        let value = self.state.xattrs.get(&inode).and_then(|all| all.get(name));
        value.map(Vec::as_slice).ok_or(Status::ENOATTR)
    }

    /// The names of all attributes, each with a NUL behind it. Spec 32, 32.7.
    pub fn list_xattr(&self, caller: &Caller<'_>, inode: Inode, opened: bool) -> Result<Vec<u8>, Status> {
        let who = self.who(caller)?;
        let inode = self.resolve(&who, inode, opened)?;
        if !opened {
            self.must_allow(&who, inode, READ)?;
        }
        let names = self.state.xattrs.get(&inode).into_iter().flat_map(|all| all.keys());
        Ok(names.flat_map(|name| name.iter().copied().chain([0])).collect())
    }

    /// `mode`: `xattr_mode`. Spec 32, 32.7.
    pub fn set_xattr(
        &mut self,
        caller: &Caller<'_>,
        inode: Inode,
        opened: bool,
        name: &[u8],
        value: &[u8],
        mode: u8,
    ) -> Result<(), Status> {
        let who = self.who(caller)?;
        who.must_not_be_disabled(disables::SETXATTR)?;
        who.must_be_writable()?;
        let inode = self.resolve(&who, inode, opened)?;
        let for_root = name.starts_with(b"trusted.") || name.starts_with(b"security.");
        if who.uid != 0 && for_root || name.starts_with(b"system.") && !self.is_owner(&who, inode) {
            return Err(Status::EPERM);
        }
        if self.state.at(inode).has_eattr(eattr::IMMUTABLE) {
            return Err(Status::EPERM);
        }
        if !opened {
            self.must_allow(&who, inode, WRITE)?;
        }
        if name.is_empty() || name.contains(&0) || mode > xattr_mode::REMOVE {
            return Err(Status::EINVAL);
        }
        if mode != xattr_mode::REMOVE {
            let all = self.state.xattrs.get(&inode);
            let names: usize = all.map_or(0, |all| all.keys().map(|name| name.len() + 1).sum());
            let is_new = all.is_none_or(|all| !all.contains_key(name));
            let added = if is_new { name.len() + 1 } else { 0 };
            if value.len() > XATTR_BYTES_MAX || names + added > XATTR_BYTES_MAX {
                return Err(Status::ERANGE);
            }
        }
        let value = if mode == xattr_mode::REMOVE { &[] } else { value };
        let change = Change::SetXattr { inode: Inode(inode), name: borrowed(name), value: borrowed(value), mode };
        self.commit(who.now, &change).map(drop)
    }

    // --- POSIX ACLs

    /// `kind`: `acl::ACCESS` or `acl::DEFAULT`. Spec 32, 32.7.
    pub fn get_acl(&self, session: SessionId, inode: Inode, kind: u8) -> Result<&Acl, Status> {
        let who = self.session_itself(session, Time(0))?;
        let inode = self.resolve(&who, inode, false)?;
        self.state.acls.get(&(inode, kind)).ok_or(Status::ENOATTR)
    }

    /// Sets or (all fields absent, no entries) removes an ACL. Spec 32, 32.7.
    pub fn set_acl(&mut self, caller: &Caller<'_>, inode: Inode, kind: u8, acl: &Acl) -> Result<(), Status> {
        let who = self.who(caller)?;
        who.must_not_be_disabled(disables::SETFACL)?;
        who.must_be_writable()?;
        let inode = self.resolve(&who, inode, false)?;
        if !self.is_owner(&who, inode) || self.state.at(inode).has_eattr(eattr::IMMUTABLE) {
            return Err(Status::EPERM);
        }
        let entries = acl.users.len() + acl.groups.len();
        if !matches!(kind, acl::ACCESS | acl::DEFAULT) || entries > ACL_ENTRIES_MAX {
            return Err(Status::EINVAL);
        }
        let count = |entries: usize| u16::try_from(entries).map_err(|_| Status::EINVAL);
        let (users, groups) = (count(acl.users.len())?, count(acl.groups.len())?);
        let node = *self.state.at(inode);
        let old = node.mode();
        let mut acl = acl.clone();
        let mut mode = old;
        if !acl.is_removal() {
            for (field, from_mode) in [(&mut acl.user, old >> 6), (&mut acl.group, old >> 3), (&mut acl.other, old)] {
                if *field == ABSENT {
                    *field = from_mode & 7;
                }
                *field &= 7;
            }
            if kind == acl::ACCESS {
                mode = old & 0o7000 | acl.user << 6 | acl.group << 3 | acl.other;
            }
        } else if kind == acl::ACCESS && !node.marked(mark::ACCESS_ACL)
            || kind == acl::DEFAULT && !node.marked(mark::DEFAULT_ACL)
        {
            return Ok(());
        }
        let change = Change::SetAcl {
            inode: Inode(inode),
            mode,
            change_ctime: u8::from(mode != old),
            kind,
            user: acl.user,
            group: acl.group,
            other: acl.other,
            mask: acl.mask,
            users,
            groups,
            entries: acl_entry_bytes(&acl).into(),
        };
        self.commit(who.now, &change).map(drop)
    }
}
