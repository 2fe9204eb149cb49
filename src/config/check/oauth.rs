//! A provider of type `oauth` from its written shape to the secrets domain's settings.

use url::{Host, Url};

use super::{Check, join, seconds};
use crate::config::raw::scalar::{RawPath, RawSecretText, RawUrl};
use crate::config::raw::secrets::{RawOAuth, RawOAuthClientAuth, RawOAuthGrant};
use crate::secrets::settings::{
    ClientAuth, Credential, OAuthGrant, OAuthServer, OAuthSettings, ProviderSettings, SecretsSettings,
};

pub fn settings(raw: RawOAuth, path: &[&str], check: &mut Check<'_>) -> Option<OAuthSettings> {
    let resource = raw.resource.map(|url| url.0);
    let server = server(raw.issuer, raw.token_url, resource.as_ref(), path, check)?;
    let client_secret = credential(raw.client_secret, raw.client_secret_file, "client_secret", path, check);
    let refresh_token = credential(raw.refresh_token, raw.refresh_token_file, "refresh_token", path, check);
    let grant = grant(raw.grant, refresh_token, path, check)?;
    let tls = check.tls_files(path, raw.tls);
    if grant == OAuthGrant::ClientCredentials && client_secret.is_none() && tls.client.is_none() {
        let message = "`client_secret_file` or `client_secret` is missing, or a client's certificate under `tls`";
        check.problem(path, message);
    }
    if raw.client_id.is_empty() {
        check.problem(&join(path, &["client_id"]), "expected a client's name");
    }
    for (index, scope) in raw.scopes.iter().enumerate() {
        if !is_scope(scope) {
            let at = index.to_string();
            check.problem(&join(path, &["scopes", &at]), "expected one scope, without spaces and quotes");
        }
    }
    Some(OAuthSettings {
        server,
        client_id: raw.client_id,
        client_secret,
        client_auth: raw.client_auth.map(|auth| match auth {
            RawOAuthClientAuth::Basic => ClientAuth::Basic,
            RawOAuthClientAuth::Post => ClientAuth::Post,
        }),
        grant,
        scopes: raw.scopes,
        resource: resource.map(|url| written(&url)),
        tls,
        timeout: raw.timeout.map_or(seconds(10), |timeout| timeout.0),
    })
}

fn server(
    issuer: Option<RawUrl>,
    token_url: Option<RawUrl>,
    resource: Option<&Url>,
    path: &[&str],
    check: &mut Check<'_>,
) -> Option<OAuthServer> {
    if resource.is_some_and(|url| url.fragment().is_some()) {
        check.problem(&join(path, &["resource"]), "a resource has no fragment: leave out `#` and what follows");
    }
    let (server, key) = match (issuer, token_url, resource) {
        (Some(issuer), None, _) => (OAuthServer::Issuer(issuer.0), "issuer"),
        (None, Some(url), _) => (OAuthServer::TokenUrl(url.0), "token_url"),
        (None, None, Some(resource)) => (OAuthServer::Resource(resource.clone()), "resource"),
        (Some(_), Some(_), _) => {
            check.problem(path, "`issuer` and `token_url` both say where tokens come from: leave one of the two out");
            return None;
        }
        (None, None, None) => {
            check.problem(path, "`token_url`, `issuer` or `resource` is missing");
            return None;
        }
    };
    if !is_protected(server.address()) {
        check.problem(&join(path, &[key]), "expected an address with `https`; `http` serves on the loopback alone");
    }
    Some(server)
}

fn grant(
    raw: RawOAuthGrant,
    refresh_token: Option<Credential>,
    path: &[&str],
    check: &mut Check<'_>,
) -> Option<OAuthGrant> {
    match (raw, refresh_token) {
        (RawOAuthGrant::ClientCredentials, None) => Some(OAuthGrant::ClientCredentials),
        (RawOAuthGrant::RefreshToken, Some(token)) => Some(OAuthGrant::RefreshToken(token)),
        (RawOAuthGrant::ClientCredentials, Some(_)) => {
            check.problem(path, "a refresh token is for `grant: refresh_token`");
            None
        }
        (RawOAuthGrant::RefreshToken, None) => {
            check.problem(path, "`refresh_token_file` or `refresh_token` is missing");
            None
        }
    }
}

/// What a provider needs for its login may come from an item, but not from one that needs such a login itself.
pub fn references(settings: &SecretsSettings, check: &mut Check<'_>) {
    for (name, provider) in &settings.providers {
        let ProviderSettings::OAuth(oauth) = provider else { continue };
        let refresh_token = match &oauth.grant {
            OAuthGrant::RefreshToken(token) => Some(token),
            OAuthGrant::ClientCredentials => None,
        };
        for (key, credential) in [("client_secret", oauth.client_secret.as_ref()), ("refresh_token", refresh_token)] {
            let Some(Credential::Inline(text)) = credential else { continue };
            let of_oauth = text.references().find(|reference| {
                let item = settings.items.get(&reference.item);
                let provider = item.and_then(|item| settings.providers.get(&item.provider));
                matches!(provider, Some(ProviderSettings::OAuth(_)))
            });
            if let Some(reference) = of_oauth {
                let message =
                    format!("`{}` is of a provider of type `oauth`, which a login may not wait for", reference.item);
                check.problem(&["secrets", "providers", name, key], message);
            }
        }
    }
}

/// Parameters of the request that the settings have keys for.
pub fn is_parameter(name: &str) -> bool {
    !["grant_type", "client_id", "client_secret", "refresh_token", "scope", "resource"].contains(&name)
}

fn credential(
    inline: Option<RawSecretText>,
    file: Option<RawPath>,
    key: &str,
    path: &[&str],
    check: &mut Check<'_>,
) -> Option<Credential> {
    match (inline, file) {
        (Some(_), Some(_)) => {
            check.problem(path, format!("`{key}` and `{key}_file` are both given: leave one of the two out"));
            None
        }
        (Some(text), None) => Some(Credential::Inline(text.0)),
        (None, Some(file)) => {
            let key = format!("{key}_file");
            check.readable(&join(path, &[&key]), &file.0);
            Some(Credential::File(file.0))
        }
        (None, None) => None,
    }
}

fn is_protected(url: &Url) -> bool {
    let is_loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    url.scheme() == "https" && url.has_host() || url.scheme() == "http" && is_loopback
}

/// RFC 6749, 3.3.
fn is_scope(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
}

/// Servers compare a resource byte by byte: an address without a path is sent without the slash that it has here.
fn written(url: &Url) -> String {
    let text = url.as_str();
    let is_bare = url.path() == "/" && url.query().is_none();
    if is_bare { text.trim_end_matches('/').to_owned() } else { text.to_owned() }
}
