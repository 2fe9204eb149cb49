//! The process's memory as others find it: not to be read, not to be dumped, and with the current value in locked pages alone.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::support::bao::{Bao, ROOT_TOKEN, TlsBao};
use crate::support::mcp::Client;
use crate::support::sidecar::{Folder, PROGRAM, Sidecar, signal_process};
use crate::support::upstream::HttpServer;
use crate::support::{eventually, memory};

const NOBODY: u32 = 65534;
const VALUE: &str = "curr\"ent/00000001-äö-0123456789-abcdefghijklmnopqrstuvwxyz";

fn from_file(security: &str) -> Folder {
    let main = format!(
        "version: \"1.0\"\nsecrets:\n  providers: {{ dev: {{ type: file, path: keys.yaml }} }}\n  items: {{ app: {{ provider: dev, path: app }} }}\n\
         templates: [ {{ source: app.j2, destination: app.conf }} ]\nsecurity: {{ {security} }}\n"
    );
    let keys = format!("app: {{ token: {} }}\n", json!(VALUE));
    Folder::new(&[("mcpeg.yaml", &main), ("keys.yaml", &keys), ("app.j2", "{{ secret.app.token | json }}")])
}

/// The sidecar as another user than root, with a lock limit. `None`, with words, where this user may not become another.
fn as_nobody(folder: &Folder, lock_limit: &str) -> Option<Command> {
    if !rustix::process::getuid().is_root() {
        eprintln!("SKIPPED: only root can start a sidecar as another user");
        return None;
    }
    let root = folder.path("");
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o700)).unwrap();
    for entry in std::fs::read_dir(&root).unwrap() {
        chown(entry.unwrap().path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    chown(&root, Some(NOBODY), Some(NOBODY)).unwrap();
    // A copy that this user can reach, wherever the build is.
    let program = folder.path("mcpeg");
    std::fs::copy(PROGRAM, &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("prlimit");
    command.arg(format!("--memlock={lock_limit}")).arg("--core=unlimited").arg(program);
    command.args(["run", "--config"]).arg(folder.path("mcpeg.yaml"));
    command.current_dir(&root).uid(NOBODY).gid(NOBODY).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(std::fs::File::create(folder.path("stderr.log")).unwrap());
    Some(command)
}

struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_the_same_user_cannot_read_it_and_it_leaves_no_core() {
    let folder = from_file("lock_memory: true");
    let Some(mut command) = as_nobody(&folder, "8388608") else { return };
    let mut sidecar = Killed(command.spawn().unwrap());
    let pid = sidecar.0.id();
    rendered(&folder).await;
    for file in ["mem", "environ", "maps"] {
        let read =
            Command::new("head").args(["-c", "1", &format!("/proc/{pid}/{file}")]).uid(NOBODY).gid(NOBODY).output();
        let read = read.unwrap();
        let said = String::from_utf8_lossy(&read.stderr).into_owned();
        assert!(!read.status.success() && said.contains("ermission denied"), "{file}: {said}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let core: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(&core[4..6], ["0", "0"], "it was started with an unlimited one");

    // From outside the limit can be lifted again: then it still may not be dumped.
    let lifted = Command::new("prlimit").args(["--core=unlimited", "--pid", &pid.to_string()]).status().unwrap();
    if !lifted.success() {
        eprintln!("SKIPPED: lifting the limit again wants CAP_SYS_RESOURCE; the signal is sent with a limit of 0");
    }
    signal_process(pid, libc::SIGQUIT);
    let ended = sidecar.0.wait().unwrap();
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    eprintln!("ended by signal {:?}, core pattern {:?}", ended.signal(), pattern.trim());
    assert!(!ended.core_dumped(), "it left a core");
    // Where the pattern says `core` it would be in the working directory, which is this one.
    let cores = std::fs::read_dir(folder.path(""))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("core"));
    assert_eq!(cores.count(), 0);
}

/// As it runs it leaves no core, which the test above sees. Here the debug build is told to leave that protection out, so that the kernel does
/// write one: the locked pages are not in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_core_that_is_forced_all_the_same_holds_no_value() {
    let bao = Bao::start().await;
    let value = |number: u32| format!("core\"/{number:08}-0123456789-abcdefghijklmnopqrstuvwxyz");
    bao.put("app", json!({ "token": value(1) })).await;
    let main = format!(
        "version: \"1.0\"\nsecrets:\n  providers: {{ corp: {{ type: vault, address: \"{}\", auth: {{ method: token, token_file: token }} }} }}\n  \
         items: {{ app: {{ provider: corp, path: secret/data/app, refresh: 300ms }} }}\ntemplates: [ {{ source: app.j2, destination: app.conf }} ]\n",
        bao.address()
    );
    let files = [("mcpeg.yaml", main.as_str()), ("token", ROOT_TOKEN), ("app.j2", "{{ secret.app.token | json }}")];
    let folder = Folder::new(&files);
    let mut command = Command::new("prlimit");
    command.arg("--core=unlimited").arg(PROGRAM).args(["run", "--config"]).arg(folder.path("mcpeg.yaml"));
    command.current_dir(folder.path("")).envs(memory::LOOKED_INTO);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(std::fs::File::create(folder.path("stderr.log")).unwrap());
    let mut sidecar = Killed(command.spawn().unwrap());
    rendered(&folder).await;
    bao.put("app", json!({ "token": value(2) })).await;
    eventually(Duration::from_secs(5), "the file follows", async || {
        folder.read("app.conf").contains("00000002").then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    signal_process(sidecar.0.id(), libc::SIGQUIT);
    let ended = sidecar.0.wait().unwrap();
    let core = std::fs::read_dir(folder.path("")).unwrap().map(|entry| entry.unwrap().path());
    let mut core = core.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("core"));
    let Some(core) = core.next() else {
        let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
        eprintln!("SKIPPED: no core in the working directory: {ended}, core pattern {:?}", pattern.trim());
        return;
    };
    eprintln!("a core of {} KiB", std::fs::metadata(&core).unwrap().len() / 1024);
    for number in [1, 2] {
        let found =
            memory::find_in_core(&core, &value(number)).expect("the core holds the environment, so the search works");
        assert!(found.is_empty(), "value {number}: {found:?}");
    }
}

async fn rendered(folder: &Folder) {
    eventually(Duration::from_secs(15), "the file is rendered", async || {
        folder.read("app.conf").contains("00000001").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_limit_that_is_too_small_is_a_warning_or_an_error() {
    let folder = from_file("lock_memory: require");
    let Some(mut command) = as_nobody(&folder, "0") else { return };
    let ended = command.status().unwrap();
    let said = folder.read("stderr.log");
    assert_eq!(ended.code(), Some(1), "{said}");
    assert!(said.contains("raise RLIMIT_MEMLOCK") && !said.contains("00000001"), "{said}");

    let folder = from_file("lock_memory: true");
    let Some(mut command) = as_nobody(&folder, "0") else { return };
    let _sidecar = Killed(command.spawn().unwrap());
    rendered(&folder).await;
    let said = folder.read("stderr.log");
    assert!(said.contains("WARN") && said.contains("RLIMIT_MEMLOCK is too small"), "{said}");
    let status = String::from_utf8(folder.mcpeg(&["status"]).stdout).unwrap();
    assert!(status.contains("degraded  memory") && status.contains("RLIMIT_MEMLOCK"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_grows_beyond_the_lock_limit_is_told_of() {
    for (wanted, state) in [("true", "degraded"), ("require", "failed")] {
        let folder = from_file(&format!("lock_memory: {wanted}"));
        // Enough for the start and not for what comes.
        let Some(mut command) = as_nobody(&folder, "98304") else { return };
        let _sidecar = Killed(command.spawn().unwrap());
        rendered(&folder).await;
        let status = String::from_utf8(folder.mcpeg(&["status"]).stdout).unwrap();
        assert!(status.contains("ok        memory"), "{status}");
        std::fs::write(
            folder.path("keys.yaml"),
            format!("app: {{ token: {VALUE:?}, large: {} }}", "x".repeat(300_000)),
        )
        .unwrap();
        eventually(Duration::from_secs(15), "status tells of it", async || {
            let status = String::from_utf8(folder.mcpeg(&["status"]).stdout).unwrap();
            status.contains(&format!("{state:<10}memory")).then_some(())
        })
        .await;
        eventually(Duration::from_secs(15), "the log tells of it", async || {
            folder.read("stderr.log").contains("grown beyond RLIMIT_MEMLOCK").then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_current_value_is_in_locked_pages_alone() {
    let (bao, tls) = (Bao::start().await, TlsBao::start().await);
    let upstream = HttpServer::python().await;
    let value = |kind: &str| format!("{kind}\"/00000001-0123456789-abcdefghijklmnopqrstuvwxyz");
    bao.put("app", json!({ "token": value("http") })).await;
    tls.put("app", "token", &value("tls"));
    let main = format!(
        "version: \"1.0\"\nsecrets:\n  providers:\n    corp: {{ type: vault, address: \"{}\", auth: {{ method: token, token_file: token }} }}\n    \
         safe: {{ type: vault, address: \"{}\", auth: {{ method: token, token_file: token }}, tls: {{ ca_file: {} }} }}\n    \
         dev: {{ type: file, path: keys.yaml }}\n  items:\n    http: {{ provider: corp, path: secret/data/app }}\n    \
         tls: {{ provider: safe, path: secret/data/app }}\n    file: {{ provider: dev, path: app }}\n    header: {{ provider: dev, path: header }}\n\
         services: {{ weather: {{ config_file: weather.yaml }} }}\ntemplates: [ {{ source: app.j2, destination: app.conf }} ]\n",
        bao.address(),
        tls.address(),
        tls.ca_file()
    );
    let header = "header-00000001-abcdefghijklmnopqrstuvwxyz";
    let keys = format!("app: {{ token: {} }}\nheader: {{ token: {header} }}\n", json!(value("file")));
    let sidecar = Sidecar::start(Folder::new(&[
        ("mcpeg.yaml", &main),
        ("token", ROOT_TOKEN),
        ("keys.yaml", &keys),
        (
            "weather.yaml",
            &format!("type: mcp\nurl: {}\nheaders: {{ X-Api-Key: \"${{secret.header.token}}\" }}\n", upstream.url),
        ),
        ("app.j2", "{{ secret.http.token | json }} {{ secret.tls.token }} {{ secret.file.token | base64 }}"),
    ]));
    tokio::time::sleep(Duration::from_secs(1)).await;
    for kind in ["http", "tls", "file"] {
        assert!(sidecar.folder.read("app.conf").len() > 100);
        let found = memory::find(sidecar.pid(), &value(kind));
        assert!(found.is_empty(), "{kind}: {} copies: {found:#?}", found.len());
    }
    let mut client = Client::initialized(&sidecar.service_socket("weather")).await;
    client.call("whoami", json!({})).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // What an open HTTP/1 connection to an upstream keeps of its last requests; docs/SECURITY.md names the bound.
    let kept = memory::find(sidecar.pid(), header).len();
    eprintln!("copies of a header's value beside the locked pages: {kept}");
    assert!(kept <= 4, "{kept} copies for one session");
}
