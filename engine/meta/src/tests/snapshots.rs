//! Copies of trees that share their chunks.

use super::*;
use crate::node::eattr;
use crate::snapshot_flags::*;
use crate::{Truncate, smode};

fn tree(world: &mut World) -> (Inode, Inode) {
    let source = world.mkdir(ROOT, "source");
    let below = world.mkdir(source, "below");
    let file = world.file(source, "file");
    for index in 0..2 {
        world.ns.grant_write(START, file, index, true, false).unwrap();
    }
    world.owned(file, 10, 20, 0o4640);
    world.ns.link(&world.root(), file, below, b"link").unwrap();
    world.ns.symlink(&world.root(), below, b"sym", b"target").unwrap();
    world.ns.set_xattr(&world.root(), file, false, b"user.x", b"1", 0).unwrap();
    (source, file)
}

#[test]
fn a_copy_shares_its_chunks_until_one_side_writes() {
    let mut world = World::new();
    let (source, file) = tree(&mut world);
    world.now += 10;
    world.ns.snapshot(&world.root(), source, ROOT, b"copy", 0, 0o022).unwrap();
    let copy = world.lookup(ROOT, "copy").unwrap();
    assert_eq!(world.list(copy), ["below", "file"], "in the order in which they were made");
    let copied = world.lookup(copy, "file").unwrap();
    let (old, new) = (world.attr(file), world.attr(copied));
    assert_eq!((new.mode, new.uid, new.mtime, new.ctime, new.nlink), (old.mode, 10, old.mtime, old.ctime, 1));
    assert_eq!(world.ns.get_xattr(&world.root(), copied, false, b"user.x"), Ok(&b"1"[..]));
    assert_eq!(world.ns.chunk(wire::ChunkId(1)).unwrap().references, 3);
    assert_eq!(world.ns.dir_stats(world.session, copy), world.ns.dir_stats(world.session, source));
    let grant = world.ns.grant_write(world.now, copied, 0, true, false).unwrap();
    assert_eq!(grant.chunk, wire::ChunkId(3));
    assert_eq!(world.ns.state.at(copied.0).eattr() & eattr::SNAPSHOT, 0, "it is no plain copy any more");
    check_figures(&mut world.ns);
    world.check_replay(&mut Vec::new());
}

#[test]
fn hard_links_are_kept_if_asked_for() {
    let mut world = World::new();
    let (source, _) = tree(&mut world);
    world.ns.snapshot(&world.root(), source, ROOT, b"copy", PRESERVE_HARDLINKS, 0).unwrap();
    let copy = world.lookup(ROOT, "copy").unwrap();
    let (file, below) = (world.lookup(copy, "file").unwrap(), world.lookup(copy, "below").unwrap());
    assert_eq!(world.lookup(below, "link"), Ok(file));
    assert_eq!(world.attr(file).nlink, 2);
    world.check_replay(&mut Vec::new());
}

#[test]
fn what_the_caller_may_not_read_is_left_out_and_copies_are_his() {
    let mut world = World::new();
    let (source, file) = tree(&mut world);
    world.owned(ROOT, 0, 0, 0o777);
    let open = world.file(source, "open");
    world.owned(open, 1, 1, 0o6755);
    let user = world.caller(30, &[31]);
    world.ns.snapshot(&user, source, ROOT, b"copy", 0, 0).unwrap();
    let copy = world.lookup(ROOT, "copy").unwrap();
    assert_eq!(world.list(copy), ["below", "open"]);
    let attr = world.attr(world.lookup(copy, "open").unwrap());
    assert_eq!((attr.uid, attr.gid, attr.mode), (30, 31, 0o755));
    assert_eq!(world.ns.snapshot(&user, file, ROOT, b"f", 0, 0), Err(Status::EACCES));
    world.ns.snapshot(&user, open, ROOT, b"cp", CP_LIKE, 0o077).unwrap();
    assert_eq!(world.attr(world.lookup(ROOT, "cp").unwrap()).mode, 0o6700);
    world.check_replay(&mut Vec::new());
}

#[test]
fn an_existing_copy_is_brought_up_to_date() {
    let mut world = World::new();
    let (source, file) = tree(&mut world);
    let root = world.root();
    world.ns.snapshot(&root, source, ROOT, b"copy", 0, 0).unwrap();
    let copy = world.lookup(ROOT, "copy").unwrap();
    let same = world.lookup(copy, "file").unwrap();
    assert_eq!(world.ns.snapshot(&root, source, ROOT, b"copy", 0, 0), Err(Status::EEXIST));
    world.ns.snapshot(&root, source, ROOT, b"copy", CAN_OVERWRITE, 0).unwrap();
    assert_eq!(world.lookup(copy, "file"), Ok(same), "an identical file is kept");
    let cut = world.ns.truncate(&root, file, 0, 0).unwrap();
    assert!(matches!(cut, Truncate::Done { .. }));
    world.ns.snapshot(&root, source, ROOT, b"copy", CAN_OVERWRITE, 0).unwrap();
    assert_ne!(world.lookup(copy, "file"), Ok(same));
    world.ns.set_eattr(&root, copy, eattr::IMMUTABLE, smode::INCREASE).unwrap();
    assert_eq!(world.ns.snapshot(&root, source, ROOT, b"copy", CAN_OVERWRITE, 0), Err(Status::EPERM));
    let into_itself = world.ns.snapshot(&root, source, source, b"x", 0, 0);
    assert_eq!(into_itself, Err(Status::EINVAL));
    assert_eq!(world.ns.snapshot(&root, file, source, b"file", CAN_OVERWRITE, 0), Err(Status::EINVAL));
    check_figures(&mut world.ns);
    world.check_replay(&mut Vec::new());
}

#[test]
fn removal_takes_only_what_is_still_a_plain_copy() {
    let mut world = World::new();
    let (source, _) = tree(&mut world);
    let root = world.root();
    world.ns.snapshot(&root, source, ROOT, b"copy", 0, 0).unwrap();
    let copy = world.lookup(ROOT, "copy").unwrap();
    let below = world.lookup(copy, "below").unwrap();
    world.file(below, "mine");
    let remove = |world: &mut World, smode: u8| world.ns.snapshot(&root, Inode(0), ROOT, b"copy", DELETE | smode, 0);
    assert_eq!(remove(&mut world, 0), Err(Status::EPERM));
    assert_eq!(remove(&mut world, FORCE_REMOVAL), Ok(()));
    assert_eq!((world.list(copy), world.list(below)), (vec!["below".to_string()], vec!["mine".to_string()]));
    assert_eq!(world.ns.usage(world.session).trash_bytes, 0, "copies do not go to the trash");
    assert_eq!(world.list(source), ["file", "below"]);
    world.ns.snapshot(&root, source, ROOT, b"other", 0, 0).unwrap();
    world.ns.snapshot(&root, Inode(0), ROOT, b"other", DELETE, 0).unwrap();
    assert_eq!(world.lookup(ROOT, "other"), Err(Status::ENOENT));
    check_figures(&mut world.ns);
    world.check_replay(&mut Vec::new());
}

#[test]
fn a_tree_deeper_than_any_stack_is_copied_counted_and_removed() {
    let mut world = World::new();
    let top = world.mkdir(ROOT, "deep");
    let mut here = top;
    for _ in 0..3000 {
        here = world.mkdir(here, "d");
    }
    world.ns.snapshot(&world.root(), top, ROOT, b"copy", 0, 0).unwrap();
    let copy = world.lookup(ROOT, "copy").unwrap();
    assert_eq!(world.ns.dir_stats(world.session, copy).unwrap().dirs, 3001);
    world.ns.snapshot(&world.root(), Inode(0), ROOT, b"copy", DELETE, 0).unwrap();
    assert_eq!(world.ns.dir_stats(world.session, ROOT).unwrap().dirs, 3002);
}

#[test]
fn a_copy_over_the_tree_that_holds_its_source_ends_and_replays() {
    let mut world = World::new();
    let outer = world.mkdir(ROOT, "b");
    let source = world.mkdir(outer, "a");
    let inner = world.mkdir(source, "a");
    world.ns.set_trash_time(&world.root(), ROOT, 0, smode::SET | smode::RECURSIVE).unwrap();
    let old = world.file(source, "f");
    world.ns.truncate(&world.root(), old, 0, 7).unwrap();
    world.file(inner, "f");
    // The newest entry comes first: the directory, whose file replaces the one that would be copied next.
    world.ns.rename(&world.root(), (source, b"a"), (ROOT, b"aside")).unwrap();
    world.ns.rename(&world.root(), (ROOT, b"aside"), (source, b"a")).unwrap();
    world.ns.snapshot(&world.root(), source, ROOT, b"b", CAN_OVERWRITE, 0).unwrap();
    assert_eq!(world.ns.getattr(&world.root(), old, false), Err(Status::ENOENT));
    check_figures(&mut world.ns);
    world.check_replay(&mut Vec::new());
}

#[test]
fn what_hinders_the_removal_of_a_copy_is_told_in_the_order_of_a_walk_through_it() {
    let mut world = World::new();
    let (outer, root) = (world.mkdir(ROOT, "source"), world.root());
    let inner = world.mkdir(outer, "inner");
    world.mkdir(inner, "innermost");
    world.ns.snapshot(&root, outer, ROOT, b"copy", 0, 0).unwrap();
    let outer = world.lookup(ROOT, "copy").unwrap();
    let inner = world.lookup(outer, "inner").unwrap();
    let innermost = world.lookup(inner, "innermost").unwrap();
    let user = world.caller(7, &[7]);
    let mut remove = |change: &dyn Fn(&mut World)| {
        change(&mut world);
        world.ns.snapshot(&user, Inode(0), ROOT, b"copy", DELETE, 0)
    };
    let clear = |world: &mut World, inode: Inode, bits: u8| {
        world.ns.set_eattr(&root, inode, bits, smode::DECREASE).unwrap();
    };
    let closed = |world: &mut World| {
        clear(world, inner, eattr::SNAPSHOT);
        world.owned(innermost, 0, 0, 0o755);
    };
    assert_eq!(remove(&closed), Err(Status::EACCES), "what is inside comes before the folder's own flag");
    assert_eq!(remove(&|world| world.owned(innermost, 0, 0, 0o777)), Err(Status::EPERM));
    let frozen = |world: &mut World| {
        world.ns.set_eattr(&root, outer, eattr::APPEND_ONLY, smode::INCREASE).unwrap();
        world.owned(inner, 0, 0, 0o755);
    };
    assert_eq!(remove(&frozen), Err(Status::EPERM), "a folder that keeps its entries ends the walk");
    assert_eq!(remove(&|world| clear(world, outer, eattr::APPEND_ONLY)), Err(Status::EACCES));
    let whole = |world: &mut World| {
        world.owned(inner, 0, 0, 0o777);
        world.ns.set_eattr(&root, inner, eattr::SNAPSHOT, smode::INCREASE).unwrap();
    };
    assert_eq!(remove(&whole), Ok(()));
}
