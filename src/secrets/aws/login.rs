//! The SDK's client: its connections, its region, and where its credentials come from.
//!
//! Nothing here asks the metadata address of an instance unless the settings say so: the SDK's own chains would, for the region too.
//! Invariants: no connection is kept idle, because its buffers would keep an answer; no proxy is used; TLS is rustls with ring; a static
//! key is in plain memory only while a request is under way. Credentials that AWS gives for a while are kept by the SDK until they end.

use std::time::Duration;

use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::{EnvironmentVariableCredentialsProvider, EnvironmentVariableRegionProvider};
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::meta::region::ProvideRegion;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::config::{IdentityCache, SharedHttpClient};
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};

use crate::secret::SecretText;

use super::super::settings::{AwsLogin, AwsSettings};
use super::super::source::{FailureKind, FetchError};

pub(super) struct Login {
    settings: AwsSettings,
    http: SharedHttpClient,
}

impl Login {
    /// Reads the roots; asks nothing of the network.
    pub fn new(settings: &AwsSettings) -> Result<Self, String> {
        let mut roots = TrustStore::default();
        if let Some(file) = &settings.ca_file {
            // Read by the project's own reader first, which says what is wrong with it; the SDK would panic.
            crate::tls::roots("https", Some(file)).map_err(|error| error.to_string())?;
            let pem = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
            roots = TrustStore::empty().with_pem_certificate(pem);
        }
        let tls = TlsContext::builder().with_trust_store(roots).build().map_err(|error| error.to_string())?;
        let http = Builder::new()
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .tls_context(tls)
            .pool_max_idle_per_host(0)
            .build_https();
        Ok(Self { settings: settings.clone(), http })
    }

    /// Where requests go, for messages.
    pub fn server(&self) -> String {
        match (&self.settings.endpoint, &self.settings.region) {
            (Some(endpoint), _) => format!("Secrets Manager at {}", endpoint.origin().ascii_serialization()),
            (None, Some(region)) => format!("Secrets Manager in {region}"),
            (None, None) => "Secrets Manager".to_owned(),
        }
    }

    /// A client with a new login. Reads the environment and the profile's files; the network is asked at the first request.
    pub async fn client(&self) -> Result<Client, FetchError> {
        let region = self.region().await?;
        let base = self.base_config(&region).await;
        let mut credentials = self.credentials(&region, &base);
        let sts = self.sts_config(&base);
        for role in &self.settings.roles {
            let mut assume =
                AssumeRoleProvider::builder(&role.role_arn).configure(&sts).session_name(&role.session_name);
            if let Some(id) = &role.external_id {
                assume = assume.external_id(id);
            }
            credentials = SharedCredentialsProvider::new(assume.build_from_provider(credentials).await);
        }
        let mut config = aws_sdk_secretsmanager::config::Builder::from(&base).credentials_provider(credentials);
        if let Some(endpoint) = &self.settings.endpoint {
            config = config.endpoint_url(endpoint.as_str());
        }
        if self.is_static() {
            config = config.identity_cache(IdentityCache::no_cache());
        }
        Ok(Client::from_conf(config.build()))
    }

    fn is_static(&self) -> bool {
        matches!(self.settings.auth, AwsLogin::Static { .. }) && self.settings.roles.is_empty()
    }

    async fn region(&self) -> Result<Region, FetchError> {
        let profile = ProfileFileRegionProvider::builder();
        let profile = match &self.settings.profile {
            Some(name) => profile.profile_name(name),
            None => profile,
        };
        let found = match &self.settings.region {
            Some(region) => Some(Region::new(region.clone())),
            None => match EnvironmentVariableRegionProvider::new().region().await {
                Some(region) => Some(region),
                None => profile.build().region().await,
            },
        };
        let missing = "no region: neither `region` nor AWS_REGION nor the profile says one";
        found.ok_or_else(|| FetchError::new(FailureKind::Login, missing))
    }

    /// With a provider of credentials that has none: whoever needs one names it.
    async fn base_config(&self, region: &Region) -> SdkConfig {
        let timeout = self.settings.timeout;
        let timeouts =
            TimeoutConfig::builder().connect_timeout(timeout.min(LONGEST_CONNECT)).operation_timeout(timeout).build();
        aws_config::defaults(BehaviorVersion::latest())
            .region(region.clone())
            .http_client(self.http.clone())
            // When to try again is the rotator's to say.
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            .no_credentials()
            .load()
            .await
    }

    fn sts_config(&self, base: &SdkConfig) -> SdkConfig {
        match &self.settings.sts_endpoint {
            Some(endpoint) => base.to_builder().endpoint_url(endpoint.as_str()).build(),
            None => base.clone(),
        }
    }

    fn credentials(&self, region: &Region, base: &SdkConfig) -> SharedCredentialsProvider {
        match &self.settings.auth {
            AwsLogin::Default { instance_metadata } => self.chain(region, *instance_metadata),
            AwsLogin::Static { access_key_id, secret_access_key, session_token } => {
                let (id, key, token) = (access_key_id.clone(), secret_access_key.clone(), session_token.clone());
                SharedCredentialsProvider::new(StaticKey { id, key, token })
            }
            AwsLogin::WebIdentity { role_arn, token_file, session_name } => {
                SharedCredentialsProvider::new(WebIdentity {
                    sts: aws_sdk_sts::Client::new(&self.sts_config(base)),
                    role_arn: role_arn.clone(),
                    token_file: token_file.clone(),
                    session_name: session_name.clone(),
                })
            }
        }
    }

    fn chain(&self, region: &Region, instance_metadata: bool) -> SharedCredentialsProvider {
        let config =
            ProviderConfig::without_region().with_region(Some(region.clone())).with_http_client(self.http.clone());
        let profile = ProfileFileCredentialsProvider::builder().configure(&config);
        if let Some(name) = &self.settings.profile {
            return SharedCredentialsProvider::new(profile.profile_name(name).build());
        }
        let web_identity = WebIdentityTokenCredentialsProvider::builder().configure(&config).build();
        let container = EcsCredentialsProvider::builder().configure(&config).build();
        let chain = CredentialsProviderChain::first_try("Environment", EnvironmentVariableCredentialsProvider::new())
            .or_else("Profile", profile.build())
            .or_else("WebIdentityToken", web_identity)
            .or_else("Container", container);
        if !instance_metadata {
            return SharedCredentialsProvider::new(chain);
        }
        let metadata = ImdsCredentialsProvider::builder().configure(&config).build();
        SharedCredentialsProvider::new(chain.or_else("InstanceMetadata", metadata))
    }
}

/// An access key that stays in locked memory between requests.
#[derive(Debug)]
struct StaticKey {
    id: SecretText,
    key: SecretText,
    token: Option<SecretText>,
}

impl ProvideCredentials for StaticKey {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let credentials = || {
            let token = self.token.as_ref().map(plain).transpose()?.filter(|token| !token.is_empty());
            Ok(Credentials::new(plain(&self.id)?, plain(&self.key)?, token, None, "mcpeg"))
        };
        future::ProvideCredentials::ready(credentials())
    }
}

/// The text of a login, in which no reference stands.
fn plain(text: &SecretText) -> Result<String, CredentialsError> {
    let secret = text.resolve(|_| Err(())).ok();
    let plain = secret.as_ref().and_then(|secret| secret.expose_str()).map(str::to_owned);
    plain.ok_or_else(|| CredentialsError::invalid_configuration("the access key is not UTF-8"))
}

/// docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html
#[derive(Debug)]
struct WebIdentity {
    sts: aws_sdk_sts::Client,
    role_arn: String,
    token_file: std::path::PathBuf,
    session_name: String,
}

impl WebIdentity {
    async fn ask(&self) -> Result<Credentials, CredentialsError> {
        let token = zeroize::Zeroizing::new(
            tokio::fs::read_to_string(&self.token_file).await.map_err(CredentialsError::provider_error)?,
        );
        let answer = self
            .sts
            .assume_role_with_web_identity()
            .role_arn(&self.role_arn)
            .role_session_name(&self.session_name)
            .web_identity_token(token.trim())
            .send()
            .await
            .map_err(CredentialsError::provider_error)?;
        let given = answer.credentials.ok_or_else(|| CredentialsError::unhandled("STS gave no credentials"))?;
        let expires = std::time::SystemTime::try_from(given.expiration).map_err(CredentialsError::unhandled)?;
        let (id, key, token) = (given.access_key_id, given.secret_access_key, given.session_token);
        Ok(Credentials::new(id, key, Some(token), Some(expires), "WebIdentity"))
    }
}

impl ProvideCredentials for WebIdentity {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.ask())
    }
}

const LONGEST_CONNECT: Duration = Duration::from_secs(5);
