//! A provider of type `aws-secrets-manager` from its written shape to the secrets domain's settings.

use std::path::{Path, PathBuf};

use url::Url;

use super::vault::Variables;
use super::{Check, join, seconds};
use crate::config::raw::scalar::RawSecretText;
use crate::config::raw::secrets::{RawAws, RawAwsAuth, RawAwsRole};
use crate::secret::SecretText;
use crate::secrets::settings::{AwsLogin, AwsRole, AwsSettings};

pub fn settings(raw: RawAws, path: &[&str], variables: Variables<'_>, check: &mut Check<'_>) -> Option<AwsSettings> {
    let profile = raw.profile.filter(|profile| !profile.is_empty());
    let region = raw.region.filter(|region| !region.is_empty());
    if region.is_none() && !elsewhere(variables) {
        let help = "set `region`, AWS_REGION, or `region` of the profile in ~/.aws/config";
        check.problem_with(path, "nothing says the region", help);
    }
    let auth_path = join(path, &["auth"]);
    let auth = auth(raw.auth, &auth_path, check)?;
    if profile.is_some() && !matches!(auth, AwsLogin::Default { .. }) {
        check.problem(&auth_path, "`profile` names credentials already: leave out one of the two");
    }
    if raw.assume_roles.len() > MOST_ROLES {
        check.problem(&join(path, &["assume_roles"]), format!("at most {MOST_ROLES} roles can be chained"));
    }
    Some(AwsSettings {
        region,
        endpoint: address(raw.endpoint, &join(path, &["endpoint"]), check),
        sts_endpoint: address(raw.sts_endpoint, &join(path, &["sts_endpoint"]), check),
        profile,
        auth,
        roles: raw.assume_roles.into_iter().map(role).collect(),
        ca_file: check.ca_file(path, raw.tls),
        timeout: raw.timeout.map_or(seconds(10), |timeout| timeout.0),
    })
}

/// Whether the region may be known from outside. What a profile says is read at the login, so that only its file is looked for.
fn elsewhere(variables: Variables<'_>) -> bool {
    let set = |name: &str| variables(name).filter(|value| !value.is_empty());
    let given = ["AWS_REGION", "AWS_DEFAULT_REGION"].iter().any(|name| set(name).is_some());
    let file = |name: &str, usual: &str| {
        let path = set(name).map(PathBuf::from);
        path.or_else(|| set("HOME").map(|home| Path::new(&home).join(usual))).is_some_and(|path| path.exists())
    };
    given || file("AWS_CONFIG_FILE", ".aws/config") || file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials")
}

/// The item's path as the source takes it: the secret's name or ARN, `#`, and the label of the version.
pub fn item_path(secret: &str, stage: Option<String>, path: &[&str], check: &mut Check<'_>) -> String {
    // docs.aws.amazon.com/secretsmanager/latest/apireference/API_CreateSecret.html: letters, digits and /_+=.@-, and `:` in an ARN.
    if !secret.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_+=.@-:".contains(&b)) || secret.len() > 2048 {
        check.problem(&join(path, &["path"]), "a secret's name has letters, digits and `/_+=.@-`; or give its ARN");
    }
    let stage = stage.unwrap_or_else(|| "AWSCURRENT".to_owned());
    if !(1..=256).contains(&stage.len()) || !stage.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        check.problem(&join(path, &["version_stage"]), "expected a label such as `AWSPENDING`");
    }
    format!("{secret}#{stage}")
}

fn auth(raw: Option<RawAwsAuth>, path: &[&str], check: &mut Check<'_>) -> Option<AwsLogin> {
    Some(match raw {
        None => AwsLogin::Default { instance_metadata: false },
        Some(RawAwsAuth::Default { instance_metadata }) => {
            AwsLogin::Default { instance_metadata: instance_metadata.unwrap_or(false) }
        }
        Some(RawAwsAuth::Static { access_key_id, secret_access_key, session_token }) => {
            let mut text = |key: &str, value: RawSecretText| {
                let refers = value.0.references().next().is_some();
                if refers {
                    let message = "a login may not refer to a secret, which needs the login first";
                    check.problem(&join(path, &[key]), message);
                }
                (!refers).then_some(value.0)
            };
            let access_key_id = text("access_key_id", access_key_id);
            let secret_access_key = text("secret_access_key", secret_access_key);
            let session_token: Option<SecretText> = session_token.and_then(|token| text("session_token", token));
            AwsLogin::Static { access_key_id: access_key_id?, secret_access_key: secret_access_key?, session_token }
        }
        Some(RawAwsAuth::WebIdentity { role_arn, token_file, session_name }) => {
            check.readable(&join(path, &["token_file"]), &token_file.0);
            AwsLogin::WebIdentity { role_arn, token_file: token_file.0, session_name: session(session_name) }
        }
    })
}

fn role(raw: RawAwsRole) -> AwsRole {
    AwsRole {
        role_arn: raw.role_arn,
        external_id: raw.external_id.filter(|id| !id.is_empty()),
        session_name: session(raw.session_name),
    }
}

fn session(name: Option<String>) -> String {
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "mcpeg".to_owned())
}

/// `None` for the empty text, too, which stands for "not set".
fn address(text: Option<String>, path: &[&str], check: &mut Check<'_>) -> Option<Url> {
    let text = text.filter(|text| !text.is_empty())?;
    match Url::parse(&text) {
        Ok(url) if ["http", "https"].contains(&url.scheme()) && url.has_host() => Some(url),
        _ => {
            check.problem(path, "expected an address such as `https://host:4566`");
            None
        }
    }
}

const MOST_ROLES: usize = 8;
