//! Images: what is damaged is named, and what was written comes back.

use super::*;
use crate::image::{self, ImageError, Loader, Section};
use crate::{open_flags, smode};

/// A state in which every kind of record occurs.
fn full_world() -> World {
    use crate::acl::{ACCESS, Acl, DEFAULT};
    let mut world = World::new();
    let root = world.root();
    let directory = world.mkdir(ROOT, "d");
    let file = world.file(directory, "f");
    for index in [0, 1, 5] {
        world.ns.grant_write(START, file, index, true, false).unwrap();
    }
    let other = world.file(ROOT, "other");
    world.ns.append_slice(&root, 0, other, file, (0, 1)).unwrap();
    world.ns.link(&root, file, ROOT, b"link").unwrap();
    world.ns.link(&root, file, directory, b"third").unwrap();
    world.ns.symlink(&root, ROOT, b"sym", b"target").unwrap();
    world.ns.mknod(&root, ROOT, b"dev", NodeKind::CharDevice, 0o600, 0, 5).unwrap();
    world.ns.mknod(&root, ROOT, b"fifo", NodeKind::Fifo, 0o600, 0, 0).unwrap();
    world.ns.set_xattr(&root, file, false, b"user.x", b"value", 0).unwrap();
    let acl = Acl { user: 7, group: 5, other: 0, mask: 7, users: vec![(1, 2)], groups: vec![(3, 4)] };
    world.ns.set_acl(&root, file, ACCESS, &acl).unwrap();
    world.ns.set_acl(&root, directory, DEFAULT, &acl).unwrap();
    let limits = crate::quota::Limits { inodes: 100, length: 1 << 40, size: 0, realsize: 0 };
    world.ns.set_quota(&root, directory, 0x33, Some((limits, limits, 60))).unwrap();
    let class = crate::class::StorageClass { name: b"ssd".to_vec(), ..crate::class::StorageClass::simple_goal(2) };
    world.ns.class_create(&root, &class).unwrap();
    world.ns.open(&root, file, open_flags::READ).unwrap();
    let request = crate::LockRequest { session: world.session, owner: 1, msgid: 1, reqid: 1 };
    world.ns.flock(START, file, request, crate::flock_command::LOCK_SHARED);
    let range = crate::RangeWanted { pid: 5, kind: crate::posix_type::READ, start: 5, end: 50 };
    world.ns.posix_lock(START, file, request, crate::posix_command::SET, &range);
    world.ns.server_op(START, 0, wire::Ip4(0x7F00_0001), 9422, 1).unwrap();
    for n in 0..3 {
        world.file(ROOT, &format!("trash{n}"));
        world.ns.unlink(&root, ROOT, format!("trash{n}").as_bytes()).unwrap();
    }
    let kept = world.ns.create(&root, ROOT, b"kept", 0o600, 0).unwrap().inode;
    world.ns.set_trash_time(&root, kept, 0, smode::SET).unwrap();
    world.ns.unlink(&root, ROOT, b"kept").unwrap();
    world.mkdir(ROOT, "gone");
    world.ns.rmdir(&root, ROOT, b"gone").unwrap();
    world
}

#[test]
fn an_image_comes_back_the_same_whatever_the_pieces_it_is_read_in() {
    let mut world = full_world();
    world.check_replay(&mut Vec::new());
    let bytes = image::to_bytes(&world.ns.freeze(), 5);
    for piece in [1, 7, 64, 1000, bytes.len()] {
        let mut loader = Loader::new(bytes.len() as u64);
        for piece in bytes.chunks(piece) {
            loader.push(piece).unwrap();
        }
        let loaded = loader.finish(Policy::default()).unwrap();
        assert_eq!(loaded.digest(), world.ns.digest());
    }
    let header = image::ImageHeader::decode(&bytes).unwrap();
    assert_eq!((header.meta_id, header.version, header.written_at), (META_ID, world.ns.version(), 5));
}

#[test]
fn a_loaded_state_goes_on_as_the_old_one_would() {
    let mut world = full_world();
    let bytes = image::to_bytes(&world.ns.freeze(), 5);
    let mut again = World { ns: image::load(&bytes, Policy::default()).unwrap(), ..World::new() };
    again.session = world.session;
    for world in [&mut world, &mut again] {
        let directory = world.lookup(ROOT, "d").unwrap();
        world.file(directory, "after");
        world.ns.rename(&world.root(), (directory, b"third"), (ROOT, b"moved")).unwrap();
        world.ns.unlink(&world.root(), ROOT, b"link").unwrap();
        world.ns.tick_second(START + 200_000);
        world.ns.tick_minute(START + 400_000);
        check_figures(&mut world.ns);
    }
    assert_eq!(world.ns.digest(), again.ns.digest());
    assert_eq!(world.list(ROOT), again.list(ROOT));
}

#[test]
fn a_cut_image_is_named_truncated_and_a_changed_byte_damaged() {
    let mut world = full_world();
    let bytes = image::to_bytes(&world.ns.freeze(), 5);
    for cut in 0..bytes.len() {
        let error = image::load(&bytes[..cut], Policy::default()).unwrap_err();
        let named = matches!(error, ImageError::Truncated { .. });
        assert!(named, "cut at {cut}: {error}");
    }
    for at in (0..bytes.len()).step_by(3) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        assert!(image::load(&damaged, Policy::default()).is_err(), "byte {at}");
    }
    let longer = [&bytes[..], b"x"].concat();
    assert!(matches!(image::load(&longer, Policy::default()), Err(ImageError::Trailing { .. })));
    let newer = [&bytes[..11], &[9], &bytes[12..]].concat();
    assert_eq!(image::load(&newer, Policy::default()).unwrap_err(), ImageError::Header);
    assert_eq!(image::load(b"MFSM 2.0", Policy::default()).unwrap_err(), ImageError::NotAnImage);
}

#[test]
fn records_that_contradict_each_other_are_refused_though_their_checksums_hold() {
    let mut world = full_world();
    let bytes = image::to_bytes(&world.ns.freeze(), 5);
    let mut random = crate::random::Random::new(11);
    let mut refused = std::collections::BTreeSet::new();
    for _ in 0..800 {
        // One byte of one frame's payload changes, and its checksum with it.
        let mut frames = Vec::new();
        let mut at = image::ImageHeader::BYTES;
        while at < bytes.len() {
            let length = u32::from_be_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
            frames.push(at..at + 12 + length);
            at += 12 + length;
        }
        let frame = random.pick(&frames).clone();
        let mut forged = bytes.clone();
        let place = frame.start + 12 + random.below(frame.len() as u64 - 12) as usize;
        forged[place] ^= 1 << random.below(8);
        let sum = crc32c::crc32c_append(
            crc32c::crc32c(&forged[frame.start..frame.start + 8]),
            &forged[frame.start + 12..frame.end],
        );
        forged[frame.start + 8..frame.start + 12].copy_from_slice(&sum.to_be_bytes());
        match image::load(&forged, Policy::default()) {
            Err(ImageError::Malformed { section, .. }) => {
                refused.insert(section);
            }
            Err(ImageError::Digest { .. } | ImageError::Truncated { .. } | ImageError::Checksum { .. }) => {}
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("a forged image was taken, byte {place}"),
        }
    }
    for section in [Section::Chunks, Section::Nodes, Section::Slots, Section::Edges, Section::Free] {
        assert!(refused.contains(&section), "{section}: {refused:?}");
    }
}

#[test]
fn a_name_or_a_chunk_that_occurs_twice_is_refused() {
    let mut world = World::new();
    for name in ["one", "two"] {
        let file = world.file(ROOT, name);
        world.ns.grant_write(START, file, 0, true, false).unwrap();
    }
    let bytes = image::to_bytes(&world.ns.freeze(), 5);
    let chunk = |id: u64| [&id.to_be_bytes()[..], &1u32.to_be_bytes()].concat();
    let names = forge(&bytes, Section::Edges, b"two", b"one");
    let chunks = forge(&bytes, Section::Chunks, &chunk(2), &chunk(1));
    for forged in [names, chunks] {
        let error = image::load(&forged, Policy::default()).unwrap_err();
        assert!(matches!(error, ImageError::Malformed { what, .. } if what.contains("occurs twice")), "{error}");
    }
}

/// Replaces bytes that occur once in the frames of a section, and puts the frame's checksum right.
fn forge(bytes: &[u8], section: Section, from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut forged = bytes.to_vec();
    let mut at = image::ImageHeader::BYTES;
    while at < bytes.len() {
        let length = u32::from_be_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        let payload = at + 12..at + 12 + length;
        let found = bytes[payload.clone()].windows(from.len()).position(|window| window == from);
        if let (true, Some(place)) = (bytes[at..at + 4] == section.letters()[..], found) {
            forged[payload.start + place..payload.start + place + to.len()].copy_from_slice(to);
            let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[at..at + 8]), &forged[payload.clone()]);
            forged[at + 8..at + 12].copy_from_slice(&sum.to_be_bytes());
            return forged;
        }
        at = payload.end;
    }
    panic!("not in the image");
}

#[test]
fn directories_of_a_loaded_state_have_the_sums_that_they_had() {
    let mut world = full_world();
    let mut directories = vec![ROOT];
    for n in 0..300 {
        // Chains and bushes, so that inode numbers do not tell what lies below what.
        let parent = directories[(n * 7919) % directories.len()];
        let directory = world.mkdir(parent, &format!("dir{n}"));
        let file = world.file(directory, "file");
        world.ns.grant_write(START, file, (n % 3) as u32, true, false).unwrap();
        world.ns.link(&world.root(), file, ROOT, format!("link{n}").as_bytes()).unwrap();
        directories.push(directory);
    }
    let (low, high) = (directories[17], directories[250]);
    world.ns.rename(&world.root(), (ROOT, b"d"), (high, b"moved")).unwrap();
    world.ns.symlink(&world.root(), low, b"sym", b"somewhere").unwrap();
    let loaded = image::load(&image::to_bytes(&world.ns.freeze(), 5), Policy::default()).unwrap();
    for directory in directories {
        assert_eq!(loaded.state.figures(directory.0), world.ns.state.figures(directory.0), "{directory:?}");
    }
}

#[test]
fn a_frozen_state_is_not_touched_by_what_comes_after() {
    let mut world = full_world();
    let before = world.ns.digest();
    let snapshot = world.ns.freeze();
    for n in 0..3000 {
        world.file(ROOT, &format!("x{n}"));
    }
    world.ns.unlink(&world.root(), ROOT, b"other").unwrap();
    assert_eq!(snapshot.digest(), before);
    assert_eq!(image::load(&image::to_bytes(&snapshot, 1), Policy::default()).unwrap().digest(), before);
    assert_ne!(world.ns.digest(), before);
}
