//! Providers of type `oauth`: what is read of them, and the mistakes that are said.

use super::*;
use crate::secrets::settings::{OAuthGrant, OAuthServer};

#[test]
fn a_client_and_a_consent_have_their_settings() {
    let folder = Folder::with(&[
        (
            "mcpeg.yaml",
            r#"version: "1.0"
secrets:
  providers:
    own: { type: oauth, resource: "https://mcp.example", client_id: app, client_secret: "${secret.app.secret}", grant: client_credentials }
    given: { type: oauth, issuer: "https://as.example/tenant", client_id: app, grant: refresh_token, refresh_token_file: consent, scopes: [read] }
    dev: { type: environment }
  items:
    app: { provider: dev, path: APP }
    a: { provider: own, path: "read write", parameters: { audience: us } }
    b: { provider: given }
"#,
        ),
        ("consent", "hunter2"),
    ]);
    let config = load(&folder.sources()).unwrap_or_else(|problems| panic!("{problems}"));
    let ProviderSettings::OAuth(own) = &config.secrets.providers["own"] else { panic!("not OAuth") };
    assert!(matches!(&own.server, OAuthServer::Resource(url) if url.as_str() == "https://mcp.example/"));
    assert_eq!(own.resource.as_deref(), Some("https://mcp.example"), "as it was written");
    let ProviderSettings::OAuth(given) = &config.secrets.providers["given"] else { panic!("not OAuth") };
    assert!(given.client_secret.is_none() && matches!(given.grant, OAuthGrant::RefreshToken(_)));
    assert_eq!(config.secrets.items["a"].path, "read write");
}

#[test]
fn mistakes_in_a_grant_are_said() {
    let found = problems_of(
        r#"version: "1.0"
secrets:
  providers:
    nowhere: { type: oauth, client_id: a, client_secret: s, grant: client_credentials }
    twice: { type: oauth, issuer: "https://a.example", token_url: "https://a.example/t", client_id: a, client_secret: s, grant: client_credentials }
    plain: { type: oauth, token_url: "http://a.example/t", client_id: a, client_secret: s, grant: client_credentials }
    bare: { type: oauth, issuer: "https://a.example", client_id: a, grant: client_credentials }
    unconsented: { type: oauth, issuer: "https://a.example", client_id: a, grant: refresh_token }
    both: { type: oauth, issuer: "https://a.example", client_id: "", client_secret: s, refresh_token: r, grant: client_credentials }
    scoped: { type: oauth, issuer: "https://a.example", client_id: a, client_secret: s, grant: client_credentials, scopes: ["a b"] }
    circle: { type: oauth, issuer: "https://a.example", client_id: a, client_secret: "${secret.x.access_token}", grant: client_credentials }
  items:
    x: { provider: scoped, parameters: { scope: read } }
"#,
    );
    for said in [
        "`token_url`, `issuer` or `resource` is missing",
        "`issuer` and `token_url` both say",
        "expected an address with `https`",
        "`client_secret_file` or `client_secret` is missing",
        "`refresh_token_file` or `refresh_token` is missing",
        "a refresh token is for `grant: refresh_token`",
        "expected one scope",
        "`scope` has a key of its own",
        "`x` is of a provider of type `oauth`",
    ] {
        assert_eq!(found.iter().filter(|line| line.contains(said)).count(), 1, "{said}: {found:#?}");
    }
}
