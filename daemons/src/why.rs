//! `mooring why FILE|CHUNK`: asks the master what is done about chunks, and why.
//!
//! Like MooseFS's file tools it finds the master through the mount that a path is in: `.masterinfo` names the mount's
//! proxy (Spec 71, 4.4). With `-H` it registers a session of its own. The question is a packet of ours, so the master
//! is asked first whether it knows it: a MooseFS master would hang up on the whole mount.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, ToSocketAddrs as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use wire::limits::SESSION_TEXT_BYTES_MAX;
use wire::{
    AntoanConfigValue, AntoanGetConfig, ChunkId, CltomaFuseLookup, CltomaFuseRegister, CltomaWhy, EXTENSIONS_OPTION,
    Gids, HEADER_BYTES, Header, Inode, MatoclFuseLookup, MatoclFuseRegister, MatoclWhy, Name, NewSession, Packet,
    SessionId, Status, Text, VersionWord, WHY_EXTENSION, WireError, has_extension, why_subjects,
};

/// How long a master may take. A mount's proxy gives up after 20 s itself.
const ANSWER_LIMIT: Duration = Duration::from_secs(25);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Longest answer that is taken: what a mount's proxy lets through. Spec 72, 2.1.
const ANSWER_BYTES_MAX: u32 = 4_000_000;
/// The inode of `.masterinfo`, and of the same in an old META mount. Spec 71, 4.4.
const MASTERINFO_INODES: [u64; 2] = [0x7FFF_FFFF, 0x7FFF_FFFE];

/// Say what state chunks are in, what is done about them, and what that waits for
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Ask this master (HOST or HOST:PORT), not the one of the mount that the file or the current folder is in
    #[arg(short = 'H', long = "master", value_name = "HOST")]
    master: Option<String>,
    /// With -H: the exported folder to begin at
    #[arg(short = 'S', long, value_name = "FOLDER", default_value = "/", requires = "master")]
    subfolder: String,
    /// List the chunks that chunkservers have and the metadata do not know; they are kept
    #[arg(long)]
    unknown: bool,
    /// Files, or chunks as mfsfileinfo prints them (16 hex digits)
    #[arg(value_name = "FILE|CHUNK", required_unless_present = "unknown")]
    subjects: Vec<String>,
}

/// Status 0 if every question was answered.
pub fn run(arguments: &Arguments) -> ExitCode {
    let mut all_well = true;
    let mut questions: Vec<Option<&str>> = arguments.subjects.iter().map(|subject| Some(subject.as_str())).collect();
    if arguments.unknown {
        questions.push(None);
    }
    for subject in questions {
        if let Err(why) = ask(arguments, subject) {
            eprintln!("mooring why: {why}");
            all_well = false;
        }
    }
    if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One subject; None = the unknown chunks.
fn ask(arguments: &Arguments, subject: Option<&str>) -> Result<(), String> {
    let chunk = subject.and_then(chunk_id);
    let mut master = match &arguments.master {
        Some(host) => Master::by_address(host, &arguments.subfolder)?,
        None => {
            let file = subject.filter(|subject| chunk.is_none() || Path::new(subject).exists());
            Master::by_path(Path::new(file.unwrap_or(".")))?
        }
    };
    let (what, id) = match (subject, chunk) {
        (None, _) => (why_subjects::UNKNOWN, 0),
        (Some(subject), _) if arguments.master.is_some() && subject.starts_with('/') => {
            (why_subjects::FILE, u64::from(master.look_up(subject)?.0))
        }
        (Some(subject), None) if arguments.master.is_some() => {
            return Err(format!("{subject}: with -H, give a path from the root of the file system (/...) or a chunk"));
        }
        (Some(subject), Some(_)) if arguments.master.is_none() && Path::new(subject).exists() => {
            (why_subjects::FILE, inode_of(subject)?)
        }
        (Some(_), Some(chunk)) => (why_subjects::CHUNK, chunk.0),
        (Some(subject), None) => (why_subjects::FILE, inode_of(subject)?),
    };
    if let (Some(subject), why_subjects::FILE) = (subject, what) {
        say(&format!("{subject}: "))?;
    }
    let (mut id, mut first, mut said) = (id, 0, false);
    loop {
        let (next, text) = master.why(what, id, first).map_err(|error| match subject {
            Some(subject) => format!("{subject}: {error}"),
            None => error,
        })?;
        said |= !text.is_empty();
        say(&text)?;
        match what {
            _ if next == 0 => break,
            why_subjects::FILE => first = u32::try_from(next).map_err(|_| "the master's answer makes no sense")?,
            _ => id = next,
        }
    }
    if what == why_subjects::UNKNOWN && !said {
        say("no chunkserver that is here has a chunk that the metadata do not know\n")?;
    }
    Ok(())
}

/// Prints. Errors: nobody reads it.
fn say(text: &str) -> Result<(), String> {
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| error.to_string())
}

/// `000000000000002A`, also with the version behind it as mfsfileinfo prints it.
fn chunk_id(text: &str) -> Option<ChunkId> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let (id, version) = digits.split_once('_').unwrap_or((digits, "0"));
    let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_hex(id) && is_hex(version)).then(|| u64::from_str_radix(id, 16).ok().map(ChunkId)).flatten()
}

fn inode_of(path: &str) -> Result<u64, String> {
    Ok(fs::metadata(path).map_err(|error| format!("{path}: {error}"))?.ino())
}

/// A connection on which a master answers in a session.
struct Master {
    stream: TcpStream,
    name: String,
    /// The session is ours and ends with us.
    own_session: Option<SessionId>,
}

impl Master {
    /// Through the mount that a path is in. Errors: it is in none, or the mount does not answer.
    fn by_path(path: &Path) -> Result<Master, String> {
        let at = |error: std::io::Error| format!("{}: {error}", path.display());
        let start = fs::canonicalize(path).map_err(at)?;
        let Some((ip, port, session)) = start.ancestors().find_map(master_info).transpose()? else {
            return Err(format!(
                "{}: not in a mount of this file system; name the master with -H, or run it in a mount",
                path.display()
            ));
        };
        let mut master =
            Master::connect(SocketAddrV4::new(ip, port).into(), format!("the mount of {}", path.display()))?;
        master.send(
            &CltomaFuseRegister::Tools { sessionid: session, version: VersionWord::OURS, metaid: None }.encode(),
        )?;
        match master.register_answer()? {
            MatoclFuseRegister::Status(Status::OK) => {}
            MatoclFuseRegister::Status(status) => return Err(format!("{} refuses: {status}", master.name)),
            _ => return Err(format!("{} answers something else", master.name)),
        }
        master.must_be_ours()?;
        Ok(master)
    }

    /// In a session of its own. Errors: the master cannot be reached, or does not let us in.
    fn by_address(host: &str, folder: &str) -> Result<Master, String> {
        let (host, port) = match host.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| format!("{port} is not a port number"))?),
            None => (host, 9421),
        };
        if folder.len() >= SESSION_TEXT_BYTES_MAX {
            return Err(format!("the folder has more than {SESSION_TEXT_BYTES_MAX} bytes"));
        }
        let addresses = (host, port).to_socket_addrs().map_err(|error| format!("{host}: {error}"))?;
        let address =
            addresses.into_iter().find(SocketAddr::is_ipv4).ok_or_else(|| format!("{host} has no IPv4 address"))?;
        let mut master = Master::connect(address, format!("the master at {address}"))?;
        master.must_be_ours()?;
        let text = |text: &str| Text([text.as_bytes(), &[0]].concat());
        let wanted = NewSession {
            version: VersionWord::OURS,
            info: text("mooring why"),
            path: Some(text(folder)),
            sessionid: None,
            metaid: None,
            passcode: None,
        };
        master.send(&CltomaFuseRegister::NewSession(wanted).encode())?;
        match master.register_answer()? {
            MatoclFuseRegister::Session { sessionid, .. } => master.own_session = Some(sessionid),
            MatoclFuseRegister::Status(status) => {
                return Err(format!(
                    "{} does not let us in: {status}. mfsexports.cfg must have this address with {folder} and without \
                     a password; or run it in a mount, without -H",
                    master.name
                ));
            }
            _ => return Err(format!("{} answers something else", master.name)),
        }
        Ok(master)
    }

    fn connect(address: SocketAddr, name: String) -> Result<Master, String> {
        let at = |error: std::io::Error| format!("{name} ({address}): {error}");
        let stream = TcpStream::connect_timeout(&address, CONNECT_LIMIT).map_err(at)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT)).map_err(at)?;
        stream.set_nodelay(true).map_err(at)?;
        Ok(Master { stream, name, own_session: None })
    }

    /// A MooseFS master has no such question, and hangs up when it meets one.
    fn must_be_ours(&mut self) -> Result<(), String> {
        let option = Name::new(EXTENSIONS_OPTION).expect("a short name");
        self.send(&AntoanGetConfig { msgid: 0, option }.encode())?;
        let payload = self.answer(AntoanConfigValue::TYPE)?;
        let value = AntoanConfigValue::decode(&payload).map_err(|error| self.nonsense(error))?.value;
        if has_extension(value.as_bytes(), WHY_EXTENSION) {
            return Ok(());
        }
        Err("the master is not Mooring's (or older than this program), and cannot say why; see mfsfileinfo and mfscheckfile"
            .to_owned())
    }

    fn look_up(&mut self, path: &str) -> Result<Inode, String> {
        let mut inode = Inode::ROOT;
        for word in path.split('/').filter(|word| !word.is_empty()) {
            let name = Name::new(word.as_bytes()).map_err(|_| format!("{path}: a name is too long"))?;
            let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            self.send(&CltomaFuseLookup { msgid: 0, parent: inode, name, uid, gids: Gids::list(&[gid]) }.encode())?;
            let payload = self.answer(MatoclFuseLookup::TYPE)?;
            if let [_, _, _, _, status] = payload[..] {
                return Err(format!("{path}: {}", Status(status)));
            }
            inode = MatoclFuseLookup::decode(&payload).map_err(|error| self.nonsense(error))?.inode;
        }
        Ok(inode)
    }

    fn why(&mut self, subject: u8, id: u64, first: u32) -> Result<(u64, String), String> {
        self.send(&CltomaWhy { msgid: 0, subject, id, first }.encode())?;
        let payload = self.answer(MatoclWhy::TYPE)?;
        if let [_, _, _, _, status] = payload[..] {
            return Err(match Status(status) {
                Status::EPERM => "not a file".to_owned(),
                status => status.to_string(),
            });
        }
        let MatoclWhy { next, text, .. } = MatoclWhy::decode(&payload).map_err(|error| self.nonsense(error))?;
        Ok((next, String::from_utf8_lossy(&text.0).into_owned()))
    }

    fn send(&mut self, packet: &[u8]) -> Result<(), String> {
        self.stream.write_all(packet).map_err(|error| format!("{}: {error}", self.name))
    }

    fn register_answer(&mut self) -> Result<MatoclFuseRegister, String> {
        let payload = self.answer(MatoclFuseRegister::TYPE)?;
        MatoclFuseRegister::decode(&payload).map_err(|error| self.nonsense(error))
    }

    /// The payload of the next packet of this kind. What keeps a connection alive, or tells a mount of changes, is
    /// passed over.
    fn answer(&mut self, kind: u32) -> Result<Vec<u8>, String> {
        loop {
            let mut head = [0; HEADER_BYTES];
            let at = |error: std::io::Error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => format!("{} hangs up", self.name),
                std::io::ErrorKind::WouldBlock => format!("{} does not answer", self.name),
                _ => format!("{}: {error}", self.name),
            };
            (&self.stream).read_exact(&mut head).map_err(at)?;
            let header = Header::decode(&head);
            if header.length > ANSWER_BYTES_MAX {
                return Err(format!("{} answers with {} bytes, which is too much", self.name, header.length));
            }
            let mut payload = vec![0; header.length as usize];
            (&self.stream).read_exact(&mut payload).map_err(at)?;
            if header.kind == kind {
                return Ok(payload);
            }
        }
    }

    fn nonsense(&self, error: WireError) -> String {
        format!("{} answers nonsense: {error}", self.name)
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        if let Some(sessionid) = self.own_session {
            // The session would go by itself in a day; this is only cleaner.
            let close = CltomaFuseRegister::CloseSession { sessionid, metaid: None };
            if self.send(&close.encode()).is_ok() {
                let _ = self.register_answer();
            }
        }
    }
}

/// What a folder's `.masterinfo` says, if it is a mount's. Spec 71, 4.4.
fn master_info(folder: &Path) -> Option<Result<(Ipv4Addr, u16, SessionId), String>> {
    let path: PathBuf = folder.join(".masterinfo");
    let there = fs::symlink_metadata(&path).ok()?;
    let is_ours = MASTERINFO_INODES.contains(&there.ino()) && there.uid() == 0 && there.gid() == 0;
    if !is_ours || !matches!(there.len(), 10 | 14 | 22) {
        return None;
    }
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) => return Some(Err(format!("{}: {error}", path.display()))),
    };
    let parsed = (|| {
        let (ip, rest) = bytes.split_first_chunk::<4>()?;
        let (port, rest) = rest.split_first_chunk::<2>()?;
        let session = rest.first_chunk::<4>()?;
        Some((Ipv4Addr::from(*ip), u16::from_be_bytes(*port), SessionId(u32::from_be_bytes(*session))))
    })();
    Some(
        parsed
            .filter(|(ip, port, session)| !ip.is_unspecified() && *port != 0 && session.0 != 0)
            .ok_or_else(|| format!("{}: the mount has no connection to a master now", path.display())),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_named_as_mfsfileinfo_prints_it() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(chunk_id(text).map(|chunk| chunk.0), expected, "{text}");
        };
        check("000000000000002A", Some(42));
        check("000000000000002a_00000001", Some(42));
        check("0x2A", Some(42));
        check("2A_", None);
        check("file", None);
        check("", None);
        check("_1", None);
        check("+2", None);
    }
}
