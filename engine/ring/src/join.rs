//! The result of a task.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::Ring;
use crate::core::Core;
use crate::remote::TaskKey;

/// Waits for a task: ends with its output, or None when it was aborted. Dropping it lets the task run on.
pub struct JoinHandle<T> {
    core: Rc<Core>,
    task: TaskKey,
    state: Rc<RefCell<State<T>>>,
}

struct State<T> {
    output: Option<T>,
    over: bool,
    waker: Option<Waker>,
}

impl<T: 'static> JoinHandle<T> {
    pub(crate) fn spawn(ring: &Ring, future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        let state = Rc::new(RefCell::new(State { output: None, over: false, waker: None }));
        let end = End { state: state.clone() };
        let task = ring.core.spawn(
            ring.node,
            Box::pin(async move {
                let output = future.await;
                end.state.borrow_mut().output = Some(output);
                drop(end);
            }),
        );
        JoinHandle { core: ring.core.clone(), task, state }
    }
}

impl<T> JoinHandle<T> {
    /// Drops the task's future where it is. Its output is None, unless it had ended.
    pub fn abort(&self) {
        if !self.is_finished() {
            self.core.abort(self.task);
        }
    }

    /// The task has ended, or was aborted.
    pub fn is_finished(&self) -> bool {
        self.state.borrow().over
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.state.borrow_mut();
        if state.over {
            return Poll::Ready(state.output.take());
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// Dropped when the task is over, one way or another.
struct End<T> {
    state: Rc<RefCell<State<T>>>,
}

impl<T> Drop for End<T> {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        state.over = true;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}
