//! What the rules of a service file say of one request.
//!
//! It reads the envelope, and more of a request only where a rule is about that: arguments that are to be checked, the reference of a
//! completion, the filter of a subscription.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::rules::{self, Kind, Subject};
use super::{Denial, Plan, Policy, lists};
use crate::mcp::call::Peer;
use crate::mcp::message::{Field, Request};
use crate::mcp::protocol::{COMPLETE, LISTEN, PROMPTS_GET, RESOURCES_READ, SUBSCRIBE, TOOLS_CALL, UNSUBSCRIBE, code};

impl Policy {
    /// The tool's own name for the one that a client knows it by. A name that is hidden behind another one is refused.
    pub fn original_name(&self, request: &Request<'_>) -> Result<Option<String>, Denial> {
        if self.renamed.is_empty() || request.method != TOOLS_CALL {
            return Ok(None);
        }
        let Some(called) = request.called_name() else { return Ok(None) };
        if let Some(own) = self.renamed.get(&*called) {
            return Ok(Some(own.clone()));
        }
        match self.renamed.iter().find(|(_, own)| **own == *called) {
            Some((now, _)) => {
                let message = format!("service {}: the tool {called:?} is named {now:?} here", self.service);
                Err(Denial::new(code::INVALID_PARAMS, "unknown_tool", message))
            }
            None => Ok(None),
        }
    }

    /// What the rules say of a request; `text` is all of it. `Ok(None)`: nothing.
    pub fn judge(&self, request: &Request<'_>, text: &str, peer: Peer) -> Result<Option<Box<Plan>>, Denial> {
        if self.plain {
            return Ok(None);
        }
        let mut plan = Plan::default();
        if let Err(denial) = self.check_rules(request, text, peer) {
            self.refuse(denial, &mut plan)?;
        }
        match request.method.as_ref() {
            TOOLS_CALL => {
                let name = request.called_name().unwrap_or_default();
                if let Err(denial) = self.check_arguments(&name, text) {
                    self.refuse(denial, &mut plan)?;
                }
                if let Some(tool) = self.tool(&name) {
                    plan.timeout = tool.settings.timeout;
                    plan.cache = tool.settings.cache;
                    plan.tool = Some(tool.clone());
                }
            }
            RESOURCES_READ => {
                let uri = request.params.uri.and_then(Field::text).unwrap_or_default();
                if let Some(resource) = self.resource(&uri) {
                    plan.timeout = resource.timeout;
                    plan.cache = resource.cache;
                    plan.max_bytes = resource.max_bytes.map(|most| (most, resource.pattern.as_str().to_owned()));
                }
            }
            method => plan.list = lists::kind_of(method).filter(|list| self.edits(*list)),
        }
        Ok(plan.matters().then(|| Box::new(plan)))
    }

    fn check_arguments(&self, name: &str, text: &str) -> Result<(), Denial> {
        let tool = self.tool(name);
        if !self.validates(tool) {
            return Ok(());
        }
        let arguments = serde_json::from_str::<WithArguments<'_>>(text).ok().and_then(|call| call.params.arguments);
        let problems = self.schemas.problems(name, arguments.map(RawValue::get));
        if problems.is_empty() {
            return Ok(());
        }
        let message = format!(
            "service {}: the arguments of {name:?} do not fit its schema: {}",
            self.service,
            problems.join("; ")
        );
        let mut denial = Denial::new(code::INVALID_PARAMS, "invalid_arguments", message);
        denial.rule = Some(match tool.filter(|tool| tool.settings.validate_arguments.is_some()) {
            Some(tool) => tool.rule("validate_arguments"),
            None => "validate_arguments".to_owned(),
        });
        denial.as_result = true;
        Err(denial)
    }

    pub(super) fn check_peer(&self, peer: Peer) -> Result<(), Denial> {
        match rules::refuses_peer(&self.settings, peer) {
            Some(rule) => Err(self.not_allowed("this client may not use it", "peer_not_allowed", rule)),
            None => Ok(()),
        }
    }

    fn check_rules(&self, request: &Request<'_>, text: &str, peer: Peer) -> Result<(), Denial> {
        self.check_peer(peer)?;
        let named = || request.called_name();
        let addressed = || request.params.uri.and_then(Field::text);
        match request.method.as_ref() {
            TOOLS_CALL => self.check(named(), Kind::Tools, peer),
            PROMPTS_GET => self.check(named(), Kind::Prompts, peer),
            RESOURCES_READ | SUBSCRIBE | UNSUBSCRIBE => self.check(addressed(), Kind::Resources, peer),
            COMPLETE if self.concerns_references() => {
                // Something that cannot be read this way, such as a key that occurs twice, has no business here.
                let reference = serde_json::from_str::<WithReference>(text).map(|found| found.params.reference);
                match reference {
                    Ok(Reference { name: Some(name), uri: None }) => self.check(Some(name.into()), Kind::Prompts, peer),
                    Ok(Reference { name: None, uri: Some(uri) }) => self.check(Some(uri.into()), Kind::Templates, peer),
                    _ => self.check(None, Kind::Prompts, peer),
                }
            }
            LISTEN if rules::concern(&self.settings, Kind::Resources) => {
                let Ok(wanted) = serde_json::from_str::<WithFilter>(text) else {
                    return self.check(None, Kind::Resources, peer);
                };
                let uris = wanted.params.notifications.resources;
                uris.into_iter().try_for_each(|uri| self.check(Some(uri.into()), Kind::Resources, peer))
            }
            _ => Ok(()),
        }
    }

    fn concerns_references(&self) -> bool {
        [Kind::Prompts, Kind::Resources].into_iter().any(|kind| rules::concern(&self.settings, kind))
    }

    fn check(&self, name: Option<Cow<'_, str>>, kind: Kind, peer: Peer) -> Result<(), Denial> {
        let Some(name) = name else {
            if !rules::concern(&self.settings, kind) {
                return Ok(());
            }
            let message = format!("service {}: what the request is about cannot be read", self.service);
            return Err(Denial::new(code::INVALID_PARAMS, "invalid_params", message));
        };
        let subject = Subject { kind, name: &name };
        match rules::refuses(&self.settings, peer, subject) {
            Some(rule) => Err(self.not_allowed(&format!("{subject} is not allowed"), "not_allowed", rule)),
            None => Ok(()),
        }
    }

    fn not_allowed(&self, what: &str, kind: &'static str, rule: String) -> Denial {
        let message = format!("service {}: {what} ({rule})", self.service);
        Denial { rule: Some(rule), ..Denial::new(code::NOT_ALLOWED, kind, message) }
    }
}

#[derive(Deserialize)]
struct WithArguments<'a> {
    #[serde(borrow)]
    params: Arguments<'a>,
}

#[derive(Deserialize)]
struct Arguments<'a> {
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct WithReference {
    params: ReferenceParams,
}

#[derive(Deserialize)]
struct ReferenceParams {
    #[serde(rename = "ref")]
    reference: Reference,
}

#[derive(Deserialize)]
struct Reference {
    name: Option<String>,
    uri: Option<String>,
}

#[derive(Deserialize)]
struct WithFilter {
    params: FilterParams,
}

#[derive(Deserialize)]
struct FilterParams {
    #[serde(default)]
    notifications: Filter,
}

#[derive(Deserialize, Default)]
struct Filter {
    #[serde(default, rename = "resourceSubscriptions")]
    resources: Vec<String>,
}
