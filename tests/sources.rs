//! Configurations from etcd, Consul, Git and a mounted ConfigMap: live when they are pushed, refused with their place when they are bad, and
//! there at a start without the source.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::etcd::Etcd;
use crate::support::git::Repository;
use crate::support::nginx::Certificates;
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::tls_front::{Begin, TlsFront};
use crate::support::{eventually, http, peers};

const MAIN: &str = r#"version: "1.0"
services:
  one: { config_file: services/one.yaml }
templates:
  - { source: templates/app.j2, destination: app.conf }
audit: { path: audit.log }
"#;
const TWO: &str = r#"version: "1.0"
services:
  one: { config_file: services/one.yaml }
  two: { config_file: services/two.yaml }
templates:
  - { source: templates/app.j2, destination: app.conf }
audit: { path: audit.log }
"#;
const SERVICE: &str = "type: vault\n";
const TREE: [(&str, &str); 4] = [
    ("mcpeg.yaml", MAIN),
    ("services/one.yaml", SERVICE),
    ("services/two.yaml", SERVICE),
    ("templates/app.j2", "first\n"),
];

fn below(prefix: &str) -> Vec<(String, &'static str)> {
    TREE.iter().map(|(name, text)| (format!("{prefix}{name}"), *text)).collect()
}

async fn filled(etcd: &Etcd, prefix: &str) {
    let pairs = below(prefix);
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(key, text)| (key.as_str(), *text)).collect();
    etcd.put_all(&pairs).await;
}

/// Waits for the socket of a service.
async fn serves(sidecar: &Sidecar, service: &str) {
    let socket = sidecar.service_socket(service);
    eventually(Duration::from_secs(10), &format!("{service} is served"), async || socket.exists().then_some(())).await;
}

/// Pushes the second service; of five times one is fast, whatever else the machine does meanwhile.
async fn live_within_a_second(sidecar: &Sidecar, push: impl AsyncFn(&str)) {
    let socket = sidecar.service_socket("two");
    let mut took = Vec::new();
    for _ in 0..5 {
        let pushed = Instant::now();
        push(TWO).await;
        serves(sidecar, "two").await;
        took.push(pushed.elapsed());
        if took.last() <= Some(&Duration::from_secs(1)) {
            return;
        }
        push(MAIN).await;
        eventually(Duration::from_secs(10), "two is gone", async || (!socket.exists()).then_some(())).await;
    }
    panic!("it took {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_to_etcd_is_live_at_once_and_a_bad_one_is_refused_with_its_place() {
    let etcd = Etcd::start().await;
    filled(&etcd, "mcpeg/").await;
    let sidecar = Sidecar::start(Folder::new(&[]).configured_by(&etcd.address("mcpeg/")));
    serves(&sidecar, "one").await;
    assert_eq!(sidecar.folder.read("app.conf"), "first\n");
    assert!(sidecar.folder.audit("config.loaded")[0]["attributes"]["mcpeg.config.revision"].is_string());

    live_within_a_second(&sidecar, async |main| etcd.put("mcpeg/mcpeg.yaml", main).await).await;
    let reloaded =
        eventually(Duration::from_secs(5), "it is on record", async || sidecar.folder.audit("config.reloaded").pop())
            .await;
    assert_eq!(reloaded["attributes"]["mcpeg.config.cause"], "source");
    let revision = reloaded["attributes"]["mcpeg.config.revision"].as_str().unwrap().to_owned();
    sidecar.says("config.source", &["ok", &format!("revision {revision}")]).await;

    etcd.put("mcpeg/templates/app.j2", "second\n").await;
    eventually(Duration::from_secs(10), "the new template is rendered", async || {
        (sidecar.folder.read("app.conf") == "second\n").then_some(())
    })
    .await;

    etcd.put("mcpeg/services/two.yaml", "type: vault\nitmes: [a]\n").await;
    let place = format!("etcd://{}/mcpeg/services/two.yaml:2:1: unknown key `itmes`", etcd.host());
    sidecar.says("config", &["degraded", &place]).await;
    let rejected =
        eventually(Duration::from_secs(5), "it is on record", async || sidecar.folder.audit("config.rejected").pop())
            .await;
    assert_ne!(rejected["attributes"]["mcpeg.config.revision"].as_str().unwrap(), revision);
    assert!(sidecar.service_socket("two").exists() && sidecar.folder.read("app.conf") == "second\n");

    // What a second bad one brings is gone with it, and a good one serves.
    etcd.put_all(&[("mcpeg/services/two.yaml", SERVICE), ("mcpeg/mcpeg.yaml", MAIN)]).await;
    let gone = sidecar.service_socket("two");
    eventually(Duration::from_secs(10), "two is gone", async || (!gone.exists()).then_some(())).await;
    sidecar.says("config", &["ok"]).await;
    assert!(sidecar.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_etcd_the_last_good_configuration_starts_and_what_comes_later_is_followed() {
    let mut etcd = Etcd::start().await;
    filled(&etcd, "mcpeg/").await;
    let folder = Folder::new(&[]).configured_by(&etcd.address("mcpeg/"));
    let mut sidecar = Sidecar::start(folder);
    let kept = sidecar.folder.path("data/config/last-good.json");
    eventually(Duration::from_secs(10), "it is kept", async || kept.exists().then_some(())).await;
    etcd.stop();
    sidecar.says("config.source", &["degraded", "away for", "goes on"]).await;
    assert!(sidecar.service_socket("one").exists());
    let refused = sidecar.folder.mcpeg(&["reload"]);
    assert_eq!(refused.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("cannot be reached"), "{refused:?}");

    sidecar.signal(libc::SIGKILL);
    sidecar.ended().await;
    sidecar = Sidecar::start(sidecar.into_folder());
    assert!(sidecar.stderr().contains("starting with the last good configuration, revision"), "{}", sidecar.stderr());
    serves(&sidecar, "one").await;
    sidecar.says("config.source", &["degraded", "away for"]).await;

    etcd.resume().await;
    etcd.put("mcpeg/mcpeg.yaml", TWO).await;
    serves(&sidecar, "two").await;
    sidecar.says("config.source", &["ok"]).await;

    // An emptied prefix is no configuration.
    for (key, _) in below("mcpeg/") {
        etcd.delete(&key).await;
    }
    sidecar.says("config.source", &["degraded", "there is nothing at"]).await;
    assert!(sidecar.service_socket("two").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_asks_for_a_user_and_shows_a_certificate() {
    let etcd = Etcd::start().await;
    filled(&etcd, "/abs/").await;
    let folder = Folder::new(&[("password", "hunter2-of-etcd\n"), ("wrong", "another\n")]);
    let user = serde_json::json!({ "name": "root", "password": "hunter2-of-etcd" });
    etcd.call("v3/auth/user/add", user).await;
    etcd.call("v3/auth/role/add", serde_json::json!({ "name": "root" })).await;
    etcd.call("v3/auth/user/grant", serde_json::json!({ "user": "root", "role": "root" })).await;
    etcd.call("v3/auth/enable", serde_json::json!({})).await;
    let folder = folder.configured_by(&etcd.address("/abs/"));
    let denied = folder.mcpeg(&["check"]);
    assert!(!denied.status.success() && String::from_utf8_lossy(&denied.stderr).contains("answered 4"), "{denied:?}");
    folder.write("source.yaml", "username: root\npassword_file: wrong\n");
    let wrong = folder.mcpeg(&["check", "--source", "source.yaml"]);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && !said.contains("another"), "{said}");
    folder.write("source.yaml", "username: root\npassword_file: password\n");
    let good = folder.mcpeg(&["check", "--source", "source.yaml"]);
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));

    let certificates = Certificates::new("localhost", &[]);
    let (cert, key) = (certificates.path("server.pem"), certificates.path("server.key"));
    let secure = Etcd::start_with(Some((cert, key))).await;
    let folder = Folder::new(&[]).configured_by(&format!("etcd+https://{}/mcpeg/", secure.host()));
    let unknown = folder.mcpeg(&["check"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("cannot be reached"), "{unknown:?}");
    let ca = certificates.path("ca.pem").display().to_string();
    folder.write("source.yaml", &format!("tls: {{ ca_file: {ca}, server_name: localhost }}\n"));
    let empty = eventually(Duration::from_secs(10), "etcd answers over TLS", async || {
        let output = folder.mcpeg(&["check", "--source", "source.yaml"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        said.contains("there is nothing at").then_some(said)
    })
    .await;
    assert!(empty.contains("etcd+https://"), "{empty}");
}

#[tokio::test]
async fn the_example_of_a_source_file_is_one_that_is_taken() {
    let etcd = Etcd::start().await;
    filled(&etcd, "mcpeg/").await;
    let folder = Folder::new(&[]).configured_by(&etcd.address("mcpeg/"));
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/config/source.yaml");
    let good = folder.mcpeg(&["check", "--source", example]);
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    folder.write("source.yaml", &(std::fs::read_to_string(example).unwrap() + "no_such_key: true\n"));
    let bad = folder.mcpeg(&["check", "--source", "source.yaml"]);
    assert_eq!(bad.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("unknown key `no_such_key`"), "{bad:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_behind_tls_proves_its_name() {
    let repository = Repository::new();
    TREE.iter().for_each(|(name, text)| repository.write(name, text));
    repository.commit("first");
    let server = repository.serve(&["--bearer", "token-of-git"]);
    let certificates = Certificates::new("localhost", &[]);
    let front = TlsFront::before(server.port, Begin::Tls, &certificates).await;
    let source =
        format!("token_file: token\ninterval: 300ms\ntls: {{ ca_file: {} }}\n", certificates.path("ca.pem").display());
    let files = [("token", "token-of-git\n"), ("source.yaml", source.as_str())];
    let at = |host: &str| {
        Folder::new(&files).configured_by(&format!("git+https://{host}:{}/team/config.git#main", front.port))
    };
    let stranger = at("127.0.0.1").mcpeg(&["check", "--source", "source.yaml"]);
    let said = String::from_utf8_lossy(&stranger.stderr).into_owned();
    assert!(!stranger.status.success() && said.contains("cannot be reached"), "{said}");
    let sidecar = Sidecar::start_with(at("localhost"), &[("MCPEG_SOURCE", "source.yaml")]);
    repository.write("mcpeg.yaml", TWO);
    let second = repository.commit("second");
    serves(&sidecar, "two").await;
    sidecar.says("config.source", &["ok", &second]).await;
}

/// The stand-in for a Consul (tests/support/consul.py).
struct Consul {
    child: Child,
    port: u16,
}

impl Consul {
    fn start(token: &str) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/consul.py");
        let mut child = Command::new(peers::path("python"))
            .args([script, "--token", token])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, port: line.trim().parse().unwrap() }
    }

    async fn put(&self, key: &str, text: &str, token: &str) {
        let url = format!("http://127.0.0.1:{}/v1/kv/{key}", self.port);
        let answer = http().put(url).header("x-consul-token", token).body(text.to_owned()).send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), "true");
    }
}

impl Drop for Consul {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_to_consul_is_live_at_once_and_needs_the_token() {
    let consul = Consul::start("token-of-consul");
    for (key, text) in below("team/mcpeg/") {
        consul.put(&key, text, "token-of-consul").await;
    }
    let address = format!("consul://127.0.0.1:{}/team/mcpeg/", consul.port);
    let folder = Folder::new(&[("token", "token-of-consul\n")]).configured_by(&address);
    let denied = folder.mcpeg(&["check"]);
    assert!(String::from_utf8_lossy(&denied.stderr).contains("answered 403: Permission denied"), "{denied:?}");
    let sidecar = Sidecar::start_with(folder, &[("MCPEG_SOURCE__TOKEN_FILE", "token")]);
    serves(&sidecar, "one").await;
    live_within_a_second(&sidecar, async |main| consul.put("team/mcpeg/mcpeg.yaml", main, "token-of-consul").await)
        .await;
    consul.put("team/mcpeg/mcpeg.yaml", "version: 2\n", "token-of-consul").await;
    let place = format!("{address}mcpeg.yaml:1:10: expected");
    sidecar.says("config", &["degraded", &place]).await;
    drop(consul);
    sidecar.says("config.source", &["degraded", "cannot be reached"]).await;
    assert!(sidecar.service_socket("two").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_of_a_repository_is_followed_over_http_and_from_a_folder() {
    let repository = Repository::new();
    TREE.iter().for_each(|(name, text)| repository.write(&format!("deploy/side/{name}"), text));
    repository.write("README.md", "not a part of it\n");
    let first = repository.commit("first");
    let server = repository.serve(&["--basic", "reader:password-of-git"]);
    let folder = Folder::new(&[("password", "password-of-git\n")]);
    let address = format!("git+http://127.0.0.1:{}/team/config.git#main:deploy/side", server.port);
    let folder = folder.configured_by(&address);
    let denied = folder.mcpeg(&["check"]);
    let said = String::from_utf8_lossy(&denied.stderr).into_owned();
    assert!(!denied.status.success() && said.contains("cannot be reached"), "{said}");
    folder.write("source.yaml", "username: reader\npassword_file: password\ninterval: 300ms\n");
    let sidecar = Sidecar::start_with(folder, &[("MCPEG_SOURCE", "source.yaml")]);
    serves(&sidecar, "one").await;
    assert_eq!(sidecar.folder.audit("config.loaded")[0]["attributes"]["mcpeg.config.revision"], first);
    repository.write("deploy/side/mcpeg.yaml", TWO);
    let second = repository.commit("second");
    serves(&sidecar, "two").await;
    sidecar.says("config.source", &["ok", &second]).await;
    repository.write("deploy/side/services/one.yaml", "type: volt\n");
    repository.commit("third");
    sidecar.says("config", &["degraded", &format!("{address}/services/one.yaml:1:7: ")]).await;
    let left: Vec<_> = std::fs::read_dir(sidecar.folder.path("data/config")).unwrap().flatten().collect();
    assert!(left.iter().all(|entry| !entry.file_name().to_string_lossy().starts_with(".mcpeg")), "{left:?}");
    assert!(sidecar.stop().await.success());

    let local = format!("git+file://{}#{second}:deploy/side/mcpeg.yaml", repository.path().display());
    let good = Folder::new(&[]).configured_by(&local).mcpeg(&["check"]);
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    let none = format!("git+file://{}#main:elsewhere", repository.path().display());
    let none = Folder::new(&[]).configured_by(&none).mcpeg(&["check"]);
    assert!(String::from_utf8_lossy(&none.stderr).contains("no folder `elsewhere`"), "{none:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_no_allowed_key_has_signed_is_refused() {
    let keys = tempfile::tempdir().unwrap();
    let key = |kind: &str, name: &str| {
        let path = keys.path().join(name);
        let made = Command::new("ssh-keygen").args(["-q", "-N", "", "-t", kind, "-f"]).arg(&path).status().unwrap();
        assert!(made.success());
        (path.display().to_string(), std::fs::read_to_string(path.with_extension("pub")).unwrap())
    };
    let allowed = [key("ed25519", "a"), key("ecdsa", "b"), key("rsa", "c")];
    let others = key("ed25519", "d").0;
    let signers: String = allowed.iter().map(|(_, public)| format!("ops@example.com {public}")).collect();
    let repository = Repository::new();
    TREE.iter().for_each(|(name, text)| repository.write(name, text));
    let unsigned = repository.commit("unsigned");
    let folder = Folder::new(&[("signers", &signers)]);
    let folder = folder.configured_by(&format!("git+file://{}", repository.path().display()));
    let check = |folder: &Folder| {
        folder.write("source.yaml", "allowed_signers: signers\n");
        let output = folder.mcpeg(&["check", "--source", "source.yaml"]);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (good, said) = check(&folder);
    assert!(!good && said.contains(&unsigned) && said.contains("it is not signed"), "{said}");
    let sign = |key: &str, number: usize| {
        repository.write("note", &number.to_string());
        let key = format!("user.signingkey={key}");
        repository.commit_with("signed", &["-c", "gpg.format=ssh", "-c", &key, "-c", "commit.gpgsign=true"])
    };
    for (number, (key, _)) in allowed.iter().enumerate() {
        sign(key, number);
        let (good, said) = check(&folder);
        assert!(good, "{key}: {said}");
    }
    sign(&others, 9);
    let (good, said) = check(&folder);
    assert!(!good && said.contains("a key that `allowed_signers` does not have"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_configmap_is_followed_when_it_is_swapped() {
    use std::os::unix::fs::symlink;
    let folder = Folder::new(&[]);
    let volume = folder.path("mounted");
    let swap = |state: &str, main: &str, template: &str| {
        std::fs::create_dir_all(volume.join(state)).unwrap();
        for (name, text) in [("mcpeg.yaml", main), ("one.yaml", SERVICE), ("two.yaml", SERVICE), ("app.j2", template)] {
            std::fs::write(volume.join(state).join(name), text).unwrap();
            let _ = symlink(format!("..data/{name}"), volume.join(name));
        }
        symlink(state, volume.join("..data_tmp")).unwrap();
        std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    };
    // The keys of a ConfigMap have no folders; what is written is outside, because the volume is read-only.
    let flat =
        |main: &str| main.replace("services/", "").replace("templates/", "").replace(": app.conf", ": ../app.conf");
    let main = |main: &str| {
        flat(main).replace("audit: { path: audit.log }", "audit: { path: ../audit.log }")
            + "transports: { unix: { path: ../run/mcpeg.sock } }\nadmin: { unix: { path: ../run/admin.sock } }\n"
    };
    swap("..1", &main(MAIN), "first\n");
    let address = folder.path("mounted/mcpeg.yaml").display().to_string();
    let sidecar = Sidecar::start(folder.configured_by(&address));
    serves(&sidecar, "one").await;
    swap("..2", &main(TWO), "second\n");
    std::fs::remove_dir_all(volume.join("..1")).unwrap();
    serves(&sidecar, "two").await;
    eventually(Duration::from_secs(10), "the template is rendered anew", async || {
        (sidecar.folder.read("app.conf") == "second\n").then_some(())
    })
    .await;
    let reloaded =
        eventually(Duration::from_secs(5), "it is on record", async || sidecar.folder.audit("config.reloaded").pop())
            .await;
    assert_eq!(reloaded["attributes"]["mcpeg.config.cause"], "file");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_migrated_to_etcd_and_consul_and_runs_from_there() {
    let etcd = Etcd::start().await;
    let consul = Consul::start("token-of-consul");
    let folder = Folder::new(&TREE);
    folder.write("mcpeg.yaml", TWO);
    folder.write("mcpeg-staging.yaml", "extends: bases/staging.yaml\n");
    folder.write("bases/staging.yaml", "global: { timeout: 5s }\n");
    folder.write("templates/part.j2", "a part\n");
    folder.write("audit.log", "no part of the configuration\n");
    folder.write("token", "token-of-consul\n");
    let files = [
        "bases/staging.yaml",
        "mcpeg-staging.yaml",
        "mcpeg.yaml",
        "services/one.yaml",
        "services/two.yaml",
        "templates/app.j2",
        "templates/part.j2",
    ];
    etcd.put_all(&[("m/services/one.yaml", "type: mcp\n"), ("m/other", "stays")]).await;
    let address = etcd.address("m/");
    let run = |args: &[&str]| {
        let output = folder.mcpeg(args);
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
        said
    };
    let dry = run(&["migrate", "config", "--to", &address, "--dry-run"]);
    assert_eq!(dry.lines().collect::<Vec<_>>(), files);
    assert_eq!(etcd.get("m/mcpeg.yaml").await, None);
    let said = run(&["migrate", "config", "--to", &address]);
    assert!(
        said.contains("7 files, 7 written, 0 there already") && said.contains("left there as they were: other"),
        "{said}"
    );
    for name in files {
        assert_eq!(etcd.get(&format!("m/{name}")).await.as_deref(), Some(folder.read(name).as_str()), "{name}");
    }
    assert_eq!(etcd.get("m/other").await.as_deref(), Some("stays"));
    let again = run(&["migrate", "config", "--to", &address, "--json"]);
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!((&again["files"], &again["written"], &again["unchanged"]), (&7.into(), &0.into(), &7.into()));

    folder.write("source.yaml", "token_file: token\n");
    let to = format!("consul://127.0.0.1:{}/m/", consul.port);
    let said = run(&["migrate", "config", "--to", &to, "--source", "source.yaml"]);
    assert!(said.contains("7 files, 7 written"), "{said}");
    let moved =
        Folder::new(&[("token", "token-of-consul\n"), ("source.yaml", "token_file: token\n")]).configured_by(&to);
    let good = moved.mcpeg(&["check", "--all-environments", "--source", "source.yaml"]);
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    let git = folder.mcpeg(&["migrate", "config", "--to", "git+https://127.0.0.1:1/x.git"]);
    assert!(String::from_utf8_lossy(&git.stderr).contains("cannot be written to"), "{git:?}");
    assert_eq!(folder.read("mcpeg.yaml"), TWO);
}
