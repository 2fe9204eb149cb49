//! Taking up the lease of an earlier process: what the cache kept is served again when the provider says that it still holds.
//!
//! A lease that is gone, or of which the provider tells nothing, is fetched anew. While the provider is out the values are served by the clock,
//! as they would have been had the process gone on, and are confirmed as soon as it is back.

use std::time::Duration;

use tracing::{info, warn};

use crate::secret::Secret;

use super::cache::KeptItem;
use super::context::Context;
use super::source::{FailureKind, FetchError, Fetched, Lease};
use super::store::Item;

/// What is known of a lease that was taken up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resumed {
    pub left: Duration,
    /// The provider has said so, and not only the clock.
    pub confirmed: bool,
}

/// `None`: there is nothing that still holds.
pub(super) async fn resume(item: &Item, context: &Context) -> Result<Option<(Fetched, Resumed)>, FetchError> {
    let Some(kept) = context.cache.take_item(item) else { return Ok(None) };
    let Lease::Held { id, ttl, login, .. } = &kept.lease else {
        let left = kept.left();
        return Ok(Some((fetched(&kept, Lease::Ends(left)), Resumed { left, confirmed: true })));
    };
    let looked = item.provider.source.look(id, *ttl).await;
    item.provider.note(looked.as_ref().map(drop));
    let (left, renewable, confirmed) = match looked {
        Ok((left, renewable)) if !left.is_zero() => (left, renewable, true),
        Err(error) if error.kind.is_outage() || error.kind == FailureKind::Standby => (kept.left(), true, false),
        Ok(_) => return Ok(None),
        Err(error) if matches!(error.kind, FailureKind::Malformed | FailureKind::NotFound) => {
            info!(secret = item.name(), lease = id.hash(), "the kept lease is gone, and another is asked for");
            return Ok(None);
        }
        Err(error) if error.kind == FailureKind::Denied => {
            warn!(secret = item.name(), %error, "the kept lease cannot be looked up, and another is asked for");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    info!(secret = item.name(), lease = id.hash(), ?left, "the lease of before goes on");
    let lease = Lease::Held { id: id.clone(), ttl: *ttl, renewable, login: *login };
    Ok(Some((fetched(&kept, lease), Resumed { left, confirmed })))
}

fn fetched(kept: &KeptItem, lease: Lease) -> Fetched {
    let fields = kept.values.fields.iter();
    Fetched {
        fields: fields.map(|(name, value)| (name.clone(), Secret::copy_from(value.expose()))).collect(),
        provider_version: None,
        lease: Some(lease),
    }
}
