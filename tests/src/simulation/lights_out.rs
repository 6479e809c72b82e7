//! What `fsync` confirmed outlives a power cut of every server.

use std::time::Duration;

use chunk::settings::Durability;
use client::{Caller, Client, Errno};
use ring::sim::{NodeId, World};
use wire::Inode;

use super::cluster::{CALM, CHUNKSERVERS, Cluster, connect};
use crate::tree::Random;
use crate::workload::{Broken, READ_WRITE};

/// Files of one run of [`lights_out`], and how often each is written.
const SYNCED_FILES: usize = 6;
const SYNCED_ROUNDS: usize = 3;

/// The power of every server fails at once, right behind the last `fsync`. Under the default policy no server had to
/// write anything to its device by then, save what `fsync` asked for.
///
/// Errors: the sentence that says which file is not as it was when its `fsync` returned.
pub fn lights_out(seed: u64) -> Result<(), Broken> {
    let world = World::new(seed, ring::sim::Settings { disk_bytes: 1 << 40, buffers: 256, ..Default::default() });
    let mut cluster = Cluster::start(&world, Durability::Written);
    let written = world.run(cluster.clients[0], move |ring| async move {
        let client = connect(&ring).await;
        write_and_sync(&client, seed).await.map_err(|errno| Broken(format!("a healthy cluster fails: {errno}")))
    });
    let files = written.expect("the script ends")?;
    let servers: Vec<NodeId> = [cluster.master].into_iter().chain(cluster.chunkservers).collect();
    for node in &servers {
        world.crash(*node);
    }
    world.run_for(Duration::from_secs(1));
    for node in &servers {
        world.restart(*node);
    }
    cluster.start_master(&world, false);
    for index in 0..CHUNKSERVERS.len() {
        cluster.start_chunkserver(&world, index);
    }
    world.run_for(CALM);
    let compared = world.run(cluster.clients[1], move |ring| async move {
        let client = connect(&ring).await;
        for (name, expected) in files {
            let found = read_whole(&client, &name).await;
            let found = found.map_err(|errno| Broken(format!("{name} cannot be read after the power cut: {errno}")))?;
            if found != expected {
                let at = found.iter().zip(&expected).position(|(found, expected)| found != expected);
                let (is, was) = (found.len(), expected.len());
                return Err(Broken(format!("{name} has {is} bytes of {was}, the first that differs is {at:?}")));
            }
        }
        Ok(())
    });
    compared.expect("the script ends")
}

/// Writes and overwrites files, some blocks whole and some in part, each time with an `fsync`; beside them one file
/// that nobody syncs. Gives names and contents.
async fn write_and_sync(client: &Client, seed: u64) -> Result<Vec<(String, Vec<u8>)>, Errno> {
    let (caller, mut random) = (Caller::root(), Random::new(seed ^ 0xF5C));
    let mut files = Vec::new();
    for number in 0..SYNCED_FILES {
        let name = format!("synced{number}");
        let (_, opened) = client.create(&caller, Inode::ROOT, name.as_bytes(), 0o644, READ_WRITE).await?;
        client.release(opened.handle, None).await?;
        files.push((name, Vec::new()));
    }
    for _ in 0..SYNCED_ROUNDS {
        for (name, bytes) in &mut files {
            let inode = client.lookup(&caller, Inode::ROOT, name.as_bytes()).await?.inode;
            let handle = client.open(&caller, inode, READ_WRITE).await?.handle;
            let place = random.below(bytes.len() + 1);
            let length = 1 + random.below(200_000);
            let data = random.bytes(length);
            bytes.resize(bytes.len().max(place + data.len()), 0);
            bytes[place..place + data.len()].copy_from_slice(&data);
            client.write(handle, place as u64, data.into()).await?;
            // As a program that writes, closes, and syncs later through another handle.
            let handle = if random.below(3) == 0 {
                client.flush(handle, None).await?;
                client.release(handle, None).await?;
                client.open(&caller, inode, READ_WRITE).await?.handle
            } else {
                handle
            };
            client.fsync(handle).await?;
            client.release(handle, None).await?;
            if random.below(4) == 0 {
                let cut = random.below(bytes.len());
                client.truncate(&caller, inode, None, cut as u64).await?;
                bytes.truncate(cut);
            }
        }
    }
    let (_, opened) = client.create(&caller, Inode::ROOT, b"not synced", 0o644, READ_WRITE).await?;
    client.write(opened.handle, 0, random.bytes(100_000).into()).await?;
    client.release(opened.handle, None).await?;
    Ok(files)
}

async fn read_whole(client: &Client, name: &str) -> Result<Vec<u8>, Errno> {
    let caller = Caller::root();
    let entry = client.lookup(&caller, Inode::ROOT, name.as_bytes()).await?;
    let handle = client.open(&caller, entry.inode, READ_WRITE).await?.handle;
    let mut bytes = Vec::new();
    loop {
        let piece = client.read(handle, bytes.len() as u64, 1 << 20).await?;
        if piece.is_empty() {
            break;
        }
        bytes.extend_from_slice(&piece.to_vec());
    }
    client.release(handle, None).await?;
    Ok(bytes)
}
