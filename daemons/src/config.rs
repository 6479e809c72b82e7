//! Configuration files: `NAME = VALUE` lines, and typed look-ups that never fail.
//!
//! The rules are those of MooseFS's daemons, oddities included (a tab ends the value, `#` is a comment only in the
//! first column), because the files in `/etc/mfs` were written for them. Two mercies are ours: a number that does not
//! fit its option goes to the nearest limit instead of being cut to its low bits, and a name that nobody asked for is
//! mentioned in the log once everything has been read. What an option means is the business of whoever asks.
//! Spec 60, 1 and 2.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Mutex;

use tracing::{debug, warn};
use wire::AddressList;

/// A longer line goes on as a new line. Spec 60, 2.
const LINE_BYTES_MAX: usize = 998;

/// Options that belong to MooseFS and mean nothing here; they are no reason to warn.
const KNOWN_WITHOUT_EFFECT: [&str; 2] = ["LIMIT_GLIBC_MALLOC_ARENAS", "CHANGE_GLIBC_MALLOC_ARENAS"];

/// The settings of one file, by name. Values are text until somebody asks for more.
#[derive(Debug)]
pub struct Config {
    source: PathBuf,
    values: BTreeMap<String, String>,
    asked: Mutex<BTreeSet<String>>,
}

/// Why there is no configuration.
#[derive(Debug)]
pub enum ConfigError {
    NotFound { path: PathBuf },
    Unreadable { path: PathBuf, error: io::Error },
}

impl Config {
    /// Read the file at `path`. Lines that make no sense are logged and left out.
    ///
    /// Errors: `NotFound`, `Unreadable`. Spec 60, 2.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        match std::fs::read(path) {
            Ok(bytes) => Ok(Config::parse(&bytes, path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(ConfigError::NotFound { path: path.to_owned() })
            }
            Err(error) => Err(ConfigError::Unreadable { path: path.to_owned(), error }),
        }
    }

    /// No file: every option has its default.
    pub fn empty() -> Config {
        Config { source: PathBuf::from("(defaults)"), values: BTreeMap::new(), asked: Mutex::default() }
    }

    /// Settings from the bytes of a file; `source` is what messages call it.
    pub fn parse(bytes: &[u8], source: &Path) -> Config {
        let mut values = BTreeMap::new();
        // Some editors put a mark in front of a file.
        let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
        for (number, line) in lines(bytes) {
            match parse_line(line) {
                Line::Nothing => {}
                Line::Setting { name, value } => {
                    values.insert(name, value);
                }
                Line::Bad => warn!(
                    "bad definition in config file '{}': {} (line {number}{})",
                    source.display(),
                    String::from_utf8_lossy(line).trim_end(),
                    advice(line)
                ),
            }
        }
        Config { source: source.to_owned(), values, asked: Mutex::default() }
    }

    /// Takes over what `other` says of names that are not set here.
    pub fn add_defaults(&mut self, other: &Config) {
        for (name, value) in &other.values {
            self.values.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }

    /// The file that was read, for messages.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// The value as written, if the file has the name.
    pub fn optional(&self, name: &str) -> Option<&str> {
        self.asked.lock().expect("no holder of this lock panics").insert(name.to_owned());
        self.values.get(name).map(String::as_str)
    }

    /// The value as written, else `default`. An empty value is a value.
    pub fn text(&self, name: &str, default: &str) -> String {
        self.optional(name).unwrap_or(default).to_owned()
    }

    /// Addresses in the forms of mfsexports.cfg; all if the option is not set. Errors: a sentence that names the option,
    /// since a list that is not understood must not open or close a port by itself.
    pub fn addresses(&self, name: &str) -> Result<AddressList, String> {
        let Some(text) = self.optional(name) else { return Ok(AddressList::default()) };
        AddressList::parse(text).map_err(|why| format!("{name} = {text}: {why}"))
    }

    /// A number in the notation of C (`12`, `0x1f`, `017`), brought into `range` with a word in the log.
    /// A negative number for an unsigned option is a huge one, as in C.
    pub fn number<T: Number>(&self, name: &str, default: T, range: RangeInclusive<T>) -> T {
        let Some(text) = self.optional(name) else { return default };
        let wide = c_integer(text);
        let wide = if wide < 0 && !T::SIGNED { wide + (1 << 64) } else { wide };
        let (low, high) = (range.start().widen(), range.end().widen());
        if (low..=high).contains(&wide) {
            return T::narrow(wide);
        }
        let nearest = wide.clamp(low, high);
        warn!("{name} = {text} is outside {low}..{high} - using {nearest}");
        T::narrow(nearest)
    }

    /// 0 is false, every other number is true.
    pub fn boolean(&self, name: &str, default: bool) -> bool {
        self.optional(name).map_or(default, |text| c_integer(text) != 0)
    }

    /// A decimal number as `strtod` reads it: the longest prefix that is one, else 0.
    pub fn float(&self, name: &str, default: f64) -> f64 {
        self.optional(name).map_or(default, |text| number_prefix(text.trim_start()).0)
    }

    /// A size in bytes: `10G`, `1.5 TiB`, `4096B`. What cannot be read is logged and counts as `default_bytes`.
    pub fn size(&self, name: &str, default_bytes: u64) -> u64 {
        let Some(text) = self.optional(name) else { return default_bytes };
        parse_size(text).unwrap_or_else(|| {
            warn!("{name} = {text} is not a size - using {default_bytes}");
            default_bytes
        })
    }

    /// A value of a type of ours, such as `RING_DRIVER = uring`. What cannot be read is logged and counts as `default`.
    pub fn parsed<T: FromStr>(&self, name: &str, default: T) -> T {
        let Some(text) = self.optional(name) else { return default };
        text.parse().unwrap_or_else(|_| {
            warn!("{name} = {text} is not understood - using the default");
            default
        })
    }

    /// An absolute path; a relative one is taken from the current folder.
    pub fn path(&self, name: &str, default: &str) -> PathBuf {
        let path = PathBuf::from(self.text(name, default));
        std::path::absolute(&path).unwrap_or(path)
    }

    /// Every name and value of the file, for peers that ask for an option of ours (Spec 10, 2).
    pub fn values(&self) -> &BTreeMap<String, String> {
        &self.values
    }

    /// Mention names in the file that nobody asked for. Call it once everything has been read; never fatal.
    pub fn warn_unused(&self) {
        for name in self.unused() {
            if KNOWN_WITHOUT_EFFECT.contains(&name) {
                debug!("{}: {name} has no effect in Mooring", self.source.display());
            } else if name == "LOCK_FILE" {
                warn!("{}: LOCK_FILE has no effect; the lock file is in DATA_PATH", self.source.display());
            } else {
                warn!("{}: nothing reads {name} (unknown, or not supported yet)", self.source.display());
            }
        }
    }

    /// Names in the file that nobody asked for.
    pub(crate) fn unused(&self) -> Vec<&str> {
        let asked = self.asked.lock().expect("no holder of this lock panics");
        self.values.keys().filter(|name| !asked.contains(*name)).map(String::as_str).collect()
    }

    /// Names that were asked for and are not in the file, for `-u`.
    pub fn undefined(&self) -> Vec<String> {
        let asked = self.asked.lock().expect("no holder of this lock panics");
        asked.iter().filter(|name| !self.values.contains_key(*name)).cloned().collect()
    }
}

/// The configuration of `file_name` (`mfsmaster.cfg`): the file that `-c` named, else the first of the usual places.
///
/// Returns what a user should be told besides. Errors: a file named by `-c` is not there, or any file cannot be read.
/// Spec 60, 1.
pub fn find(file_name: &str, named: Option<&Path>) -> Result<(Config, Option<String>), ConfigError> {
    if let Some(path) = named {
        return Ok((Config::load(path)?, None));
    }
    let usual = default_path(file_name);
    for (path, note) in [
        (usual.clone(), None),
        (Path::new("/etc/mooring").join(file_name), None),
        (
            Path::new("/etc").join(file_name),
            Some(format!("default config file found in /etc - please move it to {}", usual.display())),
        ),
    ] {
        match Config::load(&path) {
            Ok(config) => return Ok((config, note)),
            Err(ConfigError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((Config::empty(), Some(format!("can't load config file: {} - using defaults", usual.display()))))
}

/// Where a configuration file is looked for first.
pub fn default_path(file_name: &str) -> PathBuf {
    Path::new("/etc/mfs").join(file_name)
}

/// Where a second file (`mfsexports.cfg`) is: as the option says, else the first of the usual places that exists, else
/// the usual place. Spec 60, 1.
pub fn secondary_path(config: &Config, option: &str, file_name: &str) -> PathBuf {
    if config.optional(option).is_some() {
        return config.path(option, "");
    }
    [default_path(file_name), Path::new("/etc/mooring").join(file_name), Path::new("/etc").join(file_name)]
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| default_path(file_name))
}

/// A size in bytes: digits, perhaps a fraction, perhaps a prefix (`k` is 1000, `Ki` is 1024), perhaps `B`.
/// None if it is anything else. Spec 60, 2; Spec 21, 8.1.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, rest) = number_prefix(text);
    if rest == text || number < 0.0 || !number.is_finite() {
        return None;
    }
    let unit = rest.trim();
    let unit = unit.strip_suffix('B').unwrap_or(unit);
    let (letter, base) = match unit.strip_suffix('i') {
        Some(letter) if !letter.is_empty() => (letter, 1024u64),
        Some(_) => return None,
        None => (unit, 1000),
    };
    let power = match letter {
        "" => 0,
        "k" | "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        "P" => 5,
        "E" => 6,
        _ => return None,
    };
    let factor = base.pow(power);
    // Whole numbers stay exact; only fractions go through floating point.
    match text[..text.len() - rest.len()].parse::<u64>() {
        Ok(whole) => whole.checked_mul(factor),
        Err(_) => {
            let bytes = number * factor as f64;
            (bytes < u64::MAX as f64).then_some(bytes as u64)
        }
    }
}

/// An integer type that an option can have.
pub trait Number: Copy {
    const SIGNED: bool;
    fn widen(self) -> i128;
    /// `wide` is inside the type's range.
    fn narrow(wide: i128) -> Self;
}

macro_rules! numbers {
    ($($type:ty: $signed:literal),*) => {$(
        impl Number for $type {
            const SIGNED: bool = $signed;
            fn widen(self) -> i128 {
                self as i128
            }
            fn narrow(wide: i128) -> Self {
                wide.try_into().expect("clamped into a range of this type")
            }
        }
    )*};
}
numbers!(u8: false, u16: false, u32: false, u64: false, usize: false, i32: true, i64: true);

enum Line {
    Nothing,
    Setting { name: String, value: String },
    Bad,
}

/// Lines without their newline, with their numbers; one that is too long is several.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    bytes.split(|&byte| byte == b'\n').enumerate().flat_map(|(at, line)| {
        // `chunks` of nothing is nothing, which is what an empty line is.
        line.chunks(LINE_BYTES_MAX).map(move |line| (at + 1, line))
    })
}

/// What a line that is no setting may be meant for.
fn advice(line: &[u8]) -> &'static str {
    let text = String::from_utf8_lossy(line);
    let mut words = text.split_whitespace();
    let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let is_address = wire::address_range(first).is_some() || first.eq_ignore_ascii_case("DEFAULTS");
    let is_disk = first.trim_start_matches(['*', '<', '>']).starts_with('/');
    if is_address && (second.starts_with('/') || second == "." || second == "-") {
        "; lines like this belong in mfsexports.cfg"
    } else if is_disk {
        "; lines like this belong in mfshdd.cfg"
    } else {
        "; settings are NAME = VALUE"
    }
}

fn parse_line(line: &[u8]) -> Line {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    if line.first() == Some(&b'#') || line.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r')) {
        return Line::Nothing;
    }
    let rest = skip(line, blank);
    let (name, rest) = split(rest, |byte| matches!(byte, 33..=126) && *byte != b'=');
    let rest = skip(rest, blank);
    let Some((b'=', rest)) = rest.split_first() else { return Line::Bad };
    if name.is_empty() {
        return Line::Bad;
    }
    let rest = skip(rest, blank);
    let (value, rest) = split(rest, |byte| matches!(byte, 32..=127));
    if !matches!(skip(rest, blank).first(), None | Some(b'#' | b'\r')) {
        return Line::Bad;
    }
    let text = |bytes: &[u8]| bytes.iter().map(|&byte| char::from(byte)).collect::<String>();
    Line::Setting { name: text(name), value: text(value.trim_ascii_end()) }
}

fn skip(bytes: &[u8], unwanted: impl Fn(&u8) -> bool) -> &[u8] {
    split(bytes, unwanted).1
}

fn split(bytes: &[u8], wanted: impl Fn(&u8) -> bool) -> (&[u8], &[u8]) {
    bytes.split_at(bytes.iter().position(|byte| !wanted(byte)).unwrap_or(bytes.len()))
}

/// What `strtol(text, NULL, 0)` reads, without its overflow: sign, `0x` or leading `0`, digits; the rest is ignored.
/// More digits than make sense end at a number too large for every option.
fn c_integer(text: &str) -> i128 {
    let text = text.trim_start();
    let (negative, text) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let hex = text.strip_prefix("0x").or(text.strip_prefix("0X"));
    let (radix, digits) = match hex {
        Some(digits) if digits.starts_with(|c: char| c.is_ascii_hexdigit()) => (16, digits),
        _ if text.starts_with('0') => (8, text),
        _ => (10, text),
    };
    let mut value: i128 = 0;
    for digit in digits.chars().map_while(|c| c.to_digit(radix)) {
        value = (value * i128::from(radix) + i128::from(digit)).min(i128::from(u64::MAX) + 1);
    }
    if negative { -value } else { value }
}

/// The longest prefix that is a decimal number, as its value and what follows. No number: 0 and the whole text.
fn number_prefix(text: &str) -> (f64, &str) {
    let bytes = text.as_bytes();
    let digits = |from: usize| from + bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let sign = usize::from(matches!(bytes.first(), Some(b'-' | b'+')));
    let mut end = digits(sign);
    if bytes.get(end) == Some(&b'.') {
        let fraction = digits(end + 1);
        if fraction > end + 1 || end > sign {
            end = fraction;
        }
    }
    if end > sign && matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = end + 1 + usize::from(matches!(bytes.get(end + 1), Some(b'-' | b'+')));
        if sign <= bytes.len() && digits(sign) > sign {
            end = digits(sign);
        }
    }
    match text[..end].parse() {
        Ok(value) => (value, &text[end..]),
        Err(_) => (0.0, text),
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::NotFound { path } => write!(f, "main config file ({}) not found", path.display()),
            ConfigError::Unreadable { path, error } => {
                write!(f, "can't read config file {}: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text.as_bytes(), Path::new("test.cfg"))
    }

    fn check(line: &str, expected: Option<&str>) {
        assert_eq!(config(line).optional("X"), expected, "{line:?}");
    }

    /// Each line was also given to mfsmaster 3.0.117 as DATA_PATH, or follows from the table in Spec 60, 2.
    #[test]
    fn a_line_is_read_as_moosefs_reads_it() {
        check("X = 5", Some("5"));
        check("X=5", Some("5"));
        check(" \tX\t=\t5  ", Some("5"));
        check("X = two words", Some("two words"));
        check("X =", Some(""));
        check("X = 5 # note", Some("5 # note"));
        check("X = 5\t# note", Some("5"));
        check("X = 5\r", Some("5"));
        check("X = 5\tnote", None);
        check("X = 5\x01 # note", None);
        check("X = 5\x7f", Some("5\x7f"));
        check("X = caf\u{e9}", None);
        check("X 5", None);
        check("= 5", None);
        check("#X = 5", None);
        check(" #X = 5", None);
        check("x = 5", None);
        check("X = \"quoted\"", Some("\"quoted\""));
        check("X = 1\nX = 2\nY = 3", Some("2"));
        check("\n\r\n   \nX = 1", Some("1"));
    }

    #[test]
    fn a_mark_in_front_and_line_ends_of_other_systems_are_no_part_of_a_value() {
        check("\u{feff}X = 5\r\n", Some("5"));
        assert!(advice(b"* / rw").contains("mfsexports.cfg"));
        assert!(advice(b"10.0.0.0/8 / rw,alldirs").contains("mfsexports.cfg"));
        assert!(advice(b"*/mnt/disk").contains("mfshdd.cfg"));
        assert!(advice(b"x y").contains("NAME = VALUE"));
    }

    #[test]
    fn the_rest_of_a_long_line_is_a_new_line() {
        let long = format!("#{}X = 7\n", "-".repeat(LINE_BYTES_MAX - 1));
        check(&long, Some("7"));
    }

    #[test]
    fn numbers_are_those_of_c_and_stay_inside_their_limits() {
        let number = |text: &str| config(&format!("X = {text}")).number::<u16>("X", 9, 1..=1000);
        for (text, expected) in [
            ("12", 12),
            ("0x1f", 31),
            ("017", 15),
            ("12 apples", 12),
            ("", 1),
            ("0", 1),
            ("1001", 1000),
            ("70000", 1000),
            ("-1", 1000),
            ("99999999999999999999999999999999999999999999", 1000),
        ] {
            assert_eq!(number(text), expected, "{text:?}");
        }
        assert_eq!(config("X = -5").number::<i32>("X", 0, -20..=19), -5);
        assert_eq!(config("").number::<i32>("X", -19, -20..=19), -19);
        assert_eq!(config("X = 0x").number::<u8>("X", 3, 0..=9), 0);
    }

    #[test]
    fn booleans_are_numbers() {
        for (text, expected) in [("0", false), ("1", true), ("2", true), ("yes", false), ("", false)] {
            assert_eq!(config(&format!("X = {text}")).boolean("X", true), expected, "{text:?}");
        }
        assert!(config("").boolean("X", true));
    }

    #[test]
    fn floats_take_what_can_be_read() {
        for (text, expected) in
            [("1.5", 1.5), ("-2", -2.0), ("1e3x", 1000.0), (".5", 0.5), ("2.", 2.0), ("x", 0.0), ("1e", 1.0)]
        {
            assert_eq!(config(&format!("X = {text}")).float("X", 7.0), expected, "{text:?}");
        }
    }

    #[test]
    fn sizes_have_decimal_and_binary_prefixes() {
        for (text, expected) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("4096B", Some(4096)),
            ("2k", Some(2000)),
            ("2Ki", Some(2048)),
            ("2KiB", Some(2048)),
            ("1.5 GiB", Some(3 << 29)),
            ("10G", Some(10_000_000_000)),
            ("16EiB", None),
            ("15EiB", Some(15 << 60)),
            ("i", None),
            ("", None),
            ("-1G", None),
            ("1X", None),
        ] {
            assert_eq!(parse_size(text), expected, "{text:?}");
        }
        assert_eq!(config("X = much").size("X", 11), 11);
    }

    #[test]
    fn what_was_asked_for_and_is_missing_is_known() {
        let config = config("X = 1");
        let _ = (config.optional("X"), config.text("Y", ""));
        assert_eq!(config.undefined(), ["Y"]);
    }

    #[test]
    fn a_named_file_that_is_missing_is_an_error_and_says_so() {
        let error = find("mfsmaster.cfg", Some(Path::new("/nonexistent/m.cfg"))).expect_err("no such file");
        assert_eq!(error.to_string(), "main config file (/nonexistent/m.cfg) not found");
    }
}
