//! Between tasks of one core: no locks, nothing atomic, all first come, first served.
//!
//! A future that is dropped while it waits leaves the line; what was granted to it goes to the next.

mod channel;
mod crew;
mod notify;
mod oneshot;
mod semaphore;

pub use channel::{Closed, Receiver, Sender, TrySendError, channel};
pub use crew::Crew;
pub use notify::{Notified, Notify};
pub use oneshot::{OneshotReceiver, OneshotSender, oneshot};
pub use semaphore::{Mutex, MutexGuard, Permit, Semaphore};
