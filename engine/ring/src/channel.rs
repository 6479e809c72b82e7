//! Between threads: an unbounded queue whose receiver waits on a ring and whose senders are anywhere.
//!
//! A doorbell wakes the receiver's ring only when it sleeps; a busy ring finds the value in its next turn. Bounds are
//! the users' to keep: what is sent is an answer or a request that somebody waits for.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

pub use crate::local::Closed;

/// A queue between threads.
pub fn channel<T: Send>() -> (Sender<T>, Receiver<T>) {
    let state = State { queue: VecDeque::new(), senders: 1, receives: true, waker: None };
    let shared = Arc::new(Mutex::new(state));
    (Sender { shared: shared.clone() }, Receiver { shared, batch: VecDeque::new() })
}

struct State<T> {
    queue: VecDeque<T>,
    senders: usize,
    receives: bool,
    waker: Option<Waker>,
}

fn lock<T>(shared: &Mutex<State<T>>) -> MutexGuard<'_, State<T>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The end that puts values in, from any thread. Clones feed the same queue.
pub struct Sender<T: Send> {
    shared: Arc<Mutex<State<T>>>,
}

impl<T: Send> Sender<T> {
    /// Puts the value in. Never waits.
    pub fn send(&self, value: T) -> Result<(), Closed<T>> {
        let mut state = lock(&self.shared);
        if !state.receives {
            return Err(Closed(value));
        }
        state.queue.push_back(value);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// The receiver is gone.
    pub fn is_closed(&self) -> bool {
        !lock(&self.shared).receives
    }
}

impl<T: Send> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        lock(&self.shared).senders += 1;
        Sender { shared: self.shared.clone() }
    }
}

impl<T: Send> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.shared);
        state.senders -= 1;
        let waker = if state.senders == 0 { state.waker.take() } else { None };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The end that takes values out.
pub struct Receiver<T: Send> {
    shared: Arc<Mutex<State<T>>>,
    /// Taken out of the queue together, to lock once for many.
    batch: VecDeque<T>,
}

impl<T: Send> Receiver<T> {
    /// The next value; None when all senders are gone and the queue is empty.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    /// As `recv`, for a future written by hand.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(value) = self.batch.pop_front() {
            return Poll::Ready(Some(value));
        }
        let mut state = lock(&self.shared);
        std::mem::swap(&mut self.batch, &mut state.queue);
        match self.batch.pop_front() {
            Some(value) => Poll::Ready(Some(value)),
            None if state.senders == 0 => Poll::Ready(None),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The next value, if there is one.
    pub fn try_recv(&mut self) -> Option<T> {
        if self.batch.is_empty() {
            std::mem::swap(&mut self.batch, &mut lock(&self.shared).queue);
        }
        self.batch.pop_front()
    }
}

impl<T: Send> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.shared);
        state.receives = false;
        let queue = std::mem::take(&mut state.queue);
        drop(state);
        drop(queue);
    }
}
