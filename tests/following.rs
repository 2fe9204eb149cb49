//! Real programs that follow what is rendered: nginx a certificate that changes every few seconds, PostgreSQL's clients a user that does.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

use crate::leases::database;
use crate::support::bao::{Bao, ROOT_TOKEN};
use crate::support::postgres::Postgres;
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::{eventually, free_port, peers};

/// Each certificate lives for six seconds; files, check and reload belong together as in any such set-up.
fn nginx_folder(bao: &Bao, port: u16) -> Folder {
    let folder = Folder::new(&[("token", ROOT_TOKEN)]);
    let (nginx, root) = (peers::path("nginx"), folder.path(""));
    let (nginx, root) = (nginx.display(), root.display());
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    folder.write(
        "nginx.conf",
        &format!(
            "{user} daemon off; worker_processes 2; pid {root}/nginx.pid; error_log {root}/nginx-error.log;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log off; client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3;\n\
               uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;\n\
               server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {root}/tls/server.crt; ssl_certificate_key {root}/tls/server.key;\n\
                 location / {{ return 200 'served'; }} }} }}\n"
        ),
    );
    // The check of a generation that does not serve yet: the same configuration with its folder in place of the link.
    folder.write(
        "check.sh",
        &format!(
            "sed \"s#{root}/tls/#$1/#g\" {root}/nginx.conf > {root}/check.conf && {nginx} -t -q -c {root}/check.conf\n"
        ),
    );
    folder.write("reload.sh", &format!("test ! -e {root}/nginx.pid || {nginx} -s reload -c {root}/nginx.conf\n"));
    folder.write("server.crt.j2", "{{ secret.tls.certificate }}\n{{ secret.tls.issuing_ca }}\n");
    folder.write("server.key.j2", "{{ secret.tls.private_key }}\n");
    folder.write(
        "mcpeg.yaml",
        &format!(
            r#"version: "1.0"
secrets:
  providers:
    corp: {{ type: vault, address: "{}", auth: {{ method: token, token_file: token }} }}
  items:
    tls: {{ provider: corp, path: pki/issue/app, parameters: {{ common_name: localhost, ttl: 6s }}, overlap: 1s }}
render:
  groups:
    tls:
      validate: [sh, {root}/check.sh, "{{folder}}"]
      rollback: true
      on_change: {{ command: [sh, {root}/reload.sh] }}
templates:
  - {{ source: server.crt.j2, destination: tls/server.crt, group: tls }}
  - {{ source: server.key.j2, destination: tls/server.key, group: tls }}
audit: {{ path: audit.log }}
"#,
            bao.address()
        ),
    );
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_serves_certificates_that_rotate_and_no_client_sees_it() {
    let bao = Bao::start().await;
    bao.call("POST", "sys/mounts/pki", json!({ "type": "pki" })).await;
    let root = json!({ "common_name": "root of the tests", "ttl": "24h" });
    let root = bao.call("POST", "pki/root/generate/internal", root).await;
    bao.call("POST", "pki/roles/app", json!({ "allow_any_name": true, "max_ttl": "1h" })).await;
    let port = free_port();
    let sidecar = Sidecar::start(nginx_folder(&bao, port));
    let nginx = Command::new(peers::path("nginx"))
        .arg("-c")
        .arg(sidecar.folder.path("nginx.conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut nginx = Ended(nginx);
    let client = client_that_trusts(root["data"]["certificate"].as_str().unwrap());
    let url = format!("https://localhost:{port}/");
    eventually(Duration::from_secs(10), "nginx serves", async || client.get(&url).send().await.ok().map(drop)).await;

    let (stop, requests, pairs) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let served = std::sync::Mutex::new(BTreeSet::new());
    let ask = async || {
        while !stop.load(Ordering::Relaxed) {
            let answer = client.get(&url).send().await.unwrap_or_else(|error| panic!("a handshake failed: {error:?}"));
            let certificate = answer.extensions().get::<reqwest::tls::TlsInfo>().unwrap().peer_certificate().unwrap();
            served.lock().unwrap().insert(certificate.to_vec());
            assert_eq!(answer.text().await.unwrap(), "served");
            requests.fetch_add(1, Ordering::Relaxed);
        }
    };
    let look = async || {
        while !stop.load(Ordering::Relaxed) {
            assert_pair(&sidecar.folder);
            pairs.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    };
    let wait = async {
        let enough = async || (served.lock().unwrap().len() >= 5).then_some(());
        eventually(Duration::from_secs(60), "five certificates were served", enough).await;
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(ask(), ask(), ask(), look(), wait);
    let (requests, pairs) = (requests.into_inner(), pairs.into_inner());
    eprintln!("{requests} handshakes, {pairs} pairs looked at, {} certificates", served.lock().unwrap().len());
    assert!(requests > 100 && pairs > 100);
    assert_eq!(nginx.0.try_wait().unwrap(), None, "nginx was never restarted");
}

/// Opens the folder once, as a program does that wants a pair, and reads both from there.
fn assert_pair(folder: &Folder) {
    let opened = rustix::fs::open(folder.path("tls"), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let read = |name: &str| {
        let file = rustix::fs::openat(opened.as_fd(), name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        std::io::read_to_string(std::fs::File::from(file)).unwrap()
    };
    let (certificate, key) = (read("server.crt"), read("server.key"));
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    rustls::sign::CertifiedKey::new(chain, key).keys_match().expect("the key is the certificate's");
}

/// A new connection, and a new handshake, for each request.
fn client_that_trusts(root: &str) -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let root = reqwest::Certificate::from_pem(root.as_bytes()).unwrap();
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([root]).tls_info(true).pool_max_idle_per_host(0);
    client.timeout(Duration::from_secs(10)).build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn database_clients_follow_their_user_over_ten_replacements_without_a_failed_query() {
    let (bao, postgres) = (Bao::start().await, Postgres::start().await);
    database(&bao, &postgres, "3s", "3s").await;
    let main = format!(
        r#"version: "1.0"
secrets:
  providers:
    corp: {{ type: vault, address: "{}", auth: {{ method: token, token_file: token }} }}
  items:
    db: {{ provider: corp, path: database/creds/app, overlap: 1s }}
templates:
  - {{ source: db.j2, destination: db.env }}
"#,
        bao.address()
    );
    let template = "{{ secret.db.username }} {{ secret.db.password }}";
    let sidecar = Sidecar::start(Folder::new(&[("mcpeg.yaml", &main), ("token", ROOT_TOKEN), ("db.j2", template)]));
    let (folder, users) = (&sidecar.folder, std::sync::Mutex::new(BTreeSet::new()));
    let runtime = tokio::runtime::Handle::current();
    let enough = || users.lock().unwrap().len() > 10;
    std::thread::scope(|scope| {
        // One connects for each query, the other keeps its connection until the file has changed.
        let each = scope.spawn(|| {
            let mut queries = 0;
            while !enough() {
                let user = session_of(folder, &postgres).query();
                users.lock().unwrap().insert(user);
                queries += 1;
            }
            queries
        });
        let keeps = scope.spawn(|| {
            let (mut session, mut queries, started) = (session_of(folder, &postgres), 0, Instant::now());
            while !enough() {
                assert!(started.elapsed() < Duration::from_secs(90), "eleven users");
                if folder.read("db.env") != session.login {
                    session = session_of(folder, &postgres);
                }
                let user = session.query();
                assert!(session.login.starts_with(&user));
                queries += 1;
                runtime.block_on(async { tokio::time::sleep(Duration::from_millis(20)).await });
            }
            queries
        });
        let (each, keeps) = (each.join().unwrap(), keeps.join().unwrap());
        eprintln!("{each} connections, {keeps} queries over kept ones, {} users", users.lock().unwrap().len());
        assert!(each > 20 && keeps > 50);
    });
}

/// A psql that was logged in with what the file said.
struct Session {
    child: Ended,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    login: String,
}

fn session_of(folder: &Folder, postgres: &Postgres) -> Session {
    let login = folder.read("db.env");
    let (user, password) = login.split_once(' ').unwrap();
    let mut child = postgres.session(user, password).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    Session { child: Ended(child), input, output, login }
}

impl Session {
    /// Who the server says we are, which fails as soon as the user is gone.
    fn query(&mut self) -> String {
        writeln!(self.input, "select current_user;").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let ended = self.child.0.try_wait().unwrap();
        assert!(!line.is_empty(), "a query failed ({ended:?}) as {}", self.login.split(' ').next().unwrap_or_default());
        line.trim().to_owned()
    }
}

/// Ended with the test, however that ends.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // nginx's workers end with their master only if it may tell them.
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}
