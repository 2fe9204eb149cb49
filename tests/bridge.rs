//! The bridge between the eras: every client era in front of every upstream era, over every transport, with everything that has to cross.
//!
//! The reference is what the SDKs' clients see of the SDKs' servers without mcpeg in between, which is the same in both eras.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::features::{Bed, Runs, TOOLS, expected};
use crate::support::mcp::Client;
use crate::support::peers;
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::upstream::with;

/// The client of npm's SDK of that era, on its way.
fn client(era: &str, way: &[String]) -> Vec<String> {
    let way: Vec<&str> = way.iter().map(String::as_str).collect();
    with(peers::argv("mcp_features_client"), &[&[era], &way[..]].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_feature_crosses_between_every_era_over_every_transport() {
    let bed = Bed::new("").await;
    let mut runs = Runs::default();
    for server in ["legacy", "modern"] {
        for upstream in ["stdio", "http"] {
            let service = format!("{server}-{upstream}");
            for era in ["legacy", "modern"] {
                for way in bed.ways(Some(&service)) {
                    let what = format!("{era} client, {}", way[0]);
                    runs.add(&service, what, client(era, &way), &[], expected(era, server));
                }
            }
        }
    }
    let wrong = runs.wrong().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_feature_of_every_service_crosses_in_the_aggregate() {
    let bed = Bed::new("").await;
    let mut runs = Runs::default();
    let all = ["legacy-http", "legacy-stdio", "modern-http", "modern-stdio"];
    for service in all {
        for era in ["legacy", "modern"] {
            let mut wanted = expected(era, "");
            wanted["server"] = json!("mcpeg");
            let tools = all.iter().flat_map(|service| TOOLS.map(|tool| format!("{service}__{tool}")));
            wanted["tools"] = tools.collect();
            wanted["subscribe"] = json!(format!("touched list mcpeg://{service}/test://one"));
            wanted["instructions"] = json!(all.map(|service| format!("{service}: be kind")).join("\n\n"));
            for way in bed.ways(None) {
                let prefix = [("MCPEG_TEST_PREFIX", format!("{service}__"))];
                let what = format!("{service}, {era} client, {}", way[0]);
                // Modern clients of one user share a session, and a line of the log does not say whose request it belongs to.
                runs.add("all services", what, client(era, &way), &prefix, wanted.clone());
            }
        }
    }
    let wrong = runs.wrong().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_is_searched_and_what_was_found_is_called() {
    let bed = Bed::new(", aggregate: { mode: search }").await;
    let mut client = Client::initialized(&bed.sidecar.socket()).await;
    let list = client.request("tools/list", json!({})).await;
    let names: Vec<&str> =
        list["result"]["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["find_tools", "call_tool"]);
    let found = client.call("find_tools", json!({ "query": "progress modern", "limit": 3 })).await;
    let tools = found["result"]["structuredContent"]["tools"].as_array().unwrap();
    let first = tools[0]["name"].as_str().unwrap().to_owned();
    assert!(tools.len() == 3 && first.starts_with("modern-") && first.ends_with("__progress"), "{found}");
    assert!(tools[0]["inputSchema"].is_object(), "{found}");
    let called = client.call("call_tool", json!({ "name": "legacy-stdio__cancelled" })).await;
    assert_eq!(called["result"]["content"][0]["text"], "0", "{called}");
    for (wrong, code) in [(json!({}), -32602), (json!({ "name": "nobody__x" }), -32602)] {
        assert_eq!(client.call("call_tool", wrong).await["error"]["code"], code);
    }
    let audited = bed.sidecar.folder.audit("mcp.request");
    let tool = audited.iter().find(|event| event["attributes"]["gen_ai.tool.name"] == "cancelled");
    assert_eq!(tool.unwrap()["attributes"]["mcpeg.service"], "legacy-stdio");
}

#[tokio::test(flavor = "multi_thread")]
async fn merged_lists_have_pages_and_two_services_may_have_one_address() {
    let bed = Bed::new(", aggregate: { page_size: 7 }").await;
    let mut client = Client::initialized(&bed.sidecar.socket()).await;
    let (mut names, mut cursor, mut pages) = (Vec::new(), json!(null), 0);
    loop {
        let params = if cursor.is_null() { json!({}) } else { json!({ "cursor": cursor }) };
        let page = client.request("tools/list", params).await;
        let tools = page["result"]["tools"].as_array().unwrap_or_else(|| panic!("{page}")).clone();
        names.extend(tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()));
        pages += 1;
        cursor = page["result"]["nextCursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    names.dedup();
    assert_eq!((names.len(), pages), (36, 6), "{names:?}");
    assert_eq!(client.request("tools/list", json!({ "cursor": "x" })).await["error"]["code"], -32602);

    let list = client.request("resources/list", json!({})).await;
    let addresses: Vec<&str> =
        list["result"]["resources"].as_array().unwrap().iter().map(|one| one["uri"].as_str().unwrap()).collect();
    let services = ["legacy-http", "legacy-stdio", "modern-http", "modern-stdio"];
    assert_eq!(addresses, services.map(|service| format!("mcpeg://{service}/test://one")));
    for address in addresses {
        let read = client.request("resources/read", json!({ "uri": address })).await;
        assert_eq!(
            (&read["result"]["contents"][0]["uri"], &read["result"]["contents"][0]["text"]),
            (&json!(address), &json!("the one"))
        );
    }
    let read = client.request("resources/read", json!({ "uri": "test://one" })).await;
    assert_eq!(read["result"]["contents"][0]["uri"], "test://one", "its own address will do as well");
    let reference = json!({ "type": "ref/prompt", "name": "modern-http__greet" });
    let complete = client
        .request("completion/complete", json!({ "ref": reference, "argument": { "name": "name", "value": "a" } }))
        .await;
    assert_eq!(complete["result"]["completion"]["values"], json!(["anna"]), "{complete}");
}

/// A sidecar with scripted servers; `more` goes into the main file.
fn scripted(names: &[&str], more: &str) -> Sidecar {
    let folder = Folder::new(&[]);
    let script = format!("{}/tests/support/scripted.py", env!("CARGO_MANIFEST_DIR"));
    let mut main = format!("version: \"1.0\"\naudit: {{ path: audit.log }}\n{more}services:\n");
    for name in names {
        let log = folder.path(&format!("{name}.log")).display().to_string();
        let argv = [peers::path("python").display().to_string(), script.clone(), log];
        main.push_str(&format!("  {name}: {{ config_file: {name}.yaml }}\n"));
        folder.write(&format!("{name}.yaml"), &format!("type: mcp\ncommand: {}\n", json!(argv)));
    }
    if more.contains("mute") {
        main.push_str("  mute: { config_file: mute.yaml }\n");
        folder.write("mute.yaml", "type: mcp\ncommand: [sleep, \"60\"]\n");
    }
    folder.write("mcpeg.yaml", &main);
    Sidecar::start(folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_ask_under_the_same_id_and_each_gets_its_answer() {
    let sidecar = scripted(&["one", "two"], "");
    let mut client = Client::initialized(&sidecar.socket()).await;
    for name in ["one", "two"] {
        let params = json!({ "name": format!("{name}__ask"), "arguments": {} });
        client
            .send(&json!({ "jsonrpc": "2.0", "id": name, "method": "tools/call", "params": params }).to_string())
            .await;
    }
    let mut asked = Vec::new();
    while asked.len() < 2 {
        let message: Value = serde_json::from_str(&client.line().await.unwrap()).unwrap();
        if message["method"] == "elicitation/create" {
            asked.push(message["id"].clone());
        }
    }
    assert_ne!(asked[0], asked[1]);
    for (count, id) in asked.iter().enumerate() {
        let result = json!({ "action": "accept", "content": { "count": count } });
        client.send(&json!({ "jsonrpc": "2.0", "id": id, "result": result }).to_string()).await;
    }
    let mut answers = Vec::new();
    while answers.len() < 2 {
        let message: Value = serde_json::from_str(&client.line().await.unwrap()).unwrap();
        if message["id"] == "one" || message["id"] == "two" {
            answers.push(message["result"]["answer"]["content"]["count"].clone());
        }
    }
    answers.sort_by_key(Value::to_string);
    assert_eq!(answers, [json!(0), json!(1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_does_not_answer_holds_nobody_up_and_is_named() {
    let sidecar = scripted(&["one"], "transports: { aggregate: { list_timeout: 1500ms } } # mute\n");
    let begun = Instant::now();
    let mut client = Client::initialized(&sidecar.socket()).await;
    let list = client.request("tools/list", json!({})).await;
    // Its own time-out is 30 s.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(list["result"]["_meta"]["mcpeg/unavailable"][0]["service"], "mute", "{list}");
    let said = client.received.iter().find(|line| line.contains("notifications/message")).expect("nothing was said");
    let said: Value = serde_json::from_str(said).unwrap();
    assert_eq!((&said["params"]["level"], &said["params"]["logger"]), (&json!("warning"), &json!("mcpeg")));
    assert!(said.to_string().contains("mute"), "{said}");
}
