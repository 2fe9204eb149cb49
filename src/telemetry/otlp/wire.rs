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

use crate::telemetry::metrics::Signal;
use crate::telemetry::settings::OtlpProtocol;

use super::answer::{self, Answer, Trouble};
use super::backoff::Pause;
use super::grpc::GrpcWire;
use super::http::HttpWire;
use super::plan::Plan;

pub struct Wire {
    plan: Arc<Plan>,
    /// The versions of the secrets that it may have carried.
    stamp: Vec<u64>,
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
        let transport = match plan.settings.protocol {
            OtlpProtocol::HttpProtobuf => HttpWire::new(plan.clone()).map(Arc::new).map(Transport::Http),
            OtlpProtocol::Grpc => GrpcWire::new(plan.clone()).map(Transport::Grpc),
        };
        let transport = transport.map_err(|error| Trouble::new(format!("cannot be asked: {error}"), Pause::Busy))?;
        Ok(Self { plan: plan.clone(), stamp, transport })
    }

    /// Whether it still leads where `plan` says and carried nothing but what is current.
    fn is_current(&self, plan: &Arc<Plan>) -> bool {
        Arc::ptr_eq(&self.plan, plan) && self.carries_current_secrets()
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
            () = outdated => Err(Trouble::new("had not answered when the credential changed", Pause::Absent)),
        }
    }

    /// Sends an encoded `ExportLogsServiceRequest`. For a delivered one, says how many records were rejected.
    pub async fn send_logs(&self, body: Bytes) -> (Answer, u64) {
        let (answer, response) = match &self.transport {
            Transport::Http(http) => {
                let (answer, body) = http.post(self.plan.url(Signal::Logs), body).await;
                (answer, ExportLogsServiceResponse::decode(body).unwrap_or_default())
            }
            Transport::Grpc(grpc) => match grpc.send_logs(body).await {
                Ok(response) => (Answer::Delivered, response),
                Err(status) => (answer::of_grpc(&status, self.plan.settings.timeout), Default::default()),
            },
        };
        let rejected = response.partial_success.map_or(0, |partial| partial.rejected_log_records);
        (answer, u64::try_from(rejected).unwrap_or(0))
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
                if self.plan.settings.gzip { builder.with_compression(Compression::Gzip) } else { builder }.build()
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
                if self.plan.settings.gzip { builder.with_compression(Compression::Gzip) } else { builder }.build()
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
    plans: watch::Receiver<Option<Arc<Plan>>>,
    wire: Option<Wire>,
}

impl Link {
    pub fn new(plans: watch::Receiver<Option<Arc<Plan>>>) -> Self {
        Self { plans, wire: None }
    }

    /// Whether a collector is configured.
    pub fn is_configured(&self) -> bool {
        self.plans.borrow().is_some()
    }

    /// A wire to the collector as configured now. `None` when there is none.
    pub fn wire(&mut self) -> Option<Result<&Wire, Trouble>> {
        let plan = self.plans.borrow().clone();
        let Some(plan) = plan else {
            self.wire = None;
            return None;
        };
        let wire = match self.wire.take().filter(|wire| wire.is_current(&plan)) {
            Some(wire) => wire,
            None => match Wire::open(&plan) {
                Ok(wire) => wire,
                Err(trouble) => return Some(Err(trouble)),
            },
        };
        Some(Ok(self.wire.insert(wire)))
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

fn unbuildable(error: ExporterBuildError) -> Trouble {
    Trouble::new(format!("cannot be asked: {error}"), Pause::Busy)
}

/// Well under the second within which a replaced secret has to be gone.
const REST_AFTER: Duration = Duration::from_millis(400);
const LOOK_EVERY: Duration = Duration::from_millis(250);
