//! Counted permits, and the mutex made of one.

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// A number of permits. Clones share them.
#[derive(Clone)]
pub struct Semaphore {
    state: Rc<RefCell<State>>,
}

struct State {
    available: usize,
    waiting: VecDeque<Waiter>,
    next_ticket: u64,
    closed: bool,
}

struct Waiter {
    ticket: u64,
    wants: usize,
    granted: bool,
    waker: Waker,
}

impl Semaphore {
    /// A semaphore with `permits` permits.
    pub fn new(permits: usize) -> Semaphore {
        let state = State { available: permits, waiting: VecDeque::new(), next_ticket: 0, closed: false };
        Semaphore { state: Rc::new(RefCell::new(state)) }
    }

    /// Waits for `count` permits. A large request is not overtaken by small ones behind it.
    pub async fn acquire(&self, count: usize) -> Permit {
        self.acquire_unless_closed(count).await.expect("only a channel closes its semaphore")
    }

    /// `count` permits, if they are there and nobody waits.
    pub fn try_acquire(&self, count: usize) -> Option<Permit> {
        let mut state = self.state.borrow_mut();
        let fits = state.waiting.is_empty() && state.available >= count;
        fits.then(|| {
            state.available -= count;
            Permit { semaphore: self.clone(), count }
        })
    }

    /// Permits that nobody has.
    pub fn available(&self) -> usize {
        self.state.borrow().available
    }

    /// Adds permits.
    pub fn add(&self, count: usize) {
        let mut state = self.state.borrow_mut();
        state.available += count;
        state.serve();
    }

    pub(super) fn acquire_unless_closed(&self, count: usize) -> Acquire {
        Acquire { semaphore: self.clone(), count, ticket: None }
    }

    /// All who wait, now and later, get nothing.
    pub(super) fn close(&self) {
        let mut state = self.state.borrow_mut();
        state.closed = true;
        for waiter in &state.waiting {
            waiter.waker.wake_by_ref();
        }
    }
}

impl State {
    fn serve(&mut self) {
        for waiter in self.waiting.iter_mut().filter(|waiter| !waiter.granted) {
            if self.available < waiter.wants {
                return;
            }
            self.available -= waiter.wants;
            waiter.granted = true;
            waiter.waker.wake_by_ref();
        }
    }
}

/// Permits that go back when this is dropped.
pub struct Permit {
    semaphore: Semaphore,
    count: usize,
}

impl Permit {
    /// How many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Takes the permits out of circulation.
    pub fn forget(mut self) {
        self.count = 0;
    }

    /// Splits off `count` of the permits; None when there are fewer.
    pub fn split(&mut self, count: usize) -> Option<Permit> {
        self.count = self.count.checked_sub(count)?;
        Some(Permit { semaphore: self.semaphore.clone(), count })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.count > 0 {
            self.semaphore.add(self.count);
        }
    }
}

pub(super) struct Acquire {
    semaphore: Semaphore,
    count: usize,
    ticket: Option<u64>,
}

impl Future for Acquire {
    type Output = Option<Permit>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Permit>> {
        let semaphore = self.semaphore.clone();
        let Some(ticket) = self.ticket else {
            if semaphore.state.borrow().closed {
                return Poll::Ready(None);
            }
            if let Some(permit) = semaphore.try_acquire(self.count) {
                return Poll::Ready(Some(permit));
            }
            let mut state = semaphore.state.borrow_mut();
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            let waker = context.waker().clone();
            state.waiting.push_back(Waiter { ticket, wants: self.count, granted: false, waker });
            self.ticket = Some(ticket);
            return Poll::Pending;
        };
        let mut state = semaphore.state.borrow_mut();
        let closed = state.closed;
        let place = state.waiting.iter().position(|waiter| waiter.ticket == ticket).expect("we leave only when served");
        let waiter = &mut state.waiting[place];
        if waiter.granted {
            state.waiting.remove(place);
            drop(state);
            self.ticket = None;
            return Poll::Ready(Some(Permit { semaphore, count: self.count }));
        }
        if closed {
            state.waiting.remove(place);
            drop(state);
            self.ticket = None;
            return Poll::Ready(None);
        }
        waiter.waker.clone_from(context.waker());
        Poll::Pending
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut state = self.semaphore.state.borrow_mut();
        let Some(place) = state.waiting.iter().position(|waiter| waiter.ticket == ticket) else { return };
        let waiter = state.waiting.remove(place).expect("found at this place");
        if waiter.granted {
            state.available += waiter.wants;
        }
        // A large request that left may have held up smaller ones.
        state.serve();
    }
}

/// A value that one task at a time may hold across its awaits.
pub struct Mutex<T> {
    turn: Semaphore,
    value: RefCell<T>,
}

impl<T> Mutex<T> {
    /// Wraps a value.
    pub fn new(value: T) -> Mutex<T> {
        Mutex { turn: Semaphore::new(1), value: RefCell::new(value) }
    }

    /// Waits for the value, in order.
    pub async fn lock(&self) -> MutexGuard<'_, T> {
        let permit = self.turn.acquire(1).await;
        MutexGuard { value: self.value.borrow_mut(), _permit: permit }
    }

    /// The value, if nobody has it or waits for it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let permit = self.turn.try_acquire(1)?;
        Some(MutexGuard { value: self.value.borrow_mut(), _permit: permit })
    }

    /// The value, for good.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }

    /// The value; nobody else can have it now.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

/// The value of a [`Mutex`], until this is dropped.
pub struct MutexGuard<'a, T> {
    // Dropped before the permit, so that the next holder finds the cell free.
    value: RefMut<'a, T>,
    _permit: Permit,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn a_large_request_is_not_overtaken() {
        let semaphore = Semaphore::new(3);
        let held = semaphore.try_acquire(2).unwrap();
        let mut large = Box::pin(semaphore.acquire(3));
        assert!(large.as_mut().now_or_never().is_none());
        assert!(semaphore.try_acquire(1).is_none());
        drop(held);
        assert_eq!(large.as_mut().now_or_never().unwrap().count(), 3);
        assert_eq!(semaphore.available(), 3);
    }

    #[test]
    fn who_leaves_the_line_lets_the_next_go() {
        let semaphore = Semaphore::new(1);
        let mut large = Box::pin(semaphore.acquire(2));
        assert!(large.as_mut().now_or_never().is_none());
        let mut small = Box::pin(semaphore.acquire(1));
        assert!(small.as_mut().now_or_never().is_none());
        drop(large);
        assert!(small.as_mut().now_or_never().is_some());
    }

    #[test]
    fn a_grant_that_nobody_takes_goes_on() {
        let mutex = Mutex::new(5);
        let guard = mutex.try_lock().unwrap();
        let mut first = Box::pin(mutex.lock());
        let mut second = Box::pin(mutex.lock());
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        drop(guard);
        drop(first);
        let mut guard = second.as_mut().now_or_never().unwrap();
        *guard += 1;
        assert_eq!(*guard, 6);
        assert!(mutex.try_lock().is_none());
    }
}
