//! What a bridge wants done, and the ids of its own requests.

use crate::mcp::message::IdKey;
use crate::mcp::upstream::backoff::random;

#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// A message for the upstream; `cause`: the client's request that it is sent for.
    Send { line: Vec<u8>, cause: Option<IdKey> },
    /// A message for the client.
    Give(Vec<u8>),
    /// The upstream need not answer this request of ours.
    Withdraw(IdKey),
    /// The client is asked something before this request of its can be answered, so that it gets more time.
    Extend(IdKey),
    /// The client has answered, so that its request is worked on again.
    Resume(IdKey),
}

#[derive(Debug)]
pub struct Outbox {
    steps: Vec<Step>,
    mark: u64,
    count: u64,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { steps: Vec::new(), mark: random(), count: 0 }
    }
}

impl Outbox {
    pub fn take(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.steps)
    }

    pub fn send(&mut self, line: impl Into<Vec<u8>>) {
        self.steps.push(Step::Send { line: line.into(), cause: None });
    }

    pub fn send_for(&mut self, cause: &IdKey, line: impl Into<Vec<u8>>) {
        self.steps.push(Step::Send { line: line.into(), cause: Some(cause.clone()) });
    }

    pub fn give(&mut self, line: impl Into<Vec<u8>>) {
        self.steps.push(Step::Give(line.into()));
    }

    pub fn withdraw(&mut self, key: IdKey) {
        self.steps.push(Step::Withdraw(key));
    }

    pub fn extend(&mut self, key: IdKey) {
        self.steps.push(Step::Extend(key));
    }

    pub fn resume(&mut self, key: IdKey) {
        self.steps.push(Step::Resume(key));
    }

    /// An id that nobody else has: as it is written without its quotes, and as a key.
    pub fn next_id(&mut self) -> (String, IdKey) {
        self.count += 1;
        let id = format!("mcpeg-{:x}-{}", self.mark, self.count);
        let key = IdKey::Text(id.as_str().into());
        (id, key)
    }
}
