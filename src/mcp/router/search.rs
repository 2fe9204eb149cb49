//! The two tools of an aggregate that does not list all others (`transports.aggregate.mode: search`): one that finds tools by words, and one
//! that calls what was found.
//!
//! Ranking is BM25 over a tool's name, title and description, where a word of the name counts `NAME_WEIGHT` times. Pure; the catalogue comes from
//! the services' lists.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Value, json};

use crate::mcp::members::Members;

/// The tools, as `tools/list` gives them.
pub fn tools() -> Vec<String> {
    let find = json!({
        "name": FIND,
        "title": "Find tools",
        "description": "Finds tools by what they do. Gives the best matches with their names, descriptions and input schemas; call them with call_tool.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "query": { "type": "string", "description": "Words that say what the tool should do, or its name." },
                "limit": { "type": "integer", "minimum": 1, "maximum": MAX_FOUND, "description": format!("How many tools at most; {FOUND} if left out.") },
            },
            "required": ["query"],
        },
        "annotations": { "readOnlyHint": true, "idempotentHint": true },
    });
    let call = json!({
        "name": CALL,
        "title": "Call a tool",
        "description": "Calls a tool that find_tools has found, with arguments that fit its input schema.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "name": { "type": "string", "description": "The tool's name, as find_tools has given it." },
                "arguments": { "type": "object", "description": "The tool's arguments." },
            },
            "required": ["name"],
        },
    });
    vec![find.to_string(), call.to_string()]
}

/// What the client wants to find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    words: Vec<String>,
    limit: usize,
}

impl Query {
    /// Of the arguments of `find_tools`; the reason why not.
    pub fn of(arguments: Option<&Members<'_>>) -> Result<Self, String> {
        let text = arguments.and_then(|arguments| arguments.text("query"));
        let Some(text) = text.filter(|text| text.len() <= MAX_QUERY) else {
            return Err(format!("\"query\" must be a text of at most {MAX_QUERY} bytes"));
        };
        let limit = arguments.and_then(|arguments| arguments.get("limit")?.parse().ok()).unwrap_or(FOUND);
        Ok(Self { words: words(&text), limit: limit.clamp(1, MAX_FOUND) })
    }

    /// The best of `tools`, each as JSON, the best first. Without a word every tool fits equally.
    pub fn best<'t>(&self, tools: &'t [String]) -> Vec<&'t str> {
        let documents: Vec<HashMap<String, f64>> = tools.iter().map(|tool| weights(tool)).collect();
        let lengths: Vec<f64> = documents.iter().map(|words| words.values().sum()).collect();
        let average = lengths.iter().sum::<f64>() / documents.len().max(1) as f64;
        let wanted: BTreeSet<&String> = self.words.iter().collect();
        let mut scores = vec![0.0; documents.len()];
        for word in wanted {
            let fits: Vec<f64> = documents.iter().map(|words| weight_of(words, word)).collect();
            let holding = fits.iter().filter(|weight| **weight > 0.0).count() as f64;
            let rarity = (1.0 + (documents.len() as f64 - holding + 0.5) / (holding + 0.5)).ln();
            for ((score, weight), length) in scores.iter_mut().zip(fits).zip(&lengths) {
                let saturation = weight + K1 * (1.0 - B + B * length / average.max(1.0));
                *score += rarity * weight * (K1 + 1.0) / saturation;
            }
        }
        let mut ranked: Vec<usize> = (0..tools.len()).filter(|at| self.words.is_empty() || scores[*at] > 0.0).collect();
        // Stable: of two that fit as well, the one that is listed first.
        ranked.sort_by(|one, other| scores[*other].total_cmp(&scores[*one]));
        ranked.into_iter().take(self.limit).map(|at| tools[at].as_str()).collect()
    }
}

/// The result of `find_tools`.
pub fn found(tools: &[&str], of: usize, unavailable: &[Value], modern: bool) -> String {
    let list = format!("[{}]", tools.join(","));
    let mut text = format!("{} of {of} tools:\n{list}", tools.len());
    if tools.is_empty() {
        text = format!("none of {of} tools fits: try other words");
    }
    for service in unavailable {
        text.push_str(&format!("\nnot searched: {service}"));
    }
    let complete = if modern { r#","resultType":"complete""# } else { "" };
    let text = json!([{ "type": "text", "text": text }]);
    format!(
        r#"{{"content":{text},"structuredContent":{{"tools":{list},"unavailable":{}}}{complete}}}"#,
        json!(unavailable)
    )
}

/// A tool's words and how much each counts.
fn weights(tool: &str) -> HashMap<String, f64> {
    let mut weights = HashMap::new();
    let Some(tool) = Members::read(tool) else { return weights };
    for (key, weight) in [("name", NAME_WEIGHT), ("title", NAME_WEIGHT), ("description", 1.0)] {
        for word in words(&tool.text(key).unwrap_or_default()) {
            *weights.entry(word).or_insert(0.0) += weight;
        }
    }
    weights
}

/// How much a word counts in a tool; the beginning of a word counts half.
fn weight_of(words: &HashMap<String, f64>, wanted: &str) -> f64 {
    if let Some(weight) = words.get(wanted) {
        return *weight;
    }
    let begun = words.iter().filter(|(word, _)| wanted.len() >= SHORTEST_BEGINNING && word.starts_with(wanted));
    begun.map(|(_, weight)| weight / 2.0).fold(0.0, f64::max)
}

/// Lower-case words of letters and digits; `getIssue` and `get_issue` are two each.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut was_lower = false;
    for c in text.chars() {
        if !c.is_alphanumeric() || (c.is_uppercase() && was_lower) {
            words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
        }
        if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        }
        was_lower = c.is_lowercase();
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

pub const FIND: &str = "find_tools";
pub const CALL: &str = "call_tool";
const FOUND: usize = 5;
const MAX_FOUND: usize = 50;
const MAX_QUERY: usize = 1024;
const NAME_WEIGHT: f64 = 3.0;
const SHORTEST_BEGINNING: usize = 3;
/// BM25's usual parameters.
const K1: f64 = 1.2;
const B: f64 = 0.75;

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str, description: &str) -> String {
        json!({ "name": name, "description": description, "inputSchema": {} }).to_string()
    }

    fn best(query: &str, tools: &[String]) -> Vec<String> {
        let arguments = json!({ "query": query }).to_string();
        let query = Query::of(Members::read(&arguments).as_ref()).unwrap();
        let name = |tool: &str| serde_json::from_str::<Value>(tool).unwrap()["name"].as_str().unwrap().to_owned();
        query.best(tools).into_iter().map(name).collect()
    }

    #[test]
    fn the_tool_that_was_meant_comes_first() {
        let tools = [
            tool("github__list_issues", "Lists the issues of a repository, newest first."),
            tool("github__get_issue", "Gets one issue of a repository."),
            tool(
                "weather__now",
                "The weather at a place. Nothing to do with an issue of a repository or issues at all.",
            ),
            tool("mail__send", "Sends a mail."),
            tool("calendar__createEvent", "Makes an appointment."),
        ];
        assert_eq!(best("get issue", &tools)[0], "github__get_issue");
        assert_eq!(best("list issues repository", &tools)[0], "github__list_issues");
        assert_eq!(best("github", &tools).len(), 2);
        assert_eq!(best("create an event", &tools)[0], "calendar__createEvent");
        assert_eq!(best("repo", &tools).len(), 3, "the beginning of a word is enough");
        assert!(best("zeppelin", &tools).is_empty());
        assert_eq!(best("", &tools).len(), 5);
    }

    #[test]
    fn a_query_is_bounded() {
        for wrong in [json!({}), json!({ "query": 1 }), json!({ "query": "x".repeat(MAX_QUERY + 1) })] {
            assert!(Query::of(Members::read(&wrong.to_string()).as_ref()).is_err());
        }
        let many = json!({ "query": "x", "limit": 1000 }).to_string();
        assert_eq!(Query::of(Members::read(&many).as_ref()).unwrap().limit, MAX_FOUND);
        assert!(Query::of(None).is_err());
    }

    #[test]
    fn words_are_split_where_people_write_them_together() {
        assert_eq!(words("getIssue_by-ID  42"), ["get", "issue", "by", "id", "42"]);
        assert_eq!(words("Größe"), ["größe"]);
    }
}
