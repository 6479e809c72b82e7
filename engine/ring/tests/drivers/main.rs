//! Every public operation on both real drivers: each test runs under uring and under epoll.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod files;
mod sockets;
mod tasks;

use std::future::Future;
use std::time::Duration;

use ring::{DriverChoice, Options, Ring};

/// Runs `test` under one driver, at most 30 seconds. Where io_uring is forbidden its test is skipped, loudly.
fn on<Fut: Future<Output = ()>>(driver: DriverChoice, test: impl FnOnce(Ring) -> Fut) {
    let options = Options { driver, entries: 64, buffers: 16, pin_to_core: None };
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

/// Declares each test twice.
macro_rules! on_both_drivers {
    ($($(#[$doc:meta])* async fn $name:ident($ring:ident: Ring) $body:block)*) => {
        $(
            mod $name {
                use super::*;

                async fn test($ring: Ring) $body

                #[test]
                fn under_uring() {
                    $crate::on(ring::DriverChoice::Uring, test);
                }

                #[test]
                fn under_epoll() {
                    $crate::on(ring::DriverChoice::Epoll, test);
                }
            }
        )*
    };
}
pub(crate) use on_both_drivers;
