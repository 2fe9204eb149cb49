//! Takes secrets out of audit events and spans before anything is written or queued.
//!
//! Names of events, attributes and metrics are ours and constant; only what comes from elsewhere is looked at.

use std::borrow::Cow;

use opentelemetry::trace::Status;
use opentelemetry::{Array, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::SpanData;

use crate::ports::{AuditEvent, AuditValue, Redactor};

pub fn event(redactor: &dyn Redactor, event: &mut AuditEvent) {
    for (_, value) in &mut event.attributes {
        match value {
            AuditValue::Text(text) => replace(redactor, text),
            AuditValue::List(texts) => texts.iter_mut().for_each(|text| replace(redactor, text)),
            AuditValue::Integer(_) | AuditValue::Float(_) | AuditValue::Bool(_) => {}
        }
    }
}

pub fn span(redactor: &dyn Redactor, span: &mut SpanData) {
    if let Cow::Owned(name) = redactor.redact_text(&span.name) {
        span.name = name.into();
    }
    attributes(redactor, &mut span.attributes);
    for event in &mut span.events.events {
        if let Cow::Owned(name) = redactor.redact_text(&event.name) {
            event.name = name.into();
        }
        attributes(redactor, &mut event.attributes);
    }
    if let Status::Error { description } = &mut span.status
        && let Cow::Owned(clean) = redactor.redact_text(description)
    {
        *description = clean.into();
    }
}

fn attributes(redactor: &dyn Redactor, attributes: &mut [KeyValue]) {
    for attribute in attributes {
        match &mut attribute.value {
            Value::String(text) => replace_value(redactor, text),
            Value::Array(Array::String(texts)) => texts.iter_mut().for_each(|text| replace_value(redactor, text)),
            _ => {}
        }
    }
}

fn replace(redactor: &dyn Redactor, text: &mut String) {
    if let Cow::Owned(clean) = redactor.redact_text(text) {
        *text = clean;
    }
}

fn replace_value(redactor: &dyn Redactor, text: &mut StringValue) {
    if let Cow::Owned(clean) = redactor.redact_text(text.as_str()) {
        *text = clean.into();
    }
}

/// Takes one value out, for tests.
#[cfg(test)]
pub struct Masking;

#[cfg(test)]
impl Redactor for Masking {
    fn redact<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        match std::str::from_utf8(bytes) {
            Ok(text) if text.contains("hunter2!") => {
                Cow::Owned(text.replace("hunter2!", "[REDACTED:test]").into_bytes())
            }
            _ => Cow::Borrowed(bytes),
        }
    }

    fn counts(&self) -> Vec<crate::ports::RedactedCount> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Span, SpanKind, Tracer, TracerProvider};
    use std::sync::{Arc, Mutex};

    use opentelemetry_sdk::trace::{SdkTracerProvider, SpanExporter};

    use super::*;
    use crate::ports::Outcome;

    #[test]
    fn the_texts_of_an_event_are_cleaned_and_its_numbers_are_left() {
        let mut found = AuditEvent::new("x.y", Outcome::Failure)
            .with("error.message", "login with hunter2! failed")
            .with("n", 7_i64)
            .with("list", vec!["plain".to_owned(), "hunter2!".to_owned()]);
        event(&Masking, &mut found);
        assert_eq!(found.attributes[0].1, AuditValue::Text("login with [REDACTED:test] failed".to_owned()));
        assert_eq!(found.attributes[1].1, AuditValue::Integer(7));
        assert_eq!(found.attributes[2].1, AuditValue::List(vec!["plain".to_owned(), "[REDACTED:test]".to_owned()]));
    }

    #[derive(Debug, Clone, Default)]
    struct Cleaning(Arc<Mutex<String>>);

    impl SpanExporter for Cleaning {
        async fn export(&self, mut batch: Vec<SpanData>) -> opentelemetry_sdk::error::OTelSdkResult {
            batch.iter_mut().for_each(|one| span(&Masking, one));
            self.0.lock().unwrap().push_str(&format!("{batch:?}"));
            Ok(())
        }
    }

    #[test]
    fn every_text_of_a_span_is_cleaned() {
        let exporter = Cleaning::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let tracer = provider.tracer("test");
        let mut made = tracer.span_builder("call hunter2!").with_kind(SpanKind::Server).start(&tracer);
        made.set_attribute(KeyValue::new("uri", "x://hunter2!/y"));
        made.set_attribute(KeyValue::new("texts", Value::Array(Array::String(vec!["hunter2!".into()]))));
        made.add_event("said hunter2!", vec![KeyValue::new("what", "hunter2!")]);
        made.set_status(Status::error("because of hunter2!"));
        made.end();
        let text = exporter.0.lock().unwrap().clone();
        assert!(!text.contains("hunter2!"), "{text}");
        assert_eq!(text.matches("[REDACTED:test]").count(), 6, "{text}");
    }
}
