//! Bits that a disk forgets, on one of our chunkservers in a cluster of MooseFS: found, never served, reported, healed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mooring_tests::chunkfile::{self, Rot};
use mooring_tests::cluster::{CSSERV_PORT, Cluster, Kind, Layout};
use mooring_tests::namespace::chunkserver_address;
use mooring_tests::need::{Need, have};
use mooring_tests::tree::Random;
use mooring_tests::wait::{comes_true, wait_until};
use wire::{ChunkId, CltocsRead, CstoclReadData, CstoclReadStatus, HEADER_BYTES, Header, Packet, Status, Version};

const NEEDS: &[Need] = &[Need::Root, Need::Fuse, Need::Stock, Need::Mooring];
/// Two thirds of them have a copy on our server, more or less.
const FILES: usize = 30;
const BLOCKS: usize = 3;
const BLOCK_BYTES: usize = 65_536;
const ROTS: [Rot; 5] =
    [Rot::Data { block: 0 }, Rot::Data { block: 2 }, Rot::Sum { block: 1 }, Rot::Signature, Rot::Number];
/// Ours; the two stock ones have the other copies.
const OURS: usize = 0;
const HEALING_LIMIT: Duration = Duration::from_secs(150);

#[test]
fn rot_is_found_by_readers_and_by_the_scrub_and_healed_from_another_copy() {
    if !have("rot_is_found_by_readers_and_by_the_scrub_and_healed_from_another_copy", NEEDS) {
        return;
    }
    let mut cluster = Cluster::start("rot", Layout::new(Kind::Stock, &[Kind::Mooring, Kind::Stock, Kind::Stock]));
    let mount = cluster.mount(Kind::Stock);
    let mut random = Random::new(12);
    let contents: Vec<Vec<u8>> = (0..FILES).map(|_| random.bytes(BLOCKS * BLOCK_BYTES)).collect();
    for (number, content) in contents.iter().enumerate() {
        std::fs::write(mount.join(number.to_string()), content).unwrap();
    }
    cluster.wait_for_copies("two copies of everything", HEALING_LIMIT, |copies| copies == 2);
    let ours = files_with_a_copy_of_ours(&cluster, &contents);
    assert!(ours.len() >= 2 * ROTS.len(), "{} of {FILES} files have a copy on our server", ours.len());

    // Found by readers.
    let (some, others) = ours.split_at(ROTS.len());
    spoil(&mut cluster, some);
    for ((file, chunk), rot) in some.iter().zip(ROTS) {
        let (data, status) = read_directly(&cluster, *chunk);
        assert!(contents[*file].starts_with(&data), "{rot:?}: a reader was given other bytes than were written");
        assert!(matches!(status, Status::CRC | Status::IO | Status::NOCHUNK), "{rot:?}: {status}");
    }
    everything_is_whole(&mount, &contents);
    wait_until_healed(&mut cluster, some, &mount);

    // Found by the scrub, with no reader in sight.
    cluster.layout().chunkserver_extra = "HDD_TEST_SPEED = 100\nHDD_MIN_TEST_INTERVAL = 1".into();
    let others = &others[..ROTS.len()];
    spoil(&mut cluster, others);
    wait_until_healed(&mut cluster, others, &mount);
    everything_is_whole(&mount, &contents);
    for (_, chunk) in others {
        let (_, status) = read_directly(&cluster, *chunk);
        assert!(!status.is_ok() || has_sound_copy(&cluster, *chunk), "chunk {chunk:016X} is rotten and was served");
    }
}

/// The file and the chunk of each file that has a copy on our server, by what lies on the disks.
fn files_with_a_copy_of_ours(cluster: &Cluster, contents: &[Vec<u8>]) -> Vec<(usize, u64)> {
    let mut found = Vec::new();
    for (chunk, copies) in cluster.copies() {
        if let Some(copy) = copies.iter().find(|copy| copy.server == OURS) {
            let bytes = std::fs::read(&copy.path).unwrap();
            let file = contents.iter().position(|content| bytes.ends_with(content));
            found.push((file.expect("every chunk is a file's"), chunk));
        }
    }
    found
}

/// Stops our server, changes a bit in each of these chunks, starts it again.
fn spoil(cluster: &mut Cluster, chunks: &[(usize, u64)]) {
    cluster.stop_chunkserver(OURS);
    let folder = cluster.data_folder(OURS);
    let copies = mooring_tests::copies::scan([(OURS, folder.as_path())]);
    for ((_, chunk), rot) in chunks.iter().zip(ROTS) {
        let path = &copies[chunk].first().unwrap().path;
        chunkfile::check(path).unwrap_or_else(|why| panic!("before it rots: {why}"));
        chunkfile::spoil(path, rot).unwrap();
        assert!(chunkfile::check(path).is_err(), "{rot:?}");
    }
    cluster.start_chunkserver(OURS);
}

fn has_sound_copy(cluster: &Cluster, chunk: u64) -> bool {
    let copies = cluster.copies();
    let ours = copies.get(&chunk).and_then(|copies| copies.iter().find(|copy| copy.server == OURS));
    ours.is_some_and(|copy| chunkfile::check(&copy.path).is_ok())
}

/// Until each of these chunks has two sound copies again. The rotten ones stay until the master has them removed, which
/// it does in its own time, but it must not count them.
fn wait_until_healed(cluster: &mut Cluster, chunks: &[(usize, u64)], mount: &Path) {
    wait_until("two sound copies of every chunk", HEALING_LIMIT, || {
        let copies = cluster.copies();
        let sound = |chunk: &u64| copies[chunk].iter().filter(|copy| chunkfile::check(&copy.path).is_ok()).count();
        chunks.iter().all(|(_, chunk)| sound(chunk) >= 2)
    });
    let files: Vec<PathBuf> = chunks.iter().map(|(file, _)| mount.join(file.to_string())).collect();
    let said_by = |tool: &str| {
        let output = cluster.command(tool).args(&files).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let valid_copies = 2 * chunks.len();
    if !comes_true(HEALING_LIMIT, || said_by("mfsfileinfo").matches("status:VALID").count() == valid_copies) {
        panic!("two valid copies of every chunk were expected, and mfsfileinfo says:\n{}", said_by("mfsfileinfo"));
    }
    let counted = said_by("mfscheckfile");
    assert_eq!(counted.matches("chunks with 2 copies:").count(), files.len(), "{counted}");
    let log = cluster.chunkserver(OURS).log_text();
    for (_, chunk) in chunks {
        let is_named = |line: &&str| line.contains(&format!("{chunk:016X}")) && line.contains("is damaged");
        assert!(log.lines().any(|line| is_named(&line)), "chunk {chunk:016X} is healed, and the log does not say why");
    }
}

fn everything_is_whole(mount: &Path, contents: &[Vec<u8>]) {
    for (number, content) in contents.iter().enumerate() {
        let found = std::fs::read(mount.join(number.to_string())).unwrap();
        assert!(found == *content, "file {number} has other bytes than were written");
    }
}

/// A read of a whole chunk from our server: the data that came, and the status at the end. Checks every sum.
fn read_directly(cluster: &Cluster, chunk: u64) -> (Vec<u8>, Status) {
    let (chunkid, version, size) = (ChunkId(chunk), Version::ANY, (BLOCKS * BLOCK_BYTES) as u32);
    let request = CltocsRead { with_proto: true, chunkid, version, offset: 0, size }.encode();
    let address = SocketAddrV4::new(chunkserver_address(OURS), CSSERV_PORT);
    let answer = cluster.exchange(address, &request, Duration::from_secs(2)).bytes;
    let (mut rest, mut data) = (&answer[..], Vec::new());
    while let Some(header) = rest.first_chunk::<HEADER_BYTES>().map(Header::decode) {
        let (packet, behind) = rest[HEADER_BYTES..].split_at(header.length as usize);
        rest = behind;
        match header.kind {
            CstoclReadData::TYPE => {
                let head = CstoclReadData::decode_head(header.length, &packet[..20]).unwrap();
                assert_eq!(head.crc.0, crc32fast::hash(&packet[20..]));
                data.extend_from_slice(&packet[20..]);
            }
            CstoclReadStatus::TYPE => return (data, CstoclReadStatus::decode(packet).unwrap().status),
            _ => {}
        }
    }
    panic!("no status came for chunk {chunk:016X}, but {} bytes", answer.len());
}
