//! Files that change together, with a certificate and its key from a real PKI, and leases that wait for whoever reads them.

use std::fs;
use std::io::BufReader;
use std::path::Path;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

use crate::support::bao::{Bao, ROOT_TOKEN};
use crate::support::eventually;
use crate::support::sidecar::{Folder, Sidecar};

const CONFIGURATION: &str = r#"version: "1.0"
secrets:
  providers:
    corp: { type: vault, address: "ADDRESS", auth: { method: token, token_file: token } }
  items:
    tls: { provider: corp, path: pki/issue/app, parameters: { common_name: app.example, ttl: 1h } }
render:
  groups:
    tls:
      validate: [openssl, x509, -noout, -in, "{folder}/cert.pem"]
      on_change: { command: [sh, -c, "test ! -e refuse && echo told >> told"], retries: 1 }
      rollback: true
      keep: 3
templates:
  - { source: cert.j2, destination: run/tls/cert.pem, group: tls }
  - { source: key.j2, destination: run/tls/key.pem, group: tls }
audit: { path: audit.log }
"#;

async fn start(bao: &Bao) -> Sidecar {
    bao.call("POST", "sys/mounts/pki", json!({ "type": "pki" })).await;
    bao.call("POST", "pki/root/generate/internal", json!({ "common_name": "test root", "ttl": "24h" })).await;
    bao.call("POST", "pki/roles/app", json!({ "allow_any_name": true, "max_ttl": "1h" })).await;
    let folder = Folder::new(&[
        ("token", ROOT_TOKEN),
        ("cert.j2", "{{ secret.tls.certificate }}\n"),
        ("key.j2", "{{ secret.tls.private_key }}\n"),
    ]);
    // A hook runs in the folder of the process, which is that of the tests: its files are named in full.
    let here = folder.path("").display().to_string();
    let configuration = CONFIGURATION.replace("ADDRESS", &bao.address());
    let configuration = configuration.replace("refuse &&", &format!("{here}refuse &&"));
    let configuration = configuration.replace(">> told", &format!(">> {here}told"));
    folder.write("mcpeg.yaml", &configuration);
    Sidecar::start(folder)
}

/// A server takes the pair: the key is the certificate's own.
fn fits(folder: &Path) -> bool {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cert = fs::read(folder.join("cert.pem")).unwrap();
    let chain: Vec<_> = CertificateDer::pem_reader_iter(BufReader::new(&cert[..])).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
    rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).is_ok()
}

fn refresh(sidecar: &Sidecar) {
    let output = sidecar.folder.mcpeg(&["secrets", "refresh", "tls"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The folder that a reader would open now.
fn current(sidecar: &Sidecar) -> std::path::PathBuf {
    fs::canonicalize(sidecar.folder.path("run/tls")).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_and_its_key_change_together() {
    let bao = Bao::start().await;
    let sidecar = start(&bao).await;
    for told in 1..=4 {
        eventually(Duration::from_secs(10), "everybody is told", async || {
            (sidecar.folder.read("told").lines().count() == told).then_some(())
        })
        .await;
        let before = current(&sidecar);
        assert!(fits(&before));
        if told < 4 {
            // It is answered at most once a second.
            eventually(Duration::from_secs(5), "a refresh is allowed", async || {
                sidecar.folder.mcpeg(&["secrets", "refresh", "tls"]).status.success().then_some(())
            })
            .await;
            eventually(Duration::from_secs(10), "a switch", async || (current(&sidecar) != before).then_some(())).await;
            assert!(fits(&before), "who has the old folder open goes on with a whole pair");
        }
    }
    assert_eq!(sidecar.folder.audit("group.switched").len(), 4);
    assert!(sidecar.condition("group/tls").unwrap().starts_with("ok"), "{:?}", sidecar.condition("group/tls"));
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_refuses_a_certificate_gets_the_one_before_back() {
    let bao = Bao::start().await;
    let sidecar = start(&bao).await;
    eventually(Duration::from_secs(10), "told", async || (!sidecar.folder.read("told").is_empty()).then_some(())).await;
    let (before, text) = (current(&sidecar), sidecar.folder.read("run/tls/cert.pem"));
    sidecar.folder.write("refuse", "");
    refresh(&sidecar);
    sidecar.says("group/tls", &["degraded", "went back to the generation before: sh ended with"]).await;
    assert_eq!((current(&sidecar), sidecar.folder.read("run/tls/cert.pem")), (before.clone(), text));
    assert!(fits(&before));
    let events = sidecar.folder.audit("group.rolled_back");
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["attributes"]["mcpeg.group.generation"], 1);
    assert_eq!(events[0]["outcome"], "failure");
    // Two tries, and the one that told of the way back.
    eventually(Duration::from_secs(10), "it is told of the way back", async || {
        (sidecar.folder.audit("hook.ran").len() == 4).then_some(())
    })
    .await;
    fs::remove_file(sidecar.folder.path("refuse")).unwrap();
    eventually(Duration::from_secs(5), "a refresh is allowed", async || {
        sidecar.folder.mcpeg(&["secrets", "refresh", "tls"]).status.success().then_some(())
    })
    .await;
    eventually(Duration::from_secs(10), "a switch", async || (current(&sidecar) != before).then_some(())).await;
    eventually(Duration::from_secs(10), "all is well", async || {
        sidecar.condition("group/tls").filter(|text| text.starts_with("ok"))
    })
    .await;
    assert!(fits(&current(&sidecar)));
    sidecar.stop().await;
}
