//! Runs the sessions, and tells the services when one of their secrets or files has changed.
//!
//! One task for each client and one for each service, all in the `JoinSet`s of this part. On shutdown every
//! session answers what is under way and ends; what has not ended after `limits.drain` is cut off.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::timeout;

use super::cache::Answers;
use super::call::Peer;
use super::credentials;
use super::http::Start;
use super::http::connection::{self, Speaks};
use super::lines::Lines;
use super::listener::{Accepted, Stream};
use super::registry::{Registry, Shared, Target};
use super::router::Router;
use super::service::Service;
use super::session::Session;
use super::upstream::Surroundings;
use crate::lifecycle::{PartError, Shutdown};

pub async fn run(
    shared: Arc<Shared>,
    mut accepted: mpsc::Receiver<Accepted>,
    mut starts: mpsc::Receiver<Start>,
    mut shutdown: Shutdown,
) -> Result<(), PartError> {
    let mut registry = shared.registry.subscribe();
    let mut sessions = JoinSet::new();
    let mut watchers = Watchers::default();
    loop {
        watchers.reconcile(&shared, &registry.borrow_and_update().clone());
        tokio::select! {
            () = shutdown.requested() => break,
            Some(connection) = accepted.recv() => {
                sessions.spawn(serve(shared.clone(), connection));
            }
            Some(start) = starts.recv() => drop(sessions.spawn(start)),
            Some(ended) = sessions.join_next() => report(ended),
            changed = registry.changed() => if changed.is_err() { break },
        }
    }
    accepted.close();
    starts.close();
    while let Ok(start) = starts.try_recv() {
        sessions.spawn(start);
    }
    while let Ok(connection) = accepted.try_recv() {
        sessions.spawn(serve(shared.clone(), connection));
    }
    drain(&shared, sessions).await;
    Ok(())
}

async fn serve(shared: Arc<Shared>, connection: Accepted) {
    let Accepted { stream, peer, target, permit } = connection;
    match stream {
        Stream::Tcp(stream, door) => connection::serve_tcp(shared, stream, peer, door).await,
        Stream::Lines(stream) => serve_lines(shared, stream, peer, target).await,
        Stream::Unix(stream) => match connection::first_byte(&stream, &shared).await {
            Speaks::Http => connection::serve_unix(shared, stream, peer, target).await,
            Speaks::Lines => serve_lines(shared, stream, peer, target).await,
            Speaks::Nothing => {}
        },
    }
    drop(permit);
}

async fn serve_lines(shared: Arc<Shared>, stream: UnixStream, peer: Peer, target: Target) {
    let limit = shared.registry.borrow().limits.max_message_bytes;
    let (reader, writer) = stream.into_split();
    match target {
        Target::Service(service) => {
            Session::new(surroundings(&shared, service), Lines::new(reader, writer, limit), peer).run().await;
        }
        Target::Aggregate => {
            Router::new(shared, Lines::new(Box::new(reader), Box::new(writer), limit), peer).run().await;
        }
    }
}

pub fn surroundings(shared: &Arc<Shared>, service: Arc<Service>) -> Surroundings {
    Surroundings {
        service,
        secrets: shared.secrets.clone(),
        control: shared.control.clone(),
        leaks: shared.leaks.clone(),
        limits: shared.registry.borrow().limits.clone(),
        recorder: shared.recorder.clone(),
        answers: shared.answers.clone(),
        state: shared.state.clone(),
        local: shared.local.clone(),
    }
}

async fn drain(shared: &Shared, mut sessions: JoinSet<()>) {
    shared.update(|registry| {
        registry.services.values().for_each(|service| service.close());
        registry.closing = true;
    });
    let patience = shared.registry.borrow().limits.drain;
    let all_ended = async {
        while let Some(ended) = sessions.join_next().await {
            report(ended);
        }
    };
    if timeout(patience, all_ended).await.is_err() {
        tracing::warn!(left = sessions.len(), ?patience, "sessions that had not ended were cut off");
        sessions.shutdown().await;
    }
}

fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a session panicked");
    }
}

/// One task for each service.
#[derive(Default)]
struct Watchers {
    tasks: JoinSet<()>,
    running: BTreeMap<String, (Arc<Service>, u64, AbortHandle)>,
}

impl Watchers {
    /// Starts and ends tasks so that there is one for each service, made from its current settings.
    fn reconcile(&mut self, shared: &Shared, registry: &Registry) {
        self.running.retain(|name, (service, revision, task)| {
            let stays = registry
                .services
                .get(name)
                .is_some_and(|now| Arc::ptr_eq(now, service) && service.watch().borrow().revision == *revision);
            if !stays {
                task.abort();
            }
            stays
        });
        for (name, service) in &registry.services {
            if self.running.contains_key(name) {
                continue;
            }
            let revision = service.watch().borrow().revision;
            let items = credentials::items(&service.settings());
            let changes: Vec<_> = items.iter().filter_map(|item| shared.secrets.subscribe(item)).collect();
            let task = self.tasks.spawn(follow(service.clone(), shared.answers.clone(), changes));
            self.running.insert(name.clone(), (service.clone(), revision, task));
        }
        while self.tasks.try_join_next().is_some() {}
    }
}

async fn follow(service: Arc<Service>, answers: Arc<Answers>, changes: Vec<watch::Receiver<u64>>) {
    tokio::join!(follow_secrets(&service, &answers, changes), follow_files(&service));
}

/// Looks at the files for as long as the settings, whose change ends this task, name any.
async fn follow_files(service: &Service) {
    let mut every = tokio::time::interval(FILES_LOOKED_AT);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while service.has_files() {
        every.tick().await;
        service.follow_files();
    }
}

/// What was answered under other settings or with other secrets is forgotten.
async fn follow_secrets(service: &Service, answers: &Answers, mut changes: Vec<watch::Receiver<u64>>) {
    answers.forget_all(&service.name).await;
    while !changes.is_empty() {
        let (changed, which, _) = select_all(changes.iter_mut().map(|change| Box::pin(change.changed()))).await;
        match changed {
            Ok(()) => {
                service.rotated();
                answers.forget_all(&service.name).await;
            }
            // The item is configured no more.
            Err(_) => drop(changes.swap_remove(which)),
        }
    }
}

const FILES_LOOKED_AT: Duration = Duration::from_millis(500);
