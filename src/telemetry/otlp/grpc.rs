//! OTLP over gRPC: a channel, an interceptor that reads the headers from the secrets for each call, and a codec for requests that are
//! encoded already.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use prost::Message;
use tonic::client::Grpc;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::service::Interceptor;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use crate::telemetry::error::TelemetryError;

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
        let mut endpoint = Endpoint::from_shared(plan.settings.endpoint.to_string())
            .map_err(unusable)?
            .timeout(timeout)
            .connect_timeout(timeout);
        if plan.settings.endpoint.scheme() == "https" {
            let trusted = ClientTlsConfig::new().trust_anchors(plan.roots.roots.iter().cloned());
            endpoint = endpoint.tls_config(trusted).map_err(unusable)?;
        }
        let channel = endpoint.connect_lazy();
        Ok(Self { plan, channel })
    }

    /// Sends an encoded `ExportLogsServiceRequest`.
    pub async fn send_logs(&self, body: Bytes) -> Result<ExportLogsServiceResponse, Status> {
        let mut request = self.headers().call(Request::new(()))?.map(|()| body);
        request.set_timeout(self.plan.settings.timeout);
        let mut client = Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES);
        if self.plan.settings.gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        client.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let answer = client.unary(request, PathAndQuery::from_static(LOGS_EXPORT), Encoded).await?.into_inner();
        // An answer that cannot be read says at least that the request was taken.
        Ok(ExportLogsServiceResponse::decode(answer).unwrap_or_default())
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

const LOGS_EXPORT: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
const MAX_ANSWER_BYTES: usize = 256 * 1024;
