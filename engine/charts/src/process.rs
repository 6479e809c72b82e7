//! What the system says of a process: memory and CPU time.

/// How long one tick of the CPU times in /proc is.
const TICK_MICROS: u64 = 10_000;

/// Memory of a process now, and the CPU time that it has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    pub user_micros: u64,
    pub system_micros: u64,
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
}

impl Process {
    /// From the texts of `/proc/PID/stat` and `/proc/PID/status`. Zeros where they do not say.
    pub fn parse(stat: &str, status: &str) -> Process {
        // The name in brackets may hold blanks; the 12th and 13th words behind it are the times.
        let words: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace().collect();
        let ticks = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        let kibibytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().split(' ').next()?.parse::<u64>().ok()
        };
        Process {
            user_micros: ticks(11).saturating_mul(TICK_MICROS),
            system_micros: ticks(12).saturating_mul(TICK_MICROS),
            resident_bytes: kibibytes("VmRSS:").unwrap_or(0).saturating_mul(1024),
            virtual_bytes: kibibytes("VmSize:").unwrap_or(0).saturating_mul(1024),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_memory_are_read_from_the_systems_texts() {
        let stat = "42 (a name) with) S 1 42 42 0 -1 4194560 99 0 0 0 7 5 0 0 20 0 1 0 100 0 0";
        let status = "Name:\ta name\nVmSize:\t    2048 kB\nVmRSS:\t     512 kB\n";
        let process = Process::parse(stat, status);
        assert_eq!((process.user_micros, process.system_micros), (70_000, 50_000));
        assert_eq!((process.virtual_bytes, process.resident_bytes), (2 << 20, 512 << 10));
        assert_eq!(Process::parse("nonsense", ""), Process::default());
    }
}
