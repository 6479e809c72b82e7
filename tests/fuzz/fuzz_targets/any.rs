//! One binary for all targets: `MOORING_FUZZ_TARGET` names the one to run.
#![no_main]

use std::sync::LazyLock;

use mooring_tests::fuzz::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("MOORING_FUZZ_TARGET").unwrap_or_else(|_| "wire_packet".into());
    let found = TARGETS.iter().find(|target| target.name == name);
    *found.unwrap_or_else(|| panic!("no target {name}; there are: {}", names()))
});

fn names() -> String {
    TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(" ")
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| (TARGET.run)(data));
