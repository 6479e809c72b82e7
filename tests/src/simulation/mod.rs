//! Whole clusters in one simulated world: master, three chunkservers, two users, and whatever can go wrong.
//!
//! One seed decides time, order, faults and load. `cluster` holds the servers; each scenario has a file of its own.

mod cluster;
mod copies;
mod history;
mod lights_out;
mod one_away;
mod outages;
mod writer;

pub use lights_out::lights_out;
pub use one_away::{Outcome, run};
pub use outages::{Fault, outages};
