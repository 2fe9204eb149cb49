//! The span of a request, and the W3C trace context on its way through mcpeg.
//!
//! Costs nothing but one check when no subscriber wants the spans. A trace context that a client made up and that cannot be read is
//! ignored, as the W3C recommendation asks. Messages are never changed: towards a stdio upstream the client's `_meta` stands as it
//! came, towards an HTTP upstream the header says our span.

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::protocol::{PROMPTS_GET, TOOLS_CALL};
use crate::ports::TraceIds;

/// The span of one request, with the ids under which it is recorded.
#[derive(Debug)]
pub struct RequestSpan {
    span: Span,
    pub ids: Option<TraceIds>,
    /// The `traceparent` to send on.
    pub onward: Option<String>,
}

/// What a span says of its request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Subject<'a> {
    pub method: &'a str,
    /// The name in the parameters.
    pub name: Option<&'a str>,
    pub uri: Option<&'a str>,
    pub service: &'a str,
    /// As it was written.
    pub id: &'a str,
    pub version: Option<&'static str>,
}

/// Starts the span. Whatever a client has written is cut to `MAX_CHARS`.
pub fn start(subject: Subject<'_>, traceparent: Option<&str>) -> RequestSpan {
    let parent = traceparent.and_then(parse);
    if !tracing::span_enabled!(target: "mcpeg::mcp", tracing::Level::INFO) {
        let onward = parent.is_some().then(|| traceparent.map(str::to_owned)).flatten();
        return RequestSpan { span: Span::none(), ids: parent.as_ref().map(ids), onward };
    }
    let (method, called) = (clip(subject.method), subject.name.map(clip));
    let tool = called.filter(|_| method == TOOLS_CALL);
    let prompt = called.filter(|_| method == PROMPTS_GET);
    let name = tool.or(prompt).map_or_else(|| method.to_owned(), |called| format!("{method} {called}"));
    let span = tracing::info_span!(
        target: "mcpeg::mcp",
        "mcp.request",
        otel.name = name,
        otel.kind = "server",
        otel.status_code = Empty,
        mcp.method.name = method,
        gen_ai.operation.name = tool.map(|_| EXECUTE_TOOL),
        gen_ai.tool.name = tool,
        gen_ai.prompt.name = prompt,
        mcp.resource.uri = subject.uri.map(clip),
        mcp.protocol.version = subject.version,
        jsonrpc.request.id = clip(subject.id.trim_matches('"')),
        mcpeg.service = subject.service,
        "error.type" = Empty,
        rpc.response.status_code = Empty,
        network.transport = "unix",
    );
    if let Some(parent) = parent {
        // Fails only where there is no OpenTelemetry layer, and then nothing is exported.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
    let own = span.context().span().span_context().clone();
    let onward = if own.is_valid() { Some(write(&own)) } else { traceparent.map(str::to_owned) };
    RequestSpan { ids: own.is_valid().then(|| ids(&own)), span, onward }
}

impl RequestSpan {
    /// Says how the request ended; `status` is the code of an error of the protocol. The span closes when this is dropped.
    pub fn finish(&self, error: Option<&str>, status: Option<i64>) {
        if let Some(status) = status {
            self.span.record("rpc.response.status_code", status.to_string());
        }
        if let Some(error) = error {
            self.span.record("otel.status_code", "ERROR");
            self.span.record("error.type", error);
        }
    }
}

/// Reads a `traceparent` (W3C Trace Context, version 00 and what later versions keep of it).
fn parse(text: &str) -> Option<SpanContext> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lower_hex = |part: &str, length| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let well_formed = lower_hex(version, 2) && lower_hex(trace, 32) && lower_hex(span, 16) && lower_hex(flags, 2);
    if !well_formed || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let context = SpanContext::new(trace, span, flags, true, TraceState::NONE);
    context.is_valid().then_some(context)
}

fn write(context: &SpanContext) -> String {
    let flags = context.trace_flags() & TraceFlags::SAMPLED;
    format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), flags.to_u8())
}

fn ids(context: &SpanContext) -> TraceIds {
    TraceIds { trace_id: context.trace_id().to_bytes(), span_id: context.span_id().to_bytes() }
}

/// A client's word as it goes into a record: not longer than a name may be.
pub fn clip(text: &str) -> &str {
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

/// The value of `gen_ai.operation.name` for `tools/call`.
pub const EXECUTE_TOOL: &str = "execute_tool";
const MAX_CHARS: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Subject<'static> {
        Subject { method: "tools/call", name: Some("echo"), service: "s", id: "1", ..Subject::default() }
    }

    fn ping() -> Subject<'static> {
        Subject { method: "ping", service: "s", id: "1", ..Subject::default() }
    }

    #[test]
    fn a_client_s_word_is_cut() {
        assert_eq!((clip("échó"), clip(&"ü".repeat(500)).chars().count()), ("échó", MAX_CHARS));
    }

    #[test]
    fn a_trace_context_is_read_and_written_alike_and_nonsense_is_ignored() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(write(&parse(text).unwrap()), text);
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn without_a_subscriber_the_context_goes_on_as_it_came() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let span = start(call(), Some(text));
        assert_eq!(span.onward.as_deref(), Some(text));
        assert!(span.ids.is_some());
        assert!(start(ping(), Some("nonsense")).onward.is_none());
    }

    #[test]
    fn with_a_tracer_the_span_is_a_child_of_the_callers() {
        use opentelemetry::trace::TracerProvider;
        use tracing_subscriber::layer::SubscriberExt;

        let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
            let span = start(call(), Some(text));
            let onward = parse(span.onward.as_deref().unwrap()).unwrap();
            assert_eq!(onward.trace_id(), parse(text).unwrap().trace_id());
            assert_ne!(onward.span_id(), parse(text).unwrap().span_id());
            assert_eq!(span.ids.unwrap().span_id, onward.span_id().to_bytes());
            span.finish(Some("timeout"), Some(-32011));
            assert!(start(ping(), None).onward.is_some(), "without a caller it is a root");
        });
    }
}
