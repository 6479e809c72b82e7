//! Names, nodes and attributes. Spec 31, 31.3 to 31.6.

use meta::{Opened, SetAttr};
use wire::{
    AmtimeEntryLong, Attr, ChunkZero, CltomaAmtimeInodesLong, CltomaFuseAccess, CltomaFuseAmtimeInodes,
    CltomaFuseCreate, CltomaFuseGetattr, CltomaFuseLink, CltomaFuseLookup, CltomaFuseMkdir, CltomaFuseMknod,
    CltomaFuseOpen, CltomaFuseReaddir, CltomaFuseReadlink, CltomaFuseRename, CltomaFuseRmdir, CltomaFuseSetattr,
    CltomaFuseStatfs, CltomaFuseSustainedInodes, CltomaFuseSymlink, CltomaFuseUnlink, CltomaSetattrLong, Field,
    HEADER_BYTES, Inode, MatoclFuseFlengHasChanged, MatoclFuseReadlink, MatoclFuseStatfs, MatoclFuseStatfsFree, Packet,
    Status, Text, WireError, attr_flags, knows_open_flags, lookup_flags, open_flags, opened_flags, readdir_flags,
    removed_answer_has_inode, statfs_answer_has_free,
};

use super::{Request, with_header};

/// SETATTR in both forms.
pub(super) fn setattr(request: &mut Request<'_>, payload: &[u8]) -> Result<(), WireError> {
    if request.long_times {
        request.setattr(&CltomaSetattrLong::decode(payload)?);
        return Ok(());
    }
    let packet = CltomaFuseSetattr::decode(payload)?;
    if packet.gids.is_single() {
        return Err(WireError::Range { field: "group count", value: 0 }); // MooseFS's dies of it. Spec 31, 31.5
    }
    request.setattr(&packet.into());
    Ok(())
}

/// AMTIME_INODES in both forms. Spec 30, 5.3.
pub(super) fn access_times(request: &mut Request<'_>, payload: &[u8]) -> Result<(), WireError> {
    let entries = match request.long_times {
        true => CltomaAmtimeInodesLong::decode(payload)?.entries,
        false => CltomaFuseAmtimeInodes::decode(payload)?.entries.iter().map(AmtimeEntryLong::from).collect(),
    };
    for entry in entries {
        request.core.namespace.amtime(request.core.time, request.session, entry.inode, entry.atime, entry.mtime);
    }
    Ok(())
}

impl Request<'_> {
    pub(super) fn sustained_inodes(&mut self, packet: &CltomaFuseSustainedInodes) {
        self.core.namespace.sustained_inodes(self.core.time, self.session, &packet.inodes);
    }

    pub(super) fn statfs(&mut self, &CltomaFuseStatfs { msgid }: &CltomaFuseStatfs) {
        let usage = self.core.namespace.usage(self.session);
        let (total, free, avail) = self.core.space();
        let (_, free) = usage.limit(total, free);
        let (total, avail) = usage.limit(total, avail);
        let (trash, sustained, inodes) = (usage.trash_bytes, usage.sustained_bytes, usage.inodes);
        let packet = if statfs_answer_has_free(self.link.version) {
            MatoclFuseStatfsFree { msgid, total, avail, free, trash, sustained, inodes }.encode()
        } else {
            MatoclFuseStatfs { msgid, total, avail, trash, sustained, inodes }.encode()
        };
        self.finish(msgid, Ok(packet));
    }

    pub(super) fn access(&mut self, packet: &CltomaFuseAccess) {
        let caller = self.caller(packet.uid, &packet.gids);
        let result = self.core.namespace.access(&caller, packet.inode, packet.mask);
        self.status(packet.msgid, result.err().unwrap_or(Status::OK));
    }

    pub(super) fn lookup(&mut self, packet: &CltomaFuseLookup) {
        let msgid = packet.msgid;
        let caller = self.caller(packet.uid, packet.gids.as_slice());
        let found = match self.core.namespace.lookup(&caller, packet.parent, packet.name.as_bytes()) {
            Ok(found) => found,
            Err(status) => return self.status(msgid, status),
        };
        let (mut attr, mut flags) = (found.attr, found.flags);
        let knows_flags = self.link.version.at_least(3, 0, 40);
        let may_use = flags & MAY_READ_OR_WRITE != 0 && attr.kind == wire::NodeKind::File;
        let direct = flags & lookup_flags::DIRECTMODE != 0;
        let keep = may_use && self.core.cache.may_keep(found.real, self.session) && knows_flags && !direct;
        if keep {
            flags |= lookup_flags::KEEPCACHE;
        } else if attr.kind == wire::NodeKind::File {
            attr.flags &= !attr_flags::ALLOW_DATA_CACHE;
        }
        let chunk_zero = found.only_chunk.filter(|_| knows_flags).and_then(|chunk| self.chunk_zero(chunk));
        if chunk_zero.is_some() {
            flags |= lookup_flags::CHUNK_ZERO_DATA;
        }
        let answer = self.packet(msgid, |out| {
            found.inode.put(out);
            self.put_attr(&attr, out);
            if knows_flags {
                flags.put(out);
                chunk_zero.put(out);
            }
        });
        self.finish(msgid, Ok(answer));
    }

    /// Where the only chunk of a file is, if it is at rest. Spec 31, 31.4.
    fn chunk_zero(&mut self, chunkid: wire::ChunkId) -> Option<ChunkZero> {
        let core = &mut *self.core;
        core.chunks.before_read(chunkid, &core.namespace, self.now).ok()?;
        let (version, locations) = core.chunks.locations(chunkid, self.link.ip, &core.namespace, self.now).ok()?;
        Some(ChunkZero { protocolid: 2, chunkid, version, locations })
    }

    pub(super) fn getattr(&mut self, packet: &CltomaFuseGetattr) {
        let gids = [packet.gid];
        let caller = self.caller(packet.uid, &gids);
        let result = self.core.namespace.getattr(&caller, packet.inode, packet.opened != 0);
        self.attr_answer(packet.msgid, result);
    }

    fn setattr(&mut self, packet: &CltomaSetattrLong) {
        let caller = self.caller(packet.uid, packet.gids.as_slice());
        let set = SetAttr {
            mask: packet.setmask,
            mode: packet.mode,
            uid: packet.attruid,
            gid: packet.attrgid,
            atime: packet.atime,
            mtime: packet.mtime,
            winattr: Some(packet.winattr),
            sugid_clear_mode: packet.sugidclearmode,
        };
        let result = self.core.namespace.setattr(&caller, packet.inode, packet.opened != 0, &set);
        self.attr_answer(packet.msgid, result);
    }

    fn attr_answer(&mut self, msgid: u32, result: Result<Attr, Status>) {
        let result = result.map(|attr| self.with_attr(msgid, &attr, |_| {}));
        self.finish(msgid, result);
    }

    fn node_answer(&mut self, msgid: u32, result: Result<(Inode, Attr), Status>) {
        let result = result.map(|(inode, attr)| self.with_attr(msgid, &attr, |out| inode.put(out)));
        self.finish(msgid, result);
    }

    pub(super) fn readlink(&mut self, packet: &CltomaFuseReadlink) {
        let msgid = packet.msgid;
        let caller = self.caller(0, &[0]);
        let result = self.core.namespace.readlink(&caller, packet.inode).map(|mut target| {
            target.push(0);
            MatoclFuseReadlink { msgid, target: Text(target) }.encode()
        });
        self.finish(msgid, result);
    }

    pub(super) fn symlink(&mut self, packet: &CltomaFuseSymlink) {
        let caller = self.caller(packet.uid, packet.gids.as_slice());
        let end = packet.target.0.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let target = &packet.target.0[..end];
        let result = self.core.namespace.symlink(&caller, packet.parent, packet.name.as_bytes(), target);
        self.node_answer(packet.msgid, result);
    }

    pub(super) fn mknod(&mut self, packet: &CltomaFuseMknod) {
        let caller = self.caller(packet.uid, packet.gids.as_slice());
        let (name, kind) = (packet.name.as_bytes(), packet.kind);
        let namespace = &mut self.core.namespace;
        let result = namespace.mknod(&caller, packet.parent, name, kind, packet.mode, packet.umask, packet.rdev);
        self.node_answer(packet.msgid, result);
    }

    pub(super) fn mkdir(&mut self, packet: &CltomaFuseMkdir) {
        let caller = self.caller(packet.uid, packet.gids.as_slice());
        let (name, copy) = (packet.name.as_bytes(), packet.copysgid != 0);
        let result = self.core.namespace.mkdir(&caller, packet.parent, name, packet.mode, packet.umask, copy);
        self.node_answer(packet.msgid, result);
    }

    pub(super) fn unlink(&mut self, packet: &CltomaFuseUnlink) {
        let caller = self.caller(packet.uid, packet.gids.as_slice());
        let result = self.core.namespace.unlink(&caller, packet.parent, packet.name.as_bytes());
        self.removed_answer(packet.msgid, result);
    }

    pub(super) fn rmdir(&mut self, packet: &CltomaFuseRmdir) {
        let caller = self.caller(packet.uid, packet.gids.as_slice());
        let result = self.core.namespace.rmdir(&caller, packet.parent, packet.name.as_bytes());
        self.removed_answer(packet.msgid, result);
    }

    fn removed_answer(&mut self, msgid: u32, result: Result<Inode, Status>) {
        match result {
            Ok(inode) if removed_answer_has_inode(self.link.version) => {
                let packet = self.packet(msgid, |out| inode.put(out));
                self.finish(msgid, Ok(packet));
            }
            Ok(_) => self.status(msgid, Status::OK),
            Err(status) => self.status(msgid, status),
        }
    }

    pub(super) fn rename(&mut self, packet: &CltomaFuseRename) {
        // Exchange and "no replacement" are of 4.x, which does not send them to the version that we announce.
        if packet.mode.is_some_and(|mode| mode != 0) {
            return self.status(packet.msgid, Status::EINVAL);
        }
        let caller = self.caller(packet.uid, packet.gids.as_slice());
        let source = (packet.parent_src, packet.name_src.as_bytes());
        let target = (packet.parent_dst, packet.name_dst.as_bytes());
        let result = self.core.namespace.rename(&caller, source, target);
        self.node_answer(packet.msgid, result);
    }

    pub(super) fn link(&mut self, packet: &CltomaFuseLink) {
        let caller = self.caller(packet.uid, packet.gids.as_slice());
        let name = packet.name.as_bytes();
        let result = self.core.namespace.link(&caller, packet.inode, packet.parent_dst, name);
        self.node_answer(packet.msgid, result);
    }

    pub(super) fn readdir(&mut self, packet: &CltomaFuseReaddir) {
        let msgid = packet.msgid;
        let caller = self.caller(packet.uid, packet.gids.as_slice());
        let with_attr = packet.flags & readdir_flags::WITHATTR != 0;
        let (long_times, attr_bytes) = (self.long_times, Attr::bytes_for(self.link.version));
        let mut out = vec![0; self.core.listing_bytes.max(LISTING_BYTES)];
        let next_at = HEADER_BYTES + size_of::<u32>();
        out[HEADER_BYTES..next_at].copy_from_slice(&msgid.to_be_bytes());
        let mut end = next_at + size_of::<u64>();
        let next = self.core.namespace.readdir(
            &caller,
            packet.inode,
            packet.flags,
            packet.maxentries,
            packet.nedgeid,
            &mut |entry| {
                let Ok(length) = u8::try_from(entry.name.len()) else { return };
                // Written in place: listings have a million of them.
                if out.len() < end + ENTRY_BYTES_MAX {
                    out.resize(out.len() * 2, 0);
                }
                let (name, rest) = out[end..end + ENTRY_BYTES_MAX].split_at_mut(1 + entry.name.len());
                name[0] = length;
                name[1..].copy_from_slice(entry.name);
                let (inode, facts) = rest.split_first_chunk_mut().expect("there is room for the longest name");
                *inode = entry.inode.0.to_be_bytes();
                let facts_bytes = match entry.attr {
                    Some(attr) if with_attr && long_times => {
                        attr.write_long_to(facts.first_chunk_mut().expect("there is room for the longest name"));
                        Attr::LONG_BYTES
                    }
                    Some(attr) if with_attr => {
                        attr.write_to(facts.first_chunk_mut().expect("there is room for the longest name"));
                        attr_bytes
                    }
                    _ => {
                        facts[0] = entry.kind as u8;
                        1
                    }
                };
                end += 1 + entry.name.len() + size_of::<Inode>() + facts_bytes;
            },
        );
        out.truncate(end);
        self.core.listing_bytes = (end + ENTRY_BYTES_MAX).next_power_of_two().min(LISTING_BYTES_MAX);
        let result = next.map(|next| {
            out[next_at..next_at + size_of::<u64>()].copy_from_slice(&next.to_be_bytes());
            with_header(self.answer, out)
        });
        self.finish(msgid, result);
    }

    pub(super) fn open(&mut self, packet: &CltomaFuseOpen) {
        let msgid = packet.msgid;
        let caller = self.caller(packet.uid, packet.gids.as_slice());
        let opened = match self.core.namespace.open(&caller, packet.inode, packet.flags) {
            Ok(opened) => opened,
            Err(status) => return self.status(msgid, status),
        };
        if opened.truncated {
            self.core.cache.written(opened.inode, self.session);
            let changed = MatoclFuseFlengHasChanged { msgid: 0, inode: opened.inode, length: 0 }.encode();
            self.core.notify_openers(opened.inode, self.id, &changed);
        }
        if packet.flags & open_flags::CACHE_CLEARED != 0 {
            self.core.cache.may_keep(opened.inode, self.session);
            self.core.cache.read(opened.inode, self.session);
        }
        let direct = opened.flags & opened_flags::DIRECTMODE != 0;
        let keep = !direct && self.core.cache.may_keep(opened.inode, self.session);
        let (attr, flags) = opened_answer(&opened, keep);
        let packet = self.with_attr(msgid, &attr, |out| {
            if knows_open_flags(self.link.version) {
                flags.put(out);
            }
        });
        self.finish(msgid, Ok(packet));
    }

    pub(super) fn create(&mut self, packet: &CltomaFuseCreate) {
        let msgid = packet.msgid;
        let caller = self.caller(packet.uid, packet.gids.as_slice());
        let name = packet.name.as_bytes();
        let result = self.core.namespace.create(&caller, packet.parent, name, packet.mode, packet.umask);
        let result = result.map(|opened| {
            let (attr, flags) = opened_answer(&opened, false);
            self.with_attr(msgid, &attr, |out| {
                if knows_open_flags(self.link.version) {
                    flags.put(out);
                }
                opened.inode.put(out);
            })
        });
        self.finish(msgid, result);
    }
}

/// Room for a listing to begin with: what the one before took, within these bounds.
const LISTING_BYTES: usize = 4 << 10;
const LISTING_BYTES_MAX: usize = 128 << 10;
/// The longest entry of a listing: name with its length, inode, attributes.
const ENTRY_BYTES_MAX: usize = 1 + u8::MAX as usize + size_of::<Inode>() + Attr::LONG_BYTES;

/// Any of the access bits with R or W. Spec 31, 31.4: bit (1 << mask), R 4, W 2.
const MAY_READ_OR_WRITE: u16 = 0b1111_1100;

/// Attributes and flags of an open file, by whether its pages may stay.
fn opened_answer(opened: &Opened, keep: bool) -> (Attr, u8) {
    let (mut attr, mut flags) = (opened.attr, opened.flags);
    if keep {
        flags |= opened_flags::KEEPCACHE;
    } else if flags & opened_flags::DIRECTMODE == 0 {
        attr.flags &= !attr_flags::ALLOW_DATA_CACHE;
    }
    (attr, flags)
}
