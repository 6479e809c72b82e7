//! Buffers that can be lent to the kernel.
//!
//! An operation takes its buffer by value and gives it back with the result, so that nobody can touch or free the
//! bytes meanwhile. An operation covers the whole buffer; [`Slice`] narrows it to a part.

use std::ops::Range;
use std::rc::Rc;

/// Bytes that an operation may read.
///
/// # Safety
/// `as_bytes` gives the same address and length each time, also after the value was moved, until the value is changed
/// through a method of its own or dropped.
pub unsafe trait IoBuf: 'static {
    /// The bytes that an operation covers.
    fn as_bytes(&self) -> &[u8];
}

/// Bytes that an operation may write to.
///
/// # Safety
/// As [`IoBuf`]; `as_bytes_mut` gives the same bytes as `as_bytes`, and nobody else can reach them.
pub unsafe trait IoBufMut: IoBuf {
    /// The bytes that an operation covers.
    fn as_bytes_mut(&mut self) -> &mut [u8];
}

/// Narrowing a buffer to a part.
pub trait IoBufExt: IoBuf + Sized {
    /// The part `range` of this buffer. Panics when `range` does not lie within it.
    fn slice(self, range: Range<usize>) -> Slice<Self> {
        Slice::new(self, range)
    }
}

impl<T: IoBuf> IoBufExt for T {}

/// A part of a buffer. Made by [`IoBufExt::slice`].
#[derive(Clone, Debug)]
pub struct Slice<T> {
    inner: T,
    range: Range<usize>,
}

impl<T: IoBuf> Slice<T> {
    pub(crate) fn new(inner: T, range: Range<usize>) -> Slice<T> {
        let length = inner.as_bytes().len();
        assert!(range.start <= range.end && range.end <= length, "slice {range:?} of a buffer of {length} bytes");
        Slice { inner, range }
    }
}

impl<T> Slice<T> {
    /// The whole buffer.
    pub fn into_inner(self) -> T {
        self.inner
    }

    /// The whole buffer, borrowed.
    pub fn get_ref(&self) -> &T {
        &self.inner
    }

    /// The whole buffer, borrowed to change.
    pub fn get_mut(&mut self) -> &mut T {
        &mut self.inner
    }

    /// Where this part lies in the buffer.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }
}

// SAFETY: the heap block of a Vec stays where it is when the Vec is moved; it moves only through `&mut` methods.
unsafe impl IoBuf for Vec<u8> {
    fn as_bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: as above; a Vec is the sole owner of its heap block.
unsafe impl IoBufMut for Vec<u8> {
    fn as_bytes_mut(&mut self) -> &mut [u8] {
        self
    }
}

// SAFETY: the heap block of a Box stays where it is when the Box is moved.
unsafe impl IoBuf for Box<[u8]> {
    fn as_bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: as above; a Box is the sole owner of its heap block.
unsafe impl IoBufMut for Box<[u8]> {
    fn as_bytes_mut(&mut self) -> &mut [u8] {
        self
    }
}

// SAFETY: static memory never moves and is never freed.
unsafe impl IoBuf for &'static [u8] {
    fn as_bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: static memory never moves and is never freed.
unsafe impl<const N: usize> IoBuf for &'static [u8; N] {
    fn as_bytes(&self) -> &[u8] {
        *self
    }
}

// SAFETY: the value behind an Rc stays where it is, and its own promise covers what it points to; while a clone is
// lent to an operation, nobody can get a `&mut` to it.
unsafe impl<T: IoBuf> IoBuf for Rc<T> {
    fn as_bytes(&self) -> &[u8] {
        (**self).as_bytes()
    }
}

// SAFETY: a fixed part of bytes that keep the promise.
unsafe impl<T: IoBuf> IoBuf for Slice<T> {
    fn as_bytes(&self) -> &[u8] {
        &self.inner.as_bytes()[self.range.clone()]
    }
}

// SAFETY: a fixed part of bytes that keep the promise.
unsafe impl<T: IoBufMut> IoBufMut for Slice<T> {
    fn as_bytes_mut(&mut self) -> &mut [u8] {
        &mut self.inner.as_bytes_mut()[self.range.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_of_a_slice_covers_the_right_bytes() {
        let slice = vec![0u8, 1, 2, 3, 4, 5].slice(1..5).slice(1..3);
        assert_eq!(slice.as_bytes(), [2, 3]);
        assert_eq!(slice.into_inner().into_inner(), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    #[should_panic(expected = "slice 2..7 of a buffer of 6 bytes")]
    fn a_slice_beyond_the_buffer_is_refused() {
        let _ = vec![0u8; 6].slice(2..7);
    }
}
