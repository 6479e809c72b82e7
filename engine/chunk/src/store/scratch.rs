//! A few buffers kept aside for work that must go on when the pool is empty.
//!
//! Whoever holds a pool buffer with received data may need one more to finish (the old part of a block, a table). If
//! those came from the pool too, all buffers could end up with holders that wait for one another. Work that holds
//! scratch never waits for the pool or for more scratch, but for truncations, of which a disk has only so many at a
//! time. It may wait for the intent log, and a full log waits until tables are written: so tables and headers have scratch
//! of their own, whose holders wait for the disk alone. No disk gets more than a part of them: one that hangs keeps what it has.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use ring::local::{Permit, Semaphore};
use ring::{Block, Ring};

use crate::volume::Volume;

/// What one core keeps aside.
pub(crate) struct Shares {
    pub(crate) scratch: usize,
    /// Those that work on one disk may hold.
    pub(crate) scratch_of_a_disk: usize,
    /// Buffers for tables and headers, and those of them that one disk may hold.
    pub(crate) tables: usize,
    pub(crate) tables_of_a_disk: usize,
    /// Truncations of one disk at a time: each may need two.
    pub(crate) truncations_of_a_disk: usize,
}

impl Shares {
    /// The share of each of so many cores. One alone has 24 and 8 buffers. Two disks that hang leave some for a third.
    pub(crate) fn of_cores(cores: usize) -> Shares {
        let (scratch_of_a_disk, tables_of_a_disk) = ((8 / cores).max(4), (2 / cores).max(1));
        Shares {
            scratch: 3 * scratch_of_a_disk,
            scratch_of_a_disk,
            tables: 4 * tables_of_a_disk,
            tables_of_a_disk,
            truncations_of_a_disk: scratch_of_a_disk / 2,
        }
    }
}

pub(crate) struct ScratchPool {
    ring: Ring,
    blocks: usize,
    free: Rc<RefCell<Vec<Block>>>,
    permits: Semaphore,
}

impl ScratchPool {
    pub(crate) fn new(ring: &Ring, blocks: usize) -> ScratchPool {
        ScratchPool { ring: ring.clone(), blocks, free: Rc::default(), permits: Semaphore::new(blocks) }
    }

    /// Takes the buffers from the pool ahead of everybody else.
    pub(crate) async fn fill(&self) {
        for _ in 0..self.blocks {
            let block = self.ring.wait_buffer().await;
            self.free.borrow_mut().push(block);
        }
    }

    /// A buffer for work on `volume`.
    pub(crate) async fn take(&self, volume: &Volume) -> Scratch {
        self.take_of(&volume.scratch_share).await
    }

    /// A buffer for a table or a header of a file of `volume`; see above.
    pub(crate) async fn take_for_table(&self, volume: &Volume) -> Scratch {
        self.take_of(&volume.table_share).await
    }

    async fn take_of(&self, share: &Semaphore) -> Scratch {
        let share = share.acquire(1).await;
        let permit = self.permits.acquire(1).await;
        let kept = self.free.borrow_mut().pop();
        let block = match kept {
            Some(block) => block,
            None => self.ring.wait_buffer().await, // its last holder was cancelled
        };
        Scratch { block: Some(block), home: self.free.clone(), _permits: [share, permit] }
    }
}

/// A buffer on loan. `take` it for an operation and `put` it back.
pub(crate) struct Scratch {
    block: Option<Block>,
    home: Rc<RefCell<Vec<Block>>>,
    _permits: [Permit; 2],
}

impl Scratch {
    pub(crate) fn take(&mut self) -> Block {
        self.block.take().expect("taken once between two puts")
    }

    pub(crate) fn put(&mut self, block: Block) {
        self.block = Some(block);
    }
}

impl Deref for Scratch {
    type Target = Block;

    fn deref(&self) -> &Block {
        self.block.as_ref().expect("not lent to an operation")
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut Block {
        self.block.as_mut().expect("not lent to an operation")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            self.home.borrow_mut().push(block);
        }
    }
}
