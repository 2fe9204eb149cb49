//! Batches over HTTP, in the one version of the protocol that has them.

use serde_json::{Value, json};

use crate::http::{refusal, request, scripted, sidecar};

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_answered_on_one_stream_in_the_version_that_has_them() {
    let (service, _log) = scripted();
    let (_sidecar, http) = sidecar(&[("s", service)], "");
    for path in ["/s", ""] {
        let hello = json!({ "protocolVersion": "2025-03-26", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
        let response = http.post(path, &request("initialize", hello)).send().await.unwrap();
        assert_eq!(response.status(), 200, "{response:?}");
        let headers = response.headers().clone();
        let id =
            headers.get("mcp-session-id").unwrap_or_else(|| panic!("{path}: {headers:?}")).to_str().unwrap().to_owned();
        let post = |body: &str| http.post(path, body).header("Mcp-Session-Id", &id);
        let pings = r#"[{"jsonrpc":"2.0","id":7,"method":"ping"},{"jsonrpc":"2.0","method":"notifications/initialized"},{"jsonrpc":"2.0","id":8,"method":"ping"}]"#;
        let text = post(pings).send().await.unwrap().text().await.unwrap();
        let mut answered: Vec<u64> = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok()?["id"].as_u64())
            .collect();
        answered.sort_unstable();
        assert_eq!(answered, [7, 8], "{path}: {text}");
        let told = r#"[{"jsonrpc":"2.0","method":"notifications/initialized"}]"#;
        assert_eq!(post(told).send().await.unwrap().status(), 202);
        for bad in ["[]", r#"[{"jsonrpc":"2.0","id":1,"method":"initialize"}]"#, r#"[{"id":1,"method":"ping"}]"#] {
            assert_eq!(refusal(post(bad)).await, (400, -32600), "{bad}");
        }
        assert_eq!(refusal(post(pings).header("MCP-Protocol-Version", "2025-06-18")).await, (400, -32600));
    }
}
