//! Replaces a value inside of a JSON text and leaves every other byte as it was.

use std::ops::Range;

use super::message::Field;

/// `text` with the bytes of `part` replaced. `part` must have been read from `text`; `None` if it was not.
pub fn replace(text: &str, part: Field<'_>, with: &str) -> Option<String> {
    let Range { start, end } = range_within(text, part.raw())?;
    let mut spliced = String::with_capacity(text.len() - part.raw().len() + with.len());
    spliced.push_str(&text[..start]);
    spliced.push_str(with);
    spliced.push_str(&text[end..]);
    Some(spliced)
}

/// As `replace`, for several parts that do not overlap.
pub fn replace_each(text: &str, parts: &[(Field<'_>, &str)]) -> Option<String> {
    let mut places: Vec<(Range<usize>, &str)> =
        parts.iter().map(|(part, with)| Some((range_within(text, part.raw())?, *with))).collect::<Option<_>>()?;
    places.sort_by_key(|(range, _)| range.start);
    let mut spliced = String::with_capacity(text.len() + places.iter().map(|(_, with)| with.len()).sum::<usize>());
    let mut from = 0;
    for (Range { start, end }, with) in places {
        spliced.push_str(text.get(from..start)?);
        spliced.push_str(with);
        from = end;
    }
    spliced.push_str(&text[from..]);
    Some(spliced)
}

/// A JSON object with members added at its end, for each key that it has not got. `present` says which it has.
pub fn add_members(object: &str, members: &[(&str, &str)], present: impl Fn(&str) -> bool) -> Option<String> {
    let body = object.trim_ascii().strip_prefix('{')?.strip_suffix('}')?;
    let mut extended = format!("{{{}", body.trim_ascii_end());
    let mut empty = body.trim_ascii().is_empty();
    for (key, value) in members.iter().filter(|(key, _)| !present(key)) {
        extended.push_str(if empty { "" } else { "," });
        extended.push_str(&format!("\"{key}\":{value}"));
        empty = false;
    }
    extended.push('}');
    Some(extended)
}

/// Where `part` ends in `text`. `None` if it was not read from there.
pub fn end_within(text: &str, part: Field<'_>) -> Option<usize> {
    range_within(text, part.raw()).map(|range| range.end)
}

/// Where `part`, a slice of `whole`, begins and ends in it.
fn range_within(whole: &str, part: &str) -> Option<Range<usize>> {
    let start = (part.as_ptr() as usize).checked_sub(whole.as_ptr() as usize)?;
    let end = start.checked_add(part.len())?;
    (whole.get(start..end)? == part).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::message::{Message, parse};
    use super::*;

    proptest! {
        #[test]
        fn only_the_name_changes(name in "\\PC{0,20}", other in "\\PC{0,20}", spaces in " {0,3}") {
            let (old, new) = (serde_json::json!(format!("svc__{name}")), serde_json::json!(name));
            let other = serde_json::json!({ "text": other, "n": 12345678901234567890_u64, "name": "inner" });
            let line = |name: &serde_json::Value| format!(
                r#"{{"method":"tools/call","params":{{"arguments":{other},{spaces}"name":{name}{spaces}}},"id":1,"jsonrpc":"2.0"}}"#);
            let whole = line(&old);
            let Ok(Message::Request(request)) = parse(whole.as_bytes()) else { panic!("{whole}") };
            let spliced = replace(&whole, request.params.name.unwrap(), &new.to_string()).unwrap();
            prop_assert_eq!(spliced, line(&new));
        }
    }

    #[test]
    fn several_parts_are_replaced_in_whatever_order_they_are_named() {
        let text = r#"{"a":1,"b":22,"c":333}"#;
        let (a, c) = (Field(&text[5..6]), Field(&text[18..21]));
        assert_eq!(replace_each(text, &[(c, "\"x\""), (a, "0")]).unwrap(), r#"{"a":0,"b":22,"c":"x"}"#);
        assert_eq!(replace_each(text, &[(a, "0"), (a, "0")]), None, "they overlap");
    }

    #[test]
    fn a_part_of_another_text_is_not_replaced() {
        let (text, other) = (String::from("{\"a\":1}"), String::from("1"));
        assert_eq!(replace(&text, Field(&other), "2"), None);
    }

    #[test]
    fn members_are_added_only_where_they_are_missing() {
        let add =
            |object| add_members(object, &[("a", "1"), ("b", "\"x\"")], |key| key == "a" && object.contains("\"a\""));
        assert_eq!(add("{}").unwrap(), r#"{"a":1,"b":"x"}"#);
        assert_eq!(add(r#"{"a":0 }"#).unwrap(), r#"{"a":0,"b":"x"}"#);
        assert_eq!(add("[]"), None);
    }
}
