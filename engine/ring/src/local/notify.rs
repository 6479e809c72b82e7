//! A signal between tasks.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Wakes one waiter, or all. `notify_one` without a waiter is remembered once; `notify_all` reaches every
/// [`Notified`] that was made before it, polled or not.
#[derive(Default)]
pub struct Notify {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// A `notify_one` that nobody has taken.
    stored: bool,
    /// How often `notify_all` was called.
    round: u64,
    waiting: VecDeque<Waiter>,
    next_ticket: u64,
}

struct Waiter {
    ticket: u64,
    notified: bool,
    waker: Waker,
}

impl Notify {
    /// A signal that has not been given.
    pub fn new() -> Notify {
        Notify::default()
    }

    /// Wakes the one that waits longest; without one, the next to wait goes on at once.
    pub fn notify_one(&self) {
        self.state.borrow_mut().notify_one();
    }

    /// Wakes all that wait now.
    pub fn notify_all(&self) {
        let mut state = self.state.borrow_mut();
        state.round += 1;
        for waiter in &state.waiting {
            waiter.waker.wake_by_ref();
        }
    }

    /// Waits for the signal.
    pub fn notified(&self) -> Notified<'_> {
        Notified { notify: self, round: self.state.borrow().round, ticket: None }
    }
}

impl State {
    fn notify_one(&mut self) {
        match self.waiting.iter_mut().find(|waiter| !waiter.notified) {
            Some(waiter) => {
                waiter.notified = true;
                waiter.waker.wake_by_ref();
            }
            None => self.stored = true,
        }
    }

    fn place(&self, ticket: u64) -> Option<usize> {
        self.waiting.iter().position(|waiter| waiter.ticket == ticket)
    }
}

/// Ends with the signal. Given by [`Notify::notified`].
pub struct Notified<'a> {
    notify: &'a Notify,
    round: u64,
    ticket: Option<u64>,
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let notify = self.notify;
        let mut state = notify.state.borrow_mut();
        if let Some(ticket) = self.ticket {
            let place = state.place(ticket).expect("we leave only when woken");
            if !state.waiting[place].notified && state.round == self.round {
                state.waiting[place].waker.clone_from(context.waker());
                return Poll::Pending;
            }
            let waiter = state.waiting.remove(place).expect("found at this place");
            if waiter.notified && state.round != self.round {
                state.notify_one(); // woken by both: the other signal is for somebody else
            }
            self.ticket = None;
            return Poll::Ready(());
        }
        if state.round != self.round {
            return Poll::Ready(());
        }
        if std::mem::take(&mut state.stored) {
            return Poll::Ready(());
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.push_back(Waiter { ticket, notified: false, waker: context.waker().clone() });
        drop(state);
        self.ticket = Some(ticket);
        Poll::Pending
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut state = self.notify.state.borrow_mut();
        let Some(place) = state.place(ticket) else { return };
        let waiter = state.waiting.remove(place).expect("found at this place");
        if waiter.notified {
            state.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn one_signal_wakes_one_and_is_remembered_once() {
        let notify = Notify::new();
        notify.notify_one();
        notify.notify_one();
        assert!(notify.notified().now_or_never().is_some());
        assert!(notify.notified().now_or_never().is_none());
    }

    #[test]
    fn all_reaches_those_that_were_made_before() {
        let notify = Notify::new();
        let before = notify.notified();
        notify.notify_all();
        assert!(before.now_or_never().is_some());
        assert!(notify.notified().now_or_never().is_none());
    }

    #[test]
    fn a_signal_to_one_that_left_goes_to_the_next() {
        let notify = Notify::new();
        let mut first = Box::pin(notify.notified());
        let mut second = Box::pin(notify.notified());
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        notify.notify_one();
        drop(first);
        assert!(second.as_mut().now_or_never().is_some());
    }
}
