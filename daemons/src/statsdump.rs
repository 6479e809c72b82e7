//! `mfsstatsdump` and `mfscsstatsdump`: the points of a server's charts as text, out of the file that it leaves. Spec 71, 3.
//!
//! The file is read here by itself: it is a server's that may run, of MooseFS or ours, and may be damaged, which is said
//! and not passed over.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const POINTS: usize = 4096;
const NO_DATA: u64 = u64::MAX;
const NAME_BYTES: usize = 100;
const SERIES_BYTES: usize = NAME_BYTES + 4 * POINTS * 8;
/// Minutes of one point in each range. Spec 70, 6.1.
const RANGE_MINUTES: [u64; 4] = [1, 6, 30, 1440];

/// Print the points of a server's charts (mfsstatsdump, mfscsstatsdump)
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Arguments {
    /// Names of fields with commas between them, or * for all
    #[arg(short = 'f', value_name = "FIELDS", required = true)]
    fields: Vec<String>,
    /// The file of a server's charts [default: stats.mfs or csstats.mfs in /var/lib/mfs]
    #[arg(short = 'i', value_name = "FILE")]
    file: Option<PathBuf>,
    /// Range: 0 minutes, 1 six minutes, 2 half hours, 3 days
    #[arg(short = 'r', value_name = "RANGE", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=3))]
    range: u8,
    /// Stands between columns
    #[arg(short = 's', value_name = "SEPARATOR", default_value_t = '\t')]
    separator: char,
    /// Draw pictures in the place of text, one for each field, whose name comes into the file's: of charts.png
    /// charts_FIELD.png
    #[arg(short = 'p', value_name = "PNG")]
    picture: Option<PathBuf>,
    /// Width of pictures in pixels, 150 to 4146
    #[arg(short = 'x', value_name = "WIDTH", default_value_t = 1600)]
    width: u16,
    /// Height of pictures in pixels, 120 to 1020; lowered to a multiple of 20
    #[arg(short = 'y', value_name = "HEIGHT", default_value_t = 320)]
    height: u16,
    /// Short numbers, with Ki, Mi, Gi
    #[arg(short = 'h')]
    iec: bool,
    /// Short numbers, with k, M, G
    #[arg(short = 'H')]
    si: bool,
    /// Dates instead of Unix seconds
    #[arg(short = 'd')]
    dates: bool,
    /// A chunkserver's file (mfscsstatsdump)
    #[arg(long)]
    chunkserver: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// How the points of a series are shown: times `times`, divided by `by`, in units of `unit`. Spec 70, 6.1.
#[derive(Clone, Copy)]
struct Scale {
    times: f64,
    by: f64,
    unit: f64,
    percent: bool,
    /// Points of longer ranges are sums of shorter ones.
    sum: bool,
}

const fn scale(times: f64, by: f64, unit: f64) -> Scale {
    Scale { times, by, unit, percent: false, sum: true }
}

const CPU: Scale = Scale { percent: true, ..scale(100.0, 60.0, 1e6) };
const COUNT: Scale = scale(1.0, 1.0, 1.0);
const LARGEST: Scale = Scale { sum: false, ..COUNT };
const PACKETS: Scale = scale(1000.0, 60.0, 1000.0);
const BITS: Scale = scale(8000.0, 60.0, 1000.0);
const NANOSECONDS: Scale = scale(1.0, 60_000.0, 1e6);

/// A column: its name, the series that are added up for it, or of which the larger one counts.
struct Field {
    name: &'static str,
    of: &'static [&'static str],
    scale: Scale,
}

macro_rules! fields {
    ($($name:literal $(= $($of:literal)+)? : $scale:ident),* $(,)?) => {
        &[$(Field { name: $name, of: fields!(@of $name $($($of)+)?), scale: $scale }),*]
    };
    (@of $name:literal) => { &[$name] };
    (@of $name:literal $($of:literal)+) => { &[$($of),+] };
}

const MASTER: &[Field] = fields![
    "ucpu": CPU, "scpu": CPU, "delete": COUNT, "replicate": COUNT, "statfs": COUNT, "getattr": COUNT,
    "setattr": COUNT, "lookup": COUNT, "mkdir": COUNT, "rmdir": COUNT, "symlink": COUNT, "readlink": COUNT,
    "mknod": COUNT, "unlink": COUNT, "rename": COUNT, "link": COUNT, "readdir": COUNT, "open": COUNT, "read": COUNT,
    "write": COUNT, "memoryrss": LARGEST, "prcvd": PACKETS, "psent": PACKETS, "brcvd": BITS, "bsent": BITS,
    "memoryvirt": LARGEST, "usedspace": LARGEST, "totalspace": LARGEST, "create": COUNT, "change": COUNT,
    "delete_ok": COUNT, "delete_err": COUNT, "replicate_ok": COUNT, "replicate_err": COUNT, "create_ok": COUNT,
    "create_err": COUNT, "change_ok": COUNT, "change_err": COUNT, "cpu" = "ucpu" "scpu": CPU,
    "mem" = "memoryrss" "memoryvirt": LARGEST, "space" = "usedspace" "totalspace": LARGEST,
    "delete_stat" = "delete_ok" "delete_err": COUNT, "replicate_stat" = "replicate_ok" "replicate_err": COUNT,
    "create_stat" = "create_ok" "create_err": COUNT, "change_stat" = "change_ok" "change_err": COUNT,
];

const CHUNKSERVER: &[Field] = fields![
    "ucpu": CPU, "scpu": CPU, "masterin": BITS, "masterout": BITS, "csrepin": BITS, "csrepout": BITS,
    "csservin": BITS, "csservout": BITS, "hdrbytesr": PACKETS, "hdrbytesw": PACKETS, "hdrllopr": COUNT,
    "hdrllopw": COUNT, "databytesr": PACKETS, "databytesw": PACKETS, "datallopr": COUNT, "datallopw": COUNT,
    "hlopr": COUNT, "hlopw": COUNT, "rtime": NANOSECONDS, "wtime": NANOSECONDS, "repl": COUNT, "create": COUNT,
    "delete": COUNT, "version": COUNT, "duplicate": COUNT, "truncate": COUNT, "duptrunc": COUNT, "test": COUNT,
    "load": LARGEST, "memoryrss": LARGEST, "memoryvirt": LARGEST, "movels": COUNT, "movehs": COUNT, "change": COUNT,
    "cpu" = "ucpu" "scpu": CPU, "bwin" = "csrepin" "csservin": BITS, "bwout" = "csrepout" "csservout": BITS,
    "hddread" = "hdrbytesr" "databytesr": PACKETS, "hddwrite" = "hdrbytesw" "databytesw": PACKETS,
    "hddopsr" = "hdrllopr" "datallopr": COUNT, "hddopsw" = "hdrllopw" "datallopw": COUNT,
    "mem" = "memoryrss" "memoryvirt": LARGEST, "move" = "movels" "movehs": COUNT,
];

/// `chunkserver`: called `mfscsstatsdump`.
pub fn run(arguments: &Arguments, chunkserver: bool) -> ExitCode {
    let chunkserver = chunkserver || arguments.chunkserver;
    match dump(arguments, chunkserver) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{}: {why}", if chunkserver { "mfscsstatsdump" } else { "mfsstatsdump" });
            ExitCode::FAILURE
        }
    }
}

fn dump(arguments: &Arguments, chunkserver: bool) -> Result<(), String> {
    let fields = select(&arguments.fields, if chunkserver { CHUNKSERVER } else { MASTER })?;
    let usual = if chunkserver { "/var/lib/mfs/csstats.mfs" } else { "/var/lib/mfs/stats.mfs" };
    let path = arguments.file.as_deref().unwrap_or(Path::new(usual));
    let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let stats = Stats::decode(&bytes).map_err(|why| format!("{}: {why}", path.display()))?;
    if let Some(path) = &arguments.picture {
        let size = u32::from(arguments.width) << 16 | u32::from(arguments.height);
        return fields.iter().try_for_each(|field| {
            let path = picture_path(path, field.name);
            let picture =
                charts::draw(&stats.layers(field, usize::from(arguments.range)), Some(size).filter(|size| *size != 0));
            fs::write(&path, picture).map_err(|error| format!("{}: {error}", path.display()))
        });
    }
    let text = stats.text(&fields, arguments);
    // Whoever closes the pipe early has read enough.
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(format!("standard output: {error}")),
        _ => Ok(()),
    }
}

/// The field's name in front of the extension, which is png if there is none.
fn picture_path(path: &Path, field: &str) -> PathBuf {
    let part = |part: Option<&std::ffi::OsStr>, other: &str| part.unwrap_or(other.as_ref()).to_owned();
    let mut name = part(path.file_stem(), "");
    name.push("_");
    name.push(field);
    name.push(".");
    name.push(part(path.extension(), "png"));
    path.with_file_name(name)
}

/// The fields that were asked for, in that order, each once.
fn select(names: &[String], known: &'static [Field]) -> Result<Vec<&'static Field>, String> {
    let mut fields: Vec<&Field> = Vec::new();
    for name in names.iter().flat_map(|names| names.split(',')).filter(|name| !name.is_empty()) {
        let found: Vec<&Field> = known.iter().filter(|field| name == "*" || field.name == name).collect();
        if found.is_empty() {
            let all: Vec<&str> = known.iter().map(|field| field.name).collect();
            return Err(format!("there is no field `{name}`; there are {}", all.join(", ")));
        }
        for field in found {
            if fields.iter().all(|other| other.name != field.name) {
                fields.push(field);
            }
        }
    }
    if fields.is_empty() { Err("no field is named".to_owned()) } else { Ok(fields) }
}

/// A file of charts. Spec 70, 6.2.
struct Stats<'a> {
    /// Of the newest points, local time.
    minute: u64,
    /// Name, and the points of all ranges.
    series: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Stats<'a> {
    fn decode(bytes: &'a [u8]) -> Result<Stats<'a>, &'static str> {
        let word = |at: usize| bytes.get(at..)?.first_chunk().map(|word| u32::from_be_bytes(*word));
        let (Some(0x0001_0000), Some(4096), Some(count), Some(minute)) = (word(0), word(4), word(8), word(12)) else {
            return Err("this is no file of charts");
        };
        let series = bytes[16..].chunks_exact(SERIES_BYTES).map(|series| {
            let (name, points) = series.split_at(NAME_BYTES);
            (name.split(|byte| *byte == 0).next().unwrap_or_default(), points)
        });
        let series: Vec<(&[u8], &[u8])> = series.take(usize::try_from(count).unwrap_or(usize::MAX)).collect();
        if series.len() as u64 != u64::from(count) {
            return Err("the file of charts ends too early");
        }
        Ok(Stats { minute: u64::from(minute), series })
    }

    /// `at`: 0 for the oldest. None: it is not known.
    fn point(&self, name: &str, range: usize, at: usize) -> Option<u64> {
        let (_, points) = self.series.iter().find(|(other, _)| *other == name.as_bytes())?;
        let word = points.get((range * POINTS + at) * 8..)?.first_chunk()?;
        Some(u64::from_be_bytes(*word)).filter(|point| *point != NO_DATA)
    }

    /// What is drawn of a field, one on top of the other: series that are added up, or of a whole that has the part in it
    /// what is beyond that.
    fn layers(&self, field: &Field, range: usize) -> Vec<Vec<u64>> {
        let newest_first = |name: &&str| -> Vec<u64> {
            (0..POINTS).rev().map(|at| self.point(name, range, at).unwrap_or(0)).collect()
        };
        let mut layers: Vec<Vec<u64>> = field.of.iter().map(newest_first).collect();
        if let ([part, whole], false) = (&mut layers[..], field.scale.sum) {
            whole.iter_mut().zip(part).for_each(|(whole, part)| *whole = whole.saturating_sub(*part));
        }
        layers
    }

    fn text(&self, fields: &[&Field], arguments: &Arguments) -> String {
        let range = usize::from(arguments.range);
        let minutes = RANGE_MINUTES[range];
        let newest = self.minute / minutes;
        let separator = arguments.separator;
        let mut out = if arguments.dates { "date" } else { "timestamp" }.to_owned();
        fields.iter().for_each(|field| out.extend([separator.to_string().as_str(), field.name]));
        out.push('\n');
        for at in 0..POINTS {
            let behind = (POINTS - 1 - at) as u64;
            let time = newest.saturating_sub(behind) * minutes * 60;
            out.push_str(&if arguments.dates { date(time) } else { time.to_string() });
            for field in fields {
                out.push(separator);
                out.push_str(&self.value(field, range, at).map_or("-".to_owned(), |value| {
                    let percent = if field.scale.percent { "%" } else { "" };
                    match (arguments.iec, arguments.si) {
                        (true, _) => format!("{}{percent}", iec(value)),
                        (false, true) => format!("{}{percent}", si(value)),
                        (false, false) => format!("{value:.6}{percent}"),
                    }
                }));
            }
            out.push('\n');
        }
        out
    }

    fn value(&self, field: &Field, range: usize, at: usize) -> Option<f64> {
        let points = field.of.iter().filter_map(|name| self.point(name, range, at));
        let Scale { times, by, unit, sum, .. } = field.scale;
        let joined = points.reduce(|one, other| if sum { one.saturating_add(other) } else { one.max(other) })?;
        let shorter = if sum { RANGE_MINUTES[range] } else { 1 };
        // One factor, made in this order, so that it is rounded as by MooseFS's tool.
        Some(joined as f64 * (1.0 / shorter as f64 * times / by / unit))
    }
}

fn iec(mut value: f64) -> String {
    let mut prefixes = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].into_iter();
    let mut prefix = prefixes.next().unwrap_or_default();
    while value >= 999.5
        && let Some(next) = prefixes.next()
    {
        value /= 1024.0;
        prefix = next;
    }
    format!("{value:.2}{prefix}")
}

/// MooseFS's tool shows what is below a thousandth ten times too large. Spec 71, 3.
fn si(mut value: f64) -> String {
    match value {
        0.0..0.000_999_5 => return format!("{:.2}u", value * 1e6),
        0.000_999_5..0.9995 => return format!("{:.2}m", value * 1e3),
        _ => {}
    }
    let mut prefixes = ["", "k", "M", "G", "T", "P"].into_iter();
    let mut prefix = prefixes.next().unwrap_or_default();
    while value >= 999.5
        && let Some(next) = prefixes.next()
    {
        value /= 1000.0;
        prefix = next;
    }
    format!("{value:.2}{prefix}")
}

/// `YYYY-MM-DD HH:MM`; times in these files are local already.
fn date(seconds: u64) -> String {
    let (days, minute) = (seconds / 86_400, seconds / 60 % 1440);
    // Days since the first of March of the year 0, in cycles of 400 years; a year that begins in March has its leap day last.
    let days = days + 719_468;
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = cycle * 400 + year + next;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}", minute / 60, minute % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shortened_as_moosefs_s_tool_shortens_them() {
        let values = [0.0, 1.0, 999.0, 1000.0, 1023.0, 10_240.0, 1_048_575.0, 999_994_999.0, 1.5e19];
        let found: Vec<String> = values.into_iter().map(iec).collect();
        assert_eq!(found, ["0.00", "1.00", "999.00", "0.98Ki", "1.00Ki", "10.00Ki", "1.00Mi", "953.67Mi", "13.01Ei"]);
        let values = [0.0, 0.001, 0.133_333, 0.9994, 7.87, 999.4, 999_490.0, 999_500.0, 1.5e19];
        let found: Vec<String> = values.into_iter().map(si).collect();
        assert_eq!(found, ["0.00u", "1.00m", "133.33m", "999.40m", "7.87", "999.40", "999.49k", "1.00M", "15000.00P"]);
    }

    #[test]
    fn pictures_are_named_as_moosefs_s_tool_names_them() {
        for (given, expected) in [
            ("foo", "foo_ucpu.png"),
            ("foo.png", "foo_ucpu.png"),
            ("in.d/foo", "in.d/foo_ucpu.png"),
            ("foo.png.x", "foo.png_ucpu.x"),
            ("foo.PNG", "foo_ucpu.PNG"),
        ] {
            assert_eq!(picture_path(Path::new(given), "ucpu"), Path::new(expected));
        }
    }

    #[test]
    fn a_part_stands_below_the_rest_of_its_whole() {
        let mut bytes = [0x0001_0000u32, 4096, 2, 99].map(u32::to_be_bytes).concat();
        for (name, newest) in [("memoryrss", 30u64), ("memoryvirt", 100)] {
            let mut series = name.as_bytes().to_vec();
            series.resize(SERIES_BYTES, 0xFF);
            series[name.len()] = 0;
            series[NAME_BYTES + (POINTS - 1) * 8..NAME_BYTES + POINTS * 8].copy_from_slice(&newest.to_be_bytes());
            bytes.extend(series);
        }
        let stats = Stats::decode(&bytes).unwrap();
        let of = |name: &str| {
            let field = select(&[name.to_owned()], MASTER).unwrap()[0];
            stats.layers(field, 0).iter().map(|layer| (layer[0], layer[1])).collect::<Vec<_>>()
        };
        assert_eq!(of("mem"), [(30, 0), (70, 0)]);
        assert_eq!(of("memoryvirt"), [(100, 0)]);
        assert_eq!(of("cpu"), [(0, 0), (0, 0)], "such series are not in the file");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00"),
            (951_782_399, "2000-02-28 23:59"),
            (951_782_400, "2000-02-29 00:00"),
            (1_795_750_980, "2026-11-27 03:43"),
            (4_107_542_340, "2100-02-28 23:59"),
            (4_107_542_400, "2100-03-01 00:00"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }

    #[test]
    fn a_file_that_is_none_or_not_whole_is_refused() {
        let mut bytes = [0x0001_0000u32, 4096, 1, 99].map(u32::to_be_bytes).concat();
        bytes.extend(vec![0; SERIES_BYTES]);
        bytes[16..20].copy_from_slice(b"ucpu");
        assert_eq!(Stats::decode(&bytes).map(|stats| stats.point("ucpu", 3, POINTS - 1)), Ok(Some(0)));
        for end in [0, 15, 16, 17, bytes.len() - 1] {
            assert!(Stats::decode(&bytes[..end]).is_err(), "{end}");
        }
        bytes[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(Stats::decode(&bytes).is_err());
        assert!(select(&["ucpu,nothing".to_owned()], MASTER).is_err_and(|why| why.contains("`nothing`")));
        assert!(select(&[",".to_owned()], MASTER).is_err());
    }
}
