//! Blocks that several may read: a cache and the connections that its blocks are sent to; a disk and the next server.
//!
//! The count of handles lies in the pool, one word for each slot, so that sharing allocates nothing.

use std::rc::Rc;

use super::arena::{Block, LEAD_BYTES, PAYLOAD_BYTES, Pool, SLOT_BYTES};
use super::buffer::IoBuf;

/// A slot of the pool that can be read by all who have a handle, and changed by nobody. As a buffer it is its payload.
/// The slot returns with the last handle.
pub struct SharedBlock {
    pool: Rc<Pool>,
    slot: u32,
}

impl Block {
    /// Gives up the right to change the block.
    pub fn share(self) -> SharedBlock {
        let block = std::mem::ManuallyDrop::new(self);
        // SAFETY: `block` is never dropped or used again, so its Rc is moved out once.
        let pool = unsafe { std::ptr::read(&raw const block.pool) };
        pool.shares[block.slot as usize].set(1);
        SharedBlock { pool, slot: block.slot }
    }
}

impl SharedBlock {
    /// The 64 KiB.
    pub fn payload(&self) -> &[u8] {
        &self.whole()[LEAD_BYTES..]
    }

    /// The last `head_bytes` of the lead and the first `payload_bytes` of the payload, which are contiguous. Panics
    /// when either is longer than there is.
    pub fn framed(&self, head_bytes: usize, payload_bytes: usize) -> &[u8] {
        assert!(head_bytes <= LEAD_BYTES && payload_bytes <= PAYLOAD_BYTES);
        &self.whole()[LEAD_BYTES - head_bytes..LEAD_BYTES + payload_bytes]
    }

    /// The block to change again, if this is the only handle.
    pub fn unshare(self) -> Result<Block, SharedBlock> {
        if self.pool.shares[self.slot as usize].get() > 1 {
            return Err(self);
        }
        let shared = std::mem::ManuallyDrop::new(self);
        shared.pool.shares[shared.slot as usize].set(0);
        // SAFETY: `shared` is never dropped or used again, so its Rc is moved out once.
        let pool = unsafe { std::ptr::read(&raw const shared.pool) };
        Ok(Block { pool, slot: shared.slot })
    }

    fn whole(&self) -> &[u8] {
        // SAFETY: the slot is ours until the last handle is dropped, the pool keeps the mapping alive, anonymous memory
        // is initialised, and nobody has a `&mut` to it: `share` took the Block, `unshare` needs the only handle.
        unsafe { std::slice::from_raw_parts(self.pool.slot_start(self.slot), SLOT_BYTES) }
    }
}

impl Clone for SharedBlock {
    fn clone(&self) -> SharedBlock {
        let shares = &self.pool.shares[self.slot as usize];
        shares.set(shares.get().checked_add(1).expect("fewer than 2^32 handles"));
        SharedBlock { pool: self.pool.clone(), slot: self.slot }
    }
}

impl Drop for SharedBlock {
    fn drop(&mut self) {
        let shares = &self.pool.shares[self.slot as usize];
        shares.set(shares.get() - 1);
        if shares.get() == 0 {
            self.pool.give_back(self.slot);
        }
    }
}

impl std::fmt::Debug for SharedBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedBlock").field("slot", &self.slot).finish()
    }
}

// SAFETY: the mapping stays where it is while the handle holds the pool.
unsafe impl IoBuf for SharedBlock {
    fn as_bytes(&self) -> &[u8] {
        self.payload()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_block_comes_back_with_its_last_handle() {
        let pool = Pool::new(2).unwrap();
        let mut block = pool.take().unwrap();
        block.payload_mut()[0] = 7;
        block.lead_mut()[LEAD_BYTES - 1] = 6;
        let first = block.share();
        let second = first.clone();
        assert_eq!(pool.free_slots(), 1);
        let first = first.unshare().expect_err("there are two handles");
        drop(first);
        assert_eq!((pool.free_slots(), second.framed(1, 1)), (1, &[6, 7][..]));
        let mut alone = second.unshare().expect("the only handle");
        alone.payload_mut()[0] = 8;
        let shared = alone.share();
        assert_eq!(shared.payload()[0], 8);
        drop(shared);
        assert_eq!(pool.free_slots(), 2);
    }
}
