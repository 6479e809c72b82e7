//! Registering with a master: a new session, or the old one after a break. Spec 30, 3 and 5.1.
//!
//! The hand-shake has no message ids: one packet out, exactly one in. It runs before the connection belongs to
//! `master`, so nothing else can be on the wire.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use md5::Digest;
use ring::{BufferedReader, Ring, Stream};
use wire::{
    AntoanConfigValue, AntoanGetConfig, AntoclModuleInfo, CltoanModuleInfo, CltomaFuseRegister, EXTENSIONS_OPTION,
    Header, MatoclFuseChunkHasChanged, MatoclFuseInvalidateChunkCache, MatoclFuseRegister, MetaId, Name, NewSession,
    Packet, Passcode, SessionLimits, SessionText, Status, TICKETS_EXTENSION, TIMES_EXTENSION, UNCLEAN_END_EXTENSION,
    VersionWord, has_extension,
};

use crate::{Session, Settings};

/// Each step of the hand-shake. Spec 30, 1.1 says 1 s; a master that just started may need longer.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Larger than any answer: 57 bytes to a register packet of 4.x, 260 for an option.
const ANSWER_BYTES_MAX: u32 = 512;
const READER_BYTES: usize = 64 << 10;

pub(crate) enum Registered {
    Session(Box<(Stream, BufferedReader, Session)>),
    /// Another master leads; 0.0.0.0: nobody does yet.
    Redirect(Ipv4Addr),
}

pub(crate) enum Refusal {
    Status(Status),
    OldMaster(VersionWord),
    /// It serves another file system than the one that this client belongs to.
    Foreign {
        ours: MetaId,
        theirs: MetaId,
    },
    Io(std::io::Error),
    Protocol(String),
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Refusal {
        Refusal::Io(error)
    }
}

/// Registers on a fresh connection. `old`: the session to be resumed; if the master will not have it, a new one is
/// asked for, with the old number when it says EPERM (the exports have changed), without it otherwise.
///
/// A new session is taken only from a master of the same file system. To the master of another one, our inode numbers
/// would name other files, and what we have not written yet would go into them. A MooseFS master tells its metaid as
/// ours does: unasked in the answer to NEWSESSION, and to whoever asks MODULE_INFO.
pub(crate) async fn register(
    ring: &Ring,
    settings: &Settings,
    master: SocketAddrV4,
    stream: Stream,
    old: Option<&Session>,
) -> Result<Registered, Refusal> {
    let local = match stream.local() {
        SocketAddr::V4(local) => *local.ip(),
        SocketAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    let mut shake =
        Handshake { ring, stream: stream.clone(), reader: BufferedReader::new(stream.clone(), READER_BYTES) };
    let mut again_with = None;
    if let Some(old) = old {
        let request =
            CltomaFuseRegister::Reconnect { sessionid: old.id, version: VersionWord::OURS, metaid: Some(old.metaid) };
        match shake.ask(&request).await? {
            MatoclFuseRegister::Reconnected { status: Status::OK, version } => {
                let mut session = Session { master, local, master_version: version, ..old.clone() };
                shake.ask_extensions(settings, &mut session).await?;
                return Ok(Registered::Session(Box::new((stream, shake.reader, session))));
            }
            MatoclFuseRegister::Status(Status::OK) => {
                let mut session = Session { master, local, ..old.clone() };
                shake.ask_extensions(settings, &mut session).await?;
                return Ok(Registered::Session(Box::new((stream, shake.reader, session))));
            }
            MatoclFuseRegister::Reconnected { status, .. } | MatoclFuseRegister::Status(status) => {
                tracing::info!("the master does not resume session {}: {status}", old.id);
                again_with = (status == Status::EPERM).then_some((old.id, old.metaid));
            }
            MatoclFuseRegister::Redirect { leader_ip } => return Ok(Registered::Redirect(leader_ip.into())),
            other => return Err(Refusal::Protocol(format!("answer to RECONNECT: {other:?}"))),
        }
        // Asked first, so that nothing is left behind at a master that is not ours.
        same_file_system(old.metaid, shake.metaid().await?)?;
    }
    let passcode = match settings.password_md5 {
        Some(digest) => Some(shake.passcode(&digest).await?),
        None => None,
    };
    let request = NewSession {
        version: VersionWord::OURS,
        info: text(&settings.info),
        path: (!settings.meta).then(|| text(&settings.subfolder)),
        sessionid: again_with.map(|(id, _)| id),
        metaid: again_with.map(|(_, metaid)| metaid),
        passcode,
    };
    let request = if settings.meta {
        CltomaFuseRegister::NewMetaSession(request)
    } else {
        CltomaFuseRegister::NewSession(request)
    };
    match shake.ask(&request).await? {
        MatoclFuseRegister::Session { version, sessionid, metaid, limits } => {
            if !version.at_least(3, 0, 113) {
                return Err(Refusal::OldMaster(version));
            }
            let metaid = metaid.unwrap_or_default();
            if let Some(old) = old {
                same_file_system(old.metaid, metaid)?;
            }
            let mut session = session_of(master, local, version, sessionid, metaid, &limits);
            shake.ask_extensions(settings, &mut session).await?;
            Ok(Registered::Session(Box::new((stream, shake.reader, session))))
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
            if let Some(old) = old {
                same_file_system(old.metaid, metaid)?;
            }
            let limits = SessionLimits {
                sesflags,
                umask: 0,
                rootuid: 0,
                rootgid: 0,
                mapalluid: 0,
                mapallgid: 0,
                mingoal,
                maxgoal,
                mintrashtime,
                maxtrashtime,
                disables: 0,
            };
            let session = session_of(master, local, version, sessionid, metaid, &limits);
            Ok(Registered::Session(Box::new((stream, shake.reader, session))))
        }
        MatoclFuseRegister::Redirect { leader_ip } => Ok(Registered::Redirect(leader_ip.into())),
        MatoclFuseRegister::Status(status) => Err(Refusal::Status(status)),
        other => Err(Refusal::Protocol(format!("answer to NEWSESSION: {other:?}"))),
    }
}

/// Errors: `Foreign` if both are known and differ.
fn same_file_system(ours: MetaId, theirs: MetaId) -> Result<(), Refusal> {
    match ours != theirs && ours.0 != 0 && theirs.0 != 0 {
        true => Err(Refusal::Foreign { ours, theirs }),
        false => Ok(()),
    }
}

fn session_of(
    master: SocketAddrV4,
    local: Ipv4Addr,
    master_version: VersionWord,
    id: wire::SessionId,
    metaid: MetaId,
    limits: &SessionLimits,
) -> Session {
    Session {
        master,
        local,
        master_version,
        id,
        metaid,
        flags: limits.sesflags,
        umask: limits.umask,
        root_uid: limits.rootuid,
        root_gid: limits.rootgid,
        map_all_uid: limits.mapalluid,
        map_all_gid: limits.mapallgid,
        goal_min: limits.mingoal,
        goal_max: limits.maxgoal,
        trash_time_min_secs: limits.mintrashtime,
        trash_time_max_secs: limits.maxtrashtime,
        disables: limits.disables,
        long_times: false,
        unclean_ends: false,
        tickets: false,
    }
}

/// With its closing NUL, cut where the master would refuse it.
fn text(text: &str) -> SessionText {
    let bytes = text.as_bytes();
    let mut bytes = bytes[..bytes.len().min(wire::limits::SESSION_TEXT_BYTES_MAX - 1)].to_vec();
    bytes.push(0);
    wire::Text(bytes)
}

struct Handshake<'a> {
    ring: &'a Ring,
    stream: Stream,
    reader: BufferedReader,
}

impl Handshake<'_> {
    async fn ask(&mut self, request: &CltomaFuseRegister) -> Result<MatoclFuseRegister, Refusal> {
        let payload = self.exchange(request.encode(), MatoclFuseRegister::TYPE).await?;
        MatoclFuseRegister::decode(&payload).map_err(|error| Refusal::Protocol(error.to_string()))
    }

    /// Asked after each registration, since another master may have taken the place of the last one.
    async fn ask_extensions(&mut self, settings: &Settings, session: &mut Session) -> Result<(), Refusal> {
        if settings.meta {
            return Ok(());
        }
        let option = Name::new(EXTENSIONS_OPTION).expect("a short name");
        let question = AntoanGetConfig { msgid: 1, option };
        let payload = self.exchange(question.encode(), AntoanConfigValue::TYPE).await?;
        let answer = AntoanConfigValue::decode(&payload).map_err(|error| Refusal::Protocol(error.to_string()))?;
        let knows = |name| has_extension(answer.value.as_bytes(), name);
        session.long_times = knows(TIMES_EXTENSION);
        session.unclean_ends = knows(UNCLEAN_END_EXTENSION);
        session.tickets = knows(TICKETS_EXTENSION);
        Ok(())
    }

    /// Whose file system this master serves; 0 if it does not know yet.
    async fn metaid(&mut self) -> Result<MetaId, Refusal> {
        let payload = self.exchange(CltoanModuleInfo { msgid: None }.encode(), AntoclModuleInfo::TYPE).await?;
        let answer = AntoclModuleInfo::decode(&payload).map_err(|error| Refusal::Protocol(error.to_string()))?;
        Ok(answer.metaid)
    }

    /// One packet out, and the payload of the one that answers it.
    async fn exchange(&mut self, packet: Vec<u8>, answer: u32) -> Result<Vec<u8>, Refusal> {
        let late = || std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer to the registration");
        let stream = self.stream.clone();
        self.ring.timeout(STEP_TIMEOUT, stream.send_all(packet)).await.map_err(|_| late())?.0?;
        let deadline = self.ring.now() + STEP_TIMEOUT;
        loop {
            let header = {
                let left = deadline - self.ring.now();
                let bytes = self.ring.timeout(left, self.reader.fill(8)).await.map_err(|_| late())??;
                Header::decode(bytes[..8].try_into().expect("fill gives what was asked for"))
            };
            if header.length > ANSWER_BYTES_MAX {
                return Err(Refusal::Protocol(format!("packet {} of {} bytes", header.kind, header.length)));
            }
            self.reader.consume(8);
            let length = header.length as usize;
            let left = deadline - self.ring.now();
            let payload =
                self.ring.timeout(left, self.reader.fill(length)).await.map_err(|_| late())??[..length].to_vec();
            self.reader.consume(length);
            match header.kind {
                0..=2 => continue, // a keep-alive that was on its way
                // News of chunks and files that this session does not know yet, from a master that did not wait.
                MatoclFuseChunkHasChanged::TYPE..=MatoclFuseInvalidateChunkCache::TYPE => continue,
                kind if kind == answer => return Ok(payload),
                other => return Err(Refusal::Protocol(format!("packet {other} in the hand-shake"))),
            }
        }
    }

    /// MD5(challenge[..16] + digest + challenge[16..]). Spec 30, 3.1.
    async fn passcode(&mut self, digest: &[u8; 16]) -> Result<Passcode, Refusal> {
        let challenge = match self.ask(&CltomaFuseRegister::GetRandom).await? {
            MatoclFuseRegister::Random(challenge) => challenge,
            MatoclFuseRegister::Status(status) => return Err(Refusal::Status(status)),
            other => return Err(Refusal::Protocol(format!("answer to GETRANDOM: {other:?}"))),
        };
        let mut hash = md5::Md5::new();
        hash.update(&challenge[..16]);
        hash.update(digest);
        hash.update(&challenge[16..]);
        Ok(hash.finalize().into())
    }
}
