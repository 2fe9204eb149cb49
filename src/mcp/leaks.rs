//! The leak guard on the way to a client: what is done about a live secret in a message.
//!
//! A message without one goes on as it is, uncopied. Invariants: a message that goes on is JSON with the id that it had; the event about
//! a leak is on record before what is left of the message goes on; no value is in an event, only the item's name.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::call::{Call, Peer, Recorder};
use super::mask::{Part, masked};
use super::message::Field;
use super::settings::LeakAction;
use crate::guard::{Guard, Match, mark};
use crate::ports::{AuditEvent, AuditRefused, Outcome};

/// The guard and what the configuration wants of it.
pub struct Leaks {
    pub guard: Arc<Guard>,
    action: AtomicU8,
}

/// What became of a message.
pub enum Checked {
    Clean,
    /// It goes on as it is.
    Reported(Leak),
    /// This goes on in its place.
    Redacted(Vec<u8>, Leak),
    /// Nothing goes on.
    Blocked(Leak),
}

/// Which items were found in a message, how often and in which form first.
pub struct Leak {
    items: Vec<(Arc<str>, u64, &'static str)>,
    action: LeakAction,
}

/// What kind of message it was found in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Within {
    Answer,
    Request,
    Notification,
    /// An error that mcpeg wrote itself, of what the upstream said.
    Failure,
}

impl Within {
    fn as_str(self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::Request => "request",
            Self::Notification => "notification",
            Self::Failure => "failure",
        }
    }
}

impl Leaks {
    pub fn new(guard: Arc<Guard>, action: LeakAction) -> Self {
        Self { guard, action: AtomicU8::new(action as u8) }
    }

    pub fn change(&self, action: LeakAction) {
        self.action.store(action as u8, Ordering::Relaxed);
    }

    /// Looks at a whole message. `id`: a part of it that stays, as whoever gets it has made it up.
    pub fn check(&self, line: &[u8], id: Option<Field<'_>>) -> Checked {
        let action = self.action();
        if action == LeakAction::Off {
            return Checked::Clean;
        }
        let spared = id.and_then(|id| {
            let start = (id.raw().as_ptr() as usize).checked_sub(line.as_ptr() as usize)?;
            Some(start..start + id.raw().len())
        });
        let mut found = self.guard.find(line);
        if let Some(spared) = &spared {
            found.retain(|one| one.range.start < spared.start || one.range.end > spared.end);
        }
        if found.is_empty() {
            return Checked::Clean;
        }
        let leak = Leak::of(&found, action);
        match action {
            LeakAction::Block => Checked::Blocked(leak),
            LeakAction::Report | LeakAction::Off => Checked::Reported(leak),
            LeakAction::Redact => {
                let parts = found.into_iter().map(|one| Part { range: one.range, mark: mark(&one.item) });
                match masked(line, &parts.collect::<Vec<_>>(), spared) {
                    Some(line) => Checked::Redacted(line, leak),
                    None => Checked::Reported(leak),
                }
            }
        }
    }

    fn action(&self) -> LeakAction {
        const ALL: [LeakAction; 4] = [LeakAction::Off, LeakAction::Redact, LeakAction::Block, LeakAction::Report];
        let number = self.action.load(Ordering::Relaxed);
        ALL.into_iter().find(|action| *action as u8 == number).unwrap_or(LeakAction::Redact)
    }
}

impl Leak {
    fn of(found: &[Match], action: LeakAction) -> Self {
        let mut items: Vec<(Arc<str>, u64, &'static str)> = Vec::new();
        for one in found {
            match items.iter_mut().find(|(item, ..)| *item == one.item) {
                Some((_, count, _)) => *count += 1,
                None => items.push((one.item.clone(), 1, one.encoding.as_str())),
            }
        }
        Self { items, action }
    }

    /// The items' names, for the one who does not get the message.
    pub fn items(&self) -> Vec<&str> {
        self.items.iter().map(|(item, ..)| &**item).collect()
    }

    /// Puts it on record, once for each item. On `Err` nothing of the message may go on.
    pub fn record(
        &self,
        recorder: &Recorder,
        service: &Arc<str>,
        peer: Peer,
        within: Within,
        call: Option<&Call>,
    ) -> Result<(), AuditRefused> {
        let (action, outcome) = match self.action {
            LeakAction::Redact => ("redact", Outcome::Denied),
            LeakAction::Block => ("block", Outcome::Denied),
            LeakAction::Report | LeakAction::Off => ("report", Outcome::Failure),
        };
        for (item, count, encoding) in &self.items {
            recorder.metrics.leaked(service, item, action, *count);
            tracing::warn!(
                service = &**service,
                secret = &**item,
                action,
                count,
                "a secret was on its way to a client"
            );
            let mut event = AuditEvent::new("mcp.leak", outcome)
                .with("mcpeg.secret.item", &**item)
                .with("mcpeg.service", &**service)
                .with_some("mcp.method.name", call.map(|call| call.method))
                .with_some("gen_ai.tool.name", call.and_then(Call::tool))
                .with("mcpeg.leak.within", within.as_str())
                .with("mcpeg.leak.action", action)
                .with("mcpeg.leak.encoding", *encoding)
                .with("mcpeg.leak.count", *count)
                .with_some("mcpeg.peer.uid", peer.uid)
                .with_some("mcpeg.peer.pid", peer.pid.map(i64::from));
            event.trace = call.and_then(|call| call.span.ids);
            recorder.audit.record(event)?;
        }
        Ok(())
    }
}
