//! What a mount is asked to do: command line, `-o` lists, configuration file. Spec 72, 1.1 to 1.3.
//!
//! Pure, but for reading the files that are named. Three kinds of `-o` words exist: ours (`mfs...`), those of the
//! kernel and fusermount3, which are handed on, and those of mount(8) and fstab, which mean nothing here. A word that
//! begins with `mfs` and is none of ours stops the mount, as it always did; options that exist in MooseFS and are not
//! built here say so.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fuse::adapter::CacheMode;

/// Where the options of a mount are looked for, besides the command line. Spec 72, 1.2.
const CONFIG_FILES: [&str; 3] = ["/etc/mfs/mfsmount.cfg", "/etc/mfsmount.cfg", "/etc/mooring/mfsmount.cfg"];
/// Cache times go up to a day.
const CACHE_SECONDS_MAX: f64 = 86_400.0;
/// Bounds of the write cache and the read-ahead buffers in MiB.
const CACHE_MIB: std::ops::RangeInclusive<u64> = 16..=2048;
/// Bounds of one read-ahead request in bytes.
const READ_AHEAD_UNIT_BYTES: std::ops::RangeInclusive<u64> = 128 << 10..=2 << 20;

/// What the command line asks for.
#[derive(Debug)]
pub(super) enum Wish {
    /// Print the usage; status 1, as MooseFS's.
    Help,
    /// Print the version.
    Version,
    /// Mount.
    Mount(Box<Options>),
}

/// All that a mount needs to know.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // the options of Spec 72, 1.3, by their names
pub(super) struct Options {
    pub mount_point: Option<PathBuf>,
    pub master: String,
    pub port: u16,
    pub subfolder: String,
    pub bind: Option<Ipv4Addr>,
    pub proxy: Ipv4Addr,
    /// MD5 of the password.
    pub password_md5: Option<[u8; 16]>,
    pub foreground: bool,
    /// This process is the background one; set by the program itself.
    pub detached: bool,
    pub announce_ready: bool,
    /// Stop when standard input ends.
    pub exit_with_parent: bool,
    pub verbose: u8,
    pub delayed_init: bool,
    pub nonempty: bool,
    pub allow_other: bool,
    /// For the kernel or fusermount3.
    pub kernel_options: Vec<String>,
    /// First column of the mount table, when asked for.
    pub source: Option<String>,
    pub write_cache_bytes: usize,
    pub read_ahead_bytes: usize,
    pub read_ahead_unit_bytes: usize,
    pub io_retries: u32,
    pub timeout_secs: u32,
    pub error_on_lost_chunk: bool,
    /// `fsync` waits for chunkservers, not for their devices.
    pub server_fsync: bool,
    pub error_on_no_space: bool,
    pub preference: client::Preference,
    pub cache_mode: CacheMode,
    pub attributes_cache: Duration,
    pub xattr_cache: Duration,
    pub entry_cache: Duration,
    pub directory_entry_cache: Duration,
    pub negative_entry_cache: Duration,
    pub groups_cache: Duration,
    pub listing_cache_min: Duration,
    pub mkdir_copies_sgid: bool,
    pub no_xattrs: bool,
    pub no_posix_locks: bool,
    pub no_bsd_locks: bool,
    pub ring_driver: ring::DriverChoice,
    /// Threads that read requests from the kernel; 0: the core does.
    pub threads: usize,
    /// Sentences for the log: options that have no effect, values that were changed.
    pub notes: Vec<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            mount_point: None,
            master: "mfsmaster".into(),
            port: 9421,
            subfolder: "/".into(),
            bind: None,
            proxy: Ipv4Addr::LOCALHOST,
            password_md5: None,
            foreground: false,
            detached: false,
            announce_ready: false,
            exit_with_parent: false,
            verbose: 0,
            delayed_init: false,
            nonempty: false,
            allow_other: true,
            kernel_options: Vec::new(),
            source: None,
            write_cache_bytes: 256 << 20,
            read_ahead_bytes: 256 << 20,
            read_ahead_unit_bytes: 1 << 20,
            io_retries: 30,
            timeout_secs: 0,
            error_on_lost_chunk: false,
            server_fsync: false,
            error_on_no_space: false,
            preference: client::Preference::default(),
            cache_mode: CacheMode::Auto,
            attributes_cache: Duration::from_secs(1),
            xattr_cache: Duration::from_secs(30),
            entry_cache: Duration::ZERO,
            directory_entry_cache: Duration::from_secs(1),
            negative_entry_cache: Duration::ZERO,
            groups_cache: Duration::from_secs(300),
            listing_cache_min: Duration::from_millis(100),
            mkdir_copies_sgid: true,
            no_xattrs: false,
            no_posix_locks: false,
            no_bsd_locks: false,
            ring_driver: ring::DriverChoice::Auto,
            threads: 2,
            notes: Vec::new(),
        }
    }
}

/// Understand `arguments` (without the program's name), reading the configuration file and the password file they
/// name. Errors: a sentence for the user.
pub(super) fn parse(arguments: &[OsString]) -> Result<Wish, String> {
    let mut parser = Parser::default();
    parser.command_line(arguments)?;
    if parser.help {
        return Ok(Wish::Help);
    }
    if parser.version {
        return Ok(Wish::Version);
    }
    parser.config_file()?;
    parser.finish().map(|options| Wish::Mount(Box::new(options)))
}

#[derive(Default)]
struct Parser {
    options: Options,
    help: bool,
    version: bool,
    config_file: Option<PathBuf>,
    password: Option<String>,
    password_file: Option<PathBuf>,
    md5_password: Option<String>,
    cache_files: bool,
    default_mount_point: Option<PathBuf>,
    positionals: Vec<String>,
}

impl Parser {
    /// Arguments in order; short options as of getopt: `-Hhost`, `-H host`.
    fn command_line(&mut self, arguments: &[OsString]) -> Result<(), String> {
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let text = utf8(argument)?;
            let mut value_of = |rest: &str, option: &str| -> Result<String, String> {
                if !rest.is_empty() {
                    return Ok(rest.to_owned());
                }
                let next = arguments.next().ok_or_else(|| format!("option {option} wants a value"))?;
                utf8(next).map(str::to_owned)
            };
            match text {
                "mfsmount_magic" => {}
                "--meta" => self.word("mfsmeta")?,
                "--password" => return Err(asks_for_password()),
                "--nostdopts" => self.options.allow_other = false,
                "--version" => self.version = true,
                "--help" => self.help = true,
                "--detached" => self.options.detached = true,
                "--announce-ready" => self.options.announce_ready = true,
                "--exit-with-parent" => self.options.exit_with_parent = true,
                "--verbose" => self.options.verbose += 1,
                "--" => {}
                long if long.starts_with("--") => return Err(format!("unknown option {long}")),
                short if short.len() > 1 && short.starts_with('-') => {
                    let (option, rest) = (&short[..2], &short[2..]);
                    match option {
                        "-o" => {
                            let list = value_of(rest, option)?;
                            self.list(&list)?;
                        }
                        "-H" => self.word(&format!("mfsmaster={}", value_of(rest, option)?))?,
                        "-P" => self.word(&format!("mfsport={}", value_of(rest, option)?))?,
                        "-B" => self.word(&format!("mfsbind={}", value_of(rest, option)?))?,
                        "-L" => self.word(&format!("mfsproxy={}", value_of(rest, option)?))?,
                        "-S" => self.word(&format!("mfssubfolder={}", value_of(rest, option)?))?,
                        "-c" => self.word(&format!("mfscfgfile={}", value_of(rest, option)?))?,
                        _ => self.letters(&short[1..])?,
                    }
                }
                positional => self.positionals.push(positional.to_owned()),
            }
        }
        Ok(())
    }

    /// Letters without a value, possibly several behind one dash.
    fn letters(&mut self, letters: &str) -> Result<(), String> {
        for letter in letters.chars() {
            match letter {
                'm' => self.word("mfsmeta")?,
                'p' => return Err(asks_for_password()),
                'n' => self.options.allow_other = false,
                'V' => self.version = true,
                'h' => self.help = true,
                'f' => self.options.foreground = true,
                'd' => self.word("debug")?,
                's' => self.options.threads = 1,
                'r' => self.word("ro")?,
                'w' => self.word("rw")?,
                'v' => {}
                other => return Err(format!("unknown option -{other}")),
            }
        }
        Ok(())
    }

    /// A comma-separated list. A comma that belongs to a value is written `\,`.
    fn list(&mut self, list: &str) -> Result<(), String> {
        let mut word = String::new();
        let mut characters = list.chars();
        loop {
            match characters.next() {
                Some('\\') => word.extend(characters.next()),
                Some(character) if character != ',' => word.push(character),
                end => {
                    if !word.is_empty() {
                        self.word(&word)?;
                    }
                    word.clear();
                    if end.is_none() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// One `-o` word.
    fn word(&mut self, word: &str) -> Result<(), String> {
        if word.starts_with("mfs") { self.mfs_word(word) } else { self.system_word(word) }
    }

    fn mfs_word(&mut self, word: &str) -> Result<(), String> {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        let unknown = || format!("fuse: unknown option(s): `-o {word}'");
        let options = &mut self.options;
        if let Some(value) = value {
            match name {
                "mfsmaster" => options.master = value.to_owned(),
                "mfsport" => options.port = port(value)?,
                "mfsbind" => options.bind = Some(ip(value)?),
                "mfsproxy" => options.proxy = ip(value)?,
                "mfssubfolder" => options.subfolder = value.to_owned(),
                "mfspassword" => self.password = Some(value.to_owned()),
                "mfspassfile" => self.password_file = Some(value.into()),
                "mfsmd5pass" => self.md5_password = Some(value.to_owned()),
                "mfscfgfile" => self.config_file = Some(value.into()),
                "mfswritecachesize" => options.write_cache_bytes = options.mebibytes(name, value)?,
                "mfsreadaheadsize" => options.read_ahead_bytes = options.mebibytes(name, value)?,
                "mfsreadaheadleng" => {
                    options.read_ahead_unit_bytes = options.bounded(name, value, READ_AHEAD_UNIT_BYTES)?;
                }
                "mfsioretries" => options.io_retries = tries(name, value)?,
                "mfstimeout" => options.timeout_secs = number(name, value)?,
                "mfscachemode" => options.cache_mode = cache_mode(value)?,
                "mfsattrcacheto" => options.attributes_cache = seconds(name, value)?,
                "mfsxattrcacheto" => options.xattr_cache = seconds(name, value)?,
                "mfsentrycacheto" => options.entry_cache = seconds(name, value)?,
                "mfsdirentrycacheto" => options.directory_entry_cache = seconds(name, value)?,
                "mfsnegentrycacheto" => options.negative_entry_cache = seconds(name, value)?,
                "mfsgroupscacheto" => options.groups_cache = seconds(name, value)?,
                "mfsreaddirplusminto" => options.listing_cache_min = seconds(name, value)?,
                "mfsmkdircopysgid" => options.mkdir_copies_sgid = number::<u8>(name, value)? != 0,
                "mfsringdriver" => {
                    options.ring_driver =
                        value.parse().map_err(|_| format!("mfsringdriver={value}: auto, uring or epoll is wanted"))?;
                }
                "mfsthreads" => options.threads = number::<usize>(name, value)?.min(64),
                "mfsrlimitnofile"
                | "mfsnice"
                | "mfslimitarenas"
                | "mfssymlinkcacheto"
                | "mfsreadaheadtrigger"
                | "mfslogretry"
                | "mfslogminlevel"
                | "mfslogelevateto"
                | "mfsfsyncmintime"
                | "mfssugidclearmode" => {
                    options.notes.push(format!("option {name} has no effect here"));
                }
                "mfspreflabels" => {
                    let preference = client::Preference::parse(value);
                    options.preference = preference.ok_or_else(|| {
                        format!(
                            "mfspreflabels={value}: error parsing preferred labels expression; wanted are up to 9 groups \
                             like A;BC;(D+E)F, the best first"
                        )
                    })?;
                }
                _ => return Err(unknown()),
            }
        } else {
            match name {
                "mfsmeta" => {
                    return Err("the META mount (trash and sustained files, option -m or mfsmeta) is not built yet: \
                                use MooseFS's mfsmount -m, which works with Mooring's master"
                        .into());
                }
                "mfsdelayedinit" => options.delayed_init = true,
                "mfssuid" => options.kernel_options.push("suid".into()),
                "mfsdev" => options.kernel_options.push("dev".into()),
                "mfserroronlostchunk" => options.error_on_lost_chunk = true,
                "mfsserverfsync" => options.server_fsync = true,
                "mfserroronnospace" => options.error_on_no_space = true,
                "mfsnoxattrs" => options.no_xattrs = true,
                "mfsnoposixlocks" => options.no_posix_locks = true,
                "mfsnobsdlocks" => options.no_bsd_locks = true,
                "mfscachefiles" => self.cache_files = true,
                "mfsdebug" => options.verbose += 1,
                "mfsfsyncbeforeclose" => {} // what a close does anyway
                "mfsmemlock" | "mfsallowoomkiller" | "mfsflattrash" | "mfsdonotrememberpassword" => {
                    options.notes.push(format!("option {name} has no effect here"));
                }
                _ => return Err(unknown()),
            }
        }
        Ok(())
    }

    /// Words of the kernel, of fusermount3, of mount(8) and of fstab.
    fn system_word(&mut self, word: &str) -> Result<(), String> {
        let options = &mut self.options;
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        match name {
            "nonempty" => options.nonempty = true,
            "allow_other" => options.allow_other = true,
            "fsname" => options.source = Some(value.to_owned()),
            "debug" => {
                options.verbose += 1;
                options.foreground = true;
            }
            // fstab's and mount's own.
            "defaults" | "_netdev" | "auto" | "noauto" | "user" | "users" | "nouser" | "owner" | "group" | "nofail"
            | "comment" | "relatime" | "norelatime" | "nodiratime" | "diratime" | "strictatime" => {}
            _ if name.starts_with("x-") => {}
            // libfuse's.
            "clone_fd" | "max_idle_threads" | "max_threads" | "large_read" | "big_writes" | "hard_remove"
            | "use_ino" | "intr" | "async_read" => {}
            "ro"
            | "rw"
            | "suid"
            | "nosuid"
            | "dev"
            | "nodev"
            | "exec"
            | "noexec"
            | "atime"
            | "noatime"
            | "sync"
            | "async"
            | "dirsync"
            | "auto_unmount"
            | "default_permissions"
            | "max_read"
            | "subtype"
            | "blksize"
            | "context"
            | "fscontext"
            | "defcontext"
            | "rootcontext" => options.kernel_options.push(word.to_owned()),
            "allow_root" => return Err("option allow_root is not built: use allow_other (the default)".into()),
            _ => return Err(format!("fuse: unknown option(s): `-o {word}'")),
        }
        Ok(())
    }

    /// The configuration file; what it says comes after the command line, so it wins. Spec 72, 1.2.
    fn config_file(&mut self) -> Result<(), String> {
        let (path, text) = match self.config_file.take() {
            Some(path) => {
                let text = std::fs::read_to_string(&path)
                    .map_err(|error| format!("can't open configuration file {}: {error}", path.display()))?;
                (path, text)
            }
            None => {
                let found = CONFIG_FILES.iter().find_map(|path| Some((path, std::fs::read_to_string(path).ok()?)));
                let Some((path, text)) = found else { return Ok(()) };
                if *path == "/etc/mfsmount.cfg" {
                    self.options.notes.push("/etc/mfsmount.cfg is read; its place is now /etc/mfs/mfsmount.cfg".into());
                }
                (PathBuf::from(path), text)
            }
        };
        for line in text.lines() {
            self.config_line(line).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(())
    }

    fn config_line(&mut self, line: &str) -> Result<(), String> {
        let line = line.trim_end();
        match line.chars().next() {
            None | Some('#' | ';') => Ok(()),
            Some('-') => self.command_line(&[OsString::from(line)]),
            Some('/') => {
                self.default_mount_point = Some(line.into());
                Ok(())
            }
            Some(_) => self.list(line),
        }
    }

    /// Positional arguments, passwords, contradictions.
    fn finish(mut self) -> Result<Options, String> {
        let mut positionals = std::mem::take(&mut self.positionals).into_iter();
        let count = positionals.len();
        match (positionals.next(), positionals.next(), positionals.next()) {
            (_, _, Some(third)) => return Err(format!("too many arguments: {third}")),
            (Some(source), Some(mount_point), None) => {
                self.source_argument(&source)?;
                self.options.mount_point = Some(mount_point.into());
            }
            (Some(only), None, None) if count == 1 => {
                if only.contains(':') && !only.starts_with(['/', '.']) {
                    self.source_argument(&only)?;
                } else {
                    self.options.mount_point = Some(only.into());
                }
            }
            _ => {}
        }
        if self.options.mount_point.is_none() {
            self.options.mount_point = self.default_mount_point.take();
        }
        if self.cache_files {
            if self.options.cache_mode != CacheMode::Auto {
                return Err("mfscachefiles and mfscachemode can not be used together".into());
            }
            self.options.cache_mode = CacheMode::Always;
        }
        self.options.password_md5 = password(self.password, self.password_file.as_deref(), self.md5_password)?;
        Ok(self.options)
    }

    /// `HOST`, `HOST:PORT`, `HOST:PATH`, `HOST:PORT:PATH`.
    fn source_argument(&mut self, source: &str) -> Result<(), String> {
        let mut fields = source.splitn(3, ':');
        let host = fields.next().unwrap_or("");
        if !host.is_empty() {
            self.options.master = host.to_owned();
        }
        match (fields.next(), fields.next()) {
            (None, _) => {}
            (Some(middle), Some(path)) => {
                if !middle.is_empty() {
                    self.options.port = port(middle)?;
                }
                self.set_subfolder(path);
            }
            (Some(last), None) if !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.options.port = port(last)?;
            }
            (Some(path), None) => self.set_subfolder(path),
        }
        Ok(())
    }

    fn set_subfolder(&mut self, path: &str) {
        if !path.is_empty() {
            self.options.subfolder = path.to_owned();
        }
    }
}

impl Options {
    /// `name: value` lines for the hidden file `.params`. Spec 72, 2.
    pub(super) fn params(&self) -> Vec<(String, String)> {
        let seconds = |time: Duration| format!("{:.3}", time.as_secs_f64());
        let flag = |set: bool| if set { "(defined)" } else { "(not defined)" }.to_owned();
        let lines = [
            ("mfsmaster", self.master.clone()),
            ("mfsport", self.port.to_string()),
            ("mfsbind", self.bind.map_or("(not defined)".into(), |ip| ip.to_string())),
            ("mfsproxy", self.proxy.to_string()),
            ("mfssubfolder", self.subfolder.clone()),
            ("nonempty", flag(self.nonempty)),
            ("mfswritecachesize", (self.write_cache_bytes >> 20).to_string()),
            ("mfsreadaheadsize", (self.read_ahead_bytes >> 20).to_string()),
            ("mfsreadaheadleng", self.read_ahead_unit_bytes.to_string()),
            ("mfsserverfsync", flag(self.server_fsync)),
            ("mfserroronlostchunk", flag(self.error_on_lost_chunk)),
            ("mfserroronnospace", flag(self.error_on_no_space)),
            ("mfsioretries", tries_text(self.io_retries)),
            ("mfstimeout", self.timeout_secs.to_string()),
            ("mfsdelayedinit", flag(self.delayed_init)),
            ("mfsnoxattrs", flag(self.no_xattrs)),
            ("mfsnoposixlocks", flag(self.no_posix_locks)),
            ("mfsnobsdlocks", flag(self.no_bsd_locks)),
            ("mfsmkdircopysgid", u8::from(self.mkdir_copies_sgid).to_string()),
            ("mfsattrcacheto", seconds(self.attributes_cache)),
            ("mfsxattrcacheto", seconds(self.xattr_cache)),
            ("mfsentrycacheto", seconds(self.entry_cache)),
            ("mfsdirentrycacheto", seconds(self.directory_entry_cache)),
            ("mfsnegentrycacheto", seconds(self.negative_entry_cache)),
            ("mfsgroupscacheto", seconds(self.groups_cache)),
            ("mfsreaddirplusminto", seconds(self.listing_cache_min)),
            ("working_keep_cache_mode", format!("{:?}", self.cache_mode).to_ascii_uppercase()),
            ("working_sugid_clear_mode", "EXT".into()),
            ("moosefs_mount_version", format!("3.0.117 (mooring {})", env!("CARGO_PKG_VERSION"))),
        ];
        lines.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// A number of MiB as bytes, moved into bounds with a note.
    fn mebibytes(&mut self, name: &str, value: &str) -> Result<usize, String> {
        Ok(self.bounded(name, value, CACHE_MIB)? << 20)
    }

    fn bounded(&mut self, name: &str, value: &str, bounds: std::ops::RangeInclusive<u64>) -> Result<usize, String> {
        let asked: u64 = number(name, value)?;
        let taken = asked.clamp(*bounds.start(), *bounds.end());
        if taken != asked {
            self.notes.push(format!("{name}={asked} is out of bounds - {taken} is used"));
        }
        Ok(usize::try_from(taken).expect("at most 2 MiB or 2048"))
    }
}

fn asks_for_password() -> String {
    "asking for the password on the terminal (-p) is not built: use -o mfspassfile=FILE".into()
}

/// The digest of the password that was given in one of three ways.
fn password(text: Option<String>, file: Option<&Path>, md5: Option<String>) -> Result<Option<[u8; 16]>, String> {
    match (text, file, md5) {
        (None, None, None) => Ok(None),
        (Some(text), None, None) => Ok(Some(client::Settings::password_digest(text.as_bytes()))),
        (None, Some(path), None) => {
            let contents = std::fs::read_to_string(path)
                .map_err(|error| format!("can't open password file {}: {error}", path.display()))?;
            let line = contents.lines().next().unwrap_or("");
            if line.is_empty() {
                return Err(format!("first line of password file {} is empty", path.display()));
            }
            Ok(Some(client::Settings::password_digest(line.as_bytes())))
        }
        (None, None, Some(hex)) => md5_digest(&hex)
            .map(Some)
            .ok_or_else(|| "bad md5 definition (md5 should be given as 32 hex digits)".to_owned()),
        _ => Err("only one of mfspassword, mfspassfile, mfsmd5pass can be given".into()),
    }
}

fn md5_digest(hex: &str) -> Option<[u8; 16]> {
    let mut digest = [0; 16];
    if hex.len() != 32 || !hex.is_ascii() {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

fn utf8(argument: &OsString) -> Result<&str, String> {
    argument.to_str().ok_or_else(|| format!("{} is not UTF-8", argument.to_string_lossy()))
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.trim().parse().map_err(|_| format!("{name}={value}: a number is wanted"))
}

fn tries(name: &str, value: &str) -> Result<u32, String> {
    match value.trim() {
        "forever" => Ok(client::Settings::FOR_EVER),
        digits => digits
            .parse::<u32>()
            .map(|tries| tries.max(1))
            .map_err(|_| format!("{name}={value}: a number is wanted, or the word forever")),
    }
}

fn tries_text(tries: u32) -> String {
    if tries == client::Settings::FOR_EVER { "forever".into() } else { tries.to_string() }
}

fn port(value: &str) -> Result<u16, String> {
    number("mfsport", value)
}

fn ip(value: &str) -> Result<Ipv4Addr, String> {
    value.parse().map_err(|_| format!("{value} is not an IPv4 address"))
}

fn seconds(name: &str, value: &str) -> Result<Duration, String> {
    let seconds: f64 = number(name, value)?;
    if !(0.0..=CACHE_SECONDS_MAX).contains(&seconds) {
        return Err(format!("{name}={value}: 0 to {CACHE_SECONDS_MAX} seconds are wanted"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn cache_mode(value: &str) -> Result<CacheMode, String> {
    match value.to_ascii_uppercase().as_str() {
        "AUTO" => Ok(CacheMode::Auto),
        "YES" | "ALWAYS" => Ok(CacheMode::Always),
        "NO" | "NONE" | "NEVER" => Ok(CacheMode::Never),
        "DIRECT" => Ok(CacheMode::Direct),
        _ => Err(format!("unrecognized cachemode option: {value}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Options, String> {
        let mut parser = Parser::default();
        parser.command_line(&arguments.iter().map(OsString::from).collect::<Vec<_>>())?;
        parser.finish()
    }

    #[test]
    fn the_source_can_be_written_in_every_way() {
        let check = |source: &str, master: &str, port: u16, subfolder: &str| {
            let options = parsed(&[source, "/mnt"]).expect("understood");
            assert_eq!((options.master.as_str(), options.port, options.subfolder.as_str()), (master, port, subfolder));
            assert_eq!(options.mount_point, Some("/mnt".into()));
        };
        check("h", "h", 9421, "/");
        check("h:", "h", 9421, "/");
        check("h:9555", "h", 9555, "/");
        check("h:/sub", "h", 9421, "/sub");
        check("h:9555:/sub", "h", 9555, "/sub");
        check("h::/sub", "h", 9421, "/sub");
    }

    #[test]
    fn short_options_and_lists_mean_the_same() {
        let short = parsed(&["/mnt", "-H", "h", "-P9555", "-S", "/s", "-B", "10.0.0.1", "-f"]).expect("understood");
        let list = "mfsmaster=h,mfsport=9555,mfssubfolder=/s,mfsbind=10.0.0.1,_netdev,noatime,x-systemd.automount";
        let long = parsed(&["-o", list, "/mnt", "mfsmount_magic"]).expect("understood");
        for options in [&short, &long] {
            assert_eq!((options.master.as_str(), options.port), ("h", 9555));
            assert_eq!((options.subfolder.as_str(), options.bind), ("/s", Some(Ipv4Addr::new(10, 0, 0, 1))));
        }
        assert!(short.foreground && !long.foreground);
        assert_eq!(long.kernel_options, ["noatime"]);
    }

    #[test]
    fn how_long_to_try_is_a_number_or_for_ever() {
        let check = |value: &str, tries: u32, shown: &str| {
            let options = parsed(&["/mnt", "-o", &format!("mfsioretries={value}")]).expect("understood");
            assert_eq!((options.io_retries, tries_text(options.io_retries).as_str()), (tries, shown));
        };
        check("30", 30, "30");
        check("0", 1, "1");
        check("forever", client::Settings::FOR_EVER, "forever");
        assert!(parsed(&["/mnt", "-o", "mfsioretries=long"]).expect_err("refused").contains("forever"));
    }

    #[test]
    fn what_is_unknown_or_not_built_is_refused_by_name() {
        let refused = |arguments: &[&str], part: &str| {
            let sentence = parsed(arguments).expect_err("refused");
            assert!(sentence.contains(part), "{sentence}");
        };
        refused(&["-o", "mfsfoo=1"], "fuse: unknown option(s): `-o mfsfoo=1'");
        refused(&["-m"], "not built");
        refused(&["-p"], "mfspassfile");
        refused(&["-o", "mfspassword=a,mfsmd5pass=b"], "only one of");
        refused(&["-o", "mfsmd5pass=12"], "32 hex digits");
        refused(&["-o", "mfsport=x"], "mfsport=x");
        refused(&["-o", "mfspreflabels=A;"], "error parsing preferred labels expression");
        refused(&["-o", "mfsattrcacheto=-1"], "mfsattrcacheto=-1");
        refused(&["a:", "/b", "/c"], "too many");
        refused(&["-o", "mfscachefiles,mfscachemode=NO"], "together");
    }

    #[test]
    fn passwords_become_digests() {
        let md5 = "5f4dcc3b5aa765d61d8327deb882cf99"; // of "password"
        let by_text = parsed(&["-o", "mfspassword=password", "/m"]).expect("understood").password_md5;
        let by_digest = parsed(&["-o", &format!("mfsmd5pass={md5}"), "/m"]).expect("understood").password_md5;
        assert_eq!(by_text, by_digest);
        assert_eq!(by_text.expect("given")[0], 0x5f);
    }

    #[test]
    fn sizes_out_of_bounds_are_moved_with_a_note() {
        let options = parsed(&["-o", "mfswritecachesize=1,mfsreadaheadleng=1000000000", "/m"]).expect("understood");
        assert_eq!((options.write_cache_bytes, options.read_ahead_unit_bytes), (16 << 20, 2 << 20));
        assert_eq!(options.notes.len(), 2);
    }

    #[test]
    fn a_configuration_line_is_a_list_an_argument_or_a_mount_point() {
        let mut parser = Parser::default();
        for line in ["# a comment", "", "mfsmaster=h,noexec", "-omfsport=9555", "/mnt/mfs", "; another"] {
            parser.config_line(line).expect("understood");
        }
        let options = parser.finish().expect("complete");
        assert_eq!((options.master.as_str(), options.port), ("h", 9555));
        assert_eq!(options.mount_point, Some("/mnt/mfs".into()));
    }
}
