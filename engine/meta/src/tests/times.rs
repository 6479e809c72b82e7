//! Times of nodes: nanoseconds, before 1970 and after 2106, and what peers that know seconds see of them.

use super::*;
use crate::setattr_flags::{ATIME, MTIME, MTIME_NOW};
use crate::{SetAttr, image};

/// Sets both and reads them back.
fn set(world: &mut World, inode: Inode, atime: Time, mtime: Time) -> Attr {
    let set = SetAttr { mask: ATIME | MTIME, atime, mtime, ..SetAttr::default() };
    world.ns.setattr(&world.root(), inode, false, &set).unwrap()
}

#[test]
fn two_changes_within_one_second_have_different_times() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    assert_eq!(world.attr(file).ctime, world.time());
    let mut last = world.attr(file).ctime;
    type Step = fn(&mut World, Inode);
    let steps: [Step; 7] = [
        |world, file| world.owned(file, 1, 2, 0o600),
        |world, file| assert!(world.ns.link(&world.root(), file, ROOT, b"g").is_ok()),
        |world, _| assert!(world.ns.rename(&world.root(), (ROOT, b"g"), (ROOT, b"h")).is_ok()),
        |world, _| assert!(world.ns.unlink(&world.root(), ROOT, b"h").is_ok()),
        |world, file| world.ns.set_xattr(&world.root(), file, false, b"user.a", b"1", 0).unwrap(),
        |world, file| assert!(world.ns.truncate(&world.root(), file, 0, 1 << 27).is_ok()),
        |world, file| {
            let set = SetAttr { mask: MTIME_NOW, ..SetAttr::default() };
            world.ns.setattr(&world.root(), file, false, &set).unwrap();
        },
    ];
    for step in steps {
        world.nanos += 1;
        step(&mut world, file);
        let now = world.attr(file).ctime;
        assert!(now > last && now == world.time(), "{now} after {last}");
        last = now;
    }
    assert_eq!(world.attr(file).mtime, last);
    world.check_replay(&mut Vec::new());
}

#[test]
fn extreme_times_come_back_from_state_journal_and_image() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let far = [Time::MIN, Time::at(-1, 999_999_999), Time(0), Time(1), Time::at(1 << 32, 1), Time::MAX];
    let mut journal = Vec::new();
    for atime in far {
        for mtime in far {
            let attr = set(&mut world, file, atime, mtime);
            assert_eq!((attr.atime, attr.mtime, attr.ctime), (atime, mtime, world.time()));
            assert_eq!(world.attr(file), attr);
            world.check_replay(&mut journal);
        }
    }
    assert!(String::from_utf8(journal).unwrap().contains(",-9223372036.854775808,4294967296.000000001,"));
}

#[test]
fn stock_peers_and_files_get_seconds_never_wrapped() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let stock = |attr: &Attr| {
        let bytes = wire::Field::take(&mut wire::Input::new(&{
            let mut bytes = Vec::new();
            attr.put_for(VersionWord::OURS, &mut bytes);
            bytes
        }));
        let seen: Attr = bytes.unwrap();
        (seen.atime, seen.mtime)
    };
    for (atime, mtime, seconds) in [
        (Time::at(7, 999_999_999), Time::at(8, 1), (7, 8)),
        (Time::at(-5, 0), Time::at(1 << 40, 0), (0, u32::MAX)),
        (Time::at(i64::from(u32::MAX), 5), Time::at(1 << 32, 0), (u32::MAX, u32::MAX)),
    ] {
        let attr = set(&mut world, file, atime, mtime);
        assert_eq!(stock(&attr), (seconds.0.into(), seconds.1.into()));
        let exported = crate::stock::to_bytes(&world.ns, START);
        let node = [&seconds.0.to_be_bytes()[..], &seconds.1.to_be_bytes(), &START.to_be_bytes()].concat();
        assert!(exported.windows(node.len()).any(|window| window == node), "{seconds:?}");
    }
}

#[test]
fn a_client_that_tells_whole_seconds_does_not_turn_times_back() {
    let mut world = World::new();
    world.nanos = 700;
    let file = world.file(ROOT, "f");
    let made = world.time();
    world.ns.amtime(world.time(), world.session, file, START, START);
    assert_eq!(world.attr(file).mtime, made);
    world.ns.amtime(world.time(), world.session, file, Time(made.0 + 1), Time(made.0 + 2));
    let attr = world.attr(file);
    assert_eq!((attr.atime.0, attr.mtime.0, attr.ctime.0), (made.0 + 1, made.0 + 2, made.0 + 2));
    set(&mut world, file, Time(-7), Time(-9));
    world.ns.amtime(world.time(), world.session, file, 0, 0);
    assert_eq!((world.attr(file).atime, world.attr(file).mtime), (Time(-7), Time(-9)), "0 means: no value");
}

#[test]
fn trash_and_relative_atime_go_by_the_clock_however_far_the_times_are() {
    let mut world = World::new();
    for (name, atime) in [("past", Time::MIN), ("future", Time::MAX)] {
        let file = world.file(ROOT, name);
        set(&mut world, file, atime, atime);
        world.ns.unlink(&world.root(), ROOT, name.as_bytes()).unwrap();
    }
    world.now += 86_401;
    for _ in 0..crate::state::TRASH_BUCKETS {
        world.now += 1;
        world.ns.tick_second(world.now);
    }
    let left: Vec<u32> = world.ns.state.all_detached().map(|edge| world.ns.state.edge(edge).child).collect();
    assert_eq!(left.len(), 1, "the file of the future has an atime that does not pass");
}

/// Written by the program that kept whole seconds: metadata of version 39, and all of its lines.
const OLD_IMAGE: &[u8] = include_bytes!("format-1.image");
const OLD_JOURNAL: &[u8] = include_bytes!("format-1.journal");

#[test]
fn an_image_and_a_journal_of_whole_seconds_still_load_and_are_the_same_metadata() {
    let loaded = image::load(OLD_IMAGE, Policy::default()).unwrap();
    assert_eq!(loaded.version(), 39);
    let mut replayed = Namespace::from_state(crate::state::State::new(START.into()), Policy::default());
    assert_eq!(replayed.replay_lines(OLD_JOURNAL).unwrap(), 38);
    assert_eq!(loaded.digest(), replayed.digest());

    let mut world = World { ns: loaded, ..World::new() };
    world.session = world.ns.sessions().next().unwrap().0;
    let (set, told) = (world.lookup(ROOT, "link").unwrap(), world.lookup(ROOT, "other").unwrap());
    let times = |attr: Attr| [attr.atime, attr.mtime, attr.ctime];
    assert_eq!(times(world.attr(set)), [5, u32::MAX, START + 7].map(Time::from));
    assert_eq!(times(world.attr(told)), [START, START + 3, START + 3].map(Time::from));

    let again = image::to_bytes(&world.ns.freeze(), 5);
    assert!(again.len() > OLD_IMAGE.len(), "the new layout has room for nanoseconds");
    assert_eq!(image::load(&again, Policy::default()).unwrap().digest(), world.ns.digest());
}

#[test]
fn a_damaged_image_of_whole_seconds_is_refused() {
    for at in (0..OLD_IMAGE.len()).step_by(7) {
        let mut damaged = OLD_IMAGE.to_vec();
        damaged[at] ^= 1;
        assert!(image::load(&damaged, Policy::default()).is_err(), "byte {at}");
    }
}

#[test]
fn handles_of_owners_and_times_come_back_to_what_a_fresh_state_holds() {
    let mut world = World::new();
    let before = world.ns.memory().nodes.used;
    for round in 0..3u32 {
        let files: Vec<Inode> = (0..200).map(|n| world.file(ROOT, &format!("f{n}"))).collect();
        for (n, file) in files.iter().enumerate() {
            world.ns.set_trash_time(&world.root(), *file, 0, crate::smode::SET).unwrap();
            world.owned(*file, n as u32 + round, 1, 0o600);
            set(&mut world, *file, Time(5), Time(n as i64));
        }
        for n in 0..200 {
            world.ns.unlink(&world.root(), ROOT, format!("f{n}").as_bytes()).unwrap();
        }
        assert_eq!(world.ns.memory().nodes.used, before, "round {round}");
    }
}
