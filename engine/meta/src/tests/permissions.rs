//! Who may do what.

use super::*;
use crate::acl::{self, Acl};
use crate::node::eattr;
use crate::session::{disables, session_flags};
use crate::{SetAttr, lookup_flags, open_flags, setattr_flags, smode, sugid_clear, truncate_flags};

#[test]
fn the_first_matching_class_of_mode_bits_decides() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    for mode in [0o000, 0o400, 0o040, 0o004, 0o124, 0o751, 0o777, 0o606] {
        world.owned(file, 10, 20, mode);
        let check = |uid: u32, gids: &[u32], triple: u16| {
            for mask in 0..8u16 {
                let expected = if mask & !triple == 0 { Ok(()) } else { Err(Status::EACCES) };
                let found = world.ns.access(&world.caller(uid, gids), file, mask);
                assert_eq!(found, expected, "mode {mode:o}, uid {uid}, gids {gids:?}, mask {mask}");
            }
        };
        check(10, &[1], mode >> 6);
        check(10, &[20], mode >> 6);
        check(11, &[20], mode >> 3 & 7);
        check(11, &[1, 2, 20], mode >> 3 & 7);
        check(11, &[1, 2], mode & 7);
        check(0, &[0], 7);
    }
}

#[test]
fn noowner_makes_everybody_the_owner_and_ignoregid_unites_group_and_others() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.owned(file, 10, 20, 0o640);
    assert_eq!(world.ns.access(&world.caller(11, &[5]), file, 4), Err(Status::EACCES));
    let ignore_gid = world.session_with(|params| params.flags |= session_flags::IGNORE_GID);
    let caller = Caller { session: ignore_gid, ..world.caller(11, &[5]) };
    assert_eq!(world.ns.access(&caller, file, 4), Ok(()));
    assert_eq!(world.ns.access(&caller, file, 2), Err(Status::EACCES));
    world.ns.set_eattr(&world.root(), file, eattr::NO_OWNER, smode::SET).unwrap();
    assert_eq!(world.ns.access(&world.caller(11, &[5]), file, 6), Ok(()));
    let shown = world.ns.getattr(&world.caller(11, &[5]), file, false).unwrap();
    assert_eq!((shown.uid, shown.gid, shown.mode), (11, 5, 0o666));
    let real = world.attr(file);
    assert_eq!((real.uid, real.gid, real.mode), (10, 20, 0o640));
}

#[test]
fn a_mapped_user_acts_as_another_and_sees_that_one_s_files_as_his_own() {
    let mut world = World::new();
    let directory = world.mkdir(ROOT, "d");
    let session = world.session_with(|params| {
        params.flags |= session_flags::MAP_ALL;
        (params.map_all_uid, params.map_all_gid) = (500, 600);
        (params.root_uid, params.root_gid) = (999, 998);
    });
    let user = Caller { session, ..world.caller(77, &[88, 99]) };
    let (inode, attr) = world.ns.mknod(&user, directory, b"f", NodeKind::File, 0o600, 0, 0).unwrap();
    assert_eq!((attr.uid, attr.gid), (77, 88));
    assert_eq!((world.attr(inode).uid, world.attr(inode).gid), (500, 600));
    let other = world.file(directory, "other");
    world.owned(other, 501, 601, 0o666);
    let shown = world.ns.getattr(&user, other, false).unwrap();
    assert_eq!((shown.uid, shown.gid), (0, 0));
    let chown = SetAttr { mask: setattr_flags::UID, uid: 500, ..SetAttr::default() };
    assert_eq!(world.ns.setattr(&user, inode, false, &chown), Err(Status::EPERM));
    let root = Caller { session, ..world.caller(0, &[0]) };
    let (made, _) = world.ns.mknod(&root, directory, b"g", NodeKind::File, 0o600, 0, 0).unwrap();
    assert_eq!((world.attr(made).uid, world.attr(made).gid), (999, 998));
}

#[test]
fn only_root_and_owner_change_attributes_and_only_to_what_is_theirs() {
    use setattr_flags::*;
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.owned(file, 10, 20, 0o644);
    let mut check = |uid: u32, gids: &[u32], set: SetAttr, expected: Status| {
        let caller = world.caller(uid, gids);
        let found = world.ns.setattr(&caller, file, false, &set).map_or_else(|status| status, |_| Status::OK);
        assert_eq!(found, expected, "{uid} {gids:?} {set:?}");
    };
    let set = |mask: u8| SetAttr {
        mask,
        mode: 0o600,
        uid: 10,
        gid: 20,
        atime: Time(5),
        mtime: Time(6),
        ..SetAttr::default()
    };
    check(11, &[20], set(MODE), Status::EPERM);
    check(11, &[20], set(ATIME), Status::EPERM);
    check(11, &[20], set(ATIME_NOW), Status::EACCES);
    check(11, &[20], set(0), Status::OK);
    check(10, &[30], SetAttr { uid: 11, ..set(UID) }, Status::EPERM);
    check(10, &[30], SetAttr { gid: 31, ..set(GID) }, Status::EPERM);
    check(10, &[30, 31], SetAttr { gid: 31, ..set(GID) }, Status::OK);
    check(10, &[30], set(WINATTR), Status::EINVAL);
    check(10, &[30], SetAttr { mode: 0o666, ..set(MODE) }, Status::OK);
    check(11, &[1], set(ATIME_NOW | MTIME_NOW), Status::OK);
    check(10, &[30], set(ATIME | MTIME), Status::OK);
    let attr = world.attr(file);
    assert_eq!((attr.mode, attr.gid, attr.atime, attr.mtime, attr.ctime), (0o666, 31, Time(5), Time(6), START.into()));
}

#[test]
fn suid_and_sgid_go_as_the_mode_of_clearing_says() {
    use setattr_flags::*;
    let mut world = World::new();
    let mut check = |kind: NodeKind, uid: u32, mode: u16, clear: u8, expected: u16| {
        let name = [kind as u8, b'x', uid as u8, clear, (mode >> 8) as u8, (mode | 1) as u8].map(|byte| byte | 0x40);
        let (inode, _) = world.ns.mknod(&world.root(), ROOT, &name, kind, 0o666, 0, 0).unwrap();
        world.owned(inode, 10, 20, mode);
        let set = SetAttr { mask: GID, gid: 30, sugid_clear_mode: clear, ..SetAttr::default() };
        world.ns.setattr(&world.caller(uid, &[20, 30]), inode, false, &set).unwrap();
        assert_eq!(world.attr(inode).mode, expected, "{kind:?} uid {uid} mode {mode:o} clear {clear}");
        match kind {
            NodeKind::Directory => world.ns.rmdir(&world.root(), ROOT, &name).unwrap(),
            _ => world.ns.unlink(&world.root(), ROOT, &name).unwrap(),
        };
    };
    use NodeKind::{Directory, File};
    check(File, 10, 0o6755, sugid_clear::NEVER, 0o6755);
    check(File, 0, 0o6755, sugid_clear::ALWAYS, 0o755);
    check(File, 0, 0o6755, sugid_clear::OSX, 0o6755);
    check(File, 10, 0o6755, sugid_clear::OSX, 0o755);
    check(File, 10, 0o6755, sugid_clear::BSD, 0o755);
    check(File, 0, 0o6755, sugid_clear::BSD, 0o6755);
    check(File, 10, 0o6755, sugid_clear::EXT, 0o755);
    check(File, 10, 0o6745, sugid_clear::EXT, 0o2745);
    check(File, 0, 0o6745, sugid_clear::XFS, 0o2745);
    check(Directory, 10, 0o6755, sugid_clear::EXT, 0o6755);
    check(Directory, 10, 0o6755, sugid_clear::XFS, 0o755);
    check(Directory, 0, 0o6755, sugid_clear::XFS, 0o6755);
}

#[test]
fn a_writer_who_is_not_the_owner_may_clear_suid_but_set_nothing_else() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.owned(file, 10, 20, 0o6666);
    let writer = world.caller(11, &[11]);
    let set = |mode: u16| SetAttr { mask: setattr_flags::MODE, mode, ..SetAttr::default() };
    assert_eq!(world.ns.setattr(&writer, file, false, &set(0o4666)), Err(Status::EPERM));
    assert_eq!(world.ns.setattr(&writer, file, false, &set(0o666)).unwrap().mode, 0o666);
    assert_eq!(world.ns.setattr(&writer, file, false, &set(0o666)), Err(Status::EPERM), "nothing is left to clear");
}

#[test]
fn sgid_is_lost_where_the_group_is_not_the_caller_s() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.owned(file, 10, 20, 0o644);
    let set = SetAttr { mask: setattr_flags::MODE, mode: 0o2755, ..SetAttr::default() };
    assert_eq!(world.ns.setattr(&world.caller(10, &[1]), file, false, &set).unwrap().mode, 0o755);
    assert_eq!(world.ns.setattr(&world.caller(10, &[1, 20]), file, false, &set).unwrap().mode, 0o2755);
}

#[test]
fn in_a_sticky_directory_only_owners_remove_and_rename() {
    let mut world = World::new();
    let directory = world.mkdir(ROOT, "tmp");
    world.owned(directory, 1, 1, 0o1777);
    let names: Vec<String> = (0..8).map(|n| format!("f{n}")).collect();
    for name in &names {
        let file = world.file(directory, name);
        world.owned(file, 10, 10, 0o666);
    }
    let name = |at: usize| names[at].as_bytes();
    let (owner, stranger, above) = (world.caller(10, &[10]), world.caller(11, &[11]), world.caller(1, &[1]));
    assert_eq!(world.ns.unlink(&stranger, directory, name(0)), Err(Status::EPERM));
    let moved = world.ns.rename(&stranger, (directory, name(0)), (ROOT, b"away"));
    assert_eq!(moved, Err(Status::EPERM));
    let own = world.ns.mknod(&stranger, directory, b"own", NodeKind::File, 0o600, 0, 0).unwrap().0;
    let over = world.ns.rename(&stranger, (directory, b"own"), (directory, name(1)));
    assert_eq!(over, Err(Status::EPERM));
    world.ns.unlink(&owner, directory, name(2)).unwrap();
    world.ns.unlink(&above, directory, name(3)).unwrap();
    world.ns.unlink(&world.root(), directory, name(4)).unwrap();
    world.ns.set_eattr(&world.root(), own, eattr::NO_OWNER, smode::SET).unwrap();
    world.ns.unlink(&world.caller(12, &[12]), directory, b"own").unwrap();
}

#[test]
fn what_is_immutable_undeletable_or_append_only_stays() {
    let mut world = World::new();
    let directory = world.mkdir(ROOT, "d");
    let file = world.file(directory, "f");
    let root = world.root();
    let set = |world: &mut World, inode: Inode, bits: u8| {
        world.ns.set_eattr(&root, inode, bits, smode::SET).unwrap();
    };
    for bits in [eattr::UNDELETABLE, eattr::IMMUTABLE, eattr::APPEND_ONLY] {
        set(&mut world, file, bits);
        assert_eq!(world.ns.unlink(&root, directory, b"f"), Err(Status::EPERM));
    }
    set(&mut world, file, eattr::IMMUTABLE);
    assert_eq!(world.ns.open(&root, file, open_flags::WRITE), Err(Status::EPERM));
    assert_eq!(world.ns.access(&root, file, 2), Err(Status::EPERM));
    assert_eq!(world.ns.link(&root, file, ROOT, b"l").unwrap_err(), Status::EPERM);
    assert_eq!(world.ns.rename(&root, (directory, b"f"), (ROOT, b"g")).unwrap_err(), Status::EPERM);
    let found = world.ns.lookup(&root, directory, b"f").unwrap();
    assert_eq!(found.flags & lookup_flags::IMMUTABLE, lookup_flags::IMMUTABLE);
    assert_eq!(found.flags & 0xFF, 0x33);
    set(&mut world, file, eattr::APPEND_ONLY);
    assert_eq!(world.ns.open(&root, file, open_flags::WRITE | open_flags::TRUNCATE), Err(Status::EPERM));
    assert_eq!(world.ns.truncate(&root, file, 0, 0), Err(Status::EPERM));
    assert!(world.ns.truncate(&root, file, truncate_flags::UPDATE, 10).is_ok());
    let old_client = Caller { version: VersionWord::new(3, 0, 100), ..root };
    assert_eq!(world.ns.open(&old_client, file, open_flags::WRITE), Err(Status::EACCES));
    set(&mut world, directory, eattr::APPEND_ONLY);
    assert!(world.ns.mknod(&root, directory, b"new", NodeKind::Fifo, 0o600, 0, 0).is_ok());
    assert_eq!(world.ns.unlink(&root, directory, b"new"), Err(Status::EPERM));
    set(&mut world, directory, eattr::IMMUTABLE);
    let made = world.ns.mknod(&root, directory, b"more", NodeKind::Fifo, 0o600, 0, 0);
    assert_eq!(made.unwrap_err(), Status::EPERM);
}

#[test]
fn a_read_only_session_changes_nothing_and_disabled_comes_before_that() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let session = world.session_with(|params| {
        params.flags |= session_flags::READ_ONLY;
        params.disables = disables::SYMLINK;
    });
    world.session = session;
    let root = world.root();
    let ns = &mut world.ns;
    assert_eq!(ns.unlink(&root, ROOT, b"f"), Err(Status::EROFS));
    assert_eq!(ns.symlink(&root, ROOT, b"l", b"t").unwrap_err(), Status::EPERM);
    assert_eq!(ns.mkdir(&root, ROOT, b"d", 0o700, 0, true).unwrap_err(), Status::EROFS);
    assert_eq!(ns.setattr(&root, file, false, &SetAttr::default()), Err(Status::EROFS));
    assert_eq!(ns.open(&root, file, open_flags::WRITE), Err(Status::EROFS));
    assert!(ns.open(&root, file, open_flags::READ).is_ok());
    assert_eq!(ns.access(&root, file, 2), Err(Status::EROFS));
    assert_eq!(ns.set_xattr(&root, file, false, b"user.x", b"1", 0), Err(Status::EROFS));
    assert_eq!(ns.check_write(session, VersionWord::OURS, file, 0), Err(Status::EROFS));
    let flags = ns.lookup(&root, ROOT, b"f").unwrap().flags;
    assert_ne!(flags & lookup_flags::RO_FILESYSTEM, 0);
}

#[test]
fn a_session_on_a_subfolder_sees_only_what_lies_below() {
    let mut world = World::new();
    let home = world.mkdir(ROOT, "home");
    let mine = world.mkdir(home, "mine");
    let outside = world.file(home, "outside");
    let inside = world.file(mine, "inside");
    assert_eq!(world.ns.resolve_root(b"/home//mine/"), Ok(mine));
    assert_eq!(world.ns.resolve_root(b"home/none"), Err(Status::ENOENT));
    assert_eq!(world.ns.resolve_root(b"home/outside"), Err(Status::ENOTDIR));
    let whole = world.session;
    world.session = world.session_with(|params| params.root = mine);
    assert_eq!(world.lookup(ROOT, "inside"), Ok(inside));
    assert_eq!(world.lookup(ROOT, ".."), Ok(ROOT));
    assert_eq!(world.lookup(ROOT, "."), Ok(ROOT));
    let caller = world.root();
    assert_eq!(world.ns.getattr(&caller, outside, false), Err(Status::ENOENT));
    assert!(world.ns.getattr(&caller, outside, true).is_ok(), "a handle keeps it reachable");
    assert_eq!(world.ns.lookup(&caller, home, b"outside").unwrap_err(), Status::ENOENT_NOCACHE);
    assert_eq!(world.ns.paths(world.session, inside).unwrap(), [b"inside".to_vec()]);
    assert_eq!(world.ns.paths(world.session, ROOT).unwrap(), [b"/".to_vec()]);
    assert_eq!(world.ns.paths(whole, inside).unwrap(), [b"home/mine/inside".to_vec()]);
    assert_eq!(world.ns.paths(world.session, outside), Err(Status::ENOENT));
    assert_eq!(world.ns.set_trash_time(&caller, outside, 0, smode::SET), Err(Status::ENOENT));
    world.ns.link(&Caller { session: whole, ..caller }, outside, mine, b"link").unwrap();
    assert!(world.ns.getattr(&caller, outside, false).is_ok(), "any of its names will do");
}

#[test]
fn extended_attributes_follow_their_rules() {
    use crate::xattr_mode::*;
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.owned(file, 10, 10, 0o644);
    let (root, owner, other) = (world.root(), world.caller(10, &[10]), world.caller(11, &[11]));
    let ns = &mut world.ns;
    assert_eq!(ns.set_xattr(&owner, file, false, b"trusted.a", b"1", SET), Err(Status::EPERM));
    assert_eq!(ns.set_xattr(&other, file, false, b"user.a", b"1", SET), Err(Status::EACCES));
    assert_eq!(ns.set_xattr(&owner, file, false, b"user.a", b"1", REPLACE), Err(Status::ENOATTR));
    assert_eq!(ns.set_xattr(&owner, file, false, b"user.a", b"1", CREATE), Ok(()));
    assert_eq!(ns.set_xattr(&owner, file, false, b"user.a", b"2", CREATE), Err(Status::EEXIST));
    assert_eq!(ns.set_xattr(&owner, file, false, b"user.a", b"2", REPLACE), Ok(()));
    assert_eq!(ns.set_xattr(&root, file, false, b"trusted.b", b"", SET), Ok(()));
    assert_eq!(ns.set_xattr(&owner, file, false, b"user.a", b"2", 4), Err(Status::EINVAL));
    assert_eq!(ns.set_xattr(&owner, file, false, b"user.big", &[0; 65_537], SET), Err(Status::ERANGE));
    assert_eq!(ns.get_xattr(&other, file, false, b"user.a"), Ok(&b"2"[..]));
    assert_eq!(ns.get_xattr(&other, file, false, b"trusted.b"), Err(Status::EPERM));
    assert_eq!(ns.list_xattr(&other, file, false).unwrap(), b"trusted.b\0user.a\0");
    assert_eq!(ns.getattr(&root, file, false).unwrap().flags & wire::attr_flags::NO_XATTR, 0);
    assert_eq!(ns.set_xattr(&root, file, false, b"trusted.b", b"", REMOVE), Ok(()));
    assert_eq!(ns.set_xattr(&root, file, false, b"user.a", b"", REMOVE), Ok(()));
    assert_eq!(ns.set_xattr(&root, file, false, b"user.a", b"", REMOVE), Err(Status::ENOATTR));
    assert_ne!(ns.getattr(&root, file, false).unwrap().flags & wire::attr_flags::NO_XATTR, 0);
}

#[test]
fn acls_decide_instead_of_the_mode_and_chmod_goes_to_the_mask() {
    use crate::acl::{ABSENT, ACCESS, Acl, DEFAULT};
    let mut world = World::new();
    let directory = world.mkdir(ROOT, "d");
    let file = world.file(directory, "f");
    world.owned(file, 10, 20, 0o640);
    let acl = Acl { user: 7, group: 4, other: 0, mask: 6, users: vec![(30, 7)], groups: vec![(40, 2)] };
    world.ns.set_acl(&world.caller(10, &[20]), file, ACCESS, &acl).unwrap();
    assert_eq!(world.ns.get_acl(world.session, file, ACCESS), Ok(&acl));
    let check = |world: &World, uid: u32, gids: &[u32], mask: u16, expected: Result<(), Status>| {
        assert_eq!(world.ns.access(&world.caller(uid, gids), file, mask), expected, "{uid} {gids:?} {mask}");
    };
    check(&world, 30, &[1], 6, Ok(()));
    check(&world, 30, &[1], 1, Err(Status::EACCES));
    check(&world, 50, &[20, 40], 6, Err(Status::EACCES));
    check(&world, 50, &[20, 40], 2, Ok(()));
    assert_eq!(world.attr(file).mode, 0o760, "the mask is shown as the group");
    let chmod = SetAttr { mask: setattr_flags::MODE, mode: 0o740, ..SetAttr::default() };
    assert_eq!(world.ns.setattr(&world.caller(10, &[20]), file, false, &chmod).unwrap().mode, 0o740);
    check(&world, 30, &[1], 2, Err(Status::EACCES));
    assert_eq!(world.ns.get_acl(world.session, file, ACCESS).unwrap().group, 4);
    let none = Acl { user: ABSENT, group: ABSENT, other: ABSENT, mask: ABSENT, users: vec![], groups: vec![] };
    world.ns.set_acl(&world.caller(10, &[20]), file, ACCESS, &none).unwrap();
    assert_eq!(world.ns.get_acl(world.session, file, ACCESS), Err(Status::ENOATTR));

    world.ns.set_acl(&world.root(), directory, DEFAULT, &acl).unwrap();
    let (made, attr) = world.ns.mknod(&world.root(), directory, b"g", NodeKind::File, 0o666, 0o077, 0).unwrap();
    assert_eq!(attr.mode, 0o660, "the umask does not count");
    assert_eq!(world.ns.get_acl(world.session, made, ACCESS).unwrap().users, [(30, 7)]);
    let below = world.mkdir(directory, "below");
    assert_eq!(world.ns.get_acl(world.session, below, DEFAULT), Ok(&acl));
    world.check_replay(&mut Vec::new());
}

#[test]
fn classes_and_trash_times_obey_session_limits_and_ownership() {
    use crate::ClassChange::Goal;
    let mut world = World::new();
    let directory = world.mkdir(ROOT, "d");
    let (mine, other) = (world.file(directory, "mine"), world.file(directory, "other"));
    world.owned(directory, 10, 10, 0o777);
    world.owned(mine, 10, 10, 0o666);
    world.owned(other, 11, 11, 0o666);
    let user = world.caller(10, &[10]);
    let ns = &mut world.ns;
    assert_eq!(ns.set_class(&user, directory, Goal(3), smode::SET | smode::RECURSIVE), Ok([2, 0, 1]));
    assert_eq!(ns.set_class(&user, other, Goal(3), smode::SET), Err(Status::EPERM));
    assert_eq!(ns.set_class(&user, mine, Goal(2), smode::INCREASE), Ok([0, 1, 0]));
    assert_eq!(ns.set_class(&user, mine, Goal(2), smode::DECREASE), Ok([1, 0, 0]));
    assert_eq!(ns.set_class(&user, mine, Goal(0), smode::SET), Err(Status::EINVAL));
    assert_eq!(ns.set_class(&user, mine, Goal(2), 8), Err(Status::EINVAL));
    let tally = ns.get_classes(user.session, directory, 1).unwrap();
    assert_eq!(tally.files.into_iter().collect::<Vec<_>>(), [(2, 2)]);
    assert_eq!(tally.dirs.into_iter().collect::<Vec<_>>(), [(3, 1)]);
    assert_eq!(ns.set_trash_time(&user, mine, 3601, smode::SET), Ok([1, 0, 0]));
    let tally = ns.get_trash_times(user.session, mine, 0).unwrap();
    assert_eq!(tally.files.into_iter().collect::<Vec<_>>(), [(7200, 1)]);
    let limited = world.session_with(|params| {
        (params.goal_min, params.goal_max) = (2, 3);
        params.trash_time_max_seconds = 7200;
        params.flags = 0;
    });
    let user = Caller { session: limited, ..user };
    let ns = &mut world.ns;
    assert_eq!(ns.set_class(&user, mine, Goal(1), smode::SET), Err(Status::EPERM));
    assert_eq!(ns.set_class(&user, mine, Goal(3), smode::SET), Ok([1, 0, 0]));
    assert_eq!(ns.set_trash_time(&user, mine, 7201, smode::SET), Err(Status::EPERM));
    assert_eq!(ns.set_eattr(&user, mine, eattr::IMMUTABLE, smode::INCREASE), Err(Status::EPERM));
    world.check_replay(&mut Vec::new());
}

#[test]
fn a_hard_quota_stops_growth_and_a_soft_one_after_its_grace() {
    use crate::quota::{Limits, quota_flags};
    let mut world = World::new();
    let directory = world.mkdir(ROOT, "d");
    let file = world.file(directory, "f");
    let limits = |inodes: u32, length: u64| Limits { inodes, length, ..Limits::default() };
    let flags = quota_flags::HARD_INODES | quota_flags::SOFT_LENGTH;
    let root = world.root();
    // The directory itself does not count.
    world.ns.set_quota(&root, directory, flags, Some((limits(0, 100), limits(2, 0), 60))).unwrap();
    world.file(directory, "g");
    let third = world.ns.mknod(&root, directory, b"h", NodeKind::Fifo, 0o600, 0, 0);
    assert_eq!(third.unwrap_err(), Status::QUOTA);
    let outside = world.file(ROOT, "out");
    assert_eq!(world.ns.link(&root, outside, directory, b"l").unwrap_err(), Status::QUOTA);
    assert_eq!(world.ns.rename(&root, (ROOT, b"out"), (directory, b"o")).unwrap_err(), Status::QUOTA);
    world.ns.rename(&root, (ROOT, b"out"), (directory, b"g")).unwrap();
    assert!(world.ns.truncate(&root, file, 0, 200).is_ok());
    world.ns.tick_second(START + 1);
    assert!(world.ns.truncate(&root, file, 0, 201).is_ok());
    world.ns.tick_second(START + 70);
    assert_eq!(world.ns.truncate(&root, file, 0, 202), Err(Status::QUOTA));
    assert!(world.ns.truncate(&root, file, 0, 150).is_ok(), "shrinking is allowed");
    let report = world.ns.quota(world.session, directory).unwrap();
    assert_eq!((report.quota.exceeded, report.present.inodes, report.present.length), (true, 2, 150));
    world.check_replay(&mut Vec::new());
}

#[test]
fn a_quota_of_space_counts_what_the_last_chunk_grows_by() {
    use crate::quota::{Limits, quota_flags};
    let mut world = World::new();
    let (directory, root) = (world.mkdir(ROOT, "d"), world.root());
    let file = world.file(directory, "f");
    world.ns.grant_write(START, file, 0, true, false).unwrap();
    let space = |world: &World| world.ns.quota(world.session, directory).unwrap().present.size;
    assert_eq!(space(&world), 8 << 10, "the head of the chunk that is being written");
    let size = (8 << 10) + (128 << 10);
    let hard = Limits { size, ..Limits::default() };
    let limits = Some((Limits::default(), hard, 0));
    world.ns.set_quota(&root, directory, quota_flags::HARD_SIZE, limits).unwrap();
    assert_eq!(world.ns.truncate(&root, file, truncate_flags::UPDATE, (128 << 10) + 1), Err(Status::QUOTA));
    assert!(world.ns.truncate(&root, file, truncate_flags::UPDATE, 128 << 10).is_ok());
    assert_eq!(space(&world), size);
    assert_eq!(world.ns.truncate(&root, file, 0, (128 << 10) + 1), Err(Status::QUOTA));
    check_figures(&mut world.ns);
    world.check_replay(&mut Vec::new());
}

#[test]
fn symlinks_inherit_a_default_acl_too() {
    let mut world = World::new();
    let (directory, root) = (world.mkdir(ROOT, "d"), world.root());
    let acl = Acl { user: 5, group: 3, other: 1, mask: 5, users: vec![(7, 6)], groups: Vec::new() };
    world.ns.set_acl(&root, directory, acl::DEFAULT, &acl).unwrap();
    let (link, attr) = world.ns.symlink(&root, directory, b"l", b"target").unwrap();
    assert_eq!((attr.mode, world.ns.get_acl(world.session, link, acl::ACCESS).unwrap().mask), (0o551, 5));
    world.check_replay(&mut Vec::new());
}

#[test]
fn a_class_whose_name_is_taken_is_refused_for_that_first() {
    let mut world = World::new();
    let mut class = world.ns.class(2).unwrap().clone();
    class.keep.clear();
    assert_eq!(world.ns.class_create(&world.root(), &class), Err(Status::CLASSEXISTS));
    class.name = b"new".to_vec();
    assert_eq!(world.ns.class_create(&world.root(), &class), Err(Status::EINVAL));
}

#[test]
fn the_archive_flag_of_another_s_file_is_refused_for_the_file_and_counted_for_a_folder() {
    let mut world = World::new();
    let directory = world.mkdir(ROOT, "d");
    let file = world.file(directory, "f");
    let user = world.caller(10, &[10]);
    assert_eq!(world.ns.set_archived(&user, file, true), Err(Status::EPERM));
    assert_eq!(world.ns.set_archived(&user, directory, true), Ok([0, 0, 1]));
}
