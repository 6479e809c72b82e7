//! The rules one by one: each test is a table of cases.

use std::collections::BTreeMap;
use std::time::Duration;

use wire::{ChunkId, ChunkReport, Ip4, Status, Version, VersionWord};

use super::*;

mod balance;
mod decisions;

const NOW: u32 = 10_000;
const CHUNK: ChunkId = ChunkId(7);

#[derive(Default)]
struct Known {
    all: BTreeMap<ChunkId, Facts>,
    labels: Option<Labels>,
}

impl Table for Known {
    fn facts(&self, chunk: ChunkId) -> Option<Facts> {
        self.all.get(&chunk).copied()
    }
    fn labels(&self, _: ChunkId) -> Option<Labels> {
        self.labels.clone()
    }
    fn next_chunk(&self, position: u32) -> Option<(u32, ChunkId)> {
        let next = self.all.range(ChunkId(u64::from(position) + 1)..).next()?;
        Some((u32::try_from(next.0.0).unwrap(), *next.0))
    }
    fn next_chunk_id(&self) -> u64 {
        100
    }
}

/// A settled cluster of some servers with room, long after the start.
struct Scene {
    table: Known,
    chunks: Chunks,
    effects: Effects,
}

fn server(number: u16) -> Server {
    let space = Space { used: 0, total: 1 << 40, chunks: 0, tdused: 0, tdtotal: 0, tdchunks: 0 };
    let mut server = Server::new(number + 1, Ip4(u32::from(number)), 9422, VersionWord::OURS, space);
    server.registering = false;
    server
}

impl Scene {
    fn new(servers: u16, version: u32, goal: u8) -> Scene {
        let mut chunks = Chunks::new(Settings::default(), 0, 1);
        for number in 0..servers {
            assert_eq!(chunks.connect(server(number)), Some(ServerId(number)));
        }
        let mut table = Known::default();
        table.all.insert(
            CHUNK,
            Facts { version: Version(version), floor: Version(version), cut: None, locked_to: 0, files: 1, goal },
        );
        Scene { table, chunks, effects: Vec::new() }
    }

    fn report(&mut self, server: u16, version: u32) {
        let report = ChunkReport { chunkid: CHUNK, version };
        self.chunks.report_chunks(ServerId(server), &[report], &self.table, NOW - 100, &mut self.effects);
    }

    fn answer(&mut self, server: u16, answered: Answered, status: Status) {
        self.chunks.answer(ServerId(server), CHUNK, answered, status, &self.table, NOW, &mut self.effects);
        for effect in &self.effects {
            match effect {
                Effect::Raise { chunk, version } => self.table.all.get_mut(chunk).unwrap().version = *version,
                Effect::SetVersion { chunk, version } => {
                    let facts = self.table.all.get_mut(chunk).unwrap();
                    (facts.version, facts.floor) = (*version, *version);
                }
                _ => {}
            }
        }
    }

    fn tick(&mut self) -> Vec<(u16, Command)> {
        self.effects.clear();
        self.chunks.tick(&self.table, NOW, Duration::from_millis(50), &mut self.effects);
        self.sent()
    }

    fn sent(&self) -> Vec<(u16, Command)> {
        let sent = |effect: &Effect| match effect {
            Effect::Send { server, command } => Some((server.0, *command)),
            _ => None,
        };
        self.effects.iter().filter_map(sent).collect()
    }

    /// The copies as letters by server: V valid, G good but behind, B busy, W wrong version, X invalid, D deleting, - none; lower case =
    /// on a disk marked for removal.
    fn picture(&self, servers: u16) -> String {
        (0..servers)
            .map(|number| {
                let state = self.chunks.copies(CHUNK).find(|(server, _)| server.0 == number).map(|(_, state)| state);
                let letter = match state.map(|state| state.kind) {
                    None => '-',
                    Some(CopyKind::Valid) => 'V',
                    Some(CopyKind::Behind(_)) => 'G',
                    Some(CopyKind::Busy) => 'B',
                    Some(CopyKind::WrongVersion(_)) => 'W',
                    Some(CopyKind::Invalid) => 'X',
                    Some(CopyKind::Deleting) => 'D',
                };
                if state.is_some_and(|state| state.marked) { letter.to_ascii_lowercase() } else { letter }
            })
            .collect()
    }

    fn finished(&self) -> Option<Status> {
        self.effects.iter().find_map(|effect| match effect {
            Effect::Finished { status, .. } => Some(*status),
            _ => None,
        })
    }
}

#[test]
fn a_report_becomes_a_copy_by_its_version_and_mark() {
    let marked = Version::MARKED_FOR_REMOVAL;
    let check = |reports: &[u32], expected: &str| {
        let mut scene = Scene::new(1, 5, 1);
        for report in reports {
            scene.report(0, *report);
        }
        assert_eq!(scene.picture(1), expected, "{reports:?}");
    };
    check(&[5], "V");
    check(&[5 | marked], "v");
    check(&[4], "W");
    check(&[9 | marked], "w");
    check(&[5, 5 | marked], "v"); // only the mark is taken from a second report
    check(&[5 | marked, 3], "V");
    check(&[4, 5], "W"); // another version needs LOST first
}

#[test]
fn answers_decide_what_copies_and_clients_get() {
    use Answered::{Create, SetVersion, Truncate};
    // operation, answers of three servers, picture, client's status, version afterwards
    let check = |answered: Answered, answers: &[Status], picture: &str, client: Option<Status>, version: u32| {
        let mut scene = Scene::new(3, 6, 3);
        match answered {
            Create => {
                let facts = scene.table.all.get_mut(&CHUNK).unwrap();
                (facts.version, facts.floor) = (Version(1), Version(1));
                let targets = [ServerId(0), ServerId(1), ServerId(2)];
                scene.chunks.begin_create(CHUNK, Version(1), &targets, &mut scene.effects);
            }
            _ => {
                (0..3).for_each(|number| scene.report(number, 6));
                scene.table.all.get_mut(&CHUNK).unwrap().version = Version(7);
                match answered {
                    SetVersion => {
                        scene.chunks.begin_set_version(CHUNK, Version(6), Version(7), None, &mut scene.effects);
                    }
                    _ => scene.chunks.begin_truncate(CHUNK, 5, Version(6), Version(7), &mut scene.effects),
                }
            }
        }
        assert_eq!(scene.picture(3), "BBB");
        scene.effects.clear();
        for (number, status) in answers.iter().enumerate() {
            scene.answer(u16::try_from(number).unwrap(), answered, *status);
        }
        let found = (scene.picture(3), scene.finished(), scene.table.all[&CHUNK].version.0);
        assert_eq!(found, (picture.to_owned(), client, version), "{answered:?} {answers:?}");
    };
    const OK: Status = Status::OK;
    check(SetVersion, &[OK, OK, OK], "VVV", Some(OK), 7);
    check(SetVersion, &[OK, OK], "VVB", None, 7);
    // Interrupted: the survivors go on to a version of their own, the client waits on.
    check(SetVersion, &[OK, Status::IO, OK], "BXB", None, 8);
    check(SetVersion, &[OK, Status::NOTDONE, OK], "BGB", None, 8);
    check(SetVersion, &[Status::IO, Status::IO, Status::IO], "XXX", Some(Status::NOTDONE), 7);
    // None did it: those who did not even start have all that was acknowledged. The version is not taken back.
    check(SetVersion, &[Status::NOTDONE, Status::IO, Status::NOTDONE], "GXG", Some(Status::NOTDONE), 7);
    check(Truncate, &[Status::NOTDONE, Status::NOTDONE, Status::NOTDONE], "GGG", Some(Status::NOTDONE), 7);
    check(Truncate, &[Status::NOSPACE, Status::NOSPACE, Status::NOSPACE], "GGG", Some(Status::NOSPACE), 7);
    check(Create, &[OK, OK, OK], "VVV", Some(OK), 1);
    check(Create, &[OK, Status::NOTDONE, OK], "B-B", None, 2);
    check(Create, &[OK, Status::NOSPACE, OK], "B-B", None, 2);
    check(Create, &[Status::NOSPACE, Status::NOSPACE, Status::NOSPACE], "---", Some(Status::NOSPACE), 1);
    check(Create, &[Status::NOSPACE, Status::IO, Status::NOSPACE], "-X-", Some(Status::NOTDONE), 1);
    // A chunk of this number that was there before is not ours to touch.
    check(Create, &[OK, Status::CHUNKEXIST, OK], "B-B", None, 2);
}

/// A change from 5 to 6 was begun, and its end is not known.
fn in_doubt(servers: u16, goal: u8) -> Scene {
    let mut scene = Scene::new(servers, 6, goal);
    scene.table.all.get_mut(&CHUNK).unwrap().floor = Version(5);
    scene
}

#[test]
fn a_change_in_doubt_leaves_every_copy_from_the_last_writer_on_readable_at_once() {
    // reports by server -> picture, version and servers for readers
    let check = |reports: &[u32], picture: &str, version: u32, readable: &[u32]| {
        let mut scene = in_doubt(3, 3);
        scene.chunks.set_absent_servers(1, 0);
        for (number, version) in reports.iter().enumerate() {
            scene.report(u16::try_from(number).unwrap(), *version);
        }
        let (found, locations) = scene.chunks.locations(CHUNK, Ip4(9), &scene.table, NOW).unwrap();
        let mut servers: Vec<u32> = locations.iter().map(|location| location.ip.0).collect();
        servers.sort_unstable();
        assert_eq!((scene.picture(3).as_str(), found.0), (picture, version), "{reports:?}");
        assert_eq!(servers, readable, "{reports:?}");
    };
    check(&[5], "G--", 5, &[0]);
    check(&[6], "V--", 6, &[0]);
    check(&[5, 6], "GV-", 6, &[1]);
    check(&[5, 5, 4], "GGW", 5, &[0, 1]);
    check(&[4, 4], "WW-", 6, &[]); // older than the last writer's
    check(&[7, 5], "WG-", 5, &[1]);
}

#[test]
fn a_change_in_doubt_is_ended_when_the_copies_are_here_or_after_a_while_and_never_backwards() {
    let set = |old: u32| Command::SetVersion { chunk: CHUNK, new: Version(7), old: Version(old) };
    let mut scene = in_doubt(2, 2);
    scene.report(0, 5);
    scene.report(1, 6);
    assert_eq!(scene.tick(), [(0, set(5)), (1, set(6))], "each from its own version");
    assert!(scene.effects.contains(&Effect::Raise { chunk: CHUNK, version: Version(7) }));
    scene.table.all.get_mut(&CHUNK).unwrap().version = Version(7);
    scene.answer(0, Answered::SetVersion, Status::OK);
    scene.answer(1, Answered::SetVersion, Status::OK);
    assert!(scene.effects.contains(&Effect::SetVersion { chunk: CHUNK, version: Version(7) }));
    assert_eq!(scene.picture(2), "VV");

    // One copy of two, and a server is away: it may bring the other, but not for ever.
    let mut scene = in_doubt(1, 2);
    scene.chunks.set_absent_servers(1, 0);
    scene.report(0, 5);
    assert_eq!(scene.tick(), []);
    scene.effects.clear();
    let later = NOW + super::settle::SETTLE_WAIT_SECONDS;
    scene.chunks.tick(&scene.table, later, Duration::from_millis(50), &mut scene.effects);
    assert_eq!(scene.sent(), [(0, set(5))]);

    // What no server carries out is not tried again at once: each attempt takes a version.
    let mut scene = in_doubt(1, 1);
    scene.report(0, 5);
    scene.tick();
    scene.table.all.get_mut(&CHUNK).unwrap().version = Version(7);
    scene.answer(0, Answered::SetVersion, Status::NOTDONE);
    assert_eq!(scene.picture(1), "G");
    assert_eq!(scene.tick(), []);
    scene.chunks.tick(&scene.table, NOW + 60, Duration::from_millis(50), &mut scene.effects);
    assert_eq!(scene.sent().len(), 1);

    // A cut that is owed goes with it.
    let mut scene = in_doubt(1, 1);
    scene.table.all.get_mut(&CHUNK).unwrap().cut = Some(100);
    scene.report(0, 5);
    let cut = Command::Truncate { chunk: CHUNK, length_bytes: 100, new: Version(7), old: Version(5) };
    assert_eq!(scene.tick(), [(0, cut)]);
}

#[test]
fn a_server_with_another_version_than_it_should_have_is_asked_which_instead_of_called_damaged() {
    let set = |new: u32, old: u32| Command::SetVersion { chunk: CHUNK, new: Version(new), old: Version(old) };
    // It has carried out a late order of a connection before this one: 6, while 5 was reported.
    let mut scene = in_doubt(1, 1);
    scene.report(0, 5);
    scene.tick();
    scene.table.all.get_mut(&CHUNK).unwrap().version = Version(7);
    for (expected, status) in
        [(set(7, 7), Status::WRONGVERSION), (set(6, 6), Status::WRONGVERSION), (set(7, 6), Status::OK)]
    {
        scene.effects.clear();
        scene.answer(0, Answered::SetVersion, status);
        assert_eq!(scene.sent(), [(0, expected)]);
    }
    scene.answer(0, Answered::SetVersion, Status::OK);
    assert_eq!((scene.picture(1).as_str(), scene.table.all[&CHUNK].floor), ("V", Version(7)));

    // It has none of those that are good.
    let mut scene = in_doubt(1, 1);
    scene.report(0, 5);
    scene.tick();
    scene.table.all.get_mut(&CHUNK).unwrap().version = Version(7);
    for _ in 0..4 {
        scene.answer(0, Answered::SetVersion, Status::WRONGVERSION);
    }
    assert_eq!(scene.picture(1), "X");
}

#[test]
fn newer_copies_than_the_metadata_know_of_are_never_deleted() {
    let mut scene = Scene::new(3, 5, 2);
    scene.report(0, 5);
    scene.report(1, 5);
    scene.report(2, 9);
    assert_eq!(scene.tick(), []);
    let mut scene = Scene::new(3, 5, 2);
    (0..2).for_each(|number| scene.report(number, 5));
    scene.report(2, 4);
    assert_eq!(scene.tick(), [(2, Command::Delete { chunk: CHUNK, version: Version(4) })], "and old ones by version");
}

#[test]
fn a_server_that_leaves_during_an_operation_interrupts_it() {
    let mut scene = Scene::new(3, 6, 3);
    (0..3).for_each(|number| scene.report(number, 6));
    scene.table.all.get_mut(&CHUNK).unwrap().version = Version(7);
    scene.chunks.begin_set_version(CHUNK, Version(6), Version(7), None, &mut scene.effects);
    scene.effects.clear();
    scene.answer(0, Answered::SetVersion, Status::OK);
    scene.answer(1, Answered::SetVersion, Status::OK);
    scene.chunks.disconnect(ServerId(2), &scene.table, NOW, &mut scene.effects);
    assert_eq!(scene.picture(3), "BB-");
    let raise = Command::SetVersion { chunk: CHUNK, new: Version(8), old: Version(7) };
    assert_eq!(scene.sent(), [(0, raise), (1, raise)]);
    assert_eq!(scene.finished(), None);
    let mut alone = Scene::new(1, 6, 1);
    alone.report(0, 6);
    alone.chunks.begin_set_version(CHUNK, Version(6), Version(7), None, &mut alone.effects);
    alone.chunks.disconnect(ServerId(0), &alone.table, NOW, &mut alone.effects);
    assert_eq!(alone.finished(), Some(Status::NOTDONE));
}

#[test]
fn a_write_is_granted_only_when_every_copy_is_known_to_be_current() {
    // reports by server, facts, absent servers, continues -> result
    let check = |reports: &[u32], change: fn(&mut Scene), shared: bool, continues: bool, expected| {
        let mut scene = Scene::new(2, 5, 2);
        for (number, version) in reports.iter().enumerate() {
            scene.report(u16::try_from(number).unwrap(), *version);
        }
        change(&mut scene);
        let result = scene.chunks.before_write(CHUNK, shared, continues, &scene.table, NOW);
        assert_eq!(result, expected, "{reports:?} {shared} {continues}");
    };
    let nothing: fn(&mut Scene) = |_| {};
    let locked: fn(&mut Scene) = |scene| scene.table.all.get_mut(&CHUNK).unwrap().locked_to = NOW;
    let unlocked: fn(&mut Scene) = |scene| scene.table.all.get_mut(&CHUNK).unwrap().locked_to = NOW - 1;
    let settled: fn(&mut Scene) = |scene| {
        scene.chunks.begin_set_version(CHUNK, Version(4), Version(5), None, &mut scene.effects);
        scene.answer(0, Answered::SetVersion, Status::OK);
        scene.answer(1, Answered::SetVersion, Status::OK);
    };
    let busy: fn(&mut Scene) =
        |scene| scene.chunks.begin_set_version(CHUNK, Version(4), Version(5), None, &mut scene.effects);
    let absent: fn(&mut Scene) = |scene| scene.chunks.set_absent_servers(1, 0);
    let one_reports: fn(&mut Scene) = |scene| scene.chunks.receiving_new_until = NOW + 1;
    let unknown: fn(&mut Scene) = |scene| scene.table.all.clear();
    check(&[5, 5], nothing, false, false, Ok(WriteStep::Operation)); // copies came: version up first
    check(&[5, 5], settled, false, false, Ok(WriteStep::Grant));
    check(&[5, 5], settled, true, false, Ok(WriteStep::Operation));
    check(&[5, 5], locked, false, false, Err(Status::LOCKED));
    check(&[5, 5], locked, false, true, Ok(WriteStep::Operation));
    check(&[5, 5], unlocked, false, false, Ok(WriteStep::Operation));
    check(&[5, 5], busy, false, true, Err(Status::CHUNKBUSY));
    check(&[5], one_reports, false, false, Err(Status::EAGAIN));
    check(&[5, 5], one_reports, false, false, Ok(WriteStep::Operation));
    check(&[4], nothing, false, false, Err(Status::CHUNKLOST));
    check(&[], absent, false, false, Err(Status::CSNOTPRESENT));
    check(&[5], absent, false, false, Ok(WriteStep::Operation));
    check(&[5], unknown, false, false, Err(Status::NOCHUNK));
}

#[test]
fn the_planner_does_the_most_urgent_safe_thing() {
    let marked = Version::MARKED_FOR_REMOVAL;
    // servers, goal, files, reports by server -> what is sent, as "server command"
    let check = |servers: u16, goal: u8, files: u32, reports: &[u32], expected: &[&str]| {
        let mut scene = Scene::new(servers, 5, goal);
        scene.table.all.get_mut(&CHUNK).unwrap().files = files;
        for (number, version) in reports.iter().enumerate().filter(|(_, version)| **version != 0) {
            scene.report(u16::try_from(number).unwrap(), *version);
        }
        let mut sent: Vec<String> = scene
            .tick()
            .iter()
            .map(|(server, command)| match command {
                Command::Replicate { source_ip, .. } => format!("{server} replicate from {}", source_ip.0),
                Command::Delete { .. } => format!("{server} delete"),
                other => format!("{server} {other:?}"),
            })
            .collect();
        sent.sort();
        assert_eq!(sent, expected, "goal {goal}, {files} files, {reports:?}");
    };
    check(2, 2, 1, &[5, 5], &[]);
    check(2, 2, 1, &[5], &["1 replicate from 0"]);
    check(1, 2, 1, &[5], &[]); // nowhere to go
    check(2, 2, 1, &[5, 4], &["1 delete"]); // the wrong version stands in the way
    check(3, 2, 1, &[5, 4], &["2 replicate from 0"]); // first a good copy, then the bad one goes
    check(3, 2, 1, &[5, 5, 4], &["2 delete"]);
    check(2, 1, 1, &[5, 5], &["0 delete"]); // a surplus of one: the fullest, then the first
    check(2, 1, 0, &[5, 4], &["0 delete", "1 delete"]); // no file wants it
    check(2, 2, 1, &[5 | marked, 0], &["1 replicate from 0"]); // a disk marked for removal does not count
    check(2, 1, 1, &[5, 5 | marked], &[]); // ... and is left alone
    check(2, 2, 1, &[4, 3], &[]); // nothing good: nothing is deleted
}

#[test]
fn a_version_one_off_is_taken_only_when_it_cannot_be_older_than_what_was_acknowledged() {
    // reports, absent servers, the journal ended with a grant -> version taken
    let check = |reports: &[u32], absent: usize, unfinished: bool, adopted: Option<u32>| {
        let mut scene = Scene::new(2, 5, 2);
        scene.chunks.set_absent_servers(absent, 0);
        if unfinished {
            scene.chunks.remember_unfinished(CHUNK);
        }
        for (number, version) in reports.iter().enumerate() {
            scene.report(u16::try_from(number).unwrap(), *version);
        }
        scene.tick();
        let found = scene.effects.iter().find_map(|effect| match effect {
            Effect::SetVersion { version, .. } => Some(version.0),
            _ => None,
        });
        assert_eq!(found, adopted, "{reports:?} {absent} {unfinished}");
    };
    check(&[6, 6], 1, false, Some(6));
    check(&[6, 4], 1, false, None); // one is not two, whatever else is there
    check(&[9, 9], 1, false, Some(9));
    check(&[6, 4], 0, false, Some(6));
    check(&[4, 4], 0, true, Some(4));
    check(&[4, 4], 0, false, None); // the present version was acknowledged: these are old bytes
    check(&[4, 4], 1, true, None); // the right one may be on the absent server
    check(&[4], 0, true, None);
    check(&[3, 3], 0, true, None);
    check(&[5, 4], 0, true, None);
}

#[test]
fn an_old_copy_never_stands_in_for_a_newer_one_that_was_lost() {
    let mut scene = Scene::new(2, 5, 2);
    scene.chunks.remember_unfinished(CHUNK);
    scene.report(0, 5);
    scene.report(1, 4);
    scene.chunks.report_damaged(ServerId(0), &[CHUNK], &scene.table, NOW - 100, &mut scene.effects);
    scene.tick();
    scene.answer(0, Answered::SetVersion, Status::CRC); // the newer one, asked whether it counts all the same
    scene.tick();
    assert_eq!(scene.picture(2), "XW");
    assert!(!scene.effects.iter().any(|effect| matches!(effect, Effect::SetVersion { .. })));
}

#[test]
fn damaged_copies_are_taken_back_one_by_one_when_there_is_no_other() {
    let set_version = |new: u32, old: u32| Command::SetVersion { chunk: CHUNK, new: Version(new), old: Version(old) };
    let damaged = |servers: &[u16], at: u32| {
        let mut scene = Scene::new(2, 5, 2);
        scene.report(0, 5);
        scene.report(1, 5);
        for &server in servers {
            scene.chunks.report_damaged(ServerId(server), &[CHUNK], &scene.table, at, &mut scene.effects);
        }
        scene
    };

    let mut scene = damaged(&[0, 1], NOW - 5);
    assert_eq!(scene.tick(), [], "somebody may be on the way with a good one");
    assert_eq!(scene.chunks.locations(CHUNK, Ip4(9), &scene.table, NOW), Ok((Version(5), Vec::new())), "ask again");

    let mut scene = damaged(&[0, 1], NOW - 20);
    assert_eq!(scene.tick(), [(0, set_version(5, 5))]);
    scene.effects.clear();
    scene.answer(0, Answered::SetVersion, Status::OK);
    assert_eq!(scene.sent(), [(0, set_version(6, 5))], "no other copy of this version may come between");
    scene.effects.clear();
    scene.answer(0, Answered::SetVersion, Status::OK);
    assert_eq!((scene.picture(2).as_str(), scene.table.all[&CHUNK].version), ("VX", Version(6)));

    for status in [Status::CRC, Status::NOTDONE, Status::WRONGVERSION] {
        let mut scene = damaged(&[0, 1], NOW - 20);
        scene.tick();
        scene.effects.clear();
        scene.answer(0, Answered::SetVersion, status);
        assert_eq!((scene.picture(2).as_str(), scene.table.all[&CHUNK].version), ("XX", Version(5)));
        scene.chunks.expect_rescue(CHUNK, NOW - 20);
        assert_eq!(scene.tick(), [(1, set_version(5, 5))], "each copy has one chance");
        scene.answer(1, Answered::SetVersion, status);
        scene.chunks.expect_rescue(CHUNK, NOW - 20);
        assert_eq!(scene.tick(), []);
        assert_eq!(scene.chunks.locations(CHUNK, Ip4(9), &scene.table, NOW), Err(Status::CHUNKLOST));
    }

    let mut scene = damaged(&[0], NOW - 20);
    scene.tick();
    assert!(!scene.sent().iter().any(|(_, command)| matches!(command, Command::SetVersion { .. })), "one is good");
    let mut scene = damaged(&[0, 1], NOW - 20);
    scene.chunks.set_absent_servers(1, 0);
    assert_eq!(scene.tick(), [], "an absent server may have a good one");
}

#[test]
fn an_unknown_chunk_is_kept_unless_its_deletion_was_seen() {
    let mut scene = Scene::new(1, 5, 1);
    scene.chunks.remember_deleted(ChunkId(9));
    let reports = [8, 9, 250].map(|id| ChunkReport { chunkid: ChunkId(id), version: 3 });
    let outcome = scene.chunks.report_chunks(ServerId(0), &reports, &scene.table, NOW - 100, &mut scene.effects);
    assert_eq!((outcome.quarantined, outcome.doomed), (2, 1));
    assert!(scene.effects.contains(&Effect::RaiseNextChunkId { next: 251 }));
    let delete = Command::Delete { chunk: ChunkId(9), version: Version::ANY };
    assert_eq!(scene.tick(), [(0, delete)]);
    let kept: Vec<u64> = scene.chunks.quarantined().map(|(chunk, _, _)| chunk.0).collect();
    assert_eq!(kept, [8, 250]);
}

#[test]
fn a_new_chunk_goes_to_servers_with_room_in_turn() {
    let mut scene = Scene::new(3, 5, 1);
    let mut uses = [0; 3];
    for _ in 0..30 {
        for server in scene.chunks.choose(2, None, Ip4(9), NOW).unwrap() {
            uses[usize::from(server.0)] += 1;
        }
    }
    assert_eq!(uses.iter().sum::<i32>(), 60);
    assert!(uses.iter().all(|uses| (15..=25).contains(uses)), "{uses:?}");
    let check = |change: fn(&mut Server), expected: Result<usize, Status>| {
        let mut scene = Scene::new(3, 5, 1);
        for number in 0..3 {
            change(scene.chunks.servers_mut().get_mut(ServerId(number)).unwrap());
        }
        let chosen = scene.chunks.choose(2, None, Ip4(9), NOW).map(|servers| servers.len());
        assert_eq!(chosen, expected);
    };
    check(|_| {}, Ok(2));
    check(|server| server.space.used = server.space.total, Err(Status::NOSPACE));
    check(|server| server.heavy_load = HeavyLoad::Overloaded, Err(Status::EAGAIN));
    check(|server| server.maintenance = true, Ok(2)); // all spared: then all may
    let mut empty = Scene::new(0, 5, 1);
    assert_eq!(empty.chunks.choose(1, None, Ip4(9), NOW), Err(Status::NOCHUNKSERVERS));
    empty.chunks.set_absent_servers(1, 0);
    assert_eq!(empty.chunks.choose(1, None, Ip4(9), NOW), Err(Status::EAGAIN));
}

#[test]
fn limits_hold_back_work_without_losing_it() {
    let mut scene = Scene::new(2, 5, 1);
    for id in 10..40 {
        scene.table.all.insert(
            ChunkId(id),
            Facts { version: Version(1), floor: Version(1), cut: None, locked_to: 0, files: 0, goal: 1 },
        );
    }
    let reports: Vec<ChunkReport> = (10..40).map(|id| ChunkReport { chunkid: ChunkId(id), version: 1 }).collect();
    scene.chunks.report_chunks(ServerId(0), &reports, &scene.table, NOW - 100, &mut scene.effects);
    let mut deleted = 0;
    while deleted < 30 {
        let sent = scene.tick();
        assert!(!sent.is_empty() && sent.len() <= 10, "{} deletions at once", sent.len());
        for (server, command) in sent {
            let Command::Delete { chunk, .. } = command else { panic!("{command:?}") };
            let server = ServerId(server);
            scene.chunks.answer_delete(server, chunk, Status::OK, &scene.table, NOW, &mut scene.effects);
            deleted += 1;
        }
    }
    assert_eq!(scene.chunks.servers().get(ServerId(0)).unwrap().deletions, 0);
}

#[test]
fn nothing_is_moved_while_the_view_is_incomplete() {
    let check = |change: fn(&mut Scene), expected: usize| {
        let mut scene = Scene::new(2, 5, 2);
        scene.report(0, 5);
        change(&mut scene);
        assert_eq!(scene.tick().len(), expected);
    };
    check(|_| {}, 1);
    check(|scene| scene.chunks.servers_mut().get_mut(ServerId(1)).unwrap().registering = true, 0);
    check(|scene| scene.chunks.receiving_new_until = NOW + 1, 0);
    check(|scene| scene.chunks.last_disconnect = NOW - 1, 0);
    check(|scene| scene.chunks.settings_mut().delay_init_seconds = NOW + 1, 0);
    check(|scene| scene.chunks.set_absent_servers(1, 1), 0); // all who are away are in maintenance
    check(|scene| scene.chunks.set_absent_servers(2, 1), 1);
    check(|scene| scene.table.all.get_mut(&CHUNK).unwrap().locked_to = NOW, 0);
}

#[test]
fn a_replication_that_is_not_answered_is_given_up() {
    let mut scene = Scene::new(2, 5, 2);
    scene.report(0, 5);
    assert_eq!(scene.tick().len(), 1);
    assert_eq!(scene.chunks.before_write(CHUNK, false, false, &scene.table, NOW), Err(Status::CHUNKBUSY));
    assert_eq!(scene.chunks.before_read(CHUNK, &scene.table, NOW), Ok(()));
    assert_eq!(
        scene.chunks.locations(CHUNK, Ip4(9), &scene.table, NOW).unwrap().1.len(),
        1,
        "only the copy that is complete"
    );
    scene.effects.clear();
    let later = NOW + LOCK_SECONDS + 1;
    scene.chunks.tick(&scene.table, later, Duration::from_millis(50), &mut scene.effects);
    assert!(scene.effects.contains(&Effect::Wake { chunk: CHUNK }));
    assert!(matches!(
        scene.chunks.copies(CHUNK).find(|copy| copy.0 == ServerId(1)).map(|copy| copy.1.kind),
        Some(CopyKind::Invalid | CopyKind::Deleting)
    ));
    scene.chunks.answer_replicate(ServerId(1), CHUNK, Version(5), Status::OK, &scene.table, later, &mut scene.effects);
    assert_ne!(scene.picture(2), "VV", "a late answer is not trusted");
}

#[test]
fn a_copy_that_found_no_room_is_left_out_if_another_takes_the_write_and_kept_if_none_does() {
    // room by the servers' own word, whose writes failed -> the copies; are the next two writers refused?
    let check = |rooms: [bool; 2], failed: &[u16], picture: &str, refused: [bool; 2]| {
        let mut scene = Scene::new(2, 5, 2);
        for (number, has_room) in (0..).zip(rooms) {
            scene.report(number, 5);
            let server = scene.chunks.servers_mut().get_mut(ServerId(number)).unwrap();
            server.space.used = if has_room { 0 } else { server.space.total };
        }
        for number in failed {
            let Scene { table, chunks, effects } = &mut scene;
            chunks.report_write_failed(ServerId(*number), &[CHUNK], table, NOW, effects);
        }
        assert_eq!(scene.picture(2), picture, "{rooms:?} {failed:?}");
        for refused in refused {
            let step = scene.chunks.before_write(CHUNK, false, false, &scene.table, NOW);
            assert_eq!(step == Err(Status::NOSPACE), refused, "{rooms:?} {failed:?}: {step:?}");
        }
    };
    check([true, true], &[0], "XV", [false, false]);
    check([true, false], &[1], "VX", [false, false]);
    check([true, false], &[0], "VV", [false, false]);
    check([false, false], &[0, 1], "VV", [true, false]);
    check([true, true], &[0, 1], "XV", [true, false]);
}
