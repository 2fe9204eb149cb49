//! A command: argv, no shell, in its own process group, with a bare environment and a deadline. It ends with this process.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

use crate::child::{self, Leader, Manner};
use crate::memory::with_wiped_stack;
use crate::secret::Secret;

use super::HookError;
use super::output::{Captured, Seen};

/// Runs a program with its arguments to its end. `env` is added to the few variables that it gets in any case.
pub(super) async fn run(
    argv: &[String],
    env: Vec<(&str, Secret)>,
    limit: Duration,
    seen: &Seen,
) -> Result<(), HookError> {
    let program = argv.first().cloned().unwrap_or_default();
    let started = with_wiped_stack(|| start(argv, env));
    let mut leader = started.map_err(|error| HookError::Start { program: program.clone(), error })?;
    let mut captured = Captured::default();
    if timeout(limit, finish(&mut leader, &mut captured)).await.is_ok() {
        // What it left running in the background is its own affair.
        return match leader.collect().await {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(HookError::Failed { program, status, output: captured.without_secrets(seen) }),
            Err(error) => Err(HookError::Wait { program, error }),
        };
    }
    leader.signal_group(Signal::TERM);
    // It is killed in any case, with everything in its group; the waits are for its own way out, and to collect it.
    let _ = timeout(GRACE, leader.ended()).await;
    let _ = timeout(GRACE, leader.reap()).await;
    Err(HookError::TimedOut { program, timeout: limit, output: captured.without_secrets(seen) })
}

fn start(argv: &[String], env: Vec<(&str, Secret)>) -> std::io::Result<Leader> {
    let (program, arguments) = argv.split_first().ok_or_else(|| std::io::Error::other("the command is empty"))?;
    let inherited = INHERITED.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(inherited)
        .envs(env.iter().map(|(name, value)| (name, OsStr::from_bytes(value.expose()))))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    child::spawn(command, Manner::default())
}

/// Waits for the end and takes in what is printed until then. A process that it leaves behind may hold the pipes; nobody waits for that.
async fn finish(leader: &mut Leader, captured: &mut Captured) {
    let (_, mut stdout, mut stderr) = leader.pipes();
    // On the heap, which is wiped when freed: the future itself may live as long as the part.
    let (mut from_stdout, mut from_stderr) = (vec![0; 1024], vec![0; 1024]);
    let mut has_ended = false;
    while !has_ended || stdout.is_some() || stderr.is_some() {
        tokio::select! {
            biased;
            count = read_some(&mut stdout, &mut from_stdout) => keep(captured, &from_stdout, count, &mut stdout),
            count = read_some(&mut stderr, &mut from_stderr) => keep(captured, &from_stderr, count, &mut stderr),
            () = leader.ended(), if !has_ended => has_ended = true,
            () = tokio::time::sleep(LINGER), if has_ended => break,
        }
    }
}

/// Never completes once the pipe is gone.
async fn read_some<R: AsyncRead + Unpin>(pipe: &mut Option<R>, buffer: &mut [u8]) -> usize {
    match pipe {
        // A broken pipe is an ended one.
        Some(pipe) => pipe.read(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

fn keep<R>(captured: &mut Captured, buffer: &[u8], count: usize, pipe: &mut Option<R>) {
    match count {
        0 => *pipe = None,
        count => captured.push(&buffer[..count]),
    }
}

/// What a command gets of our own environment, which may hold credentials.
const INHERITED: [&str; 10] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR", "XDG_RUNTIME_DIR"];
const GRACE: Duration = Duration::from_secs(1);
const LINGER: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    async fn shell(script: &str, limit: Duration) -> Result<(), HookError> {
        run(&["sh".into(), "-c".into(), script.into()], Vec::new(), limit, &Seen::default()).await
    }

    #[tokio::test]
    async fn a_command_runs_with_a_bare_environment() {
        // Cargo sets this variable for tests.
        shell("test -z \"$CARGO_PKG_NAME\" && test -n \"$PATH\"", Duration::from_secs(10)).await.unwrap();
        let env = vec![("TOKEN", Secret::copy_from(b"a secret"))];
        let argv = ["sh".into(), "-c".into(), "test \"$TOKEN\" = 'a secret'".into()];
        run(&argv, env, Duration::from_secs(10), &Seen::default()).await.unwrap();
    }

    #[tokio::test]
    async fn a_failure_tells_status_and_output() {
        let script = "echo to stdout; echo to stderr >&2; exit 3";
        let error = shell(script, Duration::from_secs(10)).await.unwrap_err();
        assert_eq!(error.to_string(), "sh ended with exit status: 3");
        let output = error.output().unwrap();
        assert!(output.contains("to stdout") && output.contains("to stderr"), "{output}");
        let missing = ["/no/such/program".to_owned()];
        let error = run(&missing, Vec::new(), Duration::from_secs(1), &Seen::default()).await.unwrap_err();
        assert!(error.to_string().starts_with("starting /no/such/program: "));
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let pid_file = folder.path().join("pid");
        let script = format!("trap '' TERM; sleep 300 & echo $! > {}; wait; wait", pid_file.display());
        let error = shell(&script, Duration::from_millis(300)).await.unwrap_err();
        assert!(matches!(error, HookError::TimedOut { .. }), "{error}");
        let grandchild: i32 = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
        let gone = Instant::now();
        while is_running(grandchild) {
            assert!(gone.elapsed() < Duration::from_secs(5), "the grandchild lives on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_background_process_that_holds_the_pipe_is_not_waited_for() {
        let started = Instant::now();
        shell("sleep 5 & exit 0", Duration::from_secs(4)).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(3));
    }

    /// A zombie that its reaper has not collected yet does not count.
    fn is_running(pid: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    }
}
