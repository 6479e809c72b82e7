//! Storage classes, trash, quota, attributes beyond POSIX, figures. Spec 32.

use std::collections::BTreeMap;

use meta::acl::{self, ABSENT};
use meta::chunks::CopyKind;
use meta::class::StorageClass;
use meta::quota::Limits;
use meta::{ClassChange, Tally};
use wire::limits::{BLOCK_BYTES, CHUNK_BYTES, LOCATIONS_MAX};
use wire::{
    Acl, AclEntry, CheckedCopy, ChunkId, ClassBody, ClassCount, CltomaFuseAppendSlice, CltomaFuseArchctl,
    CltomaFuseCheck, CltomaFuseGetdetachedattr, CltomaFuseGetdirstats, CltomaFuseGeteattr, CltomaFuseGetfacl,
    CltomaFuseGetsclass, CltomaFuseGetsustained, CltomaFuseGettrash, CltomaFuseGettrashpath, CltomaFuseGettrashtime,
    CltomaFuseGetxattr, CltomaFuseParents, CltomaFusePaths, CltomaFusePurge, CltomaFuseQuotacontrol, CltomaFuseRepair,
    CltomaFuseSeteattr, CltomaFuseSetfacl, CltomaFuseSetsclass, CltomaFuseSettrashpath, CltomaFuseSettrashtime,
    CltomaFuseSetxattr, CltomaFuseSnapshot, CltomaFuseUndel, CltomaNodeInfo, CltomaSclassChange, CltomaSclassCreate,
    CltomaSclassDelete, CltomaSclassDuplicate, CltomaSclassList, CltomaSclassRename, Count, DetachedEntry, EattrCount,
    Field, MatoclFuseArchctlGet, MatoclFuseArchctlSet, MatoclFuseCheck, MatoclFuseCheckChunk, MatoclFuseGetdirstats,
    MatoclFuseGetdirstatsShort, MatoclFuseGeteattr, MatoclFuseGetfacl, MatoclFuseGetsclass, MatoclFuseGetsustained,
    MatoclFuseGettrash, MatoclFuseGettrashpath, MatoclFuseGettrashtime, MatoclFuseGetxattr, MatoclFuseGetxattrLength,
    MatoclFuseParents, MatoclFusePaths, MatoclFuseRepair, MatoclNodeInfo, MatoclSclassChange, MatoclSclassList,
    MatoclSclassListLong, Name, NamedClass, NodeInfo, NodeInfoChunk, NodeKind, Packet, QuotaSet, Status, Text,
    TrashtimeCount, Version, knows_open_flags,
};

use super::{Class, Request};

/// At most so many different values are told of files and of directories each: their counters are bytes.
const VALUES_MAX: usize = 255;

impl Request<'_> {
    // --- classes, trash times, extra attributes of nodes

    pub(super) fn get_class(&mut self, packet: &CltomaFuseGetsclass) {
        let msgid = packet.msgid;
        let result = self.core.namespace.get_classes(self.session, packet.inode, packet.gmode).map(|tally| {
            let knows_names = self.link.version.at_least(3, 0, 75);
            let entries = |counts: &BTreeMap<u32, u32>| -> Vec<ClassCount> {
                counts
                    .iter()
                    .filter_map(|(&class, &count)| {
                        let id = u8::try_from(class).ok()?;
                        let class = self.core.namespace.class(id)?;
                        if id <= 9 && class.is_simple() {
                            return Some(ClassCount::Goal { goal: id, count });
                        }
                        let name = Name::new(&class.name).ok()?;
                        knows_names.then_some(ClassCount::Class { name, count })
                    })
                    .take(VALUES_MAX)
                    .collect()
            };
            let (files, dirs) = (entries(&tally.files), entries(&tally.dirs));
            let (fn_, dn) = (byte(files.len()), byte(dirs.len()));
            MatoclFuseGetsclass { msgid, fn_, dn, entries: [files, dirs].concat() }.encode()
        });
        self.finish(msgid, result);
    }

    pub(super) fn set_class(&mut self, packet: &CltomaFuseSetsclass) {
        let caller = self.caller(packet.uid, &[0]);
        let named = |name: Option<&Name>| name.and_then(|name| self.core.namespace.class_by_name(name.as_bytes()));
        let change = match (packet.goal, packet.names.as_slice()) {
            (0xFF, [to]) => named(Some(to)).map(|to| ClassChange::Class { from: None, to }),
            (0xFF, [from, to]) => {
                named(Some(from)).zip(named(Some(to))).map(|(from, to)| ClassChange::Class { from: Some(from), to })
            }
            (goal, []) => Some(ClassChange::Goal(goal)),
            _ => None,
        };
        let result = change
            .ok_or(Status::EINVAL)
            .and_then(|change| self.core.namespace.set_class(&caller, packet.inode, change, packet.smode));
        self.three(packet.msgid, result);
    }

    /// Changed, not changed, not permitted.
    fn three(&mut self, msgid: u32, result: Result<[u32; 3], Status>) {
        let result = result.map(|counts| self.packet(msgid, |out| counts.iter().for_each(|count| count.put(out))));
        self.finish(msgid, result);
    }

    pub(super) fn get_trash_time(&mut self, packet: &CltomaFuseGettrashtime) {
        let msgid = packet.msgid;
        let result = self.core.namespace.get_trash_times(self.session, packet.inode, packet.gmode).map(|tally| {
            let (files, dirs) = flat(&tally, |seconds, count| TrashtimeCount { seconds, count });
            let (fcnt, dcnt) = (word(files.len()), word(dirs.len()));
            MatoclFuseGettrashtime { msgid, fcnt, dcnt, entries: [files, dirs].concat() }.encode()
        });
        self.finish(msgid, result);
    }

    pub(super) fn set_trash_time(&mut self, packet: &CltomaFuseSettrashtime) {
        let caller = self.caller(packet.uid, &[0]);
        let result = self.core.namespace.set_trash_time(&caller, packet.inode, packet.seconds, packet.smode);
        self.three(packet.msgid, result);
    }

    pub(super) fn get_eattr(&mut self, packet: &CltomaFuseGeteattr) {
        let msgid = packet.msgid;
        let known: u32 = if knows_open_flags(self.link.version) { 0xFF } else { 0x1F };
        let result = self.core.namespace.get_eattrs(self.session, packet.inode, packet.gmode).map(|tally| {
            let masked = |counts: BTreeMap<u32, u32>| {
                let mut sums = BTreeMap::new();
                for (eattr, count) in counts {
                    *sums.entry(eattr & known).or_insert(0) += count;
                }
                sums
            };
            let tally = Tally { files: masked(tally.files), dirs: masked(tally.dirs) };
            let (mut files, mut dirs) = flat(&tally, |eattr, count| EattrCount { eattr: eattr as u8, count });
            files.truncate(VALUES_MAX);
            dirs.truncate(VALUES_MAX);
            let (fn_, dn) = (byte(files.len()), byte(dirs.len()));
            MatoclFuseGeteattr { msgid, fn_, dn, entries: [files, dirs].concat() }.encode()
        });
        self.finish(msgid, result);
    }

    pub(super) fn set_eattr(&mut self, packet: &CltomaFuseSeteattr) {
        let caller = self.caller(packet.uid, &[0]);
        let result = self.core.namespace.set_eattr(&caller, packet.inode, packet.eattr, packet.smode);
        self.three(packet.msgid, result);
    }

    pub(super) fn archive(&mut self, packet: &CltomaFuseArchctl) {
        let msgid = packet.msgid;
        let result = match (packet.cmd, packet.uid) {
            (2, _) => self.core.namespace.get_archived(self.session, packet.inode).map(|found| {
                MatoclFuseArchctlGet {
                    msgid,
                    archived: found.chunks_archived,
                    notarchived: found.chunks_not_archived,
                    all: found.inodes_archived,
                    partly: found.inodes_partly,
                    none: found.inodes_not_archived,
                }
                .encode()
            }),
            (cmd @ (0 | 1), Some(uid)) => {
                let caller = self.caller(uid, &[0]);
                self.core.namespace.set_archived(&caller, packet.inode, cmd == 1).map(
                    |[changed, notchanged, denied]| {
                        let notpermitted = u32::try_from(denied).unwrap_or(u32::MAX);
                        MatoclFuseArchctlSet { msgid, changed, notchanged, notpermitted }.encode()
                    },
                )
            }
            _ => Err(Status::EINVAL),
        };
        self.finish(msgid, result);
    }

    // --- figures

    pub(super) fn parents(&mut self, packet: &CltomaFuseParents) {
        let msgid = packet.msgid;
        let result = self.core.namespace.parents(self.session, packet.inode);
        self.finish(msgid, result.map(|parents| MatoclFuseParents { msgid, parents }.encode()));
    }

    pub(super) fn paths(&mut self, packet: &CltomaFusePaths) {
        let msgid = packet.msgid;
        let result = self.core.namespace.paths(self.session, packet.inode).map(|paths| {
            let paths = paths.into_iter().map(|path| Text(path[..path.len().min(65_536)].to_vec())).collect();
            MatoclFusePaths { msgid, paths }.encode()
        });
        self.finish(msgid, result);
    }

    pub(super) fn dir_stats(&mut self, packet: &CltomaFuseGetdirstats) {
        let msgid = packet.msgid;
        let tool = self.link.class == Class::Tool;
        let result = self.core.namespace.dir_stats(self.session, packet.inode).map(|f| {
            let (inodes, dirs, files, chunks) = (f.inodes, f.dirs, f.files, f.chunks);
            let (length, size, realsize) = (f.length, f.size, f.realsize);
            if tool {
                return MatoclFuseGetdirstatsShort { msgid, inodes, dirs, files, chunks, length, size, realsize }
                    .encode();
            }
            MatoclFuseGetdirstats {
                msgid,
                inodes,
                dirs,
                files,
                zero1: 0,
                zero2: 0,
                chunks,
                zero3: 0,
                zero4: 0,
                length,
                size,
                realsize,
            }
            .encode()
        });
        self.finish(msgid, result);
    }

    pub(super) fn check(&mut self, packet: &CltomaFuseCheck) {
        let msgid = packet.msgid;
        let result = match packet.index {
            Some(index) => self.check_chunk(msgid, packet.inode, index),
            None => self.check_file(msgid, packet.inode),
        };
        self.finish(msgid, result);
    }

    /// How many chunks of the file have how many copies. Spec 32, 32.3.
    fn check_file(&self, msgid: u32, inode: wire::Inode) -> Result<Vec<u8>, Status> {
        let (inode, _, slots) = self.core.namespace.file(self.session, inode)?;
        let mut counts = [0u32; 12];
        let mut filled = 0;
        for (_, chunk) in self.core.namespace.file_chunks(inode, 0)? {
            filled += 1;
            counts[self.core.chunks.census(chunk).usable().min(10)] += 1;
        }
        counts[11] = slots.saturating_sub(filled);
        if self.link.version.at_least(3, 0, 30) {
            return Ok(MatoclFuseCheck { msgid, counts: counts.map(|count| Count { count }) }.encode());
        }
        Ok(self.packet(msgid, |out| counts[..11].iter().for_each(|count| count.put(out))))
    }

    fn check_chunk(&self, msgid: u32, inode: wire::Inode, index: u32) -> Result<Vec<u8>, Status> {
        if index > wire::limits::CHUNK_INDEX_MAX {
            return Err(Status::INDEXTOOBIG);
        }
        let (inode, _, _) = self.core.namespace.file(self.session, inode)?;
        let first = self.core.namespace.file_chunks(inode, index)?.next();
        let Some((_, chunkid)) = first.filter(|(found, _)| *found == index) else {
            let empty = MatoclFuseCheckChunk { msgid, chunkid: ChunkId(0), version: Version(0), copies: Vec::new() };
            return Ok(empty.encode());
        };
        let version = self.core.namespace.chunk(chunkid).ok_or(Status::NOCHUNK)?.version;
        let copies = self.core.chunks.copies(chunkid).filter_map(|(server, state)| {
            let server = self.core.chunks.servers().get(server)?;
            let copytype = match (state.kind, state.marked) {
                (CopyKind::Valid | CopyKind::Behind(_) | CopyKind::Busy, false) => 0,
                (CopyKind::Valid | CopyKind::Behind(_) | CopyKind::Busy, true) => 1,
                (CopyKind::WrongVersion(_), false) => 2,
                (CopyKind::WrongVersion(_), true) => 3,
                (CopyKind::Invalid | CopyKind::Deleting, _) => 4,
            };
            Some(CheckedCopy { ip: server.ip, port: server.port, copytype })
        });
        let copies = copies.take(LOCATIONS_MAX).collect();
        Ok(MatoclFuseCheckChunk { msgid, chunkid, version, copies }.encode())
    }

    pub(super) fn node_info(&mut self, packet: &CltomaNodeInfo) {
        let msgid = packet.msgid;
        let result = self.node_info_of(packet).map(|info| MatoclNodeInfo { msgid, info }.encode());
        self.finish(msgid, result);
    }

    fn node_info_of(&self, packet: &CltomaNodeInfo) -> Result<NodeInfo, Status> {
        let (namespace, inode) = (&self.core.namespace, packet.inode);
        match namespace.kind(self.session, inode)? {
            NodeKind::Directory => {
                let (continueid, children) =
                    namespace.node_info_children(self.session, inode, packet.maxentries, packet.continueid)?;
                Ok(NodeInfo::Directory { continueid, children })
            }
            NodeKind::File | NodeKind::Trash | NodeKind::Sustained => {
                let (inode, length, _) = namespace.file(self.session, inode)?;
                let first = u32::try_from(packet.continueid).map_err(|_| Status::EINVAL)?;
                let mut slots = namespace.file_chunks(inode, first)?;
                let mut chunks = Vec::new();
                let mut continueid = 0;
                for (index, chunkid) in slots.by_ref() {
                    if chunks.len() as u64 == u64::from(packet.maxentries) {
                        continueid = u64::from(index);
                        break;
                    }
                    let copies = byte(self.core.chunks.census(chunkid).usable());
                    chunks.push(NodeInfoChunk { chunkid, size: size_on_disk(length, index), copies });
                }
                Ok(NodeInfo::File { continueid, length, chunks })
            }
            _ => Ok(NodeInfo::Other),
        }
    }

    // --- repair, sharing, quota

    /// Per chunk: good ones stay, a neighbouring version is taken, what is lost becomes a hole. Spec 41, 12.
    pub(super) fn repair(&mut self, packet: &CltomaFuseRepair) {
        let msgid = packet.msgid;
        let caller = self.caller(packet.uid, packet.gids.as_slice());
        let result = self.core.namespace.check_repair(&caller, packet.inode).and_then(|inode| {
            let (_, _, all_slots) = self.core.namespace.file(self.session, inode)?;
            let slots: Vec<(u32, ChunkId)> = self.core.namespace.file_chunks(inode, 0)?.collect();
            let holes = all_slots.saturating_sub(word(slots.len()));
            let (mut notchanged, mut erased, mut repaired) = (holes, 0, 0);
            for (index, chunk) in slots {
                let locked = self.core.namespace.chunk(chunk).is_some_and(|record| record.is_locked(self.now));
                if locked || self.core.chunks.census(chunk).usable() > 0 {
                    notchanged += 1;
                    continue;
                }
                match self.core.chunks.best_wrong_version(chunk) {
                    Some(version) => {
                        self.core.namespace.repair_slot(self.core.time, inode, index, version)?;
                        self.core.chunks.adopt_version(chunk, version);
                        repaired += 1;
                    }
                    None => {
                        self.core.namespace.repair_slot(self.core.time, inode, index, Version(0))?;
                        erased += 1;
                    }
                }
            }
            Ok(MatoclFuseRepair { msgid, notchanged, erased, repaired }.encode())
        });
        self.finish(msgid, result);
    }

    pub(super) fn append_slice(&mut self, packet: &CltomaFuseAppendSlice) {
        let caller = self.caller(packet.uid, packet.gids.as_slice());
        let range = (packet.from, packet.to);
        let result = self.core.namespace.append_slice(&caller, packet.flags, packet.inode, packet.source, range);
        if result.is_ok() {
            self.core.cache.written(packet.inode, self.session);
            if let Ok((inode, length, _)) = self.core.namespace.file(self.session, packet.inode) {
                let changed = wire::MatoclFuseFlengHasChanged { msgid: 0, inode, length }.encode();
                self.core.notify_openers(inode, 0, &changed);
            }
        }
        self.status(packet.msgid, result.err().unwrap_or(Status::OK));
    }

    pub(super) fn snapshot(&mut self, packet: &CltomaFuseSnapshot) {
        let caller = self.caller(packet.uid, packet.gids.as_slice());
        let (source, parent, name) = (packet.source, packet.parent, packet.name.as_bytes());
        let result = self.core.namespace.snapshot(&caller, source, parent, name, packet.smode, packet.umask);
        self.status(packet.msgid, result.err().unwrap_or(Status::OK));
    }

    pub(super) fn quota(&mut self, packet: &CltomaFuseQuotacontrol) {
        let msgid = packet.msgid;
        let limits = packet.set.as_ref().map(|set| {
            let soft = Limits { inodes: set.sinodes, length: set.slength, size: set.ssize, realsize: set.srealsize };
            let hard = Limits { inodes: set.hinodes, length: set.hlength, size: set.hsize, realsize: set.hrealsize };
            (soft, hard, set.grace)
        });
        let caller = self.caller(0, &[0]);
        let result = match packet.qflags {
            0 => self.core.namespace.quota(self.session, packet.inode),
            flags => self.core.namespace.set_quota(&caller, packet.inode, flags, limits),
        };
        let knows_grace = self.link.version.at_least(3, 0, 9);
        let result = result.map(|report| {
            let (quota, present) = (report.quota, report.present);
            let limits = QuotaSet {
                grace: quota.grace_seconds,
                sinodes: quota.soft.inodes,
                slength: quota.soft.length,
                ssize: quota.soft.size,
                srealsize: quota.soft.realsize,
                hinodes: quota.hard.inodes,
                hlength: quota.hard.length,
                hsize: quota.hard.size,
                hrealsize: quota.hard.realsize,
            };
            self.packet(msgid, |out| {
                quota.flags.put(out);
                let mut fields = Vec::new();
                limits.put(&mut fields);
                out.extend_from_slice(if knows_grace { &fields } else { &fields[4..] });
                present.inodes.put(out);
                present.length.put(out);
                present.size.put(out);
                present.realsize.put(out);
            })
        });
        self.finish(msgid, result);
    }

    // --- extended attributes, ACLs

    pub(super) fn get_xattr(&mut self, packet: &CltomaFuseGetxattr) {
        let msgid = packet.msgid;
        let caller = self.caller(packet.uid, packet.gids.as_slice());
        let (name, opened) = (packet.name.as_bytes(), packet.opened != 0);
        let value = match name {
            _ if packet.mode > 1 => Err(Status::EINVAL),
            [] => self.core.namespace.list_xattr(&caller, packet.inode, opened),
            _ => self.core.namespace.get_xattr(&caller, packet.inode, opened, name).map(<[u8]>::to_vec),
        };
        let result = value.map(|value| match packet.mode {
            0 => MatoclFuseGetxattr { msgid, value: Text(value) }.encode(),
            _ => MatoclFuseGetxattrLength { msgid, length: word(value.len()) }.encode(),
        });
        self.finish(msgid, result);
    }

    pub(super) fn set_xattr(&mut self, packet: &CltomaFuseSetxattr) {
        let caller = self.caller(packet.uid, packet.gids.as_slice());
        let (name, value, opened) = (packet.name.as_bytes(), &packet.value.0, packet.opened != 0);
        let result = self.core.namespace.set_xattr(&caller, packet.inode, opened, name, value, packet.mode);
        self.status(packet.msgid, result.err().unwrap_or(Status::OK));
    }

    pub(super) fn get_acl(&mut self, packet: &CltomaFuseGetfacl) {
        let msgid = packet.msgid;
        let result = self.core.namespace.get_acl(self.session, packet.inode, packet.acltype).map(|acl| {
            let entries = |list: &[(u32, u16)]| list.iter().map(|&(id, perm)| AclEntry { id, perm }).collect();
            let acl = Acl {
                userperm: acl.user,
                groupperm: acl.group,
                otherperm: acl.other,
                mask: acl.mask,
                users: entries(&acl.users),
                groups: entries(&acl.groups),
            };
            MatoclFuseGetfacl { msgid, acl }.encode()
        });
        self.finish(msgid, result);
    }

    pub(super) fn set_acl(&mut self, packet: &CltomaFuseSetfacl) {
        let caller = self.caller(packet.uid, &[0]);
        let entries = |list: &[AclEntry]| list.iter().map(|entry| (entry.id, entry.perm)).collect();
        let acl = acl::Acl {
            user: packet.acl.userperm,
            group: packet.acl.groupperm,
            other: packet.acl.otherperm,
            mask: packet.acl.mask,
            users: entries(&packet.acl.users),
            groups: entries(&packet.acl.groups),
        };
        debug_assert_eq!(ABSENT, 0xFFFF, "absent is the same on the wire");
        let result = self.core.namespace.set_acl(&caller, packet.inode, packet.acltype, &acl);
        self.status(packet.msgid, result.err().unwrap_or(Status::OK));
    }

    // --- trash and sustained files, META sessions

    pub(super) fn trash(&mut self, packet: &CltomaFuseGettrash) {
        let msgid = packet.msgid;
        let result = self.core.namespace.trash_list(self.session, packet.bucket);
        self.finish(msgid, result.map(|found| MatoclFuseGettrash { msgid, entries: detached(found) }.encode()));
    }

    pub(super) fn sustained(&mut self, packet: &CltomaFuseGetsustained) {
        let msgid = packet.msgid;
        let result = self.core.namespace.sustained_list(self.session);
        self.finish(msgid, result.map(|found| MatoclFuseGetsustained { msgid, entries: detached(found) }.encode()));
    }

    pub(super) fn detached_attr(&mut self, packet: &CltomaFuseGetdetachedattr) {
        let dtype = packet.dtype.unwrap_or(0);
        let result = self.core.namespace.detached_attr(self.session, packet.inode, dtype);
        let result = result.map(|attr| self.with_attr(packet.msgid, &attr, |_| {}));
        self.finish(packet.msgid, result);
    }

    pub(super) fn trash_path(&mut self, packet: &CltomaFuseGettrashpath) {
        let msgid = packet.msgid;
        let result = self.core.namespace.trash_path(self.session, packet.inode).map(|path| {
            let mut path = path.to_vec();
            path.push(0);
            MatoclFuseGettrashpath { msgid, path: Text(path) }.encode()
        });
        self.finish(msgid, result);
    }

    pub(super) fn set_trash_path(&mut self, packet: &CltomaFuseSettrashpath) {
        let caller = self.caller(0, &[0]);
        let end = packet.path.0.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let result = self.core.namespace.set_trash_path(&caller, packet.inode, &packet.path.0[..end]);
        self.status(packet.msgid, result.err().unwrap_or(Status::OK));
    }

    pub(super) fn undelete(&mut self, packet: &CltomaFuseUndel) {
        let caller = self.caller(0, &[0]);
        let result = self.core.namespace.undelete(&caller, packet.inode);
        self.status(packet.msgid, result.err().unwrap_or(Status::OK));
    }

    pub(super) fn purge(&mut self, packet: &CltomaFusePurge) {
        let caller = self.caller(0, &[0]);
        let result = self.core.namespace.purge(&caller, packet.inode);
        self.status(packet.msgid, result.err().unwrap_or(Status::OK));
    }

    // --- administration of storage classes

    pub(super) fn class_create(&mut self, packet: &CltomaSclassCreate) {
        let caller = self.caller(0, &[0]);
        let result = match packet.fver {
            0 => self.core.namespace.class_create(&caller, &class_from(packet.name.as_bytes(), &packet.body)),
            _ => Err(Status::EINVAL),
        };
        self.status(packet.msgid, result.err().unwrap_or(Status::OK));
    }

    /// Only the parts that the mask names change; with none the class is shown. Spec 32, 32.10.
    pub(super) fn class_change(&mut self, packet: &CltomaSclassChange) {
        let (msgid, mask) = (packet.msgid, packet.chgmask);
        let caller = self.caller(0, &[0]);
        let namespace = &mut self.core.namespace;
        let name = packet.name.as_bytes();
        let result = match namespace.class_by_name(name).and_then(|id| namespace.class(id)).cloned() {
            _ if packet.fver != 0 => Err(Status::EINVAL),
            None => Err(Status::NOSUCHCLASS),
            Some(class) if mask == 0 => Ok(class),
            Some(mut class) => {
                let wanted = class_from(name, &packet.body);
                let changes = |bit: u16| mask & bit != 0;
                class.admin_only = if changes(0x01) { wanted.admin_only } else { class.admin_only };
                class.mode = if changes(0x02) { wanted.mode } else { class.mode };
                class.create = if changes(0x04) { wanted.create } else { class.create };
                class.keep = if changes(0x08) { wanted.keep } else { class.keep };
                class.arch = if changes(0x10) { wanted.arch } else { class.arch };
                class.arch_delay_days = if changes(0x20) { wanted.arch_delay_days } else { class.arch_delay_days };
                namespace.class_change(&caller, &class, mask & 0x8000 != 0).map(|()| class)
            }
        };
        let result = result.map(|class| MatoclSclassChange { msgid, fver: 0, body: class_body(&class) }.encode());
        self.finish(msgid, result);
    }

    pub(super) fn class_delete(&mut self, packet: &CltomaSclassDelete) {
        let caller = self.caller(0, &[0]);
        let result = self.core.namespace.class_delete(&caller, packet.name.as_bytes());
        self.status(packet.msgid, result.err().unwrap_or(Status::OK));
    }

    pub(super) fn class_duplicate(&mut self, packet: &CltomaSclassDuplicate) {
        let caller = self.caller(0, &[0]);
        let result = self.core.namespace.class_duplicate(&caller, packet.old.as_bytes(), packet.new.as_bytes());
        self.status(packet.msgid, result.err().unwrap_or(Status::OK));
    }

    pub(super) fn class_rename(&mut self, packet: &CltomaSclassRename) {
        let caller = self.caller(0, &[0]);
        let result = self.core.namespace.class_rename(&caller, packet.old.as_bytes(), packet.new.as_bytes());
        self.status(packet.msgid, result.err().unwrap_or(Status::OK));
    }

    pub(super) fn class_list(&mut self, packet: &CltomaSclassList) {
        let msgid = packet.msgid;
        let classes = self.core.namespace.classes().filter_map(|(_, class)| {
            Name::new(&class.name).ok().map(|name| NamedClass { name, body: class_body(class) })
        });
        let packet = if packet.longmode & 1 != 0 {
            MatoclSclassListLong { msgid, classes: classes.collect() }.encode()
        } else {
            MatoclSclassList { msgid, names: classes.map(|class| class.name).collect() }.encode()
        };
        self.finish(msgid, Ok(packet));
    }
}

fn class_from(name: &[u8], body: &ClassBody) -> StorageClass {
    StorageClass {
        name: name.to_vec(),
        admin_only: body.admin_only != 0,
        mode: body.mode,
        arch_delay_days: body.arch_delay,
        create: body.create.clone(),
        keep: body.keep.clone(),
        arch: body.arch.clone(),
    }
}

fn class_body(class: &StorageClass) -> ClassBody {
    ClassBody {
        admin_only: u8::from(class.admin_only),
        mode: class.mode,
        arch_delay: class.arch_delay_days,
        create: class.create.clone(),
        keep: class.keep.clone(),
        arch: class.arch.clone(),
    }
}

fn flat<T>(tally: &Tally, entry: impl Fn(u32, u32) -> T) -> (Vec<T>, Vec<T>) {
    let list = |counts: &BTreeMap<u32, u32>| counts.iter().map(|(&value, &count)| entry(value, count)).collect();
    (list(&tally.files), list(&tally.dirs))
}

fn detached(found: Vec<(Vec<u8>, wire::Inode)>) -> Vec<DetachedEntry> {
    let named = |(name, inode): (Vec<u8>, wire::Inode)| Name::new(&name).ok().map(|name| DetachedEntry { name, inode });
    found.into_iter().filter_map(named).collect()
}

/// Bytes that one copy of a chunk takes on a disk. Spec 32, 32.3.
fn size_on_disk(length_bytes: u64, index: u32) -> u32 {
    const HEAD_BYTES: u32 = 8 << 10;
    let start = u64::from(index) * u64::from(CHUNK_BYTES);
    match length_bytes.checked_sub(start) {
        None | Some(0) => 0,
        Some(rest) if rest >= u64::from(CHUNK_BYTES) => CHUNK_BYTES + HEAD_BYTES,
        Some(rest) => u32::try_from(rest.next_multiple_of(u64::from(BLOCK_BYTES))).unwrap_or(CHUNK_BYTES) + HEAD_BYTES,
    }
}

fn byte(count: usize) -> u8 {
    u8::try_from(count).unwrap_or(u8::MAX)
}

fn word(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
