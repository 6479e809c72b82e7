//! Chunkservers that die at any moment of a read or a write, in simulated worlds.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use client::{Caller, Inode};
use ring::sim::World;

use crate::fake::{CLIENT, Fake, server_ip};
use crate::{READ, READ_WRITE, connect, open, pattern, read};

/// Runs a flow while servers 0 and 1 of three die, one after the other at times that the seed decides; each chunk has
/// three copies. The master goes on naming a dead server for some seconds.
fn while_servers_die<Fut: Future<Output = ()> + 'static>(flow: impl Fn(ring::Ring, Fake) -> Fut) {
    for seed in 0..12 {
        let world = World::new(seed, ring::sim::Settings::default());
        let fake = Fake::in_world(&world, 3, 3);
        let node = world.node(CLIENT);
        let is_done = Rc::new(RefCell::new(false));
        let (done, work) = (is_done.clone(), flow(world.ring(node), fake.clone()));
        drop(world.spawn(node, |_| async move {
            work.await;
            *done.borrow_mut() = true;
        }));
        for server in 0..2 {
            world.run_for(Duration::from_millis(world.random_below(150)));
            if world.random_below(2) == 0 {
                world.kill(world.node(server_ip(server)));
            } else {
                world.crash(world.node(server_ip(server)));
            }
            world.run_for(Duration::from_millis(world.random_below(3000)));
            fake.state.borrow_mut().gone.push(server);
        }
        assert!(world.run_until(|| *is_done.borrow()), "seed {seed}: the flow came to its end");
    }
}

#[test]
fn a_reader_never_notices_that_servers_die_while_one_copy_lives() {
    while_servers_die(|ring, fake| async move {
        let content = pattern(1, 3 << 20);
        fake.add_file(5, "a", &content);
        let client = connect(&ring, &fake).await;
        for round in 0..3 {
            let handle = open(&client, 5, READ).await;
            for at in (0..content.len()).step_by(100_000) {
                let expected = &content[at..content.len().min(at + 100_000)];
                assert!(read(&client, handle, at as u64, 100_000).await == expected, "round {round}, byte {at}");
            }
            client.release(handle, None).await.unwrap();
        }
        client.close().await;
    });
}

#[test]
fn what_flush_has_confirmed_is_there_though_servers_die() {
    while_servers_die(|ring, fake| async move {
        let client = connect(&ring, &fake).await;
        for number in 0..6u64 {
            let name = format!("file{number}");
            let caller = Caller::root();
            let (entry, opened) = client.create(&caller, Inode(1), name.as_bytes(), 0o644, READ_WRITE).await.unwrap();
            let content = pattern(number, 700_000);
            for at in (0..content.len()).step_by(50_000) {
                client.write(opened.handle, at as u64, content[at..at + 50_000].to_vec().into()).await.unwrap();
                if at % 250_000 == 0 {
                    ring.sleep(Duration::from_millis(30)).await;
                }
            }
            client.flush(opened.handle, None).await.unwrap();
            assert!(read(&client, opened.handle, 0, 1_000_000).await == content);
            client.release(opened.handle, None).await.unwrap();
            assert_eq!(fake.state.borrow().files[&entry.inode.0].length, 700_000);
        }
        client.close().await;
    });
}
