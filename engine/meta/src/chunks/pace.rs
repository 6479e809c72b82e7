//! How fast servers copy, as measured, and what that allows.
//!
//! CHUNKS_WRITE_REP_LIMIT and CHUNKS_READ_REP_LIMIT count copies, and a copy takes a fast disk a third of a second and a
//! sick one, or a thin line, a minute. So beside these limits no server gets more than it completes in some seconds: what
//! is behind that would only wait there, lock its chunk, and be given up. One copy it always may have: that is how it is
//! measured again.
//!
//! Measured is the time of a round: as many completed copies as were under way when it began. So it is the bandwidth of a
//! server with several copies under way, also when they end all at once, and the latency of one with a single copy. Time
//! comes in with the ticks.

/// As much is put before a server as it completes in this time.
const AHEAD_SECONDS: f64 = 10.0;
/// What a slower and a faster copy count against what was known.
const WEIGHT_SLOWER: f64 = 0.25;
const WEIGHT_FASTER: f64 = 0.5;

/// One direction of one server.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Pace {
    /// None: nothing was measured yet.
    seconds_per_copy: Option<f64>,
    /// When the round began.
    since: f64,
    /// When a copy ended last, or the first one began.
    last: f64,
    /// Copies of this round, and those of them that are done.
    round: u32,
    done: u32,
}

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Completed,
    /// It took too long.
    GivenUp,
    /// Nothing is learned of it.
    Otherwise,
}

impl Pace {
    /// A copy begins, beside `running` others.
    pub(super) fn begin(&mut self, clock: f64, running: u32) {
        if running == 0 {
            (self.since, self.last, self.done) = (clock, clock, 0);
        }
        if self.done == 0 {
            self.round = running + 1;
        }
    }

    /// A copy ended, `left` others run. `other_end`: the pace of the server at the other end.
    fn end(&mut self, end: End, clock: f64, left: u32, other_end: Option<f64>) {
        let waited = (clock - self.last).max(0.0);
        self.last = clock;
        self.done += u32::from(end == End::Completed);
        if end == End::Completed && self.done < self.round {
            return;
        }
        // Also a round that another end cuts short.
        if self.done > 0 {
            self.learn((clock - self.since).max(0.0) / f64::from(self.done), other_end);
        }
        // At this server none was completed for so long, so one takes at least that.
        if end == End::GivenUp {
            self.seconds_per_copy = Some(self.seconds_per_copy.map_or(waited, |known| known.max(waited)));
        }
        (self.since, self.done, self.round) = (clock, 0, left);
    }

    pub(super) fn seconds_per_copy(&self) -> Option<f64> {
        self.seconds_per_copy
    }

    /// How many copies may be under way, where the settings allow `limit`.
    pub(super) fn allows(&self, limit: f64) -> f64 {
        match self.seconds_per_copy {
            Some(seconds) if seconds > 0.0 => limit.min((AHEAD_SECONDS / seconds).floor().max(1.0)),
            _ => limit,
        }
    }

    /// A copy took `seconds`. If the server at the `other_end` is known to be slow, a slow copy says nothing of this one.
    fn learn(&mut self, seconds: f64, other_end: Option<f64>) {
        self.seconds_per_copy = Some(match self.seconds_per_copy {
            None => seconds,
            Some(known) if seconds <= known => known + (seconds - known) * WEIGHT_FASTER,
            Some(known) if other_end.is_some_and(|other| other > known && other * 2.0 >= seconds) => known,
            Some(known) => known + (seconds - known) * WEIGHT_SLOWER,
        });
    }
}

/// A copy between two servers ended. With each the number of others that run in that direction.
pub(super) fn ended(source: Option<(&mut Pace, u32)>, target: Option<(&mut Pace, u32)>, end: End, clock: f64) {
    let known = |pace: &Option<(&mut Pace, u32)>| pace.as_ref().and_then(|(pace, _)| pace.seconds_per_copy);
    let (of_source, of_target) = (known(&source), known(&target));
    for (pace, other_end) in [(source, of_target), (target, of_source)] {
        if let Some((pace, left)) = pace {
            pace.end(end, clock, left, other_end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Copies one after the other, each of so many seconds.
    fn one_by_one(source: &mut Pace, target: &mut Pace, seconds: &[f64]) {
        let mut clock = 1000.0;
        for seconds in seconds {
            source.begin(clock, 0);
            target.begin(clock, 0);
            clock += seconds;
            ended(Some((&mut *source, 0)), Some((&mut *target, 0)), End::Completed, clock);
        }
    }

    #[test]
    fn a_server_gets_no_more_than_it_completes_in_ten_seconds() {
        let check = |seconds: &[f64], limit: f64, expected: f64| {
            let (mut source, mut target) = (Pace::default(), Pace::default());
            one_by_one(&mut source, &mut target, seconds);
            assert_eq!(target.allows(limit), expected, "{seconds:?}");
        };
        check(&[], 2.0, 2.0);
        check(&[0.5; 4], 2.0, 2.0);
        check(&[0.5; 4], 40.0, 20.0);
        check(&[4.0], 10.0, 2.0);
        check(&[30.0], 2.0, 1.0);
        check(&[30.0], 0.5, 0.5); // less than the settings say, never more
        check(&[0.0], 2.0, 2.0);
        check(&[1.0, 1.0, 30.0], 2.0, 1.0); // 8.25 s
        check(&[30.0, 0.2, 0.2, 0.2, 0.2], 2.0, 2.0); // it got well
    }

    #[test]
    fn copies_side_by_side_count_as_what_they_take_together() {
        let mut pace = Pace::default();
        (0..4).for_each(|running| pace.begin(0.0, running));
        for done in 1..=4 {
            pace.end(End::Completed, f64::from(done) * 2.0, 4 - done, None);
        }
        assert_eq!(pace.seconds_per_copy(), Some(2.0), "four in eight seconds");
        pace.begin(100.0, 0);
        pace.end(End::Completed, 102.0, 0, None);
        assert_eq!(pace.seconds_per_copy(), Some(2.0), "idle time is not counted");
    }

    #[test]
    fn copies_that_end_all_at_once_count_as_what_they_take_together() {
        let mut pace = Pace::default();
        for round in 0..10 {
            let begun = f64::from(round) * 60.0;
            (0..10).for_each(|running| pace.begin(begun, running));
            (0..10).rev().for_each(|left| pace.end(End::Completed, begun + 60.0, left, None));
        }
        assert_eq!((pace.seconds_per_copy(), pace.allows(10.0)), (Some(6.0), 1.0));
        // Errors do not hide it.
        let mut pace = Pace::default();
        for round in 0..10 {
            (0..10).for_each(|running| pace.begin(f64::from(round) * 60.0, running));
            for done in 1..=9 {
                pace.end(End::Completed, f64::from(round * 60 + done * 5), 10 - done as u32, None);
            }
            pace.end(End::Otherwise, f64::from(round) * 60.0 + 45.0, 0, None);
        }
        assert_eq!(pace.seconds_per_copy(), Some(5.0));
        // A new one for each that ends.
        let mut pace = Pace::default();
        (0..3).for_each(|running| pace.begin(0.0, running));
        for done in 1..100 {
            pace.end(End::Completed, f64::from(done) * 5.0, 2, None);
            pace.begin(f64::from(done) * 5.0, 2);
        }
        assert_eq!(pace.seconds_per_copy(), Some(5.0));
    }

    #[test]
    fn copies_that_are_given_up_count_as_what_they_took_at_least() {
        let mut pace = Pace::default();
        one_by_one(&mut Pace::default(), &mut pace, &[0.5; 4]);
        (0..3).for_each(|running| pace.begin(2000.0, running));
        pace.end(End::GivenUp, 2121.0, 2, None);
        assert_eq!(pace.seconds_per_copy(), Some(121.0));
        (0..2).rev().for_each(|left| pace.end(End::GivenUp, 2121.0, left, None)); // those that are overdue in the same tick add nothing
        assert_eq!((pace.seconds_per_copy(), pace.allows(10.0)), (Some(121.0), 1.0));
        // Others were completed meanwhile: the end that hangs is not this one.
        let mut source = Pace::default();
        (0..2).for_each(|running| source.begin(3000.0, running));
        for second in 1..=120 {
            source.end(End::Completed, 3000.0 + f64::from(second), 1, None);
            source.begin(3000.0 + f64::from(second), 1);
        }
        source.end(End::GivenUp, 3121.0, 1, None);
        assert_eq!(source.seconds_per_copy(), Some(1.0));
    }

    #[test]
    fn a_slow_server_does_not_slow_down_those_it_works_with() {
        let (mut quick, mut other, mut slow) = (Pace::default(), Pace::default(), Pace::default());
        one_by_one(&mut quick, &mut other, &[0.5; 4]);
        for _ in 0..10 {
            one_by_one(&mut quick, &mut slow, &[40.0]);
            one_by_one(&mut quick, &mut other, &[0.5, 0.5]);
        }
        assert_eq!(slow.allows(10.0), 1.0);
        assert_eq!((quick.allows(5.0), other.allows(5.0)), (5.0, 5.0), "{quick:?} {other:?}");
    }
}
