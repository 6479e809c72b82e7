//! The client against a scripted master and scripted chunkservers, mostly in a simulated world: whole flows, with
//! every failure the specification names, in virtual time.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

mod crashes;
mod fake;
mod golden;
mod reading;
mod session;
mod syncing;
mod writing;

use std::rc::Rc;

use client::{Caller, Client, Handle, Inode, OpenFlags, Settings};
use ring::Ring;
use ring::sim::World;

use fake::{CLIENT, Fake};

/// Runs a test's flow in a world of its own, for several seeds: order and delays differ in each.
fn in_worlds<Fut: Future<Output = ()> + 'static>(
    servers: usize,
    copies: usize,
    flow: impl Fn(Ring, Fake) -> Fut + 'static,
) {
    in_some_worlds(8, servers, copies, flow);
}

/// The same for a flow that moves much data.
fn in_some_worlds<Fut: Future<Output = ()> + 'static>(
    seeds: u64,
    servers: usize,
    copies: usize,
    flow: impl Fn(Ring, Fake) -> Fut + 'static,
) {
    let flow = Rc::new(flow);
    for seed in 0..seeds {
        let world = World::new(seed, ring::sim::Settings::default());
        let fake = Fake::in_world(&world, servers, copies);
        let node = world.node(CLIENT);
        let flow = flow.clone();
        let done = world.run(node, move |ring| flow(ring, fake));
        assert!(done.is_some(), "seed {seed}: the flow came to its end");
    }
}

fn settings(fake: &Fake) -> Settings {
    let mut settings = Settings::new(fake.master);
    settings.info = "/mnt/test".into();
    settings
}

async fn connect(ring: &Ring, fake: &Fake) -> Client {
    Client::connect(ring.clone(), settings(fake)).await.unwrap()
}

const READ: OpenFlags = OpenFlags { read: true, write: false, append: false, truncate: false };
const READ_WRITE: OpenFlags = OpenFlags { read: true, write: true, append: false, truncate: false };

async fn open(client: &Client, inode: u32, flags: OpenFlags) -> Handle {
    client.open(&Caller::root(), Inode(inode), flags).await.unwrap().handle
}

async fn read(client: &Client, handle: Handle, offset: u64, size: u32) -> Vec<u8> {
    client.read(handle, offset, size).await.unwrap().to_vec()
}

/// Bytes that differ from place to place.
fn pattern(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed;
    (0..size)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        })
        .collect()
}
