//! etcd v3 by its HTTP/JSON gateway: <https://etcd.io/docs/v3.6/dev-guide/api_grpc_gateway/>.
//!
//! One range reads all keys below the prefix at one revision; a watch from the next revision on tells of changes. Keys and values are base64,
//! numbers are texts. With a user, `v3/auth/authenticate` gives a token, anew for each fetch and each wait.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::address::Address;
use super::client::{Client, Servers, secret_header, words};
use super::{Options, Snapshot, SourceError, credential};

pub struct Etcd {
    servers: Servers,
    prefix: String,
    name: String,
}

#[derive(Deserialize)]
struct Range {
    header: Header,
    #[serde(default)]
    kvs: Vec<KeyValue>,
}

#[derive(Deserialize)]
struct Header {
    revision: String,
}

#[derive(Deserialize)]
struct KeyValue {
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    mod_revision: String,
}

#[derive(Deserialize)]
struct Authenticated {
    token: String,
}

/// What a transaction came to.
#[derive(Deserialize)]
struct Transaction {
    #[serde(default)]
    succeeded: bool,
}

impl Etcd {
    pub fn new(address: &Address) -> Self {
        let servers = Servers::new(address.endpoints.clone());
        Self { servers, prefix: address.prefix.clone(), name: address.name.clone() }
    }

    pub async fn fetch(&self, options: &Options) -> Result<Snapshot, SourceError> {
        self.servers
            .try_each(options, |mut client| {
                Box::pin(async move {
                    authenticate(&mut client, options).await?;
                    let range = self.range(&client, options).await?;
                    if range.kvs.is_empty() {
                        return Err(SourceError::Empty { place: self.name.clone() });
                    }
                    self.snapshot(&client, range)
                })
            })
            .await
    }

    /// Waits for a change after revision `since`, and then until the changes have paused.
    pub async fn changed(&self, options: &Options, since: u64) -> Result<(), SourceError> {
        self.servers
            .try_each(options, |mut client| {
                Box::pin(async move {
                    authenticate(&mut client, options).await?;
                    let (key, end) = self.bounds();
                    let request = json!({ "create_request": {
                        "key": key, "range_end": end, "start_revision": (since + 1).to_string(),
                    }});
                    let response =
                        client.answer(client.post("/v3/watch", request.to_string().into_bytes()), None).await?;
                    if !response.status().is_success() {
                        return client.body(response, 0).await.map(drop);
                    }
                    // A silent loss of the way there is met by a look from time to time.
                    match tokio::time::timeout(LONGEST_WATCH, told(&client, response)).await {
                        Ok(told) => told,
                        Err(_) => Ok(()),
                    }
                })
            })
            .await
    }

    /// Puts files where the keys are as they were read: all in one transaction, or in several when one would be too large.
    pub async fn put(
        &self,
        files: &BTreeMap<String, Zeroizing<Vec<u8>>>,
        options: &Options,
    ) -> Result<super::Written, super::WriteError> {
        let done = self.servers.try_each(options, |mut client| {
            Box::pin(async move {
                authenticate(&mut client, options).await?;
                let range = self.range(&client, options).await?;
                let known = self.revisions(&client, &range)?;
                let mut written = super::Written::default();
                let differ = files.iter().filter(|(name, content)| match known.get(*name) {
                    Some((_, there)) if *there == **content => {
                        written.unchanged += 1;
                        false
                    }
                    _ => true,
                });
                let differ: Vec<(&String, &Zeroizing<Vec<u8>>)> = differ.collect();
                for part in parts(&differ) {
                    let revision = |name: &String| known.get(name).map_or("0", |(revision, _)| revision.as_str());
                    let compare: Vec<_> = part.iter().map(|(name, _)| json!({
                    "key": self.key(name), "target": "MOD", "result": "EQUAL", "mod_revision": revision(name),
                })).collect();
                    let success: Vec<_> = part
                        .iter()
                        .map(|(name, content)| {
                            json!({ "request_put": {
                                "key": self.key(name), "value": STANDARD.encode(content),
                            }})
                        })
                        .collect();
                    let body = json!({ "compare": compare, "success": success }).to_string().into_bytes();
                    let response = client.answer(client.post("/v3/kv/txn", body), None).await?;
                    let body = client.body(response, 1024 * 1024).await?;
                    let done: Transaction = serde_json::from_slice(&body).map_err(|error| client.unreadable(&error))?;
                    if !done.succeeded {
                        written.lost = part.iter().map(|(name, _)| (*name).clone()).collect();
                        break;
                    }
                    written.written += part.len();
                }
                Ok(written)
            })
        });
        done.await.map_err(super::WriteError::from)
    }

    async fn range(&self, client: &Client, options: &Options) -> Result<Range, SourceError> {
        let (key, end) = self.bounds();
        let request = json!({ "key": key, "range_end": end, "limit": (options.max_files + 1).to_string() });
        let response = client.answer(client.post("/v3/kv/range", request.to_string().into_bytes()), None).await?;
        // base64, and the names around it.
        let most = options.max_size / 3 * 4 + options.max_files * 2048 + 4096;
        let body = Zeroizing::new(client.body(response, most).await?);
        serde_json::from_slice(&body).map_err(|error| client.unreadable(&error))
    }

    fn snapshot(&self, client: &Client, range: Range) -> Result<Snapshot, SourceError> {
        let index = range.header.revision.parse().map_err(|_| client.unreadable(&"its revision is no number"))?;
        let files = self.revisions(client, &range)?.into_iter().map(|(name, (_, content))| (name, content));
        Ok(Snapshot { revision: range.header.revision, index, files: files.collect() })
    }

    /// The files, each with the revision of its last change.
    #[allow(clippy::type_complexity, reason = "it is taken apart where it is made")]
    fn revisions(
        &self,
        client: &Client,
        range: &Range,
    ) -> Result<BTreeMap<String, (String, Zeroizing<Vec<u8>>)>, SourceError> {
        let mut files = BTreeMap::new();
        for pair in &range.kvs {
            let key = STANDARD.decode(&pair.key).map_err(|error| client.unreadable(&error))?;
            let key = String::from_utf8(key).map_err(|_| client.unreadable(&"a key is not UTF-8"))?;
            let content = STANDARD.decode(&pair.value).map_err(|error| client.unreadable(&error))?;
            let name = key.strip_prefix(&self.prefix).unwrap_or(&key);
            // A key with the name of a folder, as some tools make them.
            if name.is_empty() || (name.ends_with('/') && content.is_empty()) {
                continue;
            }
            files.insert(name.to_owned(), (pair.mod_revision.clone(), Zeroizing::new(content)));
        }
        Ok(files)
    }

    fn key(&self, name: &str) -> String {
        STANDARD.encode(format!("{}{name}", self.prefix))
    }

    /// The first key of the prefix and the first one after it, both in base64; a single zero byte stands for "to the end".
    fn bounds(&self) -> (String, String) {
        let mut end = self.prefix.clone().into_bytes();
        while end.last() == Some(&0xff) {
            end.pop();
        }
        match end.last_mut() {
            Some(last) => *last += 1,
            None => end.push(0),
        }
        let start = if self.prefix.is_empty() { vec![0] } else { self.prefix.clone().into_bytes() };
        (STANDARD.encode(start), STANDARD.encode(end))
    }
}

/// With a user in the options, a token for what follows.
async fn authenticate(client: &mut Client, options: &Options) -> Result<(), SourceError> {
    let (Some(user), Some(path)) = (&options.username, &options.password_file) else { return Ok(()) };
    let secret = credential(path)?;
    let password = secret
        .expose_str()
        .ok_or_else(|| SourceError::File { path: path.clone(), reason: "the password is not UTF-8".to_owned() })?;
    let request = json!({ "name": user, "password": password }).to_string().into_bytes();
    let response = client.answer(client.post("/v3/auth/authenticate", request), None).await?;
    let body = Zeroizing::new(client.body(response, 64 * 1024).await?);
    let answer: Authenticated = serde_json::from_slice(&body).map_err(|error| client.unreadable(&error))?;
    let token = Zeroizing::new(answer.token);
    let header = secret_header(token.as_bytes()).map_err(|reason| client.unreadable(&reason))?;
    client.headers.insert(http::header::AUTHORIZATION, header);
    Ok(())
}

/// Reads the stream of a watch: a line of JSON when it begins, one for each change. Completes at the first change that is followed by a pause.
async fn told(client: &Client, response: reqwest::Response) -> Result<(), SourceError> {
    let mut stream = response.bytes_stream();
    let mut line = Vec::new();
    loop {
        let piece = match stream.next().await {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => return Err(SourceError::Away { place: client.place(), reason: words(&error) }),
            None => return Err(SourceError::Away { place: client.place(), reason: "the watch has ended".to_owned() }),
        };
        line.extend_from_slice(&piece);
        // A long line is one with values in it, which is a change.
        let text = String::from_utf8_lossy(&line);
        if text.contains("\"events\"") || line.len() > LONGEST_LINE || text.contains("\"compact_revision\"") {
            break;
        }
        if text.contains("\"error\"") || text.contains("\"canceled\":true") {
            let reason = text.chars().filter(|c| !c.is_control()).take(200).collect();
            return Err(SourceError::Answer { place: client.place(), reason });
        }
        if line.ends_with(b"\n") {
            line.clear();
        }
    }
    let latest = tokio::time::Instant::now() + LONGEST_SETTLE;
    while tokio::time::Instant::now() < latest {
        if tokio::time::timeout(SETTLE, stream.next()).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// A file to be written.
type File<'f> = (&'f String, &'f Zeroizing<Vec<u8>>);

/// As many files as go into one transaction.
fn parts<'f>(files: &[File<'f>]) -> Vec<Vec<File<'f>>> {
    let mut parts: Vec<Vec<File<'f>>> = Vec::new();
    let mut bytes = 0;
    for file in files {
        let size = file.0.len() + file.1.len();
        if parts.last().is_none_or(|part| part.len() >= MOST_OPERATIONS || bytes + size > MOST_BYTES) {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(part) = parts.last_mut() {
            part.push(*file);
        }
    }
    parts
}

const LONGEST_WATCH: Duration = Duration::from_secs(60);
const LONGEST_LINE: usize = 64 * 1024;
/// Somebody who writes several keys one after the other is waited for.
const SETTLE: Duration = Duration::from_millis(100);
const LONGEST_SETTLE: Duration = Duration::from_millis(400);
/// Of one transaction, as etcd's own defaults have them: 128 operations, 1.5 MiB.
const MOST_OPERATIONS: usize = 100;
const MOST_BYTES: usize = 1024 * 1024;
