//! The process's own log: to standard error and, when asked, to a file (`log_file`), as text for a person or as JSON for a machine.
//!
//! Owns the tracing subscriber. One gate decides which events are shown, another which spans are made; both can be changed while the
//! process runs. With traces off no span passes, so that a span's callsite costs one branch on a static.
//! Crates that could print a credential (or chatter) are quiet whatever the level says.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use opentelemetry_sdk::trace::SdkTracer;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::fmt::format::{Compact, Format, FormatEvent, FormatFields, Json, Writer};
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::fmt::{self, FmtContext, MakeWriter};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry};

use super::error::TelemetryError;
use super::log_file::{self, LogFile};
use super::settings::{LogFormat, LogLevel, LogSettings};
use crate::lifecycle::Part;
use crate::ports::Redactor;

/// What is shown and how; shared between the subscriber and whoever changes it.
pub struct LogControl {
    level: AtomicU8,
    json: AtomicBool,
    spans: AtomicBool,
    /// Whether there is a file; what is in it is the file's own business.
    filed: AtomicBool,
    file: Arc<LogFile>,
    redactor: Arc<dyn Redactor>,
}

impl LogControl {
    /// Opens the log's file, if there is to be one.
    pub fn new(log: &LogSettings, spans: bool, redactor: Arc<dyn Redactor>) -> Result<Arc<Self>, TelemetryError> {
        let file = Arc::new(LogFile::default());
        let control = Self {
            level: AtomicU8::new(0),
            json: AtomicBool::new(false),
            spans: AtomicBool::new(false),
            filed: AtomicBool::new(false),
            file,
            redactor,
        };
        control.store(log, spans, Self::open(log)?);
        Ok(Arc::new(control))
    }

    /// Opens the file that the settings ask for; nothing changes before `change`.
    pub fn open(log: &LogSettings) -> Result<Option<log_file::Open>, TelemetryError> {
        log.file.as_ref().map(LogFile::open).transpose()
    }

    /// What looks after the log's file.
    pub fn part(&self) -> Part {
        log_file::part(self.file.clone())
    }

    /// Lines that could not be written to the file.
    pub fn lost(&self) -> u64 {
        self.file.lost()
    }

    /// Changes what the subscriber lets through, from the next event on.
    pub fn change(&self, log: &LogSettings, spans: bool, file: Option<log_file::Open>) {
        self.store(log, spans, file);
        // Callsites remember whether anybody wants them; they must ask again.
        tracing::callsite::rebuild_interest_cache();
    }

    /// Installs the global subscriber. Can be done once in a process.
    pub fn install(self: &Arc<Self>, tracer: SdkTracer) -> Result<(), TelemetryError> {
        let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        tracing::subscriber::set_global_default(self.subscriber(tracer, io::stderr, colour))
            .map_err(|_| TelemetryError::LoggingInstalled)
    }

    fn subscriber<W>(
        self: &Arc<Self>,
        tracer: SdkTracer,
        writer: W,
        colour: bool,
    ) -> impl Subscriber + Send + Sync + 'static
    where
        W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
    {
        let lines = fmt::layer()
            .event_format(Lines::new(self.clone(), colour))
            .with_writer(writer)
            .with_ansi(colour)
            .with_filter(EventGate(self.clone()));
        let filed = fmt::layer()
            .event_format(Lines::new(self.clone(), false))
            .with_writer(log_file::Lines(self.file.clone()))
            .with_ansi(false)
            .with_filter(FileGate(self.clone()));
        let spans = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(SpanGate(self.clone()));
        Registry::default().with(lines).with(filed).with(spans)
    }

    fn store(&self, log: &LogSettings, spans: bool, file: Option<log_file::Open>) {
        self.filed.store(file.is_some(), Ordering::Relaxed);
        self.file.change(file);
        self.level.store(log.level as u8, Ordering::Relaxed);
        self.json.store(log.format == LogFormat::Json, Ordering::Relaxed);
        self.spans.store(spans, Ordering::Relaxed);
    }

    fn level(&self) -> LevelFilter {
        LEVELS.get(usize::from(self.level.load(Ordering::Relaxed))).copied().unwrap_or(LevelFilter::INFO)
    }

    fn shows(&self, event: &Metadata<'_>) -> bool {
        let level = match QUIET.iter().find(|(target, _)| is_within(event.target(), target)) {
            Some((_, most)) => self.level().min(*most),
            None if is_within(event.target(), OWN) => self.level(),
            None => self.level().min(LevelFilter::WARN),
        };
        *event.level() <= level
    }
}

/// Lets the events through that the log shows.
struct EventGate(Arc<LogControl>);

impl EventGate {
    fn passes(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && self.0.shows(metadata)
    }
}

impl<S> Filter<S> for EventGate {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.passes(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.passes(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0.level())
    }
}

/// Lets the same events into the log's file while there is one.
struct FileGate(Arc<LogControl>);

impl FileGate {
    fn passes(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && self.0.filed.load(Ordering::Relaxed) && self.0.shows(metadata)
    }
}

impl<S> Filter<S> for FileGate {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.passes(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.passes(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(if self.0.filed.load(Ordering::Relaxed) { self.0.level() } else { LevelFilter::OFF })
    }
}

/// Lets the spans of MCP requests through while traces are on.
struct SpanGate(Arc<LogControl>);

impl SpanGate {
    fn passes(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && self.0.spans.load(Ordering::Relaxed) && is_within(metadata.target(), TRACED)
    }
}

impl<S> Filter<S> for SpanGate {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.passes(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.passes(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(if self.0.spans.load(Ordering::Relaxed) { LevelFilter::TRACE } else { LevelFilter::OFF })
    }
}

/// One event, one line, in the format of the moment.
struct Lines {
    control: Arc<LogControl>,
    text: Format<Compact, SystemTime>,
    json: Format<Json, SystemTime>,
}

impl Lines {
    fn new(control: Arc<LogControl>, colour: bool) -> Self {
        let json = fmt::format().json().flatten_event(true).with_current_span(false).with_span_list(false);
        Self { control, text: fmt::format().compact().with_ansi(colour), json }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    /// The line is made apart, so that nothing that is taken out of it ever gets into the subscriber's buffer, which is kept.
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> std::fmt::Result {
        let mut line = String::new();
        if self.control.json.load(Ordering::Relaxed) {
            self.json.format_event(ctx, Writer::new(&mut line), event)?;
        } else {
            self.text.format_event(ctx, Writer::new(&mut line), event)?;
        }
        writer.write_str(&self.control.redactor.redact_text(&line))
    }
}

fn is_within(target: &str, parent: &str) -> bool {
    target.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

const OWN: &str = "mcpeg";
/// Spans are made only below this target.
const TRACED: &str = "mcpeg::mcp";
/// Their messages hold paths of secrets or whole requests; their failures come back as errors, which mcpeg logs itself.
const QUIET: &[(&str, LevelFilter)] = &[
    ("vaultrs", LevelFilter::OFF),
    ("rustify", LevelFilter::OFF),
    ("aws_config", LevelFilter::OFF),
    ("aws_runtime", LevelFilter::OFF),
    ("aws_sdk_secretsmanager", LevelFilter::OFF),
    ("aws_sdk_sts", LevelFilter::OFF),
    ("aws_sigv4", LevelFilter::OFF),
    ("aws_smithy_http_client", LevelFilter::OFF),
    ("aws_smithy_runtime", LevelFilter::OFF),
    ("aws_smithy_runtime_api", LevelFilter::OFF),
];
/// In the order of `LogLevel`.
const LEVELS: [LevelFilter; 5] =
    [LevelFilter::ERROR, LevelFilter::WARN, LevelFilter::INFO, LevelFilter::DEBUG, LevelFilter::TRACE];
const _: () = assert!(LogLevel::Error as usize == 0 && LogLevel::Trace as usize == 4);

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;
    use crate::telemetry::rolling::{self, Rolling};
    use crate::telemetry::settings::LogFileSettings;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn shown(level: LogLevel, format: LogFormat) -> LogSettings {
        LogSettings { level, format, file: None }
    }

    #[test]
    fn what_is_shown_is_in_the_file_too_and_a_full_disk_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/mcpeg.log");
        let rolling = Rolling { max_bytes: Some(200), ..Rolling::NEVER };
        let file = |path: &std::path::Path| Some(LogFileSettings { path: path.to_owned(), rolling: rolling.clone() });
        let settings = LogSettings { file: file(&path), ..shown(LogLevel::Info, LogFormat::Text) };
        let control = LogControl::new(&settings, false, redactor()).unwrap();
        captured(&control, || {
            for number in 0..5 {
                tracing::info!(target: "mcpeg::secrets", number, line = "key=hunter2!", "stderr");
            }
            tracing::debug!(target: "mcpeg::secrets", "hidden");
            let full = LogSettings { file: file(std::path::Path::new("/dev/full")), ..settings.clone() };
            control.change(&full, false, LogControl::open(&full).unwrap());
            tracing::info!(target: "mcpeg::secrets", "lost");
            assert_eq!(control.lost(), 1);
            let none = shown(LogLevel::Info, LogFormat::Text);
            control.change(&none, false, None);
            tracing::info!(target: "mcpeg::secrets", "not in a file");
        });
        let mut files = rolling::set_aside_from(&path).unwrap();
        assert!(!files.is_empty(), "it was begun anew");
        files.push(path.clone());
        let text: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.contains("number=4") && !text.contains("hunter2!") && !text.contains("hidden"), "{text}");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    fn redactor() -> Arc<dyn Redactor> {
        Arc::new(crate::telemetry::redact::Masking)
    }

    #[test]
    fn what_is_secret_is_taken_out_of_a_line_in_both_formats() {
        let control = LogControl::new(&shown(LogLevel::Info, LogFormat::Text), false, redactor()).unwrap();
        let text = captured(&control, || {
            tracing::info!(target: "mcpeg::upstream", line = "key=hunter2!", "stderr");
            control.change(&shown(LogLevel::Info, LogFormat::Json), false, None);
            tracing::info!(target: "mcpeg::upstream", line = "key=hunter2!", "stderr");
        });
        let lines: Vec<&str> = text.lines().collect();
        assert!(!text.contains("hunter2!") && lines[0].contains("key=[REDACTED:test]"), "{text}");
        let json: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
        assert_eq!(json["line"], "key=[REDACTED:test]");
    }

    fn captured(control: &Arc<LogControl>, speak: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let tracer = SdkTracerProvider::builder().build().tracer("test");
        tracing::subscriber::with_default(control.subscriber(tracer, move || writer.clone(), false), speak);
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn level_and_format_change_while_running_and_other_crates_stay_quiet() {
        let control = LogControl::new(&shown(LogLevel::Info, LogFormat::Text), false, redactor()).unwrap();
        let text = captured(&control, || {
            tracing::debug!(target: "mcpeg::secrets", "hidden");
            tracing::info!(target: "mcpeg::secrets", secret = "weather", "renewed");
            tracing::info!(target: "hyper::proto", "chatter");
            tracing::error!(target: "vaultrs::client", "token in here");
            control.change(&shown(LogLevel::Debug, LogFormat::Json), false, None);
            tracing::debug!(target: "mcpeg::secrets", version = 2, "now shown");
        });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].contains("INFO mcpeg::secrets: renewed secret=\"weather\""), "{text}");
        let json: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
        assert_eq!((json["level"].as_str(), json["version"].as_u64()), (Some("DEBUG"), Some(2)));
        assert_eq!(json["message"], "now shown");
    }

    #[test]
    fn spans_of_mcp_are_made_only_while_traces_are_on() {
        let log = shown(LogLevel::Error, LogFormat::Text);
        let control = LogControl::new(&log, false, redactor()).unwrap();
        captured(&control, || {
            let made = || {
                let ours = tracing::info_span!(target: "mcpeg::mcp::router", "tools/call");
                let other = tracing::error_span!(target: "mcpeg::secrets", "renew");
                (!ours.is_disabled(), !other.is_disabled())
            };
            assert_eq!(made(), (false, false));
            control.change(&log, true, None);
            assert_eq!(made(), (true, false));
            control.change(&log, false, None);
            assert_eq!(made(), (false, false));
        });
    }

    #[test]
    fn a_target_is_within_itself_and_its_parents_only() {
        assert!(is_within("mcpeg::mcp", "mcpeg::mcp") && is_within("mcpeg::mcp::router", "mcpeg::mcp"));
        assert!(!is_within("mcpeg::mcpx", "mcpeg::mcp") && !is_within("mcpeg", "mcpeg::mcp"));
    }
}
