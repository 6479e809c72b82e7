//! `mfsmetadirinfo`: what lies below directories, out of a metadata file of MooseFS's or ours. Spec 50, 12.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use meta::stock;
use meta::stock::dirinfo::{DirInfo, Pass, Sums};

use super::{at, is_ours, load_ours, now, read_pieces, status};

/// Sum up directories out of a metadata file, without a master (mfsmetadirinfo)
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// J for JSON, C for CSV; a character behind C is the separator instead of a comma
    #[arg(short = 'f', value_name = "J|C[SEPARATOR]", value_parser = format)]
    format: Option<Format>,
    /// Write to this file instead of standard output
    #[arg(short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    /// Also all paths together, under this name
    #[arg(short = 'a', value_name = "NAME")]
    total: Option<std::ffi::OsString>,
    /// metadata.mfs, of MooseFS or of Mooring
    #[arg(value_name = "METADATA.MFS")]
    file: PathBuf,
    /// Paths from the root of the file system
    #[arg(value_name = "PATH")]
    paths: Vec<std::ffi::OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Csv(char),
}

fn format(text: &str) -> Result<Format, String> {
    let mut letters = text.chars();
    match (letters.next(), letters.next()) {
        (Some('J' | 'j'), _) => Ok(Format::Json),
        (Some('C' | 'c'), separator) => Ok(Format::Csv(separator.unwrap_or(','))),
        _ => Err("unrecognized format - use 'J' for JSON and 'C' for CSV".to_owned()),
    }
}

pub fn run(arguments: &Arguments) -> ExitCode {
    status("mfsmetadirinfo", sum_up(arguments))
}

fn sum_up(arguments: &Arguments) -> Result<(), String> {
    let paths: Vec<Vec<u8>> = arguments.paths.iter().map(|path| path.as_bytes().to_vec()).collect();
    let mut info = DirInfo::new(&paths, arguments.total.is_some());
    let file = &arguments.file;
    let ours = if is_ours(file)? { Some(load_ours(file)?) } else { None };
    for (pass, what) in [(Pass::Edges, "edge"), (Pass::Chunks, "chunk"), (Pass::Nodes, "node")] {
        let mut push = |piece: &[u8]| info.push(pass, piece).map_err(|error| error.to_string());
        match &ours {
            Some(namespace) => stock::write(namespace, now(), &mut push)?,
            None => read_pieces(file, push)?,
        }
        info.finish().map_err(|error| at(file, error))?;
        eprintln!("{what} scan: 100.00%");
        if pass == Pass::Edges {
            let absent = info.sums().zip(&arguments.paths).filter(|(sums, _)| sums.is_none());
            absent.for_each(|(_, path)| eprintln!("path '{}': no such file or directory", path.display()));
        }
    }
    let mut results: Vec<(&[u8], Option<Sums>)> = Vec::new();
    results.extend(arguments.total.as_ref().map(|name| (name.as_bytes(), info.total())));
    results.extend(paths.iter().map(Vec::as_slice).zip(info.sums()));
    let text = match arguments.format {
        None => plain(&results),
        Some(Format::Json) => json(&results),
        Some(Format::Csv(separator)) => csv(&results, separator),
    };
    match &arguments.output {
        Some(path) => fs::write(path, text).map_err(|error| at(path, error)),
        None => io::stdout().write_all(&text).map_err(|error| format!("standard output: {error}")),
    }
}

fn plain(results: &[(&[u8], Option<Sums>)]) -> Vec<u8> {
    const DASHES: &[u8] = b"------------------------------\n";
    let mut out = Vec::new();
    for (path, sums) in results {
        out.extend_from_slice(DASHES);
        out.extend_from_slice(&[b"path: ", *path, b"\n"].concat());
        let Some(sums) = sums else {
            out.extend_from_slice(b"path not found !!!\n");
            continue;
        };
        for (name, count) in [
            ("inodes", sums.inodes),
            (" files", sums.files),
            (" dirs", sums.dirs),
            ("chunks", sums.chunks),
            (" keep chunks", sums.keep_chunks),
            (" arch chunks", sums.arch_chunks),
        ] {
            out.extend_from_slice(format!("{name}: {count}\n").as_bytes());
        }
        for (name, bytes) in [
            ("length", sums.length),
            ("size", sums.size),
            ("keep size", sums.keep_size),
            ("arch size", sums.arch_size),
            ("real size", sums.real_size),
        ] {
            out.extend_from_slice(format!("{name}: {bytes} = {:>5}B\n", human(bytes)).as_bytes());
        }
    }
    out.extend_from_slice(DASHES);
    out
}

fn json(results: &[(&[u8], Option<Sums>)]) -> Vec<u8> {
    let mut out = b"{\n".to_vec();
    for (at, (path, found)) in results.iter().enumerate() {
        let sums = found.unwrap_or_default();
        out.extend_from_slice(&[b"\t\"", &escaped(path)[..], b"\": {\n"].concat());
        for (key, value) in [
            ("inodes", sums.inodes),
            ("files", sums.files),
            ("dirs", sums.dirs),
            ("chunks", sums.chunks),
            ("kchunks", sums.keep_chunks),
            ("achunks", sums.arch_chunks),
            ("length", sums.length),
            ("size", sums.size),
            ("rsize", sums.real_size),
            ("ksize", sums.keep_size),
            ("asize", sums.arch_size),
        ] {
            out.extend_from_slice(format!("\t\t\"{key}\": {value},\n").as_bytes());
        }
        let end = if at + 1 == results.len() { "" } else { "," };
        out.extend_from_slice(format!("\t\t\"error\": {}\n\t}}{end}\n", u8::from(found.is_none())).as_bytes());
    }
    out.extend_from_slice(b"}\n");
    out
}

fn csv(results: &[(&[u8], Option<Sums>)], separator: char) -> Vec<u8> {
    let names = [
        "path",
        "inodes",
        "files",
        "dirs",
        "chunks",
        "keep_chunks",
        "arch_chunks",
        "length",
        "size",
        "real_size",
        "keep_size",
        "arch_size",
    ];
    let separator = separator.to_string();
    let mut out = [names.join(&separator).as_bytes(), b"\n"].concat();
    for (path, sums) in results {
        let values = match sums {
            None => vec!["error".to_owned(); names.len() - 1],
            Some(sums) => [
                sums.inodes,
                sums.files,
                sums.dirs,
                sums.chunks,
                sums.keep_chunks,
                sums.arch_chunks,
                sums.length,
                sums.size,
                sums.real_size,
                sums.keep_size,
                sums.arch_size,
            ]
            .map(|value| value.to_string())
            .to_vec(),
        };
        out.extend_from_slice(&[b"\"", &escaped(path)[..], b"\""].concat());
        values.iter().for_each(|value| out.extend_from_slice([separator.as_str(), value].concat().as_bytes()));
        out.push(b'\n');
    }
    out
}

/// As in a string of C.
fn escaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in text {
        match byte {
            b'"' | b'\\' => out.extend([b'\\', *byte]),
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            b'\t' => out.extend(b"\\t"),
            8 => out.extend(b"\\b"),
            12 => out.extend(b"\\f"),
            0..32 => out.extend(format!("\\u{byte:04x}").bytes()),
            _ => out.push(*byte),
        }
    }
    out
}

/// At most three digits, and the unit: `999`, `1.0Ki`, `128Pi`. Halves are rounded up.
fn human(bytes: u64) -> String {
    let mut unit = 1u128;
    for prefix in ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
        let bytes = u128::from(bytes);
        let rounded = |times: u128| (2 * times * bytes + unit) / (2 * unit);
        if unit == 1 && bytes < 1000 {
            return bytes.to_string();
        }
        if unit > 1 && rounded(10) < 100 {
            return format!("{}.{}{prefix}", rounded(10) / 10, rounded(10) % 10);
        }
        if unit > 1 && rounded(1) < 1000 {
            return format!("{}{prefix}", rounded(1));
        }
        unit <<= 10;
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_at_most_three_digits_rounded_as_moosefs_rounds_them() {
        for (bytes, expected) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.0Ki"),
            (1075, "1.0Ki"),
            (1076, "1.1Ki"),
            (10188, "9.9Ki"),
            (10189, "10Ki"),
            (10751, "10Ki"),
            (10752, "11Ki"),
            (1_023_487, "999Ki"),
            (1_023_488, "1.0Mi"),
            (104_333_311, "99Mi"),
            (104_333_312, "100Mi"),
            (1_072_693_248, "1.0Gi"),
            (1 << 57, "128Pi"),
            (u64::MAX, "16Ei"),
        ] {
            assert_eq!(human(bytes), expected, "{bytes}");
        }
    }
}
