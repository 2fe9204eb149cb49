//! A TCP proxy on loopback that counts the connections and the HTTP/1.1 requests that go through it, keeps what was asked and when, and
//! can stand in the way: cut what comes, leave it without an answer, or answer in the server's place.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub struct Counting {
    pub address: String,
    counts: Arc<Counts>,
    mode: watch::Sender<Mode>,
    _tasks: JoinSet<()>,
}

/// What becomes of connections, also of those that are open when it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// They are closed.
    Cut,
    /// They are taken and nothing is answered.
    Hang,
    /// Each request is answered with this status and no words.
    Answer(u16),
}

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    asked: Mutex<Vec<Request>>,
}

/// The first line of a request without its version, `GET /v1/secret/data/app`, and when it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub line: String,
    pub at: Instant,
}

impl Counting {
    pub async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let counts = Arc::new(Counts::default());
        let mode = watch::Sender::new(Mode::Pass);
        let mut tasks = JoinSet::new();
        let (counting, modes) = (counts.clone(), mode.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                counting.connections.fetch_add(1, Ordering::SeqCst);
                let (counts, mut mode) = (counting.clone(), modes.subscribe());
                connections.spawn(async move {
                    let now = *mode.borrow_and_update();
                    tokio::select! {
                        () = treat(client, port, &counts, now) => {}
                        _ = mode.changed() => {}
                    }
                });
            }
        });
        Self { address, counts, mode, _tasks: tasks }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    pub fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> usize {
        self.counts.asked.lock().unwrap().len()
    }

    /// The requests whose line has `words`, from the first on.
    pub fn asked(&self, words: &str) -> Vec<Request> {
        self.counts.asked.lock().unwrap().iter().filter(|request| request.line.contains(words)).cloned().collect()
    }
}

impl Counts {
    /// A request's first line is written at once, with the rest of its head.
    fn note(&self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        let lines = text.lines().filter_map(|line| line.strip_suffix(" HTTP/1.1"));
        let at = Instant::now();
        self.asked.lock().unwrap().extend(lines.map(|line| Request { line: line.to_owned(), at }));
    }
}

async fn treat(client: TcpStream, port: u16, counts: &Counts, mode: Mode) {
    match mode {
        Mode::Pass => pass(client, port, counts).await,
        Mode::Cut => drop(client),
        Mode::Hang => {
            std::future::pending::<()>().await;
            drop(client);
        }
        Mode::Answer(status) => answer(client, counts, status).await,
    }
}

async fn pass(client: TcpStream, port: u16, counts: &Counts) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let there = async {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from_client.read(&mut bytes).await {
            counts.note(&bytes[..read]);
            if to_server.write_all(&bytes[..read]).await.is_err() {
                break;
            }
        }
    };
    let back = async {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
    };
    tokio::select! { () = there => {} () = back => {} }
}

async fn answer(mut client: TcpStream, counts: &Counts, status: u16) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = client.read(&mut bytes).await {
        counts.note(&bytes[..read]);
        let answer = format!("HTTP/1.1 {status} Nothing\r\ncontent-length: 0\r\n\r\n");
        if client.write_all(answer.as_bytes()).await.is_err() {
            break;
        }
    }
}
