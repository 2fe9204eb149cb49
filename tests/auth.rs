//! Every way to log in to Vault and OpenBao, and the way there: against real servers where they can be had. What stands in for a server
//! is said where it is made: a Kubernetes API that reviews tokens, and Vault's AWS method, which OpenBao does not have.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use crate::support::bao::{Bao, ROOT_TOKEN, TlsBao};
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::stand_in::StandIn;
use crate::support::{eventually, http, memory};

/// A configuration with one item, `app`, of the provider `corp`, rendered to `app.conf`.
fn main_file(provider: &str) -> String {
    format!(
        "version: \"1.0\"\nsecrets:\n  providers:\n    corp: {{ type: vault, {provider} }}\n  items:\n    \
         app: {{ provider: corp, path: secret/data/app, refresh: 500ms }}\ntemplates:\n  \
         - {{ source: app.j2, destination: app.conf }}\naudit: {{ path: audit.log }}\n"
    )
}

fn folder(provider: &str) -> Folder {
    Folder::new(&[("mcpeg.yaml", &main_file(provider)), ("app.j2", "{{ secret.app.token }}")])
}

async fn rendered(sidecar: &Sidecar, value: &str) {
    let what = format!("the file holds {value}; it says {:?}", sidecar.condition("provider/corp"));
    eventually(Duration::from_secs(10), &what, async || (sidecar.folder.read("app.conf") == value).then_some(())).await;
}

/// The policy `app`, which may read all of `secret/`.
async fn policy(bao: &Bao, namespace: &str) {
    let policy = json!({ "policy": "path \"secret/data/*\" { capabilities = [\"read\"] }" });
    bao.call("POST", &format!("{namespace}sys/policies/acl/app"), policy).await;
}

/// Waits for an unready sidecar to say something of its provider.
async fn unready(folder: Folder) -> Sidecar {
    let (sidecar, _lines) = Sidecar::spawn(folder, &[]);
    eventually(Duration::from_secs(10), "the admin socket is there", async || {
        sidecar.folder.path("run/admin.sock").exists().then_some(())
    })
    .await;
    sidecar
}

#[tokio::test(flavor = "multi_thread")]
async fn userpass_logs_in_again_with_the_password_that_the_file_holds_by_then() {
    let bao = Bao::start().await;
    policy(&bao, "").await;
    bao.put("app", json!({ "token": "one" })).await;
    bao.call("POST", "sys/auth/people", json!({ "type": "userpass" })).await;
    let user = |password: &str| json!({ "password": password, "token_policies": "app" });
    bao.call("POST", "auth/people/users/agent", user("first-password")).await;
    let folder = folder(&format!(
        "address: \"{}\", auth: {{ method: userpass, username: agent, password_file: password, mount: people }}",
        bao.address()
    ));
    folder.write("password", "first-password\n");
    let sidecar = Sidecar::start(folder);
    rendered(&sidecar, "one").await;

    bao.call("POST", "auth/people/users/agent", user("second-password")).await;
    bao.call("POST", "sys/leases/revoke-prefix/auth/people/login", json!({ "sync": true })).await;
    sidecar.says("provider/corp", &["refused the login by user name"]).await;
    sidecar.folder.write("password", "second-password\n");
    bao.put("app", json!({ "token": "two" })).await;
    rendered(&sidecar, "two").await;
    let logins = sidecar.folder.audit("provider.login");
    assert_eq!(logins[0]["attributes"]["mcpeg.secret.auth_method"], "userpass");
    assert!(!sidecar.stderr().contains("-password") && !sidecar.folder.read("audit.log").contains("-password"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let found = memory::find(sidecar.pid(), "first-password");
    assert!(found.is_empty(), "{} copies of the old password: {found:#?}", found.len());
}

/// Signs as ES256 (RFC 7518, section 3.4).
struct Issuer(EcdsaKeyPair);

impl Issuer {
    fn new() -> Self {
        let random = ring::rand::SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap())
    }

    /// The key as a SubjectPublicKeyInfo (RFC 5480): what stands before the point is the same for every key of this curve.
    fn public_key(&self) -> String {
        let mut der = STANDARD.decode("MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE").unwrap();
        der.pop();
        der.extend_from_slice(self.0.public_key().as_ref());
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }

    fn token(&self, claims: &Value) -> String {
        let encoded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", encoded(&json!({ "alg": "ES256", "typ": "JWT" })), encoded(claims));
        let signature = self.0.sign(&ring::rand::SystemRandom::new(), text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jwt_of_the_issuer_that_the_server_trusts_is_exchanged_and_no_other() {
    let bao = Bao::start().await;
    policy(&bao, "").await;
    bao.put("app", json!({ "token": "one" })).await;
    let issuer = Issuer::new();
    bao.call("POST", "sys/auth/jwt", json!({ "type": "jwt" })).await;
    bao.call("POST", "auth/jwt/config", json!({ "jwt_validation_pubkeys": [issuer.public_key()] })).await;
    let role =
        json!({ "role_type": "jwt", "bound_audiences": ["vault"], "user_claim": "sub", "token_policies": "app" });
    bao.call("POST", "auth/jwt/role/app", role).await;
    let claims = json!({ "sub": "agent", "aud": "vault", "iat": now(), "nbf": now() - 5, "exp": now() + 600 });
    let folder =
        folder(&format!("address: \"{}\", auth: {{ method: jwt, role: app, token_file: jwt }}", bao.address()));
    folder.write("jwt", &Issuer::new().token(&claims));
    let sidecar = unready(folder).await;
    sidecar.says("provider/corp", &["refused the JWT login"]).await;
    let token = issuer.token(&claims);
    sidecar.folder.write("jwt", &token);
    rendered(&sidecar, "one").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let found = memory::find(sidecar.pid(), token.rsplit('.').next().unwrap());
    assert!(found.is_empty(), "{} copies of the JWT: {found:#?}", found.len());
}

/// Stands in for a cluster's API: it reviews tokens, as the kind `TokenReview` of `authentication.k8s.io/v1` has it.
async fn cluster(token: String) -> StandIn {
    StandIn::start(move |asked| {
        let known = asked.body["spec"]["token"] == token.as_str();
        let user = json!({ "username": "system:serviceaccount:agents:mcpeg", "uid": "u-1", "groups": [
            "system:serviceaccounts", "system:serviceaccounts:agents", "system:authenticated"] });
        (asked.path == "/apis/authentication.k8s.io/v1/tokenreviews").then(|| {
            json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
                "status": if known { json!({ "authenticated": true, "audiences": ["vault"], "user": user }) } else { json!({ "authenticated": false }) } })
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_is_reviewed_by_its_cluster() {
    let bao = Bao::start().await;
    policy(&bao, "").await;
    bao.put("app", json!({ "token": "one" })).await;
    let account = json!({ "namespace": "agents", "serviceaccount": { "name": "mcpeg", "uid": "u-1" } });
    let token = Issuer::new().token(&json!({
        "iss": "https://kubernetes.default.svc", "aud": ["vault"], "exp": now() + 600, "iat": now(),
        "sub": "system:serviceaccount:agents:mcpeg", "kubernetes.io": account }));
    let cluster = cluster(token.clone()).await;
    bao.call("POST", "sys/auth/kubernetes", json!({ "type": "kubernetes" })).await;
    // The server insists on an authority, though the stand-in speaks no TLS.
    bao.call("POST", "sys/mounts/pki", json!({ "type": "pki" })).await;
    let root = bao.call("POST", "pki/root/generate/internal", json!({ "common_name": "cluster" })).await;
    let config = json!({ "kubernetes_host": cluster.address, "token_reviewer_jwt": token, "disable_local_ca_jwt": true,
        "kubernetes_ca_cert": root["data"]["certificate"] });
    bao.call("POST", "auth/kubernetes/config", config).await;
    let role = json!({ "bound_service_account_names": "mcpeg", "bound_service_account_namespaces": "agents",
        "token_policies": "app", "audience": "vault" });
    bao.call("POST", "auth/kubernetes/role/app", role).await;
    let folder = folder(&format!(
        "address: \"{}\", auth: {{ method: kubernetes, role: app, token_file: token }}",
        bao.address()
    ));
    folder.write("token", &token);
    let sidecar = Sidecar::start(folder);
    rendered(&sidecar, "one").await;
    assert!(!cluster.asked("/apis/authentication.k8s.io/v1/tokenreviews").is_empty());
}

/// A secret id of the role `app`, wrapped.
async fn wrapped(bao: &Bao) -> String {
    let url = format!("{}/v1/auth/approle/role/app/secret-id", bao.address());
    let request = http().post(url).header("X-Vault-Token", ROOT_TOKEN).header("X-Vault-Wrap-TTL", "60s");
    let answer: Value = request.json(&json!({})).send().await.unwrap().json().await.unwrap();
    answer["wrap_info"]["token"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrapped_secret_id_is_unwrapped_once_and_a_second_time_says_so() {
    let bao = Bao::start().await;
    let (role, _) = bao.approle().await;
    bao.put("app", json!({ "token": "one" })).await;
    let provider = format!(
        "address: \"{}\", auth: {{ method: approle, role_id: {role}, secret_id_file: wrapping, secret_id_wrapped: true }}",
        bao.address()
    );
    let first = folder(&provider);
    let wrapping = wrapped(&bao).await;
    first.write("wrapping", &wrapping);
    let sidecar = Sidecar::start(first);
    rendered(&sidecar, "one").await;

    // The token dies: what was unwrapped before serves for the next login.
    bao.call("POST", "sys/leases/revoke-prefix/auth/approle/login", json!({ "sync": true })).await;
    bao.put("app", json!({ "token": "two" })).await;
    rendered(&sidecar, "two").await;
    assert!(sidecar.folder.audit("provider.login").len() >= 2);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let found = memory::find(sidecar.pid(), &wrapping);
    assert!(found.is_empty(), "{} copies of the wrapping token: {found:#?}", found.len());

    // Another process with the same token comes too late, until it is given one of its own.
    let second = folder(&provider);
    second.write("wrapping", &wrapping);
    let late = unready(second).await;
    let said = late.says("provider/corp", &["wrapping", "was used already or has expired"]).await;
    assert!(!said.contains(&wrapping), "{said}");
    late.folder.write("wrapping", &wrapped(&bao).await);
    rendered(&late, "two").await;

    // The role is emptied of its secret ids: the one that was unwrapped is refused, and a new wrapping token is asked for.
    bao.call("DELETE", "auth/approle/role/app", Value::Null).await;
    bao.call("POST", "sys/leases/revoke-prefix/auth/approle/login", json!({ "sync": true })).await;
    sidecar.says("provider/corp", &["a new wrapping token is needed"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_and_the_login_come_from_the_environment() {
    let bao = Bao::start().await;
    bao.call("POST", "sys/namespaces/team", json!({})).await;
    bao.call("POST", "team/sys/mounts/secret", json!({ "type": "kv", "options": { "version": "2" } })).await;
    policy(&bao, "team/").await;
    eventually(Duration::from_secs(10), "the engine of the namespace is there", async || {
        let url = format!("{}/v1/team/secret/data/app", bao.address());
        let request = http().post(url).header("X-Vault-Token", ROOT_TOKEN);
        let answer = request.json(&json!({ "data": { "token": "of the team" } })).send().await.unwrap();
        answer.status().is_success().then_some(())
    })
    .await;
    let token = bao.call("POST", "team/auth/token/create", json!({ "policies": ["app"] })).await;
    let token = token["auth"]["client_token"].as_str().unwrap();
    let bare = main_file("").replace(", }", " }");
    let from_environment = Folder::new(&[("mcpeg.yaml", &bare), ("app.j2", "{{ secret.app.token }}")]);
    let address = bao.address();
    let env = [("VAULT_ADDR", address.as_str()), ("BAO_NAMESPACE", "team"), ("VAULT_TOKEN", token)];
    let sidecar = Sidecar::start_with(from_environment, &env);
    rendered(&sidecar, "of the team").await;

    // The same in the configuration, with a login of the namespace's own.
    bao.call("POST", "team/sys/auth/userpass", json!({ "type": "userpass" })).await;
    let user = json!({ "password": "of-the-namespace", "token_policies": "app" });
    bao.call("POST", "team/auth/userpass/users/agent", user).await;
    let provider = format!(
        "address: \"{address}\", namespace: team, auth: {{ method: userpass, username: agent, password: of-the-namespace }}"
    );
    rendered(&Sidecar::start(folder(&provider)), "of the team").await;
}

/// A client certificate for `name` from the server's own authority: certificate and key, PEM.
fn issued(bao: &TlsBao, name: &str) -> (String, String) {
    let issued = bao.write("pki/issue/agents", &json!({ "common_name": name, "ttl": "1h" }));
    let text = |key: &str| issued["data"][key].as_str().unwrap_or_else(|| panic!("{issued}")).to_owned();
    (text("certificate"), text("private_key"))
}

/// The method `cert`, for which only `name` may log in.
fn admit(bao: &TlsBao, authority: &str, name: &str) {
    let role = json!({ "certificate": authority, "allowed_common_names": name, "token_policies": "app" });
    bao.write("auth/cert/certs/app", &role);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_logs_in_and_its_files_are_followed_while_it_runs() {
    let bao = TlsBao::start().await;
    bao.put("app", "token", "one");
    assert!(bao.bao(&["secrets", "enable", "pki"]) && bao.bao(&["auth", "enable", "cert"]));
    let root = bao.write(
        "pki/root/generate/internal",
        &json!({ "common_name": "agents", "ttl": "2h", "key_type": "ec", "key_bits": 256 }),
    );
    let authority = root["data"]["certificate"].as_str().unwrap();
    let role = json!({ "allow_any_name": true, "enforce_hostnames": false, "key_type": "ec", "key_bits": 256, "client_flag": true });
    bao.write("pki/roles/agents", &role);
    bao.write("sys/policies/acl/app", &json!({ "policy": "path \"secret/data/*\" { capabilities = [\"read\"] }" }));
    admit(&bao, authority, "agent-one");
    let (certificate, old_key) = issued(&bao, "agent-one");
    let provider = |name: &str| {
        format!(
            "address: \"{}\", auth: {{ method: cert, role: app }}, tls: {{ ca_file: ca.pem, cert_file: cert.pem, key_file: key.pem, server_name: {name} }}",
            bao.address()
        )
    };
    let ca = std::fs::read_to_string(bao.ca_file()).unwrap();
    let with_files = |name: &str| {
        let folder = folder(&provider(name));
        for (file, text) in [("ca.pem", &ca), ("cert.pem", &certificate), ("key.pem", &old_key)] {
            folder.write(file, text);
        }
        folder
    };
    let sidecar = Sidecar::start(with_files("localhost"));
    rendered(&sidecar, "one").await;

    // A new certificate whose key is still the old one: the old pair serves, and it is said.
    let (certificate, key) = issued(&bao, "agent-two");
    sidecar.folder.write("cert.pem", &certificate);
    sidecar.says("provider/corp", &["degraded", "does not belong to the certificate", "stays in use"]).await;
    bao.put("app", "token", "two");
    rendered(&sidecar, "two").await;
    sidecar.folder.write("key.pem", &key);
    sidecar.says("provider/corp", &["ok"]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let found = memory::find(sidecar.pid(), old_key.lines().nth(1).unwrap());
    assert!(found.is_empty(), "{} copies of the old key: {found:#?}", found.len());

    // Now only the new one may log in.
    admit(&bao, authority, "agent-two");
    assert!(bao.bao(&["lease", "revoke", "-sync", "-prefix", "auth/cert/login"]));
    bao.put("app", "token", "three");
    rendered(&sidecar, "three").await;

    // Authorities that cannot be read change nothing; others than the server's do.
    sidecar.folder.write("ca.pem", "nothing");
    sidecar.says("provider/corp", &["there is no certificate in it"]).await;
    bao.put("app", "token", "four");
    rendered(&sidecar, "four").await;
    sidecar.folder.write("ca.pem", authority);
    sidecar.says("provider/corp", &["issued by an authority that is not trusted"]).await;
    sidecar.folder.write("ca.pem", &ca);
    sidecar.says("provider/corp", &["ok"]).await;

    let stranger = unready(with_files("elsewhere.example")).await;
    stranger.says("provider/corp", &["certificate", "elsewhere.example"]).await;
}

/// Stands in for Vault's AWS method, which takes the signed request as it comes.
async fn vault_with_aws() -> StandIn {
    StandIn::start(|asked| match asked.path.as_str() {
        "/v1/auth/aws/login" => {
            Some(json!({ "request_id": "r", "lease_id": "", "renewable": false, "lease_duration": 0,
            "data": null, "wrap_info": null, "warnings": null, "auth": { "client_token": "s.aws", "accessor": "a",
            "policies": [], "token_policies": [], "metadata": null, "lease_duration": 3600, "renewable": true,
            "entity_id": "", "token_type": "service", "orphan": true } }))
        }
        "/v1/secret/data/app" if asked.headers["x-vault-token"] == "s.aws" => {
            Some(json!({ "lease_id": "", "data": { "data": { "token": "one" }, "metadata": { "version": 1 } } }))
        }
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_request_to_sts_is_signed_by_the_rules_of_aws() {
    let vault = vault_with_aws().await;
    let provider = format!(
        "address: \"{}\", headers: {{ X-Gateway-Key: gateway-key }}, auth: {{ method: aws, role: agent, region: eu-west-1, server_id: vault.example }}",
        vault.address
    );
    let keys = ["ASIAEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "FwoGZXIvYXdzEXAMPLE//token=="];
    let env = [("AWS_ACCESS_KEY_ID", keys[0]), ("AWS_SECRET_ACCESS_KEY", keys[1]), ("AWS_SESSION_TOKEN", keys[2])];
    let sidecar = Sidecar::start_with(folder(&provider), &env);
    rendered(&sidecar, "one").await;
    verify(&vault, &keys);

    // From a credentials file.
    let second = vault_with_aws().await;
    let provider = provider
        .replace(&vault.address, &second.address)
        .replace("region:", "credentials_file: aws, profile: agent, region:");
    let folder = folder(&provider);
    folder.write(
        "aws",
        &format!(
            "[agent]\naws_access_key_id = {}\naws_secret_access_key = {}\naws_session_token = {}\n",
            keys[0], keys[1], keys[2]
        ),
    );
    let sidecar = Sidecar::start(folder);
    rendered(&sidecar, "one").await;
    verify(&second, &keys);
    tokio::time::sleep(Duration::from_secs(1)).await;
    for key in &keys[1..] {
        let found = memory::find(sidecar.pid(), key);
        assert!(found.is_empty(), "{} copies of a key of AWS: {found:#?}", found.len());
    }
}

/// The login, by a computation of the signature that shares nothing with the program.
fn verify(vault: &StandIn, [id, key, token]: &[&str; 3]) {
    let login = vault.asked("/v1/auth/aws/login").remove(0);
    assert_eq!(login.body["role"], "agent");
    assert_eq!(login.headers["x-gateway-key"], "gateway-key");
    assert_eq!(vault.asked("/v1/secret/data/app")[0].headers["x-gateway-key"], "gateway-key");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/sigv4.py");
    let mut child = Command::new("python3")
        .args([script, id, key, token, "eu-west-1", "sts.eu-west-1.amazonaws.com", "vault.example"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(login.body.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
