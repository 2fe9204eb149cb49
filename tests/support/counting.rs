//! A TCP proxy on loopback that counts the connections and the HTTP/1.1 requests that go through it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

pub struct Counting {
    pub address: String,
    counts: Arc<Counts>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    requests: AtomicUsize,
}

impl Counting {
    pub async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let counts = Arc::new(Counts::default());
        let mut tasks = JoinSet::new();
        let counting = counts.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                counting.connections.fetch_add(1, Ordering::SeqCst);
                let counts = counting.clone();
                connections.spawn(async move { pass(client, port, &counts).await });
            }
        });
        Self { address, counts, _tasks: tasks }
    }

    pub fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> usize {
        self.counts.requests.load(Ordering::SeqCst)
    }
}

async fn pass(client: TcpStream, port: u16, counts: &Counts) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let there = async {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from_client.read(&mut bytes).await {
            // A request's first line is written at once, with the rest of its head.
            let lines = bytes[..read].windows(11).filter(|window| window == b" HTTP/1.1\r\n");
            counts.requests.fetch_add(lines.count(), Ordering::SeqCst);
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
