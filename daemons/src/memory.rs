//! How much memory this process may use: the machine's, or less where a control group says so.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// In MiB; None where the system does not say it.
pub(crate) fn mib() -> Option<u64> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    Some(of_machine_mib(&read)?.min(of_groups_mib(&read).unwrap_or(u64::MAX)))
}

fn of_machine_mib(read: &impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let text = read(Path::new("/proc/meminfo"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib >> 10)
}

/// The smallest limit of the control groups that we are in, up to the root: each bounds all that is in it. Both versions
/// of control groups have a line per hierarchy, `number:controllers:path`; the second one has no controllers there.
fn of_groups_mib(read: &impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let text = read(Path::new("/proc/self/cgroup"))?;
    let limits = text.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (root, name) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|one| one == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let parts: Vec<Component> =
            Path::new(path).components().filter(|part| matches!(part, Component::Normal(_))).collect();
        let group = |depth: usize| parts[..depth].iter().fold(PathBuf::from(root), |path, part| path.join(part));
        // "max", or a number of pages that no machine has, where there is no limit.
        let limit = |depth| read(&group(depth).join(name))?.trim().parse::<u64>().ok();
        (0..=parts.len()).filter_map(limit).min()
    });
    limits.min().map(|bytes| bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[(&str, &str)], expected: Option<u64>) {
        let read =
            |path: &Path| files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned());
        assert_eq!(of_groups_mib(&read), expected, "{files:?}");
    }

    #[test]
    fn the_smallest_limit_of_all_groups_counts() {
        let own = ("/proc/self/cgroup", "0::/system.slice/chunkserver.service\n");
        check(&[own], None);
        let (slice, service) =
            ("/sys/fs/cgroup/system.slice/memory.max", "/sys/fs/cgroup/system.slice/chunkserver.service/memory.max");
        check(&[own, (slice, "max\n"), (service, "1073741824\n")], Some(1024));
        check(&[own, (slice, "536870912\n"), (service, "1073741824\n")], Some(512));
        check(&[("/proc/self/cgroup", "0::/\n"), ("/sys/fs/cgroup/memory.max", "2147483648\n")], Some(2048));
        let first_version = ("/proc/self/cgroup", "12:cpu,cpuacct:/a\n4:memory:/a\n");
        check(&[first_version, ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "104857600\n")], Some(100));
    }

    #[test]
    fn a_machine_says_how_much_memory_it_has() {
        let read = |_: &Path| Some("MemFree: 5 kB\nMemTotal:       24576000 kB\n".to_owned());
        assert_eq!(of_machine_mib(&read), Some(24_000));
        assert_eq!(of_machine_mib(&|_: &Path| Some("nonsense".to_owned())), None);
    }
}
