//! The power of chunkservers fails before an `fsync`. `MOORING_SEEDS=1000` tries more worlds than every run does.

#[test]
fn an_fsync_that_returns_0_holds_though_servers_lost_what_they_had_acknowledged() {
    let seeds = std::env::var("MOORING_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(12);
    let broken: Vec<String> = (1..=seeds)
        .filter_map(|seed| mooring_tests::power::run(seed).err().map(|broken| format!("seed {seed}: {}", broken.0)))
        .collect();
    assert!(broken.is_empty(), "{} of {seeds} seeds:\n{}", broken.len(), broken.join("\n"));
}
