//! A connection of the HTTP+SSE transport, which servers of the version 2024-11-05 have: one GET stays open and brings every message of the
//! server; its first event names the address to which each message of the client is POSTed.
//!
//! To its session it is a pair of pipes like a child's. Messages go one after the other, in order. Credentials are read for the GET, and anew
//! for each POST. Invariants: an address of another origin than the configured one is not used, for the credentials would go there; what a
//! server says with an error is not told on.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{RequestBuilder, Response, Url};
use tokio::io::{DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::exchange::{is_stream, one_line, refusal, transport};
use super::headers::{self, Authorized};
use super::sse::Parser;
use super::{Surroundings, exchange::Trouble};
use crate::mcp::credentials::{self, CredentialError};
use crate::mcp::lines::{Lines, Progress};
use crate::mcp::settings::{HttpSettings, ServiceSettings};
use crate::ports::Hold;

type Pipe = Lines<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>;

pub struct Connection {
    pub lines: Pipe,
    pub versions: Arc<[String]>,
    pub started: Instant,
    far: JoinSet<String>,
    how: Option<String>,
    _holds: Vec<Hold>,
}

impl Connection {
    /// Begins to connect; what is pushed meanwhile is sent when the server has said where to.
    pub fn open(
        around: &Surroundings,
        settings: Arc<ServiceSettings>,
        http: &HttpSettings,
    ) -> Result<Self, CredentialError> {
        let limit = around.limits.max_message_bytes;
        let (near, far) = duplex(PIPE);
        let pipe = |stream| {
            let (reader, writer) = split(stream);
            Lines::new(reader, writer, limit)
        };
        let peer = Far { around: around.clone(), settings, http: http.clone() };
        let versions = peer.authorized()?.versions;
        let mut task = JoinSet::new();
        let far = pipe(far);
        task.spawn(async move { peer.serve(far).await.map_or_else(|trouble| trouble.message, |()| CLOSED.to_owned()) });
        let _holds = credentials::hold(&versions, &*around.secrets);
        Ok(Self { lines: pipe(near), versions, started: Instant::now(), far: task, how: None, _holds })
    }

    pub async fn ended(&mut self) {
        ended(&mut self.far, &mut self.how).await;
    }

    pub async fn event(&mut self, read: bool) -> Option<std::io::Result<Progress>> {
        tokio::select! {
            // What has come before the end comes first.
            biased;
            progress = self.lines.progress(read) => Some(progress),
            () = ended(&mut self.far, &mut self.how) => None,
        }
    }

    pub fn reap(&mut self) -> String {
        self.far.abort_all();
        let ended = self.far.try_join_next().and_then(Result::ok);
        self.how.take().or(ended).unwrap_or_else(|| CLOSED.to_owned())
    }

    pub async fn stop(self, patience: Duration) {
        let Self { mut lines, mut far, .. } = self;
        lines.flush(patience).await;
        drop(lines);
        // Whatever is left is ended when `far` is dropped.
        let _ = timeout(patience, far.join_next()).await;
    }
}

async fn ended(far: &mut JoinSet<String>, how: &mut Option<String>) {
    if let Some(ended) = far.join_next().await {
        *how = ended.ok();
    }
}

/// The end at the server.
struct Far {
    around: Surroundings,
    settings: Arc<ServiceSettings>,
    http: HttpSettings,
}

type Posting<'a> = Pin<Box<dyn Future<Output = Result<(), Trouble>> + Send + 'a>>;

impl Far {
    async fn serve(&self, mut pipe: Pipe) -> Result<(), Trouble> {
        let patience = self.settings.timeout;
        let late =
            |_| Trouble::new("timeout", format_args!("the upstream did not open its stream within {patience:?}"));
        let response = timeout(patience, self.get()).await.map_err(late)??;
        let mut chunks = response.bytes_stream();
        let mut parser = Parser::new(self.around.limits.max_message_bytes);
        let mut posting: Option<Posting<'_>> = None;
        let mut address: Option<Url> = None;
        loop {
            if let Some(address) = address.clone().filter(|_| posting.is_none())
                && let Some(line) = pipe.next_line()
            {
                let line = line.map_err(|_| Trouble::new("message_too_large", "a message is too large"))?;
                posting = Some(Box::pin(self.post(address, line)));
            }
            tokio::select! {
                progress = pipe.progress(posting.is_none() && address.is_some()) => match progress {
                    Ok(Progress::Read | Progress::Room) => {}
                    Ok(Progress::Ended | Progress::Broken) | Err(_) => return Ok(()),
                },
                done = finished(&mut posting) => {
                    posting = None;
                    done?;
                }
                chunk = chunks.next(), if !pipe.congested() => {
                    let chunk = chunk.ok_or_else(|| Trouble::new("stream_ended", "its stream ended"))?;
                    let chunk = chunk.map_err(|error| transport(&self.http.url, &error))?;
                    parser.push(&chunk).map_err(|error| Trouble::new("message_too_large", error))?;
                    if let Some(told) = parser.take_endpoint() {
                        address = Some(self.address(&told)?);
                        self.around.service.speaks_older();
                    }
                    while let Some(event) = parser.next() {
                        pipe.push(&one_line(event.data));
                    }
                }
            }
        }
    }

    async fn get(&self) -> Result<Response, Trouble> {
        let request = |authorized: &Authorized, client: &reqwest::Client| {
            client.get(authorized.url.clone()).header(ACCEPT, "text/event-stream")
        };
        let response = self.ask(None, request).await?;
        if is_stream(&response) {
            Ok(response)
        } else {
            Err(Trouble::new("bad_answer", "the upstream answered GET with no stream of events"))
        }
    }

    async fn post(&self, address: Url, line: Bytes) -> Result<(), Trouble> {
        let patience = self.settings.timeout;
        let request = |authorized: &Authorized, client: &reqwest::Client| {
            client.post(authorized.url.clone()).header(CONTENT_TYPE, "application/json").body(line.clone())
        };
        let late = |_| Trouble::new("timeout", format_args!("the upstream did not take a message within {patience:?}"));
        timeout(patience, self.ask(Some(address), request)).await.map_err(late)?.map(drop)
    }

    /// Asks with the credentials as they are, and once more with others if the server refuses these.
    async fn ask(
        &self,
        address: Option<Url>,
        request: impl Fn(&Authorized, &reqwest::Client) -> RequestBuilder,
    ) -> Result<Response, Trouble> {
        let mut is_second = false;
        loop {
            let clients = self.clients()?;
            let url = address.as_ref().unwrap_or(clients.url());
            let authorized = headers::credentials(&self.http, url, &*self.around.secrets)
                .map_err(|error| Trouble::new("credential_unavailable", error))?;
            let sent = request(&authorized, &clients.current()).headers(authorized.headers.clone()).send().await;
            let response = sent.map_err(|error| transport(&self.http.url, &error))?;
            if response.status().is_success() {
                return Ok(response);
            }
            let refusal = refusal(response.status());
            if !refusal.is_unauthorized() || std::mem::replace(&mut is_second, true) {
                return Err(refusal);
            }
            let Surroundings { service, secrets, control, .. } = &self.around;
            service.refresh(&**secrets, &**control, &authorized.versions).await;
            if *credentials::versions(&self.settings, &**secrets) == *authorized.versions {
                return Err(refusal);
            }
        }
    }

    fn clients(&self) -> Result<Arc<super::client::HttpClients>, Trouble> {
        self.around.service.http().ok_or_else(|| Trouble::new("settings_changed", "the settings have changed"))
    }

    fn authorized(&self) -> Result<Authorized, CredentialError> {
        headers::credentials(&self.http, &self.http.url, &*self.around.secrets)
    }

    /// Where messages are to be POSTed.
    fn address(&self, told: &str) -> Result<Url, Trouble> {
        let clients = self.clients()?;
        let address = clients.url().join(told.trim()).ok().filter(|address| address.origin() == clients.url().origin());
        address.ok_or_else(|| Trouble::new("bad_answer", "the upstream wants messages to be sent to another origin"))
    }
}

async fn finished(posting: &mut Option<Posting<'_>>) -> Result<(), Trouble> {
    match posting {
        Some(posting) => posting.as_mut().await,
        None => std::future::pending().await,
    }
}

const PIPE: usize = 64 * 1024;
const CLOSED: &str = "it was closed";
