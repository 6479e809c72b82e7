//! Memory whose front can be read while a receive fills its tail.
//!
//! [`crate::BufferedReader`] needs that: a packet in front is looked at while the next bytes are under way.

use std::cell::Cell;
use std::ptr::NonNull;
use std::rc::Rc;

use super::buffer::{IoBuf, IoBufMut};

/// A heap block, of which `[0, filled)` can be read and the rest can be lent to one receive at a time.
pub(crate) struct Staging {
    memory: NonNull<u8>,
    capacity: usize,
    filled: Cell<usize>,
    lent: Cell<bool>,
}

impl Staging {
    pub(crate) fn new(capacity: usize) -> Rc<Staging> {
        let bytes: Box<[u8]> = vec![0; capacity].into_boxed_slice();
        let memory = NonNull::new(Box::into_raw(bytes).cast::<u8>()).expect("a box is never null");
        Rc::new(Staging { memory, capacity, filled: Cell::new(0), lent: Cell::new(false) })
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that were received.
    pub(crate) fn filled(&self) -> &[u8] {
        // SAFETY: the memory is initialised; `[0, filled)` changes only in `restart`, which needs the only handle.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.filled.get()) }
    }

    /// Lends `[filled, capacity)`, or the first `bytes_max` of that. One loan at a time.
    pub(crate) fn lend_tail(self: &Rc<Self>, bytes_max: usize) -> Tail {
        assert!(!self.lent.replace(true), "one receive at a time");
        let start = self.filled.get();
        Tail { start, end: start + bytes_max.min(self.capacity - start), staging: self.clone() }
    }

    /// Starts again with `keep` bytes from `from` on; the rest is forgotten. `self` must be the only handle.
    pub(crate) fn restart(self: &mut Rc<Self>, from: usize, keep: usize) {
        let staging = Rc::get_mut(self).expect("no receive under way");
        assert!(from + keep <= staging.filled.get());
        // SAFETY: both ranges lie within the block, which nobody else refers to now.
        unsafe { std::ptr::copy(staging.memory.as_ptr().add(from), staging.memory.as_ptr(), keep) };
        staging.filled.set(keep);
    }

    /// A larger block with these bytes in front.
    pub(crate) fn grown(bytes: &[u8], capacity: usize) -> Rc<Staging> {
        assert!(bytes.len() <= capacity);
        let staging = Staging::new(capacity);
        // SAFETY: a new block of at least that many bytes; the two do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), staging.memory.as_ptr(), bytes.len()) };
        staging.filled.set(bytes.len());
        staging
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: made by Box::into_raw with this length; each Tail holds an Rc of us, so none is left.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.memory.as_ptr(), self.capacity)) });
    }
}

/// The part of a [`Staging`] that a receive may fill.
pub(crate) struct Tail {
    staging: Rc<Staging>,
    start: usize,
    end: usize,
}

impl Tail {
    /// Ends the loan: the first `bytes` of it are filled now.
    pub(crate) fn received(self, bytes: usize) {
        assert!(bytes <= self.end - self.start);
        self.staging.filled.set(self.start + bytes);
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.staging.lent.set(false);
    }
}

// SAFETY: the block stays where it is while we hold it; `start` and `end` never change.
unsafe impl IoBuf for Tail {
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: `[start, end)` lies within the block and is lent to us alone.
        unsafe { std::slice::from_raw_parts(self.staging.memory.as_ptr().add(self.start), self.end - self.start) }
    }
}

// SAFETY: as above; `filled()` never reaches beyond `start` while the loan lasts.
unsafe impl IoBufMut for Tail {
    fn as_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `[start, end)` lies within the block and is lent to us alone.
        unsafe { std::slice::from_raw_parts_mut(self.staging.memory.as_ptr().add(self.start), self.end - self.start) }
    }
}
