//! What is asked of nodes and of whole trees: storage class, trash time, extra attributes, archive flag, figures,
//! paths. Spec 32, 32.1 to 32.4.

use std::collections::BTreeMap;

use wire::limits::{CHUNK_BYTES, FILE_BYTES_MAX, GOAL_MAX};
use wire::{Inode, Ip4, NodeKind, SessionId, Status, Time};

use crate::access::{READ, WRITE, Who};
use crate::apply::{SMODE_ADMIN, borrowed, tree};
use crate::change::{Change, Masks, Tagged};
use crate::class::StorageClass;
use crate::namespace::{Caller, Namespace};
use crate::node::{Figures, Node, eattr};
use crate::session::{disables, session_flags};
use crate::state::ServerEntry;

/// How a change goes: the low two bits SET 0, INCREASE 1, DECREASE 2, EXCHANGE 3. Spec 32.
pub mod smode {
    pub const SET: u8 = 0;
    pub const INCREASE: u8 = 1;
    pub const DECREASE: u8 = 2;
    pub const EXCHANGE: u8 = 3;
    pub const RECURSIVE: u8 = 4;
    pub(crate) const MAX: u8 = 7;
}

/// How many files and directories have which value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub files: BTreeMap<u32, u32>,
    pub dirs: BTreeMap<u32, u32>,
}

/// What ARCHCTL tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Archived {
    pub chunks_archived: u64,
    pub chunks_not_archived: u64,
    pub inodes_archived: u32,
    pub inodes_partly: u32,
    pub inodes_not_archived: u32,
}

/// How a class is chosen in SETSCLASS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassChange {
    /// By number, 1 to 9.
    Goal(u8),
    /// By name, found before; `from` only for EXCHANGE.
    Class { from: Option<u8>, to: u8 },
}

impl Namespace {
    // --- storage class

    /// Classes of a node, or of all nodes below it (`gmode` 1). Spec 32, 32.1 "GETSCLASS".
    pub fn get_classes(&self, session: SessionId, inode: Inode, gmode: u8) -> Result<Tally, Status> {
        self.tally(session, inode, gmode, true, |node| u32::from(node.class))
    }

    /// Seconds, by hours. Spec 32, 32.2 "GETTRASHTIME".
    pub fn get_trash_times(&self, session: SessionId, inode: Inode, gmode: u8) -> Result<Tally, Status> {
        self.tally(session, inode, gmode, true, |node| u32::from(self.state.trash_hours(node)) * 3600)
    }

    /// Spec 32, 32.2 "GETEATTR".
    pub fn get_eattrs(&self, session: SessionId, inode: Inode, gmode: u8) -> Result<Tally, Status> {
        self.tally(session, inode, gmode, false, |node| u32::from(node.eattr()))
    }

    fn tally(
        &self,
        session: SessionId,
        inode: Inode,
        gmode: u8,
        only_data: bool,
        value: impl Fn(&Node) -> u32,
    ) -> Result<Tally, Status> {
        if gmode > 1 {
            return Err(Status::EINVAL);
        }
        let who = self.session_itself(session, Time(0))?;
        let inode = self.resolve(&who, inode, false)?;
        let counts = |node: &Node| !only_data || node.is_directory() || node.has_data();
        if !counts(self.state.at(inode)) {
            return Err(Status::EPERM);
        }
        let mut tally = Tally::default();
        for inode in tree(&self.state, inode, gmode == 1) {
            let node = self.state.at(inode);
            if counts(node) {
                let of_kind = if node.is_directory() { &mut tally.dirs } else { &mut tally.files };
                *of_kind.entry(value(node)).or_insert(0) += 1;
            }
        }
        Ok(tally)
    }

    /// Changes storage classes; says how many nodes were changed, not changed, not permitted. Spec 32, 32.1.
    pub fn set_class(
        &mut self,
        caller: &Caller<'_>,
        inode: Inode,
        change: ClassChange,
        mode: u8,
    ) -> Result<[u32; 3], Status> {
        let who = self.who(caller)?;
        who.must_not_be_disabled(disables::SETSCLASS)?;
        let (source, target) = match change {
            ClassChange::Goal(goal) if (1..=GOAL_MAX).contains(&goal) => (goal, goal),
            ClassChange::Goal(_) => return Err(Status::EINVAL),
            ClassChange::Class { from, to } => (from.unwrap_or(to), to),
        };
        if target <= GOAL_MAX && target != 0 {
            let params = &self.state.sessions[&caller.session].params;
            let within = match mode & 3 {
                smode::INCREASE => target <= params.goal_max,
                smode::DECREASE => target >= params.goal_min,
                _ => (params.goal_min..=params.goal_max).contains(&target),
            };
            if !within {
                return Err(Status::EPERM);
            }
        }
        if self.state.classes.get(target).is_none() || mode > smode::MAX {
            return Err(Status::EINVAL);
        }
        if matches!(mode & 3, smode::INCREASE | smode::DECREASE) && target > GOAL_MAX {
            return Err(Status::EINVAL);
        }
        who.must_be_writable()?;
        let inode = self.resolve_tree(&who, inode)?;
        if matches!(mode & 3, smode::SET | smode::INCREASE) {
            self.must_fit_quotas_of_class(inode, target, mode & smode::RECURSIVE != 0)?;
        }
        let admin = if who.has(session_flags::ADMIN) { SMODE_ADMIN } else { 0 };
        let smode = mode | admin;
        self.over_tree(&who, mode, Change::SetClass { inode: Inode(inode), uid: who.uid, source, target, smode })
    }

    /// The id of a class.
    pub fn class_by_name(&self, name: &[u8]) -> Option<u8> {
        self.state.classes.by_name(name)
    }

    pub fn class(&self, id: u8) -> Option<&StorageClass> {
        self.state.classes.get(id)
    }

    pub fn classes(&self) -> impl Iterator<Item = (u8, &StorageClass)> {
        self.state.classes.iter()
    }

    // --- trash time, extra attributes, archive flag

    /// Spec 32, 32.2 "SETTRASHTIME".
    pub fn set_trash_time(
        &mut self,
        caller: &Caller<'_>,
        inode: Inode,
        seconds: u32,
        mode: u8,
    ) -> Result<[u32; 3], Status> {
        let who = self.who(caller)?;
        who.must_not_be_disabled(disables::SETTRASH)?;
        let params = &self.state.sessions[&caller.session].params;
        let (low, high) = (params.trash_time_min_seconds, params.trash_time_max_seconds);
        let within = match mode & 3 {
            smode::INCREASE => seconds <= high,
            smode::DECREASE => seconds >= low,
            _ => (low..=high).contains(&seconds),
        };
        if !within {
            return Err(Status::EPERM);
        }
        if mode > smode::MAX {
            return Err(Status::EINVAL);
        }
        who.must_be_writable()?;
        let inode = Inode(self.resolve_tree(&who, inode)?);
        self.over_tree(&who, mode, Change::SetTrashTime { inode, uid: who.uid, seconds, smode: mode })
    }

    /// Spec 32, 32.2 "SETEATTR".
    pub fn set_eattr(&mut self, caller: &Caller<'_>, inode: Inode, bits: u8, mode: u8) -> Result<[u32; 3], Status> {
        let who = self.who(caller)?;
        who.must_not_be_disabled(disables::SETEATTR)?;
        if mode > smode::MAX {
            return Err(Status::EINVAL);
        }
        who.must_be_writable()?;
        let for_admin = eattr::UNDELETABLE | eattr::APPEND_ONLY | eattr::IMMUTABLE;
        if bits & for_admin != 0 && !who.has(session_flags::ADMIN) {
            return Err(Status::EPERM);
        }
        let inode = Inode(self.resolve(&who, inode, false)?);
        self.over_tree(&who, mode, Change::SetEattr { inode, uid: who.uid, eattr: bits, smode: mode })
    }

    /// A node that has a class and a trash time.
    fn resolve_tree(&self, who: &Who<'_>, inode: Inode) -> Result<u32, Status> {
        let inode = self.resolve(who, inode, false)?;
        let node = self.state.at(inode);
        if node.is_directory() || node.has_data() { Ok(inode) } else { Err(Status::EPERM) }
    }

    /// The counts of a change; if it is not recursive and the only node denied it, `EPERM`.
    fn over_tree(&mut self, who: &Who<'_>, mode: u8, change: Change<'_>) -> Result<[u32; 3], Status> {
        let counts: [u32; 3] = self.commit(who.now, &change)?.words();
        if mode & smode::RECURSIVE == 0 && counts == [0, 0, 1] { Err(Status::EPERM) } else { Ok(counts) }
    }

    /// Spec 32, 32.2 "ARCHCTL" GET.
    pub fn get_archived(&self, session: SessionId, inode: Inode) -> Result<Archived, Status> {
        let who = self.session_itself(session, Time(0))?;
        let inode = self.resolve_tree(&who, inode)?;
        let mut sum = Archived::default();
        for inode in tree(&self.state, inode, true) {
            let node = self.state.at(inode);
            if !node.has_data() {
                continue;
            }
            let (mut yes, mut no) = (0, 0);
            for (_, chunk) in self.state.chunks_from(node, 0) {
                match self.state.chunks.at(chunk).archived {
                    true => yes += 1,
                    false => no += 1,
                }
            }
            sum.chunks_archived += yes;
            sum.chunks_not_archived += no;
            match (yes, no) {
                (0, 0) => {}
                (_, 0) => sum.inodes_archived += 1,
                (0, _) => sum.inodes_not_archived += 1,
                _ => sum.inodes_partly += 1,
            }
        }
        Ok(sum)
    }

    /// Sets or clears the archive flag of all chunks below; says changed and unchanged chunks, files not permitted.
    /// Errors: `EPERM` if that is asked for a file, and not permitted. Spec 32, 32.2 "ARCHCTL".
    pub fn set_archived(&mut self, caller: &Caller<'_>, inode: Inode, archived: bool) -> Result<[u64; 3], Status> {
        let who = self.who(caller)?;
        who.must_not_be_disabled(disables::SETEATTR)?;
        who.must_be_writable()?;
        let inode = Inode(self.resolve_tree(&who, inode)?);
        let command = u8::from(archived);
        let outcome = self.commit(who.now, &Change::Archive { inode, uid: who.uid, command })?;
        let counts = [outcome.values()[0], outcome.values()[1], outcome.values()[2]];
        let is_file = !self.state.at(inode.0).is_directory();
        if is_file && counts == [0, 0, 1] { Err(Status::EPERM) } else { Ok(counts) }
    }

    // --- information

    /// Directories that hold a name of the node, one per name. Spec 32, 32.3 "PARENTS".
    pub fn parents(&self, session: SessionId, inode: Inode) -> Result<Vec<Inode>, Status> {
        let who = self.session_itself(session, Time(0))?;
        let inode = self.resolve(&who, inode, false)?;
        let parents = self.state.links(inode).map(|edge| self.state.edge(edge).parent);
        Ok(parents.filter(|parent| *parent != 0).map(|parent| who.shown(parent)).collect())
    }

    /// Paths of the node, one per name, as the session sees them. Spec 32, 32.3 "PATHS".
    pub fn paths(&self, session: SessionId, inode: Inode) -> Result<Vec<Vec<u8>>, Status> {
        let who = self.session_itself(session, Time(0))?;
        let inode = self.resolve(&who, inode, false)?;
        if inode == who.root || self.state.at(inode).edge == 0 {
            return Ok(vec![b"/".to_vec()]);
        }
        let kind = self.state.at(inode).kind();
        if matches!(kind, NodeKind::Trash | NodeKind::Sustained) {
            let word = if kind == NodeKind::Trash { &b"./TRASH ("[..] } else { b"./SUSTAINED (" };
            let path = self.state.name(self.state.at(inode).edge);
            return Ok(vec![[word, path, b")"].concat()]);
        }
        let below = |edge: &u32| self.state.directory_is_below(self.state.edge(*edge).parent, who.root);
        Ok(self.state.links(inode).filter(below).map(|edge| self.state.path_below(edge, who.root)).collect())
    }

    /// Sums over a directory with everything below, or of a file. Spec 32, 32.3 "GETDIRSTATS".
    pub fn dir_stats(&self, session: SessionId, inode: Inode) -> Result<Figures, Status> {
        let who = self.session_itself(session, Time(0))?;
        let inode = self.resolve_tree(&who, inode)?;
        Ok(self.state.figures(inode))
    }

    /// Children of a directory for NODE_INFO: their inodes, at most `entries_max` from `from` on (0: the start), and
    /// where to go on (0: the end). Spec 32, 32.3.
    pub fn node_info_children(
        &self,
        session: SessionId,
        inode: Inode,
        entries_max: u32,
        from: u64,
    ) -> Result<(u64, Vec<Inode>), Status> {
        let who = self.session_itself(session, Time(0))?;
        let directory = self.resolve(&who, inode, false)?;
        if !self.state.at(directory).is_directory() {
            return Err(Status::ENOTDIR);
        }
        let mut edges = self.state.children(directory).skip_while(|edge| self.state.edge(*edge).id() < from);
        let mut found = Vec::new();
        for edge in edges.by_ref() {
            let edge = self.state.edge(edge);
            if found.len() as u64 == u64::from(entries_max) {
                return Ok((edge.id(), found));
            }
            found.push(Inode(edge.child));
        }
        Ok((0, found))
    }

    /// The kind of a node. Errors: `ENOENT`.
    pub fn kind(&self, session: SessionId, inode: Inode) -> Result<NodeKind, Status> {
        let who = self.session_itself(session, Time(0))?;
        Ok(self.state.at(self.resolve(&who, inode, false)?).kind())
    }

    // --- append

    /// Shares chunks `from..to` of a file behind the end of another. `flags`: 1 / 2 = from / to count from the end.
    /// Spec 32, 32.4 "APPEND_SLICE".
    pub fn append_slice(
        &mut self,
        caller: &Caller<'_>,
        flags: u8,
        inode: Inode,
        source: Inode,
        (from, to): (u32, u32),
    ) -> Result<(), Status> {
        let who = self.who(caller)?;
        who.must_not_be_disabled(disables::APPENDCHUNKS)?;
        if inode == source {
            return Err(Status::EINVAL);
        }
        who.must_be_writable()?;
        let target = self.resolve(&who, inode, false)?;
        let source = self.resolve(&who, source, false)?;
        let (target_node, source_node) = (*self.state.at(target), *self.state.at(source));
        if source_node.kind() != NodeKind::File {
            return Err(Status::EPERM);
        }
        self.must_allow(&who, source, READ)?;
        if target_node.kind() != NodeKind::File || target_node.has_eattr(eattr::IMMUTABLE) {
            return Err(Status::EPERM);
        }
        self.must_allow(&who, target, WRITE)?;
        let chunk_bytes = u64::from(CHUNK_BYTES);
        let chunks = source_node.length().div_ceil(chunk_bytes);
        let first = if flags & 1 != 0 { chunks.saturating_sub(u64::from(from)) } else { u64::from(from) };
        let end = match flags & 2 != 0 {
            true => chunks.saturating_sub(u64::from(to)),
            false => u64::from(to).min(chunks),
        };
        if first >= end {
            return Ok(());
        }
        let start = target_node.length().div_ceil(chunk_bytes) * chunk_bytes;
        let length = start + (end * chunk_bytes).min(source_node.length()) - first * chunk_bytes;
        let size = (end - first) * (chunk_bytes + 8192);
        let realsize = size * u64::from(self.state.classes.copies_max(target_node.class));
        let more = Figures { length: length - target_node.length(), size, realsize, ..Figures::default() };
        self.must_fit_quotas_of_links(target, &more)?;
        if length > FILE_BYTES_MAX {
            return Err(Status::INDEXTOOBIG);
        }
        let (first, last) = (first as u32, (end - 1) as u32);
        self.append_ends.remove(&target);
        self.commit(who.now, &Change::Append { inode: Inode(target), source: Inode(source), first, last }).map(drop)
    }

    // --- known chunkservers

    /// Chunkservers that the cluster knows. Spec 40, 4.
    pub fn servers(&self) -> impl Iterator<Item = ((Ip4, u16), ServerEntry)> + '_ {
        self.state.servers.iter().map(|(key, entry)| (*key, *entry))
    }

    /// `operation`: 0 add (argument: csid or 0), 1 delete, 2 csid `argument` moves to this address, 3 the address
    /// gets csid `argument`, 4 maintenance on (until `argument`, 0 = open end), 5 off, 6 temporary. Spec 51, 6.4.
    pub fn server_op(
        &mut self,
        now: impl Into<Time>,
        operation: u8,
        ip: Ip4,
        port: u16,
        argument: u32,
    ) -> Result<(), Status> {
        let now = now.into();
        self.commit(now, &Change::Server { operation, ip, port, argument }).map(drop)
    }

    // --- administration of storage classes

    /// Makes a class. Errors: `EPERM_NOTADMIN`, `EINVAL`, `CLASSEXISTS`, `CLASSLIMITREACH`. Spec 32, 32.10.
    pub fn class_create(&mut self, caller: &Caller<'_>, class: &StorageClass) -> Result<(), Status> {
        self.must_be_admin(caller)?;
        if self.state.classes.by_name(&class.name).is_some() {
            return Err(Status::CLASSEXISTS);
        }
        self.class_set(caller.now, class, true)
    }

    /// Redefines a class; `force` for the simple goals. Errors: also `NOSUCHCLASS`, `EPERM`. Spec 32, 32.10.
    pub fn class_change(&mut self, caller: &Caller<'_>, class: &StorageClass, force: bool) -> Result<(), Status> {
        self.must_be_admin(caller)?;
        let id = self.state.classes.by_name(&class.name).ok_or(Status::NOSUCHCLASS)?;
        if id <= GOAL_MAX && !force {
            return Err(Status::EPERM);
        }
        self.class_set(caller.now, class, false)
    }

    fn class_set(&mut self, now: Time, class: &StorageClass, new: bool) -> Result<(), Status> {
        let all = class.create.iter().chain(&class.keep).chain(&class.arch);
        let change = Change::ClassSet {
            name: borrowed(&class.name),
            new: u8::from(new),
            create: Tagged(class.create.len() as u32),
            keep: Tagged(class.keep.len() as u32),
            arch: Tagged(class.arch.len() as u32),
            mode: class.mode,
            arch_delay_days: class.arch_delay_days,
            admin_only: u8::from(class.admin_only),
            masks: Masks(all.flatten().copied().collect()),
        };
        self.commit(now, &change).map(drop)
    }

    pub fn class_duplicate(&mut self, caller: &Caller<'_>, source: &[u8], target: &[u8]) -> Result<(), Status> {
        self.must_be_admin(caller)?;
        let change = Change::ClassDuplicate { source: borrowed(source), target: borrowed(target) };
        self.commit(caller.now, &change).map(drop)
    }

    /// Errors: also `EPERM` for the simple goals.
    pub fn class_rename(&mut self, caller: &Caller<'_>, source: &[u8], target: &[u8]) -> Result<(), Status> {
        self.must_be_admin(caller)?;
        if self.state.classes.by_name(source).is_some_and(|id| id <= GOAL_MAX) {
            return Err(Status::EPERM);
        }
        let change = Change::ClassRename { source: borrowed(source), target: borrowed(target) };
        self.commit(caller.now, &change).map(drop)
    }

    /// Errors: also `EPERM` for the simple goals, `CLASSINUSE`.
    pub fn class_delete(&mut self, caller: &Caller<'_>, name: &[u8]) -> Result<(), Status> {
        self.must_be_admin(caller)?;
        self.commit(caller.now, &Change::ClassDelete { name: borrowed(name) }).map(drop)
    }

    fn must_be_admin(&self, caller: &Caller<'_>) -> Result<(), Status> {
        let who = self.who(caller)?;
        if who.has(session_flags::ADMIN) { Ok(()) } else { Err(Status::EPERM_NOTADMIN) }
    }
}
