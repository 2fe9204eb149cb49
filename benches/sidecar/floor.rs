//! The floor: a bare relay from a Unix socket to a child's pipes. It reads each line's envelope, as any proxy must, and does nothing with
//! it: no policy, no audit, no metrics, no limits.

use std::path::Path;
use std::process::Stdio;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Command;
use tokio::task::JoinSet;

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: Option<&'a str>,
}

pub fn serve(socket: &Path) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = UnixListener::bind(socket).expect("the socket's path is free");
        let mut relays = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            relays.spawn(relay(stream));
        }
    });
}

async fn relay(stream: UnixStream) {
    let myself = std::env::current_exe().expect("this program has a path");
    let mut child = Command::new(myself)
        .args(["echo-upstream", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the upstream starts");
    let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    let (reader, writer) = stream.into_split();
    tokio::select! {
        () = lines(reader, input) => {}
        () = lines(output, writer) => {}
    }
}

async fn lines(from: impl AsyncRead + Unpin, to: impl AsyncWrite + Unpin) {
    let mut from = BufReader::with_capacity(64 * 1024, from);
    let mut to = BufWriter::with_capacity(64 * 1024, to);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
        let envelope: Envelope<'_> = serde_json::from_slice(&line).expect("the bench sends JSON");
        std::hint::black_box((envelope.id.map(RawValue::get), envelope.method));
        if to.write_all(&line).await.is_err() {
            return;
        }
        line.clear();
        if from.buffer().is_empty() && to.flush().await.is_err() {
            return;
        }
    }
}
