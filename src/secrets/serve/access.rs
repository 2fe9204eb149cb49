//! Who may read what: the peer's ids as the kernel says, held against the rules of `secrets.serve.allow`.
//!
//! Nobody is allowed by default, mcpeg's own user and root neither: what is not in a rule is refused.

use tokio::net::UnixStream;

use crate::secrets::settings::AllowRule;

/// The other end of a connection. `SO_PEERCRED` gives its ids at the time when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    pub pid: Option<u32>,
}

impl Peer {
    pub fn of(stream: &UnixStream) -> std::io::Result<Self> {
        let peer = stream.peer_cred()?;
        Ok(Self { uid: peer.uid(), gid: peer.gid(), pid: peer.pid().and_then(|pid| pid.try_into().ok()) })
    }

    pub fn may_read(self, item: &str, rules: &[AllowRule]) -> bool {
        rules.iter().any(|rule| self.matches(rule) && rule.items.iter().any(|allowed| allowed == item))
    }

    fn matches(self, rule: &AllowRule) -> bool {
        let named = rule.uid.is_some() || rule.gid.is_some();
        named && rule.uid.is_none_or(|uid| uid == self.uid) && rule.gid.is_none_or(|gid| gid == self.gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(uid: Option<u32>, gid: Option<u32>, items: &[&str]) -> AllowRule {
        AllowRule { uid, gid, items: items.iter().map(|item| (*item).to_owned()).collect() }
    }

    #[test]
    fn a_peer_reads_what_a_rule_for_it_names_and_nothing_else() {
        let rules = [
            rule(Some(1000), None, &["a"]),
            rule(None, Some(50), &["b"]),
            rule(Some(1000), Some(60), &["c"]),
            rule(None, None, &["d"]),
        ];
        let peer = |uid, gid| Peer { uid, gid, pid: None };
        for (peer, may) in [
            (peer(1000, 1), "a"),
            (peer(1000, 50), "ab"),
            (peer(1000, 60), "ac"),
            (peer(7, 50), "b"),
            (peer(7, 60), ""),
            (peer(0, 0), ""),
        ] {
            for item in ["a", "b", "c", "d"] {
                assert_eq!(peer.may_read(item, &rules), may.contains(item), "{peer:?} {item}");
            }
        }
    }
}
