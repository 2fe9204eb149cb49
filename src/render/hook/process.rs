//! Processes by name, as /proc tells: those of our own pid namespace, never ourselves.

use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How a signal to a name went.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    pub signalled: usize,
    pub not_permitted: usize,
}

/// Signals every process whose name is `name`: the kernel's (`comm`, cut at 15 bytes), or the last part of the program's path as the
/// process shows it. A process is looked at again once it is held by a descriptor, so that nobody is signalled who came later under the
/// same number.
pub(super) fn signal_named(name: &str, signal: Signal) -> io::Result<Sent> {
    let own = std::process::id();
    let depth = namespace_depth(Path::new("/proc/self"));
    let mut sent = Sent::default();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let matches = || is_called(&entry.path(), name) && namespace_depth(&entry.path()) == depth;
        if pid.cast_unsigned() == own || !matches() {
            continue;
        }
        let Some(pid) = Pid::from_raw(pid) else { continue };
        let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        if !matches() {
            continue;
        }
        match pidfd_send_signal(&held, signal) {
            Ok(()) => sent.signalled += 1,
            Err(Errno::PERM) => sent.not_permitted += 1,
            // It has ended meanwhile.
            Err(Errno::SRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(sent)
}

fn is_called(process: &Path, name: &str) -> bool {
    let Ok(comm) = fs::read(process.join("comm")) else { return false };
    // One that has ended and was not collected shows no command line.
    let Ok(line) = fs::read(process.join("cmdline")) else { return false };
    let comm = comm.strip_suffix(b"\n").unwrap_or(&comm);
    if line.is_empty() {
        return false;
    }
    let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
    let program = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    comm == name.as_bytes() || program == name.as_bytes()
}

/// How many pid namespaces deep a process is, seen from here; a deeper one is in a container of its own.
fn namespace_depth(process: &Path) -> Option<usize> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    Some(line.split_whitespace().count())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[tokio::test]
    async fn all_of_a_name_are_signalled_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let name = format!("mcpeg-test-of-names-{}", std::process::id());
        let program = folder.path().join(&name);
        symlink("/bin/sleep", &program).unwrap();
        let start =
            |program: &Path| tokio::process::Command::new(program).arg("60").kill_on_drop(true).spawn().unwrap();
        let (mut one, mut two, mut other) = (start(&program), start(&program), start(Path::new("/bin/sleep")));
        // A start returns a moment before the kernel knows the new program's arguments.
        for id in [one.id().unwrap(), two.id().unwrap()] {
            while fs::read(format!("/proc/{id}/cmdline")).unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(signal_named(&name, Signal::TERM).unwrap(), Sent { signalled: 2, not_permitted: 0 });
        assert!(!one.wait().await.unwrap().success() && !two.wait().await.unwrap().success());
        assert_eq!(signal_named(&name, Signal::TERM).unwrap(), Sent::default());
        assert!(other.try_wait().unwrap().is_none());
    }

    #[test]
    fn a_process_does_not_find_itself() {
        let comm = fs::read_to_string("/proc/self/comm").unwrap();
        let program = std::env::args().next().unwrap();
        let name = Path::new(&program).file_name().unwrap().to_str().unwrap().to_owned();
        assert!(is_called(Path::new("/proc/self"), &name) && is_called(Path::new("/proc/self"), comm.trim_end()));
        // Continuing what runs changes nothing, whoever else has this name.
        signal_named(&name, Signal::CONT).unwrap();
    }
}
