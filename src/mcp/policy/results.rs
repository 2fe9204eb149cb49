//! Bounds on what a tool answers: how many rows a list in it may have, and how many bytes the whole.
//!
//! Rows: of `structuredContent` and of text that is JSON, a list, or each list that is a member of an object, is cut; the bytes before the
//! cut stay as they are. What was cut is said to the model, as a text, and to the client, in `_meta`. A result that is too large in bytes
//! is no result that could be cut somewhere: its place takes an error that the model can read.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::Plan;
use crate::mcp::message::Field;
use crate::mcp::settings::policy::Bounds;
use crate::mcp::splice;

/// What becomes of an answer that does not keep to its bounds.
#[derive(Debug, PartialEq, Eq)]
pub enum Bounded {
    /// This is its result.
    Cut(String),
    /// It is withheld; this result of the tool takes its place.
    Result(String),
    /// It is withheld; an error with this message takes its place.
    Error(String),
}

/// Keeps a result within the bounds of its plan, and notes the rule. `None`: it stays as it is.
pub fn bounded(service: &str, dry_run: bool, plan: &mut Plan, name: &str, result: &str) -> Option<Bounded> {
    if let Some((most, pattern)) = plan.max_bytes.clone() {
        if result.len() <= most {
            return None;
        }
        plan.rule = Some(format!("resources.{pattern}.max_bytes"));
        plan.would_deny = dry_run;
        let message = format!(
            "service {service}: the content of {name:?} has {} bytes, more than the {most} that max_bytes allows",
            result.len()
        );
        return (!dry_run).then_some(Bounded::Error(message));
    }
    let tool = plan.tool.clone()?;
    let Bounds { max_bytes, max_rows } = tool.settings.bounds;
    let cut = max_rows.and_then(|most| cut_rows(result, most));
    if cut.is_some() {
        plan.rule = Some(tool.rule("max_rows"));
        plan.would_deny = dry_run;
    }
    let cut = cut.filter(|_| !dry_run);
    let bytes = cut.as_ref().map_or(result.len(), |cut| cut.result.len());
    match max_bytes.filter(|most| bytes > *most) {
        Some(most) => {
            plan.rule = Some(tool.rule("max_bytes"));
            plan.would_deny = dry_run;
            (!dry_run).then(|| Bounded::Result(too_large(service, name, bytes, most)))
        }
        None => cut.map(|cut| Bounded::Cut(cut.result)),
    }
}

/// A result that was cut.
#[derive(Debug, PartialEq, Eq)]
pub struct Cut {
    pub result: String,
    /// Of the longest list.
    pub rows: usize,
}

/// Cuts lists of more than `most` rows. `None`: there are none.
pub fn cut_rows(result: &str, most: usize) -> Option<Cut> {
    let members: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_str(result).ok()?;
    let structured = members.get("structuredContent").map(|value| value.get());
    let content = members.get("content").map(|value| value.get());
    let cut_structured = structured.and_then(|value| cut_value(value, most));
    let cut_content = content.and_then(|content| cut_texts(content, most));
    let rows = [&cut_structured, &cut_content].into_iter().flatten().map(|(_, rows)| *rows).max()?;
    let note =
        json!({ "type": "text", "text": format!("Only {most} of {rows} rows are shown (max_rows).") }).to_string();
    let blocks = cut_content.map_or_else(|| content.map(str::to_owned), |(blocks, _)| Some(blocks));
    let blocks = blocks.and_then(|blocks| append(&blocks, &note));
    let mark = json!({ "max_rows": most, "rows": rows }).to_string();
    let meta = members.get("_meta").map(|meta| meta.get());
    let marked = meta.and_then(|meta| splice::add_members(meta, &[(TRUNCATED, &mark)], |_| false));
    let mut parts: Vec<(Field<'_>, &str)> = Vec::new();
    if let (Some(field), Some((value, _))) = (structured, &cut_structured) {
        parts.push((Field(field), value));
    }
    if let (Some(field), Some(blocks)) = (content, &blocks) {
        parts.push((Field(field), blocks));
    }
    if let (Some(field), Some(marked)) = (meta, &marked) {
        parts.push((Field(field), marked));
    }
    let result = splice::replace_each(result, &parts)?;
    let result = match meta {
        Some(_) => result,
        None => splice::add_members(&result, &[("_meta", &format!("{{\"{TRUNCATED}\":{mark}}}"))], |_| false)?,
    };
    Some(Cut { result, rows })
}

/// What a tool answers in place of a result that is too large, as JSON.
pub fn too_large(service: &str, tool: &str, bytes: usize, most: usize) -> String {
    let text = format!(
        "service {service}: the result of {tool:?} has {bytes} bytes, more than the {most} that max_bytes allows; ask for less"
    );
    tool_error(&text, &json!({ LIMIT: { "max_bytes": most, "bytes": bytes } }))
}

/// A result by which a tool says that it did not work, for the model to read; with what the modern era wants, which the legacy one ignores.
pub fn tool_error(text: &str, meta: &serde_json::Value) -> String {
    json!({ "content": [{ "type": "text", "text": text }], "isError": true, "resultType": "complete", "_meta": meta })
        .to_string()
}

/// A list that is cut, or an object whose lists are, and the rows that the longest of them had.
fn cut_value(value: &str, most: usize) -> Option<(String, usize)> {
    match value.trim_start().as_bytes().first()? {
        b'[' => cut_list(value, most),
        b'{' => {
            let members: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_str(value).ok()?;
            let cut: Vec<(Field<'_>, (String, usize))> =
                members.values().filter_map(|raw| Some((Field(raw.get()), cut_list(raw.get(), most)?))).collect();
            let rows = cut.iter().map(|(_, (_, rows))| *rows).max()?;
            let parts: Vec<(Field<'_>, &str)> = cut.iter().map(|(field, (list, _))| (*field, list.as_str())).collect();
            Some((splice::replace_each(value, &parts)?, rows))
        }
        _ => None,
    }
}

fn cut_list(list: &str, most: usize) -> Option<(String, usize)> {
    if !list.trim_start().starts_with('[') {
        return None;
    }
    let rows: Vec<&RawValue> = serde_json::from_str(list).ok()?;
    if rows.len() <= most {
        return None;
    }
    let Some(last) = most.checked_sub(1).and_then(|last| rows.get(last)) else {
        return Some(("[]".to_owned(), rows.len()));
    };
    let end = splice::end_within(list, Field(last.get()))?;
    Some((format!("{}]", &list[..end]), rows.len()))
}

/// Blocks of text that are JSON.
fn cut_texts(content: &str, most: usize) -> Option<(String, usize)> {
    let blocks: Vec<&RawValue> = serde_json::from_str(content).ok()?;
    let mut cut: Vec<(&str, String, usize)> = Vec::new();
    for block in blocks {
        let Ok(Block { text: Some(raw) }) = serde_json::from_str::<Block<'_>>(block.get()) else { continue };
        let Some(text) = Field(raw.get()).text() else { continue };
        if let Some((text, rows)) = cut_value(&text, most) {
            cut.push((raw.get(), json!(text).to_string(), rows));
        }
    }
    let rows = cut.iter().map(|(.., rows)| *rows).max()?;
    let parts: Vec<(Field<'_>, &str)> = cut.iter().map(|(raw, text, _)| (Field(raw), text.as_str())).collect();
    Some((splice::replace_each(content, &parts)?, rows))
}

/// A list with one more item.
fn append(list: &str, item: &str) -> Option<String> {
    let body = list.trim_ascii().strip_suffix(']')?;
    let comma = if body.trim_ascii() == "[" { "" } else { "," };
    Some(format!("{body}{comma}{item}]"))
}

#[derive(Deserialize)]
struct Block<'a> {
    #[serde(borrow)]
    text: Option<&'a RawValue>,
}

/// The keys in `_meta` under which it is said what was done to a result.
const TRUNCATED: &str = "mcpeg/truncated";
const LIMIT: &str = "mcpeg/limit";

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn lists_are_cut_where_they_stand_and_the_rest_keeps_its_bytes() {
        let result = r#"{ "structuredContent":{"rows":[ {"id":12345678901234567890} ,2, 3],"n" : 3}, "content":[{"type":"text","text":"{\"rows\":[1,2,3]}"}],"x":1.0 }"#;
        let cut = cut_rows(result, 2).unwrap();
        assert_eq!(cut.rows, 3);
        assert_eq!(
            cut.result,
            r#"{ "structuredContent":{"rows":[ {"id":12345678901234567890} ,2],"n" : 3}, "content":[{"type":"text","text":"{\"rows\":[1,2]}"},{"type":"text","text":"Only 2 of 3 rows are shown (max_rows)."}],"x":1.0,"_meta":{"mcpeg/truncated":{"max_rows":2,"rows":3}}}"#
        );
        assert_eq!(cut_rows(result, 3), None);
    }

    #[test]
    fn a_bare_list_an_empty_rest_and_a_mark_that_joins_others() {
        let cut = cut_rows(r#"{"structuredContent":[1,2],"content":[],"_meta":{"a":1}}"#, 0).unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&cut.result).unwrap(),
            json!({
                "structuredContent": [],
                "content": [{ "type": "text", "text": "Only 0 of 2 rows are shown (max_rows)." }],
                "_meta": { "a": 1, "mcpeg/truncated": { "max_rows": 0, "rows": 2 } },
            })
        );
    }

    #[test]
    fn what_is_no_list_is_not_cut() {
        for result in [
            r#"{"content":[{"type":"text","text":"[not json"},{"type":"text","text":"plain, [1,2,3]"}]}"#,
            r#"{"content":[{"type":"image","data":"AA=="}],"structuredContent":{"deep":{"rows":[1,2,3]}}}"#,
            r#"{"content":7}"#,
            r#"[]"#,
        ] {
            assert_eq!(cut_rows(result, 1), None, "{result}");
        }
    }

    #[test]
    fn the_model_is_told_why_it_gets_nothing() {
        let result: Value = serde_json::from_str(&too_large("s", "t", 2000, 1000)).unwrap();
        assert_eq!(result["isError"], true);
        assert!(result["content"][0]["text"].as_str().unwrap().contains("1000 that max_bytes allows"));
        assert_eq!(result["_meta"]["mcpeg/limit"]["bytes"], 2000);
    }
}
