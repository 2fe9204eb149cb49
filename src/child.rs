//! Starts child processes that cannot outlive this one: the kernel kills them when this process ends, however it ends.
//!
//! The way is `PR_SET_PDEATHSIG`, which has three traps. It is set between fork and exec, by a `pre_exec` hook, which is unsafe code: so
//! it stands alone in this leaf. It fires when the *thread* that forked ends, and a runtime's threads come and go: so one thread
//! of this module, which lives as long as the process, does every start. And a change of user clears it: so the user is changed by the
//! same hook, before.
//!
//! Only the child itself is bound to this process, not what it starts; and a set-user-ID program sheds the bond (`prctl(2)`).
//!
//! Invariants: a child leads a process group, which is only signalled while its leader has not been reaped, so that the number cannot have
//! passed to somebody else; dropping a `Leader` kills the group; `is_ours` knows every child from before it can end until it was reaped.

#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::process::{
    Gid, Pid, PidfdFlags, Resource, Rlimit, Signal, Uid, getegid, geteuid, getpgrp, getpid, getppid, getrlimit,
    kill_process, kill_process_group, pidfd_open, set_parent_process_death_signal, setrlimit,
};
use rustix::termios::{tcgetpgrp, tcsetpgrp};
use rustix::thread::{self, CapabilitySet};
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Starts `command` as the leader of a process group, and drops it before this returns. Call it in a runtime, which will watch over the
/// child.
pub fn spawn(command: Command, manner: Manner) -> io::Result<Leader> {
    let runtime = Handle::try_current().map_err(io::Error::other)?;
    let foreground = manner.foreground;
    let reply = Arc::new(Reply::default());
    let start = Start { command, manner, runtime, reply: reply.clone() };
    starter()?.try_send(start).map_err(|_| io::Error::other("too many processes are being started at once"))?;
    let (child, registered) = reply.wait()?;
    let group = registered.0;
    Ok(Leader { child, group, pidfd: watchable(group), reaped: None, foreground, _registered: registered })
}

/// Lifts this process's limit of open files to what the system lets it have: each connection and each child takes some. Children start with the
/// limit that there was, since programs that use `select(2)` break with larger ones. To be called once, before there are children.
pub fn lift_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let lifted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum && setrlimit(Resource::Nofile, lifted).is_ok() {
        // Set once, here.
        let _ = OPEN_FILES_BEFORE.set(limit.current);
    }
}

/// How a child is started.
#[derive(Debug, Clone, Default)]
pub struct Manner {
    /// `None`: as the user that this process runs as.
    pub identity: Option<Identity>,
    /// Gets the terminal, when standard input is one that this process has.
    pub foreground: bool,
    pub limits: ResourceLimits,
}

/// What a child, and each of what it starts, may use (setrlimit(2)). `None`: as this process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResourceLimits {
    /// Of memory that it writes to (RLIMIT_DATA), in bytes.
    pub memory: Option<u64>,
    /// Of processor time; then it is ended.
    pub cpu_seconds: Option<u64>,
    pub open_files: Option<u64>,
    /// Of its user, all of them together.
    pub processes: Option<u64>,
}

impl ResourceLimits {
    /// As system calls want them: never above what this process itself is bound to, which would be refused.
    fn wanted(&self) -> Vec<(Resource, Rlimit)> {
        let of = |resource: Resource, limit: Option<u64>, grace: u64| {
            let highest = getrlimit(resource).maximum.unwrap_or(u64::MAX);
            let limit = limit?.min(highest);
            Some((resource, Rlimit { current: Some(limit), maximum: Some(limit.saturating_add(grace).min(highest)) }))
        };
        [
            of(Resource::Data, self.memory, 0),
            // At the first it is told (SIGXCPU), at the second killed.
            of(Resource::Cpu, self.cpu_seconds, 1),
            self.open_files.map_or_else(open_files_before, |files| of(Resource::Nofile, Some(files), 0)),
            of(Resource::Nproc, self.processes, 0),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// What a child gets that nothing was said for.
fn open_files_before() -> Option<(Resource, Rlimit)> {
    let current = *OPEN_FILES_BEFORE.get()?;
    Some((Resource::Nofile, Rlimit { current, maximum: getrlimit(Resource::Nofile).maximum }))
}

/// The user and the group that a child runs as; it gets no other groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Of the user, where the system knows one.
    pub name: Option<String>,
    pub home: Option<PathBuf>,
}

impl Identity {
    /// Whether this process runs as this user and group already.
    pub fn is_own(&self) -> bool {
        geteuid().as_raw() == self.uid && getegid().as_raw() == self.gid
    }

    /// Why this process cannot start a child under this identity, or end one.
    pub fn refused(&self) -> Option<String> {
        if self.is_own() {
            return None;
        }
        let needed = [
            ("CAP_SETUID", CapabilitySet::SETUID),
            ("CAP_SETGID", CapabilitySet::SETGID),
            ("CAP_KILL", CapabilitySet::KILL),
        ];
        let held = thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        let missing: Vec<&str> =
            needed.into_iter().filter(|(_, set)| !held.contains(*set)).map(|(name, _)| name).collect();
        if missing.is_empty() {
            return None;
        }
        let who = self.name.clone().unwrap_or_else(|| format!("uid {}", self.uid));
        Some(format!("a program cannot be run as {who} (group {}): {} missing", self.gid, missing.join(", ")))
    }

    /// Sets the variables that say who one is. They would name this process's user else.
    pub fn describe_in(&self, command: &mut Command) {
        for (variable, value) in [("USER", self.name.as_ref()), ("LOGNAME", self.name.as_ref())] {
            match value {
                Some(value) => command.env(variable, value),
                None => command.env_remove(variable),
            };
        }
        command.env("HOME", self.home.clone().unwrap_or_else(|| PathBuf::from("/")));
        command.env_remove("SHELL").env_remove("XDG_RUNTIME_DIR");
    }

    /// Between fork and exec: system calls alone, none of which allocates or takes a lock.
    fn take(&self) -> io::Result<()> {
        // A capability that is ambient would pass on to the program.
        thread::clear_ambient_capability_set()?;
        thread::set_thread_groups(&[])?;
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        thread::set_thread_res_gid(gid, gid, gid)?;
        thread::set_thread_res_uid(uid, uid, uid)?;
        Ok(())
    }
}

/// The process that was started, which leads a group.
pub struct Leader {
    child: Child,
    group: Pid,
    /// Becomes readable when the leader ends, before it is reaped. `None` where the kernel has no such thing.
    pidfd: Option<AsyncFd<OwnedFd>>,
    reaped: Option<ExitStatus>,
    foreground: bool,
    _registered: Registered,
}

impl Leader {
    pub fn id(&self) -> u32 {
        self.group.as_raw_nonzero().get().cast_unsigned()
    }

    /// The ends of the pipes that the command asked for; once.
    pub fn pipes(&mut self) -> (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>) {
        (self.child.stdin.take(), self.child.stdout.take(), self.child.stderr.take())
    }

    /// Completes when the leader has ended. Cancel-safe.
    pub async fn ended(&mut self) {
        match &self.pidfd {
            // An error would mean that there is no reactor any more, and then nothing goes on anyway.
            Some(fd) => drop(fd.readable().await),
            None => self.reaped = self.child.wait().await.ok(),
        }
    }

    /// Kills what is left of the group and reaps the leader; gives how it ended, where that is known. Cancel-safe.
    pub async fn reap(&mut self) -> Option<ExitStatus> {
        self.signal_group(Signal::KILL);
        if self.reaped.is_none() {
            self.reaped = self.child.wait().await.ok();
        }
        self.reaped
    }

    /// Reaps a leader that has ended; what it left in its group goes on. Cancel-safe.
    pub async fn collect(&mut self) -> io::Result<ExitStatus> {
        let status = match self.reaped {
            Some(status) => status,
            None => self.child.wait().await?,
        };
        self.reaped = Some(status);
        Ok(status)
    }

    pub fn signal_group(&self, signal: Signal) {
        if self.reaped.is_none() {
            // An error means that nobody is left in the group.
            let _ = kill_process_group(self.group, signal);
        }
    }

    /// Signals the leader alone.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match self.reaped {
            None => Ok(kill_process(self.group, signal)?),
            Some(_) => Err(rustix::io::Errno::SRCH.into()),
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.signal_group(Signal::KILL);
        let stdin = std::io::stdin();
        if self.foreground && tcgetpgrp(&stdin).is_ok_and(|group| group == self.group) {
            in_background(|| _ = tcsetpgrp(&stdin, getpgrp()));
        }
    }
}

/// How a process ended, in words.
pub fn describe(status: Option<ExitStatus>) -> String {
    match status.map(|status| (status.code(), status.signal(), status)) {
        Some((Some(code), _, _)) => format!("it ended with status {code}"),
        Some((None, Some(signal), _)) => format!("it was ended by signal {signal}"),
        Some((None, None, status)) => status.to_string(),
        None => "its status is unknown".to_owned(),
    }
}

/// Whether the process was started here and has not been reaped; what this process inherited as an init was not.
pub fn is_ours(pid: i32) -> bool {
    ours().contains(&pid)
}

/// Runs `call` with SIGTTOU ignored, which would stop whoever is not in the foreground.
fn in_background(call: impl FnOnce()) {
    // SAFETY: a change of disposition of a signal for which this program has no handler; both calls are async-signal-safe.
    let before = unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
    call();
    // SAFETY: as above; `before` is what the call returned.
    unsafe { libc::signal(libc::SIGTTOU, before) };
}

/// A descriptor that becomes readable when the process ends.
#[expect(deprecated, reason = "sound for an `OwnedFd`; the replacement is unsafe without need")]
fn watchable(process: Pid) -> Option<AsyncFd<OwnedFd>> {
    AsyncFd::new(pidfd_open(process, PidfdFlags::NONBLOCK).ok()?).ok()
}

/// Takes the number out of the list of ours when it is dropped, which is after the reaping.
struct Registered(Pid);

impl Drop for Registered {
    fn drop(&mut self) {
        ours().remove(&self.0.as_raw_nonzero().get());
    }
}

fn ours() -> MutexGuard<'static, BTreeSet<i32>> {
    static OURS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Start {
    command: Command,
    manner: Manner,
    runtime: Handle,
    reply: Arc<Reply>,
}

#[derive(Default)]
struct Reply {
    started: Mutex<Option<io::Result<(Child, Registered)>>>,
    is_there: Condvar,
}

impl Reply {
    fn give(&self, started: io::Result<(Child, Registered)>) {
        *self.started.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
        self.is_there.notify_one();
    }

    fn wait(&self) -> io::Result<(Child, Registered)> {
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
        while let Some(Start { command, manner, runtime, reply }) = starts.blocking_recv() {
            let started = {
                let _runtime = runtime.enter();
                start(command, manner)
            };
            reply.give(started);
        }
    })?;
    // Of two that were made at once, the one that lost ends, and has started nothing.
    Ok(STARTER.get_or_init(|| sender).clone())
}

fn start(mut command: Command, manner: Manner) -> io::Result<(Child, Registered)> {
    let parent = getpid();
    let identity = manner.identity.filter(|identity| !identity.is_own());
    let stdin = std::io::stdin();
    let foreground = manner.foreground && tcgetpgrp(&stdin).is_ok_and(|group| group == getpgrp());
    let limits = manner.limits.wanted();
    let bind = move || {
        for (resource, limit) in &limits {
            setrlimit(*resource, *limit)?;
        }
        if let Some(identity) = &identity {
            identity.take()?;
        }
        if foreground {
            let stdin = rustix::stdio::stdin();
            in_background(|| _ = tcsetpgrp(stdin, getpid()));
        }
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have ended before the signal was set, and then it never comes.
        if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    command.process_group(0).kill_on_drop(true);
    // SAFETY: between fork and exec the hook makes system calls alone, none of which allocates or takes a lock.
    unsafe { command.pre_exec(bind) };
    // Held over the start: whoever looks for children that are not ours must not see one before it is in the list.
    let mut ours = ours();
    let child = command.spawn()?;
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).ok_or(io::ErrorKind::NotFound)?;
    ours.insert(pid.as_raw_nonzero().get());
    Ok((child, Registered(pid)))
}

/// Callers wait for their start, so that there are at most as many as the runtime has threads.
const MAX_WAITING: usize = 256;
static OPEN_FILES_BEFORE: OnceLock<Option<u64>> = OnceLock::new();

#[cfg(test)]
mod tests {
    use super::*;

    impl Leader {
        async fn reap_gently(&mut self) -> Option<ExitStatus> {
            self.ended().await;
            self.reap().await
        }
    }

    #[test]
    fn another_user_needs_capabilities_and_ones_own_none() {
        let own = Identity { uid: geteuid().as_raw(), gid: getegid().as_raw(), name: None, home: None };
        assert_eq!(own.refused(), None);
        let other = Identity { uid: own.uid + 4711, ..own };
        let is_able = thread::capabilities(None).unwrap().effective.contains(CapabilitySet::SETUID);
        assert_eq!(other.refused().is_none(), is_able, "{:?}", other.refused());
    }

    #[tokio::test]
    async fn a_child_is_started_from_the_one_thread_and_bound_to_the_process() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "exit 7"]);
        let mut leader = spawn(shell, Manner::default()).unwrap();
        let pid = leader.id().cast_signed();
        assert!(is_ours(pid));
        assert_eq!(leader.reap_gently().await.and_then(|status| status.code()), Some(7));
        drop(leader);
        assert!(!is_ours(pid));
        let failed = spawn(Command::new("/none/such"), Manner::default()).map(drop).unwrap_err();
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
            spawn(shell, Manner::default()).unwrap()
        });
        let mut leader = asked.join().unwrap();
        drop(leader.pipes());
        assert_eq!(runtime.block_on(leader.reap_gently()).and_then(|status| status.code()), Some(5));
    }
}
