//! Fuzz targets: one function per decoder of bytes from outside, and a small mutational runner for them.
//!
//! A target takes any bytes, must not panic, hang or allocate without bound, and checks what must hold of whatever it
//! accepts (what was decoded encodes back, what was written is read again). The runner works on stable Rust and is an
//! ordinary test; `tests/fuzz` is a cargo-fuzz project over the same functions, for long runs guided by coverage.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use wire::Header;
use wire::codec::{HEADER_BYTES, Seed};

use crate::tree::Random;

/// A decoder under test.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Legal inputs to begin with.
    pub samples: fn() -> Vec<Vec<u8>>,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "wire_packet", run: wire_packet, samples: wire_samples },
    Target { name: "journal", run: journal, samples: journal_samples },
    Target { name: "metadata_image", run: metadata_image, samples: image_samples },
    Target { name: "moosefs_metadata", run: moosefs_metadata, samples: moosefs_samples },
    Target { name: "moosefs_changelog", run: moosefs_changelog, samples: changelog_samples },
    Target { name: "configuration", run: configuration, samples: configuration_samples },
    Target { name: "exports", run: exports, samples: exports_samples },
    Target { name: "chunk_folders", run: chunk_folders, samples: folder_samples },
    Target { name: "chunk_file", run: chunk_file, samples: chunk_file_samples },
];

/// A mutated input is at most this long.
const INPUT_BYTES_MAX: usize = 64 << 10;

/// No decoder may need this long for one input of at most `INPUT_BYTES_MAX`, on however slow a machine.
const HANG: Duration = Duration::from_secs(10);

/// Packets with older forms that are taken from old peers, and for which there is no encoder. Spec 30, 3.
const UNDERSTOOD_BUT_NEVER_SENT: [u32; 1] = [401];

/// `data`: a whole packet, header and payload, of any number.
pub fn wire_packet(data: &[u8]) {
    let Some((head, payload)) = data.split_first_chunk::<HEADER_BYTES>() else { return };
    let header = Header::decode(head);
    for entry in wire::registry::forms_of(header.kind) {
        if let Ok(once) = (entry.recode)(payload)
            && !UNDERSTOOD_BUT_NEVER_SENT.contains(&header.kind)
        {
            // What the decoder accepted may have been spelled oddly, but its own spelling is final.
            let twice = (entry.recode)(&once);
            assert_eq!(twice.as_ref(), Ok(&once), "{} changes when it is encoded again", entry.name);
        }
        (entry.dump)(payload).ok();
    }
    wire::registry::describe(header.kind, payload);
}

fn wire_samples() -> Vec<Vec<u8>> {
    let mut samples = golden_packets();
    let mut seed = Seed(1);
    for entry in wire::registry::entries() {
        for _ in 0..3 {
            let payload = (entry.sample)(&mut seed);
            let length = u32::try_from(payload.len()).expect("samples are short");
            samples.push([&Header { kind: entry.kind, length }.encode()[..], &payload].concat());
        }
    }
    samples
}

/// `data`: the text of a journal, with or without right version numbers and checksums: both are put right here, so
/// that mutations reach what lies behind them. Whatever a sound line asks for, replay does it or refuses it.
pub fn journal(data: &[u8]) {
    for (_, line) in meta::journal::lines(data) {
        line.and_then(meta::journal::parse).ok();
    }
    meta::journal::survey(data);
    let mut namespace = new_namespace();
    let mut applied = 0;
    for line in data.split(|byte| *byte == b'\n') {
        let Some(sealed) = seal(line, namespace.version()) else { continue };
        let Ok(entry) = meta::journal::parse(&sealed) else { continue };
        applied += usize::from(namespace.replay(&entry).is_ok());
    }
    if applied > 0 && data.len().is_multiple_of(8) {
        let digest = namespace.digest();
        let image = meta::image::to_bytes(&namespace.freeze(), NOW);
        let loaded = meta::image::load(&image, meta::Policy::default()).expect("an image just written is sound");
        assert_eq!(loaded.digest(), digest, "an image must hold all that replay has made");
    }
}

/// The line with this version in front and a right checksum; None if it has no such form.
fn seal(line: &[u8], version: u64) -> Option<Vec<u8>> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let close = line.iter().position(|byte| *byte == b')').filter(|close| *close > colon)?;
    let mut before = [version.to_string().as_bytes(), &line[colon..close]].concat();
    let had_sum = before.len() > 9 && before[before.len() - 9] == b'#';
    if had_sum {
        before.truncate(before.len() - 9);
    }
    if before.last() == Some(&b',') {
        before.pop();
    }
    let has_arguments = before.last() != Some(&b'(');
    let sum = crc32c::crc32c_append(crc32c::crc32c(&before), &line[close..]);
    let comma = if has_arguments { "," } else { "" };
    Some([&before[..], format!("{comma}#{sum:08X}").as_bytes(), &line[close..]].concat())
}

const NOW: u32 = 1_700_000_000;

fn new_namespace() -> meta::Namespace {
    meta::Namespace::new(wire::MetaId(0x6B01_47D6_F7BC_AE61), meta::Policy::default(), NOW)
}

/// A file system with a little of everything, and its journal.
fn small_namespace() -> (meta::Namespace, Vec<u8>) {
    use wire::{Inode, NodeKind, SessionId, VersionWord};
    let mut namespace = new_namespace();
    let params = meta::session::SessionParams {
        exports_checksum: 1,
        root: Inode::ROOT,
        flags: 0,
        umask: 0,
        root_uid: 0,
        root_gid: 0,
        map_all_uid: 999,
        map_all_gid: 999,
        goal_min: 1,
        goal_max: 9,
        trash_time_min_seconds: 0,
        trash_time_max_seconds: u32::MAX,
        disables: 0,
        peer_ip: wire::Ip4(0x0A4D_0001),
        info: b"/mnt/a b".to_vec(),
    };
    let session: SessionId = namespace.session_add(NOW, params);
    let caller = meta::Caller { session, version: VersionWord::OURS, uid: 0, gids: &[0, 7], now: (NOW + 1).into() };
    let root = Inode::ROOT;
    // Failures would only make poorer samples: nothing here is checked.
    let folder = namespace.mkdir(&caller, root, b"folder, (one)%", 0o755, 0o022, true).map_or(root, |made| made.0);
    let file = namespace.create(&caller, folder, b"file", 0o644, 0).map_or(root, |opened| opened.inode);
    namespace.symlink(&caller, folder, b"symlink", b"../else|where").ok();
    namespace.mknod(&caller, root, b"fifo", NodeKind::Fifo, 0o600, 0, 0).ok();
    namespace.mknod(&caller, root, b"device", NodeKind::CharDevice, 0o600, 0, 0x0103).ok();
    namespace.link(&caller, file, root, b"link").ok();
    for index in [0, 1, 5] {
        if let Ok(grant) = namespace.grant_write(NOW + 2, file, index, true, true) {
            let length = u64::from(index) * (64 << 20) + 70_000;
            namespace.write_end(session, VersionWord::OURS, NOW + 3, file, grant.chunk, length, true).ok();
        }
    }
    namespace.set_xattr(&caller, file, false, b"user.name", b"value \x00\xFF", 0).ok();
    namespace.snapshot(&caller, folder, root, b"snapshot", 0, 0).ok();
    namespace.rename(&caller, (folder, b"symlink"), (root, b"moved")).ok();
    namespace.truncate(&caller, file, 0, 100_000).ok();
    namespace.unlink(&caller, root, b"fifo").ok();
    namespace.set_trash_time(&caller, folder, 3600, 0).ok();
    namespace.unlink(&caller, root, b"moved").ok();
    namespace.tick_second(NOW + 100_000);
    let journal = namespace.take_journal().bytes;
    (namespace, journal)
}

fn journal_samples() -> Vec<Vec<u8>> {
    let (_, journal) = small_namespace();
    let mut samples: Vec<Vec<u8>> = journal.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    assert!(samples.len() > 12, "the samples must hold most operations");
    samples.push(journal);
    samples
}

/// `data`: an image file of the namespace, in one piece and in pieces.
pub fn metadata_image(data: &[u8]) {
    meta::image::ImageHeader::decode(data).ok();
    let whole = meta::image::load(data, meta::Policy::default());
    let mut loader = meta::image::Loader::new(data.len() as u64);
    let pushed = data.chunks(97).try_for_each(|piece| loader.push(piece));
    let pieces = pushed.and_then(|()| loader.finish(meta::Policy::default()));
    match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => assert_eq!(whole.digest(), pieces.digest()),
        (whole, pieces) => assert_eq!(whole.is_ok(), pieces.is_ok(), "the size of pieces must not matter"),
    }
}

fn image_samples() -> Vec<Vec<u8>> {
    let (mut namespace, _) = small_namespace();
    let small = meta::image::to_bytes(&namespace.freeze(), NOW);
    let empty = meta::image::to_bytes(&new_namespace().freeze(), NOW);
    vec![small, empty, b"MFSM NEW".to_vec()]
}

/// `data`: a `metadata.mfs` of MooseFS, in one piece and in pieces, as an import, as text and as sums over directories.
/// What comes in, an image of ours can hold.
pub fn moosefs_metadata(data: &[u8]) {
    use meta::stock::{Dump, Loader, dirinfo};
    let load = |piece_bytes: usize| {
        let mut loader = Loader::new();
        let pushed = data.chunks(piece_bytes).try_for_each(|piece| loader.push(piece));
        pushed.and_then(|()| loader.finish(meta::Policy::default(), NOW))
    };
    match (load(data.len().max(1)), load(89)) {
        (Ok(whole), Ok(pieces)) => {
            let (mut whole, pieces) = (whole.namespace, pieces.namespace);
            assert_eq!(whole.digest(), pieces.digest());
            let image = meta::image::to_bytes(&whole.freeze(), NOW);
            meta::image::load(&image, meta::Policy::default()).expect("an image just written is sound");
        }
        (whole, pieces) => assert_eq!(whole.is_ok(), pieces.is_ok(), "the size of pieces must not matter"),
    }
    let mut dump = Dump::new(true, None);
    dump.push(data).1.and_then(|()| dump.finish()).ok();
    let mut info = dirinfo::DirInfo::new(&[b"folder".to_vec(), b"/".to_vec()], true);
    for pass in [dirinfo::Pass::Edges, dirinfo::Pass::Chunks, dirinfo::Pass::Nodes] {
        if info.push(pass, data).and_then(|()| info.finish()).is_err() {
            break;
        }
    }
    let mut sessions = Loader::new();
    sessions.sessions(data).ok();
}

fn moosefs_samples() -> Vec<Vec<u8>> {
    let small = meta::stock::to_bytes(&small_namespace().0, NOW);
    vec![small, meta::stock::to_bytes(&new_namespace(), NOW), b"MFSS \x01\x06\x04\0\x01\0\0\0\x04".to_vec()]
}

/// `data`: a change log of MooseFS, with or without right version numbers.
pub fn moosefs_changelog(data: &[u8]) {
    use meta::stock::changelog;
    let mut end = 0;
    for part in changelog::parts(data) {
        assert!(part.bytes.start >= end && part.bytes.end <= data.len(), "runs lie in order");
        end = part.bytes.end;
    }
    let mut namespace = new_namespace();
    changelog::replay(&mut namespace, data, 0).ok();
    let mut namespace = new_namespace();
    for line in data.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let line = [namespace.version().to_string().as_bytes(), &line[colon..], b"\n"].concat();
        changelog::replay(&mut namespace, &line, 0).ok();
    }
}

fn changelog_samples() -> Vec<Vec<u8>> {
    // Ours, without their checksums.
    let (_, journal) = small_namespace();
    let plain = |line: &[u8]| -> Vec<u8> {
        let close = line.iter().position(|byte| *byte == b')').unwrap_or(line.len());
        let front = line[..close].len().saturating_sub(9);
        let front = line[..front].strip_suffix(b",").unwrap_or(&line[..front]);
        [front, &line[close..]].concat()
    };
    let mut samples: Vec<Vec<u8>> = journal.split_inclusive(|byte| *byte == b'\n').map(plain).collect();
    samples.push(samples.concat());
    samples.push(b"2: 1700000000|REPAIR(3,0):7\n3: 1700000000|RENUMERATEEDGES():5\n".to_vec());
    samples
}

/// `data`: the text of `mfsmaster.cfg` or another daemon's.
pub fn configuration(data: &[u8]) {
    use daemons::config::{Config, parse_size};
    let config = Config::parse(data, std::path::Path::new("fuzz.cfg"));
    config.number("BACK_LOGS", 50_u32, 0..=1000);
    config.boolean("LOCK_MEMORY", false);
    config.float("HDD_TEST_SPEED", 1.0);
    config.size("HDD_LEAVE_SPACE_DEFAULT", 1 << 28);
    config.path("DATA_PATH", "/var/lib/mfs");
    config.undefined();
    // Host names would be asked of the resolver: other options only.
    daemons::master::Settings::from_config(&without_hosts(data)).ok();
    parse_size(&String::from_utf8_lossy(data));
}

fn without_hosts(data: &[u8]) -> daemons::config::Config {
    let lines = data.split(|byte| *byte == b'\n').filter(|line| !line.windows(4).any(|word| word == b"HOST"));
    let text: Vec<u8> = lines.flat_map(|line| [line, b"\n"].concat()).collect();
    daemons::config::Config::parse(&text, std::path::Path::new("fuzz.cfg"))
}

fn configuration_samples() -> Vec<Vec<u8>> {
    let text = "# comment\nWORKING_USER = root\nDATA_PATH = /var/lib/mfs\nBACK_LOGS = 50\nHDD_TEST_SPEED = 1.5\n\
        HDD_LEAVE_SPACE_DEFAULT = 1.5GiB\t# note\nCHUNKS_WRITE_REP_LIMIT = 2,1,1,4\nLABELS = a,B;c\n\
        RESERVE_SPACE = 10%\nMATOCS_TIMEOUT = 0x10\nATIME_MODE = 07\nMATOCL_LISTEN_PORT = 9421\n";
    let lines = text.split_inclusive('\n').map(|line| line.as_bytes().to_vec());
    lines.chain([text.as_bytes().to_vec(), vec![b'A'; 2000], b"RESERVE_SPACE = 1.5U\n".to_vec()]).collect()
}

/// `data`: the text of `mfsexports.cfg`.
pub fn exports(data: &[u8]) {
    daemons::master::exports_something(&String::from_utf8_lossy(data));
}

fn exports_samples() -> Vec<Vec<u8>> {
    let lines = [
        "* / rw,alldirs,admin,maproot=0:0",
        "* . rw",
        "DEFAULTS password=secret,umask=0022",
        "10.0.0.0/8 /a/b ro,mapall=1000:1000,mingoal=2,maxgoal=5,mintrashtime=1h30m,maxtrashtime=2w",
        "10.0.0.1-10.0.0.9 / rw,md5pass=0123456789abcdef0123456789ABCDEF,minversion=3.0.100",
        "192.168.0.0/255.255.0.0 / rw,ignoregid,dynamicip,disable=chown:chmod:link",
        "10.0.0.0/0 / rw,maproot=nobody",
    ];
    lines.iter().map(|line| line.as_bytes().to_vec()).chain([lines.join("\n").into_bytes()]).collect()
}

/// `data`: the text of `mfshdd.cfg`.
pub fn chunk_folders(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for line in chunk::folders::parse_folders(&text) {
        line.shown_path();
    }
    chunk::folders::parse_size(&text);
    chunk::folders::parse_labels(&text);
}

fn folder_samples() -> Vec<Vec<u8>> {
    let lines = ["/mnt/hd1", "*/mnt/hd2 -5GiB", "<~/mnt/hd 3/ 0.5TiB", "# comment", ">/mnt/hd4 100", "~/mnt/hd5 -10%"];
    lines.iter().map(|line| line.as_bytes().to_vec()).chain([lines.join("\n").into_bytes()]).collect()
}

/// `data`: the beginning of a chunk file; its bytes also make a file's length and a file's name.
pub fn chunk_file(data: &[u8]) {
    use chunk::layout;
    if let Some(words) = layout::decode_header(data) {
        assert_eq!(layout::decode_header(&layout::encode_header(words)), Some(words));
    }
    if let Some((chunk, version)) = layout::parse_chunk_name(data) {
        assert_eq!(layout::chunk_name(chunk, version).as_bytes(), data, "a name that is taken is the chunk's only one");
    }
    let number = data.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    layout::shape(number);
}

fn chunk_file_samples() -> Vec<Vec<u8>> {
    let words = chunk::layout::HeaderWords { minor: b'0', id: wire::ChunkId(0xA1), version: wire::Version(2) };
    let header = chunk::layout::encode_header(words).to_vec();
    let name = chunk::layout::chunk_name(words.id, words.version).into_bytes();
    vec![header, name, 73_728_u64.to_be_bytes().to_vec(), (8192_u64 + (64 << 20)).to_be_bytes().to_vec()]
}

/// The packets of tests/golden, header and payload.
pub fn golden_packets() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/golden");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .expect("tests/golden is in the repository")
        .map(|entry| entry.expect("a folder of the repository can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "hex"))
        .collect();
    paths.sort();
    let read = |path| std::fs::read_to_string(path).expect("a file of the repository can be read");
    paths.into_iter().map(|path| from_hex(&read(path))).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks_exact(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).expect("two hex digits")).collect()
}

/// Run `target` on its samples as they are, then on mutations of them until `until` is past, at least `count_min` times.
///
/// Returns how many inputs were tried. Panics with the input, in hex, that broke the target.
pub fn run(target: &Target, seed: u64, count_min: usize, until: Instant) -> usize {
    let samples = (target.samples)();
    assert!(!samples.is_empty(), "{}: no samples", target.name);
    let mut random = Random::new(seed);
    let mut tried = 0;
    for sample in &samples {
        attempt(target, seed, sample);
        tried += 1;
    }
    while tried < count_min || Instant::now() < until {
        for _ in 0..64 {
            let mut input = samples[random.below(samples.len())].clone();
            for _ in 0..=random.below(4) {
                mutate(&mut random, &mut input, &samples);
            }
            input.truncate(INPUT_BYTES_MAX);
            attempt(target, seed, &input);
            tried += 1;
        }
    }
    tried
}

fn attempt(target: &Target, seed: u64, input: &[u8]) {
    let start = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    assert!(outcome.is_ok(), "{} (seed {seed}) failed on {}", target.name, to_hex(input));
    assert!(start.elapsed() < HANG, "{} (seed {seed}) took {:?} for {}", target.name, start.elapsed(), to_hex(input));
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One change: a bit, a byte, a lie about a length, a cut, a splice, a repetition, or a piece of text that parsers know.
fn mutate(random: &mut Random, input: &mut Vec<u8>, samples: &[Vec<u8>]) {
    const BYTES: [u8; 9] = [0, 1, 0x7F, 0x80, 0xFF, b'0', b'9', b'\n', b' '];
    const WORDS: [u32; 8] = [0, 1, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF];
    const TEXTS: [&str; 16] = [
        "=",
        ",",
        ":",
        "|",
        "(",
        ")",
        "/",
        "#",
        "-1",
        "%00",
        "%",
        "*",
        "18446744073709551616",
        "0x",
        "GiB",
        "a.b.c.d/33",
    ];
    let at = random.below(input.len() + 1);
    match random.below(9) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = BYTES[random.below(BYTES.len())],
        2 => {
            let word = WORDS[random.below(WORDS.len())].to_be_bytes();
            let width = [1, 2, 4][random.below(3)];
            if at + width <= input.len() {
                input[at..at + width].copy_from_slice(&word[4 - width..]);
            }
        }
        3 => input.truncate(at),
        4 => {
            let end = at + random.below(input.len() - at + 1);
            input.drain(at..end);
        }
        5 => {
            let other = &samples[random.below(samples.len())];
            let from = random.below(other.len() + 1);
            input.splice(at.., other[from..].iter().copied());
        }
        6 => {
            let end = (at + random.below(40)).min(input.len());
            let piece = input[at..end].to_vec();
            for _ in 0..random.below(20) {
                input.splice(at..at, piece.iter().copied());
            }
        }
        7 => {
            let text = TEXTS[random.below(TEXTS.len())];
            input.splice(at..at, text.bytes());
        }
        _ => {
            let more = random.bytes(1 + at % 16);
            input.splice(at..at, more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "failed on 0102")]
    fn an_input_that_breaks_a_target_is_printed() {
        let broken = Target {
            name: "broken",
            run: |data| assert!(!data.starts_with(&[1, 2]), "broken"),
            samples: || vec![vec![1, 2]],
        };
        run(&broken, 1, 1, Instant::now());
    }

    #[test]
    fn mutations_reach_far_from_their_samples() {
        let mut random = Random::new(1);
        let samples = vec![vec![0; 32], vec![7; 100]];
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            let mut input = samples[0].clone();
            mutate(&mut random, &mut input, &samples);
            seen.insert(input);
        }
        assert!(seen.len() > 400);
    }
}
