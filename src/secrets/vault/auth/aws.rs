//! AWS IAM: a signed `sts:GetCallerIdentity` that the server sends on to AWS, to learn who signed it
//! (developer.hashicorp.com/vault/docs/auth/aws). Nothing is sent to AWS from here. OpenBao has no such method.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use vaultrs::auth::aws;
use zeroize::Zeroizing;

use crate::memory::with_wiped_stack;
use crate::secret::Secret;

use super::super::super::settings::{AwsAuth, AwsCredentials};
use super::super::super::source::{BoxFuture, FetchError};
use super::super::transport::{Request, Transport};
use super::sigv4::{Keys, Scope, authorization, basic_time};
use super::{AuthMethod, Grant};

pub(super) struct Aws {
    mount: String,
    role: Option<String>,
    sts: Sts,
    origin: Origin,
}

/// The request that is signed, but for the credentials.
struct Sts {
    host: String,
    region: String,
    server_id: Option<String>,
}

enum Origin {
    Given(Keys),
    File { path: PathBuf, profile: String },
}

/// What the server is sent, in base64.
struct Signed {
    url: String,
    headers: Zeroizing<String>,
    body: String,
}

impl Aws {
    pub fn build(settings: AwsAuth) -> Result<Self, String> {
        let origin = match settings.credentials {
            AwsCredentials::Given { access_key_id, secret_access_key, session_token } => Origin::Given(Keys {
                access_key_id,
                secret_access_key: super::literal(&secret_access_key)?,
                session_token: session_token.as_ref().map(super::literal).transpose()?,
            }),
            AwsCredentials::File { path, profile } => Origin::File { path, profile },
        };
        let sts = Sts::new(settings.region, settings.server_id);
        Ok(Self { mount: settings.mount, role: settings.role, sts, origin })
    }

    async fn exchange(&self, transport: &Transport) -> Result<Grant, FetchError> {
        let now = SystemTime::now();
        let signed = match &self.origin {
            Origin::Given(keys) => with_wiped_stack(|| self.sts.signed(keys, now)),
            Origin::File { path, profile } => {
                let text = super::credential::file(path).await?;
                with_wiped_stack(|| keys_in(&text, path, profile).map(|keys| self.sts.signed(&keys, now)))?
            }
        };
        // Without a role the server takes the one that is called like the identity.
        let login = async |client: &_| {
            aws::iam_login(
                client,
                &self.mount,
                "POST",
                &signed.url,
                &signed.headers,
                &signed.body,
                self.role.as_deref(),
            )
            .await
        };
        transport.call(Request::Login("the AWS login"), None, login).await.map(Grant::from)
    }
}

impl AuthMethod for Aws {
    fn name(&self) -> &'static str {
        "aws"
    }

    fn login<'a>(&'a self, transport: &'a Transport) -> BoxFuture<'a, Result<Grant, FetchError>> {
        Box::pin(self.exchange(transport))
    }
}

impl Sts {
    /// The address of a region, or the global one, which signs for us-east-1 (docs.aws.amazon.com/general/latest/gr/sts.html).
    fn new(region: Option<String>, server_id: Option<String>) -> Self {
        let (host, region) = match region {
            None => ("sts.amazonaws.com".to_owned(), "us-east-1".to_owned()),
            Some(region) if region.starts_with("cn-") => (format!("sts.{region}.amazonaws.com.cn"), region),
            Some(region) => (format!("sts.{region}.amazonaws.com"), region),
        };
        Self { host, region, server_id }
    }

    /// Must run where the stack is wiped afterwards.
    fn signed(&self, keys: &Keys, now: SystemTime) -> Signed {
        let time = basic_time(now);
        // In the order of their names, as the signature wants them.
        let mut headers = vec![("content-type", CONTENT_TYPE), ("host", &self.host), ("x-amz-date", &time)];
        if let Some(token) = keys.session_token.as_ref().and_then(Secret::expose_str) {
            headers.push(("x-amz-security-token", token));
        }
        if let Some(server_id) = &self.server_id {
            headers.push(("x-vault-aws-iam-server-id", server_id));
        }
        let scope = Scope { region: &self.region, service: "sts", time: &time };
        let authorization = authorization(keys, &scope, &headers, BODY.as_bytes());
        headers.push(("authorization", &authorization));
        Signed {
            url: STANDARD.encode(format!("https://{}/", self.host)),
            headers: Zeroizing::new(STANDARD.encode(Zeroizing::new(json_of(&headers)).as_bytes())),
            body: STANDARD.encode(BODY),
        }
    }
}

fn json_of(headers: &[(&str, &str)]) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let entries = headers.iter().map(|(name, value)| format!("{}:[{}]", quoted(name), quoted(value)));
    format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
}

/// Finds a profile in a shared credentials file (docs.aws.amazon.com/sdkref/latest/guide/file-format.html).
fn keys_in(text: &[u8], path: &Path, profile: &str) -> Result<Keys, FetchError> {
    let text = std::str::from_utf8(text).map_err(|_| super::credential::unreadable(path, "it is not text"))?;
    let lines = text.lines().map(str::trim);
    let mut inside = lines
        .skip_while(|line| section(line) != Some(profile))
        .skip(1)
        .take_while(|line| section(line).is_none())
        .peekable();
    if inside.peek().is_none() {
        return Err(super::credential::unreadable(path, &format!("there is no profile `{profile}` in it")));
    }
    let (mut access_key_id, mut secret_access_key, mut session_token) = (None, None, None);
    for (name, value) in inside.filter(|line| !line.starts_with(['#', ';'])).filter_map(|line| line.split_once('=')) {
        let value = value.trim();
        match name.trim() {
            "aws_access_key_id" => access_key_id = Some(value.to_owned()),
            "aws_secret_access_key" => secret_access_key = Some(Secret::copy_from(value.as_bytes())),
            "aws_session_token" => session_token = Some(Secret::copy_from(value.as_bytes())),
            _ => {}
        }
    }
    match (access_key_id, secret_access_key) {
        (Some(access_key_id), Some(secret_access_key)) => Ok(Keys { access_key_id, secret_access_key, session_token }),
        _ => {
            let reason = format!("the profile `{profile}` lacks aws_access_key_id or aws_secret_access_key");
            Err(super::credential::unreadable(path, &reason))
        }
    }
}

fn section(line: &str) -> Option<&str> {
    line.strip_prefix('[')?.split(']').next().map(str::trim)
}

const BODY: &str = "Action=GetCallerIdentity&Version=2011-06-15";
const CONTENT_TYPE: &str = "application/x-www-form-urlencoded; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# written by a tool\n[default]\naws_access_key_id = AKIA1\naws_secret_access_key=one=/+\n\n\
                        [agent]\naws_access_key_id=ASIA2\naws_secret_access_key = two\naws_session_token = three\n[half]\n\
                        aws_access_key_id = x\n";

    #[test]
    fn a_profile_of_a_credentials_file_is_found() {
        let keys = |profile: &str| keys_in(FILE.as_bytes(), Path::new("c"), profile);
        let first = keys("default").unwrap();
        assert_eq!((first.access_key_id.as_str(), first.secret_access_key.expose()), ("AKIA1", &b"one=/+"[..]));
        assert!(first.session_token.is_none());
        assert_eq!(keys("agent").unwrap().session_token.unwrap().expose(), b"three");
        let lacking = keys("half").map(drop).unwrap_err().message;
        assert_eq!(lacking, "cannot read c: the profile `half` lacks aws_access_key_id or aws_secret_access_key");
        assert_eq!(keys("none").map(drop).unwrap_err().message, "cannot read c: there is no profile `none` in it");
    }

    #[test]
    fn the_address_of_sts_follows_the_region() {
        for (region, host, scope) in [
            (None, "sts.amazonaws.com", "us-east-1"),
            (Some("eu-west-1"), "sts.eu-west-1.amazonaws.com", "eu-west-1"),
            (Some("cn-north-1"), "sts.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ] {
            let sts = Sts::new(region.map(str::to_owned), None);
            assert_eq!((sts.host.as_str(), sts.region.as_str()), (host, scope));
        }
    }
}
