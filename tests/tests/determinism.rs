//! The same journal gives the same metadata: on every replay, from an image in its middle, and from a metalogger's copy.
//! `MOORING_JOURNAL_LINES=1000000` makes it longer than every run does.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use daemons::metalogger;
use meta::session::SessionParams;
use meta::{Caller, ClassChange, Namespace, Policy, SetAttr, Truncate, setattr_flags, smode};
use mooring_tests::tree::Random;
use ring::sim::{self, World};
use ring::{BufferedReader, Ring, Stream};
use wire::{
    AntoanConfigValue, AntoanGetConfig, AntomaDownloadRequest, AntomaDownloadStart, Crc, HEADER_BYTES, Header, Inode,
    MatoanDownloadData, MatoanDownloadInfo, MatoanMetachangesLog, MetaId, Name, NodeKind, Packet, Rest, SessionId,
    Time, VersionWord,
};

const META_ID: MetaId = MetaId(0x0DE7_0001);
const START: u32 = 1_800_000_000;
const MASTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const LOGGER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// So many inodes are picked from; others are let be.
const KNOWN_MAX: usize = 4000;

#[test]
fn a_random_journal_gives_the_same_digest_on_every_way() {
    let wanted = std::env::var("MOORING_JOURNAL_LINES").ok().and_then(|lines| lines.parse().ok()).unwrap_or(50_000u64);
    let began = Instant::now();
    let Recorded { first, middle, journal, lines, live } = record(wanted, 1);
    let expected = (live.version(), live.digest());
    drop(live);
    println!("{lines} lines, {} MiB, in {:.1} s", journal.len() >> 20, began.elapsed().as_secs_f64());

    let name = |line: &[u8]| -> Option<Vec<u8>> {
        Some(line.splitn(2, |byte| *byte == b'|').nth(1)?.split(|byte| *byte == b'(').next()?.to_vec())
    };
    let kinds: BTreeSet<Vec<u8>> = journal.split(|byte| *byte == b'\n').filter_map(name).collect();
    assert!(kinds.len() > 20, "only {} kinds of changes", kinds.len());

    for what in ["once", "twice"] {
        let mut again = load(&first);
        assert_eq!(again.replay_lines(&journal).unwrap(), lines);
        assert_eq!((again.version(), again.digest()), expected, "replayed {what}");
    }
    let mut from_middle = load(&middle);
    assert!(from_middle.version() > lines / 3 && from_middle.version() < lines);
    from_middle.replay_lines(&journal).unwrap();
    assert_eq!((from_middle.version(), from_middle.digest()), expected, "from the image in the middle");
    let mut through_image = load(&image(&mut from_middle));
    assert_eq!((through_image.version(), through_image.digest()), expected, "through an image at the end");
    through_image.take_journal();

    let (kept_image, kept_lines) = through_a_metalogger(&first, &journal, lines);
    let mut copy = load(&kept_image);
    assert_eq!(copy.replay_lines(&kept_lines).unwrap(), lines);
    assert_eq!((copy.version(), copy.digest()), expected, "what a metalogger kept");
    println!(
        "{lines} lines, version {}, digest {}: the same from two replays, from the image at version {}, through the image \
         of that, and from a metalogger's copy",
        expected.0,
        expected.1,
        load(&middle).version()
    );
}

/// A random history.
struct Recorded {
    /// Image in front of the first line.
    first: Vec<u8>,
    /// Image behind about half of them.
    middle: Vec<u8>,
    journal: Vec<u8>,
    lines: u64,
    live: Namespace,
}

/// Makes random changes until the journal has so many lines.
fn record(wanted: u64, seed: u64) -> Recorded {
    let mut namespace = Namespace::new(META_ID, Policy::default(), START);
    namespace.take_journal();
    let (first, begin) = (image(&mut namespace), namespace.version());
    let session = namespace.session_add(START, SessionParams::full_access());
    let mut history = History {
        namespace,
        session,
        now: START.into(),
        random: Random::new(seed),
        known: vec![Inode::ROOT; 4],
        made: 0,
    };
    let (mut journal, mut middle) = (Vec::new(), Vec::new());
    while history.namespace.version() - begin < wanted {
        history.step();
        if history.made.is_multiple_of(256) {
            journal.extend(history.namespace.take_journal().bytes);
        }
        if middle.is_empty() && history.namespace.version() - begin >= wanted / 2 {
            journal.extend(history.namespace.take_journal().bytes);
            middle = image(&mut history.namespace);
        }
    }
    journal.extend(history.namespace.take_journal().bytes);
    let lines = history.namespace.version() - begin;
    Recorded { first, middle, journal, lines, live: history.namespace }
}

struct History {
    namespace: Namespace,
    session: SessionId,
    now: Time,
    random: Random,
    /// Some of the inodes that were made, and perhaps removed since; the first is the root.
    known: Vec<Inode>,
    made: u64,
}

impl History {
    fn pick(&mut self) -> Inode {
        let at = self.random.below(self.known.len());
        self.known[at]
    }

    fn know(&mut self, inode: Inode) {
        if self.known.len() < KNOWN_MAX {
            self.known.push(inode);
        } else {
            let at = 4 + self.random.below(KNOWN_MAX - 4);
            self.known[at] = inode;
        }
    }

    /// Tries one operation. What is refused changes nothing and leaves no line.
    fn step(&mut self) {
        self.made += 1;
        self.now.0 += self.random.below(40_000_000) as i64;
        let (one, other, now, session) = (self.pick(), self.pick(), self.now, self.session);
        let name = format!("name{}", self.random.below(40)).into_bytes();
        let root = Caller { session, version: VersionWord::OURS, uid: 0, gids: &[0], now };
        let (choice, detail) = (self.random.below(100), self.random.below(1 << 20) as u32);
        let namespace = &mut self.namespace;
        match choice {
            0..=24 => {
                if let Ok((inode, _)) = namespace.mknod(&root, one, &name, NodeKind::File, 0o644, 0, 0) {
                    self.know(inode);
                }
            }
            25..=34 => {
                if let Ok((inode, _)) = namespace.mkdir(&root, one, &name, 0o755, 0, true) {
                    self.know(inode);
                }
            }
            35..=37 => {
                let _ = namespace.symlink(&root, one, &name, b"some/where, (else)");
            }
            38..=43 => {
                let _ = namespace.unlink(&root, one, &name);
            }
            44 => {
                let _ = namespace.rmdir(&root, one, &name);
            }
            45..=49 => {
                let to = format!("name{}", detail % 40).into_bytes();
                let _ = namespace.rename(&root, (one, &name), (other, &to));
            }
            50..=54 => {
                let _ = namespace.link(&root, one, other, &name);
            }
            55..=69 => self.write(one, detail),
            70..=74 => self.truncate(one, detail),
            75..=84 => {
                let mask = setattr_flags::MODE | setattr_flags::UID | setattr_flags::MTIME;
                let mtime = Time(now.0 - (i64::from(detail) << (detail % 40)));
                let set = SetAttr { mask, mode: detail as u16 & 0o7777, uid: detail, mtime, ..SetAttr::default() };
                let _ = namespace.setattr(&root, one, false, &set);
            }
            85..=87 => {
                let _ = namespace.set_xattr(&root, one, false, b"user.a,b(c)%", &detail.to_be_bytes(), 0);
            }
            88..=89 => {
                let _ = namespace.set_class(&root, one, ClassChange::Goal(1 + detail as u8 % 9), smode::SET);
            }
            90 => {
                let _ = namespace.set_trash_time(&root, one, detail % 3 * 3600, smode::SET);
            }
            91..=93 => {
                let _ = namespace.open(&root, one, 1);
            }
            94 => {
                let open: Vec<Inode> = namespace.open_files(session).step_by(2).collect();
                namespace.sustained_inodes(now, session, &open);
            }
            95 => {
                let _ = namespace.append_slice(&root, 0, one, other, (0, 2));
            }
            96..=97 => {
                for chunk in namespace.take_released_chunks() {
                    if let Some(record) = namespace.chunk(chunk) {
                        let _ = namespace.chunk_delete(now, chunk, record.version);
                    }
                }
            }
            98 => {
                let is_file = namespace.kind(session, one) == Ok(NodeKind::File);
                if is_file {
                    let _ = namespace.snapshot(&root, one, other, &name, 0, 0);
                }
            }
            _ => {
                self.now.0 += i64::from(60 + detail % 5000) * 1_000_000_000;
                self.namespace.tick_second(self.now);
                self.namespace.tick_minute(self.now);
            }
        }
    }

    fn write(&mut self, inode: Inode, detail: u32) {
        let (session, now, index) = (self.session, self.now, detail % 3);
        if self.namespace.check_write(session, VersionWord::OURS, inode, index).is_err() {
            return;
        }
        let Ok(grant) = self.namespace.grant_write(now, inode, index, detail & 4 == 0, detail & 8 == 0) else { return };
        if detail.is_multiple_of(5) {
            let _ = self.namespace.rollback(now, inode, index, grant.previous, grant.chunk);
            return;
        }
        self.settle(grant.chunk, detail);
        let end = u64::from(index) * u64::from(wire::limits::CHUNK_BYTES) + u64::from(detail);
        let length = grant.length.max(end);
        let _ = self.namespace.write_end(session, VersionWord::OURS, now, inode, grant.chunk, length, false);
    }

    /// What was begun is done, in most cases, and sometimes at a second try.
    fn settle(&mut self, chunk: wire::ChunkId, detail: u32) {
        let Some(mut version) = self.namespace.chunk(chunk).map(|record| record.version) else { return };
        if detail % 16 == 2 {
            version = version.next();
            let _ = self.namespace.raise_chunk(self.now, chunk, version);
        }
        if detail % 16 != 1 {
            let _ = self.namespace.set_chunk_version(self.now, chunk, version);
        }
    }

    fn truncate(&mut self, inode: Inode, detail: u32) {
        let (now, length) = (self.now, u64::from(detail) * 100);
        let root = Caller { session: self.session, version: VersionWord::OURS, uid: 0, gids: &[0], now };
        if let Ok(Truncate::Chunk { index, .. }) = self.namespace.truncate(&root, inode, 0, length)
            && let Ok(grant) = self.namespace.grant_truncate(now, inode, index, length)
        {
            self.settle(grant.chunk, detail);
            let _ = self.namespace.truncate_finish(&root, inode, 0, length, grant.chunk);
        }
    }
}

fn image(namespace: &mut Namespace) -> Vec<u8> {
    let mut bytes = Vec::new();
    let keep = &mut |piece: &[u8]| -> Result<(), ()> {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    meta::image::write(&namespace.freeze(), START, keep).unwrap();
    bytes
}

fn load(image: &[u8]) -> Namespace {
    meta::image::load(image, Policy::default()).unwrap()
}

// --- a metalogger, and a master that has this image and these lines ---

const WRAPPED_HEAD_BYTES: usize = 40;
const WRAPPED_TAIL: &[u8] = b"[MFS EOF MARKER]";

/// Lets a metalogger fetch the image and follow the journal. Gives the image and the lines that it then has on its disk.
fn through_a_metalogger(image: &[u8], journal: &[u8], lines: u64) -> (Vec<u8>, Vec<u8>) {
    let world = World::new(3, sim::Settings::default());
    let (master, logger) = (world.node(MASTER), world.node(LOGGER));
    world
        .run(logger, |ring| async move {
            ring.mkdir(Path::new("/kept"), 0o755).await.unwrap();
            ring.sync_dir(Path::new("/")).await.unwrap();
        })
        .unwrap();
    let (wrapped, sent) = (wrap(image), journal.to_vec());
    drop(world.spawn(master, |ring| async move { serve(ring, wrapped, sent).await }));
    let settings = metalogger::Settings {
        data_path: PathBuf::from("/kept"),
        master_host: MASTER.to_string(),
        master_port: 9419,
        bind_ip: None,
        master_timeout_sec: 60,
        reconnection_delay: Duration::from_secs(1),
        journals_kept: 50,
        images_kept: 3,
        image_every_hours: 24,
    };
    let (stop, wishes) = ring::channel::channel();
    let running = world.spawn(logger, |ring| metalogger::run(ring, settings, None, wishes, || {}));
    let last = load(image).version() + lines - 1;
    let has_all = || {
        let end = format!("{last}: ").into_bytes();
        let logs = (0..3).filter_map(|number| {
            world.contents(logger, &PathBuf::from(format!("/kept/changelog_ml.{number}.mfs"))).ok()
        });
        logs.into_iter().any(|log| {
            let from = log.len().saturating_sub(4096);
            log[from..].split(|byte| *byte == b'\n').any(|line| line.starts_with(&end))
        })
    };
    for second in 0.. {
        assert!(second < 10_000, "the metalogger has not all lines");
        world.run_for(Duration::from_secs(1));
        if has_all() && world.contents(logger, Path::new("/kept/metadata_ml.mfs.back")).is_ok() {
            break;
        }
    }
    drop(stop);
    assert!(world.run_until(|| running.is_finished()));
    let kept = world.contents(logger, Path::new("/kept/metadata_ml.mfs.back")).unwrap();
    let mut all = Vec::new();
    for number in (0..50).rev() {
        all.extend(
            world.contents(logger, &PathBuf::from(format!("/kept/changelog_ml.{number}.mfs"))).unwrap_or_default(),
        );
    }
    (kept[WRAPPED_HEAD_BYTES..kept.len() - WRAPPED_TAIL.len()].to_vec(), all)
}

/// MooseFS's framing around an image, as our master gives it to metaloggers. Spec 42, C.3.
fn wrap(image: &[u8]) -> Vec<u8> {
    let mut bytes = b"MFSM 2.0".to_vec();
    bytes.extend_from_slice(&load(image).version().to_be_bytes());
    bytes.extend_from_slice(&META_ID.0.to_be_bytes());
    bytes.extend_from_slice(b"MOOR 1.0");
    bytes.extend_from_slice(&(image.len() as u64).to_be_bytes());
    assert_eq!(bytes.len(), WRAPPED_HEAD_BYTES);
    bytes.extend_from_slice(image);
    bytes.extend_from_slice(WRAPPED_TAIL);
    bytes
}

/// Port 9419 of a master that has this image and sends these lines. Spec 42, A.
async fn serve(ring: Ring, image: Vec<u8>, journal: Vec<u8>) {
    let listener = ring.listen(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 9419)).unwrap();
    let stream = listener.accept().await.unwrap();
    let mut reader = BufferedReader::new(stream.clone(), 1 << 16);
    loop {
        let Ok(head) = reader.fill(HEADER_BYTES).await else { return };
        let header = Header::decode(head[..HEADER_BYTES].try_into().unwrap());
        let whole = HEADER_BYTES + header.length as usize;
        let payload = reader.fill(whole).await.unwrap()[HEADER_BYTES..whole].to_vec();
        reader.consume(whole);
        let answer = match header.kind {
            AntoanGetConfig::TYPE => {
                let msgid = AntoanGetConfig::decode(&payload).unwrap().msgid;
                AntoanConfigValue { msgid, value: Name::new(b"").unwrap() }.encode()
            }
            AntomaDownloadStart::TYPE => {
                let filenum = AntomaDownloadStart::decode(&payload).unwrap().filenum;
                let info = MatoanDownloadInfo { size: if filenum == 1 { image.len() as u64 } else { 0 } }.encode();
                if filenum == 12 {
                    stream.send_all(info).await.0.unwrap();
                    send_lines(&stream, &journal).await; // nothing else is asked for from now on
                    continue;
                }
                info
            }
            AntomaDownloadRequest::TYPE => {
                let AntomaDownloadRequest { offset, leng } = AntomaDownloadRequest::decode(&payload).unwrap();
                let data = image[offset as usize..][..leng as usize].to_vec();
                let crc = Crc(crc32fast::hash(&data));
                MatoanDownloadData { offset, leng, crc, data: Rest(data) }.encode()
            }
            _ => continue,
        };
        stream.send_all(answer).await.0.unwrap();
    }
}

async fn send_lines(stream: &Stream, journal: &[u8]) {
    let mut packets = Vec::new();
    for line in journal.split_inclusive(|byte| *byte == b'\n') {
        let changeno = meta::journal::line_version(line).unwrap();
        let text = line.splitn(2, |byte| *byte == b' ').nth(1).unwrap();
        let text = Rest(text[..text.len() - 1].to_vec());
        packets.extend(MatoanMetachangesLog::Change { changeno, text }.encode());
        if packets.len() > 1 << 16 {
            stream.send_all(std::mem::take(&mut packets)).await.0.unwrap();
        }
    }
    stream.send_all(packets).await.0.unwrap();
}
