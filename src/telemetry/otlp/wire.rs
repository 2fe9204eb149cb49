//! The wire: a connection to the collector by either protocol, opened when there is something to send.
//!
//! A connection that was used may hold a credential in its buffers. So a wire with headers is closed when it rests, and replaced as
//! soon as any of its secrets has a new version.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_otlp::{
    Compression, ExporterBuildError, MetricExporter, Protocol, RetryPolicy, SpanExporter, WithExportConfig,
    WithHttpConfig, WithTonicConfig,
};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::trace::SpanExporter as _;
use prost::Message;
use tokio::sync::watch;

use crate::telemetry::settings::{self, OtlpProtocol};
use crate::telemetry::tallies::Signal;

use super::answer::{self, Answer, Trouble};
use super::backoff::Pause;
use super::grpc::GrpcWire;
use super::http::HttpWire;
use super::plan::{Plan, SignalPlans};

pub struct Wire {
    plan: Arc<Plan>,
    /// The versions of the secrets that it may have carried.
    stamp: Vec<u64>,
    /// The reading of the files of TLS that it was opened with.
    reading: u64,
    transport: Transport,
}

enum Transport {
    Http(Arc<HttpWire>),
    Grpc(GrpcWire),
}

impl Wire {
    fn open(plan: &Arc<Plan>) -> Result<Self, Trouble> {
        let stamp =
            plan.headers().map_err(|problem| Trouble::new(format!("is not asked: {problem}"), Pause::Absent))?.stamp;
        let reading = plan.follow_tls();
        let transport = match plan.settings.protocol {
            OtlpProtocol::HttpProtobuf => HttpWire::new(plan.clone()).map(Arc::new).map(Transport::Http),
            OtlpProtocol::Grpc => GrpcWire::new(plan.clone()).map(Transport::Grpc),
        };
        let transport = transport.map_err(|error| Trouble::new(format!("cannot be asked: {error}"), Pause::Busy))?;
        Ok(Self { plan: plan.clone(), stamp, reading, transport })
    }

    /// Whether it still leads where `plan` says and carried nothing but what is current.
    fn is_current(&self, plan: &Arc<Plan>) -> bool {
        Arc::ptr_eq(&self.plan, plan) && plan.follow_tls() == self.reading && self.carries_current_secrets()
    }

    fn carries_current_secrets(&self) -> bool {
        !self.plan.carries_secrets() || self.plan.headers().is_ok_and(|resolved| resolved.stamp == self.stamp)
    }

    /// Runs a request, but leaves it when a secret that it carries is replaced: a collector that hangs must not keep the old value alive.
    pub async fn guard<T>(&self, request: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
        let outdated = async {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                if !self.carries_current_secrets() {
                    return;
                }
            }
        };
        tokio::select! {
            result = request => result,
            () = outdated => {
                let trouble = Trouble::new("had not answered when the credential changed", Pause::Absent);
                Err(Trouble { uncertain: true, ..trouble })
            }
        }
    }

    /// Sends an encoded export request. For a delivered one, says how many records were rejected.
    pub async fn send(&self, signal: Signal, body: Bytes) -> (Answer, u64) {
        match &self.transport {
            Transport::Http(http) => {
                let (answer, body) = http.post(self.plan.url(signal), body).await;
                (answer, rejected(&body))
            }
            Transport::Grpc(grpc) => match grpc.send(signal, body).await {
                Ok(body) => (Answer::Delivered, rejected(&body)),
                Err(status) => (answer::of_grpc(&status, self.plan.settings.timeout), 0),
            },
        }
    }

    pub fn span_exporter(&self, resource: &Resource) -> Result<SpanExporter, Trouble> {
        let built = match &self.transport {
            Transport::Http(http) => SpanExporter::builder()
                .with_http()
                .with_shared_http_client(http.clone())
                .with_endpoint(self.plan.url(Signal::Traces))
                .with_protocol(Protocol::HttpBinary)
                .with_timeout(self.plan.settings.timeout)
                .with_retry_policy(RetryPolicy::disabled())
                .build(),
            Transport::Grpc(grpc) => {
                let builder = SpanExporter::builder()
                    .with_tonic()
                    .with_channel(grpc.channel.clone())
                    .with_interceptor(grpc.headers())
                    .with_timeout(self.plan.settings.timeout)
                    .with_retry_policy(RetryPolicy::disabled());
                match compression_of(&self.plan) {
                    Some(compression) => builder.with_compression(compression),
                    None => builder,
                }
                .build()
            }
        };
        let mut exporter = built.map_err(unbuildable)?;
        exporter.set_resource(resource);
        Ok(exporter)
    }

    pub fn metric_exporter(&self) -> Result<MetricExporter, Trouble> {
        match &self.transport {
            Transport::Http(http) => MetricExporter::builder()
                .with_http()
                .with_shared_http_client(http.clone())
                .with_endpoint(self.plan.url(Signal::Metrics))
                .with_protocol(Protocol::HttpBinary)
                .with_timeout(self.plan.settings.timeout)
                .with_retry_policy(RetryPolicy::disabled())
                .build(),
            Transport::Grpc(grpc) => {
                let builder = MetricExporter::builder()
                    .with_tonic()
                    .with_channel(grpc.channel.clone())
                    .with_interceptor(grpc.headers())
                    .with_timeout(self.plan.settings.timeout)
                    .with_retry_policy(RetryPolicy::disabled());
                match compression_of(&self.plan) {
                    Some(compression) => builder.with_compression(compression),
                    None => builder,
                }
                .build()
            }
        }
        .map_err(unbuildable)
    }

    /// What a failed export of one of the SDK's exporters means.
    pub fn answer_of(&self, error: &OTelSdkError) -> Answer {
        match &self.transport {
            Transport::Http(http) => match http.last_answer() {
                Answer::Delivered => Answer::Failed(Trouble::new(format!("cannot be asked: {error}"), Pause::Busy)),
                answer => answer,
            },
            // The SDK keeps the status to itself and tells a text, which names the code and no header.
            Transport::Grpc(_) => {
                let text = error.to_string();
                let phrase = match text.rsplit_once("gRPC code: ") {
                    Some((_, code)) => format!("answered {code}"),
                    None => format!("cannot be asked: {text}"),
                };
                Answer::Failed(Trouble { doubtful: true, ..Trouble::new(phrase, Pause::Absent) })
            }
        }
    }
}

/// Keeps at most one wire, for one signal.
pub struct Link {
    plans: watch::Receiver<SignalPlans>,
    signal: Signal,
    wire: Option<Wire>,
}

impl Link {
    pub fn new(plans: watch::Receiver<SignalPlans>, signal: Signal) -> Self {
        Self { plans, signal, wire: None }
    }

    /// A wire to the collector as configured now.
    pub fn wire(&mut self) -> Result<&Wire, Trouble> {
        let plan = self.plans.borrow().of(self.signal).clone();
        let wire = match self.wire.take().filter(|wire| wire.is_current(&plan)) {
            Some(wire) => wire,
            None => Wire::open(&plan)?,
        };
        Ok(self.wire.insert(wire))
    }

    /// Completes when the configuration of the collector has changed.
    pub async fn changed(&mut self) {
        if self.plans.changed().await.is_err() {
            // Nobody is left who could change it.
            std::future::pending::<()>().await;
        }
    }

    /// When an unused wire should be let go: soon, if a credential may be in its buffers; else never.
    pub fn tires_after(&self) -> Option<Duration> {
        self.wire.as_ref().filter(|wire| wire.plan.carries_secrets()).map(|_| REST_AFTER)
    }

    /// Lets a wire go that may hold a credential.
    pub fn rest(&mut self) {
        self.wire = self.wire.take().filter(|wire| !wire.plan.carries_secrets());
    }
}

fn compression_of(plan: &Plan) -> Option<Compression> {
    match plan.settings.compression {
        settings::Compression::None => None,
        settings::Compression::Gzip => Some(Compression::Gzip),
        settings::Compression::Zstd => Some(Compression::Zstd),
    }
}

/// What a successful answer says of records that were not taken. The answers of all three signals have one shape.
fn rejected(body: &[u8]) -> u64 {
    let partial = ExportLogsServiceResponse::decode(body).unwrap_or_default().partial_success;
    partial.map_or(0, |partial| u64::try_from(partial.rejected_log_records).unwrap_or(0))
}

fn unbuildable(error: ExporterBuildError) -> Trouble {
    Trouble::new(format!("cannot be asked: {error}"), Pause::Busy)
}

/// Well under the second within which a replaced secret has to be gone.
const REST_AFTER: Duration = Duration::from_millis(400);
const LOOK_EVERY: Duration = Duration::from_millis(250);
