//! A lock between tasks of one core: shared or exclusive, first come first served.
//!
//! A place in the queue is taken when `enqueue` is called, not when the future is first polled: so the order of writes
//! to one block is the order in which their packets came, whatever the order in which tasks run.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    Shared,
    Exclusive,
}

#[derive(Default)]
pub(crate) struct FairLock {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    shared_holders: usize,
    exclusive_held: bool,
    queue: VecDeque<Place>,
    next_ticket: u64,
}

struct Place {
    ticket: u64,
    hold: Hold,
    waker: Option<Waker>,
}

impl FairLock {
    /// Takes a place in the queue. The result is a future of the guard; dropping it gives the place up.
    pub(crate) fn enqueue(self: &Rc<Self>, hold: Hold) -> Turn {
        let mut state = self.state.borrow_mut();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.queue.push_back(Place { ticket, hold, waker: None });
        drop(state);
        self.advance();
        Turn { lock: Some(self.clone()), ticket, hold }
    }

    pub(crate) fn is_idle(&self) -> bool {
        let state = self.state.borrow();
        state.shared_holders == 0 && !state.exclusive_held && state.queue.is_empty()
    }

    /// May whoever comes for a shared hold have it at once? Then all that needs no waiting can be done without a hold.
    pub(crate) fn is_open(&self) -> bool {
        let state = self.state.borrow();
        !state.exclusive_held && state.queue.is_empty()
    }

    /// Lets in whom the holders allow, in order. A place that is let in leaves the queue.
    fn advance(&self) {
        loop {
            let mut state = self.state.borrow_mut();
            let Some(first) = state.queue.front() else { return };
            let free = match first.hold {
                Hold::Shared => !state.exclusive_held,
                Hold::Exclusive => !state.exclusive_held && state.shared_holders == 0,
            };
            if !free {
                return;
            }
            let place = state.queue.pop_front().expect("the front was just seen");
            match place.hold {
                Hold::Shared => state.shared_holders += 1,
                Hold::Exclusive => state.exclusive_held = true,
            }
            drop(state);
            if let Some(waker) = place.waker {
                waker.wake();
            }
        }
    }

    fn release(&self, hold: Hold) {
        let mut state = self.state.borrow_mut();
        match hold {
            Hold::Shared => state.shared_holders -= 1,
            Hold::Exclusive => state.exclusive_held = false,
        }
        drop(state);
        self.advance();
    }
}

/// A place in the queue; ready with the guard when it is this one's turn.
pub(crate) struct Turn {
    lock: Option<Rc<FairLock>>,
    ticket: u64,
    hold: Hold,
}

impl Future for Turn {
    type Output = Guard;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Guard> {
        let lock = self.lock.as_ref().expect("not polled after it was ready");
        let mut state = lock.state.borrow_mut();
        if let Some(place) = state.queue.iter_mut().find(|place| place.ticket == self.ticket) {
            place.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        drop(state);
        let lock = self.lock.take().expect("seen above");
        Poll::Ready(Guard { lock, hold: self.hold })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(lock) = self.lock.take() else { return };
        let mut state = lock.state.borrow_mut();
        let waiting = state.queue.iter().position(|place| place.ticket == self.ticket);
        if let Some(position) = waiting {
            state.queue.remove(position);
        }
        drop(state);
        match waiting {
            Some(_) => lock.advance(),
            None => lock.release(self.hold), // it was our turn already
        }
    }
}

/// Holds the lock until dropped.
pub(crate) struct Guard {
    lock: Rc<FairLock>,
    hold: Hold,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.lock.release(self.hold);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn lock() -> Rc<FairLock> {
        Rc::new(FairLock::default())
    }

    #[test]
    fn shared_holders_go_together_and_exclusive_alone() {
        let lock = lock();
        let first = lock.enqueue(Hold::Shared).now_or_never().expect("free");
        let second = lock.enqueue(Hold::Shared).now_or_never().expect("shared");
        let mut alone = lock.enqueue(Hold::Exclusive);
        let mut late = lock.enqueue(Hold::Shared);
        assert!((&mut late).now_or_never().is_none(), "nobody overtakes who waits");
        drop((first, second));
        let alone = (&mut alone).now_or_never().expect("the others left");
        assert!((&mut late).now_or_never().is_none());
        drop(alone);
        assert!((&mut late).now_or_never().is_some());
    }

    #[test]
    fn a_place_given_up_holds_nobody_back() {
        let lock = lock();
        let held = lock.enqueue(Hold::Exclusive).now_or_never().expect("free");
        let given_up = lock.enqueue(Hold::Exclusive);
        let mut last = lock.enqueue(Hold::Shared);
        drop(given_up);
        drop(held);
        assert!((&mut last).now_or_never().is_some());
    }

    #[test]
    fn a_turn_that_came_but_was_never_taken_is_passed_on() {
        let lock = lock();
        let unused = lock.enqueue(Hold::Exclusive);
        let mut next = lock.enqueue(Hold::Exclusive);
        drop(unused);
        assert!((&mut next).now_or_never().is_some());
        assert!(lock.is_idle());
    }
}
