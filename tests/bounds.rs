//! What clients may not do on the Unix sockets, as the configuration says: come as somebody else, come in too great a number, ask too much at a time,
//! say too much at once; and the longest name that a client takes.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;

use crate::support::mcp::Client;
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::stand_in::{Asked, Reply, StandIn};
use crate::support::{eventually, peers};

/// What `cat` is asked it asks back, which shows that it was asked.
const ASK: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}"#;

fn sidecar(transports: &str, service: &str) -> Sidecar {
    let main = format!(
        "version: \"1.0\"\naudit: {{ path: audit.log }}\ntransports: {transports}\nservices: {{ it: {{ config_file: it.yaml }} }}\n"
    );
    Sidecar::start(Folder::new(&[("mcpeg.yaml", &main), ("it.yaml", &format!("type: mcp\n{service}\n"))]))
}

fn kinds(sidecar: &Sidecar, event: &str) -> Vec<Value> {
    sidecar.folder.audit(event).iter().map(|event| event["attributes"]["error.type"].clone()).collect()
}

/// Becomes another user of another group, connects, asks, and prints what comes back.
const AS_OTHER: &str = "import os, socket, sys
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[3]))
joined = socket.socket(socket.AF_UNIX)
joined.connect(sys.argv[1])
try:
    joined.sendall(sys.argv[4].encode() + b'\\n')
except BrokenPipeError:
    pass
print(joined.makefile().readline(), end='')";

async fn ask_as(socket: &Path, gid: u32, uid: u32) -> Value {
    let mut command = Command::new(peers::path("python"));
    command.args(["-S", "-E", "-c", AS_OTHER]).arg(socket).args([gid.to_string(), uid.to_string(), ASK.to_owned()]);
    let output = command.output().await.unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_groups_that_are_not_named_are_turned_away_and_put_on_record() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root can come as somebody else: not tested");
        return;
    }
    let unix = "{ unix: { path: mcpeg.sock, mode: \"0666\", allow_uids: [12001], allow_gids: [12002] } }";
    let sidecar = sidecar(unix, "command: [cat]");
    for folder in ["", "services"] {
        std::fs::set_permissions(sidecar.folder.path(folder), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let socket = sidecar.folder.path("services/it.sock");
    for (gid, uid) in [(12001, 12001), (12002, 12003), (0, 0)] {
        assert_eq!(ask_as(&socket, gid, uid).await["method"], "tools/call", "{gid} {uid}");
    }
    let refused = ask_as(&socket, 12001, 12002).await;
    assert_eq!(refused["error"]["code"], -32014, "{refused}");
    assert_eq!(ask_as(&sidecar.folder.path("mcpeg.sock"), 1, 1).await["error"]["code"], -32014);
    assert_eq!(kinds(&sidecar, "mcp.connection"), ["uid_not_allowed", "uid_not_allowed"]);
    let first = sidecar.folder.audit("mcp.connection").remove(0);
    assert_eq!(first["attributes"]["mcpeg.peer.uid"], 12002, "{first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_is_told_so_and_finds_room_when_another_goes() {
    let sidecar = sidecar("{ limits: { max_connections: 2 } }", "command: [cat]");
    let socket = sidecar.service_socket("it");
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(&socket).await;
        client.send(ASK).await;
        client.line().await.unwrap();
        clients.push(client);
    }
    let mut third = Client::connect(&socket).await;
    let refused: Value = serde_json::from_str(&third.line().await.unwrap()).unwrap();
    assert_eq!(refused["error"]["code"], -32012, "{refused}");
    assert_eq!(third.line().await, None);
    assert_eq!(kinds(&sidecar, "mcp.connection"), ["too_many_connections"]);
    clients.pop();
    eventually(Duration::from_secs(10), "there is room again", async || {
        let mut stream = BufReader::new(UnixStream::connect(&socket).await.unwrap());
        // Whoever is refused may not be heard any more.
        let _ = stream.write_all(format!("{ASK}\n").as_bytes()).await;
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|_| line.contains("\"method\""))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_too_many_and_one_message_too_large_are_refused() {
    let sidecar = sidecar("{ limits: { max_in_flight: 2, max_message_mb: 1 } }", "command: [sleep, \"60\"]");
    let mut client = Client::connect(&sidecar.service_socket("it")).await;
    for id in 1..=3 {
        client.send(&json!({ "jsonrpc": "2.0", "id": id, "method": "vendor/wait" }).to_string()).await;
    }
    let refused: Value = serde_json::from_str(&client.line().await.unwrap()).unwrap();
    assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!(3), &json!(-32012)), "{refused}");
    let large = json!({ "jsonrpc": "2.0", "method": "notifications/x", "params": { "text": "x".repeat(1024 * 1024) } });
    client.send(&large.to_string()).await;
    let refused = client.line().await.unwrap();
    assert!(refused.contains("the message is larger than 1048576 bytes"), "{refused}");
    let kinds = kinds(&sidecar, "mcp.request");
    assert!(kinds.contains(&json!("message_too_large")), "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_its_prefix_makes_too_long_is_shortened_and_can_be_called() {
    let own = format!("{}_end", "n".repeat(124));
    let listed = own.clone();
    let server = StandIn::replying(move |asked: &Asked| {
        let Some(id) = asked.body.get("id") else { return Reply::new(202, "") };
        let result = match asked.body["method"].as_str() {
            Some("initialize") => json!({ "protocolVersion": "2025-11-25", "capabilities": { "tools": {} }, "serverInfo": { "name": "l", "version": "1" } }),
            Some("tools/list") => json!({ "tools": [{ "name": listed, "inputSchema": { "type": "object" } }] }),
            _ => json!({ "content": [], "called": asked.body["params"]["name"] }),
        };
        Reply::new(200, json!({ "jsonrpc": "2.0", "id": id, "result": result }))
    })
    .await;
    let sidecar = sidecar("{}", &format!("url: {}/mcp", server.address));
    let mut client = Client::initialized(&sidecar.socket()).await;
    let list = client.request("tools/list", json!({})).await;
    let name = list["result"]["tools"][0]["name"].as_str().unwrap_or_else(|| panic!("{list}")).to_owned();
    assert!(name.len() == 128 && name.starts_with("it__nnn"), "{name}");
    assert_eq!(client.call(&name, json!({})).await["result"]["called"], json!(own));
    // Another session does not know what it stands for before it has seen the list, and is told so.
    let mut other = Client::initialized(&sidecar.socket()).await;
    let unknown = other.call(&name, json!({})).await;
    assert!(unknown["error"]["message"].as_str().unwrap().contains("ask for the list"), "{unknown}");
    other.request("tools/list", json!({})).await;
    assert_eq!(other.call(&name, json!({})).await["result"]["called"], json!(own));
}
