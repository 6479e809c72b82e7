//! The master fails at its await points, one after the other: see `mooring_tests::crashes`.
//!
//! By default some points are tried: all of the first start, one failure at each, and others spread over the master's
//! life; `MOORING_SIM_OFFSET=N` moves them on. With `MOORING_SIM_EVERY_AWAIT=1` all are, with 10 every tenth, which
//! wants an optimised build. `MOORING_SIM_POINT=SETUP:STEP:FAILURE` or `SETUP:STEP:FAILURE:STEP:FAILURE`, as a failing
//! run names it, repeats one with its log on stderr.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use mooring_tests::crashes::{Outcome, Point, Reference, Setup};
use mooring_tests::workload::Broken;
use ring::sim::Failure;

/// Ways to set a master up. The least that may be kept is one of them.
const SETUPS: [Setup; 3] = [
    Setup { seed: 1, journals_kept: 3, images_kept: 2, asked_by_file: true },
    Setup { seed: 2, journals_kept: 0, images_kept: 0, asked_by_file: false },
    Setup { seed: 3, journals_kept: 1, images_kept: 1, asked_by_file: false },
];
/// Points of each setup behind its first start that are tried by default.
const POINTS_BY_DEFAULT: u64 = 24;
/// The second failure comes within so many steps after the start that follows the first one.
const STEPS_OF_RECOVERY: u64 = 120;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// A panic inside the world is a broken promise too.
fn caught<T>(play: impl FnOnce() -> Result<T, Broken>) -> Result<T, Broken> {
    catch_unwind(AssertUnwindSafe(play)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("(no message)");
        Err(Broken(format!("panic: {text}")))
    })
}

/// At each step both failures, alone and with a second one soon after.
fn points_at(step: u64) -> [Point; 4] {
    use Failure::{Killed, PowerCut};
    let later = |salt: u64| (step * 31 + salt * 7) % STEPS_OF_RECOVERY;
    [
        Point { step, failure: Killed, again: None },
        Point { step, failure: PowerCut, again: None },
        Point {
            step,
            failure: Killed,
            again: Some((later(1), if step.is_multiple_of(2) { PowerCut } else { Killed })),
        },
        Point {
            step,
            failure: PowerCut,
            again: Some((later(2), if step.is_multiple_of(2) { Killed } else { PowerCut })),
        },
    ]
}

fn spelled(setup: usize, point: &Point) -> String {
    let again = point.again.map_or_else(String::new, |(step, failure)| format!(":{step}:{failure:?}"));
    format!("{setup}:{}:{:?}{again}", point.step, point.failure)
}

fn read(text: &str) -> Option<(usize, Point)> {
    let failure = |word: &str| match word {
        "Killed" => Some(Failure::Killed),
        "PowerCut" => Some(Failure::PowerCut),
        _ => None,
    };
    let words: Vec<&str> = text.split(':').collect();
    let again = match words.get(3..) {
        Some([step, kind]) => Some((step.parse().ok()?, failure(kind)?)),
        _ => None,
    };
    let point = Point { step: words.get(1)?.parse().ok()?, failure: failure(words.get(2)?)?, again };
    Some((words.first()?.parse().ok()?, point))
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().try_init();
}

#[test]
fn a_master_that_fails_at_any_await_point_recovers_all_that_it_acknowledged() {
    if let Ok(text) = std::env::var("MOORING_SIM_POINT") {
        let (setup, point) = read(&text).expect("MOORING_SIM_POINT is a point as a failing run names it");
        let reference = Reference::play(SETUPS[setup]).expect("a life without failures");
        log_to_stderr();
        let outcome = caught(|| reference.fail_at(point));
        println!("{text}: {outcome:?}");
        assert!(outcome.is_ok());
        return;
    }
    let start = Instant::now();
    let every = number("MOORING_SIM_EVERY_AWAIT").filter(|every| *every != 0);
    let offset = number("MOORING_SIM_OFFSET").unwrap_or(0);
    let mut work = Vec::new();
    let mut references = Vec::new();
    for (number, setup) in SETUPS.into_iter().enumerate() {
        let reference = caught(|| Reference::play(setup)).unwrap_or_else(|Broken(text)| panic!("{setup:?}: {text}"));
        println!("setup {number}: {} steps, {} changes", reference.steps, reference.changes());
        if let Some(every) = every {
            let steps = (offset % every..reference.steps).step_by(every as usize);
            work.extend(steps.flat_map(points_at).map(|point| (number, point)));
        } else {
            let start = reference.first_start_steps;
            let stride = ((reference.steps - start) / POINTS_BY_DEFAULT).max(1);
            let later = (start + offset % stride..reference.steps).step_by(stride as usize);
            let turns = (0..start).chain(later).zip(offset..);
            work.extend(turns.map(|(step, turn)| (number, points_at(step)[turn as usize % 4])));
        }
        references.push(reference);
    }
    let (next, sums, failures) = (AtomicUsize::new(0), Mutex::new([0; 5]), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((setup, point)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match caught(|| references[*setup].fail_at(*point)) {
                        Ok(Outcome { failures, acknowledged, went_on, replays, .. }) => {
                            let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
                            let more = [failures, acknowledged, usize::from(went_on), replays, 1];
                            sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
                        }
                        Err(Broken(sentence)) => {
                            let line = format!("{}: {sentence}", spelled(*setup, point));
                            eprintln!("{line}");
                            failures.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                        }
                    }
                }
            });
        }
    });
    let [crashes, acknowledged, went_on, replays, sound] = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!(
        "{} points in {:.1} s: {sound} sound, {crashes} failures of the master, {acknowledged} changes acknowledged \
         before them were there, {went_on} times also the one in doubt; {replays} generations replayed to the same \
         digest",
        work.len(),
        start.elapsed().as_secs_f64()
    );
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    let shown: Vec<&str> = failures.iter().take(5).map(String::as_str).collect();
    assert!(failures.is_empty(), "{} points broke a promise; the first:\n{}", failures.len(), shown.join("\n"));
}
