//! Who may use what: `allow` and `deny` of a service, and those for single peers.
//!
//! `deny` wins over `allow`; a kind of thing that `allow` does not name is allowed; what holds for a peer besides can only take away. An
//! address is looked at as it is written and as a server may read it: with its scheme in lower case and its percent signs decoded. A
//! pattern of `deny` needs one of them, one of `allow` needs both, and an address that leads elsewhere by `..` matches no rule.

use std::borrow::Cow;
use std::fmt;

use percent_encoding::percent_decode_str;

use crate::mcp::call::Peer;
use crate::mcp::settings::pattern::Pattern;
use crate::mcp::settings::policy::{PeerName, PolicySettings, RuleSet, Rules};

/// What rules are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tools,
    Prompts,
    Resources,
    /// Of addresses, in a list.
    Templates,
}

/// What a request is about, by its name at the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject<'a> {
    pub kind: Kind,
    pub name: &'a str,
}

/// Whether any rule is about this kind, for anybody.
pub fn concern(settings: &PolicySettings, kind: Kind) -> bool {
    let of = |rules: &Rules| kind.patterns(&rules.allow).is_some() || kind.patterns(&rules.deny).is_some();
    of(&settings.rules) || settings.peers.iter().any(|peer| of(&peer.rules))
}

/// Why the peer may not use the service at all: the rule's name.
pub fn refuses_peer(settings: &PolicySettings, peer: Peer) -> Option<String> {
    let RuleSet { peers: denied, .. } = &settings.rules.deny;
    let RuleSet { peers: allowed, .. } = &settings.rules.allow;
    if denied.as_ref().is_some_and(|names| names.iter().any(|name| is(*name, peer))) {
        return Some("deny.peers".to_owned());
    }
    allowed.as_ref().is_some_and(|names| !names.iter().any(|name| is(*name, peer))).then(|| "allow.peers".to_owned())
}

/// Why the peer may not use this: the rule's name, and the pattern if there is one.
pub fn refuses(settings: &PolicySettings, peer: Peer, subject: Subject<'_>) -> Option<String> {
    let forms = subject.forms();
    refused_by(&settings.rules, subject, &forms, "").or_else(|| {
        let belongs =
            |names: &Option<Vec<PeerName>>| names.as_ref().is_none_or(|names| names.iter().any(|name| is(*name, peer)));
        let (index, own) = settings.peers.iter().enumerate().find(|(_, entry)| belongs(&entry.peers))?;
        refused_by(&own.rules, subject, &forms, &format!("peers.{index}."))
    })
}

fn refused_by(rules: &Rules, subject: Subject<'_>, forms: &[Cow<'_, str>], place: &str) -> Option<String> {
    let (allowed, denied) = (subject.kind.patterns(&rules.allow), subject.kind.patterns(&rules.deny));
    let kind = subject.kind.key();
    if (allowed.is_some() || denied.is_some()) && subject.leads_elsewhere(forms) {
        return Some(format!("{place}{kind}: `..` in an address"));
    }
    if let Some(pattern) = denied.into_iter().flatten().find(|pattern| forms.iter().any(|form| pattern.matches(form))) {
        return Some(format!("{place}deny.{kind}: {}", pattern.as_str()));
    }
    let allowed = allowed?;
    let fits = forms.iter().all(|form| allowed.iter().any(|pattern| subject.fits(pattern, form)));
    (!fits).then(|| format!("{place}allow.{kind}"))
}

impl Kind {
    fn key(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Prompts => "prompts",
            Self::Resources | Self::Templates => "resources",
        }
    }

    fn patterns(self, set: &RuleSet) -> Option<&Vec<Pattern>> {
        match self {
            Self::Tools => set.tools.as_ref(),
            Self::Prompts => set.prompts.as_ref(),
            Self::Resources | Self::Templates => set.resources.as_ref(),
        }
    }
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Tools => write!(f, "the tool {:?}", self.name),
            Kind::Prompts => write!(f, "the prompt {:?}", self.name),
            Kind::Resources | Kind::Templates => write!(f, "the resource {:?}", self.name),
        }
    }
}

impl<'a> Subject<'a> {
    /// As it is written, and as it may be read.
    fn forms(self) -> Vec<Cow<'a, str>> {
        let name = self.name;
        match self.kind {
            Kind::Tools | Kind::Prompts | Kind::Templates => vec![name.into()],
            Kind::Resources => {
                let mut read = percent_decode_str(name).decode_utf8_lossy().into_owned();
                if let Some(at) = read.find(':') {
                    read[..at].make_ascii_lowercase();
                }
                if read == name { vec![name.into()] } else { vec![name.into(), read.into()] }
            }
        }
    }

    fn leads_elsewhere(self, forms: &[Cow<'_, str>]) -> bool {
        self.kind == Kind::Resources
            && forms.iter().any(|form| form.split(['/', '\\', '?', '#']).any(|part| part == ".." || part == "."))
    }

    /// A template fits when addresses that are made from it may.
    fn fits(self, pattern: &Pattern, form: &str) -> bool {
        if self.kind != Kind::Templates {
            return pattern.matches(form);
        }
        let begins = self.name.split('{').next().unwrap_or_default();
        pattern.matches(form) || pattern.prefix().starts_with(begins) || begins.starts_with(pattern.prefix())
    }
}

fn is(name: PeerName, peer: Peer) -> bool {
    match name {
        PeerName::Uid(uid) => peer.uid == Some(uid),
        PeerName::Tcp => peer.address.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::settings::policy::PeerRules;

    fn globs(patterns: &[&str]) -> Option<Vec<Pattern>> {
        Some(patterns.iter().map(|pattern| Pattern::glob(pattern)).collect())
    }

    fn peer(uid: u32) -> Peer {
        Peer { uid: Some(uid), pid: None, address: None }
    }

    fn tool(name: &str) -> Subject<'_> {
        Subject { kind: Kind::Tools, name }
    }

    const TCP: Peer = Peer { uid: None, pid: None, address: Some(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)) };

    #[test]
    fn deny_wins_and_a_kind_that_is_not_named_is_allowed() {
        let mut settings = PolicySettings::default();
        settings.rules.allow.tools = globs(&["get_*", "delete_me"]);
        settings.rules.deny.tools = globs(&["delete_*"]);
        let refuses = |subject| refuses(&settings, peer(1), subject);
        assert_eq!(refuses(tool("get_issue")), None);
        assert_eq!(refuses(tool("delete_me")).as_deref(), Some("deny.tools: delete_*"));
        assert_eq!(refuses(tool("make_issue")).as_deref(), Some("allow.tools"));
        assert_eq!(refuses(Subject { kind: Kind::Prompts, name: "anything" }), None);
        assert!(concern(&settings, Kind::Tools) && !concern(&settings, Kind::Prompts));
        settings.rules.allow.prompts = Some(Vec::new());
        assert_eq!(
            super::refuses(&settings, peer(1), Subject { kind: Kind::Prompts, name: "x" }).as_deref(),
            Some("allow.prompts")
        );
    }

    #[test]
    fn an_address_is_judged_as_a_server_may_read_it() {
        let mut settings = PolicySettings::default();
        settings.rules.allow.resources = globs(&["file:///public/*"]);
        settings.rules.deny.resources = globs(&["file:///public/secret*"]);
        let refuses = |uri| refuses(&settings, peer(1), Subject { kind: Kind::Resources, name: uri }).is_some();
        assert!(!refuses("file:///public/a"));
        for uri in [
            "file:///etc/passwd",
            "file:///public/../etc/passwd",
            "file:///public/%2e%2e/etc/passwd",
            "file:///public/..%2fetc/passwd",
            "file:///public/%73ecret",
            "FILE:///public/secret",
            "file:///public\\..\\x",
        ] {
            assert!(refuses(uri), "{uri}");
        }
    }

    #[test]
    fn a_template_stays_when_its_addresses_may_be_allowed() {
        let mut settings = PolicySettings::default();
        settings.rules.allow.resources = globs(&["repo://acme/*"]);
        let refuses =
            |template| refuses(&settings, peer(1), Subject { kind: Kind::Templates, name: template }).is_some();
        assert!(!refuses("repo://{owner}/{name}"));
        assert!(!refuses("repo://acme/{name}"));
        assert!(refuses("file:///{path}"));
    }

    #[test]
    fn the_first_entry_of_a_peer_holds_besides() {
        let mut settings = PolicySettings::default();
        settings.rules.deny.tools = globs(&["drop"]);
        let mut others = Rules::default();
        others.allow.tools = globs(&["get_*", "drop"]);
        settings.peers = vec![
            PeerRules { peers: Some(vec![PeerName::Uid(7)]), rules: Rules::default() },
            PeerRules { peers: None, rules: others },
        ];
        assert_eq!(refuses(&settings, peer(7), tool("set")), None);
        assert_eq!(refuses(&settings, peer(7), tool("drop")).as_deref(), Some("deny.tools: drop"));
        assert_eq!(refuses(&settings, peer(8), tool("drop")).as_deref(), Some("deny.tools: drop"));
        assert_eq!(refuses(&settings, peer(8), tool("set")).as_deref(), Some("peers.1.allow.tools"));
        assert_eq!(refuses(&settings, TCP, tool("get_x")), None);
    }

    #[test]
    fn a_service_may_be_for_some_peers_only() {
        let mut settings = PolicySettings::default();
        assert_eq!(refuses_peer(&settings, TCP), None);
        settings.rules.allow.peers = Some(vec![PeerName::Uid(1), PeerName::Tcp]);
        assert_eq!((refuses_peer(&settings, peer(1)), refuses_peer(&settings, TCP)), (None, None));
        assert_eq!(refuses_peer(&settings, peer(2)).as_deref(), Some("allow.peers"));
        settings.rules.deny.peers = Some(vec![PeerName::Tcp]);
        assert_eq!(refuses_peer(&settings, TCP).as_deref(), Some("deny.peers"));
    }
}
