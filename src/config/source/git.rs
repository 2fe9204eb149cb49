//! A Git repository, over HTTP(S) or as a folder on this machine: one commit's files, read only.
//!
//! Over HTTP the reference is looked up; when it is another commit than before, that one commit is fetched (depth 1) into a bare repository
//! that is removed when its files have been read. A folder is opened where it is. Nothing of a user's or the system's Git configuration counts,
//! nothing is checked out, no hook and no other program runs, and submodules and symbolic links are left out. It blocks, so it is on a thread
//! for that, and is interrupted when it takes too long.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gix::progress::Discard;
use gix::protocol::transport::client::blocking_io::http;
use gix::remote::Direction;
use gix::remote::fetch::{Shallow, Tags};
use url::Url;
use zeroize::Zeroizing;

use super::address::Address;
use super::client::secret_header;
use super::scratch::Scratch;
use super::signature::Signers;
use super::{DEEPEST, Options, Snapshot, SourceError, credential};

#[derive(Clone)]
pub struct Git {
    url: Url,
    reference: String,
    prefix: String,
    name: String,
}

impl Git {
    pub fn new(address: &Address) -> Result<Self, String> {
        let url = address.endpoints.first().ok_or("the address names no repository")?.clone();
        let reference = address.reference.clone().unwrap_or_else(|| "HEAD".to_owned());
        Ok(Self { url, reference, prefix: address.prefix.clone(), name: address.name.clone() })
    }

    /// `None`: the reference is still at the commit `known`.
    pub async fn fetch(&self, options: &Options, known: Option<String>) -> Result<Option<Snapshot>, SourceError> {
        let interrupt = Arc::new(AtomicBool::new(false));
        let (git, options, flag) = (self.clone(), options.clone(), interrupt.clone());
        let patience = options.timeout * REQUESTS;
        let work = tokio::task::spawn_blocking(move || git.read(&options, known.as_deref(), &flag));
        match tokio::time::timeout(patience, work).await {
            Ok(Ok(read)) => read,
            Ok(Err(error)) => Err(self.unreadable(error)),
            Err(_) => {
                interrupt.store(true, Ordering::Relaxed);
                let reason = format!("not fetched within {} s", patience.as_secs_f32());
                Err(SourceError::Away { place: self.name.clone(), reason })
            }
        }
    }

    fn read(&self, options: &Options, known: Option<&str>, flag: &AtomicBool) -> Result<Option<Snapshot>, SourceError> {
        if self.url.scheme() == "file" {
            let path = self.url.to_file_path().map_err(|()| self.unreadable("the path is none of this machine"))?;
            let repository = gix::open_opts(path, isolated()).map_err(|error| self.away(&error))?;
            let id = repository.rev_parse_single(self.reference.as_str()).map_err(|error| self.away(&error))?;
            let id = id.object().map_err(|error| self.away(&error))?.id;
            return self.snapshot(&repository, id, options, known);
        }
        let failed =
            |error: std::io::Error| SourceError::File { path: options.keep.clone(), reason: error.to_string() };
        let folder = Scratch::new(&options.keep).map_err(failed)?;
        let kind = gix::create::Kind::Bare;
        let repository =
            gix::ThreadSafeRepository::init_opts(folder.path(), kind, gix::create::Options::default(), isolated());
        let repository = repository.map_err(|error| self.unreadable(error))?.to_thread_local();
        match self.receive(&repository, options, known, flag)? {
            Some(id) => self.snapshot(&repository, id, options, None),
            None => Ok(None),
        }
    }

    /// Fetches the commit of the reference. `None`: it is `known`.
    fn receive(
        &self,
        repository: &gix::Repository,
        options: &Options,
        known: Option<&str>,
        flag: &AtomicBool,
    ) -> Result<Option<gix::ObjectId>, SourceError> {
        let remote = repository.remote_at_without_url_rewrite(self.url.as_str());
        let remote = remote.map_err(|error| self.unreadable(error))?.with_fetch_tags(Tags::None);
        let remote = remote.with_refspecs([self.reference.as_str()], Direction::Fetch);
        let remote = remote.map_err(|error| self.unreadable(error))?;
        let mut connection = remote.connect(Direction::Fetch).map_err(|error| self.away(&error))?;
        connection.set_credentials(|_| Ok(None));
        connection.set_transport_options(Box::new(self.transport(options)?));
        let prepared = connection.prepare_fetch(Discard, gix::remote::ref_map::Options::default());
        let prepared = prepared.map_err(|error| self.away(&error))?;
        let found = prepared.ref_map().mappings.first().and_then(|mapping| mapping.remote.as_id());
        let Some(id) = found.map(ToOwned::to_owned) else {
            return Err(SourceError::Empty { place: format!("{}: no reference `{}`", self.name, self.reference) });
        };
        if known.is_some_and(|known| id.to_hex() == known) {
            return Ok(None);
        }
        let depth = Shallow::DepthAtRemote(NonZeroU32::MIN);
        prepared.with_shallow(depth).receive(Discard, flag).map_err(|error| self.away(&error))?;
        Ok(Some(id))
    }

    /// TLS, credentials and waits of the requests. Redirections are not followed.
    fn transport(&self, options: &Options) -> Result<http::Options, SourceError> {
        let header = self.authorization(options)?;
        let config = options.tls.client_config(self.url.scheme());
        let config =
            config.map_err(|error| SourceError::Away { place: self.name.clone(), reason: error.to_string() })?;
        let timeout = options.timeout;
        let backend = http::reqwest::Options {
            configure_client: Some(Box::new(move |builder| {
                let builder = builder.tls_backend_preconfigured(config.clone()).no_proxy();
                Ok(builder.connect_timeout(timeout).timeout(timeout * REQUESTS))
            })),
            configure_request: Some(Box::new(move |request| {
                if let Some(header) = &header {
                    request.headers_mut().insert(::http::header::AUTHORIZATION, header.clone());
                }
                Ok(())
            })),
        };
        Ok(http::Options {
            follow_redirects: http::options::FollowRedirects::None,
            backend: Some(Arc::new(Mutex::new(backend))),
            ..http::Options::default()
        })
    }

    fn authorization(&self, options: &Options) -> Result<Option<::http::HeaderValue>, SourceError> {
        let (path, value) = match (&options.token_file, &options.password_file) {
            (Some(path), _) if options.username.is_none() => {
                let mut value = Zeroizing::new(b"Bearer ".to_vec());
                value.extend_from_slice(credential(path)?.expose());
                (path, value)
            }
            (Some(path), _) | (None, Some(path)) => {
                let mut pair =
                    Zeroizing::new(format!("{}:", options.username.as_deref().unwrap_or("git")).into_bytes());
                pair.extend_from_slice(credential(path)?.expose());
                (path, Zeroizing::new(format!("Basic {}", STANDARD.encode(&pair)).into_bytes()))
            }
            (None, None) => return Ok(None),
        };
        let header = secret_header(&value);
        header.map(Some).map_err(|reason| SourceError::File { path: path.clone(), reason })
    }

    fn snapshot(
        &self,
        repository: &gix::Repository,
        id: gix::ObjectId,
        options: &Options,
        known: Option<&str>,
    ) -> Result<Option<Snapshot>, SourceError> {
        let object = repository.find_object(id).map_err(|error| self.unreadable(error))?;
        let commit = object.peel_to_commit().map_err(|error| self.unreadable(error))?;
        let revision = commit.id.to_hex().to_string();
        if known == Some(revision.as_str()) {
            return Ok(None);
        }
        if let Some(path) = &options.allowed_signers {
            let untrusted = |reason: String| SourceError::Untrusted { place: format!("commit {revision}"), reason };
            let signature = commit.signature().map_err(|error| untrusted(error.to_string()))?;
            let (signature, signed) = signature.ok_or_else(|| untrusted("it is not signed".to_owned()))?;
            Signers::read(path)?.verify(&signature, &signed.to_bstring()).map_err(untrusted)?;
        }
        let mut tree = commit.tree().map_err(|error| self.unreadable(error))?;
        let folder = self.prefix.trim_end_matches('/');
        if !folder.is_empty() {
            let entry = tree.lookup_entry_by_path(folder).map_err(|error| self.unreadable(error))?;
            let entry = entry.filter(|entry| entry.mode().is_tree());
            let entry =
                entry.ok_or_else(|| SourceError::Empty { place: format!("{}: no folder `{folder}`", self.name) })?;
            tree = entry.object().map_err(|error| self.unreadable(error))?.into_tree();
        }
        let mut files = BTreeMap::new();
        self.collect(repository, &tree, "", 0, &mut files, options)?;
        Ok(Some(Snapshot { revision, index: 0, files }))
    }

    fn collect(
        &self,
        repository: &gix::Repository,
        tree: &gix::Tree<'_>,
        folder: &str,
        depth: usize,
        files: &mut BTreeMap<String, Zeroizing<Vec<u8>>>,
        options: &Options,
    ) -> Result<(), SourceError> {
        if depth > DEEPEST || files.len() > options.max_files {
            return Err(SourceError::Bounds { place: self.name.clone(), what: "too many files or folders".to_owned() });
        }
        for entry in tree.iter() {
            let entry = entry.map_err(|error| self.unreadable(error))?;
            let name = format!("{folder}{}", entry.filename());
            let mode = entry.mode();
            if mode.is_tree() {
                let below =
                    repository.find_object(entry.object_id()).map_err(|error| self.unreadable(error))?.into_tree();
                self.collect(repository, &below, &format!("{name}/"), depth + 1, files, options)?;
            } else if mode.is_blob() {
                let size = repository.find_header(entry.object_id()).map_err(|error| self.unreadable(error))?.size();
                if size > options.max_size as u64 {
                    return Err(SourceError::Bounds {
                        place: self.name.clone(),
                        what: format!("`{name}` of {size} bytes"),
                    });
                }
                let mut blob = repository.find_object(entry.object_id()).map_err(|error| self.unreadable(error))?;
                files.insert(name, Zeroizing::new(std::mem::take(&mut blob.data)));
            }
        }
        Ok(())
    }

    fn away(&self, error: &dyn std::fmt::Display) -> SourceError {
        SourceError::Away { place: self.name.clone(), reason: one_line(error) }
    }

    fn unreadable(&self, error: impl std::fmt::Display) -> SourceError {
        SourceError::Answer { place: self.name.clone(), reason: one_line(&error) }
    }
}

/// Nothing of this machine's Git configuration, environment or attributes.
fn isolated() -> gix::open::Options {
    gix::open::Options::isolated()
}

fn one_line(error: &dyn std::fmt::Display) -> String {
    let text = format!("{error:#}");
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
}

/// All of a fetch may take so many times as long as a request.
const REQUESTS: u32 = 6;
