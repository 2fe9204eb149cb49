//! Starts child processes that cannot outlive this one: the kernel kills them when this process ends, however it ends.
//!
//! The way is `PR_SET_PDEATHSIG`, which has two traps. It is set between fork and exec, by a `pre_exec` hook, which is unsafe code: so
//! it stands alone in this leaf. And it fires when the *thread* that forked ends, and a runtime's threads come and go: so one thread
//! of this module, which lives as long as the process, does every start.
//!
//! Only the child itself is bound to this process, not what it starts; and a set-user-ID program sheds the bond (`prctl(2)`).

#![allow(unsafe_code)]

use std::io;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Starts `command`, and drops it before this returns. Call it in a runtime, which will watch over the child.
pub fn spawn(command: Command) -> io::Result<Child> {
    let runtime = Handle::try_current().map_err(io::Error::other)?;
    let reply = Arc::new(Reply::default());
    let start = Start { command, runtime, reply: reply.clone() };
    starter()?.try_send(start).map_err(|_| io::Error::other("too many processes are being started at once"))?;
    reply.wait()
}

struct Start {
    command: Command,
    runtime: Handle,
    reply: Arc<Reply>,
}

#[derive(Default)]
struct Reply {
    started: Mutex<Option<io::Result<Child>>>,
    is_there: Condvar,
}

impl Reply {
    fn give(&self, started: io::Result<Child>) {
        *self.started.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
        self.is_there.notify_one();
    }

    fn wait(&self) -> io::Result<Child> {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match started.take() {
                Some(result) => return result,
                None => started = self.is_there.wait(started).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// The thread that starts children, made at the first need.
fn starter() -> io::Result<mpsc::Sender<Start>> {
    static STARTER: OnceLock<mpsc::Sender<Start>> = OnceLock::new();
    if let Some(starter) = STARTER.get() {
        return Ok(starter.clone());
    }
    let (sender, mut starts) = mpsc::channel::<Start>(MAX_WAITING);
    std::thread::Builder::new().name("children".to_owned()).spawn(move || {
        while let Some(Start { command, runtime, reply }) = starts.blocking_recv() {
            let started = {
                let _runtime = runtime.enter();
                start(command)
            };
            reply.give(started);
        }
    })?;
    // Of two that were made at once, the one that lost ends, and has started nothing.
    Ok(STARTER.get_or_init(|| sender).clone())
}

fn start(mut command: Command) -> io::Result<Child> {
    let parent = getpid();
    let bind = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have ended before the signal was set, and then it never comes.
        if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: between fork and exec the hook makes two system calls, and neither allocates nor takes a lock.
    unsafe { command.pre_exec(bind) };
    command.spawn()
}

/// Callers wait for their start, so that there are at most as many as the runtime has threads.
const MAX_WAITING: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_is_started_from_the_one_thread_and_bound_to_the_process() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "exit 7"]);
        assert_eq!(spawn(shell).unwrap().wait().await.unwrap().code(), Some(7));
        let failed = spawn(Command::new("/none/such")).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::NotFound);
    }

    /// Its thread ends before the child does: the child must not notice.
    #[test]
    fn the_end_of_the_thread_that_asked_ends_no_child() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let asked = std::thread::spawn(move || {
            let _runtime = handle.enter();
            let mut shell = Command::new("sh");
            shell.args(["-c", "read -r line; exit 5"]).stdin(std::process::Stdio::piped());
            spawn(shell).unwrap()
        });
        let mut child = asked.join().unwrap();
        drop(child.stdin.take());
        assert_eq!(runtime.block_on(child.wait()).unwrap().code(), Some(5));
    }
}
