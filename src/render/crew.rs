//! The part's task: one worker per template in a `JoinSet`, brought in line with the jobs after each commit.
//!
//! Invariants: a job that stays is not disturbed; a worker that panicked is started again, after a pause; nothing outlives the part.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinError, JoinSet};
use tracing::error;

use crate::lifecycle::{ReadySignal, Shutdown};

use super::handle::{Job, Jobs, Shared};
use super::removal;
use super::worker::work;

pub(super) async fn run(shared: Arc<Shared>, ready: ReadySignal, mut shutdown: Shutdown) {
    let mut jobs = shared.subscribe_jobs();
    let mut crew = Crew { shared: shared.clone(), tasks: JoinSet::new(), running: HashMap::new() };
    let mut is_ready = false;
    loop {
        let current = jobs.borrow_and_update().clone();
        crew.align(&current);
        if !is_ready && current.iter().all(|job| job.is_settled()) {
            is_ready = true;
            ready.ready();
        }
        drop(current);
        tokio::select! {
            () = shutdown.requested() => break,
            // The sender is in `shared`, which is held here.
            _ = jobs.changed() => {}
            () = shared.progress.notified(), if !is_ready => {}
            Some(ended) = crew.tasks.join_next() => crew.note_end(ended).await,
        }
    }
    shared.stop();
    // What takes too long is aborted with this task.
    while crew.tasks.join_next().await.is_some() {}
}

struct Crew {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    /// By the address of the job, which its task keeps alive.
    running: HashMap<usize, AbortHandle>,
}

impl Crew {
    fn align(&mut self, jobs: &Jobs) {
        let wanted: Vec<usize> = jobs.iter().map(key).collect();
        self.running.retain(|key, task| {
            let keep = wanted.contains(key);
            if !keep {
                task.abort();
            }
            keep
        });
        for job in self.shared.take_removals() {
            self.tasks.spawn(removal::run(job, self.shared.clone()));
        }
        for job in jobs.iter() {
            if !self.running.contains_key(&key(job)) {
                let task = self.tasks.spawn(work(job.clone(), self.shared.clone()));
                self.running.insert(key(job), task);
            }
        }
    }

    /// Workers never end by themselves: this one was aborted, or it panicked.
    async fn note_end(&mut self, ended: Result<(), JoinError>) {
        let Err(failure) = ended else { return };
        if failure.is_panic() {
            error!("a render worker panicked and is started again");
            let id = failure.id();
            self.running.retain(|_, task| task.id() != id);
            tokio::time::sleep(RESTART_PAUSE).await;
        }
    }
}

fn key(job: &Arc<Job>) -> usize {
    Arc::as_ptr(job).cast::<()>() as usize
}

const RESTART_PAUSE: Duration = Duration::from_secs(1);
