//! Chunks behind files: grants, sharing, truncation, rollback.

use wire::{ChunkId, Version};

use super::*;
use crate::{Slot, Truncate, WriteTarget, open_flags, truncate_flags};

const CHUNK: u64 = wire::limits::CHUNK_BYTES as u64;

fn write(world: &mut World, file: Inode, index: u32, length: u64) -> ChunkId {
    let grant = world.ns.grant_write(world.now, file, index, true, false).unwrap();
    let (session, version) = (world.session, VersionWord::OURS);
    world.ns.write_end(session, version, world.now, file, grant.chunk, length, false).unwrap();
    grant.chunk
}

#[test]
fn a_write_makes_a_chunk_then_raises_its_version_as_told() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let check = |world: &World, index: u32| world.ns.check_write(world.session, VersionWord::OURS, file, index);
    assert_eq!(check(&world, 0), Ok(WriteTarget::Empty));
    let first = world.ns.grant_write(world.now, file, 0, true, false).unwrap();
    assert_eq!((first.chunk, first.version, first.previous, first.length), (ChunkId(1), Version(1), None, 0));
    assert_eq!(first.locked_to, world.now + 120);
    assert!(world.ns.chunk(ChunkId(1)).unwrap().is_locked(world.now + 120));
    assert_eq!(check(&world, 0), Ok(WriteTarget::Sole(ChunkId(1))));
    let again = world.ns.grant_write(world.now, file, 0, false, false).unwrap();
    assert_eq!((again.chunk, again.version, again.previous), (ChunkId(1), Version(1), Some(ChunkId(1))));
    assert_eq!(world.ns.grant_write(world.now, file, 0, true, false).unwrap().version, Version(2));
    let ended = world.ns.write_end(world.session, VersionWord::OURS, world.now, file, ChunkId(1), 700, false);
    assert_eq!(ended, Ok(Some(700)));
    assert!(!world.ns.chunk(ChunkId(1)).unwrap().is_locked(world.now));
    assert_eq!(world.attr(file).mtime.seconds(), START, "AMTIME brings the times");
    let far = world.ns.grant_write(world.now, file, 3, true, false).unwrap();
    assert_eq!((far.chunk, far.length), (ChunkId(2), 3 * CHUNK));
    assert_eq!(world.ns.check_read(world.session, file, 1), Ok(Slot { length: 3 * CHUNK, chunk: None }));
    assert_eq!(world.ns.check_read(world.session, file, 3).unwrap().chunk, Some(ChunkId(2)));
    assert_eq!(check(&world, 0x8000_0000), Err(Status::INDEXTOOBIG));
    assert_eq!(world.ns.check_read(world.session, ROOT, 0), Err(Status::EPERM));
    check_figures(&mut world.ns);
    world.check_replay(&mut Vec::new());
}

#[test]
fn a_shared_chunk_is_duplicated_before_it_is_written_and_can_be_rolled_back() {
    let mut world = World::new();
    let (a, b) = (world.file(ROOT, "a"), world.file(ROOT, "b"));
    let chunk = write(&mut world, a, 0, 1000);
    world.ns.append_slice(&world.root(), 0, b, a, (0, 0x8000_0000)).unwrap();
    assert_eq!(world.attr(b).extra, 1000);
    assert_eq!(world.ns.chunk(chunk).unwrap().references, 2);
    let target = world.ns.check_write(world.session, VersionWord::OURS, b, 0);
    assert_eq!(target, Ok(WriteTarget::Shared(chunk)));
    let grant = world.ns.grant_write(world.now, b, 0, true, false).unwrap();
    assert_eq!((grant.chunk, grant.version, grant.previous), (ChunkId(2), Version(1), Some(chunk)));
    assert_eq!(world.ns.chunk(chunk).unwrap().references, 2, "it stays in the file until its own copy is there");
    assert_eq!(world.ns.unattached_chunks(), [(grant.chunk, b, 0)]);
    world.ns.rollback(world.now, b, 0, grant.previous, grant.chunk).unwrap();
    assert_eq!(world.ns.unattached_chunks(), []);
    assert_eq!(world.ns.check_read(world.session, b, 0).unwrap().chunk, Some(chunk));
    assert_eq!(world.ns.take_released_chunks(), [grant.chunk]);
    assert_eq!(world.ns.chunk_delete(world.now, chunk, Version(1)), Err(Status::ACTIVE));
    assert_eq!(world.ns.chunk_delete(world.now, grant.chunk, Version(9)), Err(Status::WRONGVERSION));
    world.ns.chunk_delete(world.now, grant.chunk, Version(1)).unwrap();
    assert_eq!(world.ns.take_deleted_chunks(), [], "the caller knows");
    let empty = world.ns.grant_write(world.now, b, 5, true, false).unwrap();
    world.ns.rollback(world.now, b, 5, None, empty.chunk).unwrap();
    assert_eq!(world.ns.file_chunks(b, 0).unwrap().collect::<Vec<_>>(), [(0, chunk)]);
    check_figures(&mut world.ns);
    let mut journal = Vec::new();
    world.check_replay(&mut journal);
    let mut again = Namespace::from_state(crate::state::State::new(START.into()), Policy::default());
    again.replay_lines(&journal).unwrap();
    assert_eq!(again.take_deleted_chunks(), [grant.chunk]);
}

#[test]
fn truncation_cuts_the_chunk_at_the_new_end_first() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    for index in 0..3 {
        write(&mut world, file, index, (u64::from(index) + 1) * CHUNK);
    }
    world.now += 5;
    let root = world.root();
    let step = world.ns.truncate(&root, file, 0, CHUNK + 10).unwrap();
    let expected =
        Truncate::Chunk { previous: 3 * CHUNK, index: 1, chunk: ChunkId(2), shared: false, chunk_length: 10 };
    assert_eq!(step, expected);
    let grant = world.ns.grant_truncate(world.now, file, 1, CHUNK + 10).unwrap();
    assert_eq!((grant.chunk, grant.version), (ChunkId(2), Version(2)));
    assert_eq!(world.attr(file).extra, CHUNK + 10, "a shorter length holds at once");
    assert_eq!((grant.length_before, world.ns.owes_cut(file)), (3 * CHUNK, Some(ChunkId(2))));
    world.ns.set_chunk_version(world.now, ChunkId(2), Version(2)).unwrap();
    assert_eq!(world.ns.owes_cut(file), None);
    let attr = world.ns.truncate_finish(&root, file, 0, CHUNK + 10, grant.chunk).unwrap();
    assert_eq!((attr.extra, attr.mtime.seconds()), (CHUNK + 10, world.now));
    assert_eq!(world.ns.take_released_chunks(), [ChunkId(3)]);
    let done = world.ns.truncate(&root, file, 0, CHUNK).unwrap();
    assert!(matches!(done, Truncate::Done { previous, .. } if previous == CHUNK + 10));
    assert_eq!(world.ns.take_released_chunks(), [ChunkId(2)]);
    let grown = world.ns.truncate(&root, file, 0, 10 * CHUNK + 1).unwrap();
    assert!(matches!(grown, Truncate::Done { .. }), "a hole needs no chunk");
    assert_eq!(world.ns.truncate(&root, file, 0, (1 << 57) + 1), Err(Status::INDEXTOOBIG));
    world.now += 5;
    let same = world.ns.truncate(&root, file, truncate_flags::TIMEFIX, 10 * CHUNK + 1).unwrap();
    assert!(matches!(same, Truncate::Done { attr, .. } if attr.mtime.seconds() == world.now - 5));
    check_figures(&mut world.ns);
    world.check_replay(&mut Vec::new());
}

#[test]
fn appends_get_room_one_behind_the_other() {
    use truncate_flags::{OPENED, RESERVE, UPDATE};
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let root = world.root();
    let version = world.ns.version();
    let reserve = |world: &mut World, bytes: u64| match world.ns.truncate(&root, file, OPENED | UPDATE | RESERVE, bytes)
    {
        Ok(Truncate::Done { previous, .. }) => previous,
        other => panic!("{other:?}"),
    };
    assert_eq!(reserve(&mut world, 100), 0);
    assert_eq!(reserve(&mut world, 50), 100);
    assert_eq!((world.attr(file).extra, world.ns.version()), (0, version), "nothing is written down");
    let grant = world.ns.grant_write(world.now, file, 0, true, false).unwrap();
    let ended = world.ns.write_end(world.session, VersionWord::OURS, world.now, file, grant.chunk, 150, false);
    assert_eq!(ended, Ok(Some(150)));
    assert_eq!(reserve(&mut world, 10), 150);
    world.ns.truncate(&root, file, UPDATE, 120).unwrap();
    assert_eq!(world.attr(file).extra, 150, "UPDATE never shrinks");
    assert_eq!(reserve(&mut world, 10), 150, "and forgets what was reserved");
    let opened = world.ns.open(&root, file, open_flags::WRITE | open_flags::TRUNCATE).unwrap();
    assert_eq!((opened.attr.extra, opened.truncated), (0, true));
    assert_eq!(reserve(&mut world, 1), 0);
}

#[test]
fn a_look_up_names_the_only_chunk_of_a_small_file() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.owned(file, 10, 10, 0o600);
    assert_eq!(world.ns.lookup(&world.root(), ROOT, b"f").unwrap().only_chunk, None);
    let chunk = write(&mut world, file, 0, 10);
    assert_eq!(world.ns.lookup(&world.root(), ROOT, b"f").unwrap().only_chunk, Some(chunk));
    assert_eq!(world.ns.lookup(&world.caller(11, &[11]), ROOT, b"f").unwrap().only_chunk, None);
    write(&mut world, file, 1, CHUNK + 1);
    assert_eq!(world.ns.lookup(&world.root(), ROOT, b"f").unwrap().only_chunk, None);
}

#[test]
fn sizes_count_full_chunks_and_the_last_one_by_blocks() {
    let mut world = World::new();
    let directory = world.mkdir(ROOT, "d");
    let file = world.file(directory, "f");
    write(&mut world, file, 0, CHUNK);
    write(&mut world, file, 2, 2 * CHUNK + 65_537);
    let sums = world.ns.dir_stats(world.session, directory).unwrap();
    let size = (CHUNK + 8192) + (2 * 65_536 + 8192);
    assert_eq!((sums.inodes, sums.dirs, sums.files, sums.chunks), (2, 1, 1, 2));
    assert_eq!((sums.length, sums.size, sums.realsize), (2 * CHUNK + 65_537, size, 2 * size));
    world.ns.set_class(&world.root(), file, crate::ClassChange::Goal(3), 0).unwrap();
    assert_eq!(world.ns.dir_stats(world.session, ROOT).unwrap().realsize, 3 * size);
    assert_eq!(world.ns.chunk(ChunkId(1)).unwrap().class, 3);
    assert_eq!(world.ns.take_touched_chunks(), [ChunkId(1), ChunkId(2)]);
    let class = crate::class::StorageClass { name: b"3".to_vec(), ..crate::class::StorageClass::simple_goal(5) };
    assert_eq!(world.ns.class_change(&world.root(), &class, false), Err(Status::EPERM));
    world.ns.class_change(&world.root(), &class, true).unwrap();
    assert_eq!(world.ns.dir_stats(world.session, ROOT).unwrap().realsize, 5 * size);
    check_figures(&mut world.ns);
    world.check_replay(&mut Vec::new());
}

#[test]
fn reported_chunks_raise_the_next_id_and_locks_protect_them() {
    let mut world = World::new();
    let now = world.now;
    world.ns.chunk_add(now, ChunkId(50), Version(3), now + 100).unwrap();
    assert_eq!(world.ns.next_chunk_id(), ChunkId(51));
    assert_eq!(world.ns.chunk_add(now, ChunkId(50), Version(3), 0), Err(Status::CHUNKEXIST));
    assert_eq!(world.ns.chunk_add(now, ChunkId(2_000_000_000), Version(3), 0), Err(Status::EINVAL));
    assert_eq!(world.ns.chunk_delete(now, ChunkId(50), Version(3)), Err(Status::LOCKED));
    world.ns.chunk_delete(now + 101, ChunkId(50), Version(3)).unwrap();
    world.ns.raise_next_chunk_id(now, ChunkId(100)).unwrap();
    assert_eq!(world.ns.raise_next_chunk_id(now, ChunkId(99)), Err(Status::EINVAL));
    let file = world.file(ROOT, "f");
    assert_eq!(world.ns.grant_write(now, file, 0, true, false).unwrap().chunk, ChunkId(100));
    world.check_replay(&mut Vec::new());
}

#[test]
fn slots_are_repaired_or_emptied() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let chunk = write(&mut world, file, 0, 10);
    write(&mut world, file, 1, CHUNK + 10);
    world.ns.repair_slot(world.now, file, 0, Version(9)).unwrap();
    assert_eq!(world.ns.chunk(chunk).unwrap().version, Version(9));
    world.ns.repair_slot(world.now, file, 0, Version(0)).unwrap();
    assert_eq!(world.ns.check_read(world.session, file, 0).unwrap().chunk, None);
    world.ns.set_file_chunk(world.now, file, 1, None).unwrap();
    assert_eq!(world.ns.file(world.session, file).unwrap(), (file, CHUNK + 10, 0));
    world.check_replay(&mut Vec::new());
}

#[test]
fn files_are_archived_when_their_class_says_so_and_they_are_old_enough() {
    use crate::class::StorageClass;
    const DAY: u32 = 86_400;
    let mut world = World::new();
    let class = StorageClass { name: b"old".to_vec(), arch_delay_days: 2, ..StorageClass::simple_goal(1) };
    world.ns.class_create(&world.root(), &class).unwrap();
    let id = world.ns.class_by_name(b"old").unwrap();
    let change = crate::ClassChange::Class { from: None, to: id };
    let (aged, other) = (world.file(ROOT, "aged"), world.file(ROOT, "other"));
    let (chunk, untouched) = (write(&mut world, aged, 0, 1000), write(&mut world, other, 0, 1000));
    world.ns.set_class(&world.root(), aged, change, 0).unwrap();
    let archived = |world: &World, chunk: ChunkId| world.ns.chunk(chunk).unwrap().archived;
    let pass = |world: &mut World, now: u32| (0..10).for_each(|_| world.ns.tick_archive(now.into()));
    let ctime = world.attr(aged).ctime.seconds();
    pass(&mut world, ctime + 2 * DAY);
    assert!(!archived(&world, chunk), "not a second too early");
    pass(&mut world, ctime + 2 * DAY + 1);
    assert!(archived(&world, chunk) && !archived(&world, untouched));
    assert!(world.ns.take_touched_chunks().contains(&chunk), "its copies are looked at");
    let version = world.ns.version();
    pass(&mut world, ctime + 3 * DAY);
    assert_eq!(world.ns.version(), version, "once");
    check_figures(&mut world.ns);
    world.check_replay(&mut Vec::new());
}

#[test]
fn a_file_that_is_being_written_is_not_archived() {
    use crate::class::StorageClass;
    const DAY: u32 = 86_400;
    let mut world = World::new();
    let class = StorageClass { name: b"old".to_vec(), arch_delay_days: 2, ..StorageClass::simple_goal(1) };
    world.ns.class_create(&world.root(), &class).unwrap();
    let change = crate::ClassChange::Class { from: None, to: world.ns.class_by_name(b"old").unwrap() };
    let file = world.file(ROOT, "f");
    let chunk = write(&mut world, file, 0, 1000);
    world.ns.set_class(&world.root(), file, change, 0).unwrap();
    let pass = |world: &mut World, now: u32| (0..10).for_each(|_| world.ns.tick_archive(now.into()));
    let now = world.attr(file).ctime.seconds() + 2 * DAY + 1;
    let locked_to = world.ns.grant_write(now, file, 0, false, false).unwrap().locked_to;
    pass(&mut world, now);
    pass(&mut world, locked_to);
    assert!(!world.ns.chunk(chunk).unwrap().archived, "its writer has not told yet what it did");
    pass(&mut world, locked_to + 1);
    assert!(world.ns.chunk(chunk).unwrap().archived, "the lock ran out, and nothing was written");
    world.check_replay(&mut Vec::new());
}

#[test]
fn a_write_that_a_quota_ends_leaves_no_lock() {
    use crate::quota::{Limits, quota_flags};
    let mut world = World::new();
    let (directory, root) = (world.mkdir(ROOT, "d"), world.root());
    let file = world.file(directory, "f");
    let hard = Limits { length: 1000, ..Limits::default() };
    let limits = Some((Limits::default(), hard, 0));
    world.ns.set_quota(&root, directory, quota_flags::HARD_LENGTH, limits).unwrap();
    let chunk = world.ns.grant_write(world.now, file, 0, true, false).unwrap().chunk;
    assert!(world.ns.chunk(chunk).unwrap().is_locked(world.now));
    let ended = world.ns.write_end(world.session, VersionWord::OURS, world.now, file, chunk, 1001, false);
    assert_eq!(ended, Err(Status::QUOTA));
    assert!(!world.ns.chunk(chunk).unwrap().is_locked(world.now), "readers need not wait");
    assert_eq!(world.attr(file).extra, 0);
    world.check_replay(&mut Vec::new());
}
