//! Tokens of a real authorization server: both grants, discovery, rotated refresh tokens, and what the server refuses.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::nginx::{Certificates, Nginx};
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::upstream::{HttpServer, with};
use crate::support::{eventually, free_port, http, memory, peers};

/// Tokens live so long; they are replaced after a third of it, since the `overlap` is longer.
const LIFE: &str = "6";
const SECRET: &str = "app secret/+%";

struct AuthorizationServer {
    server: HttpServer,
    port: u16,
}

impl AuthorizationServer {
    async fn start() -> Self {
        let port = free_port();
        Self { server: Self::at(port).await, port }
    }

    async fn at(port: u16) -> HttpServer {
        HttpServer::start(with(peers::argv("oauth_server"), &["--port", &port.to_string(), "--ttl", LIFE])).await
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    async fn call(&self, path: &str) -> Value {
        let answer = http().post(format!("{}{path}", self.address())).send().await.unwrap();
        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
    }

    /// What it was asked for tokens, without the secrets.
    async fn asked(&self) -> Vec<Value> {
        let answer = http().get(format!("{}/test/asked", self.address())).send().await.unwrap();
        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
    }

    /// As if a person had consented.
    async fn refresh_token(&self) -> String {
        self.call("/test/grant").await["refresh_token"].as_str().unwrap().to_owned()
    }
}

fn folder(provider: &str, item: &str, more: &str) -> Folder {
    let main = format!(
        "version: \"1.0\"\nsecrets:\n  providers:\n    login: {{ type: oauth, {provider} }}\n    dev: {{ type: file, path: keys.yaml }}\n  \
         items:\n    api: {{ provider: login, {item} }}\n    app: {{ provider: dev, path: app }}\n{more}\
         templates: [ {{ source: t.j2, destination: out }} ]\naudit: {{ path: audit.log }}\n"
    );
    let keys = format!("app: {{ secret: {} }}\n", json!(SECRET));
    Folder::new(&[("mcpeg.yaml", &main), ("keys.yaml", &keys), ("t.j2", TEMPLATE), ("secret", SECRET)])
}

const TEMPLATE: &str = "{{ secret.api.access_token }} {{ secret.api.token_type }} {{ secret.api.expires_at }}";

/// Another token than `before`.
async fn another(sidecar: &Sidecar, before: &str) -> String {
    eventually(Duration::from_secs(15), "another token is rendered", async || {
        let text = sidecar.folder.read("out");
        let token = text.split(' ').next().unwrap_or_default().to_owned();
        (!token.is_empty() && token != before).then_some(token)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_tokens_for_itself_and_the_next_before_one_ends() {
    let mut server = AuthorizationServer::start().await;
    let provider = format!(
        "issuer: \"{}\", client_id: app, client_secret: \"${{secret.app.secret}}\", grant: client_credentials, \
         scopes: [read, write], resource: \"https://mcp.example/a\"",
        server.address()
    );
    let sidecar = Sidecar::start(folder(&provider, "path: read, parameters: { audience: us }", ""));
    let first = another(&sidecar, "").await;
    let text = sidecar.folder.read("out");
    let expires_at: u64 = text.rsplit(' ').next().unwrap().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(text.contains(" Bearer ") && (now - 10..=now + 6).contains(&expires_at), "{text}");
    let second = another(&sidecar, &first).await;
    let asked = server.asked().await;
    let expected = json!({ "basic": true, "posted": false, "grant": "client_credentials", "scope": "read",
        "resource": "https://mcp.example/a", "audience": "us" });
    assert!(asked.len() >= 2 && asked.iter().all(|one| *one == expected), "{asked:#?}");
    assert!(sidecar.folder.audit("secret.rotated")[0].to_string().contains("\"ending\""));
    assert!(!sidecar.folder.read("audit.log").contains(&second));

    server.server.kill();
    sidecar.says("provider/login", &["degraded", "refused the connection"]).await;
    // Probes show no secret, so that there is no request under way that has one.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for (what, value) in
        [("the token before", first.as_str()), ("the client's secret", SECRET), ("it, encoded", "app+secret%2F%2B%25")]
    {
        let found = memory::find(sidecar.pid(), value);
        assert!(found.is_empty(), "{what}: {} copies: {found:#?}", found.len());
    }
    let last = sidecar.folder.read("out");
    server.server = AuthorizationServer::at(server.port).await;
    let back = std::time::Instant::now();
    another(&sidecar, last.split(' ').next().unwrap()).await;
    assert!(back.elapsed() < Duration::from_secs(3), "{:?}", back.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_that_is_replaced_at_each_use_outlives_a_reload_and_a_kill() {
    let server = AuthorizationServer::start().await;
    let provider = format!(
        "issuer: \"{}\", client_id: app, client_secret_file: secret, grant: refresh_token, refresh_token_file: consent",
        server.address()
    );
    let cache = "  cache: { path: kept/leases.age, sealed_with: { identity_file: key } }\n";
    let folder = folder(&provider, "overlap: 30s", cache);
    folder.write("consent", &server.refresh_token().await);
    assert!(folder.mcpeg(&["check"]).status.success());
    let generated = std::process::Command::new(crate::support::sidecar::PROGRAM)
        .args(["seal", "--generate-key"])
        .arg(folder.path("key"))
        .output()
        .unwrap();
    assert!(generated.status.success());
    let sidecar = Sidecar::start(folder);
    let mut token = another(&sidecar, "").await;
    token = another(&sidecar, &token).await;
    // Another provider with the same login, which begins where the one before has ended.
    let main = sidecar.folder.read("mcpeg.yaml");
    sidecar.folder.write("mcpeg.yaml", &main.replace("client_id: app", "timeout: 9s, client_id: app"));
    assert!(sidecar.folder.mcpeg(&["reload"]).status.success());
    for _ in 0..2 {
        token = another(&sidecar, &token).await;
    }
    let folder = killed(sidecar).await;
    std::fs::remove_file(folder.path("out")).unwrap();
    let sidecar = Sidecar::start(folder);
    token = another(&sidecar, "").await;
    token = another(&sidecar, &token).await;
    let consent = sidecar.folder.read("consent");
    let kept = std::fs::read(sidecar.folder.path("kept/leases.age")).unwrap();
    assert!(!kept.windows(consent.len()).any(|part| part == consent.as_bytes()));
    assert!(sidecar.folder.audit("secret.failed").is_empty());

    server.call("/test/revoke").await;
    let said = sidecar.says("secret/api", &["degraded", "refused: invalid_grant", "serving version"]).await;
    assert!(!said.contains(&consent), "{said}");
    sidecar.folder.write("consent", &server.refresh_token().await);
    another(&sidecar, &token).await;
    another(&sidecar, &token).await;
    let asked = server.asked().await;
    assert!(asked.len() < 40, "{} requests", asked.len());
}

async fn killed(mut sidecar: Sidecar) -> Folder {
    sidecar.signal(libc::SIGKILL);
    sidecar.ended().await;
    std::mem::replace(&mut sidecar.folder, Folder::new(&[]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_names_its_server_and_what_is_refused_is_told_by_name() {
    let server = AuthorizationServer::start().await;
    let address = server.address();
    let main = format!(
        "version: \"1.0\"
secrets:
  providers:
    mcp: {{ type: oauth, resource: \"{address}/mcp\", client_id: app, client_secret_file: secret, grant: client_credentials }}
    post: {{ type: oauth, token_url: \"{address}/token\", client_auth: post, client_id: poster, client_secret: poster secret, grant: client_credentials }}
    wrong: {{ type: oauth, issuer: \"{address}\", client_id: app, client_secret: hunter2-hunter2, grant: client_credentials }}
    other: {{ type: oauth, token_url: \"{address}/token\", resource: \"https://other.example/\", client_id: app, client_secret_file: secret, grant: client_credentials }}
    lost: {{ type: oauth, issuer: \"{address}/nobody\", client_id: app, client_secret_file: secret, grant: client_credentials }}
  items:
    mcp: {{ provider: mcp, path: write }}
    post: {{ provider: post }}
    wrong: {{ provider: wrong, require_at_start: false }}
    other: {{ provider: other, require_at_start: false }}
    narrow: {{ provider: mcp, path: admin, require_at_start: false }}
    lost: {{ provider: lost, require_at_start: false }}
templates: [ {{ source: t.j2, destination: out }} ]
"
    );
    let template = "{{ secret.mcp.access_token }} {{ secret.mcp.scope }} {{ secret.post.token_type }}";
    let sidecar = Sidecar::start(Folder::new(&[("mcpeg.yaml", &main), ("t.j2", template), ("secret", SECRET)]));
    eventually(Duration::from_secs(15), "the tokens are rendered", async || {
        sidecar.folder.read("out").ends_with(" write Bearer").then_some(())
    })
    .await;
    let asked = server.asked().await;
    let wanted = |one: &&Value| one["resource"] == format!("{address}/mcp") && one["scope"] == "write";
    assert!(asked.iter().any(|one| wanted(&one)), "{asked:#?}");
    assert!(asked.iter().any(|one| one["posted"] == true && one["basic"] == false), "{asked:#?}");
    sidecar.says("secret/wrong", &["degraded", "refused: invalid_client"]).await;
    sidecar.says("secret/other", &["degraded", "refused: invalid_target"]).await;
    sidecar.says("secret/narrow", &["degraded", "refused: invalid_scope"]).await;
    sidecar.says("secret/lost", &["degraded", "have no metadata of an authorization server"]).await;
    for good in ["secret/mcp", "secret/post", "provider/mcp"] {
        assert!(!sidecar.condition(good).unwrap().contains("degraded"), "{good}");
    }
    assert!(!sidecar.stderr().contains("hunter2"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(server.asked().await.len() < 60, "nobody storms");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_certificate_is_shown_beside_its_secret_or_is_the_login_and_is_followed() {
    let (server, made) = (AuthorizationServer::start().await, Certificates::new("localhost", &["one", "two"]));
    let port = free_port();
    let listen = format!(
        "listen 127.0.0.1:{port} ssl; ssl_certificate {{folder}}/server.pem; ssl_certificate_key {{folder}}/server.key;\n\
         ssl_client_certificate {{folder}}/ca.pem; ssl_verify_client on; proxy_set_header x-client-verify $ssl_client_verify;\n\
         proxy_set_header x-client-name $ssl_client_s_dn;"
    );
    let files = ["server.pem", "server.key", "ca.pem"].map(|name| (name, made.read(name)));
    let files = files.each_ref().map(|(name, bytes)| (*name, bytes.as_slice()));
    let nginx = Nginx::before(&format!("{}/mcp", server.address()), &listen, &files).await;
    let url = format!("https://localhost:{port}/token");
    let tls = "tls: { ca_file: ca.pem, cert_file: cert.pem, key_file: key.pem }";
    let main = format!(
        "version: \"1.0\"
secrets:
  providers:
    certified: {{ type: oauth, token_url: \"{url}\", client_id: certified, grant: client_credentials, {tls} }}
    both: {{ type: oauth, token_url: \"{url}\", client_id: app, client_secret_file: secret, grant: client_credentials, {tls} }}
    bare: {{ type: oauth, token_url: \"{url}\", client_id: app, client_secret_file: secret, grant: client_credentials, tls: {{ ca_file: ca.pem }} }}
  items:
    certified: {{ provider: certified }}
    both: {{ provider: both }}
    bare: {{ provider: bare, require_at_start: false }}
templates: [ {{ source: t.j2, destination: out }} ]
"
    );
    let template = "{{ secret.certified.access_token }} {{ secret.both.token_type }}";
    let folder = Folder::new(&[("mcpeg.yaml", &main), ("t.j2", template), ("secret", SECRET)]);
    let put = |folder: &Folder, client: &str| {
        folder.write("cert.pem", &made.text(&format!("{client}.pem")));
        folder.write("key.pem", &made.text(&format!("{client}.key")));
    };
    folder.write("ca.pem", &made.text("ca.pem"));
    put(&folder, "one");
    let sidecar = Sidecar::start(folder);
    let first = another(&sidecar, "").await;
    another(&sidecar, &first).await;
    assert!(sidecar.folder.read("out").ends_with(" Bearer"));
    let asked = server.asked().await;
    assert!(asked.iter().any(|one| one["basic"] == false && one["posted"] == false), "{asked:#?}");
    assert!(asked.iter().any(|one| one["basic"] == true), "{asked:#?}");
    sidecar.says("secret/bare", &["degraded", "status 400"]).await;

    // Another client's certificate is not this client's login.
    put(&sidecar.folder, "two");
    sidecar.says("provider/certified", &["degraded", "refused: invalid_client"]).await;
    assert!(nginx.seen().iter().any(|line| line.contains("CN=two")), "{:#?}", nginx.seen());
    let last = sidecar.folder.read("out");
    put(&sidecar.folder, "one");
    another(&sidecar, last.split(' ').next().unwrap()).await;
}
