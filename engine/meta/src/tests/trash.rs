//! Files that are removed: trash, sustained, gone.

use super::*;
use crate::smode;

fn meta_session(world: &mut World) -> Caller<'static> {
    let session = world.session_with(|params| params.root = Inode(0));
    Caller { session, ..world.root() }
}

#[test]
fn a_removed_file_waits_in_the_trash_until_its_time_has_passed() {
    let mut world = World::new();
    let directory = world.mkdir(ROOT, "d");
    let file = world.file(directory, "f");
    world.ns.truncate(&world.root(), file, 0, 500).unwrap();
    let meta = meta_session(&mut world);
    world.now += 100;
    world.ns.unlink(&world.root(), directory, b"f").unwrap();
    assert_eq!(world.ns.trash_list(meta.session, None).unwrap(), [(b"d|f".to_vec(), file)]);
    assert_eq!(world.ns.trash_list(meta.session, Some(file.0 % 4096)).unwrap().len(), 1);
    assert_eq!(world.ns.trash_path(meta.session, file), Ok(&b"d/f"[..]));
    let usage = world.ns.usage(world.session);
    assert_eq!((usage.inodes, usage.trash_bytes), (2, 500));
    let attr = world.ns.detached_attr(meta.session, file, 1).unwrap();
    assert_eq!((attr.kind, attr.nlink, attr.ctime.seconds()), (NodeKind::File, 0, world.now));
    assert_eq!(world.ns.detached_attr(meta.session, file, 2), Err(Status::ENOENT));
    assert_eq!(world.ns.detached_attr(meta.session, directory, 0), Err(Status::ENOENT));
    assert_eq!(world.ns.trash_list(world.session, None), Err(Status::EPERM));
    assert_eq!(world.ns.link(&world.root(), file, ROOT, b"l").unwrap_err(), Status::ENOENT);

    world.now += 86_400;
    for _ in 0..4096 {
        world.ns.tick_second(world.now);
    }
    assert_eq!(world.ns.trash_list(meta.session, None).unwrap().len(), 1, "exactly its time is not past it");
    world.ns.tick_second(world.now + 5000);
    assert_eq!(world.ns.trash_list(meta.session, None).unwrap(), []);
    assert_eq!(world.ns.usage(world.session).trash_bytes, 0);
    assert!(world.ns.take_removed_inodes().contains(&file));
    world.check_replay(&mut Vec::new());
}

#[test]
fn an_open_file_without_trash_time_stays_until_the_last_session_closes_it() {
    let mut world = World::new();
    world.ns.set_trash_time(&world.root(), ROOT, 0, smode::SET).unwrap();
    let opened = world.ns.create(&world.root(), ROOT, b"f", 0o600, 0).unwrap();
    let meta = meta_session(&mut world);
    world.ns.unlink(&world.root(), ROOT, b"f").unwrap();
    assert_eq!(world.ns.sustained_list(meta.session).unwrap(), [(b"f".to_vec(), opened.inode)]);
    assert!(world.ns.getattr(&world.root(), opened.inode, true).is_ok());
    assert!(world.ns.grant_write(world.now, opened.inode, 0, true, false).is_ok(), "it can still be written");
    world.ns.tick_second(world.now + 300);
    assert_eq!(world.ns.sustained_list(meta.session).unwrap().len(), 1);
    world.ns.sustained_inodes(world.now + 301, world.session, &[ROOT]);
    world.ns.tick_second(world.now + 600);
    assert_eq!(world.ns.sustained_list(meta.session).unwrap(), []);
    assert_eq!(world.ns.getattr(&world.root(), opened.inode, true), Err(Status::ENOENT));
    assert_eq!(world.ns.take_released_chunks(), [wire::ChunkId(1)]);
    world.check_replay(&mut Vec::new());
}

#[test]
fn a_file_comes_back_to_its_path_and_missing_directories_are_made() {
    let mut world = World::new();
    let (a, meta) = (world.mkdir(ROOT, "a"), meta_session(&mut world));
    let b = world.mkdir(a, "b");
    let (file, other) = (world.file(b, "f"), world.file(b, "g"));
    let root = world.root();
    for name in [b"f", b"g"] {
        world.ns.unlink(&root, b, name).unwrap();
    }
    world.ns.rmdir(&root, a, b"b").unwrap();
    world.ns.undelete(&meta, file).unwrap();
    assert_eq!(world.ns.paths(world.session, file).unwrap(), [b"a/b/f".to_vec()]);
    let made = world.lookup(a, "b").unwrap();
    assert_eq!(world.attr(made).mode, 0o755);
    let mut check = |path: &[u8], expected: Status| {
        world.ns.set_trash_path(&meta, other, path).unwrap();
        let done = world.ns.undelete(&meta, other);
        assert_eq!(done, expected.into_result(), "{}", path.escape_ascii());
    };
    check(b"a/b/f", Status::EEXIST);
    check(b"a/b/f/x", Status::CANTCREATEPATH);
    check(b"a//x", Status::CANTCREATEPATH);
    check(b"a/../x", Status::CANTCREATEPATH);
    check(b"/top\0\0", Status::OK);
    assert_eq!(world.lookup(ROOT, "top"), Ok(other));
    assert_eq!(world.ns.set_trash_path(&meta, other, b"x"), Err(Status::ENOENT), "it is no trash any more");
    assert_eq!(world.ns.purge(&meta, other), Err(Status::ENOENT));
    check_figures(&mut world.ns);
    world.check_replay(&mut Vec::new());
}

#[test]
fn purging_an_open_file_leaves_it_to_those_who_have_it_open() {
    let mut world = World::new();
    let opened = world.ns.create(&world.root(), ROOT, b"f", 0o600, 0).unwrap();
    let meta = meta_session(&mut world);
    world.ns.unlink(&world.root(), ROOT, b"f").unwrap();
    world.ns.purge(&meta, opened.inode).unwrap();
    assert_eq!(world.ns.sustained_list(meta.session).unwrap().len(), 1);
    world.ns.session_remove(world.now, world.session).unwrap();
    world.ns.tick_second(world.now + 1);
    world.ns.tick_second(world.now + 300);
    assert_eq!(world.ns.sustained_list(meta.session).unwrap(), []);
    world.check_replay(&mut Vec::new());
}

#[test]
fn a_long_path_is_remembered_from_its_end() {
    let mut world = World::new();
    let mut directory = ROOT;
    for n in 0..6 {
        directory = world.mkdir(directory, &format!("{n}{}", "x".repeat(200)));
    }
    let file = world.file(directory, "end");
    let meta = meta_session(&mut world);
    world.ns.unlink(&world.root(), directory, b"end").unwrap();
    let path = world.ns.trash_path(meta.session, file).unwrap();
    assert_eq!(path.len(), 1024);
    assert!(path.ends_with(b"/end"));
    let (listed, _) = &world.ns.trash_list(meta.session, None).unwrap()[0];
    assert_eq!(listed.len(), 240);
    assert!(listed.starts_with(b"(...)x") && listed.ends_with(b"|end"));
}
