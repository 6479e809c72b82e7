//! Starts of a master: what it loads, and what it refuses.

use meta::change::Change;
use meta::journal::{Outcome, format};

use super::super::recovery::older_journals;
use super::*;

/// Lines of these versions.
fn lines(versions: std::ops::Range<u64>, time: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for version in versions {
        format(version, time.into(), &Change::Idle {}, &Outcome::default(), &mut bytes);
    }
    bytes
}

/// A world whose master's folder has these files.
fn folder(files: Vec<(&'static str, Vec<u8>)>) -> (World, NodeId) {
    let world = World::new(31, sim::Settings::default());
    let master = world.node(MASTER);
    let put = |ring: Ring| async move {
        ring.mkdir(Path::new("/data"), 0o755).await.unwrap();
        for (name, bytes) in files {
            ring.write_file_durably(&Path::new("/data").join(name), 0o644, bytes).await.unwrap();
        }
    };
    world.run(master, put).unwrap();
    (world, master)
}

#[test]
fn journals_that_an_image_has_wholly_are_not_read() {
    let names = |files: Vec<(&'static str, Vec<u8>)>, from: Option<u64>| {
        let all: Vec<String> = files.iter().map(|(name, _)| (*name).to_owned()).collect();
        let (world, master) = folder(files);
        let older = world
            .run(master, |ring| async move { older_journals(&ring, Path::new("/data"), &all, from).await.unwrap() });
        let older = older.unwrap();
        older.into_iter().map(|(facts, _)| (facts.name, facts.versions.unwrap())).collect::<Vec<_>>()
    };
    let of = |name: &str, versions| (name.to_owned(), versions);
    let mut damaged = lines(1..9000, 5);
    damaged[100_000] ^= 1;
    let usual = || {
        vec![
            ("changelog.0.mfs", [lines(12_000..13_000, 7), vec![0; 4096]].concat()),
            ("changelog.1.mfs", lines(9000..12_000, 6)),
            ("changelog.2.mfs", damaged.clone()),
        ]
    };
    let both = [of("changelog.1.mfs", (9000, 11_999)), of("changelog.2.mfs", (1, 8999))];
    assert_eq!(names(usual(), Some(12_500)), both);
    // The newest file is read always; it goes on.
    assert_eq!(names(usual(), Some(13_000)), both);
    // The image lacks a line, or there is none that can be loaded.
    assert_eq!(names(usual(), Some(11_999)), both[1..]);
    assert_eq!(names(usual(), None), []);
    // Files that have lines in common may contradict each other.
    let shared = vec![("changelog.1.mfs", lines(10..30, 5)), ("changelog.2.mfs", lines(1..11, 6))];
    assert_eq!(names(shared, Some(100)), []);
    // What begins or ends with no line of ours may have any.
    let mut strange = usual();
    strange.push(("changelog.3.mfs", b"1: 5|IDLE()\n".to_vec()));
    assert_eq!(names(strange, Some(13_000)), []);
    let torn =
        vec![("changelog.1.mfs", lines(20..30, 5)), ("changelog.2.mfs", [lines(1..20, 5), b"20".to_vec()].concat())];
    assert_eq!(names(torn, Some(100)), []);
    // More versions from the first line to the last than there can be lines.
    let leap = vec![("changelog.1.mfs", [lines(1..2, 5), lines(90..91, 5)].concat())];
    assert_eq!(names(leap, Some(100)), []);
}

#[test]
fn metadata_older_than_those_seen_before_are_refused_until_a_person_decides() {
    let mut scene = Scene::new(14);
    let copy = |scene: &Scene, from: &'static str, to: &'static str| {
        scene
            .world
            .run(scene.master, move |ring| async move {
                let bytes = ring.read_file(Path::new(from)).await.unwrap();
                ring.write_file_durably(Path::new(to), 0o644, bytes).await.unwrap();
            })
            .unwrap();
    };
    copy(&scene, "/data/metadata.mfs.back", "/data/old");
    scene.play(21, |ring| async move { Peer::mount(&ring).await.create("file").await.unwrap() });
    scene.stop();
    scene
        .world
        .run(scene.master, |ring| async move {
            for entry in ring.list(Path::new("/data")).await.unwrap() {
                let name = entry.name.to_str().unwrap();
                if name.starts_with("metadata") || name.starts_with("changelog") {
                    ring.unlink(&Path::new("/data").join(name)).await.unwrap();
                }
            }
        })
        .unwrap();
    copy(&scene, "/data/old", "/data/metadata.mfs");
    let text = scene.refused_start();
    let (_, version) = text.split_once("--lose-changes-from=").expect("the way out is named");
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    scene.settings.lose_changes_from = Some(digits.parse().unwrap());
    scene.start();
    let found = scene.play(22, |ring| async move { Peer::mount(&ring).await.lookup("file").await.is_ok() });
    assert!(!found, "what was given up is gone");
}

#[test]
fn what_a_moosefs_master_wrote_is_neither_ignored_nor_taken_for_nothing() {
    let scene = Scene::new(17);
    scene.stop();
    let of_moosefs = |version: u64| {
        let bytes = [b"MFSM 2.0".as_slice(), &version.to_be_bytes(), &7u64.to_be_bytes(), b"SESS 1.2"].concat();
        let written = scene.world.run(scene.master, move |ring| async move {
            ring.write_file_durably(Path::new("/data/metadata.mfs.back"), 0o644, bytes).await.unwrap();
        });
        assert!(written.is_some());
    };
    of_moosefs(1_000_000);
    let text = scene.refused_start();
    assert!(text.contains("reaches change 999999") && text.contains("mooring import"), "{text}");
    of_moosefs(1);
    scene.start(); // older than ours
    scene.stop();
    let log = |name: &'static str, text: &'static str| {
        let written = scene.world.run(scene.master, move |ring| async move {
            ring.write_file_durably(&Path::new("/data").join(name), 0o644, text.into()).await.unwrap();
        });
        assert!(written.is_some());
    };
    log("changelog.3.mfs", "1000000: 1|ACCESS(1)\n1000001: 17952");
    let text = scene.refused_start();
    assert!(text.contains("changelog.3.mfs") && text.contains("reaches change 1000000"), "{text}");
    log("changelog.3.mfs", "1: 1|ACCESS(1)\n");
    scene.start();
    scene.stop();
    let kept = scene.world.run(scene.master, |ring| async move {
        let names = ring.list(Path::new("/data")).await.unwrap().into_iter().map(|entry| entry.name);
        let name = names.into_iter().find(|name| name.to_string_lossy().starts_with("changelog.3.mfs.of-moosefs-"));
        ring.read_file(&Path::new("/data").join(name.expect("it was renamed"))).await.unwrap()
    });
    assert_eq!(kept.as_deref(), Some(&b"1: 1|ACCESS(1)\n"[..]), "not cut off as if it were a torn line of ours");
    let removed = scene.world.run(scene.master, |ring| async move {
        for entry in ring.list(Path::new("/data")).await.unwrap() {
            if entry.name != "exports" {
                ring.unlink(&Path::new("/data").join(entry.name)).await.unwrap();
            }
        }
    });
    assert!(removed.is_some());
    of_moosefs(5);
    let text = scene.refused_start();
    assert!(text.contains("mooring import /data --to") && text.contains("MooseFS master"), "{text}");
    // A master that is killed in its first hour has a file that only asks for a new file system, and its changes.
    log("metadata.mfs.back", "MFSM NEW");
    log("changelog.0.mfs", "1: 1|SETMETAID(7)\n2: 1|ACCESS(1)\n");
    let text = scene.refused_start();
    assert!(text.contains("mooring import /data --to") && text.contains("start with -a"), "{text}");
    log("metadata.mfs", "MFSM NEW");
    let text = scene.refused_start();
    assert!(text.contains("changelog.0.mfs has the changes of an old one"), "{text}");
}

#[test]
fn a_damaged_note_of_how_far_the_metadata_came_is_not_taken_for_none() {
    let scene = Scene::new(16);
    scene.stop();
    let write = |bytes: &'static [u8]| {
        let note = Path::new("/data/.metadata.seen");
        let written = scene.world.run(scene.master, move |ring| async move {
            ring.write_file_durably(note, 0o644, bytes.to_vec()).await.unwrap();
        });
        assert!(written.is_some());
    };
    for damaged in [&b""[..], b"0123", b"xyz 17", b"0123 many"] {
        write(damaged);
        let text = scene.refused_start();
        assert!(text.contains("/data/.metadata.seen") && text.contains("remove that file"), "{text}");
    }
    let removed = scene.world.run(scene.master, |ring| async move {
        ring.unlink(Path::new("/data/.metadata.seen")).await.unwrap();
    });
    assert!(removed.is_some());
    scene.start();
}

#[test]
fn metadata_of_another_file_system_are_refused_until_a_person_decides() {
    let mut scene = Scene::new(15);
    scene.play(21, |ring| async move { Peer::mount(&ring).await.create("file").await.unwrap() });
    scene.stop();
    // What this folder was before: another file system, and further on.
    scene
        .world
        .run(scene.master, |ring| async move {
            let seen = b"00000000000000A7 1000\n".to_vec();
            ring.write_file_durably(Path::new("/data/.metadata.seen"), 0o644, seen).await.unwrap();
        })
        .unwrap();
    let text = scene.refused_start();
    let (_, found) = text.split_once("--accept-metaid=").expect("the way out is named");
    scene.settings.accept_metaid = Some(MetaId(u64::from_str_radix(&found[..16], 16).unwrap()));
    scene.start();
    scene.stop();
    scene.settings.accept_metaid = None;
    scene.start();
    let found = scene.play(22, |ring| async move { Peer::mount(&ring).await.lookup("file").await.is_ok() });
    assert!(found);
}
