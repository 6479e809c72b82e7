//! Moments. MooseFS's packets and files have whole seconds in 32 bits without sign; ours have nanoseconds.

use std::fmt;

use crate::codec::{Field, Input, Seed, WireError};

const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// A moment: nanoseconds since the beginning of 1970, negative before it. From September 1677 to April 2262.
///
/// As text: `1795243403.000000005`, `-4.500000000` before 1970: sign, seconds, and unless it is a whole
/// second nine digits of its fraction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub i64);

impl Time {
    pub const MIN: Time = Time(i64::MIN);
    pub const MAX: Time = Time(i64::MAX);

    /// `nanos`: counted forward from `seconds`, below a billion. What is out of range becomes the first or last moment.
    pub fn at(seconds: i64, nanos: u32) -> Time {
        let whole = i128::from(seconds) * i128::from(NANOS_PER_SECOND) + i128::from(nanos);
        Time(whole.clamp(i64::MIN.into(), i64::MAX.into()) as i64)
    }

    pub fn from_micros(micros: u64) -> Time {
        Time(i64::try_from(micros).unwrap_or(i64::MAX).saturating_mul(1000))
    }

    /// Seconds as stock peers have them: the fraction is dropped; what they cannot say becomes 0 or the largest number.
    #[inline]
    pub fn seconds(self) -> u32 {
        u32::try_from(self.0.div_euclid(NANOS_PER_SECOND)).unwrap_or(if self.0 < 0 { 0 } else { u32::MAX })
    }

    /// What is left of it behind `seconds`: the same moment as stock peers know it.
    pub fn in_seconds(self) -> Time {
        Time::from(self.seconds())
    }

    /// Seconds, rounded down, and the nanoseconds behind them, as the kernel has it.
    pub fn parts(self) -> (i64, u32) {
        (self.0.div_euclid(NANOS_PER_SECOND), self.0.rem_euclid(NANOS_PER_SECOND) as u32)
    }
}

impl From<u32> for Time {
    #[inline]
    fn from(seconds: u32) -> Time {
        Time(i64::from(seconds) * NANOS_PER_SECOND)
    }
}

impl Field for Time {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0.to_be_bytes());
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        u64::take(input).map(|word| Time(word.cast_signed()))
    }
    fn width(&self) -> usize {
        size_of::<i64>()
    }
    fn sample(seed: &mut Seed) -> Self {
        let time = u64::sample(seed).cast_signed();
        Time(if seed.below(2) == 1 { time.wrapping_neg() } else { time })
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        let (seconds, fraction) = (nanos / NANOS_PER_SECOND.unsigned_abs(), nanos % NANOS_PER_SECOND.unsigned_abs());
        if self.0 < 0 {
            f.write_str("-")?;
        }
        write!(f, "{seconds}")?;
        if fraction != 0 {
            write!(f, ".{fraction:09}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stock_peers_get_whole_seconds_never_wrapped() {
        let check = |seconds: i64, nanos: u32, stock: u32| assert_eq!(Time::at(seconds, nanos).seconds(), stock);
        check(0, 999_999_999, 0);
        check(-1, 999_999_999, 0);
        check(i64::MIN, 0, 0);
        check(1_795_243_403, 999_999_999, 1_795_243_403);
        check(i64::from(u32::MAX), 999_999_999, u32::MAX);
        check(1 << 32, 0, u32::MAX);
        check(i64::MAX, 0, u32::MAX);
        assert_eq!(Time::at(5, 7).in_seconds(), Time::from(5));
    }

    #[test]
    fn a_moment_comes_apart_as_it_was_put_together() {
        for (seconds, nanos) in [(0, 0), (-1, 1), (-1, 999_999_999), (1 << 32, 5), (-9_000_000_000, 123)] {
            assert_eq!(Time::at(seconds, nanos).parts(), (seconds, nanos));
        }
        assert_eq!(Time::at(i64::MAX, 0), Time::MAX);
        assert_eq!(Time::at(i64::MIN, 5), Time::MIN);
    }

    #[test]
    fn as_text_a_moment_has_nine_digits_or_none() {
        let check = |time: Time, text: &str| assert_eq!(time.to_string(), text);
        check(Time::from(1_795_243_403), "1795243403");
        check(Time::at(1_795_243_403, 5), "1795243403.000000005");
        check(Time::at(-5, 500_000_000), "-4.500000000");
        check(Time::at(-1, 999_999_999), "-0.000000001");
        check(Time::MIN, "-9223372036.854775808");
    }
}
