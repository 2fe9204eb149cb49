//! What carries the messages of a session one after the other: a child's pipes, or a connection of the older HTTP transport.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::older::Connection;
use super::process::Process;
use crate::child;
use crate::mcp::lines::{Progress, TooLong};

pub enum Link {
    Child(Box<Process>),
    Older(Box<Connection>),
}

impl Link {
    pub fn push(&mut self, line: &[u8]) {
        match self {
            Self::Child(process) => process.lines.push(line),
            Self::Older(connection) => connection.lines.push(line),
        }
    }

    pub fn next_line(&mut self) -> Option<Result<Bytes, TooLong>> {
        match self {
            Self::Child(process) => process.lines.next_line(),
            Self::Older(connection) => connection.lines.next_line(),
        }
    }

    /// As `Lines::progress`.
    pub async fn progress(&mut self, read: bool) -> std::io::Result<Progress> {
        match self {
            Self::Child(process) => process.lines.progress(read).await,
            Self::Older(connection) => connection.lines.progress(read).await,
        }
    }

    /// As `progress`; `None` when nothing more will come. Cancel-safe.
    pub async fn event(&mut self, read: bool) -> Option<std::io::Result<Progress>> {
        match self {
            Self::Child(process) => {
                let Process { lines, leader, .. } = &mut **process;
                tokio::select! {
                    progress = lines.progress(read) => Some(progress),
                    () = leader.ended() => None,
                }
            }
            Self::Older(connection) => connection.event(read).await,
        }
    }

    pub fn congested(&self) -> bool {
        match self {
            Self::Child(process) => process.lines.congested(),
            Self::Older(connection) => connection.lines.congested(),
        }
    }

    pub fn has_ended(&self) -> bool {
        match self {
            Self::Child(process) => process.lines.has_ended(),
            Self::Older(connection) => connection.lines.has_ended(),
        }
    }

    /// Completes when nothing more will come. Cancel-safe.
    pub async fn ended(&mut self) {
        match self {
            Self::Child(process) => process.leader.ended().await,
            Self::Older(connection) => connection.ended().await,
        }
    }

    /// Ends what is left; how it has ended, in words. Cancel-safe.
    pub async fn reap(&mut self) -> String {
        match self {
            Self::Child(process) => child::describe(process.leader.reap().await),
            Self::Older(connection) => connection.reap(),
        }
    }

    /// When it was begun.
    pub fn started(&self) -> Instant {
        match self {
            Self::Child(process) => process.started,
            Self::Older(connection) => connection.started,
        }
    }

    /// Ends it in good order.
    pub async fn stop(self, patience: Duration) {
        match self {
            Self::Child(process) => process.stop(patience).await,
            Self::Older(connection) => connection.stop(patience).await,
        }
    }
}
