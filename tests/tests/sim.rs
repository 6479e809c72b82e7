//! Simulated clusters under faults: nothing acknowledged is lost, no wrong byte is ever returned.
//!
//! `MOORING_SIM_SEEDS=N` runs so many seeds (few by default), beginning with `MOORING_SIM_FIRST` (1).
//! `MOORING_SIM_FAULTS=silent,power` names the kinds of faults for outages (all that are stood today by default).
//! `MOORING_SIM_SEED=S` repeats one, with its log on stderr (`RUST_LOG` says how much of it).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mooring_tests::simulation::{Fault, Outcome, lights_out, outages, run};
use mooring_tests::workload::{Broken, Counts};

const SEEDS_BY_DEFAULT: u64 = 10;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // The other test of this file may have been first.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().try_init();
}

/// A panic inside the world is a broken promise too.
fn caught<T>(scenario: impl FnOnce() -> Result<T, Broken>) -> Result<T, Broken> {
    catch_unwind(AssertUnwindSafe(scenario)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("(no message)");
        Err(Broken(format!("panic: {text}")))
    })
}

fn outcome_of(seed: u64) -> Result<Outcome, Broken> {
    caught(|| run(seed))
}

#[test]
fn nothing_acknowledged_is_lost_whatever_breaks() {
    if let Some(seed) = number("MOORING_SIM_SEED") {
        log_to_stderr();
        let outcome = outcome_of(seed);
        println!("seed {seed}: {outcome:?}");
        assert!(outcome.is_ok(), "seed {seed}: {outcome:?}");
        return;
    }
    let first = number("MOORING_SIM_FIRST").unwrap_or(1);
    let count = number("MOORING_SIM_SEEDS").unwrap_or(SEEDS_BY_DEFAULT);
    let (next, failures, sums) = (AtomicU64::new(first), Mutex::new(Vec::new()), Mutex::new([0; 4]));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    match outcome_of(seed) {
                        Ok(outcome) => {
                            let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
                            sums[0] += outcome.faults;
                            for counts in outcome.counts {
                                sums[1] += counts.acknowledged;
                                sums[2] += counts.failed;
                                sums[3] += counts.reads_compared;
                            }
                        }
                        Err(Broken(sentence)) => {
                            eprintln!("seed {seed}: {sentence}");
                            failures.lock().unwrap_or_else(PoisonError::into_inner).push((seed, sentence));
                        }
                    }
                }
            });
        }
    });
    let [faults, acknowledged, failed, reads] = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!(
        "{count} seeds in {:.1} s: {faults} faults, {acknowledged} operations acknowledged, {failed} failed, {reads} \
         files compared",
        start.elapsed().as_secs_f64()
    );
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    let lines: Vec<String> = failures.iter().map(|(seed, sentence)| format!("seed {seed}: {sentence}")).collect();
    assert!(
        lines.is_empty(),
        "{} of {count} seeds broke a promise; repeat one with MOORING_SIM_SEED:\n{}",
        lines.len(),
        lines.join("\n")
    );
    assert!(acknowledged > failed * 4, "most operations must succeed, else this proves little");
}

#[test]
fn the_same_seed_goes_the_same_way() {
    let [first, second] = [3, 3].map(outcome_of);
    assert_eq!(first, second);
    assert!(first.is_ok_and(|outcome| outcome.virtual_time > Duration::from_secs(1)));
}

#[test]
fn what_fsync_confirmed_outlives_a_power_cut_of_every_server() {
    let (first, count) = match number("MOORING_SIM_SEED") {
        Some(seed) => {
            log_to_stderr();
            (seed, 1)
        }
        None => {
            let count = number("MOORING_SIM_SEEDS").map_or(SEEDS_BY_DEFAULT, |count| count / 10 + 1);
            (number("MOORING_SIM_FIRST").unwrap_or(1), count)
        }
    };
    let broken: Vec<String> = (first..first + count)
        .filter_map(|seed| lights_out(seed).err().map(|Broken(sentence)| format!("seed {seed}: {sentence}")))
        .collect();
    assert!(broken.is_empty(), "{} of {count} seeds broke the promise:\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn outages_of_all_servers_lose_nothing_and_end_by_themselves() {
    let kinds = match std::env::var("MOORING_SIM_FAULTS") {
        Ok(names) => names.split(',').map(|name| Fault::named(name).expect("a kind of fault")).collect(),
        Err(_) => Fault::STOOD.to_vec(),
    };
    let (first, count) = match number("MOORING_SIM_SEED") {
        Some(seed) => {
            log_to_stderr();
            (seed, 1)
        }
        None => {
            // One of these takes as long as four of the others.
            let count = number("MOORING_SIM_SEEDS").map_or(SEEDS_BY_DEFAULT, |count| count / 4 + 1);
            (number("MOORING_SIM_FIRST").unwrap_or(1), count)
        }
    };
    let start = Instant::now();
    let (next, failures, sums) = (AtomicU64::new(first), Mutex::new(Vec::new()), Mutex::new(Counts::default()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    match caught(|| outages(seed, &kinds)) {
                        Ok(counts) => {
                            let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
                            sums.acknowledged += counts.acknowledged;
                            sums.failed += counts.failed;
                            sums.reads_compared += counts.reads_compared;
                            sums.bytes_compared += counts.bytes_compared;
                        }
                        Err(Broken(sentence)) => {
                            eprintln!("seed {seed}: {sentence}");
                            failures.lock().unwrap_or_else(PoisonError::into_inner).push((seed, sentence));
                        }
                    }
                }
            });
        }
    });
    let sums = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{count} seeds of outages in {:.1} s: {sums:?}", start.elapsed().as_secs_f64());
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    let lines: Vec<String> = failures.iter().map(|(seed, sentence)| format!("seed {seed}: {sentence}")).collect();
    assert!(lines.is_empty(), "{} of {count} seeds broke a promise:\n{}", lines.len(), lines.join("\n"));
}
