//! How a client registers with its master, and what both tell each other unasked. Spec 30, 3, 5 and 6.

use crate::codec::{Entry, Field, Input, Packet, Seed, WireError, packets, records};
use crate::limits::SESSION_TEXT_BYTES_MAX;
use crate::types::{ChunkId, Inode, MetaId, SessionId, Status, Version, VersionWord};

/// In front of every register packet; the only one that is accepted. Spec 30, 3.
pub const REGISTER_BLOB: &[u8; 64] = b"DjI1GAQDULI5d2YjA26ypc3ovkhjvhciTQVx3CS4nYgtBoUcsljiVpsErJENHaw0";

/// Text of a session: mount point or exported folder. A NUL ends it on the wire and is counted there.
pub type SessionText = crate::types::Text<SESSION_TEXT_BYTES_MAX>;

/// Passwords travel as MD5 over challenge and digest: 16 bytes. Spec 30, 3.1.
pub type Passcode = [u8; 16];

/// A client's register packet. Spec 30, 3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CltomaFuseRegister {
    /// rcode 1: asks for a challenge.
    GetRandom,
    /// rcode 2.
    NewSession(NewSession),
    /// rcode 3.
    Reconnect { sessionid: SessionId, version: VersionWord, metaid: Option<MetaId> },
    /// rcode 4, of tools up to 3.x.
    Tools { sessionid: SessionId, version: VersionWord, metaid: Option<MetaId> },
    /// rcode 5; `path` is absent.
    NewMetaSession(NewSession),
    /// rcode 6.
    CloseSession { sessionid: SessionId, metaid: Option<MetaId> },
}

/// What a client asks of a new session. Spec 30, 3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSession {
    pub version: VersionWord,
    /// Free text shown in monitoring: the mount point, with its closing NUL.
    pub info: SessionText,
    /// The exported folder that becomes the root, with its closing NUL. META sessions have none.
    pub path: Option<SessionText>,
    /// The session to be taken over.
    pub sessionid: Option<SessionId>,
    /// Only together with `sessionid`.
    pub metaid: Option<MetaId>,
    pub passcode: Option<Passcode>,
}

impl NewSession {
    fn put(&self, out: &mut Vec<u8>) {
        self.version.put(out);
        self.info.put(out);
        self.path.put(out);
        self.sessionid.put(out);
        self.metaid.put(out);
        self.passcode.put(out);
    }

    fn take(input: &mut Input<'_>, with_path: bool) -> Result<NewSession, WireError> {
        let version = VersionWord::take(input)?;
        let info = SessionText::take(input)?;
        let path = with_path.then(|| SessionText::take(input)).transpose()?;
        if path.as_ref().is_some_and(|path| path.0.last().is_some_and(|last| *last != 0)) {
            return Err(WireError::Range { field: "end of the path", value: 1 });
        }
        // The length decides which of the optional parts are there.
        let (with_session, with_metaid, with_passcode) = match input.remaining() {
            0 => (false, false, false),
            4 => (true, false, false),
            12 => (true, true, false),
            16 => (false, false, true),
            20 => (true, false, true),
            28 => (true, true, true),
            other => return Err(WireError::Range { field: "register packet tail", value: other as u64 }),
        };
        Ok(NewSession {
            version,
            info,
            path,
            sessionid: with_session.then(|| SessionId::take(input)).transpose()?,
            metaid: with_metaid.then(|| MetaId::take(input)).transpose()?,
            passcode: with_passcode.then(|| Passcode::take(input)).transpose()?,
        })
    }

    fn width(&self) -> usize {
        4 + self.info.width() + self.path.width() + self.sessionid.width() + self.metaid.width() + self.passcode.width()
    }

    fn sample(seed: &mut Seed, with_path: bool) -> NewSession {
        let mut path = SessionText::sample(seed);
        path.0.truncate(100);
        path.0.push(0);
        let sessionid = Option::<SessionId>::sample(seed);
        let metaid = sessionid.and_then(|_| Option::sample(seed));
        NewSession {
            version: Field::sample(seed),
            info: Field::sample(seed),
            path: with_path.then_some(path),
            sessionid,
            metaid,
            passcode: Field::sample(seed),
        }
    }
}

impl Field for CltomaFuseRegister {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(REGISTER_BLOB);
        match self {
            CltomaFuseRegister::GetRandom => 1u8.put(out),
            CltomaFuseRegister::NewSession(session) => {
                2u8.put(out);
                session.put(out);
            }
            CltomaFuseRegister::Reconnect { sessionid, version, metaid } => {
                3u8.put(out);
                sessionid.put(out);
                version.put(out);
                metaid.put(out);
            }
            CltomaFuseRegister::Tools { sessionid, version, metaid } => {
                4u8.put(out);
                sessionid.put(out);
                version.put(out);
                metaid.put(out);
            }
            CltomaFuseRegister::NewMetaSession(session) => {
                5u8.put(out);
                session.put(out);
            }
            CltomaFuseRegister::CloseSession { sessionid, metaid } => {
                6u8.put(out);
                sessionid.put(out);
                metaid.put(out);
            }
        }
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        if input.bytes(REGISTER_BLOB.len(), "register blob")? != REGISTER_BLOB {
            return Err(WireError::Range { field: "register blob", value: 0 });
        }
        let rcode = u8::take(input)?;
        match rcode {
            1 => Ok(CltomaFuseRegister::GetRandom),
            2 => Ok(CltomaFuseRegister::NewSession(NewSession::take(input, true)?)),
            3 => Ok(CltomaFuseRegister::Reconnect {
                sessionid: Field::take(input)?,
                version: Field::take(input)?,
                metaid: Field::take(input)?,
            }),
            4 => Ok(CltomaFuseRegister::Tools {
                sessionid: Field::take(input)?,
                version: Field::take(input)?,
                metaid: Field::take(input)?,
            }),
            5 => Ok(CltomaFuseRegister::NewMetaSession(NewSession::take(input, false)?)),
            6 => Ok(CltomaFuseRegister::CloseSession { sessionid: Field::take(input)?, metaid: Field::take(input)? }),
            _ => Err(WireError::Range { field: "register code", value: u64::from(rcode) }),
        }
    }
    fn width(&self) -> usize {
        65 + match self {
            CltomaFuseRegister::GetRandom => 0,
            CltomaFuseRegister::NewSession(session) | CltomaFuseRegister::NewMetaSession(session) => session.width(),
            CltomaFuseRegister::Reconnect { metaid, .. } | CltomaFuseRegister::Tools { metaid, .. } => {
                8 + metaid.width()
            }
            CltomaFuseRegister::CloseSession { metaid, .. } => 4 + metaid.width(),
        }
    }
    fn sample(seed: &mut Seed) -> Self {
        match seed.below(6) {
            0 => CltomaFuseRegister::GetRandom,
            1 => CltomaFuseRegister::NewSession(NewSession::sample(seed, true)),
            2 => CltomaFuseRegister::Reconnect {
                sessionid: Field::sample(seed),
                version: Field::sample(seed),
                metaid: Field::sample(seed),
            },
            3 => CltomaFuseRegister::Tools {
                sessionid: Field::sample(seed),
                version: Field::sample(seed),
                metaid: Field::sample(seed),
            },
            4 => CltomaFuseRegister::NewMetaSession(NewSession::sample(seed, false)),
            _ => CltomaFuseRegister::CloseSession { sessionid: Field::sample(seed), metaid: Field::sample(seed) },
        }
    }
}

impl Packet for CltomaFuseRegister {
    const TYPE: u32 = 400;
    const NAME: &'static str = "CltomaFuseRegister";
}

records! {
    /// What a session may do and as whom. Spec 30, 3.3.
    SessionLimits {
        /// Bits of `session_flags`.
        sesflags: u8,
        umask: u16,
        rootuid: u32, rootgid: u32, mapalluid: u32, mapallgid: u32,
        mingoal: u8, maxgoal: u8,
        /// Seconds.
        mintrashtime: u32, maxtrashtime: u32,
        /// Bits of Spec 30, 4.4.
        disables: u32,
    }
}

/// Bits of a session's flags. Spec 30, 4.2.
pub mod session_flags {
    pub const READONLY: u8 = 0x01;
    pub const DYNAMICIP: u8 = 0x02;
    pub const IGNOREGID: u8 = 0x04;
    pub const ADMIN: u8 = 0x08;
    pub const MAPALL: u8 = 0x10;
    /// Internal: the client understands the present attribute record.
    pub const ATTRBIT: u8 = 0x40;
    /// Internal: replay of the journal.
    pub const METARESTORE: u8 = 0x80;
}

/// The master's answer to a register packet. Its form is told by its length, which depends on the client's version.
/// Spec 30, 3.3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MatoclFuseRegister {
    /// 1 byte: refused, or the plain answer to RECONNECT, TOOLS and CLOSESESSION.
    Status(Status),
    /// 4 bytes: another master leads; 0 = wait.
    Redirect { leader_ip: crate::types::Ip4 },
    /// 5 bytes: RECONNECT for clients from 3.0.95 on.
    Reconnected { version: VersionWord, status: Status },
    /// 32 bytes: the challenge.
    Random([u8; 32]),
    /// 49 bytes: NEWSESSION for clients from 3.0.112 on. 45: without disables. 43: without umask too. 35: without metaid
    /// too.
    Session { version: VersionWord, sessionid: SessionId, metaid: Option<MetaId>, limits: SessionLimits },
    /// 27 bytes: NEWMETASESSION for clients from 3.0.11 on.
    MetaSession {
        version: VersionWord,
        sessionid: SessionId,
        metaid: MetaId,
        sesflags: u8,
        mingoal: u8,
        maxgoal: u8,
        mintrashtime: u32,
        maxtrashtime: u32,
    },
}

impl MatoclFuseRegister {
    /// The payload for a client of this version. Older clients get the shorter forms; before 1.6.26 none of ours.
    pub fn payload_for(&self, client: VersionWord) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        match self {
            MatoclFuseRegister::Reconnected { status, .. } if !client.at_least(3, 0, 95) => status.put(&mut out),
            MatoclFuseRegister::Session { version, sessionid, metaid, limits } => {
                version.put(&mut out);
                sessionid.put(&mut out);
                if client.at_least(3, 0, 11) {
                    metaid.put(&mut out);
                }
                limits.sesflags.put(&mut out);
                if client.at_least(3, 0, 72) {
                    limits.umask.put(&mut out);
                }
                for word in [limits.rootuid, limits.rootgid, limits.mapalluid, limits.mapallgid] {
                    word.put(&mut out);
                }
                limits.mingoal.put(&mut out);
                limits.maxgoal.put(&mut out);
                limits.mintrashtime.put(&mut out);
                limits.maxtrashtime.put(&mut out);
                if client.at_least(3, 0, 112) {
                    limits.disables.put(&mut out);
                }
            }
            other => other.put(&mut out),
        }
        out
    }
}

impl Field for MatoclFuseRegister {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            MatoclFuseRegister::Status(status) => status.put(out),
            MatoclFuseRegister::Redirect { leader_ip } => leader_ip.put(out),
            MatoclFuseRegister::Reconnected { version, status } => {
                version.put(out);
                status.put(out);
            }
            MatoclFuseRegister::Random(random) => random.put(out),
            MatoclFuseRegister::Session { version, sessionid, metaid, limits } => {
                version.put(out);
                sessionid.put(out);
                metaid.put(out);
                limits.put(out);
            }
            MatoclFuseRegister::MetaSession {
                version,
                sessionid,
                metaid,
                sesflags,
                mingoal,
                maxgoal,
                mintrashtime,
                maxtrashtime,
            } => {
                version.put(out);
                sessionid.put(out);
                metaid.put(out);
                sesflags.put(out);
                mingoal.put(out);
                maxgoal.put(out);
                mintrashtime.put(out);
                maxtrashtime.put(out);
            }
        }
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let length = input.remaining();
        match length {
            1 => Ok(MatoclFuseRegister::Status(Field::take(input)?)),
            4 => Ok(MatoclFuseRegister::Redirect { leader_ip: Field::take(input)? }),
            5 => Ok(MatoclFuseRegister::Reconnected { version: Field::take(input)?, status: Field::take(input)? }),
            32 => Ok(MatoclFuseRegister::Random(Field::take(input)?)),
            35 | 43 | 45 | 49 => {
                let (version, sessionid) = (Field::take(input)?, Field::take(input)?);
                let metaid = (length >= 43).then(|| MetaId::take(input)).transpose()?;
                let sesflags = Field::take(input)?;
                let umask = if length >= 45 { Field::take(input)? } else { 0 };
                let limits = SessionLimits {
                    sesflags,
                    umask,
                    rootuid: Field::take(input)?,
                    rootgid: Field::take(input)?,
                    mapalluid: Field::take(input)?,
                    mapallgid: Field::take(input)?,
                    mingoal: Field::take(input)?,
                    maxgoal: Field::take(input)?,
                    mintrashtime: Field::take(input)?,
                    maxtrashtime: Field::take(input)?,
                    disables: if length >= 49 { Field::take(input)? } else { 0 },
                };
                Ok(MatoclFuseRegister::Session { version, sessionid, metaid, limits })
            }
            27 => Ok(MatoclFuseRegister::MetaSession {
                version: Field::take(input)?,
                sessionid: Field::take(input)?,
                metaid: Field::take(input)?,
                sesflags: Field::take(input)?,
                mingoal: Field::take(input)?,
                maxgoal: Field::take(input)?,
                mintrashtime: Field::take(input)?,
                maxtrashtime: Field::take(input)?,
            }),
            other => Err(WireError::Range { field: "register answer length", value: other as u64 }),
        }
    }
    fn width(&self) -> usize {
        match self {
            MatoclFuseRegister::Status(_) => 1,
            MatoclFuseRegister::Redirect { .. } => 4,
            MatoclFuseRegister::Reconnected { .. } => 5,
            MatoclFuseRegister::Random(_) => 32,
            MatoclFuseRegister::Session { metaid, .. } => 41 + metaid.width(),
            MatoclFuseRegister::MetaSession { .. } => 27,
        }
    }
    fn sample(seed: &mut Seed) -> Self {
        match seed.below(6) {
            0 => MatoclFuseRegister::Status(Field::sample(seed)),
            1 => MatoclFuseRegister::Redirect { leader_ip: Field::sample(seed) },
            2 => MatoclFuseRegister::Reconnected { version: Field::sample(seed), status: Field::sample(seed) },
            3 => MatoclFuseRegister::Random(Field::sample(seed)),
            4 => MatoclFuseRegister::Session {
                version: Field::sample(seed),
                sessionid: Field::sample(seed),
                metaid: Some(Field::sample(seed)),
                limits: Field::sample(seed),
            },
            _ => MatoclFuseRegister::MetaSession {
                version: Field::sample(seed),
                sessionid: Field::sample(seed),
                metaid: Field::sample(seed),
                sesflags: Field::sample(seed),
                mingoal: Field::sample(seed),
                maxgoal: Field::sample(seed),
                mintrashtime: Field::sample(seed),
                maxtrashtime: Field::sample(seed),
            },
        }
    }
}

impl Packet for MatoclFuseRegister {
    const TYPE: u32 = 401;
    const NAME: &'static str = "MatoclFuseRegister";
}

/// The packets with several forms of one number.
pub(crate) const FORMS: &[Entry] = &[Entry::of::<CltomaFuseRegister>(), Entry::of::<MatoclFuseRegister>()];

records! {
    /// Times that a client saw by itself; 0 = no value. Spec 30, 5.3.
    AmtimeEntry { inode: Inode, atime: u32, mtime: u32 }
}

packets! {
    /// The complete list of inodes that the client holds; there is no close packet. Spec 30, 5.2.
    CltomaFuseSustainedInodes = 700 { inodes: Vec<Inode> }

    /// Spec 30, 5.3.
    CltomaFuseAmtimeInodes = 701 { entries: Vec<AmtimeEntry> }

    /// `msgid` 0. Spec 30, 6. Clients from 4.40.0 on get two words more, which we never announce.
    MatoclFuseChunkHasChanged = 702 {
        msgid: u32, inode: Inode, index: u32, chunkid: ChunkId, version: Version, length: u64, truncflag: u8,
        /// Offset and size of the region within the chunk, for clients from 4.40.0 on.
        region: Option<u64>,
    }

    /// `msgid` 0. Spec 30, 6.
    MatoclFuseFlengHasChanged = 703 { msgid: u32, inode: Inode, length: u64 }

    /// Spec 30, 5.3.
    CltomaFuseTimeSync = 704 { msgid: Option<u32> }

    /// The master's clock in microseconds; the message id stands in front if it was given. Spec 30, 5.3.
    MatoclFuseTimeSync = 705 { usec: u64 }

    /// Spec 30, 5.3.
    MatoclFuseTimeSyncWithId = 705 { msgid: u32, usec: u64 }

    /// Forget all chunk locations. `msgid` 0. Spec 30, 6.
    MatoclFuseInvalidateChunkCache = 706 { msgid: u32 }

    /// Operation statistics of 4.x clients, for masters from 4.27.0 on. Spec 30, 5.4.
    CltomaFuseOpdata = 710 { rbytes: u64, wbytes: u64, reads: u32, writes: u32, fsyncs: u32, rcvdbytes: Option<u64>, sentbytes: Option<u64> }

    /// Spec 30, 5.4.
    CltomaFuseWflags = 711 { flags: u8 }
}
