//! The records of all sections, in every layout from 1.5 to 3.0.117. Spec 50, 4.
//!
//! Taken as they stand: what they mean together is the business of `build`. Names in the file's own order.

use wire::limits::{CHUNK_INDEX_MAX, SYMLINK_BYTES_MAX, XATTR_BYTES_MAX};
use wire::{Field, Input, Ip4};

use super::{Broken, Section, must};

/// Labels that old files describe. Spec 50, 4.2.
const LABELS: u8 = 26;
/// No text of a session is longer: paths of mount points.
const INFO_BYTES_MAX: u32 = 1 << 20;
const GROUPS_MAX: u8 = 4;

/// One record, or the numbers in front of a section's records.
#[derive(Debug)]
pub(super) enum Record<'a> {
    SessionsHead {
        dver: Option<u16>,
        next: u32,
        counters: u16,
    },
    Session(SessionRecord<'a>),
    LabelDescription {
        label: u8,
        text: &'a [u8],
    },
    Class(ClassRecord<'a>),
    /// `count`: a hint.
    NodesHead {
        inode_max: u32,
        count: Option<u32>,
    },
    Node(NodeRecord<'a>),
    EdgesHead {
        next: u64,
    },
    Edge {
        parent: u32,
        child: u32,
        id: u64,
        name: &'a [u8],
    },
    FreeHead {
        count: u32,
    },
    Free {
        inode: u32,
        since: u32,
    },
    QuotasHead {
        count: u32,
    },
    Quota(QuotaRecord),
    Xattr {
        inode: u32,
        name: &'a [u8],
        value: &'a [u8],
    },
    Acl(AclRecord),
    Open {
        session: u32,
        inode: u32,
    },
    Lock {
        inode: u32,
        owner: u64,
        session: u32,
        kind: u8,
    },
    Range {
        inode: u32,
        owner: u64,
        session: u32,
        pid: u32,
        start: u64,
        end: u64,
        kind: u8,
    },
    ServersHead {
        count: u32,
    },
    Server {
        ip: Ip4,
        port: u16,
        csid: Option<u16>,
        maintenance: Option<u8>,
        until: Option<u32>,
    },
    ChunksHead {
        next: u64,
    },
    Chunk {
        id: u64,
        version: u32,
        locked_to: u32,
        archived: Option<u8>,
    },
}

/// Spec 50, 4.1. None: the layout has no such field.
#[derive(Debug, Default)]
pub(super) struct SessionRecord<'a> {
    pub(super) id: u32,
    pub(super) exports_checksum: Option<u64>,
    pub(super) peer_ip: Ip4,
    pub(super) root: u32,
    pub(super) flags: u8,
    pub(super) umask: Option<u16>,
    pub(super) goals: (u8, u8),
    pub(super) trash_seconds: (u32, u32),
    /// rootuid, rootgid, mapalluid, mapallgid.
    pub(super) ids: [u32; 4],
    pub(super) disables: Option<u32>,
    pub(super) disconnected: Option<u32>,
    /// Operations of the current hour, then of the last one.
    pub(super) counters: (Vec<u32>, Vec<u32>),
    pub(super) info: &'a [u8],
}

/// Spec 50, 4.2.
#[derive(Debug)]
pub(super) struct ClassRecord<'a> {
    pub(super) id: u16,
    pub(super) name: Option<&'a [u8]>,
    pub(super) admin_only: u8,
    pub(super) mode: u8,
    pub(super) arch_delay_days: u16,
    pub(super) create: Vec<[u32; 4]>,
    /// None: as `create`.
    pub(super) keep: Option<Vec<[u32; 4]>>,
    /// None: as `keep`.
    pub(super) arch: Option<Vec<[u32; 4]>>,
}

/// Spec 50, 4.5.
#[derive(Debug)]
pub(super) struct NodeRecord<'a> {
    /// 1 to 9.
    pub(super) kind: u8,
    pub(super) inode: u32,
    pub(super) class: u8,
    pub(super) eattr: u8,
    pub(super) winattr: Option<u8>,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) atime: u32,
    pub(super) mtime: u32,
    pub(super) ctime: u32,
    pub(super) trash_time: TrashTime,
    pub(super) data: NodeData<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TrashTime {
    Seconds(u32),
    Hours(u16),
}

#[derive(Debug)]
pub(super) enum NodeData<'a> {
    Nothing,
    Device(u32),
    Target(&'a [u8]),
    /// `chunks`: 8 bytes each, 0 a hole. `sessions`: 4 bytes each, who has it open; None in new layouts.
    File {
        length: u64,
        chunks: &'a [u8],
        sessions: Option<&'a [u8]>,
    },
}

/// Spec 50, 4.8. Limits: inodes, length, size, realsize.
#[derive(Debug)]
pub(super) struct QuotaRecord {
    pub(super) inode: u32,
    pub(super) grace_seconds: Option<u32>,
    pub(super) exceeded: u8,
    pub(super) flags: u8,
    pub(super) since: u32,
    pub(super) soft: (u32, [u64; 3]),
    pub(super) hard: (u32, [u64; 3]),
}

/// Spec 50, 4.10.
#[derive(Debug)]
pub(super) struct AclRecord {
    pub(super) inode: u32,
    pub(super) kind: u8,
    /// user, group, other, mask.
    pub(super) perms: [u16; 4],
    pub(super) users: Vec<(u32, u16)>,
    pub(super) groups: Vec<(u32, u16)>,
}

/// Numbers of a chunk list in a node's record.
pub(super) fn words_of<const BYTES: usize>(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks_exact(BYTES).map(|word| word.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

/// How the records of a section lie, and how far its reading came.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) section: Section,
    /// 0x14 is printed 1.4.
    pub(super) version: u8,
    /// Version of the whole file.
    format: u8,
    at: At,
    /// SESS: layout of its records, counters of one hour. SCLA: masks of an expression.
    sessions: (u8, u16),
    groups: u8,
}

#[derive(Clone, Copy, Debug)]
enum At {
    Head,
    /// Descriptions of labels that are still to come.
    Descriptions(u8),
    Records,
    Left(u32),
}

impl Layout {
    pub(super) fn new(section: Section, version: u8, format: u8) -> Layout {
        Layout { section, version, format, at: At::Head, sessions: (version, 0), groups: 1 }
    }

    /// The next record; None: the section's end was taken. `left`: bytes of the section, of which `input` may be a part:
    /// who believed a longer record would gather all that follows before it is refused.
    pub(super) fn take<'a>(&mut self, input: &mut Input<'a>, left: u64) -> Result<Option<Record<'a>>, Broken> {
        if let At::Head = self.at {
            self.at = At::Records;
            if let Some(head) = self.take_head(input)? {
                return Ok(Some(head));
            }
        }
        match self.at {
            At::Left(0) => return Ok(None),
            At::Left(left) => self.at = At::Left(left - 1),
            At::Descriptions(0) => self.at = At::Records,
            At::Descriptions(left) => {
                self.at = At::Descriptions(left - 1);
                let length = u8::take(input)?;
                must(length <= 128, || "the description of a label is too long".to_owned())?;
                let text = input.bytes(usize::from(length), "label")?;
                if left == 1 {
                    self.groups_behind_labels(input)?;
                }
                return Ok(Some(Record::LabelDescription { label: LABELS - left, text }));
            }
            At::Head | At::Records => {}
        }
        match self.section {
            Section::Sessions => self.session(input),
            Section::Classes => self.class(input, left),
            Section::Nodes => self.node(input, left),
            Section::Edges => self.edge(input),
            Section::Free => Ok(Some(Record::Free { inode: u32::take(input)?, since: u32::take(input)? })),
            Section::Quotas => self.quota(input).map(Some),
            Section::Xattrs => xattr(input),
            Section::Acls => acl(input),
            Section::Open => open(input),
            Section::Locks => lock(input),
            Section::Ranges => range(input),
            Section::Servers => self.server(input).map(Some),
            Section::Chunks => self.chunk(input),
        }
    }

    fn take_head<'a>(&mut self, input: &mut Input<'a>) -> Result<Option<Record<'a>>, Broken> {
        Ok(match self.section {
            Section::Sessions => {
                let dver = if self.version < 0x12 { Some(u16::take(input)?) } else { None };
                self.sessions.0 = match dver {
                    None => self.version,
                    Some(1) => 0x10,
                    Some(2) => 0x11,
                    Some(other) => return Err(Broken::Rule(format!("sessions of an unknown kind, {other}"))),
                };
                let (next, counters) = (u32::take(input)?, u16::take(input)?);
                self.sessions.1 = counters;
                Some(Record::SessionsHead { dver, next, counters })
            }
            Section::Classes if self.version <= 0x15 => {
                self.at = At::Descriptions(LABELS);
                None
            }
            Section::Classes => {
                self.groups = u8::take(input)?;
                self.check_groups()?;
                None
            }
            Section::Nodes if self.format < 0x20 => None,
            Section::Nodes => {
                let inode_max = u32::take(input)?;
                let count = if self.version >= 0x11 { Some(u32::take(input)?) } else { None };
                Some(Record::NodesHead { inode_max, count })
            }
            Section::Edges if self.version == 0x10 => None,
            Section::Edges => Some(Record::EdgesHead { next: u64::take(input)? }),
            Section::Free => Some(Record::FreeHead { count: self.counted(input)? }),
            Section::Quotas => Some(Record::QuotasHead { count: self.counted(input)? }),
            Section::Servers => Some(Record::ServersHead { count: self.counted(input)? }),
            Section::Chunks => Some(Record::ChunksHead { next: u64::take(input)? }),
            Section::Xattrs | Section::Acls | Section::Open | Section::Locks | Section::Ranges => None,
        })
    }

    fn counted(&mut self, input: &mut Input<'_>) -> Result<u32, Broken> {
        let count = u32::take(input)?;
        self.at = At::Left(count);
        Ok(count)
    }

    fn groups_behind_labels(&mut self, input: &mut Input<'_>) -> Result<(), Broken> {
        self.groups = if self.version >= 0x11 { u8::take(input)? } else { 1 };
        self.check_groups()
    }

    fn check_groups(&self) -> Result<(), Broken> {
        let groups = self.groups;
        must((1..=GROUPS_MAX).contains(&groups), || format!("label expressions of {groups} masks; 1 to 4 are known"))
    }

    fn session<'a>(&self, input: &mut Input<'a>) -> Result<Option<Record<'a>>, Broken> {
        let (layout, counters) = self.sessions;
        let mut record = SessionRecord { id: u32::take(input)?, ..SessionRecord::default() };
        if layout >= 0x13 {
            record.exports_checksum = Some(u64::take(input)?);
        }
        let info_bytes = u32::take(input)?;
        record.peer_ip = Ip4::take(input)?;
        record.root = u32::take(input)?;
        record.flags = u8::take(input)?;
        if layout >= 0x14 {
            record.umask = Some(u16::take(input)?);
        }
        record.goals = (u8::take(input)?, u8::take(input)?);
        record.trash_seconds = (u32::take(input)?, u32::take(input)?);
        for id in &mut record.ids {
            *id = u32::take(input)?;
        }
        if layout >= 0x15 {
            record.disables = Some(u32::take(input)?);
        }
        if layout >= 0x11 {
            record.disconnected = Some(u32::take(input)?);
        }
        for hour in [&mut record.counters.0, &mut record.counters.1] {
            let bytes = input.bytes(usize::from(counters) * 4, "counters")?;
            *hour = words_of::<4>(bytes).map(|word| word as u32).collect();
        }
        if record.id == 0 {
            return Ok(None);
        }
        must(info_bytes <= INFO_BYTES_MAX, || format!("the text of session {} is too long", record.id))?;
        record.info = input.bytes(info_bytes as usize, "info")?;
        Ok(Some(Record::Session(record)))
    }

    fn class<'a>(&self, input: &mut Input<'a>, left: u64) -> Result<Option<Record<'a>>, Broken> {
        let id = u16::take(input)?;
        let mut record = ClassRecord {
            id,
            name: None,
            admin_only: 0,
            mode: 1,
            arch_delay_days: 0,
            create: Vec::new(),
            keep: None,
            arch: None,
        };
        let create;
        let (mut keep, mut arch, mut skipped) = (None, None, 0);
        let mut name_bytes = None;
        match self.version {
            0x10 | 0x11 | 0x13 => create = u8::take(input)?,
            0x12 => {
                create = u8::take(input)?;
                skipped = u32::take(input)?;
                u32::take(input)?;
            }
            version => {
                if version >= 0x16 {
                    name_bytes = Some(u8::take(input)?);
                    record.admin_only = u8::take(input)?;
                }
                record.mode = u8::take(input)?;
                if version >= 0x15 {
                    record.arch_delay_days = u16::take(input)?;
                }
                (create, keep) = (u8::take(input)?, Some(u8::take(input)?));
                if version >= 0x15 {
                    arch = Some(u8::take(input)?);
                }
            }
        }
        if id == 0 {
            let rest = [create, keep.unwrap_or(0), arch.unwrap_or(0)];
            must(rest == [0; 3], || "a storage class has id 0".to_owned())?;
            return Ok(None);
        }
        let count = |count: u8| {
            must((1..=9).contains(&count), || {
                format!("storage class {id} asks for {count} copies; 1 to 9 are possible")
            })
        };
        count(create)?;
        keep.map_or(Ok(()), count)?;
        arch.map_or(Ok(()), count)?;
        if let Some(bytes) = name_bytes {
            must(bytes != 0, || format!("storage class {id} has no name"))?;
            record.name = Some(input.bytes(usize::from(bytes), "name")?);
        }
        let mut masks = |count: u8| -> Result<Vec<[u32; 4]>, Broken> {
            let mut sets = Vec::with_capacity(usize::from(count));
            for _ in 0..count {
                let mut set = [0; 4];
                for mask in set.iter_mut().take(usize::from(self.groups)) {
                    *mask = u32::take(input)?;
                }
                sets.push(set);
            }
            Ok(sets)
        };
        record.create = masks(create)?;
        record.keep = keep.map(&mut masks).transpose()?;
        record.arch = arch.map(&mut masks).transpose()?;
        let skipped_bytes = u64::from(skipped) * 8;
        must(skipped_bytes <= left, || format!("storage class {id} has too many chunks"))?;
        input.bytes(usize::try_from(skipped_bytes).unwrap_or(usize::MAX), "chunks")?;
        Ok(Some(Record::Class(record)))
    }

    fn node<'a>(&self, input: &mut Input<'a>, left: u64) -> Result<Option<Record<'a>>, Broken> {
        let code = u8::take(input)?;
        if code == 0 {
            return Ok(None);
        }
        let version = self.version;
        let kind = match version {
            0x13.. => Some(code),
            _ => b"fdlqbcstr".iter().position(|letter| *letter == code).map(|at| at as u8 + 1),
        };
        let kind = kind.filter(|kind| (1..=9).contains(kind));
        let kind = kind.ok_or_else(|| Broken::Rule(format!("a node is of an unknown kind, 0x{code:02X}")))?;
        let (inode, class) = (u32::take(input)?, u8::take(input)?);
        let (mut eattr, mut winattr) = (0, None);
        if version >= 0x12 {
            eattr = u8::take(input)?;
        }
        if version >= 0x14 {
            winattr = Some(u8::take(input)?);
        }
        let mut mode = u16::take(input)?;
        if version < 0x12 {
            (eattr, mode) = ((mode >> 12) as u8, mode & 0o7777);
        }
        let (uid, gid) = (u32::take(input)?, u32::take(input)?);
        let (atime, mtime, ctime) = (u32::take(input)?, u32::take(input)?, u32::take(input)?);
        let trash_time = match version {
            0x14.. => TrashTime::Hours(u16::take(input)?),
            _ => TrashTime::Seconds(u32::take(input)?),
        };
        let data = match kind {
            4 | 2 | 7 => NodeData::Nothing,
            5 | 6 => NodeData::Device(u32::take(input)?),
            3 => {
                let length = u32::take(input)? as usize;
                must(length <= SYMLINK_BYTES_MAX, || format!("the target of symlink {inode} is too long"))?;
                NodeData::Target(input.bytes(length, "target")?)
            }
            _ => {
                let (length, slots) = (u64::take(input)?, u32::take(input)?);
                let fits = slots <= CHUNK_INDEX_MAX && u64::from(slots) * 8 <= left;
                must(fits, || format!("file {inode} has too many chunks"))?;
                let openers = if version <= 0x13 { Some(u16::take(input)?) } else { None };
                let chunks = input.bytes(slots as usize * 8, "chunks")?;
                let sessions = match openers {
                    Some(count) => Some(input.bytes(usize::from(count) * 4, "sessions")?),
                    None => None,
                };
                NodeData::File { length, chunks, sessions }
            }
        };
        Ok(Some(Record::Node(NodeRecord {
            kind,
            inode,
            class,
            eattr,
            winattr,
            mode,
            uid,
            gid,
            atime,
            mtime,
            ctime,
            trash_time,
            data,
        })))
    }

    fn edge<'a>(&self, input: &mut Input<'a>) -> Result<Option<Record<'a>>, Broken> {
        let (parent, child) = (u32::take(input)?, u32::take(input)?);
        let id = if self.version >= 0x11 { u64::take(input)? } else { 0 };
        let length = u16::take(input)?;
        if parent == 0 && child == 0 {
            must(length == 0, || "the last edge has a name".to_owned())?;
            return Ok(None);
        }
        let name = input.bytes(usize::from(length), "name")?;
        Ok(Some(Record::Edge { parent, child, id, name }))
    }

    fn quota(&self, input: &mut Input<'_>) -> Result<Record<'static>, Broken> {
        let inode = u32::take(input)?;
        let grace_seconds = if self.version >= 0x11 { Some(u32::take(input)?) } else { None };
        let (exceeded, flags, since) = (u8::take(input)?, u8::take(input)?, u32::take(input)?);
        let inodes = (u32::take(input)?, u32::take(input)?);
        let (mut soft, mut hard) = ((inodes.0, [0; 3]), (inodes.1, [0; 3]));
        for kind in 0..3 {
            soft.1[kind] = u64::take(input)?;
            hard.1[kind] = u64::take(input)?;
        }
        Ok(Record::Quota(QuotaRecord { inode, grace_seconds, exceeded, flags, since, soft, hard }))
    }

    fn server(&self, input: &mut Input<'_>) -> Result<Record<'static>, Broken> {
        let (ip, port) = (Ip4::take(input)?, u16::take(input)?);
        let csid = if self.version >= 0x11 { Some(u16::take(input)?) } else { None };
        let maintenance = if self.version >= 0x12 { Some(u8::take(input)?) } else { None };
        let until = if self.version >= 0x13 { Some(u32::take(input)?) } else { None };
        Ok(Record::Server { ip, port, csid, maintenance, until })
    }

    fn chunk(&self, input: &mut Input<'_>) -> Result<Option<Record<'static>>, Broken> {
        let (id, version, locked_to) = (u64::take(input)?, u32::take(input)?, u32::take(input)?);
        let archived = if self.version >= 0x11 { Some(u8::take(input)?) } else { None };
        if id == 0 {
            let all_zero = version == 0 && locked_to == 0 && archived.unwrap_or(0) == 0;
            must(all_zero, || "a chunk has id 0".to_owned())?;
            return Ok(None);
        }
        Ok(Some(Record::Chunk { id, version, locked_to, archived }))
    }
}

fn xattr<'a>(input: &mut Input<'a>) -> Result<Option<Record<'a>>, Broken> {
    let (inode, name_bytes, value_bytes) = (u32::take(input)?, u8::take(input)?, u32::take(input)?);
    if inode == 0 {
        return Ok(None);
    }
    must(name_bytes != 0, || format!("an attribute of inode {inode} has no name"))?;
    must(value_bytes as usize <= XATTR_BYTES_MAX, || format!("an attribute of inode {inode} is too long"))?;
    let name = input.bytes(usize::from(name_bytes), "name")?;
    Ok(Some(Record::Xattr { inode, name, value: input.bytes(value_bytes as usize, "value")? }))
}

fn acl(input: &mut Input<'_>) -> Result<Option<Record<'static>>, Broken> {
    let (inode, kind) = (u32::take(input)?, u8::take(input)?);
    let perms = [u16::take(input)?, u16::take(input)?, u16::take(input)?, u16::take(input)?];
    let counts = (u16::take(input)?, u16::take(input)?);
    if inode == 0 {
        return Ok(None);
    }
    let mut entries = |count: u16| -> Result<Vec<(u32, u16)>, Broken> {
        let bytes = input.bytes(usize::from(count) * 6, "entries")?;
        Ok(words_of::<6>(bytes).map(|word| ((word >> 16) as u32, word as u16)).collect())
    };
    let (users, groups) = (entries(counts.0)?, entries(counts.1)?);
    Ok(Some(Record::Acl(AclRecord { inode, kind, perms, users, groups })))
}

fn open(input: &mut Input<'_>) -> Result<Option<Record<'static>>, Broken> {
    let (session, inode) = (u32::take(input)?, u32::take(input)?);
    must((session == 0) == (inode == 0), || format!("file {inode} is open by session {session}"))?;
    Ok((session != 0).then_some(Record::Open { session, inode }))
}

fn lock(input: &mut Input<'_>) -> Result<Option<Record<'static>>, Broken> {
    let (inode, owner, session) = (u32::take(input)?, u64::take(input)?, u32::take(input)?);
    let kind = u8::take(input)?;
    let is_end = inode == 0 && owner == 0 && session == 0;
    Ok((!is_end).then_some(Record::Lock { inode, owner, session, kind }))
}

fn range(input: &mut Input<'_>) -> Result<Option<Record<'static>>, Broken> {
    let (inode, owner, session) = (u32::take(input)?, u64::take(input)?, u32::take(input)?);
    let (pid, start, end, kind) = (u32::take(input)?, u64::take(input)?, u64::take(input)?, u8::take(input)?);
    let is_end = inode == 0 && owner == 0 && session == 0;
    Ok((!is_end).then_some(Record::Range { inode, owner, session, pid, start, end, kind }))
}
