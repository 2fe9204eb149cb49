//! Batches: several messages as one JSON array (JSON-RPC 2.0, 6), which MCP has in its version 2025-03-26 alone.
//!
//! A batch is taken apart where it arrives, and each of its messages goes its own way; answers are sent one by one, as that version allows.
//! Invariant: what is given is the text that came, without a copy; an array in an array is no message.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::message::{MAX_DEPTH, is_deeper_than};

/// The version of the protocol that has batches.
pub const BATCHING: &str = "2025-03-26";

/// The messages of a batch, where the session's version has them. `None`: it is none, or one that is refused, like any other array, by who
/// parses it.
pub fn messages(line: &Bytes, version: Option<&str>) -> Option<Vec<Bytes>> {
    if version != Some(BATCHING)
        || line.trim_ascii_start().first() != Some(&b'[')
        || is_deeper_than(line, MAX_DEPTH + 1)
    {
        return None;
    }
    let found: Vec<&RawValue> = serde_json::from_slice(line).ok()?;
    let is_good = (1..=MOST).contains(&found.len()) && found.iter().all(|message| message.get().starts_with('{'));
    is_good.then(|| found.iter().map(|message| line.slice_ref(message.get().as_bytes())).collect())
}

/// Of one batch. What may be in flight at a time is bounded beside it.
const MOST: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_taken_apart_as_it_is_written_and_where_it_is_allowed_alone() {
        let line = Bytes::from_static(b" [ {\"a\" : 1.0e2}, {\"b\":[]} ] ");
        assert_eq!(messages(&line, Some(BATCHING)).unwrap(), ["{\"a\" : 1.0e2}", "{\"b\":[]}"]);
        assert_eq!(messages(&line, Some("2025-06-18")), None);
        assert_eq!(messages(&line, None), None);
        for line in ["[]", "[[{}]]", "[1]", "[{}", "{}", "[{}] x"] {
            assert_eq!(messages(&Bytes::from(line), Some(BATCHING)), None, "{line}");
        }
        let many = |count: usize| Bytes::from(format!("[{}]", vec!["{}"; count].join(",")));
        assert_eq!(messages(&many(MOST), Some(BATCHING)).unwrap().len(), MOST);
        assert_eq!(messages(&many(MOST + 1), Some(BATCHING)), None);
        let deep = format!("[{{\"a\":{}{}}}]", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
        assert_eq!(messages(&Bytes::from(deep), Some(BATCHING)), None);
    }
}
