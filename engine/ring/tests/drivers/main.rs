//! Every public operation on both real drivers: each test runs under uring, with and without the features that can be
//! switched off, and under epoll.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod files;
mod sockets;
mod tasks;

use std::future::Future;
use std::time::Duration;

use ring::{DriverChoice, Features, Options, Ring};

/// Runs `test` under one driver, at most 30 seconds. Where io_uring is forbidden its test is skipped, loudly.
fn on<Fut: Future<Output = ()>>(driver: DriverChoice, features: Features, test: impl FnOnce(Ring) -> Fut) {
    let options = Options { driver, features, entries: 64, buffers: 16, ..Options::default() };
    let ran = ring::run(options, |ring| async move {
        let test = test(ring.clone());
        ring.timeout(Duration::from_secs(30), test).await.expect("the test ends in time");
    });
    match ran {
        Ok(()) => {}
        Err(error) if driver == DriverChoice::Uring => {
            eprintln!("SKIPPED: io_uring is not available here: {error}");
        }
        Err(error) => panic!("no driver: {error}"),
    }
}

/// The kernel's ring as its first versions had it.
fn plain() -> Features {
    let words: Vec<String> = Features::NAMES.iter().map(|name| format!("-{name}")).collect();
    Features::default().changed(&words.join(" ")).0
}

/// Declares each test three times.
macro_rules! on_both_drivers {
    ($($(#[$doc:meta])* async fn $name:ident($ring:ident: Ring) $body:block)*) => {
        $(
            mod $name {
                use super::*;

                async fn test($ring: Ring) $body

                #[test]
                fn under_uring() {
                    $crate::on(ring::DriverChoice::Uring, ring::Features::default(), test);
                }

                #[test]
                fn under_plain_uring() {
                    $crate::on(ring::DriverChoice::Uring, $crate::plain(), test);
                }

                #[test]
                fn under_epoll() {
                    $crate::on(ring::DriverChoice::Epoll, ring::Features::default(), test);
                }
            }
        )*
    };
}
pub(crate) use on_both_drivers;
