//! Who may mount what, and as whom: mfsexports.cfg. Spec 60, 9; Spec 30, 4.
//!
//! Pure: text in, lines out; a registering client in, the line that applies or a refusal out.

use std::borrow::Cow;

use md5::{Digest, Md5};
use tracing::warn;
use wire::{Field, Ip4, Status, VersionWord, address_range, session_flags};

/// What a line of the exports grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) flags: u8,
    pub(super) umask: u16,
    pub(super) root: (u32, u32),
    pub(super) map_all: (u32, u32),
    pub(super) goals: (u8, u8),
    pub(super) trash_times: (u32, u32),
    pub(super) disables: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    first: u32,
    last: u32,
    /// `None` = the META file system.
    path: Option<Vec<u8>>,
    all_directories: bool,
    minimum_version: u32,
    /// MD5 of the password.
    password: Option<[u8; 16]>,
    grant: Grant,
}

/// All lines of an exports file.
#[derive(Clone, Debug, Default)]
pub(super) struct Exports {
    lines: Vec<Line>,
    checksum: u64,
}

/// What a client asks for at registration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) ip: Ip4,
    pub(super) version: VersionWord,
    /// `None` = META.
    pub(super) path: Option<&'a [u8]>,
    /// The challenge that was sent on this connection, and the client's answer to it.
    pub(super) proof: Option<(&'a [u8; 32], &'a [u8; 16])>,
}

/// Names of `disable=`, by bit. Spec 30, 4.4.
const DISABLES: [&str; 25] = [
    "chown",
    "chmod",
    "symlink",
    "mkfifo",
    "mkdev",
    "mksock",
    "mkdir",
    "unlink",
    "rmdir",
    "rename",
    "move",
    "link",
    "create",
    "readdir",
    "read",
    "write",
    "truncate",
    "setlength",
    "appendchunks",
    "snapshot",
    "settrash",
    "setsclass",
    "seteattr",
    "setxattr",
    "setfacl",
];

impl Exports {
    /// Bad lines are logged and left out.
    pub(super) fn parse(text: &str) -> Exports {
        let mut lines = Vec::new();
        let mut defaults = Options::default();
        // Some editors put a mark in front of a file.
        for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match parse_line(&joined_range(line), &mut defaults) {
                Ok(line) => lines.extend(line),
                Err(reason) => warn!("mfsexports.cfg line {}: {reason} - the line is ignored", number + 1),
            }
        }
        let checksum = fnv(format!("{lines:?}").as_bytes());
        Exports { lines, checksum }
    }

    /// Each line in few words, for the log.
    pub(super) fn lines(&self) -> impl Iterator<Item = String> {
        self.lines.iter().map(|line| {
            let addresses = match (Ip4(line.first), Ip4(line.last)) {
                (Ip4(0), Ip4(u32::MAX)) => "*".to_owned(),
                (first, last) if first == last => first.to_string(),
                (first, last) => format!("{first}-{last}"),
            };
            let path = line.path.as_ref().map_or(".".to_owned(), |path| format!("/{}", String::from_utf8_lossy(path)));
            let writes = if line.grant.flags & session_flags::READONLY == 0 { "rw" } else { "ro" };
            let below = if line.all_directories { ",alldirs" } else { "" };
            let secret = if line.password.is_some() { ",password" } else { "" };
            format!("{addresses} {path} {writes}{below}{secret}")
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Equal for equal exports; a session remembers that of its time. Spec 60, 9.5.
    pub(super) fn checksum(&self) -> u64 {
        self.checksum
    }

    /// All lines as monitors read them. Spec 70, 4.9.
    pub(super) fn describe(&self, mode: u8) -> Vec<u8> {
        let mut out = Vec::new();
        for Line { first, last, path, all_directories, minimum_version, password, grant } in &self.lines {
            let path = path.as_ref().map_or_else(|| b".".to_vec(), |path| [b"/", &path[..]].concat());
            first.put(&mut out);
            last.put(&mut out);
            u32::try_from(path.len()).unwrap_or(0).put(&mut out);
            out.extend_from_slice(&path);
            minimum_version.put(&mut out);
            (u8::from(*all_directories) | u8::from(password.is_some()) << 1).put(&mut out);
            grant.flags.put(&mut out);
            if mode >= 2 {
                grant.umask.put(&mut out);
            }
            for word in [grant.root.0, grant.root.1, grant.map_all.0, grant.map_all.1] {
                word.put(&mut out);
            }
            if mode >= 1 {
                grant.goals.0.put(&mut out);
                grant.goals.1.put(&mut out);
                grant.trash_times.0.put(&mut out);
                grant.trash_times.1.put(&mut out);
            }
            if mode >= 3 {
                grant.disables.put(&mut out);
            }
        }
        out
    }

    /// Whether an administration command from this address is obeyed: there is a line with `admin` for it. A line with
    /// a password does not count, since the command proves none. Spec 70, 5.
    pub(super) fn allows_admin(&self, ip: Ip4) -> bool {
        self.lines.iter().any(|line| {
            let here = (line.first..=line.last).contains(&ip.0);
            here && line.password.is_none() && line.grant.flags & session_flags::ADMIN != 0
        })
    }

    /// The line that applies. Errors: EACCES, NOPASSWORD, BADPASSWORD. Spec 30, 4.1.
    pub(super) fn find(&self, request: &Request<'_>) -> Result<&Grant, Status> {
        let mut refusal = Status::EACCES;
        let mut best: Option<&Line> = None;
        for line in self.lines.iter().filter(|line| line.is_for(request)) {
            if let Some(password) = &line.password {
                match request.proof {
                    None => {
                        refusal = Status::NOPASSWORD;
                        continue;
                    }
                    Some((challenge, answer)) if passcode(challenge, password) != *answer => {
                        refusal = Status::BADPASSWORD;
                        continue;
                    }
                    Some(_) => {}
                }
            }
            best = match best {
                Some(present) if !line.replaces(present) => Some(present),
                _ => Some(line),
            };
        }
        best.map(|line| &line.grant).ok_or(refusal)
    }
}

/// What proves a password without sending it. Spec 30, 3.1.
pub(super) fn passcode(challenge: &[u8; 32], password_md5: &[u8; 16]) -> [u8; 16] {
    let mut hash = Md5::new();
    hash.update(&challenge[..16]);
    hash.update(password_md5);
    hash.update(&challenge[16..]);
    hash.finalize().into()
}

/// The same with the plain AUTH_CODE of chunkservers. Spec 40, 3.5.
pub(super) fn auth_passcode(challenge: &[u8; 32], auth_code: &[u8]) -> [u8; 16] {
    let mut hash = Md5::new();
    hash.update(&challenge[..16]);
    hash.update(auth_code);
    hash.update(&challenge[16..]);
    hash.finalize().into()
}

impl Line {
    fn is_for(&self, request: &Request<'_>) -> bool {
        let here = (self.first..=self.last).contains(&request.ip.0) && request.version.0 >= self.minimum_version;
        let path = match (&self.path, request.path) {
            (None, None) => true,
            (Some(exported), Some(asked)) => {
                let asked = trim_slashes(asked);
                let below =
                    exported.is_empty() || (asked.starts_with(exported) && asked.get(exported.len()) == Some(&b'/'));
                asked == &exported[..] || (self.all_directories && below)
            }
            _ => false,
        };
        here && path
    }

    /// "Better" in one respect is enough. Spec 30, 4.1.
    fn replaces(&self, other: &Line) -> bool {
        let writable = |line: &Line| line.grant.flags & session_flags::READONLY == 0;
        let root = |line: &Line| line.grant.root.0 == 0;
        let admin = |line: &Line| line.grant.flags & session_flags::ADMIN != 0;
        let length = |line: &Line| line.path.as_ref().map_or(0, Vec::len);
        (writable(self) && !writable(other))
            || (root(self) && !root(other))
            || (admin(self) && !admin(other))
            || (self.password.is_some() && other.password.is_none())
            || length(self) > length(other)
    }
}

/// Options of a line, or of DEFAULTS.
#[derive(Clone, Debug)]
struct Options {
    flags: u8,
    all_directories: bool,
    map_root: Option<(u32, u32)>,
    map_all: Option<(u32, u32)>,
    password: Option<[u8; 16]>,
    minimum_version: u32,
    goals: (u8, u8),
    trash_times: (u32, u32),
    umask: u16,
    disables: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            flags: session_flags::READONLY,
            all_directories: false,
            map_root: None,
            map_all: None,
            password: None,
            minimum_version: 0,
            goals: (1, 9),
            trash_times: (0, u32::MAX),
            umask: 0,
            disables: 0,
        }
    }
}

/// The line with its range of addresses in one piece: people write `10.0.0.1 - 10.0.0.9 / rw` too.
fn joined_range(line: &str) -> Cow<'_, str> {
    let Some((first, rest)) = line.split_once('-') else { return line.into() };
    let (first, rest) = (first.trim_end(), rest.trim_start());
    let is_range = !first.contains([' ', '\t']) && address_range(first).is_some();
    if is_range && rest.starts_with(|c: char| c.is_ascii_digit()) {
        format!("{first}-{rest}").into()
    } else {
        line.into()
    }
}

fn parse_line(line: &str, defaults: &mut Options) -> Result<Option<Line>, String> {
    let blank = |c: char| c == ' ' || c == '\t';
    let (address, rest) = line.split_once(blank).unwrap_or((line, ""));
    let rest = rest.trim_start_matches(blank);
    if address.eq_ignore_ascii_case("DEFAULTS") {
        defaults.read(rest)?;
        return Ok(None);
    }
    let (first, last) = address_range(address).ok_or_else(|| format!("`{address}` is no address"))?;
    let (path, options_text) = rest.split_once(blank).unwrap_or((rest, ""));
    if path.is_empty() {
        return Err("no directory is given".to_owned());
    }
    let mut options = defaults.clone();
    options.read(options_text.trim())?;
    if options.goals.0 > options.goals.1 || options.trash_times.0 > options.trash_times.1 {
        return Err("a minimum lies above its maximum".to_owned());
    }
    let is_meta = path == ".";
    let nobody = (999, 999);
    let mut flags = options.flags;
    if options.map_all.is_some() {
        flags |= session_flags::MAPALL;
    }
    if is_meta {
        flags &= session_flags::READONLY | session_flags::DYNAMICIP;
    }
    Ok(Some(Line {
        first,
        last,
        path: (!is_meta).then(|| trim_slashes(path.as_bytes()).to_vec()),
        all_directories: options.all_directories,
        minimum_version: options.minimum_version,
        password: options.password,
        grant: Grant {
            flags,
            umask: options.umask,
            root: if is_meta { (0, 0) } else { options.map_root.or(options.map_all).unwrap_or(nobody) },
            map_all: options.map_all.unwrap_or(nobody),
            goals: options.goals,
            trash_times: options.trash_times,
            disables: if is_meta { 0 } else { options.disables },
        },
    }))
}

impl Options {
    fn read(&mut self, text: &str) -> Result<(), String> {
        for option in text.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            self.read_one(option)?;
        }
        Ok(())
    }

    fn read_one(&mut self, option: &str) -> Result<(), String> {
        let (name, value) = option.split_once('=').map_or((option, ""), |(name, value)| (name.trim_end(), value));
        let bad = || format!("`{option}` makes no sense");
        let number = |value: &str| value.trim().parse::<u8>().ok().filter(|n| (1..=9).contains(n)).ok_or_else(bad);
        match name {
            "ro" | "readonly" => self.flags |= session_flags::READONLY,
            "rw" | "readwrite" => self.flags &= !session_flags::READONLY,
            "ignoregid" => self.flags |= session_flags::IGNOREGID,
            "alldirs" => self.all_directories = true,
            "admin" | "canchangequota" => self.flags |= session_flags::ADMIN,
            "dynamicip" => self.flags |= session_flags::DYNAMICIP,
            "maproot" => self.map_root = Some(user(value).ok_or_else(bad)?),
            "mapall" => self.map_all = Some(user(value).ok_or_else(bad)?),
            "password" => self.password = Some(Md5::digest(value.as_bytes()).into()),
            "md5pass" => self.password = Some(hex16(value.trim()).ok_or_else(bad)?),
            "minversion" => self.minimum_version = minimum_version(value).ok_or_else(bad)?,
            "mingoal" => self.goals.0 = number(value)?,
            "maxgoal" => self.goals.1 = number(value)?,
            "mintrashtime" | "mintrashretention" => self.trash_times.0 = period(value).ok_or_else(bad)?,
            "maxtrashtime" | "maxtrashretention" => self.trash_times.1 = period(value).ok_or_else(bad)?,
            "umask" => self.umask = umask(value).ok_or_else(bad)?,
            "disable" => {
                for word in value.split(':') {
                    match DISABLES.iter().position(|name| *name == word) {
                        Some(bit) => self.disables |= 1 << bit,
                        None => warn!("mfsexports.cfg: disable={word} is unknown and ignored"),
                    }
                }
            }
            _ => warn!("mfsexports.cfg: option {option} is unknown and ignored"),
        }
        Ok(())
    }
}

fn trim_slashes(mut path: &[u8]) -> &[u8] {
    while let [b'/', rest @ ..] | [rest @ .., b'/'] = path {
        path = rest;
    }
    path
}

/// `U[:G]` by number; names are looked up in the system's lists.
fn user(text: &str) -> Option<(u32, u32)> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let (uid, own_gid) = match user.trim().parse::<u32>() {
        Ok(uid) => (uid, None),
        Err(_) => database("/etc/passwd", user.trim()).and_then(|(uid, gid)| Some((uid, Some(gid?))))?,
    };
    let gid = match group.map(str::trim) {
        Some(group) => group.parse().ok().or_else(|| database("/etc/group", group).map(|(gid, _)| gid))?,
        // A number without a group: the group of the user of that number, else the same number.
        None => own_gid.unwrap_or(uid),
    };
    Some((uid, gid))
}

/// Number and group of a name in a file of the form `name:x:number:group:...`.
fn database(file: &str, name: &str) -> Option<(u32, Option<u32>)> {
    let text = super::system_file(file)?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let number = fields.nth(1)?.parse().ok()?;
        Some((number, fields.next().and_then(|field| field.parse().ok())))
    })
}

fn hex16(text: &str) -> Option<[u8; 16]> {
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 16];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

/// Compared as MooseFS does: with the last number undoubled. Spec 60, 9.3.
fn minimum_version(text: &str) -> Option<u32> {
    let mut numbers = [0u32; 3];
    let words: Vec<&str> = text.trim().split('.').collect();
    if words.len() > 3 {
        return None;
    }
    for (number, word) in numbers.iter_mut().zip(&words) {
        *number = word.parse().ok()?;
    }
    Some(numbers[0] << 16 | (numbers[1] & 0xFF) << 8 | numbers[2] & 0xFF)
}

/// Seconds, or `[#w][#d][#h][#m][#s]`.
fn period(text: &str) -> Option<u32> {
    let text = text.trim().to_ascii_lowercase();
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let (mut rest, mut seconds) = (text.as_str(), 0u64);
    for (unit, worth) in [('w', 604_800), ('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)] {
        if let Some((number, behind)) = rest.split_once(unit) {
            seconds = seconds.saturating_add(number.parse::<u64>().ok()?.saturating_mul(worth));
            rest = behind;
        }
    }
    (rest.is_empty() && !text.is_empty()).then(|| u32::try_from(seconds).unwrap_or(u32::MAX))
}

/// Four digits, the first of which is 0.
fn umask(text: &str) -> Option<u16> {
    let digits = text.get(..4)?;
    (digits.starts_with('0') && digits.bytes().all(|digit| digit.is_ascii_digit() && digit < b'8'))
        .then(|| u16::from_str_radix(digits, 8).ok())?
}

/// FNV-1a, 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn request(ip: &str, path: Option<&'static [u8]>) -> Request<'static> {
        Request { ip: Ip4::from(ip.parse::<Ipv4Addr>().unwrap()), version: VersionWord::OURS, path, proof: None }
    }

    #[test]
    fn the_line_that_applies_is_found_by_address_path_and_merit() {
        let exports = Exports::parse(
            "# comment\n* / ro\n10.0.0.0/8 / rw,alldirs,maproot=0\n10.1.0.0-10.1.0.9 /sub rw,admin,maproot=0:0,umask=0027\n\
             * . rw\n10.2.0.0/255.255.0.0 /x rw,disable=unlink:rmdir,mapall=5:6\nnonsense / rw\n* /y rw,umask=022\n",
        );
        let find = |ip: &str, path: Option<&'static [u8]>| exports.find(&request(ip, path));
        assert_eq!(find("9.9.9.9", Some(b"/")).unwrap().flags, session_flags::READONLY);
        assert_eq!(find("9.9.9.9", Some(b"/")).unwrap().root, (999, 999));
        let own = find("10.5.0.1", Some(b"/a/b/")).unwrap();
        assert_eq!((own.flags, own.root), (0, (0, 0)));
        let sub = find("10.1.0.5", Some(b"sub")).unwrap();
        assert_eq!((sub.flags, sub.umask), (session_flags::ADMIN, 0o27));
        assert_eq!(find("9.9.9.9", Some(b"/sub")), Err(Status::EACCES));
        assert!(find("1.2.3.4", None).is_ok());
        let mapped = find("10.2.3.4", Some(b"/x")).unwrap();
        assert_eq!((mapped.map_all, mapped.root, mapped.flags), ((5, 6), (5, 6), session_flags::MAPALL));
        assert_eq!(mapped.disables, 1 << 7 | 1 << 8);
        assert_eq!(find("1.1.1.1", Some(b"/y")), Err(Status::EACCES));
    }

    #[test]
    fn a_range_may_have_blanks_and_a_file_a_mark_in_front_and_other_line_ends() {
        let exports = Exports::parse("\u{feff}10.0.0.1 - 10.0.0.9 / rw\r\n10.0.1.1- 10.0.1.9\t/a-b ro\r\n");
        let lines: Vec<String> = exports.lines().collect();
        assert_eq!(lines, ["10.0.0.1-10.0.0.9 / rw", "10.0.1.1-10.0.1.9 /a-b ro"]);
        assert_eq!(joined_range("10.0.0.1 /a - b rw"), "10.0.0.1 /a - b rw");
    }

    #[test]
    fn an_administrator_is_known_by_address_unless_a_password_is_wanted() {
        let exports = Exports::parse(
            "* / rw\n10.0.0.0/24 / rw,admin\n10.0.1.0/24 / rw,admin,password=secret\n10.0.2.0/24 . rw,admin\n",
        );
        let allowed = |ip: &str| exports.allows_admin(Ip4::from(ip.parse::<Ipv4Addr>().unwrap()));
        assert_eq!(["10.0.0.9", "10.0.1.9", "10.0.2.9", "10.0.3.9"].map(allowed), [true, false, false, false]);
    }

    #[test]
    fn a_password_is_asked_for_and_checked() {
        let exports = Exports::parse("* / rw,password=secret\n");
        let challenge = [7u8; 32];
        let good = passcode(&challenge, &Md5::digest(b"secret").into());
        let bad = passcode(&challenge, &Md5::digest(b"wrong").into());
        let with = |proof| exports.find(&Request { proof, ..request("1.1.1.1", Some(b"/")) }).map(|_| ());
        assert_eq!(with(None), Err(Status::NOPASSWORD));
        assert_eq!(with(Some((&challenge, &bad))), Err(Status::BADPASSWORD));
        assert_eq!(with(Some((&challenge, &good))), Ok(()));
        let same = Exports::parse("* / rw,md5pass=5EBE2294ECD0E0F08EAB7690D2A6EE69\n");
        assert!(same.find(&Request { proof: Some((&challenge, &good)), ..request("1.1.1.1", Some(b"")) }).is_ok());
    }

    #[test]
    fn periods_and_versions_are_read_as_documented() {
        assert_eq!(period("90"), Some(90));
        assert_eq!(period("1d2H"), Some(93_600));
        assert_eq!(period("2h1d"), None);
        assert_eq!(period("1h300000000000000000m"), Some(u32::MAX));
        assert_eq!(minimum_version("3.0.100"), Some(0x0003_0064));
        assert_eq!(umask("022"), None);
    }
}
