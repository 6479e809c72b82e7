//! The bytes of names, paths and symlink targets, apart from the records that point at them.
//!
//! A name takes its length rounded up to 4 bytes; the length itself is kept by its owner. Freed places go to one
//! list per size, threaded through the places themselves. A handle counts units of 4 bytes, so 32 bits reach 16 GiB
//! of names. A name never crosses a page.

use crate::arena::{Memory, PAGE_BYTES, Pages};

/// Longest entry in bytes: a symlink's target. Spec 10, 6.
const ENTRY_BYTES_MAX: usize = 4096;
const UNIT_BYTES: usize = 4;
const CLASSES: usize = ENTRY_BYTES_MAX / UNIT_BYTES + 1;

#[derive(Debug)]
pub(crate) struct Names {
    bytes: Pages<u8>,
    /// Where the next name goes if no freed place fits.
    end: usize,
    /// First free place by size in units; 0 is none. The place holds the handle of the next one.
    free: Vec<u32>,
}

impl Names {
    pub(crate) fn new() -> Names {
        let mut bytes = Pages::new();
        bytes.grow_to(PAGE_BYTES);
        // Unit 0 stays unused: handle 0 is none.
        Names { bytes, end: UNIT_BYTES, free: vec![0; CLASSES] }
    }

    /// Stores `name`, 1 to 4096 bytes.
    pub(crate) fn insert(&mut self, name: &[u8]) -> u32 {
        let units = units(name.len());
        let at = match self.free[units] {
            0 => self.take_fresh(units),
            at => {
                self.free[units] = self.next_free(at);
                at
            }
        };
        self.bytes.slice_mut(at as usize * UNIT_BYTES, name.len()).copy_from_slice(name);
        at
    }

    #[inline]
    pub(crate) fn get(&self, at: u32, length_bytes: usize) -> &[u8] {
        self.bytes.slice(at as usize * UNIT_BYTES, length_bytes)
    }

    pub(crate) fn get_mut(&mut self, at: u32, length_bytes: usize) -> &mut [u8] {
        self.bytes.slice_mut(at as usize * UNIT_BYTES, length_bytes)
    }

    /// Bytes held, and those ever taken.
    pub(crate) fn memory(&self) -> Memory {
        Memory::of(self.bytes.bytes() + self.free.capacity() * size_of::<u32>(), self.end)
    }

    pub(crate) fn remove(&mut self, at: u32, length_bytes: usize) {
        self.release(at, units(length_bytes));
    }

    pub(crate) fn freeze(&mut self) -> Names {
        Names { bytes: self.bytes.freeze(), end: self.end, free: self.free.clone() }
    }

    fn release(&mut self, at: u32, units: usize) {
        let next = self.free[units];
        self.bytes.slice_mut(at as usize * UNIT_BYTES, UNIT_BYTES).copy_from_slice(&next.to_be_bytes());
        self.free[units] = at;
    }

    fn next_free(&self, at: u32) -> u32 {
        let bytes = self.bytes.slice(at as usize * UNIT_BYTES, UNIT_BYTES);
        u32::from_be_bytes(bytes.try_into().expect("a unit has 4 bytes"))
    }

    fn take_fresh(&mut self, units: usize) -> u32 {
        let mut rest = (PAGE_BYTES - (self.end & (PAGE_BYTES - 1))) / UNIT_BYTES;
        if rest < units {
            while rest > 0 {
                let piece = rest.min(CLASSES - 1);
                self.release(unit_handle(self.end), piece);
                self.end += piece * UNIT_BYTES;
                rest -= piece;
            }
        }
        self.bytes.grow_to((self.end + units * UNIT_BYTES).next_multiple_of(PAGE_BYTES));
        let at = unit_handle(self.end);
        self.end += units * UNIT_BYTES;
        at
    }
}

fn units(length_bytes: usize) -> usize {
    assert!((1..=ENTRY_BYTES_MAX).contains(&length_bytes), "names are checked before they are stored");
    length_bytes.div_ceil(UNIT_BYTES)
}

fn unit_handle(at_bytes: usize) -> u32 {
    u32::try_from(at_bytes / UNIT_BYTES).expect("names fill less than 16 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_length_come_back_as_they_were() {
        let mut names = Names::new();
        let stored: Vec<(u32, Vec<u8>)> = (1..=4096usize)
            .map(|length| {
                let name: Vec<u8> = (0..length).map(|n| (n * 7 + length) as u8).collect();
                (names.insert(&name), name)
            })
            .collect();
        for (at, name) in &stored {
            assert_eq!(names.get(*at, name.len()), name);
        }
        for (at, name) in stored.iter().step_by(2) {
            names.remove(*at, name.len());
        }
        let again: Vec<u32> = stored.iter().step_by(2).map(|(_, name)| names.insert(name)).collect();
        for ((_, name), at) in stored.iter().step_by(2).zip(again) {
            assert_eq!(names.get(at, name.len()), name);
        }
        for (at, name) in stored.iter().skip(1).step_by(2) {
            assert_eq!(names.get(*at, name.len()), name);
        }
    }

    #[test]
    fn a_freed_place_is_taken_before_the_table_grows() {
        let mut names = Names::new();
        let at = names.insert(b"nineteen letters ok");
        names.remove(at, 19);
        assert_eq!(names.insert(b"another of that size"), at);
    }
}
