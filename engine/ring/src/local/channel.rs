//! A bounded queue between tasks: many senders, one receiver.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::semaphore::Semaphore;

/// A queue of at most `bound` values.
pub fn channel<T>(bound: usize) -> (Sender<T>, Receiver<T>) {
    assert!(bound > 0, "a channel without room");
    let shared = Rc::new(Shared {
        room: Semaphore::new(bound),
        state: RefCell::new(State { queue: VecDeque::new(), senders: 1, receives: true, waker: None }),
    });
    (Sender { shared: shared.clone() }, Receiver { shared })
}

struct Shared<T> {
    /// One permit for each value that still fits.
    room: Semaphore,
    state: RefCell<State<T>>,
}

struct State<T> {
    queue: VecDeque<T>,
    senders: usize,
    receives: bool,
    waker: Option<Waker>,
}

impl<T> State<T> {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The receiver is gone; here is the value back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Closed<T>(pub T);

impl<T> fmt::Debug for Closed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Closed(..)")
    }
}

impl<T> fmt::Display for Closed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the receiver is gone")
    }
}

impl<T> std::error::Error for Closed<T> {}

/// Why a value was not taken at once; here it is back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TrySendError<T> {
    Full(T),
    Closed(T),
}

impl<T> TrySendError<T> {
    /// The value.
    pub fn into_inner(self) -> T {
        match self {
            TrySendError::Full(value) | TrySendError::Closed(value) => value,
        }
    }
}

impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrySendError::Full(_) => "Full(..)",
            TrySendError::Closed(_) => "Closed(..)",
        })
    }
}

/// The end that puts values in. Clones feed the same queue.
pub struct Sender<T> {
    shared: Rc<Shared<T>>,
}

impl<T> Sender<T> {
    /// Waits for room, then puts the value in.
    pub async fn send(&self, value: T) -> Result<(), Closed<T>> {
        match self.shared.room.acquire_unless_closed(1).await {
            Some(permit) if self.shared.state.borrow().receives => {
                permit.forget();
                self.put(value);
                Ok(())
            }
            _ => Err(Closed(value)),
        }
    }

    /// Puts the value in if there is room.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        if self.is_closed() {
            return Err(TrySendError::Closed(value));
        }
        match self.shared.room.try_acquire(1) {
            Some(permit) => {
                permit.forget();
                self.put(value);
                Ok(())
            }
            None => Err(TrySendError::Full(value)),
        }
    }

    /// The receiver is gone.
    pub fn is_closed(&self) -> bool {
        !self.shared.state.borrow().receives
    }

    fn put(&self, value: T) {
        let mut state = self.shared.state.borrow_mut();
        state.queue.push_back(value);
        state.wake();
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.shared.state.borrow_mut().senders += 1;
        Sender { shared: self.shared.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.shared.state.borrow_mut();
        state.senders -= 1;
        if state.senders == 0 {
            state.wake();
        }
    }
}

/// The end that takes values out.
pub struct Receiver<T> {
    shared: Rc<Shared<T>>,
}

impl<T> Receiver<T> {
    /// The next value; None when all senders are gone and the queue is empty.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    /// As `recv`, for a future written by hand.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(value) = self.try_recv() {
            return Poll::Ready(Some(value));
        }
        let mut state = self.shared.state.borrow_mut();
        if state.senders == 0 {
            return Poll::Ready(None);
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// The next value, if there is one.
    pub fn try_recv(&mut self) -> Option<T> {
        let value = self.shared.state.borrow_mut().queue.pop_front()?;
        self.shared.room.add(1);
        Some(value)
    }

    /// Values in the queue.
    pub fn len(&self) -> usize {
        self.shared.state.borrow().queue.len()
    }

    /// No value in the queue.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.shared.state.borrow_mut();
        state.receives = false;
        let queue = std::mem::take(&mut state.queue);
        drop(state);
        self.shared.room.close();
        drop(queue);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn a_full_queue_holds_senders_back_in_order() {
        let (sender, mut receiver) = channel(1);
        sender.try_send(1).unwrap();
        assert_eq!(sender.try_send(2), Err(TrySendError::Full(2)));
        let mut second = Box::pin(sender.send(2));
        let mut third = Box::pin(sender.send(3));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        assert_eq!(receiver.recv().now_or_never(), Some(Some(1)));
        assert!(third.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_some());
        assert_eq!(receiver.recv().now_or_never(), Some(Some(2)));
        assert!(third.as_mut().now_or_never().is_some());
        drop((second, third));
        drop(sender);
        assert_eq!(receiver.recv().now_or_never(), Some(Some(3)));
        assert_eq!(receiver.recv().now_or_never(), Some(None));
    }

    #[test]
    fn senders_learn_that_the_receiver_is_gone() {
        let (sender, receiver) = channel(1);
        sender.try_send(1).unwrap();
        let mut waits = Box::pin(sender.send(2));
        assert!(waits.as_mut().now_or_never().is_none());
        drop(receiver);
        assert_eq!(waits.as_mut().now_or_never(), Some(Err(Closed(2))));
        assert_eq!(sender.try_send(3), Err(TrySendError::Closed(3)));
    }
}
