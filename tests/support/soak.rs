//! A value of a real OpenBao that changes every second for as long as is wanted, and what that leaves in the sidecar that follows it.

use std::time::{Duration, Instant};

use serde_json::json;

use super::bao::{Bao, ROOT_TOKEN};
use super::sidecar::{Folder, Sidecar};
use super::{eventually, memory};

pub struct Soaked {
    pub versions: u64,
    /// Versions that the audit trail does not tell of.
    pub missed: Vec<u64>,
    /// Copies of any of the values that are readable in the process's memory, one second after the last change.
    pub left_over: usize,
    /// Resident memory in KiB after the first tenth, and at the end.
    pub resident: (u64, u64),
}

/// What every value begins with, so that one search finds any of them.
const PREFIX: &str = "soaked-4d1f/0123456789-abcdefghijklmnopqrstuvwxyz-";

pub async fn soak(length: Duration) -> Soaked {
    let bao = Bao::start().await;
    let value = |number: u64| format!("{PREFIX}{number:08}");
    bao.put("soak", json!({ "value": value(1) })).await;
    let main = format!(
        "version: \"1.0\"\nsecrets:\n  providers:\n    corp: {{ type: vault, address: \"{}\", auth: {{ method: token, token_file: token }} }}\n  \
         items: {{ soak: {{ provider: corp, path: secret/data/soak, refresh: 400ms }} }}\n\
         templates:\n  - {{ source: t.j2, destination: t.txt }}\naudit: {{ path: audit.log }}\n",
        bao.address()
    );
    let files = [("mcpeg.yaml", main.as_str()), ("token", ROOT_TOKEN), ("t.j2", "{{ secret.soak.value }}")];
    let sidecar = Sidecar::start(Folder::new(&files));
    let (began, mut versions, mut early) = (Instant::now(), 1, None);
    while began.elapsed() < length {
        tokio::time::sleep_until((began + Duration::from_secs(versions)).into()).await;
        versions += 1;
        bao.put("soak", json!({ "value": value(versions) })).await;
        if began.elapsed() > length / 10 {
            early.get_or_insert_with(|| resident(sidecar.pid()));
        }
    }
    eventually(Duration::from_secs(5), "the last version is in the file", async || {
        (sidecar.folder.read("t.txt") == value(versions)).then_some(())
    })
    .await;
    let late = resident(sidecar.pid());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let left_over = memory::find(sidecar.pid(), PREFIX).len();
    let told: Vec<u64> = ["secret.fetched", "secret.rotated"]
        .iter()
        .flat_map(|event| sidecar.folder.audit(event))
        .filter_map(|event| event["attributes"]["mcpeg.secret.provider_version"].as_str()?.parse().ok())
        .collect();
    let missed = (1..=versions).filter(|version| !told.contains(version)).collect();
    Soaked { versions, missed, left_over, resident: (early.unwrap_or(late), late) }
}

/// In KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
