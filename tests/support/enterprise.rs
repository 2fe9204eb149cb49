//! A stand-in for Vault Enterprise, which cannot be had here: KV v2 at `kv/` and its events, as HashiCorp documents them
//! (developer.hashicorp.com/vault/docs/concepts/events). It checks the handshake of a subscription, tells of each write, and cuts.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use base64::Engine;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::task::JoinSet;

pub struct Enterprise {
    pub address: String,
    state: Arc<State>,
    _server: JoinSet<()>,
}

struct State {
    secrets: Mutex<BTreeMap<String, (u64, String)>>,
    asked: Mutex<Vec<String>>,
    refuses: Mutex<bool>,
    /// What every subscriber is sent, as it stands on the wire.
    frames: broadcast::Sender<Vec<u8>>,
    /// One for each subscription.
    tasks: Mutex<JoinSet<()>>,
}

impl Enterprise {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            secrets: Mutex::default(),
            asked: Mutex::default(),
            refuses: Mutex::default(),
            frames: broadcast::Sender::new(16),
            tasks: Mutex::default(),
        });
        let (mut server, serving) = (JoinSet::new(), state.clone());
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = serving.clone();
                connections.spawn(async move {
                    let answer =
                        service_fn(|request| std::future::ready(Ok::<_, Infallible>(state.answer(request, &state))));
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), answer).with_upgrades().await;
                });
            }
        });
        Self { address, state, _server: server }
    }

    /// Writes a secret; tells of it only where `told`.
    pub fn put(&self, name: &str, value: &str, told: bool) {
        let mut secrets = self.state.secrets.lock().unwrap();
        let secret = secrets.entry(name.to_owned()).or_default();
        *secret = (secret.0 + 1, value.to_owned());
        if told {
            let event = json!({
                "id": "b6d5c8e1", "source": "vault://standin", "specversion": "1.0", "type": "*",
                "datacontenttype": "application/cloudevents", "time": "2026-11-01T00:00:00Z",
                "data": {
                    "event": { "id": "b6d5c8e1", "metadata": { "current_version": secret.0.to_string(), "data_path": format!("kv/data/{name}"),
                        "modified": "true", "oldest_version": "0", "operation": "data-write", "path": format!("kv/data/{name}") } },
                    "event_type": "kv-v2/data-write",
                    "plugin_info": { "mount_class": "secret", "mount_accessor": "kv_1", "mount_path": "kv/", "plugin": "kv" },
                },
            });
            // A ping, and the event in two frames.
            let text = event.to_string().into_bytes();
            let (first, second) = text.split_at(text.len() / 2);
            let frames = [frame(0x89, b"there?"), frame(0x01, first), frame(0x80, second)].concat();
            let _ = self.state.frames.send(frames);
        }
    }

    /// How many listen now.
    pub fn subscribers(&self) -> usize {
        self.state.frames.receiver_count()
    }

    /// Ends every subscription; new ones are refused where `refuse`.
    pub fn cut(&self, refuse: bool) {
        *self.state.refuses.lock().unwrap() = refuse;
        let _ = self.state.frames.send(Vec::new());
    }

    /// The requests so far whose path has `words`.
    pub fn asked(&self, words: &str) -> usize {
        self.state.asked.lock().unwrap().iter().filter(|path| path.contains(words)).count()
    }
}

impl State {
    fn answer(&self, request: Request<Incoming>, shared: &Arc<Self>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        self.asked.lock().unwrap().push(path.clone());
        let denied = || respond(403, &json!({ "errors": ["permission denied"] }));
        if path == "/v1/sys/health" {
            return respond(200, &json!({ "initialized": true, "sealed": false, "standby": false }));
        }
        if request.headers().get("x-vault-token").is_none_or(|token| token != "token-of-the-tests") {
            return denied();
        }
        if path == "/v1/auth/token/lookup-self" {
            let data = json!({ "accessor": "a", "creation_time": 1, "creation_ttl": 0, "display_name": "token", "entity_id": "",
                "expire_time": null, "explicit_max_ttl": 0, "id": "i", "meta": null, "num_uses": 0, "orphan": true,
                "path": "auth/token/create", "policies": ["app"], "renewable": false, "ttl": 0 });
            return respond(
                200,
                &json!({ "request_id": "r", "lease_id": "", "renewable": false, "lease_duration": 0,
                "data": data, "wrap_info": null, "warnings": null, "auth": null }),
            );
        }
        if path == "/v1/sys/events/subscribe/kv-v2/data-write" {
            let refuses = *self.refuses.lock().unwrap();
            return if refuses { denied() } else { subscribe(request, shared.clone()) };
        }
        let secret = |kind: &str| {
            let name = path.strip_prefix(&format!("/v1/kv/{kind}/"))?;
            self.secrets.lock().unwrap().get(name).cloned()
        };
        if let Some((version, value)) = secret("data") {
            let metadata = json!({ "version": version, "created_time": "t", "deletion_time": "", "destroyed": false });
            return respond(
                200,
                &json!({ "lease_id": "", "data": { "data": { "value": value }, "metadata": metadata } }),
            );
        }
        if let Some((version, _)) = secret("metadata") {
            let info = json!({ version.to_string(): { "created_time": "t", "deletion_time": "", "destroyed": false } });
            return respond(200, &json!({ "data": { "current_version": version, "versions": info } }));
        }
        respond(404, &json!({ "errors": [] }))
    }
}

fn subscribe(mut request: Request<Incoming>, state: Arc<State>) -> Response<Full<Bytes>> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_handshake = request.method() == "GET"
        && request.uri().query() == Some("json=true")
        && header("upgrade").eq_ignore_ascii_case("websocket")
        && header("connection").eq_ignore_ascii_case("upgrade")
        && header("sec-websocket-version") == "13";
    if !is_handshake {
        return respond(400, &json!({ "errors": ["not a handshake"] }));
    }
    let text = format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", header("sec-websocket-key"));
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    let accept = base64::engine::general_purpose::STANDARD.encode(digest);
    let upgrade = hyper::upgrade::on(&mut request);
    let mut frames = state.frames.subscribe();
    state.tasks.lock().unwrap().spawn(async move {
        let Ok(stream) = upgrade.await else { return };
        let mut stream = TokioIo::new(stream);
        let mut heard = [0; 256];
        loop {
            tokio::select! {
                sent = frames.recv() => match sent {
                    Ok(bytes) if !bytes.is_empty() => stream.write_all(&bytes).await.unwrap(),
                    _ => return,
                },
                // A client masks what it sends; an answer to a ping repeats it.
                read = stream.read(&mut heard) => match read {
                    Ok(read @ 2..) => assert!(heard[1] & 0x80 != 0 && matches!(heard[0], 0x88..=0x8a), "{:?}", &heard[..read]),
                    _ => return,
                },
            }
        }
    });
    let response = Response::builder().status(101).header("connection", "Upgrade").header("upgrade", "websocket");
    response.header("sec-websocket-accept", accept).body(Full::default()).unwrap()
}

/// What a server sends is not masked.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind];
    match u16::try_from(payload.len()).unwrap() {
        short @ 0..=125 => frame.push(short as u8),
        longer => {
            frame.push(126);
            frame.extend_from_slice(&longer.to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

fn respond(status: u16, body: &Value) -> Response<Full<Bytes>> {
    let response = Response::builder().status(status).header("content-type", "application/json");
    response.body(Full::new(Bytes::from(body.to_string()))).unwrap()
}
