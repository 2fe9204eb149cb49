//! Messages arrive as they were sent, byte for byte, in both directions: ten thousand generated ones, with fields that nobody knows, numbers that no
//! machine type holds, keys in any order, spaces and escapes where JSON allows them.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::mcp::Client;
use crate::support::sidecar::{Folder, Sidecar};

const PAIRS: u64 = 5_000;
const PAIRS_OVER_HTTP: u64 = 1_000;

fn sidecar(service: &str) -> Sidecar {
    let main = "version: \"1.0\"\naudit: { path: audit.log }\nservices: { it: { config_file: it.yaml } }\n";
    Sidecar::start(Folder::new(&[("mcpeg.yaml", main), ("it.yaml", service)]))
}

/// Whatever may stand between two tokens on one line.
fn space() -> impl Strategy<Value = String> {
    prop_oneof![4 => Just(String::new()), 1 => "[ \t\r]{1,3}".prop_filter("ends no line", |text| !text.ends_with('\r'))]
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        "-?[1-9][0-9]{18,60}",
        "-?(0|[1-9][0-9]{0,20})\\.[0-9]{1,20}",
        "-?[1-9](\\.[0-9]{1,3})?[eE][+-]?[0-9]{1,3}",
        Just("-0".to_owned()),
    ]
}

/// A string with some of its characters written as escapes.
fn string() -> impl Strategy<Value = String> {
    prop::collection::vec((any::<char>(), any::<u8>()), 0..12).prop_map(|characters| {
        let mut text = String::from('"');
        for (character, how) in characters {
            match (character, how % 4) {
                ('"' | '\\', 0 | 1) => text.extend(['\\', character]),
                ('/', 0) => text.push_str("\\/"),
                (_, 2 | 3) if !character.is_control() && !matches!(character, '"' | '\\') => text.push(character),
                _ => {
                    let units = &mut [0; 2];
                    for unit in character.encode_utf16(units) {
                        text.push_str(&if how % 2 == 0 { format!("\\u{unit:04x}") } else { format!("\\u{unit:04X}") });
                    }
                }
            }
        }
        text + "\""
    })
}

fn value() -> impl Strategy<Value = String> {
    let leaf =
        prop_oneof![number(), string(), prop_oneof![Just("null"), Just("true"), Just("false")].prop_map(str::to_owned)];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let list = prop::collection::vec((inner.clone(), space()), 0..4)
            .prop_map(|items| format!("[{}]", join(items.into_iter().map(|(value, space)| value + &space))));
        prop_oneof![list, object(prop::collection::vec((string(), inner), 0..4))]
    })
}

/// The members as they come.
fn object(members: impl Strategy<Value = Vec<(String, String)>>) -> impl Strategy<Value = String> {
    (members, space(), space()).prop_map(|(members, before, after)| {
        let written = members.into_iter().map(|(key, value)| format!("{before}{key}{after}:{before}{value}{after}"));
        format!("{{{}}}", join(written))
    })
}

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(",")
}

/// A message: `own` in any order, among members that nobody knows.
fn message(own: Vec<(String, BoxedStrategy<String>)>) -> impl Strategy<Value = String> {
    let own: Vec<_> = own.into_iter().map(|(key, value)| (Just(format!("\"{key}\"")), value)).collect();
    let unknown = prop::collection::vec(("[a-z]{3}[0-9]{4}".prop_map(|key| format!("\"{key}\"")), value()), 0..3);
    let members = (own, unknown).prop_map(|(own, unknown)| {
        let mut members = own;
        for (key, value) in unknown {
            if members.iter().all(|(other, _)| *other != key) {
                members.push((key, value));
            }
        }
        members
    });
    object(members.prop_shuffle())
}

fn exactly(text: impl Into<String>) -> BoxedStrategy<String> {
    Just(text.into()).boxed()
}

fn request(id: u64) -> impl Strategy<Value = String> {
    let params =
        object(prop::collection::vec(("[a-z]{1,4}[0-9]{4}".prop_map(|key| format!("\"{key}\"")), value()), 0..3));
    let method = prop_oneof![Just("\"vendor\\/odd\""), Just("\"tools/call\""), Just("\"x\"")].prop_map(str::to_owned);
    message(vec![
        ("jsonrpc".to_owned(), exactly("\"2.0\"")),
        ("id".to_owned(), exactly(format!("{id}"))),
        ("method".to_owned(), method.boxed()),
        ("params".to_owned(), params.boxed()),
    ])
}

fn answer(id: u64) -> impl Strategy<Value = String> {
    message(vec![
        ("jsonrpc".to_owned(), exactly("\"2.0\"")),
        ("id".to_owned(), exactly(format!("{id}"))),
        ("result".to_owned(), value().boxed()),
    ])
}

fn one<S: Strategy>(runner: &mut TestRunner, strategy: S) -> S::Value {
    strategy.new_tree(runner).unwrap().current()
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_messages_pass_a_program_as_they_were_sent() {
    let sidecar = sidecar("type: mcp\ncommand: [cat]\n");
    let mut client = Client::connect(&sidecar.service_socket("it")).await;
    let mut runner = TestRunner::default();
    for id in 1..=PAIRS {
        // What comes back is to the client a request of the server's, and its answer to that is the server's answer to its own.
        for sent in [one(&mut runner, request(id)), one(&mut runner, answer(id))] {
            client.send(&sent).await;
            assert_eq!(client.line().await.unwrap(), sent);
        }
        client.received.clear();
    }
}

#[derive(Default)]
struct Server {
    got: Mutex<Option<String>>,
    answers: Mutex<Option<String>>,
}

async fn reply(server: Arc<Server>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let text = String::from_utf8(body.to_vec()).unwrap();
    let answer = server.answers.lock().unwrap().take();
    let Some(answer) = answer else {
        return Ok(Response::builder().status(405).body(Full::default()).unwrap());
    };
    *server.got.lock().unwrap() = Some(text);
    Ok(Response::builder().header("content-type", "application/json").body(Full::from(answer)).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_messages_pass_an_http_upstream_as_they_were_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let server = Arc::new(Server::default());
    let mut serving = JoinSet::new();
    let of_server = server.clone();
    serving.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let server = of_server.clone();
            let service = service_fn(move |request| reply(server.clone(), request));
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            connections.spawn(async move {
                let _ = connection.await;
            });
        }
    });
    let sidecar = sidecar(&format!("type: mcp\nurl: {url}\n"));
    let mut client = Client::connect(&sidecar.service_socket("it")).await;
    let mut runner = TestRunner::default();
    for id in 1..=PAIRS_OVER_HTTP {
        let (sent, answer) = (one(&mut runner, request(id)), one(&mut runner, answer(id)));
        *server.answers.lock().unwrap() = Some(answer.clone());
        client.send(&sent).await;
        // A carriage return between two tokens becomes a space, as a line of JSON must not end there.
        assert_eq!(client.line().await.unwrap(), answer.replace('\r', " "));
        assert_eq!(server.got.lock().unwrap().take(), Some(sent));
        client.received.clear();
    }
}
