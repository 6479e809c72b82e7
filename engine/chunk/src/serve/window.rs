//! What was asked for in order, becomes ready in any order, and is taken in order: the blocks of one read request between
//! disk and connection, and those that are read ahead.
//!
//! It belongs to the connection and is used for one request after the other. What becomes ready when its request has
//! ended is dropped.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use ring::SharedBlock;
use wire::Crc;

use crate::error::ChunkError;

/// A block and its sum, or why there is none.
pub(super) type BlockResult = Result<(SharedBlock, Crc), ChunkError>;

pub(super) struct Window<T> {
    state: RefCell<State<T>>,
}

struct State<T> {
    /// None: not ready.
    places: VecDeque<Option<T>>,
    /// Number of the first place, counted from the connection's beginning.
    first: u64,
    waker: Option<Waker>,
}

impl<T> Default for Window<T> {
    fn default() -> Window<T> {
        Window { state: RefCell::new(State { places: VecDeque::new(), first: 0, waker: None }) }
    }
}

impl<T> Window<T> {
    /// Places that were asked for and not taken.
    pub(super) fn len(&self) -> usize {
        self.state.borrow().places.len()
    }

    /// Adds a place: what is ready, or None for what will be. Gives its number.
    pub(super) fn push(&self, block: Option<T>) -> u64 {
        let mut state = self.state.borrow_mut();
        state.places.push_back(block);
        state.first + state.places.len() as u64 - 1
    }

    /// A place is ready. Dropped if its request has ended.
    pub(super) fn put(&self, number: u64, block: T) {
        let mut state = self.state.borrow_mut();
        let Some(at) = number.checked_sub(state.first) else { return };
        let Some(place) = state.places.get_mut(at as usize) else { return };
        *place = Some(block);
        let waker = if at == 0 { state.waker.take() } else { None };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The first place, if it is ready.
    pub(super) fn take_ready(&self) -> Option<T> {
        let mut state = self.state.borrow_mut();
        if state.places.front()?.is_none() {
            return None;
        }
        state.first += 1;
        state.places.pop_front().flatten()
    }

    /// Waits until the first place is ready, if there is one.
    pub(super) async fn first_ready(&self) {
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if state.places.front().is_none_or(Option::is_some) {
                return Poll::Ready(());
            }
            state.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// The request has ended: what is still being read is for nobody.
    pub(super) fn end(&self) {
        let state = &mut *self.state.borrow_mut();
        state.first += state.places.len() as u64;
        state.places.clear();
    }
}
