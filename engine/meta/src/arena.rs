//! Growing tables in pages of fixed-size records, addressed by 32-bit handles.
//!
//! Pages are never moved, so growth copies nothing; those of all tables have one size, so that the allocator's holes fit
//! whoever comes next (with a size for each table they came to 4 % of the whole). A table can be frozen for an image that another thread writes:
//! pages are then shared, and one that is changed meanwhile is copied first. A page that nobody shares any more is
//! taken back without a copy, so the steady state costs one branch per change and no atomic operation.

use std::sync::Arc;

/// Bytes of a page, or a little less: as many records as fit.
pub(crate) const PAGE_BYTES: usize = 64 << 10;

/// Records of type `T`.
#[derive(Debug)]
pub(crate) struct Pages<T> {
    pages: Vec<Page<T>>,
    length: usize,
}

/// Bytes that a table holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub allocated: u64,
    pub used: u64,
}

impl Memory {
    pub(crate) fn of(allocated: usize, used: usize) -> Memory {
        Memory { allocated: allocated as u64, used: used as u64 }
    }
}

impl std::ops::Add for Memory {
    type Output = Memory;

    fn add(self, other: Memory) -> Memory {
        Memory { allocated: self.allocated + other.allocated, used: self.used + other.used }
    }
}

#[derive(Debug)]
enum Page<T> {
    Own(Box<[T]>),
    /// Boxed so that sharing a page moves a pointer, not its records.
    #[allow(clippy::redundant_allocation, reason = "an Arc<[T]> could not be made from the page without a copy")]
    Shared(Arc<Box<[T]>>),
}

impl<T> Page<T> {
    #[inline]
    fn records(&self) -> &[T] {
        match self {
            Page::Own(records) => records,
            Page::Shared(records) => records,
        }
    }
}

impl<T: Clone + Default> Pages<T> {
    /// Records of a page: a constant, so that dividing by it is a multiplication.
    const RECORDS: usize = PAGE_BYTES / size_of::<T>();

    pub(crate) fn new() -> Self {
        Pages { pages: Vec::new(), length: 0 }
    }

    /// Records that exist; their handles are `0..len()`.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    #[inline]
    pub(crate) fn get(&self, at: usize) -> &T {
        &self.pages[at / Self::RECORDS].records()[at % Self::RECORDS]
    }

    pub(crate) fn get_mut(&mut self, at: usize) -> &mut T {
        &mut self.page_mut(at / Self::RECORDS)[at % Self::RECORDS]
    }

    /// `count` records from `at` on, which lie in one page.
    #[inline]
    pub(crate) fn slice(&self, at: usize, count: usize) -> &[T] {
        let start = at % Self::RECORDS;
        &self.pages[at / Self::RECORDS].records()[start..start + count]
    }

    pub(crate) fn slice_mut(&mut self, at: usize, count: usize) -> &mut [T] {
        let start = at % Self::RECORDS;
        &mut self.page_mut(at / Self::RECORDS)[start..start + count]
    }

    /// Bytes of all pages.
    pub(crate) fn bytes(&self) -> usize {
        self.pages.len() * Self::RECORDS * size_of::<T>()
    }

    /// Makes all records below `length` exist; new ones are default.
    pub(crate) fn grow_to(&mut self, length: usize) {
        while self.pages.len() * Self::RECORDS < length {
            self.pages.push(Page::Own(vec![T::default(); Self::RECORDS].into_boxed_slice()));
        }
        self.length = self.length.max(length);
    }

    /// The same records for a reader elsewhere. Costs a pointer per page.
    pub(crate) fn freeze(&mut self) -> Self {
        let mut frozen = Vec::with_capacity(self.pages.len());
        for page in &mut self.pages {
            if let Page::Own(records) = page {
                *page = Page::Shared(Arc::new(std::mem::take(records)));
            }
            match page {
                Page::Shared(records) => frozen.push(Page::Shared(Arc::clone(records))),
                Page::Own(_) => unreachable!("was shared just now"),
            }
        }
        Pages { pages: frozen, length: self.length }
    }

    fn page_mut(&mut self, page: usize) -> &mut [T] {
        let page = &mut self.pages[page];
        if let Page::Shared(records) = page {
            let shared = std::mem::replace(records, Arc::new(Box::default()));
            *page = Page::Own(Arc::try_unwrap(shared).unwrap_or_else(|shared| (*shared).clone()));
        }
        match page {
            Page::Own(records) => records,
            Page::Shared(_) => unreachable!("was taken back just now"),
        }
    }
}

/// Records that come and go. Handle 0 is never given out: it means "none".
#[derive(Debug)]
pub(crate) struct Arena<T> {
    records: Pages<T>,
    free: Vec<u32>,
}

impl<T: Clone + Default> Arena<T> {
    pub(crate) fn new() -> Self {
        let mut records = Pages::new();
        records.grow_to(1);
        Arena { records, free: Vec::new() }
    }

    /// One more than the largest handle that was ever given out.
    pub(crate) fn end(&self) -> u32 {
        handle(self.records.len())
    }

    pub(crate) fn live(&self) -> usize {
        self.records.len() - 1 - self.free.len()
    }

    /// Bytes held, and those of them that are in use.
    pub(crate) fn memory(&self) -> Memory {
        Memory::of(self.records.bytes() + self.free.capacity() * size_of::<u32>(), self.live() * size_of::<T>())
    }

    #[inline]
    pub(crate) fn get(&self, at: u32) -> &T {
        self.records.get(at as usize)
    }

    pub(crate) fn get_mut(&mut self, at: u32) -> &mut T {
        self.records.get_mut(at as usize)
    }

    pub(crate) fn insert(&mut self, record: T) -> u32 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.records.grow_to(self.records.len() + 1);
            handle(self.records.len() - 1)
        });
        *self.get_mut(at) = record;
        at
    }

    pub(crate) fn remove(&mut self, at: u32) -> T {
        debug_assert!(at != 0, "handle 0 is none");
        self.free.push(at);
        std::mem::take(self.get_mut(at))
    }

    pub(crate) fn freeze(&mut self) -> Self {
        Arena { records: self.records.freeze(), free: self.free.clone() }
    }
}

fn handle(at: usize) -> u32 {
    u32::try_from(at).expect("tables hold less than 2^32 records: inodes and chunks are numbered within that")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_table_keeps_what_it_held_while_the_live_one_changes() {
        let mut live: Arena<u64> = Arena::new();
        let handles: Vec<u32> = (0..5000u64).map(|n| live.insert(n)).collect();
        let frozen = live.freeze();
        for at in &handles {
            *live.get_mut(*at) += 1;
        }
        for (n, at) in handles.iter().enumerate() {
            assert_eq!(*frozen.get(*at), n as u64);
            assert_eq!(*live.get(*at), n as u64 + 1);
        }
    }

    #[test]
    fn a_removed_record_s_handle_is_used_again_and_none_stays_none() {
        let mut arena: Arena<u32> = Arena::new();
        let first = arena.insert(7);
        assert_ne!(first, 0);
        assert_eq!(arena.remove(first), 7);
        assert_eq!(arena.live(), 0);
        assert_eq!(arena.insert(8), first);
        assert_eq!(arena.live(), 1);
    }
}
