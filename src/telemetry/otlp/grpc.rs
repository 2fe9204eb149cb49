//! OTLP over gRPC: a channel, an interceptor that reads the headers from the secrets for each call, and a codec for requests that are
//! encoded already.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::service::Interceptor;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::telemetry::error::TelemetryError;
use crate::telemetry::settings::Compression;
use crate::telemetry::tallies::Signal;

use super::connect::Connector;
use super::plan::Plan;

#[derive(Clone)]
pub struct GrpcWire {
    plan: Arc<Plan>,
    pub channel: Channel,
}

impl GrpcWire {
    /// Connects at the first call. Must be called within a runtime.
    pub fn new(plan: Arc<Plan>) -> Result<Self, TelemetryError> {
        let unusable = |error: tonic::transport::Error| {
            let reason = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            TelemetryError::Endpoint { endpoint: plan.shown(), reason }
        };
        let timeout = plan.settings.timeout;
        let address = plan.settings.endpoint.to_string();
        let within = |endpoint: Endpoint| endpoint.timeout(timeout).connect_timeout(timeout);
        if plan.settings.endpoint.scheme() != "https" {
            let channel = within(Endpoint::from_shared(address).map_err(unusable)?).connect_lazy();
            return Ok(Self { plan, channel });
        }
        let wrong = |reason: String| TelemetryError::Endpoint { endpoint: plan.shown(), reason };
        let connector = Connector::new(plan.tls(), plan.server_name()).map_err(wrong)?;
        // TLS is the connector's business, so what tonic connects to is plain; what it asks for is not.
        let host = plan.settings.endpoint.host_str().unwrap_or_default();
        let port = plan.settings.endpoint.port_or_known_default().unwrap_or(443);
        let endpoint = Endpoint::from_shared(format!("http://{host}:{port}")).map_err(unusable)?;
        let origin = address.parse().map_err(|error: http::uri::InvalidUri| wrong(error.to_string()))?;
        let channel = within(endpoint.origin(origin)).connect_with_connector_lazy(connector);
        Ok(Self { plan, channel })
    }

    /// Sends an encoded export request, and hands out the encoded answer.
    pub async fn send(&self, signal: Signal, body: Bytes) -> Result<Bytes, Status> {
        let mut request = self.headers().call(Request::new(()))?.map(|()| body);
        request.set_timeout(self.plan.settings.timeout);
        let mut client = Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES);
        match self.plan.settings.compression {
            Compression::None => {}
            Compression::Gzip => client = client.send_compressed(CompressionEncoding::Gzip),
            Compression::Zstd => client = client.send_compressed(CompressionEncoding::Zstd),
        }
        client.ready().await.map_err(|error| Status::from_error(error.into()))?;
        Ok(client.unary(request, PathAndQuery::from_static(export_of(signal)), Encoded).await?.into_inner())
    }

    pub fn headers(&self) -> PutHeaders {
        PutHeaders(self.plan.clone())
    }
}

/// Puts the configured headers into each call.
#[derive(Clone)]
pub struct PutHeaders(Arc<Plan>);

impl Interceptor for PutHeaders {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let resolved = self.0.headers().map_err(|problem| Status::unavailable(problem.to_string()))?;
        let metadata: &mut http::HeaderMap = request.metadata_mut().as_mut();
        metadata.extend(resolved.headers.into_iter().map(|(name, value)| (Some(name), value)));
        Ok(request)
    }
}

/// Bytes in, bytes out: the messages are encoded elsewhere.
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

fn export_of(signal: Signal) -> &'static str {
    match signal {
        Signal::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        Signal::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    }
}

const MAX_ANSWER_BYTES: usize = 256 * 1024;
