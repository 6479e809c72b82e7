//! Copies that move from full servers to empty ones, and come to rest.

use super::*;

/// Server 0 is full to 90 %, 1 to 50 %, 2 to 40 %; the chunk is on 0 and 1.
fn scene() -> Scene {
    let mut scene = Scene::new(3, 5, 2);
    for (number, percent) in [(0, 90), (1, 50), (2, 40)] {
        let server = scene.chunks.servers_mut().get_mut(ServerId(number)).unwrap();
        server.space.used = server.space.total / 100 * percent;
    }
    scene
}

/// Which copies are made in many sweeps, as
/// (from, to), if all that is ordered is done at once and changes no server's usage.
fn moves(change: fn(&mut Scene)) -> Vec<(u32, u16)> {
    let mut scene = scene();
    change(&mut scene);
    (0..2).for_each(|number| scene.report(number, 5));
    let mut made = Vec::new();
    for round in 0..40 {
        scene.effects.clear();
        scene.chunks.tick(&scene.table, NOW + round, Duration::from_secs(1), &mut scene.effects);
        for (number, command) in scene.sent() {
            let (server, now, ok) = (ServerId(number), NOW + round, Status::OK);
            match command {
                Command::Replicate { source_ip, version, .. } => {
                    made.push((source_ip.0, number));
                    scene.chunks.answer_replicate(server, CHUNK, version, ok, &scene.table, now, &mut scene.effects);
                }
                Command::Delete { .. } => {
                    scene.chunks.answer_delete(server, CHUNK, ok, &scene.table, now, &mut scene.effects);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    made
}

#[test]
fn a_copy_moves_once_from_the_fullest_server_to_the_emptiest() {
    assert_eq!(moves(|_| {}), [(0, 2)]);
    // Two are as full as each other.
    let equal: fn(&mut Scene) = |scene| {
        let used = scene.chunks.servers().get(ServerId(0)).unwrap().space.used;
        scene.chunks.servers_mut().get_mut(ServerId(1)).unwrap().space.used = used;
    };
    assert_eq!(moves(equal), [(0, 2)]);
}

#[test]
fn a_copy_that_would_not_leave_the_full_server_is_not_moved() {
    // Server 0 and 2 have the label, one copy needs it: with all three, the one without it would go.
    let labelled: fn(&mut Scene) = |scene| {
        scene.table.labels = Labels::restricting(Mode::Standard, vec![LabelMask(vec![1]), LabelMask::default()]);
        for number in [0, 2] {
            scene.chunks.servers_mut().get_mut(ServerId(number)).unwrap().labels = 1;
        }
    };
    assert_eq!(moves(labelled), []);
}

#[test]
fn nothing_is_moved_from_a_server_whose_copies_are_not_deleted() {
    let overloaded: fn(&mut Scene) =
        |scene| scene.chunks.servers_mut().get_mut(ServerId(0)).unwrap().heavy_load = HeavyLoad::Overloaded;
    assert_eq!(moves(overloaded), [(1, 2)], "the other one may");
    let maintained: fn(&mut Scene) =
        |scene| scene.chunks.servers_mut().get_mut(ServerId(0)).unwrap().maintenance = true;
    assert_eq!(moves(maintained), [(1, 2)]);
}

#[test]
fn a_move_that_never_ends_is_given_up_and_frees_both_ends() {
    let mut scene = scene();
    (0..2).for_each(|number| scene.report(number, 5));
    let tick = |scene: &mut Scene, now: u32, elapsed: u32| {
        scene.effects.clear();
        scene.chunks.tick(&scene.table, now, Duration::from_secs(u64::from(elapsed)), &mut scene.effects);
        let server = |number: u16| scene.chunks.servers().get(ServerId(number)).unwrap();
        (scene.sent().len(), server(0).replications_out, server(2).replications_in)
    };
    while tick(&mut scene, NOW, 1).0 == 0 {}
    assert_eq!(tick(&mut scene, NOW + LOCK_SECONDS, LOCK_SECONDS), (0, 1, 1));
    // What it left behind is not trusted, and goes.
    assert_eq!(tick(&mut scene, NOW + LOCK_SECONDS + 1, 1), (1, 0, 0));
    assert_eq!((scene.sent()[0].0, scene.picture(3).as_str()), (2, "VVD"));
    let later = NOW + LOCK_SECONDS + 2;
    scene.chunks.answer_replicate(ServerId(2), CHUNK, Version(5), Status::OK, &scene.table, later, &mut scene.effects);
    assert_eq!(scene.picture(3), "VVD", "a late answer is not trusted");
}
