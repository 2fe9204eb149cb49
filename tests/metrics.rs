//! docs/METRICS.md against the instruments in the code and against what a running sidecar shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::support::mcp::Client;
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::unix_http::UnixHttp;

struct Documented {
    kind: String,
    unit: String,
    labels: String,
}

fn documented() -> BTreeMap<String, Documented> {
    let text = fs::read_to_string(root().join("docs/METRICS.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `m") || line.starts_with("| `process."));
    rows.filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, kind, unit, labels, _, _] = cells[..] else { return None };
        let bare = |text: &str| text.trim_matches('`').to_owned();
        Some((bare(name), Documented { kind: kind.to_owned(), unit: bare(unit), labels: labels.to_owned() }))
    })
    .collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_instrument_of_the_code_is_documented_and_no_other() {
    let declared: BTreeSet<String> =
        ["mcp", "process", "render", "secrets", "secrets/serve", "storage", "admin", "telemetry", "telemetry/inflow"]
            .map(|domain| format!("{domain}/metrics.rs"))
            .into_iter()
            .chain(["reload.rs", "reload/drift.rs"].map(str::to_owned))
            .flat_map(|file| {
                let code = fs::read_to_string(root().join("src").join(file)).unwrap();
                let words = code.split('"').skip(1).step_by(2).map(str::to_owned);
                let instruments = words.filter(|word| {
                    let before = code.split(&format!("\"{word}\"")).next().unwrap().trim_end();
                    ["counter(", "gauge(", "histogram(", "operation("].iter().any(|call| before.ends_with(call))
                });
                instruments.collect::<Vec<_>>()
            })
            .collect();
    assert!(declared.len() > 20, "{declared:?}");
    assert_eq!(declared, documented().into_keys().collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sidecar_shows_is_as_documented() {
    let (sidecar, shown) = shown().await;
    compare_with_documented(&shown);
    let missing: Vec<&str> = ["age_seconds", "version", "failing", "requests_total", "reads_total"]
        .into_iter()
        .filter(|name| !shown.contains(&format!("# TYPE mcpeg_secret_{name} ")))
        .collect();
    assert!(missing.is_empty(), "{missing:?} are not in:\n{shown}");
    let failing = |line: &str| line.starts_with("mcpeg_secret_failing{") && line.contains("not_found");
    assert!(shown.lines().any(failing), "{shown}");
    assert!(!shown.contains("abc-0001"));
    drop(sidecar);
}

/// A sidecar that has done a little of everything, and its `/metrics`.
async fn shown() -> (Sidecar, String) {
    let main = format!(
        r#"version: "1.0"
secrets:
  providers: {{ dev: {{ type: file, path: keys.yaml }} }}
  items: {{ app: {{ provider: dev, path: app }}, bad: {{ provider: dev, path: bad, require_at_start: false }} }}
  serve: {{ allow: [ {{ uid: {}, items: [app] }} ] }}
services: {{ cat: {{ config_file: cat.yaml }} }}
templates: [ {{ source: app.j2, destination: app.conf, on_change: {{ command: ["true"] }} }} ]
audit: {{ path: audit.log }}
"#,
        rustix::process::getuid().as_raw()
    );
    let sidecar = Sidecar::start(Folder::new(&[
        ("mcpeg.yaml", &main),
        ("keys.yaml", "app: { token: abc-0001 }\n"),
        ("cat.yaml", "type: mcp\ncommand: [cat]\n"),
        ("app.j2", "{{ secret.app.token }}"),
    ]));
    let mut client = Client::connect(&sidecar.service_socket("cat")).await;
    client.send(r#"{"jsonrpc":"2.0","method":"notifications/a"}"#).await;
    client.line().await.unwrap();
    UnixHttp::connect(&sidecar.folder.path("run/secrets.sock")).await.get("/v1/secrets/app").await;
    let mut admin = UnixHttp::connect(&sidecar.folder.path("run/admin.sock")).await;
    let shown = admin.get("/metrics").await.text().to_owned();
    (sidecar, shown)
}

fn compare_with_documented(shown: &str) {
    let documented = documented();
    let by_text: BTreeMap<String, &Documented> =
        documented.iter().map(|(name, of)| (prometheus_name(name, of), of)).collect();
    for line in shown.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            if name == "target_info" {
                continue;
            }
            let of = by_text.get(name).unwrap_or_else(|| panic!("{name} is not documented"));
            let wanted = if of.kind == "up-down counter" { "gauge" } else { &of.kind };
            assert_eq!(kind, wanted, "{name}");
        } else if let Some((series, labels)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let name = ["_bucket", "_sum", "_count"].iter().find_map(|end| series.strip_suffix(end));
            let name = name.filter(|name| by_text.contains_key(*name)).unwrap_or(series);
            let Some(of) = by_text.get(name) else { continue };
            for label in labels.split("\",").filter_map(|pair| pair.split_once('=')).map(|(label, _)| label) {
                let known = of.labels == "the same" || of.labels.replace('.', "_").contains(&format!("`{label}`"));
                assert!(known || label == "le" || label.starts_with("otel_scope"), "{name} has the label {label}");
            }
        }
    }
}

/// By the rules of OpenTelemetry's specification for Prometheus, as far as the units here go.
fn prometheus_name(name: &str, of: &Documented) -> String {
    let unit = match of.unit.as_str() {
        "s" => "_seconds",
        "By" => "_bytes",
        _ => "",
    };
    let total = if of.kind == "counter" { "_total" } else { "" };
    format!("{}{unit}{total}", name.replace('.', "_"))
}
