//! A short run of every fuzz target. `MOORING_FUZZ_SECONDS` makes it longer (shared by all targets), and
//! `MOORING_FUZZ_SEED` another one; both are in the message of a failure.

use std::time::{Duration, Instant};

use mooring_tests::fuzz::{TARGETS, run};

/// Inputs per target in the short run.
const COUNT_MIN: usize = 3000;

#[test]
fn no_input_from_outside_breaks_a_decoder() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("MOORING_FUZZ_SECONDS").unwrap_or(0);
    let seed = number("MOORING_FUZZ_SEED").unwrap_or(1);
    let share = Duration::from_secs(seconds) / u32::try_from(TARGETS.len()).expect("a handful of targets");
    for target in TARGETS {
        let tried = run(target, seed, COUNT_MIN, Instant::now() + share);
        println!("{}: {tried} inputs", target.name);
    }
}
