//! What `bin/master` is made of: masters alone, by their clients' port.
//!
//! | module | what it holds |
//! |---|---|
//! | [`job`] | what is asked: `lookup-n32`, `create-n8-q16` and the like |
//! | [`mount`] | a registered session and its requests, answered one for one |
//! | [`load`] | as many of them as a job has; filling a master |
//! | [`tree`] | the files that are there, and those that jobs make, rename and remove |
//! | [`subject`] | a master of one kind: its folder, its process, its use of the machine |
//! | [`figures`] | medians, tables |

pub mod figures;
pub mod job;
pub mod load;
pub mod mount;
pub mod subject;
pub mod tree;
