//! A signal: to the process whose id stands in a file, to all of a name, or to the one that mcpeg runs.

use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt;

use crate::ports::SupervisedProcess;

use super::super::settings::{SignalHook, Whom};
use super::HookError;
use super::process::{Sent, signal_named};

pub(super) async fn send(hook: &SignalHook, supervised: Option<&dyn SupervisedProcess>) -> Result<(), HookError> {
    match &hook.whom {
        Whom::PidFile(pid_file) => to_pid_in(pid_file, hook).await,
        Whom::Named(name) => to_all_named(name, hook).await,
        Whom::Supervised => {
            let sent = match supervised {
                Some(process) => process.signal(hook.signal),
                None => Err("there is none".to_owned()),
            };
            sent.map_err(|reason| HookError::Supervised { signal: hook.name.clone(), reason })
        }
    }
}

/// On a thread that may block: it reads all of /proc.
async fn to_all_named(name: &str, hook: &SignalHook) -> Result<(), HookError> {
    let (signal, name) = (hook.name.clone(), name.to_owned());
    let number = hook.signal;
    let look = {
        let name = name.clone();
        move || signal_named(&name, Signal::from_named_raw(number).ok_or(Errno::INVAL)?)
    };
    match tokio::task::spawn_blocking(look).await.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Ok(Sent { signalled: 0, not_permitted: 0 }) => Err(HookError::NobodyNamed { signal, name }),
        Ok(Sent { signalled: 0, not_permitted: count }) => Err(HookError::NobodyPermitted { signal, name, count }),
        Ok(_) => Ok(()),
        Err(error) => Err(HookError::List { signal, error }),
    }
}

async fn to_pid_in(pid_file: &Path, hook: &SignalHook) -> Result<(), HookError> {
    let (signal, pid_file) = (hook.name.clone(), pid_file.to_owned());
    let text = match read_short(&pid_file).await {
        Ok(text) => text,
        Err(error) => return Err(HookError::PidFile { signal, pid_file, error }),
    };
    // 0 and negative numbers mean groups, 1 is the init of this machine or container.
    let Some(pid) = text.trim().parse().ok().filter(|pid| *pid > 1) else {
        return Err(HookError::NotAPid { signal, pid_file });
    };
    kill(pid, hook.signal).map_err(|errno| match errno {
        Errno::SRCH => HookError::NoSuchProcess { signal, pid, pid_file },
        Errno::PERM => HookError::NotPermitted { signal, pid, pid_file },
        errno => HookError::Kill { signal, pid, error: errno.into() },
    })
}

fn kill(pid: i32, number: i32) -> Result<(), Errno> {
    let pid = Pid::from_raw(pid).ok_or(Errno::INVAL)?;
    let signal = Signal::from_named_raw(number).ok_or(Errno::INVAL)?;
    kill_process(pid, signal)
}

/// A pid has at most ten digits; whoever wrote more meant something else.
async fn read_short(path: &Path) -> io::Result<String> {
    if !tokio::fs::metadata(path).await?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut text = String::new();
    tokio::fs::File::open(path).await?.take(LONGEST).read_to_string(&mut text).await?;
    Ok(text)
}

const LONGEST: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(pid: &str) -> (tempfile::NamedTempFile, SignalHook) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pid).unwrap();
        let hook =
            SignalHook { signal: libc::SIGTERM, name: "SIGTERM".into(), whom: Whom::PidFile(file.path().to_owned()) };
        (file, hook)
    }

    #[tokio::test]
    async fn a_process_is_signalled() {
        let mut child = tokio::process::Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
        let (_file, hook) = hook(&format!("{}\n", child.id().unwrap()));
        send(&hook, None).await.unwrap();
        assert!(!child.wait().await.unwrap().success());
        assert!(matches!(send(&hook, None).await, Err(HookError::NoSuchProcess { .. })));
    }

    #[tokio::test]
    async fn dangerous_and_unreadable_pids_are_refused() {
        for text in ["0", "1", "-1", "-4711", "", "abc", "99999999999"] {
            let (_file, hook) = hook(text);
            assert!(matches!(send(&hook, None).await, Err(HookError::NotAPid { .. })), "{text:?}");
        }
        let (file, hook) = hook("7");
        drop(file);
        let error = send(&hook, None).await.unwrap_err().to_string();
        assert!(error.starts_with("SIGTERM not sent: cannot read the pid file "), "{error}");
    }
}
