//! One value from one task to another.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// A sender and a receiver of one value.
pub fn oneshot<T>() -> (OneshotSender<T>, OneshotReceiver<T>) {
    let state = Rc::new(RefCell::new(State { value: None, waker: None, closed: false }));
    (OneshotSender { state: state.clone() }, OneshotReceiver { state })
}

struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
    /// One of the two is gone.
    closed: bool,
}

/// Sends the value. Dropped without sending, the receiver gets None.
pub struct OneshotSender<T> {
    state: Rc<RefCell<State<T>>>,
}

impl<T> OneshotSender<T> {
    /// Gives the value; back it comes when nobody waits for it any more.
    pub fn send(self, value: T) -> Result<(), T> {
        let mut state = self.state.borrow_mut();
        if state.closed {
            return Err(value);
        }
        state.value = Some(value);
        Ok(()) // our drop wakes the receiver
    }

    /// Nobody waits for the value any more.
    pub fn is_closed(&self) -> bool {
        self.state.borrow().closed
    }
}

impl<T> Drop for OneshotSender<T> {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        state.closed = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Ends with the value, or None when the sender is gone.
pub struct OneshotReceiver<T> {
    state: Rc<RefCell<State<T>>>,
}

impl<T> OneshotReceiver<T> {
    /// Waits for the value; None when the sender is gone.
    pub async fn recv(self) -> Option<T> {
        self.await
    }

    /// The value, if it is there.
    pub fn try_recv(&mut self) -> Option<T> {
        self.state.borrow_mut().value.take()
    }
}

impl<T> Future for OneshotReceiver<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.state.borrow_mut();
        match state.value.take() {
            Some(value) => Poll::Ready(Some(value)),
            None if state.closed => Poll::Ready(None),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for OneshotReceiver<T> {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        state.closed = true;
        let value = state.value.take();
        drop(state);
        drop(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn the_value_arrives_or_its_absence_does() {
        let (sender, mut receiver) = oneshot();
        assert!((&mut receiver).now_or_never().is_none());
        sender.send(7).unwrap();
        assert_eq!(receiver.now_or_never(), Some(Some(7)));
        let (sender, receiver) = oneshot::<u8>();
        drop(sender);
        assert_eq!(receiver.now_or_never(), Some(None));
        let (sender, receiver) = oneshot();
        drop(receiver);
        assert_eq!(sender.send(7), Err(7));
    }
}
