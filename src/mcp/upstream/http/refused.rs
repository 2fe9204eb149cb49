//! A server that refuses the credentials (401, 403): they are asked for anew, once for all who meet that at the same time, and what may be said
//! again is said again with the new ones, once.
//!
//! A 401 says that nothing was done, so that any message may be said again; after a 403 only what is safe. Whatever comes of it, the agent
//! is told in our words: a challenge is ours to answer.

use super::{HttpUpstream, Running};
use crate::mcp::credentials;
use crate::mcp::upstream::exchange::{News, Report, Trouble};
use crate::mcp::upstream::outgoing::Role;

impl HttpUpstream {
    /// Asks for fresh credentials; the exchange counts as under way meanwhile.
    pub(super) fn refresh(&mut self, mut running: Running, trouble: Trouble, was_alone: bool) {
        if credentials::items(&self.settings).is_empty() {
            return self.failed(running, trouble);
        }
        self.serial += 1;
        let (serial, reports, used) = (self.serial, self.reports.0.clone(), running.versions.clone());
        let (service, secrets, control) =
            (self.around.service.clone(), self.around.secrets.clone(), self.around.control.clone());
        running.task = self.tasks.spawn(async move {
            service.refresh(&*secrets, &*control, &used).await;
            // Nobody listens any more when the session has ended, and then nothing matters.
            let _ = reports.send(Report { serial, news: News::Refreshed }).await;
        });
        running.refused = Some(trouble);
        self.asides_running += usize::from(running.message.role == Role::Aside);
        self.running.insert(serial, running);
        if was_alone {
            self.alone = Some(serial);
        }
    }

    /// Says it again if there are other credentials than it was refused with.
    pub(super) fn refreshed(&mut self, serial: u64) {
        let was_alone = self.alone == Some(serial);
        let Some(mut running) = self.remove(serial) else { return };
        let Some(mut trouble) = running.refused.take() else { return };
        let has_changed = *credentials::versions(&self.settings, &*self.around.secrets) != *running.versions;
        let is_past = running.swallow && running.epoch != self.epoch;
        if is_past {
        } else if has_changed && (trouble.is_unauthorized() || running.message.safe || running.swallow) {
            let again = self.dispatch(running.message, running.swallow);
            if let Some(running) = again.and_then(|serial| self.running.get_mut(&serial)) {
                running.reauthorized = true;
            }
            if was_alone {
                self.alone = again;
            }
        } else {
            trouble.message.push_str(if has_changed { NOT_REPEATED } else { UNCHANGED });
            self.failed(running, trouble);
        }
        self.advance();
    }
}

const UNCHANGED: &str = ", and no others are to be had now";
const NOT_REPEATED: &str =
    "; there are others now, but the request is not repeated, as it may not be safe to do it twice";
