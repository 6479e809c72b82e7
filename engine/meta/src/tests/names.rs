//! Names: creating, linking, moving, removing, listing.

use super::*;
use crate::node::eattr;
use crate::{READDIR_END, readdir_flags, smode};

#[test]
fn a_new_entry_is_tested_in_the_order_of_the_specification() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let closed = world.mkdir(ROOT, "closed");
    world.owned(closed, 1, 1, 0o500);
    let user = world.caller(10, &[10]);
    let mut check = |parent: Inode, name: &[u8], kind: NodeKind, expected: Status| {
        let made = world.ns.mknod(&user, parent, name, kind, 0o600, 0, 0);
        assert_eq!(made.map_or_else(|status| status, |_| Status::OK), expected, "{parent} {}", name.escape_ascii());
    };
    check(Inode(99), b"", NodeKind::Trash, Status::EINVAL);
    check(Inode(99), b"", NodeKind::File, Status::ENOENT);
    check(file, b"", NodeKind::File, Status::ENOTDIR);
    check(closed, b"", NodeKind::File, Status::EACCES);
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
        check(ROOT, name, NodeKind::File, Status::EINVAL);
    }
    check(ROOT, b"f", NodeKind::Directory, Status::EEXIST);
    check(ROOT, &[0xFF; 255], NodeKind::Socket, Status::OK);
}

#[test]
fn new_nodes_take_umask_group_class_and_trash_time_as_told() {
    let mut world = World::new();
    world.session = world.session_with(|params| params.umask = 0o007);
    let directory = world.mkdir(ROOT, "d");
    world.owned(directory, 1, 77, 0o2777);
    world.ns.set_class(&world.root(), directory, crate::ClassChange::Goal(4), smode::SET).unwrap();
    world.ns.set_trash_time(&world.root(), directory, 7200, smode::SET).unwrap();
    let user = world.caller(10, &[20]);
    let (file, attr) = world.ns.mknod(&user, directory, b"f", NodeKind::File, 0o7777, 0o070, 0).unwrap();
    assert_eq!((attr.mode, attr.uid, attr.gid), (0o7700, 10, 77));
    let node = world.ns.state.at(file.0);
    assert_eq!((node.class, world.ns.state.trash_hours(node)), (4, 2));
    let (_, attr) = world.ns.mkdir(&user, directory, b"with", 0o777, 0, true).unwrap();
    assert_eq!((attr.mode, attr.gid, attr.nlink), (0o2770, 77, 2));
    let (_, attr) = world.ns.mkdir(&user, directory, b"without", 0o777, 0, false).unwrap();
    assert_eq!(attr.mode, 0o770);
    let (device, attr) = world.ns.mknod(&user, directory, b"dev", NodeKind::BlockDevice, 0o600, 0, 0x0801).unwrap();
    assert_eq!((attr.rdev(), attr.extra), (0x0801, 0x0801 << 32));
    let node = world.ns.state.at(device.0);
    assert_eq!((node.class, world.ns.state.trash_hours(node)), (0, 24));
    let (link, attr) = world.ns.symlink(&user, directory, b"l", b"where/to\0\0").unwrap();
    assert_eq!((attr.mode, attr.extra), (0o777, 8));
    assert_eq!(world.ns.readlink(&user, link).unwrap(), b"where/to");
    assert_eq!(world.ns.readlink(&user, file), Err(Status::EINVAL));
    assert_eq!(world.attr(directory).nlink, 4);
}

#[test]
fn all_links_of_a_file_are_equal_and_the_last_one_ends_it() {
    let mut world = World::new();
    let directory = world.mkdir(ROOT, "d");
    let file = world.file(ROOT, "a");
    let root = world.root();
    world.ns.link(&root, file, directory, b"b").unwrap();
    world.ns.link(&root, file, directory, b"c").unwrap();
    assert_eq!(world.attr(file).nlink, 3);
    assert_eq!(world.ns.link(&root, file, directory, b"c").unwrap_err(), Status::EEXIST);
    assert_eq!(world.ns.link(&root, directory, ROOT, b"x").unwrap_err(), Status::EPERM);
    assert_eq!(world.ns.paths(world.session, file).unwrap(), [&b"d/c"[..], b"d/b", b"a"].map(<[u8]>::to_vec));
    assert_eq!(world.ns.parents(world.session, file).unwrap(), [directory, directory, ROOT]);
    world.ns.truncate(&root, file, 0, 1000).unwrap();
    assert_eq!(world.ns.dir_stats(world.session, directory).unwrap().length, 2000, "each path counts");
    assert_eq!(world.ns.dir_stats(world.session, ROOT).unwrap().length, 3000);
    world.ns.unlink(&root, directory, b"b").unwrap();
    world.ns.unlink(&root, ROOT, b"a").unwrap();
    assert_eq!(world.attr(file).nlink, 1);
    assert_eq!(world.ns.paths(world.session, file).unwrap(), [b"d/c".to_vec()]);
    check_figures(&mut world.ns);
    world.check_replay(&mut Vec::new());
}

#[test]
fn too_many_links_are_refused() {
    let mut world = World::new();
    world.ns.set_policy(Policy { hard_links_max: 8, ..Policy::default() });
    let file = world.file(ROOT, "f");
    for n in 1..8 {
        world.ns.link(&world.root(), file, ROOT, format!("l{n}").as_bytes()).unwrap();
    }
    assert_eq!(world.ns.link(&world.root(), file, ROOT, b"more").unwrap_err(), Status::NOSPACE);
}

#[test]
fn a_directory_cannot_be_moved_below_itself_and_a_full_one_is_not_overwritten() {
    let mut world = World::new();
    let a = world.mkdir(ROOT, "a");
    let b = world.mkdir(a, "b");
    let c = world.mkdir(b, "c");
    let empty = world.mkdir(ROOT, "empty");
    let root = world.root();
    for target in [a, b, c] {
        assert_eq!(world.ns.rename(&root, (ROOT, b"a"), (target, b"x")).unwrap_err(), Status::EINVAL);
    }
    assert_eq!(world.ns.rename(&root, (a, b"b"), (ROOT, b"a")).unwrap_err(), Status::ENOTEMPTY);
    assert_eq!(world.ns.rename(&root, (ROOT, b"none"), (ROOT, b"x")).unwrap_err(), Status::ENOENT);
    assert_eq!(world.ns.rename(&root, (ROOT, b"a"), (ROOT, b"..")).unwrap_err(), Status::EINVAL);
    let (moved, attr) = world.ns.rename(&root, (a, b"b"), (ROOT, b"empty")).unwrap();
    assert_eq!((moved, attr.nlink), (b, 3));
    assert_eq!(world.ns.getattr(&root, empty, false), Err(Status::ENOENT), "an empty one is overwritten");
    assert_eq!((world.attr(a).nlink, world.attr(ROOT).nlink), (2, 4));
    assert_eq!(world.lookup(b, ".."), Ok(ROOT));
    check_figures(&mut world.ns);
    world.check_replay(&mut Vec::new());
}

#[test]
fn renaming_over_a_file_replaces_it_and_onto_itself_changes_nothing() {
    let mut world = World::new();
    let (a, b) = (world.file(ROOT, "a"), world.file(ROOT, "b"));
    world.ns.set_trash_time(&world.root(), b, 0, smode::SET).unwrap();
    let root = world.root();
    let version = world.ns.version();
    assert_eq!(world.ns.rename(&root, (ROOT, b"a"), (ROOT, b"a")).unwrap().0, a);
    assert_eq!(world.ns.version(), version);
    world.ns.rename(&root, (ROOT, b"a"), (ROOT, b"b")).unwrap();
    assert_eq!((world.lookup(ROOT, "b"), world.lookup(ROOT, "a")), (Ok(a), Err(Status::ENOENT)));
    assert_eq!(world.ns.getattr(&root, b, false), Err(Status::ENOENT));
    world.ns.link(&root, a, ROOT, b"c").unwrap();
    world.ns.rename(&root, (ROOT, b"b"), (ROOT, b"c")).unwrap();
    assert_eq!(world.list(ROOT), ["c"], "moving onto another link leaves one");
    assert_eq!(world.attr(a).nlink, 1);
}

#[test]
fn moving_a_directory_needs_write_access_to_it_only_if_its_parent_changes() {
    let mut world = World::new();
    let target = world.mkdir(ROOT, "target");
    let directory = world.mkdir(ROOT, "d");
    world.owned(directory, 1, 1, 0o555);
    world.owned(ROOT, 1, 1, 0o777);
    let user = world.caller(10, &[10]);
    assert_eq!(world.ns.rename(&user, (ROOT, b"d"), (target, b"d")).unwrap_err(), Status::EACCES);
    assert!(world.ns.rename(&user, (ROOT, b"d"), (ROOT, b"e")).is_ok());
}

#[test]
fn disabled_renaming_and_moving_are_told_apart() {
    use crate::session::disables;
    let mut world = World::new();
    let directory = world.mkdir(ROOT, "d");
    world.file(ROOT, "f");
    let whole = world.session;
    let mut check = |bits: u32, target: (Inode, &[u8]), expected: Status| {
        let session = world.session_with(|params| params.disables = bits);
        let caller = Caller { session, ..world.root() };
        let moved = world.ns.rename(&caller, (ROOT, b"f"), target).map_or_else(|status| status, |_| Status::OK);
        assert_eq!(moved, expected);
        if moved.is_ok() {
            let back = Caller { session: whole, ..caller };
            world.ns.rename(&back, target, (ROOT, b"f")).unwrap();
        }
    };
    check(disables::RENAME, (ROOT, b"g"), Status::EPERM);
    check(disables::RENAME, (directory, b"f"), Status::OK);
    check(disables::MOVE, (directory, b"f"), Status::EPERM);
    check(disables::MOVE, (ROOT, b"g"), Status::OK);
    check(disables::MOVE | disables::RENAME, (ROOT, b"f"), Status::EPERM);
}

#[test]
fn removal_is_tested_in_the_order_of_the_specification() {
    let mut world = World::new();
    let directory = world.mkdir(ROOT, "d");
    world.file(directory, "f");
    let root = world.root();
    let ns = &mut world.ns;
    assert_eq!(ns.unlink(&root, ROOT, b"d"), Err(Status::EPERM));
    assert_eq!(ns.rmdir(&root, directory, b"f"), Err(Status::ENOTDIR));
    assert_eq!(ns.rmdir(&root, ROOT, b"d"), Err(Status::ENOTEMPTY));
    assert_eq!(ns.unlink(&root, ROOT, b"none"), Err(Status::ENOENT));
    assert_eq!(ns.rmdir(&root, ROOT, b"."), Err(Status::EINVAL));
    ns.unlink(&root, directory, b"f").unwrap();
    assert_eq!(ns.rmdir(&root, ROOT, b"d"), Ok(directory));
    assert_eq!(ns.lookup(&root, directory, b".").unwrap_err(), Status::ENOENT_NOCACHE);
}

#[test]
fn names_that_are_missing_may_be_cached_unless_the_directory_forbids() {
    let mut world = World::new();
    let directory = world.mkdir(ROOT, "d");
    assert_eq!(world.lookup(directory, "x"), Err(Status::ENOENT));
    world.ns.set_eattr(&world.root(), directory, eattr::NO_ENTRY_CACHE, smode::SET).unwrap();
    assert_eq!(world.lookup(directory, "x"), Err(Status::ENOENT_NOCACHE));
    let old = Caller { version: VersionWord::new(3, 0, 24), ..world.root() };
    assert_eq!(world.ns.lookup(&old, directory, b"x").unwrap_err(), Status::ENOENT);
    let file = world.file(directory, "f");
    let found = world.ns.lookup(&world.root(), directory, b"f").unwrap();
    assert_ne!(found.attr.flags & wire::attr_flags::NO_ENTRY_CACHE, 0);
    assert_eq!(world.attr(file).flags & wire::attr_flags::NO_ENTRY_CACHE, 0, "not known without the directory");
}

#[test]
fn times_move_as_the_specification_says() {
    let mut world = World::new();
    let directory = world.mkdir(ROOT, "d");
    let file = world.file(ROOT, "f");
    world.now += 10;
    world.ns.link(&world.root(), file, directory, b"l").unwrap();
    let (attr, above) = (world.attr(file), world.attr(directory));
    assert_eq!((attr.mtime.seconds(), attr.ctime.seconds()), (START, START + 10));
    assert_eq!((above.mtime.seconds(), above.ctime.seconds(), above.atime.seconds()), (START + 10, START + 10, START));
    world.now += 10;
    world.ns.rename(&world.root(), (directory, b"l"), (ROOT, b"g")).unwrap();
    assert_eq!((world.attr(directory).mtime.seconds(), world.attr(ROOT).mtime.seconds()), (world.now, world.now));
    assert_eq!(world.attr(file).ctime.seconds(), world.now);
    // Relative atime: older than mtime, so the listing counts; a second one within the day does not.
    world.now += 10;
    world.list(directory);
    assert_eq!(world.attr(directory).atime.seconds(), world.now);
    let first = world.now;
    world.now += 10;
    world.list(directory);
    assert_eq!(world.attr(directory).atime.seconds(), first);
    world.now += 90_000;
    world.list(directory);
    assert_eq!(world.attr(directory).atime.seconds(), world.now);
    let now = world.now;
    world.ns.amtime(now, world.session, file, now, now + 1);
    let attr = world.attr(file);
    assert_eq!((attr.atime.seconds(), attr.mtime.seconds(), attr.ctime.seconds()), (now, now + 1, now + 1));
    world.ns.amtime(now, world.session, file, now - 1, now - 1);
    assert_eq!(world.attr(file), attr, "times never go back");
}

#[test]
fn a_listing_in_pieces_gives_every_entry_that_stays_exactly_once() {
    let mut world = World::new();
    let directory = world.mkdir(ROOT, "d");
    for n in 0..100 {
        world.file(directory, &format!("{n:03}"));
    }
    let root = world.root();
    let mut seen = Vec::new();
    let mut next = READDIR_START;
    let mut turn = 0;
    while next != READDIR_END {
        let mut count = 0;
        let mut visit = |entry: DirEntry<'_>| {
            seen.push(String::from_utf8(entry.name.to_vec()).unwrap());
            count += 1;
        };
        next = world.ns.readdir(&root, directory, readdir_flags::WITH_ATTR, 7, next, &mut visit).unwrap();
        assert!(count <= 7);
        // Between the pieces names come, and some go: also the one that would be next.
        turn += 1;
        world.file(directory, &format!("new{turn}"));
        let next_name = format!("{:03}", 99 - (seen.len() - 2));
        if turn % 3 == 0 && world.lookup(directory, &next_name).is_ok() {
            world.ns.unlink(&root, directory, next_name.as_bytes()).unwrap();
        }
    }
    assert_eq!(seen[..3], [".", "..", "099"], "newest first");
    let mut unique = seen.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), seen.len());
    for name in world.list(directory).iter().filter(|name| !name.starts_with("new")) {
        assert!(seen.contains(name), "{name}");
    }
    let one = world.ns.readdir(&root, directory, 0, 1, READDIR_START, &mut |_| {}).unwrap();
    assert_eq!(one, crate::READDIR_AT_PARENT);
    assert_eq!(world.ns.readdir(&world.caller(9, &[9]), Inode(999), 0, 1, 0, &mut |_| {}), Err(Status::ENOENT));
}

#[test]
fn numbers_of_removed_nodes_rest_before_they_are_used_again() {
    let mut world = World::new();
    let first = world.mkdir(ROOT, "first");
    world.ns.rmdir(&world.root(), ROOT, b"first").unwrap();
    assert_ne!(world.mkdir(ROOT, "second"), first);
    world.now += 86_400;
    world.ns.tick_minute(world.now);
    assert_ne!(world.mkdir(ROOT, "third"), first, "the delay has not passed");
    world.now += 1;
    world.ns.sustained_inodes(world.now, world.session, &[first]);
    world.ns.tick_minute(world.now);
    assert_ne!(world.mkdir(ROOT, "fourth"), first, "a client still knows it");
    world.ns.sustained_inodes(world.now, world.session, &[]);
    world.now += 86_401;
    world.ns.tick_minute(world.now);
    assert_eq!(world.mkdir(ROOT, "fifth"), first);
    world.check_replay(&mut Vec::new());
}
