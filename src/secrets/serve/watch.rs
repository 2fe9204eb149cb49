//! Tells of new versions: once, as a long poll, or for as long as the client stays, as an event stream (the `text/event-stream` of the
//! HTML standard, section 9.2). Only numbers: whoever wants the value reads it, which is checked and put on record.
//!
//! A version counts as new when it differs from the one that the client names, not when it is larger: versions begin again at 1 when
//! mcpeg is started again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{Stream, unfold};
use serde_json::json;
use tokio::sync::watch::Receiver;
use tokio::time::timeout;

use super::access::Peer;
use super::server::Shared;

/// The first version that is there and not `after`. `None`: no such version in time, or the item is gone.
pub(super) async fn next(mut versions: Receiver<u64>, after: u64, within: Duration) -> Next {
    match timeout(within, versions.wait_for(|version| *version != 0 && *version != after)).await {
        Ok(Ok(version)) => Next::Version(*version),
        Ok(Err(_)) => Next::Gone,
        Err(_) => Next::NothingNew,
    }
}

pub(super) enum Next {
    Version(u64),
    NothingNew,
    Gone,
}

/// An event for each version, and a comment now and then, by which a client that has gone away is noticed. It ends when the item is gone
/// or the rules do not allow it to the peer any more.
pub(super) fn stream(
    shared: Arc<Shared>,
    peer: Peer,
    item: String,
    versions: Receiver<u64>,
    after: u64,
) -> impl Stream<Item = Vec<u8>> + Send {
    unfold((versions, after, item), move |(versions, after, item)| {
        let shared = shared.clone();
        async move {
            let next = next(versions.clone(), after, COMMENT_EVERY).await;
            if !shared.may_read(peer, &item) {
                return None;
            }
            match next {
                Next::Version(version) => {
                    let event = format!(
                        "id: {version}\nevent: version\ndata: {}\n\n",
                        json!({ "item": item, "version": version })
                    );
                    Some((event.into_bytes(), (versions, version, item)))
                }
                Next::NothingNew => Some((b": still here\n\n".to_vec(), (versions, after, item))),
                Next::Gone => None,
            }
        }
    })
}

const COMMENT_EVERY: Duration = Duration::from_secs(15);
