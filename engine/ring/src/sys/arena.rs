//! The buffer pool of one ring.
//!
//! One mapping, cut into slots:
//!
//! ```text
//! | lead 4 KiB | payload 64 KiB | lead 4 KiB | payload 64 KiB | ...
//!          ^^^^^ a packet's header may end right before the payload: header and payload are one contiguous send
//! ```
//!
//! Payloads start on 4 KiB boundaries, ready for O_DIRECT. The mapping asks for huge pages, and the uring driver
//! registers it, so that the kernel pins it once instead of for each operation. Slots are lent as [`Block`]s and come
//! back when these are dropped; whoever finds the pool empty waits in line.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::buffer::{IoBuf, IoBufMut, Slice};

/// Bytes of a block's payload: one block of a chunk.
pub const PAYLOAD_BYTES: usize = 64 << 10;
/// Bytes in front of the payload.
pub const LEAD_BYTES: usize = 4 << 10;
/// Bytes from one slot to the next.
pub(crate) const SLOT_BYTES: usize = LEAD_BYTES + PAYLOAD_BYTES;
/// Mappings are rounded to this, the size of a huge page.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// The mapping and its free slots. Kept alive by the ring and by every block.
pub(crate) struct Pool {
    base: NonNull<u8>,
    mapped_bytes: usize,
    slots: usize,
    /// Handles of each slot's [`super::shared::SharedBlock`]; 0 while the slot is free or a [`Block`].
    pub(super) shares: Box<[Cell<u32>]>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// Free slots; the one freed last is lent first, its cache lines being warm.
    free: Vec<u32>,
    /// Those that wait for a slot, in order. `None`: served, or gave up.
    waiting: VecDeque<Waiter>,
    next_ticket: u64,
}

struct Waiter {
    ticket: u64,
    waker: Waker,
    granted: Option<u32>,
}

impl Pool {
    /// Maps a pool of `slots` slots. No page is touched yet.
    pub(crate) fn new(slots: usize) -> io::Result<Rc<Pool>> {
        assert!(slots <= u32::MAX as usize / 2, "a pool of {slots} slots");
        let mapped_bytes = (slots * SLOT_BYTES).next_multiple_of(HUGE_PAGE_BYTES).max(HUGE_PAGE_BYTES);
        let base = map(mapped_bytes)?;
        let free = (0..u32::try_from(slots).expect("checked above")).rev().collect();
        Ok(Rc::new(Pool {
            base,
            mapped_bytes,
            slots,
            shares: (0..slots).map(|_| Cell::new(0)).collect(),
            state: RefCell::new(State { free, waiting: VecDeque::new(), next_ticket: 0 }),
        }))
    }

    /// Start and length of the mapping's part that holds slots.
    pub(crate) fn extent(&self) -> (*mut u8, usize) {
        (self.base.as_ptr(), self.slots * SLOT_BYTES)
    }

    /// Slots that nobody has now.
    pub(crate) fn free_slots(&self) -> usize {
        self.state.borrow().free.len()
    }

    /// A slot, unless all are lent.
    pub(crate) fn take(self: &Rc<Self>) -> Option<Block> {
        let slot = self.state.borrow_mut().free.pop()?;
        Some(Block { pool: self.clone(), slot })
    }

    /// Waits for a slot, first come, first served.
    pub(crate) fn wait(self: &Rc<Self>) -> WaitBlock {
        WaitBlock { pool: self.clone(), ticket: None }
    }

    pub(super) fn give_back(&self, slot: u32) {
        let mut state = self.state.borrow_mut();
        let waiter = state.waiting.iter_mut().find(|waiter| waiter.granted.is_none());
        match waiter {
            Some(waiter) => {
                waiter.granted = Some(slot);
                waiter.waker.wake_by_ref();
            }
            None => state.free.push(slot),
        }
    }

    pub(super) fn slot_start(&self, slot: u32) -> *mut u8 {
        let slot = slot as usize;
        assert!(slot < self.slots);
        // SAFETY: slot < slots, so the result lies within the mapping.
        unsafe { self.base.as_ptr().add(slot * SLOT_BYTES) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: we mapped exactly this, and no block is left: each holds an Rc of the pool.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped_bytes) };
    }
}

fn map(bytes: usize) -> io::Result<NonNull<u8>> {
    let try_map = |extra_flags: i32, bytes: usize| {
        // SAFETY: a new anonymous mapping at an address that the kernel chooses.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | extra_flags,
                -1,
                0,
            )
        };
        (address != libc::MAP_FAILED).then_some(address.cast::<u8>())
    };
    if let Some(address) = try_map(libc::MAP_HUGETLB, bytes) {
        return Ok(NonNull::new(address).expect("mmap never gives 0"));
    }
    // Without reserved huge pages: map one page more, give back what is not aligned, and ask for transparent ones.
    let address = try_map(0, bytes + HUGE_PAGE_BYTES).ok_or_else(io::Error::last_os_error)?;
    let skip = address.align_offset(HUGE_PAGE_BYTES);
    // SAFETY: skip < HUGE_PAGE_BYTES; what is unmapped lies in front of and behind the aligned part, and is ours.
    let aligned = unsafe {
        let aligned = address.add(skip);
        if skip > 0 {
            libc::munmap(address.cast(), skip);
        }
        libc::munmap(aligned.add(bytes).cast(), HUGE_PAGE_BYTES - skip);
        libc::madvise(aligned.cast(), bytes, libc::MADV_HUGEPAGE);
        aligned
    };
    Ok(NonNull::new(aligned).expect("mmap never gives 0"))
}

/// A slot of the ring's pool: 4 KiB of lead, then 64 KiB of payload on a 4 KiB boundary. As a buffer it is its
/// payload. Its contents are what the last user left. Dropping it returns the slot.
pub struct Block {
    pub(super) pool: Rc<Pool>,
    pub(super) slot: u32,
}

impl Block {
    /// The 64 KiB.
    pub fn payload(&self) -> &[u8] {
        &self.whole()[LEAD_BYTES..]
    }

    /// The 64 KiB, to change.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.whole_mut()[LEAD_BYTES..]
    }

    /// The 4096 bytes right in front of the payload.
    pub fn lead(&self) -> &[u8] {
        &self.whole()[..LEAD_BYTES]
    }

    /// The 4096 bytes right in front of the payload, to change.
    pub fn lead_mut(&mut self) -> &mut [u8] {
        &mut self.whole_mut()[..LEAD_BYTES]
    }

    /// The last `head_bytes` of the lead and the first `payload_bytes` of the payload, as one contiguous buffer.
    /// `into_inner().into_block()` gives the block back. Panics when either is longer than there is.
    pub fn with_head(self, head_bytes: usize, payload_bytes: usize) -> Slice<WholeBlock> {
        assert!(head_bytes <= LEAD_BYTES && payload_bytes <= PAYLOAD_BYTES);
        Slice::new(WholeBlock(self), LEAD_BYTES - head_bytes..LEAD_BYTES + payload_bytes)
    }

    fn whole(&self) -> &[u8] {
        // SAFETY: the slot is ours alone until we are dropped, the pool keeps the mapping alive, and anonymous memory
        // is initialised. While an operation writes to it the Block itself is owned by the operation.
        unsafe { std::slice::from_raw_parts(self.pool.slot_start(self.slot), SLOT_BYTES) }
    }

    fn whole_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `whole`; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.pool.slot_start(self.slot), SLOT_BYTES) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pool.give_back(self.slot);
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Block").field("slot", &self.slot).finish()
    }
}

// SAFETY: the mapping stays where it is while the block holds the pool.
unsafe impl IoBuf for Block {
    fn as_bytes(&self) -> &[u8] {
        self.payload()
    }
}

// SAFETY: as above; a slot is lent to one Block at a time.
unsafe impl IoBufMut for Block {
    fn as_bytes_mut(&mut self) -> &mut [u8] {
        self.payload_mut()
    }
}

/// A block whose lead belongs to the buffer: 4 KiB + 64 KiB. See [`Block::with_head`].
#[derive(Debug)]
pub struct WholeBlock(Block);

impl WholeBlock {
    /// The block.
    pub fn into_block(self) -> Block {
        self.0
    }
}

impl From<Block> for WholeBlock {
    fn from(block: Block) -> WholeBlock {
        WholeBlock(block)
    }
}

impl Slice<WholeBlock> {
    /// The block.
    pub fn into_block(self) -> Block {
        self.into_inner().into_block()
    }
}

impl Deref for WholeBlock {
    type Target = Block;

    fn deref(&self) -> &Block {
        &self.0
    }
}

impl DerefMut for WholeBlock {
    fn deref_mut(&mut self) -> &mut Block {
        &mut self.0
    }
}

// SAFETY: as for Block.
unsafe impl IoBuf for WholeBlock {
    fn as_bytes(&self) -> &[u8] {
        self.0.whole()
    }
}

// SAFETY: as for Block.
unsafe impl IoBufMut for WholeBlock {
    fn as_bytes_mut(&mut self) -> &mut [u8] {
        self.0.whole_mut()
    }
}

/// Ends with a block. Given by [`crate::Ring::wait_buffer`]. Dropped early, it leaves its place to the next in line.
pub(crate) struct WaitBlock {
    pool: Rc<Pool>,
    ticket: Option<u64>,
}

impl Future for WaitBlock {
    type Output = Block;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Block> {
        let pool = self.pool.clone();
        let mut state = pool.state.borrow_mut();
        let Some(ticket) = self.ticket else {
            // Slots are free only when nobody waits: `give_back` serves the line first.
            if let Some(slot) = state.free.pop() {
                drop(state);
                return Poll::Ready(Block { pool, slot });
            }
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.waiting.push_back(Waiter { ticket, waker: context.waker().clone(), granted: None });
            drop(state);
            self.ticket = Some(ticket);
            return Poll::Pending;
        };
        let place = state.waiting.iter().position(|waiter| waiter.ticket == ticket).expect("we left only when served");
        match state.waiting[place].granted {
            Some(slot) => {
                state.waiting.remove(place);
                drop(state);
                self.ticket = None;
                Poll::Ready(Block { pool, slot })
            }
            None => {
                state.waiting[place].waker.clone_from(context.waker());
                Poll::Pending
            }
        }
    }
}

impl Drop for WaitBlock {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut state = self.pool.state.borrow_mut();
        let Some(place) = state.waiting.iter().position(|waiter| waiter.ticket == ticket) else { return };
        let waiter = state.waiting.remove(place).expect("found at this place");
        drop(state);
        if let Some(slot) = waiter.granted {
            self.pool.give_back(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_lie_on_page_boundaries_and_slots_come_back() {
        let pool = Pool::new(3).unwrap();
        let mut blocks: Vec<Block> = (0..3).map(|_| pool.take().unwrap()).collect();
        assert!(pool.take().is_none());
        for (number, block) in (0u8..).zip(&mut blocks) {
            assert_eq!(block.payload().as_ptr() as usize % 4096, 0);
            block.payload_mut().fill(number);
            block.lead_mut().fill(100 + number);
        }
        for (number, block) in (0u8..).zip(&blocks) {
            assert!(block.payload().iter().all(|byte| *byte == number));
            assert!(block.lead().iter().all(|byte| *byte == 100 + number));
        }
        blocks.pop();
        assert_eq!(pool.free_slots(), 1);
        drop(pool.take().unwrap());
        drop(pool);
        assert_eq!(blocks[0].payload()[0], 0, "a block keeps the mapping alive");
    }

    #[test]
    fn a_head_and_its_payload_are_contiguous() {
        let pool = Pool::new(1).unwrap();
        let mut block = pool.take().unwrap();
        block.lead_mut()[LEAD_BYTES - 3..].copy_from_slice(b"abc");
        block.payload_mut()[..4].copy_from_slice(b"defg");
        let framed = block.with_head(3, 4);
        assert_eq!(framed.as_bytes(), b"abcdefg");
        drop(framed.into_block());
        assert_eq!(pool.free_slots(), 1);
    }
}
