//! Lists as a client sees them: without what it may not use, and with the names and words that it knows tools by.
//!
//! An item keeps its bytes but for what is replaced; a list in which nothing changes is not touched.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::rules::Kind;
use crate::mcp::message::Field;
use crate::mcp::protocol::{PROMPTS_LIST, RESOURCES_LIST, TEMPLATES_LIST, TOOLS_LIST};
use crate::mcp::splice;

/// What becomes of an item.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Edit<'a> {
    #[default]
    Keep,
    Drop,
    Change {
        name: Option<&'a str>,
        description: Option<&'a str>,
    },
}

/// An item of a list, as far as it matters.
#[derive(Debug, Deserialize)]
pub struct Item<'a> {
    /// Of a tool or a prompt.
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    uri: Option<&'a RawValue>,
    #[serde(borrow, rename = "uriTemplate")]
    template: Option<&'a RawValue>,
    #[serde(borrow)]
    description: Option<&'a RawValue>,
    /// Of a tool, as JSON.
    #[serde(borrow, rename = "inputSchema")]
    schema: Option<&'a RawValue>,
}

/// What the answer to a request is a list of.
pub fn kind_of(method: &str) -> Option<Kind> {
    Some(match method {
        TOOLS_LIST => Kind::Tools,
        PROMPTS_LIST => Kind::Prompts,
        RESOURCES_LIST => Kind::Resources,
        TEMPLATES_LIST => Kind::Templates,
        _ => return None,
    })
}

fn key(list: Kind) -> &'static str {
    match list {
        Kind::Tools => "tools",
        Kind::Prompts => "prompts",
        Kind::Resources => "resources",
        Kind::Templates => "resourceTemplates",
    }
}

impl<'a> Item<'a> {
    /// By what the item is known in a list of this kind.
    pub fn name(&self, list: Kind) -> Option<Cow<'a, str>> {
        let raw = match list {
            Kind::Tools | Kind::Prompts => self.name,
            Kind::Resources => self.uri,
            Kind::Templates => self.template,
        };
        Field(raw?.get()).text()
    }

    pub fn schema(&self) -> Option<&'a str> {
        self.schema.map(RawValue::get)
    }
}

/// The result with its items edited; `None` when it stays as it is. What cannot be read as an item of the list is left out.
pub fn edited<'e>(result: &str, list: Kind, mut edit: impl FnMut(&str, &Item<'_>) -> Edit<'e>) -> Option<String> {
    let members: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_str(result).ok()?;
    let array = members.get(key(list))?.get();
    let items: Vec<&RawValue> = serde_json::from_str(array).ok()?;
    let mut kept: Vec<Cow<'_, str>> = Vec::with_capacity(items.len());
    let mut changed = false;
    for raw in items {
        let read = serde_json::from_str::<Item<'_>>(raw.get()).ok().and_then(|item| Some((item.name(list)?, item)));
        let edit = read.as_ref().map_or(Edit::Drop, |(name, item)| edit(name, item));
        match (edit, read) {
            (Edit::Keep, _) => kept.push(raw.get().into()),
            (Edit::Change { name, description }, Some((_, item))) => {
                kept.push(reworded(raw.get(), &item, name, description)?.into());
                changed = true;
            }
            (Edit::Drop | Edit::Change { .. }, _) => changed = true,
        }
    }
    if !changed {
        return None;
    }
    splice::replace(result, Field(array), &format!("[{}]", kept.join(",")))
}

fn reworded(raw: &str, item: &Item<'_>, name: Option<&str>, description: Option<&str>) -> Option<String> {
    let (name, description) =
        (name.map(|name| json!(name).to_string()), description.map(|text| json!(text).to_string()));
    let mut parts: Vec<(Field<'_>, &str)> = Vec::new();
    if let (Some(field), Some(name)) = (item.name, &name) {
        parts.push((Field(field.get()), name));
    }
    if let (Some(field), Some(description)) = (item.description, &description) {
        parts.push((Field(field.get()), description));
    }
    let replaced = splice::replace_each(raw, &parts)?;
    match (&description, item.description) {
        (Some(description), None) => splice::add_members(&replaced, &[("description", description)], |_| false),
        _ => Some(replaced),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{ "nextCursor" : "c", "tools":[ {"name":"a" , "x":1.0,"description":"old"},{"y":{"name":"no"},"name":"b\u0031"},{"name":"c","description":"it"}], "ttlMs":0 }"#;

    #[test]
    fn what_is_not_edited_keeps_its_bytes() {
        assert_eq!(edited(LIST, Kind::Tools, |_, _| Edit::Keep), None);
        let edit = |name: &str, _: &Item<'_>| match name {
            "a" => Edit::Change { name: Some("new \"a\""), description: Some("said") },
            "b1" => Edit::Change { name: None, description: Some("added") },
            _ => Edit::Drop,
        };
        assert_eq!(
            edited(LIST, Kind::Tools, edit).unwrap(),
            r#"{ "nextCursor" : "c", "tools":[{"name":"new \"a\"" , "x":1.0,"description":"said"},{"y":{"name":"no"},"name":"b\u0031","description":"added"}], "ttlMs":0 }"#
        );
    }

    #[test]
    fn what_has_two_names_or_none_is_left_out() {
        let list = r#"{"prompts":[{"name":"a","name":"b"},{"title":"x"},{"name":"c"},7]}"#;
        assert_eq!(edited(list, Kind::Prompts, |_, _| Edit::Keep).unwrap(), r#"{"prompts":[{"name":"c"}]}"#);
        assert_eq!(edited(r#"{"tools":{}}"#, Kind::Tools, |_, _| Edit::Drop), None);
    }

    #[test]
    fn each_list_has_names_of_its_own() {
        let resources = r#"{"resources":[{"uri":"a:1","name":"x"},{"uri":"a:2"}]}"#;
        let edit = |name: &str, _: &Item<'_>| if name == "a:1" { Edit::Drop } else { Edit::Keep };
        assert_eq!(edited(resources, Kind::Resources, edit).unwrap(), r#"{"resources":[{"uri":"a:2"}]}"#);
        let templates = r#"{"resourceTemplates":[{"uriTemplate":"a:{1}","name":"x"}]}"#;
        let edit = |name: &str, _: &Item<'_>| if name == "a:{1}" { Edit::Drop } else { Edit::Keep };
        assert_eq!(edited(templates, Kind::Templates, edit).unwrap(), r#"{"resourceTemplates":[]}"#);
    }
}
