//! Collects what ended and belongs to nobody, when this process is the init of its container (PID 1).
//!
//! An init inherits the children of those who have ended, and they stay in the process table until it waits for them. It must not wait for
//! children of its own, whose status somebody else here is waiting for. So it looks first without taking (`WNOWAIT`), and takes one that
//! is not in the list of `child` and was there at two looks in a row: a child that was started in another way is collected by then.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions, getpid, waitid, waitpid};
use tokio::signal::unix::{SignalKind, signal};

use crate::child;
use crate::lifecycle::{Part, Readiness, Shutdown, Stage};

use super::ProcessError;

/// `None` when this process is no init.
pub fn part() -> Result<Option<Part>, ProcessError> {
    if getpid().as_raw_nonzero().get() != 1 {
        return Ok(None);
    }
    let mut ended = signal(SignalKind::child()).map_err(ProcessError::Signals)?;
    Ok(Some(Part::new("reaper", Stage::Workers, Readiness::immediate(), move |mut shutdown: Shutdown| async move {
        let mut seen = BTreeSet::new();
        loop {
            seen = look(&seen);
            tokio::select! {
                () = shutdown.requested() => return Ok(()),
                Some(()) = ended.recv() => {
                    // Whoever waits for this child goes first.
                    tokio::select! {
                        () = shutdown.requested() => return Ok(()),
                        () = tokio::time::sleep(GRACE) => {}
                    }
                }
                () = tokio::time::sleep(GRACE), if !seen.is_empty() => {}
            }
        }
    })))
}

/// Takes those that were seen before; gives those that are new.
fn look(seen: &BTreeSet<i32>) -> BTreeSet<i32> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    if !matches!(waitid(WaitId::All, options), Ok(Some(_))) {
        return BTreeSet::new();
    }
    let orphans = ended_children().into_iter().filter(|pid| !child::is_ours(*pid));
    orphans.filter(|pid| !(seen.contains(pid) && take(*pid))).collect()
}

fn take(pid: i32) -> bool {
    let Some(id) = Pid::from_raw(pid) else { return false };
    let taken = matches!(waitpid(Some(id), WaitOptions::NOHANG), Ok(Some(_)));
    if taken {
        tracing::debug!(pid, "an orphan has ended and was collected");
    }
    taken
}

/// The children of this process that have ended, by /proc.
fn ended_children() -> Vec<i32> {
    let own = getpid().as_raw_nonzero().get();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name, which is in parentheses and may hold any character: state and parent.
        let mut words = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        words.next() == Some("Z") && words.next().and_then(|parent| parent.parse().ok()) == Some(own)
    })
    .collect()
}

const GRACE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_has_ended_is_found_and_taken_at_the_second_look() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        while !ended_children().contains(&pid) {
            std::thread::yield_now();
        }
        let other = BTreeSet::from([pid + 1]);
        assert!(look(&other).contains(&pid), "taken at the first look");
        assert!(!look(&BTreeSet::from([pid])).contains(&pid));
        assert!(child.wait().is_err(), "it was taken, so there is no status any more");
    }
}
