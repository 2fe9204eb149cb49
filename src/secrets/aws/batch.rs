//! The first reads of many secrets, put together: one request gives up to twenty (BatchGetSecretValue).
//!
//! Whoever asks takes a ticket; the first in the queue waits a moment for others, asks for all that are waiting, and leaves the others
//! their answers. Invariants: nothing runs beside the askers, so that one that is dropped loses only its own ticket, and the next
//! in the queue takes over; an answer that nobody fetches is wiped with its ticket.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::types::SecretValueEntry;

use super::super::source::{FailureKind, FetchError};
use super::{AwsSource, failure};

#[derive(Default)]
pub(super) struct Batch {
    turn: tokio::sync::Mutex<()>,
    desk: Mutex<Desk>,
}

#[derive(Default)]
struct Desk {
    last_ticket: u64,
    waiting: BTreeMap<u64, String>,
    answered: BTreeMap<u64, Answer>,
    /// The service refused a batch as such: each secret is read by itself from now on.
    refused: bool,
}

/// `None`: this one has to be read by itself.
type Answer = Option<Result<SecretValueEntry, FetchError>>;

impl Batch {
    /// What the secret called `name` holds as AWSCURRENT, or `None` when it has to be read by itself.
    pub async fn read(&self, source: &AwsSource, name: &str) -> Answer {
        let ticket = self.take_ticket(name)?;
        let _turn = self.turn.lock().await;
        if let Some(answer) = self.desk().answered.remove(&ticket.number) {
            return answer;
        }
        self.gather().await;
        let group: BTreeMap<u64, String> = {
            let mut desk = self.desk();
            let own = desk.waiting.remove_entry(&ticket.number);
            let mut others = BTreeMap::new();
            while others.len() + 1 < LARGEST {
                let Some((number, name)) = desk.waiting.pop_first() else { break };
                others.insert(number, name);
            }
            others.into_iter().chain(own).collect()
        };
        if group.len() == 1 {
            return None;
        }
        let mut answers = self.ask(source, &group).await;
        let own = answers.remove(&ticket.number).flatten();
        self.desk().answered.append(&mut answers);
        own
    }

    /// Waits for as long as others go on joining the queue, up to a bound.
    async fn gather(&self) {
        for _ in 0..MOST_ROUNDS {
            let before = self.desk().waiting.len();
            tokio::time::sleep(GATHER).await;
            let now = self.desk().waiting.len();
            if now == before || now >= LARGEST {
                break;
            }
        }
    }

    async fn ask(&self, source: &AwsSource, group: &BTreeMap<u64, String>) -> BTreeMap<u64, Answer> {
        let mut names: Vec<String> = group.values().cloned().collect();
        names.sort_unstable();
        names.dedup();
        let ask = |client: &Client| client.batch_get_secret_value().set_secret_id_list(Some(names.clone())).send();
        let outcome = source.ask("the batch of secrets", ask).await;
        let given = match outcome {
            Ok(given) => given,
            Err(error) => {
                let is_about_all = error.kind.is_providers();
                self.desk().refused |= error.kind == FailureKind::Denied;
                let answer = |number: &u64| (*number, is_about_all.then(|| Err(error.clone())));
                return group.keys().map(answer).collect();
            }
        };
        let mut entries = given.secret_values.unwrap_or_default();
        let errors = given.errors.unwrap_or_default();
        let mut answers = BTreeMap::new();
        for (number, name) in group {
            let failed = errors.iter().find(|error| error.secret_id.as_deref() == Some(name));
            let found = entries.iter().position(|entry| is_called(entry, name) && is_current(entry));
            let answer = match (found, failed) {
                (Some(at), _) => Some(Ok(entries.swap_remove(at))),
                (None, Some(error)) => {
                    let (code, message) = (error.error_code.as_deref().unwrap_or_default(), error.message.as_deref());
                    let error = failure::of_entry(&source.server, name, code, message);
                    // Read by itself, what is missing is told in more words.
                    (error.kind != FailureKind::NotFound).then_some(Err(error))
                }
                // Also the second of two items with the same secret.
                (None, None) => None,
            };
            answers.insert(*number, answer);
        }
        answers
    }

    fn take_ticket(&self, name: &str) -> Option<Ticket<'_>> {
        let mut desk = self.desk();
        if desk.refused {
            return None;
        }
        desk.last_ticket += 1;
        let number = desk.last_ticket;
        desk.waiting.insert(number, name.to_owned());
        Some(Ticket { batch: self, number })
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Ticket<'a> {
    batch: &'a Batch,
    number: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut desk = self.batch.desk();
        desk.waiting.remove(&self.number);
        desk.answered.remove(&self.number);
    }
}

/// By its name, its ARN, or its ARN without the six characters that AWS puts behind the name.
fn is_called(entry: &SecretValueEntry, asked: &str) -> bool {
    let arn = entry.arn().unwrap_or_default();
    entry.name() == Some(asked) || arn == asked || arn.strip_prefix(asked).is_some_and(|end| end.starts_with('-'))
}

fn is_current(entry: &SecretValueEntry) -> bool {
    entry.version_stages().iter().any(|stage| stage == "AWSCURRENT")
}

/// docs.aws.amazon.com/secretsmanager/latest/apireference/API_BatchGetSecretValue.html
const LARGEST: usize = 20;
const MOST_ROUNDS: u32 = 5;
const GATHER: Duration = Duration::from_millis(10);
