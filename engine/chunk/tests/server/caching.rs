//! What comes from the block cache is what a disk would give. `engine/chunk/src/cache.rs` says why.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ring::sim::World;
use wire::*;

use crate::support::client::Client;
use crate::support::{Bed, everywhere, noise, sim_bed};

const BLOCK: u32 = 65_536;
/// Unit of the last scenario: each cell holds one number, over and over. Not a multiple of a sector.
const CELL: u32 = 2048 / 8;
const CELLS_PER_BLOCK: u32 = BLOCK / CELL;
const CELLS: u32 = 4 * CELLS_PER_BLOCK;
const WRITERS: u32 = 3;
const LAST_WRITER: u32 = WRITERS - 1;

#[test]
fn what_was_read_is_not_read_from_disk_again() {
    everywhere(|bed| async move {
        let (running, mut master) = bed.one_server().await;
        let data = noise(1, 3 * BLOCK as usize);
        assert_eq!(master.create(1, 1).await, Status::OK);
        let mut client = bed.client(1).await;
        client.write(1, 1, &[], 0, &data).await;
        assert!(client.read_ok(1, 1, 0, 3 * BLOCK).await == data);
        // Without telling the server, the disk gets other bytes: only memory can give the old ones now.
        let node = &bed.nodes[1];
        let path = node.chunk_path(1, 1).await;
        for block in 0..3 {
            node.rot(&path, 8192 + block * u64::from(BLOCK)).await;
        }
        assert!(client.read_ok(1, 1, 0, 3 * BLOCK).await == data);
        assert!(client.read_ok(1, 1, 70_000, 5000).await == data[70_000..75_000]);
        running.stop().await;
    });
}

#[test]
fn a_reader_from_front_to_back_gets_what_was_written() {
    everywhere(|bed| async move {
        let bed = Bed { block_cache_mib: 16, ..bed };
        let (running, mut master) = bed.one_server().await;
        let data = noise(1, 40 * BLOCK as usize + 5000);
        assert_eq!(master.create(1, 1).await, Status::OK);
        bed.client(1).await.write(1, 1, &[], 0, &data).await;
        running.stop().await;
        // A server that has not read it yet, and steps that fit no block.
        let (running, _master) = bed.one_server().await;
        for step in [BLOCK, 30_000, 100_000, 5 * BLOCK + 1] {
            let mut client = bed.client(1).await;
            for offset in (0..data.len() as u32).step_by(step as usize) {
                let size = step.min(data.len() as u32 - offset);
                let expected = &data[offset as usize..][..size as usize];
                assert!(client.read_ok(1, 1, offset, size).await == expected, "{size} bytes at {offset}");
            }
        }
        running.stop().await;
    });
}

#[test]
fn a_partial_write_changes_the_cached_block_and_its_sum() {
    everywhere(|bed| async move {
        let (running, mut master) = bed.one_server().await;
        let mut data = noise(2, 2 * BLOCK as usize);
        assert_eq!(master.create(1, 1).await, Status::OK);
        let mut client = bed.client(1).await;
        client.write(1, 1, &[], 0, &data).await;
        for (offset, length) in [(0, 1), (4096, 4096), (5000, 3), (65_536 + 65_000, 536), (8192, 57_344)] {
            let part = noise(offset as u64, length);
            client.write(1, 1, &[], offset as u32, &part).await;
            data[offset..offset + length].copy_from_slice(&part);
            assert!(client.read_ok(1, 1, 0, 2 * BLOCK).await == data, "{length} bytes at {offset}");
        }
        running.stop().await;
        // Without the cache: the disk has the same, and its sums fit.
        let bed = bed.without_cache();
        let (running, _master) = bed.one_server().await;
        assert!(bed.client(1).await.read_ok(1, 1, 0, 2 * BLOCK).await == data);
        running.stop().await;
    });
}

#[test]
fn operations_on_a_chunk_leave_nothing_old_behind() {
    everywhere(|bed| async move {
        let (running, mut master) = bed.one_server().await;
        let data = noise(3, 3 * BLOCK as usize);
        assert_eq!(master.create(1, 1).await, Status::OK);
        let mut client = bed.client(1).await;
        client.write(1, 1, &[], 0, &data).await;
        assert!(client.read_ok(1, 1, 0, 3 * BLOCK).await == data);
        assert_eq!(master.truncate(1, 70_000, 2, 1).await, Status::OK);
        assert_eq!(client.read(1, 1, 0, 10).await, (vec![], Status::WRONGVERSION));
        let mut cut = data[..70_000].to_vec();
        cut.resize(3 * BLOCK as usize, 0);
        assert!(client.read_ok(1, 2, 0, 3 * BLOCK).await == cut);
        assert_eq!(master.truncate(1, 3 * BLOCK, 3, 2).await, Status::OK);
        assert!(client.read_ok(1, 3, 0, 3 * BLOCK).await == cut);
        assert_eq!(master.set_version(1, 4, 3).await, Status::OK);
        assert!(client.read_ok(1, 4, 0, 3 * BLOCK).await == cut);
        assert_eq!(client.read(1, 3, 0, 10).await, (vec![], Status::WRONGVERSION));
        // The same chunk once more, with other content.
        assert_eq!(master.delete(1, 4).await, Status::OK);
        assert_eq!(client.read(1, 4, 0, 10).await, (vec![], Status::NOCHUNK));
        assert_eq!(master.create(1, 4).await, Status::OK);
        assert!(client.read_ok(1, 4, 0, 3 * BLOCK).await == vec![0; 3 * BLOCK as usize]);
        let other = noise(4, BLOCK as usize);
        client.write(1, 4, &[], 0, &other).await;
        assert!(client.read_ok(1, 4, 0, BLOCK).await == other);
        running.stop().await;
    });
}

/// What a cell may hold: what was acknowledged last, and what was sent since.
#[derive(Clone, Copy, Default)]
struct CellState {
    acknowledged: u8,
    sent: u8,
}

/// Readers and writers at the same blocks at the same time. Each writer has cells of its own and counts them up; a
/// reader must find in each cell one number, not older than what was acknowledged when it asked, not newer than what
/// was sent when the answer was there.
#[test]
fn readers_beside_writers_see_nothing_old_and_nothing_torn() {
    for seed in 0..60 {
        // A cache of 3 blocks that come and go, or one that is large enough for reading ahead.
        let (buffers, block_cache_mib) = if seed % 3 == 0 { (256 + 3, 4) } else { (512, 16) };
        let world = World::new(seed, ring::sim::Settings { buffers, ..ring::sim::Settings::default() });
        let io_mode = if seed % 2 == 0 { chunk::settings::IoMode::Direct } else { chunk::settings::IoMode::Buffered };
        let bed = Bed { block_cache_mib, ..sim_bed(&world, io_mode) };
        let ended = world.run(world.node(bed.nodes[0].ip), |_| readers_beside_writers(seed, bed.clone()));
        assert!(ended.is_some(), "seed {seed}: the scenario came to an end");
    }
}

async fn readers_beside_writers(seed: u64, bed: Bed) {
    let (running, mut master) = bed.one_server().await;
    assert_eq!(master.create(1, 1).await, Status::OK);
    let cells = Rc::new(RefCell::new(vec![CellState::default(); CELLS as usize]));
    let writers_left = Rc::new(Cell::new(WRITERS));
    let ring = bed.nodes[0].ring.clone();
    let mut tasks = Vec::new();
    for number in 0..WRITERS {
        let (client, cells, left) = (bed.client(1).await, cells.clone(), writers_left.clone());
        tasks.push(ring.spawn(async move {
            count_up(client, Seed(seed * 10 + u64::from(number)), number, &cells).await;
            left.set(left.get() - 1);
        }));
    }
    for number in 0..4 {
        let (mut client, cells, left) = (bed.client(1).await, cells.clone(), writers_left.clone());
        tasks.push(ring.spawn(async move {
            let mut dice = Seed(seed * 10 + 5 + number);
            let mut next = 0;
            while left.get() > 0 {
                // The last one reads from front to back, over and over.
                let first = if number == 3 { next } else { dice.below(u64::from(CELLS)) as u32 };
                let count = 1 + dice.below(u64::from(CELLS - first).min(400)) as u32;
                next = (first + count) % CELLS;
                let before: Vec<CellState> = cells.borrow().clone();
                let data = client.read_ok(1, 1, first * CELL, count * CELL).await;
                let after = cells.borrow();
                for (cell, bytes) in (first as usize..).zip(data.chunks(CELL as usize)) {
                    let value = bytes[0];
                    assert!(bytes.iter().all(|byte| *byte == value), "seed {seed}: cell {cell} is torn");
                    let range = before[cell].acknowledged..=after[cell].sent;
                    assert!(range.contains(&value), "seed {seed}: cell {cell} holds {value}, not {range:?}");
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    running.stop().await;
}

/// The last writer writes the last block, whole; the others share the cells before it in turn.
async fn count_up(mut client: Client, mut dice: Seed, number: u32, cells: &RefCell<Vec<CellState>>) {
    assert_eq!(client.open_write(1, 1, &[]).await, Status::OK);
    for writeid in 1..=60 {
        let (first, count) = match number {
            LAST_WRITER => (CELLS - CELLS_PER_BLOCK, CELLS_PER_BLOCK),
            _ => ((dice.below(u64::from(CELLS - CELLS_PER_BLOCK) / 2) * 2) as u32 + number, 1),
        };
        let own = first as usize..(first + count) as usize;
        let value = cells.borrow()[own.start].sent + 1;
        cells.borrow_mut()[own.clone()].iter_mut().for_each(|cell| cell.sent = value);
        let position = first * CELL;
        let data = vec![value; (count * CELL) as usize];
        client.send_piece(1, writeid, (position / BLOCK) as u16, (position % BLOCK) as u16, &data).await;
        assert_eq!(client.status().await, (writeid, Status::OK));
        cells.borrow_mut()[own].iter_mut().for_each(|cell| cell.acknowledged = value);
    }
    client.finish_write(1, 1).await;
}
