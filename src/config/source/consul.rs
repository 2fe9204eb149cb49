//! Consul's KV store: <https://developer.hashicorp.com/consul/api-docs/kv>, and its blocking queries,
//! <https://developer.hashicorp.com/consul/api-docs/features/blocking>.
//!
//! `GET v1/kv/PREFIX?recurse` reads all keys below the prefix; `X-Consul-Index` numbers the state, and the same request with `index` and `wait`
//! is answered when it has moved on. An index that goes back means that the server's state is another one: everything is read again.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::address::Address;
use super::client::{Client, Servers, is_missing};
use super::{Options, Snapshot, SourceError, WriteError, Written};

pub struct Consul {
    servers: Servers,
    prefix: String,
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pair {
    key: String,
    value: Option<String>,
    modify_index: u64,
}

impl Consul {
    pub fn new(address: &Address) -> Self {
        let servers = Servers::new(address.endpoints.clone());
        Self { servers, prefix: address.prefix.clone(), name: address.name.clone() }
    }

    pub async fn fetch(&self, options: &Options) -> Result<Snapshot, SourceError> {
        self.servers
            .try_each(options, |mut client| {
                Box::pin(async move {
                    show_token(&mut client, options)?;
                    let (index, pairs) = self.read(&client, options).await?;
                    if pairs.is_empty() {
                        return Err(SourceError::Empty { place: self.name.clone() });
                    }
                    let files = self.files(&client, &pairs)?.into_iter().map(|(name, (_, content))| (name, content));
                    Ok(Snapshot { revision: index.to_string(), index, files: files.collect() })
                })
            })
            .await
    }

    /// Waits until the index is another one than `since`, and for what may follow at once.
    pub async fn changed(&self, options: &Options, since: u64) -> Result<(), SourceError> {
        self.servers
            .try_each(options, |mut client| {
                Box::pin(async move {
                    show_token(&mut client, options)?;
                    let query = format!("keys&index={since}&wait={}s", WAIT.as_secs());
                    // The server adds up to a sixteenth of the wait.
                    let patience = WAIT + WAIT / 16 + options.timeout;
                    let response = client.answer(client.get(&self.path("", &query, options)), Some(patience)).await?;
                    let status = response.status();
                    if !status.is_success() && !is_missing(&response) {
                        return client.body(response, 0).await.map(drop);
                    }
                    if index_of(&client, &response)? != since {
                        tokio::time::sleep(SETTLE).await;
                    }
                    Ok(())
                })
            })
            .await
    }

    /// Puts files, each where its key is as it was read (`cas`).
    pub async fn put(
        &self,
        files: &BTreeMap<String, Zeroizing<Vec<u8>>>,
        options: &Options,
    ) -> Result<Written, WriteError> {
        let done = self.servers.try_each(options, |mut client| {
            Box::pin(async move {
                show_token(&mut client, options)?;
                let (_, pairs) = self.read(&client, options).await?;
                let known = self.files(&client, &pairs)?;
                let mut written = Written::default();
                for (name, content) in files {
                    let index = match known.get(name) {
                        Some((_, there)) if *there == *content => {
                            written.unchanged += 1;
                            continue;
                        }
                        Some((index, _)) => *index,
                        None => 0,
                    };
                    let request = client.put(&self.path(name, &format!("cas={index}"), options), content.to_vec());
                    let answer = client.body(client.answer(request, None).await?, 4096).await?;
                    if answer.trim_ascii() != b"true" {
                        written.lost.push(name.clone());
                        break;
                    }
                    written.written += 1;
                }
                Ok(written)
            })
        });
        done.await.map_err(WriteError::from)
    }

    async fn read(&self, client: &Client, options: &Options) -> Result<(u64, Vec<Pair>), SourceError> {
        let response = client.answer(client.get(&self.path("", "recurse", options)), None).await?;
        if is_missing(&response) {
            return Ok((index_of(client, &response)?, Vec::new()));
        }
        let index = response.status().is_success().then(|| index_of(client, &response)).transpose()?.unwrap_or(1);
        let most = options.max_size / 3 * 4 + options.max_files * 2048 + 4096;
        let body = Zeroizing::new(client.body(response, most).await?);
        Ok((index, serde_json::from_slice(&body).map_err(|error| client.unreadable(&error))?))
    }

    /// The files, each with the index of its last change.
    #[allow(clippy::type_complexity, reason = "it is taken apart where it is made")]
    fn files(
        &self,
        client: &Client,
        pairs: &[Pair],
    ) -> Result<BTreeMap<String, (u64, Zeroizing<Vec<u8>>)>, SourceError> {
        let mut files = BTreeMap::new();
        for pair in pairs {
            let content = STANDARD.decode(pair.value.as_deref().unwrap_or_default());
            let content = Zeroizing::new(content.map_err(|error| client.unreadable(&error))?);
            let name = pair.key.strip_prefix(&self.prefix).unwrap_or(&pair.key);
            // A key that ends with `/` is how Consul's own page makes a folder.
            if name.is_empty() || (name.ends_with('/') && content.is_empty()) {
                continue;
            }
            files.insert(name.to_owned(), (pair.modify_index, content));
        }
        Ok(files)
    }

    fn path(&self, name: &str, query: &str, options: &Options) -> String {
        let key = utf8_percent_encode(&self.prefix, KEY).to_string() + &utf8_percent_encode(name, KEY).to_string();
        let mut path = format!("/v1/kv/{key}?{query}");
        for (parameter, value) in [("dc", &options.datacenter), ("ns", &options.namespace)] {
            if let Some(value) = value {
                path.push_str(&format!("&{parameter}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
            }
        }
        path
    }
}

fn show_token(client: &mut Client, options: &Options) -> Result<(), SourceError> {
    match &options.token_file {
        Some(path) => client.credential("x-consul-token", path, ""),
        None => Ok(()),
    }
}

/// Never 0, which would not block.
fn index_of(client: &Client, response: &reqwest::Response) -> Result<u64, SourceError> {
    let index = response.headers().get("x-consul-index").and_then(|index| index.to_str().ok()?.parse::<u64>().ok());
    index.map(|index| index.max(1)).ok_or_else(|| client.unreadable(&"it has no X-Consul-Index"))
}

/// What stands for itself in a key's path.
const KEY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const WAIT: Duration = Duration::from_secs(55);
/// Somebody who writes several keys one after the other is waited for.
const SETTLE: Duration = Duration::from_millis(150);
