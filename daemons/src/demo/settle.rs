//! What the demo asks of its master once everything runs: whether all chunkservers count, and how many copies to keep.
//!
//! It asks as any client would, in a session of its own that ends again.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use client::{Client, Settings};
use ring::{DriverChoice, Options, Ring};
use wire::{CltomaFuseSetsclass, HEADER_BYTES, Inode, Packet, Status};

/// How long the master may take to count the space of every chunkserver.
const SPACE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the whole conversation may take.
const TALK_TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);
/// The mode of SETSCLASS that changes a folder with all below it. Spec 32.
const SET_RECURSIVELY: u8 = 4;

/// Wait until the master counts the space of all `disks`, then let everything have `copies` copies, if that is to change.
///
/// Returns whether all of the space was seen. Errors: the master does not answer, or refuses.
pub(super) fn settle(master: SocketAddrV4, disks: &[PathBuf], copies: Option<u8>) -> Result<bool, String> {
    // Disks differ a little between two looks, and a chunkserver rounds: nine tenths are enough to tell n from n - 1.
    let wanted_bytes = disks.iter().map(volume_bytes).sum::<u64>() / 10 * 9;
    let options = Options { driver: DriverChoice::Epoll, buffers: 4, ..Options::default() };
    let talk = move |ring: Ring| async move {
        match ring.timeout(TALK_TIMEOUT, talk(ring.clone(), master, wanted_bytes, copies)).await {
            Ok(outcome) => outcome,
            Err(_) => Err("the master does not answer".to_owned()),
        }
    };
    ring::run(options, talk).map_err(|error| format!("can't start a client: {error}"))?
}

async fn talk(ring: Ring, master: SocketAddrV4, wanted_bytes: u64, copies: Option<u8>) -> Result<bool, String> {
    let settings = Settings { info: "[demo]".into(), ..Settings::new(master) };
    let client = Client::connect(ring.clone(), settings).await.map_err(|error| error.to_string())?;
    let outcome = converse(&ring, &client, wanted_bytes, copies).await;
    client.close().await;
    outcome
}

async fn converse(ring: &Ring, client: &Client, wanted_bytes: u64, copies: Option<u8>) -> Result<bool, String> {
    let began = ring.now();
    let mut all = false;
    while !all && began.elapsed(ring) < SPACE_TIMEOUT {
        let space = client.statfs().await.map_err(|error| format!("the master does not tell its space: {error}"))?;
        all = space.total_bytes >= wanted_bytes;
        if !all {
            ring.sleep(POLL).await;
        }
    }
    if let Some(copies) = copies {
        set_goal(client, copies).await?;
    }
    Ok(all)
}

/// Every file and folder that there is, and so every new one below them, gets `copies` copies. Spec 32, 32.1.
async fn set_goal(client: &Client, copies: u8) -> Result<(), String> {
    let request = CltomaFuseSetsclass {
        msgid: 0,
        inode: Inode::ROOT,
        uid: 0,
        goal: copies,
        smode: SET_RECURSIVELY,
        names: Vec::new(),
    };
    let packet = request.encode();
    let behind_msgid = &packet[HEADER_BYTES + 4..];
    let fail = |why: String| format!("the master does not take a goal of {copies}: {why}");
    match client.forward(CltomaFuseSetsclass::TYPE, behind_msgid).await {
        Ok((_, answer)) if answer.len() == 1 => Err(fail(Status(answer[0]).text().to_owned())),
        Ok(_) => Ok(()),
        Err(error) => Err(fail(error.to_string())),
    }
}

/// Size of the file system that holds `disk`, as a chunkserver reports it. Spec 21, 8.2.
fn volume_bytes(disk: &PathBuf) -> u64 {
    rustix::fs::statvfs(disk).map_or(0, |space| {
        let reserved = space.f_bfree.saturating_sub(space.f_bavail);
        space.f_frsize.saturating_mul(space.f_blocks.saturating_sub(reserved))
    })
}
