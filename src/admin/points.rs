//! `GET /v1/metrics`: points of metrics of the last hours. `name`, `tag` (`KEY=VALUE`, again and again), `since_ms`, `aggregate`.

use std::borrow::Cow;
use std::time::Duration;

use serde_json::{Value, json};

use crate::ports::{Aggregate, MetricQuery, MetricsStore};

/// The answer, or what is wrong with the question.
pub async fn answer(store: &dyn MetricsStore, query: &str) -> Result<Value, Wrong> {
    let (query, which) = parse(query).map_err(Wrong::Question)?;
    let found = store.query(query).await.map_err(|error| Wrong::Store(error.to_string()))?;
    let series: Vec<Value> = found
        .iter()
        .map(|series| {
            let mut shown = json!(series);
            if let (Some(which), Some(object)) = (&which, shown.as_object_mut()) {
                object.insert("aggregate".to_owned(), json!(which));
            }
            shown
        })
        .collect();
    Ok(json!({ "series": series }))
}

#[derive(Debug, PartialEq)]
pub enum Wrong {
    Question(String),
    Store(String),
}

fn parse(query: &str) -> Result<(MetricQuery, Option<String>), String> {
    let mut wanted =
        MetricQuery { name: String::new(), tags: Vec::new(), since: Duration::from_secs(3600), aggregate: None };
    let mut which = None;
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "name" => wanted.name = value.into_owned(),
            "tag" => {
                let (key, value) = value.split_once('=').ok_or("`tag` is not KEY=VALUE")?;
                wanted.tags.push((key.to_owned(), value.to_owned()));
            }
            "since_ms" => {
                wanted.since = Duration::from_millis(value.parse().map_err(|_| "`since_ms` is not a number")?)
            }
            "aggregate" => {
                wanted.aggregate = Some(Aggregate::of(&value).ok_or("`aggregate` is none that there is")?);
                which = Some(Cow::into_owned(value));
            }
            _ => return Err(format!("there is no `{key}`")),
        }
    }
    Ok((wanted, which))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_taken_whole_or_refused() {
        let (query, which) = parse("name=a.b&tag=k%3Dv%3Dw&tag=l=&since_ms=5&aggregate=p95").unwrap();
        assert_eq!(
            (query.name.as_str(), query.since, which.as_deref()),
            ("a.b", Duration::from_millis(5), Some("p95"))
        );
        let tags = [("k".to_owned(), "v=w".to_owned()), ("l".to_owned(), String::new())];
        assert_eq!((query.tags, query.aggregate), (tags.to_vec(), Some(Aggregate::P95)));
        for wrong in ["tag=k", "since_ms=x", "aggregate=mean", "nam=a"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
