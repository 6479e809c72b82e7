//! The simulated driver: what it promises to those who test on it.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use ring::sim::{DiskFault, Failure, NodeId, Settings, World};
use ring::{BufferedReader, IoBufExt, OpenHow, Ring};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const PORT: u16 = 9420;

fn server_address() -> SocketAddr {
    (SERVER, PORT).into()
}

fn two_nodes(seed: u64) -> (World, NodeId, NodeId) {
    let world = World::new(seed, Settings::default());
    let (server, client) = (world.node(SERVER), world.node(CLIENT));
    (world, server, client)
}

/// Answers each 4-byte packet with itself, for any number of connections.
async fn echo(ring: Ring) {
    let listener = ring.listen(server_address()).unwrap();
    loop {
        let stream = listener.accept().await.unwrap();
        ring.spawn(async move {
            let mut reader = BufferedReader::new(stream.clone(), 64);
            while let Ok(packet) = reader.fill(4).await {
                let packet = packet[..4].to_vec();
                reader.consume(4);
                if stream.send_all(packet).await.0.is_err() {
                    return;
                }
            }
        });
    }
}

async fn ask(ring: &Ring, stream: &ring::Stream, number: u8) -> std::io::Result<()> {
    stream.send_all(vec![number; 4]).await.0?;
    let (result, answer) = stream.recv_exact(vec![0; 4]).await;
    result?;
    assert_eq!(answer, [number; 4]);
    ring.sleep(Duration::from_millis(u64::from(number))).await;
    Ok(())
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let trace = |seed| {
        let (world, server, client) = two_nodes(seed);
        world.spawn(server, echo);
        for _ in 0..5 {
            world.spawn(client, |ring| async move {
                let stream = ring.connect(server_address(), None).await.unwrap();
                for number in 0..20 {
                    if ask(&ring, &stream, number).await.is_err() {
                        return;
                    }
                    let path = format!("/{}", ring.random_u64() % 10);
                    ring.write_file_durably(Path::new(&path), 0o600, vec![number; 3000]).await.ok();
                }
            });
        }
        world.run_for(Duration::from_millis(200));
        world.crash(server);
        world.run_for(Duration::from_secs(60));
        (world.trace(), world.now())
    };
    assert_eq!(trace(1), trace(1));
    assert_eq!(trace(2), trace(2));
    assert_ne!(trace(1), trace(2));
}

#[test]
fn large_transfers_arrive_in_order() {
    for seed in 0..20 {
        let (world, server, client) = two_nodes(seed);
        let data: Rc<Vec<u8>> = Rc::new((0..1_000_000u32).map(|at| (at % 251) as u8).collect());
        let sent = data.clone();
        world.spawn(server, |ring| async move {
            let stream = ring.listen(server_address()).unwrap().accept().await.unwrap();
            stream.send_two(sent.clone(), b"end").await.0.unwrap();
        });
        let received = world.run(client, |ring| async move {
            let stream = loop {
                match ring.connect(server_address(), None).await {
                    Ok(stream) => break stream,
                    Err(_) => ring.sleep(Duration::from_millis(1)).await,
                }
            };
            let (result, bytes) = stream.recv_exact(vec![0; 1_000_003]).await;
            result.unwrap();
            assert_eq!(stream.recv(vec![0; 1]).await.0.unwrap(), 0);
            bytes
        });
        let received = received.unwrap();
        assert!(received[..1_000_000] == data[..] && received.ends_with(b"end"), "seed {seed}");
    }
}

#[test]
fn nobody_listening_refuses_and_nobody_there_times_out() {
    let (world, _, client) = two_nodes(3);
    let errors = world.run(client, |ring| async move {
        let refused = ring.connect(server_address(), None).await.unwrap_err().kind();
        let start = ring.now();
        let nowhere = ring.connect("10.9.9.9:1".parse().unwrap(), None).await.unwrap_err().kind();
        assert!(start.elapsed(&ring) >= Duration::from_secs(20));
        (refused, nowhere)
    });
    assert_eq!(errors, Some((ErrorKind::ConnectionRefused, ErrorKind::TimedOut)));
}

#[test]
fn a_cut_connection_ends_with_an_error_and_a_healed_one_goes_on() {
    for seed in 0..20 {
        let (world, server, client) = two_nodes(seed);
        world.spawn(server, echo);
        world.run_for(Duration::from_millis(5));
        let rounds = Rc::new(Cell::new(0u32));
        let counted = rounds.clone();
        let task = world.spawn(client, |ring| async move {
            let stream = ring.connect(server_address(), None).await?;
            loop {
                ask(&ring, &stream, 1).await?;
                counted.set(counted.get() + 1);
            }
            #[allow(unreachable_code, reason = "it says the type")]
            std::io::Result::Ok(())
        });
        world.run_for(Duration::from_millis(100));
        let before = rounds.get();
        assert!(before > 5, "seed {seed}");

        world.cut(server, client);
        world.run_for(Duration::from_millis(500));
        assert!(rounds.get() <= before + 1 && !task.is_finished(), "seed {seed}");
        world.heal(server, client);
        world.run_for(Duration::from_millis(100));
        assert!(rounds.get() > before + 5, "seed {seed}: what was held arrives");

        world.cut(server, client);
        world.run_for(Duration::from_secs(30));
        assert!(task.is_finished(), "seed {seed}: the connection has given up");
    }
}

/// Whatever happens to the network, what arrives on a connection is a beginning of what was sent on it.
#[test]
fn cuts_and_heals_never_reorder_or_alter_bytes() {
    for seed in 0..12 {
        let (world, server, client) = two_nodes(seed);
        let received = Rc::new(Cell::new(0u64));
        let counted = received.clone();
        world.spawn(server, |ring| async move {
            let listener = ring.listen(server_address()).unwrap();
            loop {
                let stream = listener.accept().await.unwrap();
                let mut reader = BufferedReader::new(stream, 512);
                let mut next = 0u64;
                while let Ok(Ok(bytes)) = ring.timeout(Duration::from_secs(40), reader.fill(8)).await {
                    let number = bytes[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
                    assert_eq!(number, next, "seed {seed}");
                    next += 1;
                    counted.set(counted.get() + 1);
                    reader.consume(8);
                }
            }
        });
        world.spawn(client, |ring| async move {
            loop {
                let Ok(stream) = ring.connect(server_address(), None).await else { continue };
                for first in (0u64..).step_by(200) {
                    let bytes: Vec<u8> = (first..first + 200)
                        .flat_map(|number| (0..8).rev().map(move |place| (number >> (8 * place)) as u8))
                        .collect();
                    if stream.send_all(bytes).await.0.is_err() {
                        break;
                    }
                    ring.sleep(Duration::from_millis(3)).await;
                }
            }
        });
        for _ in 0..20 {
            world.run_for(Duration::from_millis(world.random_below(200)));
            world.cut(server, client);
            world.run_for(Duration::from_millis(1 << world.random_below(14)));
            world.heal(server, client);
        }
        assert!(received.get() > 100, "seed {seed}: {} numbers", received.get());
    }
}

#[test]
fn a_crash_breaks_connections_and_drops_tasks() {
    let (world, server, client) = two_nodes(5);
    let alive = Rc::new(());
    let witness = Rc::downgrade(&alive);
    world.spawn(server, |ring| async move {
        echo(ring).await;
        drop(alive);
    });
    world.run_for(Duration::from_millis(5));
    let task = world.spawn(client, |ring| async move {
        let stream = ring.connect(server_address(), None).await.unwrap();
        stream.recv(vec![0; 1]).await.0
    });
    world.run_for(Duration::from_millis(20));
    world.crash(server);
    assert!(witness.upgrade().is_none());
    world.run_for(Duration::from_secs(1));
    assert!(task.is_finished());
    let refused = world.run(client, |ring| async move {
        ring.timeout(Duration::from_secs(5), ring.connect(server_address(), None)).await.is_err()
    });
    assert_eq!(refused, Some(true), "a node without power answers nobody");
    world.restart(server);
    world.spawn(server, echo);
    let answered = world.run(client, |ring| async move {
        ring.sleep(Duration::from_millis(5)).await;
        let stream = ring.connect(server_address(), None).await.unwrap();
        ask(&ring, &stream, 9).await.is_ok()
    });
    assert_eq!(answered, Some(true));
}

#[test]
fn a_crash_keeps_what_was_synced_and_may_lose_the_rest() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..60 {
        let (world, server, _) = two_nodes(seed);
        world.run(server, |ring| async move {
            ring.write_file_durably(Path::new("/safe"), 0o600, vec![7; 5000]).await.unwrap();
            let file = ring.open(Path::new("/safe"), OpenHow::read_write()).await.unwrap();
            file.write_all_at(vec![8; 100], 4900).await.0.unwrap();
            let file = ring.open(Path::new("/unsafe"), OpenHow::create(0o600)).await.unwrap();
            file.write_all_at(vec![9; 1000], 0).await.0.unwrap();
        });
        world.crash(server);
        let ring = world.restart(server);
        drop(ring);
        let bytes = world.contents(server, Path::new("/safe")).unwrap();
        assert!(bytes[..4608].iter().all(|byte| *byte == 7), "seed {seed}: sectors that were not touched");
        if bytes.last() == Some(&8) {
            kept += 1
        } else {
            lost += 1
        }
        if let Ok(bytes) = world.contents(server, Path::new("/unsafe")) {
            assert!(bytes.iter().all(|byte| [0, 9].contains(byte)), "seed {seed}");
        }
    }
    assert!(lost > 5 && kept > 5, "{lost} lost, {kept} kept");
}

#[test]
fn an_interrupted_durable_replacement_leaves_old_or_new() {
    let seen = RefCell::new(std::collections::BTreeMap::new());
    for seed in 0..200 {
        let (world, server, _) = two_nodes(seed);
        world.run(server, |ring| async move {
            ring.write_file_durably(Path::new("/state"), 0o600, vec![1; 3000]).await.unwrap();
        });
        world.spawn(server, |ring| async move {
            ring.write_file_durably(Path::new("/state"), 0o600, vec![2; 2000]).await.unwrap();
        });
        world.run_for(Duration::from_micros(seed * 25));
        world.crash(server);
        world.restart(server);
        let bytes = world.contents(server, Path::new("/state")).unwrap();
        let is_old = bytes == [1; 3000];
        assert!(is_old || bytes == [2; 2000], "seed {seed}: {} bytes", bytes.len());
        *seen.borrow_mut().entry(is_old).or_insert(0) += 1;
    }
    assert!(seen.borrow().values().all(|count| *count > 10) && seen.borrow().len() == 2, "{seen:?}");
}

#[test]
fn a_frozen_node_stands_still_while_its_kernel_goes_on_and_then_goes_on_where_it_was() {
    let (world, server, client) = two_nodes(11);
    world.spawn(server, echo);
    world.run_for(Duration::from_millis(5));
    world.freeze(server);
    let asked = world.spawn(client, |ring| async move {
        // The kernel of a stopped process takes connections and what is sent.
        let stream = ring.connect(server_address(), None).await.unwrap();
        stream.send_all(vec![5; 4]).await.0.unwrap();
        let (received, bytes) = stream.recv(vec![0; 1]).await;
        (received.unwrap(), bytes[0], ring.now())
    });
    world.run_for(Duration::from_secs(11));
    assert!(!asked.is_finished(), "nobody answers");
    world.thaw(server);
    world.run_for(Duration::from_secs(1));
    assert!(asked.is_finished());
    assert_eq!(world.run(client, |_| asked).flatten().map(|(count, byte, _)| (count, byte)), Some((1, 5)));
}

#[test]
fn an_older_image_of_a_disk_comes_back_as_it_was() {
    let (world, server, _) = two_nodes(12);
    let write = |byte: u8| {
        world.run(server, move |ring| async move {
            ring.write_file_durably(Path::new("/file"), 0o600, vec![byte; 1000]).await.unwrap();
        });
    };
    write(1);
    let image = world.image_of_disk(server);
    write(2);
    world.crash(server);
    world.replace_disk(server, &image);
    drop(world.restart(server));
    assert_eq!(world.contents(server, Path::new("/file")).unwrap(), [1; 1000]);
}

#[test]
fn direct_files_must_be_aligned() {
    let (world, server, _) = two_nodes(8);
    world.run(server, |ring| async move {
        let how = OpenHow::create(0o600).direct(true);
        let file = ring.open(Path::new("/direct"), how).await.unwrap();
        assert_eq!(file.direct_alignment(), 512);
        let mut block = ring.wait_buffer().await;
        block.payload_mut().fill(5);
        let (result, block) = file.write_all_at(block.slice(0..1024), 512).await;
        result.unwrap();
        for (range, offset) in [(0..100, 0), (0..512, 100), (8..520, 0)] {
            let (result, _) = file.write_all_at(ring.wait_buffer().await.slice(range), offset).await;
            assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        let (result, block) = file.read_at(block.into_inner(), 0).await;
        assert_eq!(result.unwrap(), 1536);
        assert_eq!((block.payload()[511], block.payload()[512]), (0, 5));
    });
}

#[test]
fn disks_fail_fill_and_rot_as_ordered() {
    let (world, server, _) = two_nodes(9);
    let path = Path::new("/disk/file");
    let file = world.run(server, |ring| async move {
        ring.mkdir(Path::new("/disk"), 0o700).await.unwrap();
        let file = ring.open(path, OpenHow::create(0o600)).await.unwrap();
        file.write_all_at(vec![1; 1000], 0).await.0.unwrap();
        file
    });
    let file = file.unwrap();
    world.rot(server, path, 10, 0x80).unwrap();
    world.break_disk(server, Path::new("/disk"), DiskFault::Writes);
    let writer = file.clone();
    let error = world.run(server, |_| async move { writer.write_all_at(b"x", 0).await.0.unwrap_err().raw_os_error() });
    assert_eq!(error, Some(Some(libc_eio())));
    world.mend_disk(server);
    world.set_disk_bytes(server, 1500);
    world.run(server, |ring| async move {
        let full = file.write_all_at(vec![1; 600], 1000).await.0.unwrap_err();
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        assert_eq!(ring.space(path).await.unwrap().free_bytes, 500);
        let (_, bytes) = file.read_at(vec![0; 20], 0).await;
        assert_eq!((bytes[9], bytes[10]), (1, 0x81));
        let names = ring.list(Path::new("/disk")).await.unwrap();
        assert_eq!((names.len(), names[0].name.to_str()), (1, Some("file")));
    });
}

fn libc_eio() -> i32 {
    5
}

#[test]
fn clocks_of_nodes_differ_as_ordered() {
    let (world, server, client) = two_nodes(10);
    world.skew_clock(client, -5_000_000);
    world.run_for(Duration::from_secs(3600));
    let (ours, theirs) = (world.ring(server).wall_micros(), world.ring(client).wall_micros());
    assert_eq!(ours - theirs, 5_000_000);
    assert_eq!(ours, 1_700_000_000_000_000 + 3_600_000_000);
}

#[test]
fn a_world_where_nothing_can_happen_is_noticed() {
    let (world, server, _) = two_nodes(11);
    let waits = world.run(server, |ring| async move {
        ring.listen(server_address()).unwrap().accept().await.ok();
    });
    assert_eq!(waits, None);
}

/// Writes files one after the other; fails after so many steps, if that is ordered. Gives steps and trace of the run,
/// and whether it failed.
fn write_until(order: Option<(u64, Failure)>) -> (u64, u64, bool) {
    const FILES: usize = 3;
    let (world, server, _) = two_nodes(4);
    if let Some((steps, failure)) = order {
        world.fail_at(server, steps, failure);
    }
    let confirmed = Rc::new(Cell::new(0));
    let writing = confirmed.clone();
    let path = |number: usize| std::path::PathBuf::from(format!("/file{number}"));
    drop(world.spawn(server, move |ring| async move {
        for number in 0..FILES {
            ring.write_file_durably(&path(number), 0o644, vec![7; 3000]).await.unwrap();
            writing.set(number + 1);
        }
    }));
    world.run_for(Duration::from_secs(1));
    let ended = (world.steps(server), world.trace(), world.has_failed(server));
    assert_eq!(confirmed.get() == FILES, !ended.2, "{order:?}");
    world.restart(server);
    for number in 0..FILES {
        match world.contents(server, &path(number)) {
            Ok(bytes) => assert_eq!(bytes, [7; 3000], "{order:?}: half a file has its name"),
            Err(_) => assert!(number >= confirmed.get(), "{order:?}: a file that was confirmed is gone"),
        }
    }
    assert!(world.run(server, |ring| async move { ring.list(Path::new("/")).await.is_ok() }).unwrap());
    ended
}

#[test]
fn a_node_can_fail_before_each_of_its_steps() {
    let (steps, _, failed) = write_until(None);
    assert!(
        !failed && steps > 3 * 2 * 5,
        "{steps}: each file is opened, written, synced, renamed, and its folder synced"
    );
    for failure in [Failure::Killed, Failure::PowerCut] {
        for step in 0..steps {
            let ended = write_until(Some((step, failure)));
            assert_eq!((ended.0, ended.2), (step, true), "{failure:?}");
            assert_eq!(
                ended,
                write_until(Some((step, failure))),
                "{failure:?} at {step}: the same order, the same run"
            );
        }
        assert!(!write_until(Some((steps, failure))).2, "{failure:?}: there is no step behind the last one");
    }
}
