//! What the kernel says of this process, from `/proc/self` (proc(5)). Absent where `/proc` is not to be read.

use std::fs;
use std::time::Duration;

pub struct CpuTimes {
    pub user: Duration,
    pub system: Duration,
}

/// Resident memory in bytes.
pub fn resident_bytes() -> Option<i64> {
    parse_resident(&fs::read_to_string("/proc/self/status").ok()?)
}

pub fn cpu_times() -> Option<CpuTimes> {
    parse_cpu_times(&fs::read_to_string("/proc/self/stat").ok()?)
}

pub fn open_files() -> Option<i64> {
    let listed = fs::read_dir("/proc/self/fd").ok()?.count();
    // One of them is the descriptor that lists.
    i64::try_from(listed.saturating_sub(1)).ok()
}

fn parse_resident(status: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Fields 14 and 15, counted after the command's name, which may itself hold blanks and parentheses.
fn parse_cpu_times(stat: &str) -> Option<CpuTimes> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let (user, system) = (ticks()?, ticks()?);
    let duration = |ticks: u64| Duration::from_millis(ticks * (1000 / TICKS_PER_SECOND));
    Some(CpuTimes { user: duration(user), system: duration(system) })
}

/// `USER_HZ`, which is part of the kernel's interface and the same on every architecture that mcpeg runs on.
const TICKS_PER_SECOND: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_understood() {
        assert_eq!(parse_resident("Name:\tx\nVmRSS:\t    1234 kB\nThreads:\t1\n"), Some(1234 * 1024));
        assert_eq!(parse_resident("Name:\tx\n"), None);
        let stat = "7 (a) b) S 1 2 3 0 -1 4194304 5 6 7 8 150 25 0 0 20 0 1 0 99 1 2";
        let times = parse_cpu_times(stat).unwrap();
        assert_eq!((times.user, times.system), (Duration::from_millis(1500), Duration::from_millis(250)));
    }

    #[test]
    fn this_process_has_memory_files_and_cpu_time() {
        assert!(resident_bytes().unwrap() > 0);
        assert!(open_files().unwrap() > 0);
        assert!(cpu_times().is_some());
    }
}
