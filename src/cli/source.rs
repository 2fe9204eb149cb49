//! Fetching the configuration before a command reads it, where `--config` names a source and no file.

use std::process::ExitCode;

use super::{bad_configuration, complain, failed};
use crate::config::Sources;
use crate::config::source::{Remote, SourceError, Started};

/// What a command wants of a source.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To follow it, and to keep what is good for another start.
    Run,
    /// To read it as it is now.
    Look,
    /// To know what is running: what was kept will do.
    Ask,
}

/// Puts what the source gives into `sources`. Nothing, where there is none.
pub fn prepare(sources: &mut Sources, purpose: Purpose) -> Result<(), ExitCode> {
    let remote = match Remote::named_by(sources, purpose != Purpose::Look) {
        Ok(Some(remote)) => remote,
        Ok(None) => return Ok(()),
        Err(problems) => return Err(bad_configuration(&problems)),
    };
    if purpose == Purpose::Ask
        && let Some(kept) = remote.last_good()
    {
        sources.fetched = Some(kept);
        return Ok(());
    }
    let started = match block_on(remote.start()) {
        Ok(Ok(started)) => started,
        // Whoever names the socket needs no configuration; who does not is told why there is none.
        Ok(Err(error)) if purpose == Purpose::Ask => {
            sources.away = Some(error.to_string());
            return Ok(());
        }
        Ok(Err(error)) => return Err(failed(&error.to_string())),
        Err(error) => return Err(failed(&format!("the runtime could not be started: {error}"))),
    };
    match started {
        Started::Fetched(fetched) => sources.fetched = Some(fetched),
        Started::LastGood(fetched, error) => {
            complain(&format!(
                "mcpeg: {error}; starting with the last good configuration, revision {}",
                fetched.revision
            ));
            sources.away = Some(error.to_string());
            sources.fetched = Some(fetched);
        }
    }
    sources.remote = Some(remote);
    Ok(())
}

/// On this thread, so that the process has no other one when it goes on.
fn block_on<T>(work: impl Future<Output = Result<T, SourceError>>) -> std::io::Result<Result<T, SourceError>> {
    block_on_any(work)
}

/// The same, for whatever comes of it.
pub fn block_on_any<T>(work: impl Future<Output = T>) -> std::io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(2).enable_all().build()?;
    Ok(runtime.block_on(work))
}
