//! When a chunk operation is tried again, after which pause, and with which error it ends. Pure: the caller sleeps.
//!
//! The schedule is Spec 20, 3.2 and 4.6, Spec 31, 31.11 and Spec 72, 7.3. Where a stock client waits 10 s or 60 s for
//! a server to come back, we ask more often and stay as patient in all.

use std::time::Duration;

use ring::Instant;
use wire::Status;

use crate::Errno;

/// Which way the bytes go; the tables differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The master's answer to READ_CHUNK or WRITE_CHUNK.
    Master(Status),
    /// The master knows the chunk and no server that has it.
    NoServers,
    CannotConnect,
    /// A chunkserver's status.
    Server(Status),
    /// End of the connection, silence, or bytes that are no answer.
    Broken,
}

/// The answer "no space" that ends an operation that may end. An application hears of a full cluster soon; but a server
/// that was full may be left out meanwhile, and a chunk may go to another, which takes a moment.
const NO_SPACE_TRIES: u32 = 4;

/// Failures of one operation so far, reset by success.
#[derive(Clone, Debug)]
pub(crate) struct Tries {
    direction: Direction,
    /// Failures that count.
    count: u32,
    /// Answers "locked" in a row, up to 7.
    locked: u32,
    /// Answers "no space".
    no_space: u32,
    max: Option<u32>,
    /// An operation that has failed for so long fails for good; zero: only the tries count.
    limit: Duration,
    /// When the first failure since the last success was.
    failing_since: Option<Instant>,
    error_on_no_space: bool,
    error_on_lost_chunk: bool,
}

impl Tries {
    pub(crate) fn new(direction: Direction, settings: &crate::Settings) -> Tries {
        Tries {
            direction,
            count: 0,
            locked: 0,
            no_space: 0,
            max: tries_max(settings),
            limit: Duration::from_secs(u64::from(settings.timeout_secs)),
            failing_since: None,
            error_on_no_space: settings.error_on_no_space,
            error_on_lost_chunk: settings.error_on_lost_chunk,
        }
    }

    /// Failures that counted since the last success.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn succeeded(&mut self) {
        self.count = 0;
        self.locked = 0;
        self.no_space = 0;
        self.failing_since = None;
    }

    /// What follows this failure: the pause before the next try, or the error that ends the operation.
    pub(crate) fn after(&mut self, now: Instant, failure: Failure) -> Result<Duration, Errno> {
        let since = *self.failing_since.get_or_insert(now);
        if !self.limit.is_zero() && now.saturating_duration_since(since) >= self.limit {
            return Err(last_error(failure));
        }
        match failure {
            Failure::Master(Status::LOCKED | Status::EAGAIN) => {
                self.locked = (self.locked + 1).min(7);
                Ok(Duration::from_millis(match self.locked {
                    0..=2 => 1,
                    3..=6 => 100,
                    _ => 500,
                }))
            }
            Failure::Master(Status::NOSPACE) | Failure::Server(Status::NOSPACE) => {
                self.no_space = (self.no_space + 1).min(NO_SPACE_TRIES);
                let has_tried = self.max.is_some() && self.no_space == NO_SPACE_TRIES;
                if self.error_on_no_space || has_tried { Err(Errno::ENOSPC) } else { self.counted(failure).map(pause) }
            }
            Failure::Master(status) => {
                if let Some(errno) = self.hopeless(status) {
                    return Err(errno);
                }
                self.counted(failure).map(pause)
            }
            Failure::NoServers => {
                let count = self.counted(failure)?;
                Ok(Duration::from_secs(u64::from(count.min(10))))
            }
            Failure::CannotConnect => self.counted(failure).map(pause),
            Failure::Server(Status::NOTDONE) => Ok(Duration::from_millis(300)),
            Failure::Server(_) | Failure::Broken => {
                let count = self.counted(failure)?;
                Ok(match self.direction {
                    Direction::Read if count <= 2 => Duration::ZERO,
                    Direction::Read => pause(count - 2),
                    Direction::Write => pause(count),
                })
            }
        }
    }

    /// The error of a status that no further try can change. Spec 31, 31.11.
    fn hopeless(&self, status: Status) -> Option<Errno> {
        match status {
            Status::ENOENT | Status::EPERM | Status::NOCHUNK => Some(Errno::EBADF),
            Status::INDEXTOOBIG => Some(Errno::EINVAL),
            Status::QUOTA => Some(Errno::EDQUOT),
            Status::IO => Some(Errno::EIO),
            Status::EROFS if self.direction == Direction::Write => Some(Errno::EROFS),
            Status::CHUNKLOST if self.error_on_lost_chunk => Some(Errno::ENXIO),
            _ => None,
        }
    }

    /// One more failure; the number it has. Errors: when the tries are used up.
    fn counted(&mut self, failure: Failure) -> Result<u32, Errno> {
        self.count = self.count.saturating_add(1);
        if self.max.is_some_and(|max| self.count >= max) { Err(last_error(failure)) } else { Ok(self.count) }
    }
}

/// The error of an operation whose last failure was this.
fn last_error(failure: Failure) -> Errno {
    match failure {
        Failure::Master(Status::NOCHUNKSERVERS | Status::NOSPACE) | Failure::Server(Status::NOSPACE) => Errno::ENOSPC,
        Failure::Master(Status::CSNOTPRESENT | Status::CHUNKLOST) | Failure::NoServers => Errno::ENXIO,
        _ => Errno::EIO,
    }
}

/// Tries of one operation. `None`: for ever.
pub(crate) fn tries_max(settings: &crate::Settings) -> Option<u32> {
    (settings.io_retries != crate::Settings::FOR_EVER).then(|| settings.io_retries.max(1))
}

/// Pause before try `n + 1`, from n = 1 on: 1 ms + (n - 1) * 300 ms, 10 s from try 30 on.
pub(crate) fn pause(n: u32) -> Duration {
    if n < 30 { Duration::from_millis(1 + 300 * u64::from(n.saturating_sub(1))) } else { Duration::from_secs(10) }
}

/// How long an operation waits for a master that is away: the pauses of `tries` tries together. Spec 72, 7.1: 30 tries
/// are about 130 s.
pub(crate) fn patience(tries: u32) -> Duration {
    (1..=tries).map(pause).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Tries {
        fn failed(&mut self, failure: Failure) -> Result<Duration, Errno> {
            self.after(Instant::default(), failure)
        }
    }

    #[test]
    fn for_ever_means_for_ever_and_a_limit_ends_every_operation() {
        let mut settings = crate::Settings::new("10.0.0.1:9421".parse().unwrap());
        settings.io_retries = crate::Settings::FOR_EVER;
        let mut tries = Tries::new(Direction::Write, &settings);
        for _ in 0..10_000 {
            assert!(tries.failed(Failure::NoServers).is_ok());
        }
        settings.timeout_secs = 20;
        for (failure, errno) in [
            (Failure::NoServers, Errno::ENXIO),
            (Failure::Master(Status::LOCKED), Errno::EIO),
            (Failure::Server(Status::NOSPACE), Errno::ENOSPC),
        ] {
            let mut tries = Tries::new(Direction::Write, &settings);
            let start = Instant::default();
            let after = |seconds| start + Duration::from_secs(seconds);
            assert!(tries.after(after(100), failure).is_ok());
            assert!(tries.after(after(119), failure).is_ok());
            assert_eq!(tries.after(after(120), failure), Err(errno));
            tries.succeeded();
            assert!(tries.after(after(140), failure).is_ok(), "counted from the first failure on");
        }
    }

    fn tries(direction: Direction) -> Tries {
        let settings = crate::Settings::new("10.0.0.1:9421".parse().unwrap());
        Tries::new(direction, &settings)
    }

    #[test]
    fn a_locked_chunk_is_asked_for_without_end() {
        let mut tries = tries(Direction::Write);
        let pauses: Vec<u64> =
            (0..1000).map(|_| tries.failed(Failure::Master(Status::LOCKED)).unwrap().as_millis() as u64).collect();
        assert_eq!(pauses[..8], [1, 1, 100, 100, 100, 100, 500, 500]);
        assert_eq!(tries.count(), 0);
    }

    #[test]
    fn the_first_two_broken_reads_are_repeated_at_once() {
        let mut tries = tries(Direction::Read);
        let pauses: Vec<u64> = (0..4).map(|_| tries.failed(Failure::Broken).unwrap().as_millis() as u64).collect();
        assert_eq!(pauses, [0, 0, 1, 301]);
    }

    #[test]
    fn the_thirtieth_failure_is_the_last() {
        let mut tries = tries(Direction::Write);
        for _ in 0..29 {
            tries.failed(Failure::Master(Status::NOCHUNKSERVERS)).unwrap();
        }
        assert_eq!(tries.failed(Failure::Master(Status::NOCHUNKSERVERS)), Err(Errno::ENOSPC));
    }

    #[test]
    fn a_full_cluster_is_told_after_a_few_tries_whoever_says_so() {
        let mut tries = tries(Direction::Write);
        let full = [Failure::Server(Status::NOSPACE), Failure::Master(Status::NOSPACE)];
        for failure in full.into_iter().cycle().take(3) {
            tries.failed(failure).unwrap();
        }
        assert_eq!(tries.failed(full[0]), Err(Errno::ENOSPC));
        tries.succeeded();
        assert!(tries.failed(full[0]).is_ok(), "it goes on when there is room");
    }

    #[test]
    fn success_gives_all_tries_back() {
        let mut tries = tries(Direction::Read);
        for _ in 0..29 {
            tries.failed(Failure::Broken).unwrap();
        }
        tries.succeeded();
        assert!(tries.failed(Failure::Broken).is_ok());
    }

    #[test]
    fn a_busy_server_costs_no_try() {
        let mut tries = tries(Direction::Read);
        for _ in 0..100 {
            assert_eq!(tries.failed(Failure::Server(Status::NOTDONE)), Ok(Duration::from_millis(300)));
        }
    }

    #[test]
    fn what_cannot_get_better_ends_at_once() {
        for (status, errno) in [
            (Status::ENOENT, Errno::EBADF),
            (Status::INDEXTOOBIG, Errno::EINVAL),
            (Status::QUOTA, Errno::EDQUOT),
            (Status::EROFS, Errno::EROFS),
        ] {
            assert_eq!(tries(Direction::Write).failed(Failure::Master(status)), Err(errno));
        }
    }

    #[test]
    fn patience_with_an_absent_master_is_that_of_a_stock_client() {
        let seconds = patience(30).as_secs();
        assert!((125..=145).contains(&seconds), "{seconds} s");
    }
}
