//! From what was measured to lines for `mfschunkserver.cfg`. Pure.

use std::fmt::Write;

use super::Probed;
use crate::chunkserver::profile;

/// A random 4 KiB read that takes longer than this waits for heads: a turn of a disk with 15,000 a minute is 4 ms, half
/// of which it waits for on average; flash answers in a tenth.
const HEADS_MICROS: u32 = 2000;
/// More than SATA carries (6 Gbit/s with 8 bits in 10): only NVMe, or a disk behind as fast a bus.
const FASTER_THAN_SATA_MB: f64 = 600.0;
/// What a small read of NVMe flash stays below.
const NVME_READ_MICROS: u32 = 150;
/// Memory that the proposal gives to the block cache at most.
const SHARE_OF_MEMORY: u64 = 8;
/// A flush that takes longer than this makes `synced` felt.
const SLOW_FLUSH_MICROS: u32 = 5000;
/// Chunk files of the aligned layout have their data at a multiple of this. Spec 21, 2.
const ALIGNMENT_MAX: u32 = 4096;

/// Profiles from the slowest kind of disk to the fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Hdd,
    Ssd,
    Nvme,
}

impl Kind {
    fn of(probed: &Probed) -> Kind {
        let figures = &probed.figures;
        let is_nvme = figures.random_read_mb_per_second > FASTER_THAN_SATA_MB
            && figures.read_latency_micros < NVME_READ_MICROS
            && probed.disk.rotational != Some(true);
        match figures.read_latency_micros {
            HEADS_MICROS.. => Kind::Hdd,
            _ if is_nvme => Kind::Nvme,
            _ => Kind::Ssd,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Hdd => "hdd",
            Kind::Ssd => "ssd",
            Kind::Nvme => "nvme",
        }
    }
}

/// Lines to be pasted, with the reasons as comments. `probed`: at least one; a chunkserver has one profile for all its
/// disks, so the slowest decides. `memory_mib`: of the machine, if it is known.
pub(super) fn lines(probed: &[Probed], memory_mib: Option<u64>, has_io_uring: bool) -> String {
    let slowest = probed.iter().min_by_key(|one| (Kind::of(one), one.figures.read_latency_micros.wrapping_neg()));
    let slowest = slowest.expect("at least one was measured");
    let name = Kind::of(slowest).name();
    let mut text = format!(
        "# For mfschunkserver.cfg, by mooring probe. {} decides: a random 4 KiB read takes {:.2} ms; random 64 KiB\n\
         # reads give {:.0} MB/s.\nTUNING_PROFILE = {name}\n",
        slowest.folder.display(),
        f64::from(slowest.figures.read_latency_micros) / 1000.0,
        slowest.figures.random_read_mb_per_second,
    );
    let profile = profile::built_in(name).expect("every kind has a profile");
    let refuses_direct = |one: &&Probed| one.figures.alignment_bytes.is_none_or(|bytes| bytes > ALIGNMENT_MAX);
    if profile.text("HDD_IO_MODE", "") == "direct"
        && let Some(one) = probed.iter().find(refuses_direct)
    {
        let _ = writeln!(text, "# {} takes no direct IO aligned to {ALIGNMENT_MAX} bytes.", one.folder.display());
        text.push_str("HDD_IO_MODE = buffered\n");
    }
    let cache_max = memory_mib.map_or(u64::MAX, |mib| mib / SHARE_OF_MEMORY);
    if u64::from(profile.number::<u32>("BLOCK_CACHE_MIB", 0, 0..=u32::MAX)) > cache_max {
        let _ = writeln!(text, "# 1/{SHARE_OF_MEMORY} of this machine's memory.\nBLOCK_CACHE_MIB = {cache_max}");
    }
    for one in probed {
        if one.disk.is_memory() {
            let _ = writeln!(
                text,
                "# {} is memory, not a disk: chunks there do not outlive a restart.",
                one.folder.display()
            );
        }
        if one.figures.flush_micros > SLOW_FLUSH_MICROS {
            let millis = f64::from(one.figures.flush_micros) / 1000.0;
            let folder = one.folder.display();
            let _ = writeln!(text, "# DURABILITY = synced would wait {millis:.1} ms for {folder} before each answer.");
        }
    }
    if !has_io_uring {
        text.push_str("# io_uring is not available here: the chunkserver will use epoll and threads.\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::probe::disk::Disk;
    use crate::probe::measure::Figures;
    use std::path::Path;

    fn probed(folder: &str, read_latency_micros: u32, random_read_mb_per_second: f64) -> Probed {
        let figures = Figures {
            alignment_bytes: Some(512),
            read_latency_micros,
            random_read_mb_per_second,
            flush_micros: 100,
            ..Figures::default()
        };
        Probed { folder: folder.into(), disk: Disk::default(), figures }
    }

    /// What the lines say when they are pasted into a file.
    fn setting(text: &str, name: &str) -> String {
        Config::parse(text.as_bytes(), Path::new("pasted")).text(name, "-")
    }

    #[test]
    fn the_kind_of_disk_follows_from_what_it_does() {
        let kind = |micros, mb| setting(&lines(&[probed("/d", micros, mb)], Some(64 << 10), true), "TUNING_PROFILE");
        assert_eq!([kind(8000, 50.0), kind(100, 500.0), kind(80, 2500.0)], ["hdd", "ssd", "nvme"]);
        assert_eq!(kind(500, 2500.0), "ssd", "a fast bus with slow reads is no NVMe");
    }

    #[test]
    fn what_the_kernel_calls_rotational_is_no_nvme_and_not_spinning_for_that() {
        let mut virtual_disk = probed("/d", 80, 2500.0);
        virtual_disk.disk.rotational = Some(true);
        assert_eq!(setting(&lines(&[virtual_disk], None, true), "TUNING_PROFILE"), "ssd");
    }

    #[test]
    fn the_slowest_of_several_disks_decides() {
        let text = lines(&[probed("/fast", 80, 2500.0), probed("/slow", 9000, 60.0)], None, true);
        assert_eq!(setting(&text, "TUNING_PROFILE"), "hdd");
        assert!(text.contains("/slow decides"), "{text}");
    }

    #[test]
    fn a_profile_is_mended_where_disk_or_memory_cannot_do_as_it_says() {
        let mut odd = probed("/odd", 100, 500.0);
        odd.figures.alignment_bytes = None;
        odd.figures.flush_micros = 9000;
        odd.disk.file_system = Some("tmpfs".to_owned());
        let text = lines(&[odd], Some(1024), false);
        assert_eq!([setting(&text, "HDD_IO_MODE"), setting(&text, "BLOCK_CACHE_MIB")], ["buffered", "128"]);
        assert!(["is memory", "9.0 ms", "io_uring is not available"].iter().all(|part| text.contains(part)), "{text}");
        let plain = lines(&[probed("/d", 100, 500.0)], Some(64 << 10), true);
        assert_eq!([setting(&plain, "HDD_IO_MODE"), setting(&plain, "BLOCK_CACHE_MIB")], ["-", "-"]);
    }
}
