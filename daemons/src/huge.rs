//! Huge pages for the master's tables.
//!
//! A namespace of many gigabytes is read at random, and with pages of 4 KiB each look-up misses the processor's table
//! of addresses too: with huge ones a million files are looked up in two thirds of the time (bench/RESULTS.md). Tables
//! come from the allocator, and GNU's asks the kernel for huge pages if an environment variable says so when the
//! program starts. So the master starts itself once more, in the same process, with that variable set. Where another C
//! library or a kernel without huge pages runs, nothing changes; who sets the variable's `hugetlb` is left alone.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

const TUNABLES: &str = "GLIBC_TUNABLES";
const HUGE: &str = "glibc.malloc.hugetlb";
/// Set in the second start. The other variable may be gone again by then: for a program with privileges of its own (file
/// capabilities) the C library removes it.
const SECOND: &str = "MOORING_SECOND_START";

/// Call it first in `main`: what runs before runs twice. Returns if nothing is to be done, or cannot be.
pub fn ask_for_huge_pages() {
    if std::env::var_os(SECOND).is_some() {
        return;
    }
    let Some(tunables) = with_huge(std::env::var_os(TUNABLES)) else { return };
    let mut words = std::env::args_os();
    let (Ok(program), Some(called_as)) = (std::env::current_exe(), words.next()) else { return };
    // Comes back only if it fails, for example since the program's file was replaced: it works without, only slower.
    let _ = Command::new(program).arg0(called_as).args(words).env(TUNABLES, tunables).env(SECOND, "1").exec();
}

/// The variable's new text; None if it speaks of huge pages already.
fn with_huge(present: Option<OsString>) -> Option<OsString> {
    let present = present.unwrap_or_default();
    if present.to_string_lossy().contains(HUGE) {
        return None;
    }
    let mut text = present;
    if !text.is_empty() {
        text.push(":");
    }
    text.push(format!("{HUGE}=1"));
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_set_stays_and_decides() {
        let check = |present: Option<&str>, expected: Option<&str>| {
            assert_eq!(with_huge(present.map(OsString::from)), expected.map(OsString::from));
        };
        check(None, Some("glibc.malloc.hugetlb=1"));
        check(Some("glibc.malloc.arena_max=1"), Some("glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"));
        check(Some("glibc.malloc.hugetlb=0"), None);
        check(Some("glibc.malloc.hugetlb=1"), None);
    }
}
