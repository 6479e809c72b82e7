//! A file of MooseFS's comes in whole or not at all, and goes out as it came.

use super::*;
use crate::namespace::{Namespace, Policy};

const NOW: u32 = 1_795_300_000;

fn load(bytes: &[u8]) -> Result<Namespace, StockError> {
    let mut loader = Loader::new();
    for piece in bytes.chunks(1000) {
        loader.push(piece)?;
    }
    loader.finish(Policy::default(), NOW).map(|imported| imported.namespace)
}

/// Some of everything, by the lines of a MooseFS master.
fn filled() -> Namespace {
    let mut namespace = Namespace::new(MetaId(0x1234_5678_9ABC_DEF0), Policy::default(), NOW - 1000);
    let lines = "\
        2: 1795299000|SESADD(#18432386147808961246,1,8,0022,0,0,999,999,1,9,0,4294967295,0x00000000,2130706433,/mnt/x):1\n\
        3: 1795299001|CREATE(1,d,2,493,18,5,6,0):2\n\
        4: 1795299002|CREATE(2,f%2C%FF,1,420,18,5,6,0):3\n\
        5: 1795299003|WRITE(3,0,1,1):1\n\
        6: 1795299003|WRITE(3,2,1,1):2\n\
        7: 1795299004|LENGTH(3,150000000,1)\n\
        8: 1795299004|UNLOCK(1)\n\
        9: 1795299005|LINK(3,1,again)\n\
        10: 1795299006|SYMLINK(1,s,to/it,0,0):4\n\
        11: 1795299007|CREATE(1,dev,6,384,0,0,0,66307):5\n\
        12: 1795299008|SETXATTR(3,user.x,v%00,0)\n\
        13: 1795299009|SETACL(3,420,1,1,6,4,4,7,1,0,%00%00%00%05%00%07)\n\
        14: 1795299010|QUOTA(2,0,49,0,100,200,0,10737418240,0,0,0,0,604800)\n\
        15: 1795299011|SCSET(fast,1,W1,K2,A1,2,30,1,1,0,0,0,1,2,0,0,0,0,0,0,4,0,0,0):10\n\
        16: 1795299012|SETSCLASS(3,0,10,10,0):1,0,0\n\
        17: 1795299013|CREATE(1,gone,1,420,18,0,0,0):6\n\
        18: 1795299013|CREATE(1,held,1,420,18,0,0,0):7\n\
        19: 1795299013|SETTRASHTIME(7,0,0,0):1,0,0\n\
        20: 1795299014|ACQUIRE(1,7)\n\
        21: 1795299014|FLOCK(7,1,77,W)\n\
        22: 1795299014|POSIXLOCK(7,1,78,R,0,10,4711)\n\
        23: 1795299015|UNLINK(1,gone):6\n\
        24: 1795299015|UNLINK(1,held):7\n\
        25: 1795299016|CREATE(1,fifo,4,420,0,0,0,0):8\n\
        26: 1795299016|UNLINK(1,fifo):8\n\
        27: 1795299017|CSDBOP(0,169090561,9422,3)\n\
        28: 1795299018|SNAPSHOT(2,1,copy,0,8,0,[0],18):3,0,0,0,0,2\n";
    let lines = lines.replace("    ", "");
    let replayed = changelog::replay(&mut namespace, lines.as_bytes(), 0);
    assert_eq!(replayed.map_err(|error| error.to_string()), Ok(27));
    namespace
}

#[test]
fn what_goes_out_comes_back_the_same() {
    let namespace = filled();
    let bytes = to_bytes(&namespace, NOW - 1000);
    let back = load(&bytes).unwrap();
    assert_eq!(back.digest(), namespace.digest());
    assert_eq!((back.meta_id(), back.version()), (namespace.meta_id(), namespace.version()));
    assert_eq!(header(&bytes).map(|header| header.version), Some(29));
    assert_eq!(to_bytes(&back, NOW - 1000), bytes);
}

#[test]
fn a_hole_of_a_large_file_goes_out_in_pieces() {
    let mut namespace = filled();
    let index = 3_000_000; // 24 MB of zeros in front of one chunk
    let line = format!("29: 1795299020|WRITE(3,{index},1,1):3\n");
    assert_eq!(changelog::replay(&mut namespace, line.as_bytes(), 0), Ok(1));
    let (mut largest, mut total) = (0, 0);
    let mut loader = Loader::new();
    let written = write(&namespace, NOW - 1000, &mut |piece| {
        (largest, total) = (largest.max(piece.len()), total + piece.len());
        loader.push(piece)
    });
    assert_eq!(written, Ok(()));
    assert!(total > 8 * index && largest < 2 << 20, "{total} bytes in pieces of up to {largest}");
    assert_eq!(loader.finish(Policy::default(), NOW).unwrap().namespace.digest(), namespace.digest());
}

#[test]
fn what_came_in_is_an_image_of_ours() {
    let mut namespace = load(&to_bytes(&filled(), 0)).unwrap();
    let image = crate::image::to_bytes(&namespace.freeze(), NOW);
    assert_eq!(crate::image::load(&image, Policy::default()).unwrap().digest(), namespace.digest());
}

#[test]
fn a_file_that_ends_anywhere_is_refused() {
    let bytes = to_bytes(&filled(), 0);
    for end in 0..bytes.len() {
        assert!(load(&bytes[..end]).is_err(), "cut at {end}");
    }
    let longer = [&bytes[..], b"x"].concat();
    assert!(matches!(load(&longer), Err(StockError::Trailing { .. })));
}

#[test]
fn no_damaged_byte_makes_a_panic() {
    let bytes = to_bytes(&filled(), 0);
    let mut refused = 0;
    for at in 0..bytes.len() {
        {
            let flip = [0x01, 0x80, 0xFF][at % 3];
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            match load(&damaged) {
                Err(error) => {
                    refused += 1;
                    assert!(!error.to_string().is_empty());
                }
                // What it still holds must be something that an image of ours can hold.
                Ok(mut namespace) => {
                    let image = crate::image::to_bytes(&namespace.freeze(), NOW);
                    let again = crate::image::load(&image, Policy::default());
                    assert!(again.is_ok(), "byte {at} by {flip:02X}: {:?}", again.err());
                }
            }
            let mut dump = Dump::new(true, None);
            let _ = dump.push(&damaged);
        }
    }
    assert!(refused > bytes.len() / 16, "only {refused} of {} damages were noticed", bytes.len());
}

#[test]
fn a_file_of_moosefs_4_is_refused_by_name() {
    let mut bytes = to_bytes(&filled(), 0);
    let at = bytes.windows(4).position(|letters| letters == b"SCLA").unwrap();
    bytes[at + 7] = b'<';
    assert_eq!(load(&bytes).unwrap_err(), StockError::Newer { section: Section::Classes, layout: 0x1C });
    bytes[at..at + 4].copy_from_slice(b"PATT");
    assert!(matches!(load(&bytes), Err(StockError::UnknownSection { .. })));
}

#[test]
fn lines_that_are_not_known_are_refused_by_name_and_line() {
    let mut namespace = filled();
    let refused = changelog::replay(&mut namespace, b"29: 1795299020|SETGOAL(3,0,2,0):1,0,0\n", 6).unwrap_err();
    assert!(refused.to_string().contains("line 7: change 29 (SETGOAL)"), "{refused}");
    let gap = changelog::replay(&mut namespace, b"31: 1795299020|ACCESS(3)\n", 0).unwrap_err();
    assert!(gap.to_string().contains("mfsmaster -a"), "{gap}");
    assert_eq!(changelog::replay(&mut namespace, b"28: 1|X()\n29: 1795299020|ACCESS(3)\n30: 17952", 0), Ok(1));
}

/// `sessions.mfs` of 1.6: session 4 of 127.0.0.1, mounted at /m.
fn sessions_of_1_6() -> Vec<u8> {
    let word = |value: u32, out: &mut Vec<u8>| out.extend_from_slice(&value.to_be_bytes());
    let mut sessions = b"MFSS \x01\x06\x04\0\x01".to_vec();
    for value in [4, 2, 0x7F00_0001, 1] {
        word(value, &mut sessions);
    }
    sessions.extend_from_slice(&[0, 1, 9]);
    for value in [0, u32::MAX, 0, 0, 0, 0, 11, 12] {
        word(value, &mut sessions);
    }
    sessions.extend_from_slice(b"/m");
    sessions
}

#[test]
fn sessions_of_a_master_before_2_0_are_not_mixed_into_a_later_file() {
    let bytes = to_bytes(&filled(), 0);
    let mut loader = Loader::new();
    loader.sessions(&sessions_of_1_6()).unwrap();
    loader.push(&bytes).unwrap();
    let imported = loader.finish(Policy::default(), NOW).unwrap().namespace;
    assert_eq!(imported.digest(), load(&bytes).unwrap().digest());
}

#[test]
fn runs_of_lines_end_at_gaps_and_damage_and_only_a_last_line_is_torn() {
    use crate::journal::{JournalError, SurveyEnd};
    let check = |text: &str, expected: &[(Option<(u64, u64)>, SurveyEnd)]| {
        let parts = changelog::parts(text.as_bytes());
        let found: Vec<_> = parts.iter().map(|part| (part.versions, part.end)).collect();
        assert_eq!(found, expected, "{text:?}");
        let lines = |range: std::ops::Range<usize>| text[range].lines().filter(|line| line.contains("|X")).count();
        for part in parts {
            let count = part.versions.map_or(0, |(first, last)| last - first + 1);
            assert!(lines(part.bytes.clone()) as u64 == count, "{text:?}: {part:?}");
        }
    };
    let damaged = SurveyEnd::Damaged(JournalError::NoLine);
    check("", &[(None, SurveyEnd::Clean)]);
    check("5: 1|X()\n6: 1|X(a):1,2\n", &[(Some((5, 6)), SurveyEnd::Clean)]);
    check("5: 1|X()\n6: 1|X(", &[(Some((5, 5)), SurveyEnd::Torn)]);
    check("5: 1|X()\n6: 1|Y()", &[(Some((5, 5)), SurveyEnd::Torn)]);
    check("5: 1|X()\n\0\0\0\0", &[(Some((5, 5)), SurveyEnd::Torn)]);
    check("5: 1|X()\n6: 1|Y(\n", &[(Some((5, 5)), SurveyEnd::Torn)]);
    check("6: 1|Y(", &[(None, SurveyEnd::Torn)]);
    // More than one line is gone, or more than a line can be.
    check("5: 1|X()\n6: 1|Y(\n7: 1|Y(\n", &[(Some((5, 5)), damaged)]);
    check("6: 1|Y(\n7: 1|Y(\n", &[(None, damaged)]);
    check(&format!("5: 1|X()\n{}", "\0".repeat(100_000)), &[(Some((5, 5)), damaged)]);
    check("5: 1|X()\n6: 1|Y(7: 1|X)\n", &[(Some((5, 6)), SurveyEnd::Clean)]);
    let apart = (Some((8, 8)), SurveyEnd::Clean);
    let gap = SurveyEnd::Gap { expected: 6, found: 8 };
    check("5: 1|X()\n8: 1|X()\n", &[(Some((5, 5)), gap), apart]);
    for middle in
        ["6: 1|Y(\n", "\n", "6: |Y()\n", "6: 1|Y():\n", "6: 1|()\n", "6 1|Y()\n", "06: 1|Y()\n", "6: 1|Y()\0\n"]
    {
        check(&format!("5: 1|X()\n{middle}8: 1|X()\n"), &[(Some((5, 5)), damaged), apart]);
    }
    // A line that hides in damage between two that follow each other: something was there.
    check("5: 1|X()\n?\n6: 1|X()\n", &[(Some((5, 5)), damaged), (Some((6, 6)), SurveyEnd::Clean)]);
    // The last of all numbers has none that follows.
    check("18446744073709551615: 1|Y()\n5: 1|X()\n", &[(Some((5, 5)), SurveyEnd::Clean)]);
}

#[test]
fn a_repaired_chunk_gets_the_version_that_the_line_gives_as_its_result() {
    let mut namespace = filled();
    assert_eq!(
        changelog::replay(&mut namespace, b"29: 1795299020|REPAIR(3,0):7\n30: 1795299021|REPAIR(3,2):0\n", 0),
        Ok(2)
    );
    let file = *namespace.state.node(3).unwrap();
    assert_eq!(namespace.state.chunks.at(namespace.state.chunk_of(&file, 0)).version.0, 7);
    assert_eq!((namespace.state.chunk_of(&file, 2), namespace.state.times(&file).mtime.seconds()), (0, 1_795_299_021));
    for bad in ["REPAIR(3,0)", "REPAIR(3):1", "REPAIR(3,0):", "REPAIR(3,0):-1", "REPAIR(3,0,1):1", "REPAIR(3,0):1,2"] {
        let refused = changelog::replay(&mut namespace, format!("31: 1795299020|{bad}\n").as_bytes(), 0);
        assert!(matches!(refused, Err(changelog::ChangelogError::Unknown { .. })), "{bad}: {refused:?}");
    }
}

/// A file of 1.6 as the specification describes it: root, a file of two names in an entry list without ids.
#[test]
fn a_file_of_1_6_comes_in() {
    let mut out = b"MFSM 1.5".to_vec();
    let word = |value: u32, out: &mut Vec<u8>| out.extend_from_slice(&value.to_be_bytes());
    word(9, &mut out);
    out.extend_from_slice(&77u64.to_be_bytes());
    word(5, &mut out);
    let node = |kind: u8, inode: u32, mode: u16, out: &mut Vec<u8>| {
        out.push(kind);
        word(inode, out);
        out.push(2);
        out.extend_from_slice(&mode.to_be_bytes());
        for value in [1, 2, 100, 200, 300, 7201] {
            word(value, out);
        }
    };
    node(b'd', 1, 0o755, &mut out);
    node(b'f', 2, 0x1000 | 0o644, &mut out);
    out.extend_from_slice(&5u64.to_be_bytes());
    word(1, &mut out);
    out.extend_from_slice(&[0, 1]);
    out.extend_from_slice(&3u64.to_be_bytes());
    word(4, &mut out);
    out.push(0);
    for name in [b"one", b"two"] {
        word(1, &mut out);
        word(2, &mut out);
        out.extend_from_slice(&[0, 3]);
        out.extend_from_slice(name);
    }
    out.extend_from_slice(&[0; 10]);
    word(1, &mut out);
    word(7, &mut out);
    word(50, &mut out);
    out.extend_from_slice(&8u64.to_be_bytes());
    out.extend_from_slice(&3u64.to_be_bytes());
    word(6, &mut out);
    word(0, &mut out);
    out.extend_from_slice(&[0; 16]);

    let mut loader = Loader::new();
    loader.sessions(&sessions_of_1_6()).unwrap();
    loader.push(&out).unwrap();
    let mut namespace = loader.finish(Policy::default(), NOW).unwrap().namespace;
    let state = &namespace.state;
    let file = *state.node(2).unwrap();
    assert_eq!((file.mode(), file.eattr(), file.links, state.trash_hours(&file)), (0o644, 1, 2, 3));
    assert_eq!(state.find_child(1, b"two"), Some(2));
    assert_eq!(state.chunks.at(state.chunk_of(&file, 0)).version.0, 6);
    assert!(state.is_open_by(wire::SessionId(4), 2));
    assert_eq!((namespace.version(), namespace.meta_id()), (77, MetaId(0)));
    name(&mut namespace, MetaId(9), NOW);
    assert_eq!((namespace.version(), namespace.meta_id()), (78, MetaId(9)));
    for end in 0..out.len() {
        let mut cut = Loader::new();
        assert!(cut.push(&out[..end]).is_err() || cut.finish(Policy::default(), NOW).is_err(), "cut at {end}");
    }
}
