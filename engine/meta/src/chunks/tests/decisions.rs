//! What the planner decides about a chunk, what it says of it, and how near and how fast servers count.

use super::*;
use crate::chunks::decision::Class;

#[test]
fn a_chunk_is_explained_by_what_the_planner_decides_about_it() {
    let marked = Version::MARKED_FOR_REMOVAL;
    let explain = |servers: u16, goal: u8, reports: &[u32], change: fn(&mut Scene)| {
        let mut scene = Scene::new(servers, 5, goal);
        for (number, version) in reports.iter().enumerate().filter(|(_, version)| **version != 0) {
            scene.report(u16::try_from(number).unwrap(), *version);
        }
        change(&mut scene);
        scene.chunks.explain(CHUNK, &scene.table, NOW)
    };
    let nothing: fn(&mut Scene) = |_| {};
    let decides = |servers: u16, goal: u8, reports: &[u32], change: fn(&mut Scene), expected: Decision| {
        assert_eq!(explain(servers, goal, reports, change).decision, expected, "goal {goal}, {reports:?}");
    };
    let stuck = |obstacle| Decision::Stuck { elsewhere: false, obstacle, instead: None };
    decides(2, 2, &[5, 5], nothing, Decision::AsWanted);
    let copying = Copying { source: ServerId(0), target: ServerId(1), endangered: true };
    decides(2, 2, &[5], nothing, Decision::Replicate(copying));
    decides(1, 2, &[5], nothing, stuck(Obstacle::NoTarget));
    decides(2, 2, &[5], |scene| scene.chunks.set_absent_servers(1, 1), stuck(Obstacle::Maintenance));
    let locked: fn(&mut Scene) = |scene| scene.table.all.get_mut(&CHUNK).unwrap().locked_to = NOW + 40;
    decides(2, 2, &[5], locked, Decision::Locked { until: NOW + 40 });
    let raising: fn(&mut Scene) =
        |scene| scene.chunks.begin_set_version(CHUNK, Version(4), Version(5), None, &mut scene.effects);
    decides(2, 2, &[5, 5], raising, Decision::Operating(Operation::SetVersion));
    let unused: fn(&mut Scene) = |scene| scene.table.all.get_mut(&CHUNK).unwrap().files = 0;
    decides(2, 2, &[5], unused, Decision::DeleteUnused);
    decides(2, 2, &[], unused, Decision::RemoveRecord);
    decides(2, 2, &[], nothing, Decision::NoCopies);
    decides(2, 2, &[6, 6], nothing, Decision::Adopt(Version(6)));
    decides(2, 2, &[3, 3], nothing, Decision::Unavailable);
    decides(3, 2, &[5, 5, 4], nothing, Decision::DeleteBad);
    decides(2, 1, &[5, 5], nothing, Decision::DeleteSurplus(vec![ServerId(0)]));
    let bad_in_the_way =
        Decision::Stuck { elsewhere: false, obstacle: Obstacle::NoTarget, instead: Some(Instead::DeleteBad) };
    decides(2, 2, &[5, 4], nothing, bad_in_the_way);
    let room = Some(Instead::MakeRoom(ServerId(2)));
    let marked_in_the_way = Decision::Stuck { elsewhere: false, obstacle: Obstacle::NoTarget, instead: room };
    decides(3, 3, &[5, 5, 5 | marked], nothing, marked_in_the_way);
    decides(2, 2, &[5], |scene| scene.table.all.clear(), Decision::Unknown);
}

#[test]
fn every_server_that_takes_no_copy_says_why() {
    let check = |change: fn(&mut Server), goal: u8, expected: &[Refusal]| {
        let mut scene = Scene::new(3, 5, goal);
        scene.report(0, 5);
        scene.report(1, if goal > 2 { 5 } else { 4 });
        change(scene.chunks.servers_mut().get_mut(ServerId(2)).unwrap());
        let why = scene.chunks.explain(CHUNK, &scene.table, NOW);
        let told: Vec<Refusal> = why.targets.iter().map(|(_, refusal)| *refusal).collect();
        assert_eq!(told.get(2..).unwrap_or_default(), expected, "{why:?}");
    };
    check(|_| {}, 3, &[]);
    check(|server| server.space.used = server.space.total, 3, &[Refusal::AlmostFull]);
    check(|server| server.space.total = 0, 3, &[Refusal::NoDisk]);
    check(|server| server.maintenance = true, 3, &[Refusal::Maintenance]);
    check(|server| server.maintenance = true, 2, &[]); // the last copy goes anywhere
    check(|server| server.heavy_load = HeavyLoad::Overloaded, 3, &[Refusal::Overloaded]);
    check(|server| server.replications_in = 1, 3, &[Refusal::Limit { running: 1 }]);
    check(|server| server.replications_in = 2, 2, &[Refusal::Limit { running: 2 }]);
    let kept_and_busy: fn(&mut Server) = |server| (server.maintenance, server.replications_in) = (true, 2);
    check(kept_and_busy, 3, &[Refusal::Maintenance]);
    check(kept_and_busy, 2, &[Refusal::Limit { running: 2 }]);

    let mut scene = Scene::new(2, 5, 2);
    scene.report(0, 5);
    scene.chunks.servers_mut().get_mut(ServerId(0)).unwrap().replications_out = 10;
    let why = scene.chunks.explain(CHUNK, &scene.table, NOW);
    assert_eq!(why.sources, [(ServerId(0), Refusal::Limit { running: 10 })]);
}

#[test]
fn a_planner_that_rests_says_until_when() {
    let check = |change: fn(&mut Scene), expected: Option<Rest>| {
        let mut scene = Scene::new(2, 5, 2);
        scene.report(0, 5);
        change(&mut scene);
        assert_eq!(scene.chunks.explain(CHUNK, &scene.table, NOW).rest, expected);
        assert_eq!(scene.tick().is_empty(), expected.is_some(), "{expected:?}");
    };
    check(|_| {}, None);
    let registering: fn(&mut Scene) =
        |scene| scene.chunks.servers_mut().get_mut(ServerId(1)).unwrap().registering = true;
    check(registering, Some(Rest::Registering(1)));
    check(|scene| scene.chunks.receiving_new_until = NOW + 1, Some(Rest::Receiving { until: NOW + 1 }));
    check(|scene| scene.chunks.last_disconnect = NOW - 1, Some(Rest::Disconnected { until: NOW + 9 }));
    let young: fn(&mut Scene) = |scene| scene.chunks.settings_mut().delay_init_seconds = NOW + 240;
    check(young, Some(Rest::Started { until: NOW + 240 }));
    check(
        |scene| scene.chunks.departing.push(Departing { server: ServerId(9), from: ChunkId(0), departure: 0 }),
        Some(Rest::Departing),
    );
}

#[test]
fn a_chunk_that_waits_says_for_what() {
    let mut scene = Scene::new(2, 5, 2);
    scene.report(0, 5);
    let why = scene.chunks.explain(CHUNK, &scene.table, NOW);
    assert_eq!(why.queued, Some((Queue::Endangered, 0)));
    scene.tick();
    let why = scene.chunks.explain(CHUNK, &scene.table, NOW + 3);
    assert_eq!(why.copying, [(ServerId(0), ServerId(1), NOW)]);

    let mut full = Scene::new(2, 5, 1);
    (0..2).for_each(|number| full.report(number, 5));
    full.chunks.servers_mut().get_mut(ServerId(0)).unwrap().deletions = 10;
    assert_eq!(full.chunks.explain(CHUNK, &full.table, NOW).at_deletion_limit, [ServerId(0)]);

    let unknown = ChunkReport { chunkid: ChunkId(50), version: 3 };
    scene.chunks.report_chunks(ServerId(1), &[unknown], &scene.table, NOW, &mut scene.effects);
    let why = scene.chunks.explain(ChunkId(50), &scene.table, NOW);
    assert_eq!(why.quarantined, [(ServerId(1), Version(3))]);
    scene.chunks.remember_deleted(ChunkId(51));
    assert!(scene.chunks.explain(ChunkId(51), &scene.table, NOW).was_deleted);
}

/// Servers 0 and 1 in rack A, 2 and 3 in rack B; server 0 and 1 are one machine.
fn racks(goal: u8) -> Scene {
    let mut scene = Scene::new(4, 5, goal);
    scene.chunks.servers_mut().get_mut(ServerId(1)).unwrap().ip = Ip4(0);
    let mut topology = Topology::default();
    topology.put(Ip4(0), Ip4(1), "A");
    topology.put(Ip4(2), Ip4(3), "B");
    scene.chunks.set_topology(topology);
    scene
}

#[test]
fn clients_are_sent_to_the_nearest_copy() {
    let mut scene = racks(4);
    (0..4).for_each(|number| scene.report(number, 5));
    for (client, expected) in [(Ip4(3), [3, 2, 0, 0]), (Ip4(2), [2, 3, 0, 0]), (Ip4(1), [0, 0, 2, 3])] {
        let locations = scene.chunks.locations(CHUNK, client, &scene.table, NOW).unwrap().1;
        let mut found: Vec<u32> = locations.iter().map(|location| location.ip.0).collect();
        found[2..].sort_unstable();
        assert_eq!(found, expected, "{client}");
    }
}

#[test]
fn new_chunks_go_near_their_writer_if_so_set() {
    let first_of = |near: u32, client: u32| {
        let mut scene = racks(1);
        scene.chunks.settings_mut().creations_near = near;
        let mut found: Vec<u16> = (0..8)
            .flat_map(|_| scene.chunks.choose(1, None, Ip4(client), NOW).unwrap())
            .map(|server| server.0)
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    };
    assert_eq!(first_of(0, 3), [0, 1, 2, 3]);
    assert_eq!(first_of(1, 3), [3], "the same machine");
    assert_eq!(first_of(2, 3), [2, 3], "the same rack");
    assert_eq!(first_of(3, 3), [0, 1, 2, 3]);
    assert_eq!(first_of(1, 77), [0, 1, 2, 3], "nobody is near: all will do");
}

#[test]
fn copies_are_made_near_their_source_if_so_set() {
    let replicated = |near: u8, reports: &[u16]| {
        let mut found = std::collections::BTreeSet::new();
        for seed in 0..40 {
            let mut scene = racks(u8::try_from(reports.len()).unwrap() + 1);
            scene.chunks.random = Random(seed);
            scene.chunks.settings_mut().replications_near = near;
            reports.iter().for_each(|server| scene.report(*server, 5));
            let why = scene.chunks.explain(CHUNK, &scene.table, NOW);
            let Decision::Replicate(copying) = why.decision else { panic!("{why:?}") };
            found.insert((copying.source.0, copying.target.0));
        }
        Vec::from_iter(found)
    };
    assert_eq!(replicated(0, &[2]), [(2, 0), (2, 1), (2, 3)]);
    assert_eq!(replicated(2, &[2]), [(2, 3)], "in its rack");
    assert_eq!(replicated(0, &[0, 2]), [(0, 1), (0, 3), (2, 1), (2, 3)]);
    assert_eq!(replicated(1, &[0, 2]), [(0, 1), (2, 3)], "from the nearest");
}

#[test]
fn no_two_copies_share_a_machine_or_a_rack_if_so_set() {
    let decision = |unique: Unique, goal: u8, reports: &[u16]| {
        let mut scene = racks(goal);
        scene.chunks.settings_mut().unique = unique;
        reports.iter().for_each(|server| scene.report(*server, 5));
        scene.chunks.explain(CHUNK, &scene.table, NOW).decision
    };
    let elsewhere = |decision: Decision, servers: &[u16]| match decision {
        Decision::Replicate(copying) => assert!(servers.contains(&copying.target.0), "{copying:?}"),
        other => panic!("{other:?}"),
    };
    assert_eq!(decision(Unique::No, 2, &[0, 1]), Decision::AsWanted);
    elsewhere(decision(Unique::Address, 2, &[0, 1]), &[2, 3]);
    assert_eq!(decision(Unique::Address, 2, &[2, 3]), Decision::AsWanted);
    elsewhere(decision(Unique::Rack, 2, &[2, 3]), &[0, 1]);
    assert_eq!(decision(Unique::Rack, 2, &[0, 3]), Decision::AsWanted);
    elsewhere(decision(Unique::Rack, 3, &[0, 3]), &[1, 2]); // a copy in the wrong place is better than none
    assert_eq!(decision(Unique::Address, 2, &[0, 1, 3]), Decision::DeleteSurplus(vec![ServerId(0)]));
}

#[test]
fn a_server_that_is_slow_gets_one_copy_at_a_time_and_one_more_of_what_is_endangered() {
    let mut scene = Scene::new(2, 5, 2);
    scene.chunks.settings_mut().write_replications[Class::Endangered as usize] = 4.0;
    for id in 20..40 {
        scene.table.all.insert(
            ChunkId(id),
            Facts { version: Version(1), floor: Version(1), cut: None, locked_to: 0, files: 1, goal: 2 },
        );
    }
    let reports: Vec<ChunkReport> = (20..40).map(|id| ChunkReport { chunkid: ChunkId(id), version: 1 }).collect();
    scene.chunks.report_chunks(ServerId(0), &reports, &scene.table, NOW - 100, &mut scene.effects);
    let mut under_way: Vec<ChunkId> = Vec::new();
    let mut at_once = Vec::new();
    for round in 0..9u32 {
        scene.effects.clear();
        // Fifteen seconds pass between an order and its answer.
        scene.chunks.tick(&scene.table, NOW, Duration::from_secs(10), &mut scene.effects);
        under_way.extend(scene.sent().iter().map(|(_, command)| match command {
            Command::Replicate { chunk, .. } => *chunk,
            other => panic!("{other:?}"),
        }));
        at_once.push(under_way.len());
        if round == 8 {
            break;
        }
        scene.chunks.clock += 5.0;
        let done = under_way.remove(0);
        let (server, ok) = (ServerId(1), Status::OK);
        scene.chunks.answer_replicate(server, done, Version(1), ok, &scene.table, NOW, &mut scene.effects);
    }
    assert_eq!(at_once, [4, 4, 4, 4, 3, 2, 2, 2, 2], "four as the settings say, until it is known");
    let waiting = (20..40).map(ChunkId).find(|id| !under_way.contains(id) && scene.chunks.census(*id).valid == 1);
    let why = scene.chunks.explain(waiting.unwrap(), &scene.table, NOW);
    assert!(matches!(why.targets[1], (_, Refusal::Slow { running: 2, .. })), "{why:?}");
}

#[test]
fn a_server_that_completes_nothing_is_known_to_be_slow() {
    let mut scene = Scene::new(2, 5, 2);
    scene.report(0, 5);
    assert_eq!(scene.tick().len(), 1);
    let elapsed = Duration::from_secs(u64::from(LOCK_SECONDS) + 1);
    scene.chunks.tick(&scene.table, NOW + LOCK_SECONDS + 1, elapsed, &mut scene.effects);
    let (from, to) = (scene.chunks.servers().get(ServerId(0)), scene.chunks.servers().get(ServerId(1)));
    let known = [from.unwrap().pace_out.seconds_per_copy(), to.unwrap().pace_in.seconds_per_copy()];
    assert_eq!(known, [Some(121.0), Some(121.0)]);
}

#[test]
fn a_server_that_announced_its_restart_is_waited_for_only_where_it_had_a_copy() {
    let mut scene = Scene::new(3, 5, 2);
    let other = ChunkId(8);
    scene.table.all.insert(other, scene.table.all[&CHUNK]);
    scene.report(0, 5);
    scene.report(1, 5);
    let report = ChunkReport { chunkid: other, version: 5 };
    scene.chunks.report_chunks(ServerId(2), &[report], &scene.table, NOW - 100, &mut scene.effects);
    // Server 1, csid 2, says good-bye and leaves.
    scene.chunks.set_expected_servers(BTreeSet::from([2]));
    scene.chunks.disconnect(ServerId(1), &scene.table, NOW - 100, &mut scene.effects);
    scene.chunks.set_absent_servers(1, 1);
    scene.tick();
    let copied = |scene: &mut Scene| -> Vec<ChunkId> {
        let copied = |command: (u16, Command)| match command.1 {
            Command::Replicate { chunk, .. } => Some(chunk),
            _ => None,
        };
        scene.tick().into_iter().filter_map(copied).collect()
    };
    assert_eq!(copied(&mut scene), [other], "it has nothing to do with that server");
    let why = scene.chunks.explain(CHUNK, &scene.table, NOW).decision;
    assert_eq!(why, Decision::Stuck { elsewhere: false, obstacle: Obstacle::Maintenance, instead: None });
    // Its time is over.
    scene.chunks.set_expected_servers(BTreeSet::new());
    scene.chunks.set_absent_servers(1, 0);
    assert_eq!(copied(&mut scene), [CHUNK]);

    // It came back without the chunk: what it was waited for is over, also when it goes again.
    let mut scene = Scene::new(3, 5, 2);
    (0..2).for_each(|number| scene.report(number, 5));
    scene.chunks.set_expected_servers(BTreeSet::from([2]));
    scene.chunks.disconnect(ServerId(1), &scene.table, NOW - 100, &mut scene.effects);
    scene.tick();
    let back = scene.chunks.connect(server(1)).expect("a place");
    scene.chunks.disconnect(back, &scene.table, NOW - 100, &mut scene.effects);
    scene.chunks.set_absent_servers(1, 1);
    scene.tick();
    scene.tick();
    assert_eq!(copied(&mut scene), [CHUNK]);
}

#[test]
fn a_bad_copy_on_the_only_server_that_a_class_allows_goes() {
    let labels =
        |mode, copies: &[u32]| Labels { mode, copies: copies.iter().map(|set| LabelMask(vec![*set])).collect() };
    // mode, wanted labels, labels of servers, reports by server -> what is sent
    let check = |mode, wanted: &[u32], servers: &[u32], reports: &[u32], expected: &[(u16, bool)]| {
        let count = u16::try_from(servers.len()).unwrap();
        let mut scene = Scene::new(count, 5, u8::try_from(wanted.len()).unwrap());
        scene.table.labels = Some(labels(mode, wanted));
        for (number, labels) in (0..).zip(servers) {
            scene.chunks.servers_mut().get_mut(ServerId(number)).unwrap().labels = *labels;
        }
        for (number, version) in (0..).zip(reports).filter(|(_, version)| **version != 0) {
            scene.report(number, *version);
        }
        let sent =
            scene.tick().into_iter().map(|(server, command)| (server, matches!(command, Command::Delete { .. })));
        assert_eq!(sent.collect::<Vec<_>>(), expected, "{mode:?} {wanted:?} {servers:?} {reports:?}");
    };
    let (a, b, c) = (0b001, 0b010, 0b100);
    let (delete, copy) = (true, false);
    check(Mode::Strict, &[a, c], &[a, c, b], &[5, 4, 0], &[(1, delete)]);
    check(Mode::Standard, &[a, c], &[a, c, b], &[5, 4, 0], &[(2, copy)]);
    check(Mode::Strict, &[a, c], &[a, c, c], &[5, 4, 0], &[(2, copy)]);
    // Another server of the label that is served already does not help.
    check(Mode::Strict, &[a, c], &[a, c, a], &[5, 4, 0], &[(1, delete)]);
    check(Mode::Strict, &[a, c], &[a, b, b], &[5, 0, 0], &[]);
}

#[test]
fn a_new_chunk_waits_only_for_servers_that_its_class_allows() {
    let (a, b) = (0b001, 0b010);
    let check = |wanted: &[u32], servers: &[(u32, bool)], absent: usize, expected: Result<usize, Status>| {
        let mut scene = Scene::new(u16::try_from(servers.len()).unwrap(), 5, 1);
        for (number, (labels, is_overloaded)) in (0..).zip(servers) {
            let server = scene.chunks.servers_mut().get_mut(ServerId(number)).unwrap();
            server.labels = *labels;
            server.heavy_load = if *is_overloaded { HeavyLoad::Overloaded } else { HeavyLoad::Ok };
        }
        scene.chunks.set_absent_servers(absent, 0);
        let copies = wanted.iter().map(|set| LabelMask(vec![*set])).collect();
        let labels = Labels { mode: Mode::Strict, copies };
        let chosen = scene.chunks.choose(wanted.len(), Some(&labels), Ip4(9), NOW).map(|servers| servers.len());
        assert_eq!(chosen, expected, "{wanted:?} {servers:?}");
    };
    check(&[a, a, a], &[(a, false), (a, false), (b, true)], 0, Ok(2));
    check(&[a, a, a], &[(a, false), (a, false), (a, true)], 0, Err(Status::EAGAIN));
    check(&[a], &[(b, false), (a, true)], 0, Err(Status::EAGAIN));
    check(&[a], &[(b, false)], 0, Err(Status::NOSPACE));
    check(&[a], &[(b, false)], 1, Err(Status::EAGAIN));
}
