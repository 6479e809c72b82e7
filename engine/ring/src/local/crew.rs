//! Tasks that take jobs one after the other.
//!
//! As good as a task for each job, which nobody waits for and which runs to its end, but without an allocation for
//! each: a task that has finished its job takes the next. There are as many tasks as there ever were jobs at a time.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Poll, Waker};

use crate::Ring;

/// Does jobs of one kind. Dropped, it finishes what it was given.
pub struct Crew<J> {
    shared: Rc<Shared<J>>,
    hire: Box<dyn Fn(u64)>,
}

struct Shared<J> {
    state: RefCell<State<J>>,
}

struct State<J> {
    jobs: VecDeque<J>,
    /// Who waits for a job; the one that had one last is the first to get the next, its memory being warm.
    idle: Vec<(u64, Waker)>,
    hired: u64,
    closed: bool,
}

impl<J: 'static> Crew<J> {
    /// A crew whose members do `work` for each job.
    pub fn new<F: Future<Output = ()> + 'static>(ring: &Ring, work: impl Fn(J) -> F + Clone + 'static) -> Crew<J> {
        let state = State { jobs: VecDeque::new(), idle: Vec::new(), hired: 0, closed: false };
        let shared = Rc::new(Shared { state: RefCell::new(state) });
        let (ring, its) = (ring.clone(), shared.clone());
        let hire = move |member| {
            let (work, shared) = (work.clone(), its.clone());
            ring.spawn(async move {
                while let Some(job) = shared.next_job(member).await {
                    work(job).await;
                }
            });
        };
        Crew { shared, hire: Box::new(hire) }
    }

    /// Has a job done, beside all others.
    pub fn give(&self, job: J) {
        let mut state = self.shared.state.borrow_mut();
        state.jobs.push_back(job);
        match state.idle.pop() {
            Some((_, waker)) => {
                drop(state);
                waker.wake();
            }
            None => {
                let member = state.hired;
                state.hired += 1;
                drop(state);
                (self.hire)(member);
            }
        }
    }
}

impl<J> Shared<J> {
    /// The next job; None when there will be none.
    async fn next_job(&self, member: u64) -> Option<J> {
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            // Woken for a reason of an earlier job, it may still stand among the idle.
            let place = state.idle.iter().position(|(idle, _)| *idle == member);
            if let Some(job) = state.jobs.pop_front() {
                if let Some(place) = place {
                    state.idle.swap_remove(place);
                }
                return Poll::Ready(Some(job));
            }
            if state.closed {
                return Poll::Ready(None);
            }
            match place {
                Some(place) => state.idle[place].1.clone_from(context.waker()),
                None => state.idle.push((member, context.waker().clone())),
            }
            Poll::Pending
        })
        .await
    }
}

impl<J> Drop for Crew<J> {
    fn drop(&mut self) {
        let mut state = self.shared.state.borrow_mut();
        state.closed = true;
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        idle.into_iter().for_each(|(_, waker)| waker.wake());
    }
}
