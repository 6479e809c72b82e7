//! Crash drills with real processes. `MOORING_DRILL_KILLS=200` kills more often than every run does.

use mooring_tests::drill;
use mooring_tests::need::{Need, have};

fn kills(usual: usize) -> usize {
    std::env::var("MOORING_DRILL_KILLS").ok().and_then(|count| count.parse().ok()).unwrap_or(usual)
}

#[test]
fn a_chunkserver_that_is_killed_at_any_moment_keeps_what_it_acknowledged() {
    if !have("a_chunkserver_that_is_killed_at_any_moment_keeps_what_it_acknowledged", &[Need::Mooring]) {
        return;
    }
    let kills = kills(12);
    let outcome = drill::run(kills, 1);
    println!("{outcome:?}");
    assert_eq!(outcome.kills, kills);
    assert!(outcome.acknowledged > kills as u64 * 10, "the load was no load: {outcome:?}");
}
