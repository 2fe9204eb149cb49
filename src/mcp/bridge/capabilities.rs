//! Capabilities and identities from the words of one era to those of the other: `initialize` and `server/discover`.
//!
//! Pure. Invariant: nothing is claimed that the side behind the bridge did not claim.

use serde_json::{Value, json};

use crate::mcp::members::Members;
use crate::mcp::protocol::{LEGACY, META_CAPABILITIES, META_CLIENT, META_LEVEL, META_SERVER, META_VERSION, MODERN};

/// Who asks: what a legacy client has said in `initialize`, or a modern one in `_meta`; as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    pub capabilities: String,
    pub info: Option<String>,
}

/// What a server has said of itself, in either era.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Server {
    pub capabilities: Value,
    /// Name and version, as JSON.
    pub info: Option<String>,
    /// As JSON.
    pub instructions: Option<String>,
}

impl Client {
    /// Of whom nothing is known.
    pub fn unknown() -> Self {
        Self { capabilities: "{}".into(), info: None }
    }

    /// Of the parameters of `initialize`.
    pub fn of_initialize(params: &Members<'_>) -> Self {
        let mut capabilities = params.object("capabilities").unwrap_or_default();
        capabilities.retain(|key| KNOWN_OF_CLIENTS.contains(&key));
        if capabilities.get("roots").is_some() {
            capabilities.set("roots", "{}");
        }
        Self { capabilities: capabilities.write(), info: params.get("clientInfo").map(str::to_owned) }
    }

    /// Of `params._meta` of a modern request.
    pub fn of_meta(meta: &Members<'_>) -> Self {
        let capabilities = meta.object(META_CAPABILITIES).unwrap_or_default();
        Self { capabilities: capabilities.write(), info: meta.get(META_CLIENT).map(str::to_owned) }
    }

    /// Whether it takes a request of this method.
    pub fn takes(&self, method: &str) -> bool {
        let wanted = match method {
            "sampling/createMessage" => "sampling",
            "elicitation/create" => "elicitation",
            "roots/list" => "roots",
            _ => return false,
        };
        Members::read(&self.capabilities).is_some_and(|members| members.get(wanted).is_some())
    }

    /// The parameters of `initialize` in its name.
    pub fn initialize(&self, own_name: &str, own_version: &str) -> String {
        let mut capabilities = Members::read(&self.capabilities).unwrap_or_default();
        capabilities.retain(|key| key != "extensions");
        let info = self.info.clone().unwrap_or_else(|| json!({ "name": own_name, "version": own_version }).to_string());
        format!(r#"{{"protocolVersion":"{}","capabilities":{},"clientInfo":{info}}}"#, LEGACY[0], capabilities.write())
    }

    /// Puts into `_meta` what a modern request has to say; `level`, as JSON, if it wants to be told of the server's log.
    pub fn say_in(&self, meta: &mut Members<'_>, level: Option<&str>) {
        meta.set(META_VERSION, format!("\"{MODERN}\""));
        meta.set(META_CAPABILITIES, self.capabilities.clone());
        if let Some(info) = &self.info {
            meta.set(META_CLIENT, info.clone());
        }
        if let Some(level) = level {
            meta.set(META_LEVEL, level.to_owned());
        }
    }
}

impl Server {
    /// Of the result of `initialize`.
    pub fn of_initialize(result: &str) -> Option<Self> {
        let members = Members::read(result)?;
        members.get("protocolVersion")?;
        let info = members.get("serverInfo").map(str::to_owned);
        Some(Self { info, ..Self::common(&members) })
    }

    /// Of the result of `server/discover`; `None` if it does not speak our version of the modern era.
    pub fn of_discover(result: &str) -> Option<Self> {
        let members = Members::read(result)?;
        let versions: Vec<String> = serde_json::from_str(members.get("supportedVersions")?).ok()?;
        if !versions.iter().any(|version| version == MODERN) {
            return None;
        }
        let info = members.object("_meta").and_then(|meta| meta.get(META_SERVER).map(str::to_owned));
        Some(Self { info, ..Self::common(&members) })
    }

    fn common(members: &Members<'_>) -> Self {
        let capabilities = members.get("capabilities").and_then(|text| serde_json::from_str(text).ok());
        Self {
            capabilities: capabilities.unwrap_or_default(),
            info: None,
            instructions: members.get("instructions").map(str::to_owned),
        }
    }

    pub fn has(&self, capability: &str) -> bool {
        self.capabilities.get(capability).is_some_and(|value| !value.is_null())
    }

    /// `tools.listChanged` and the like.
    pub fn says(&self, capability: &str, flag: &str) -> bool {
        self.capabilities.get(capability).and_then(|value| value.get(flag)) == Some(&Value::Bool(true))
    }

    /// The result of `initialize` for a client that wants `version`.
    pub fn initialize_result(&self, version: &str, service: &str) -> String {
        let info = self.info.clone().unwrap_or_else(|| json!({ "name": service, "version": "" }).to_string());
        let mut result = Members::default();
        result.set("protocolVersion", json!(version).to_string());
        result.set("capabilities", self.within(&["extensions"]));
        result.set("serverInfo", info);
        if let Some(instructions) = &self.instructions {
            result.set("instructions", instructions.clone());
        }
        result.write()
    }

    /// The result of `server/discover`. Not to be kept: the server may be another one next time.
    pub fn discover_result(&self) -> String {
        let mut result = Members::default();
        result.set("supportedVersions", format!("[\"{MODERN}\"]"));
        result.set("capabilities", self.within(&["tasks"]));
        if let Some(instructions) = &self.instructions {
            result.set("instructions", instructions.clone());
        }
        result.set("resultType", "\"complete\"");
        result.set("ttlMs", "0");
        result.set("cacheScope", "\"private\"");
        if let Some(info) = &self.info {
            result.set("_meta", format!("{{\"{META_SERVER}\":{info}}}"));
        }
        result.write()
    }

    /// The capabilities without those that the other era does not have.
    fn within(&self, foreign: &[&str]) -> String {
        let mut capabilities = self.capabilities.clone();
        if let Some(members) = capabilities.as_object_mut() {
            members.retain(|key, value| !foreign.contains(&&**key) && !value.is_null());
        }
        if capabilities.is_object() { capabilities.to_string() } else { "{}".to_owned() }
    }
}

/// The version that a legacy client gets: the one that it wants, if there is one like that.
pub fn agreed(wanted: Option<&str>) -> &'static str {
    LEGACY.into_iter().find(|known| wanted == Some(known)).unwrap_or(LEGACY[0])
}

/// What both eras know; a task of the legacy era is none of the modern one's.
const KNOWN_OF_CLIENTS: [&str; 5] = ["sampling", "elicitation", "roots", "experimental", "extensions"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_the_same_in_both_eras() {
        let discovered = r#"{"supportedVersions":["2026-07-28"],"capabilities":{"tools":{"listChanged":true},"extensions":{"x/y":{}},"prompts":null},"instructions":"be \"kind\"","resultType":"complete","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"n","version":"1"}}}"#;
        let server = Server::of_discover(discovered).unwrap();
        assert!(server.says("tools", "listChanged") && !server.has("prompts") && !server.has("resources"));
        let initialized = server.initialize_result("2025-06-18", "s");
        assert_eq!(
            serde_json::from_str::<Value>(&initialized).unwrap(),
            json!({ "protocolVersion": "2025-06-18", "capabilities": { "tools": { "listChanged": true } },
                "serverInfo": { "name": "n", "version": "1" }, "instructions": "be \"kind\"" })
        );
        let back = Server::of_initialize(&initialized).unwrap();
        let again: Value = serde_json::from_str(&back.discover_result()).unwrap();
        assert_eq!(again["capabilities"], json!({ "tools": { "listChanged": true } }));
        assert_eq!(again["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "n");
        assert!(Server::of_discover(&discovered.replace("2026-07-28", "2031-01-01")).is_none());
        assert!(Server::of_discover(&initialized).is_none());
    }

    #[test]
    fn a_client_says_the_same_in_both_eras() {
        let params = r#"{"protocolVersion":"2025-11-25","capabilities":{"roots":{"listChanged":true},"elicitation":{"form":{}},"tasks":{}},"clientInfo":{"name":"c"}}"#;
        let client = Client::of_initialize(&Members::read(params).unwrap());
        assert!(client.takes("roots/list") && client.takes("elicitation/create"));
        assert!(!client.takes("sampling/createMessage") && !client.takes("tasks/get"));
        let mut meta = Members::read(r#"{"x":1.0,"io.modelcontextprotocol/protocolVersion":"forged"}"#).unwrap();
        client.say_in(&mut meta, Some("\"info\""));
        let again = Client::of_meta(&Members::read(&meta.write()).unwrap());
        assert_eq!(again, client);
        let written: Value = serde_json::from_str(&meta.write()).unwrap();
        assert_eq!(written["io.modelcontextprotocol/protocolVersion"], "2026-07-28");
        assert_eq!(
            written["io.modelcontextprotocol/clientCapabilities"],
            json!({ "roots": {}, "elicitation": { "form": {} } })
        );
        let initialize: Value = serde_json::from_str(&again.initialize("m", "1")).unwrap();
        assert_eq!(initialize["clientInfo"], json!({ "name": "c" }));
    }
}
