//! Secrets of AWS Secrets Manager, from moto: read in batches, followed by version, kept when a rotation goes wrong, and not left behind.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::support::aws::Moto;
use crate::support::bao::TlsBao;
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::{eventually, memory};

fn value(number: u32) -> String {
    format!("aws-{number:08}+/ \"äöü\" 0123456789-abcdefghijklmnopqrstuvwxyz")
}

/// A configuration with one provider, `cloud`, a template for each of `items`, and these lines more for the provider.
fn folder(moto: &Moto, more: &str, items: &[(&str, &str, &str)]) -> Folder {
    let address = moto.address();
    let mut main = format!(
        "version: \"1.0\"\nsecrets:\n  providers:\n    cloud:\n      type: aws-secrets-manager\n      region: eu-west-1\n      endpoint: {address}\n      \
         sts_endpoint: {address}\n{more}  items:\n"
    );
    for (name, settings, _) in items {
        main.push_str(&format!("    {name}: {{ provider: cloud, refresh: 500ms, {settings} }}\n"));
    }
    main.push_str("templates:\n");
    for (name, _, _) in items {
        main.push_str(&format!("  - {{ source: {name}.j2, destination: {name}.out }}\n"));
    }
    main.push_str("audit: { path: audit.log }\n");
    let folder = Folder::new(&[("mcpeg.yaml", &main)]);
    for (name, _, template) in items {
        folder.write(&format!("{name}.j2"), template);
    }
    folder
}

const STATIC: &str =
    "      auth: { method: static, access_key_id: \"${AWS_TEST_ID}\", secret_access_key: test-secret-access-key }\n";

fn start(folder: Folder) -> Sidecar {
    // No profile of the machine's, and a metadata address that would not answer.
    let env = [
        ("AWS_TEST_ID", "AKIATEST"),
        ("AWS_CONFIG_FILE", "/nonexistent"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent"),
    ];
    Sidecar::start_with(folder, &env)
}

async fn follows(sidecar: &Sidecar, file: &str, text: &str) {
    eventually(Duration::from_secs(10), &format!("{file} follows"), async || {
        (sidecar.folder.read(file) == text).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_objects_binaries_and_stages_are_read_and_a_rotation_leaves_nothing_behind() {
    let moto = Moto::start().await;
    moto.create("prod/text", &value(1)).await;
    moto.create("prod/object", &json!({ "user": "me", "password": value(1), "port": 5432 }).to_string()).await;
    moto.call("CreateSecret", json!({ "Name": "prod/binary", "SecretBinary": "AAEC/w==" })).await;
    let items = [
        ("text", "path: prod/text", "{{ secret.text.value }}"),
        ("object", "path: prod/object", "{{ secret.object.password }}:{{ secret.object.port }}"),
        ("binary", "path: prod/binary", "{{ secret.binary.value | base64 }}"),
        ("before", "path: prod/text, version_stage: AWSPREVIOUS, require_at_start: false", "{{ secret.before.value }}"),
    ];
    let sidecar = start(folder(&moto, STATIC, &items));
    assert_eq!(sidecar.folder.read("text.out"), value(1));
    assert_eq!(sidecar.folder.read("object.out"), format!("{}:5432", value(1)));
    assert_eq!(sidecar.folder.read("binary.out"), "AAEC/w==");

    let object = json!({ "user": "me", "password": value(2), "port": 5432 }).to_string();
    moto.put("prod/object", &object).await;
    moto.put("prod/text", &value(2)).await;
    follows(&sidecar, "object.out", &format!("{}:5432", value(2))).await;
    follows(&sidecar, "text.out", &value(2)).await;
    follows(&sidecar, "before.out", &value(1)).await;
    moto.put("prod/text", &value(3)).await;
    follows(&sidecar, "text.out", &value(3)).await;
    follows(&sidecar, "before.out", &value(2)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let found = memory::find(sidecar.pid(), &value(1));
    assert!(found.is_empty(), "{} copies of the old value: {found:#?}", found.len());
    let found = memory::find(sidecar.pid(), &value(3));
    assert!(found.is_empty(), "{} copies of the current value outside of locked pages: {found:#?}", found.len());
    let audit = sidecar.folder.read("audit.log");
    assert!(!audit.contains("aws-0000") && !sidecar.stderr().contains("aws-0000"));
    assert!(!sidecar.stderr().contains("test-secret-access-key"));
    assert!(sidecar.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_leaves_no_value_or_half_of_one_keeps_the_last_good_version() {
    let moto = Moto::start().await;
    moto.create("prod/db", &json!({ "user": "me", "password": "one" }).to_string()).await;
    let sidecar = start(folder(&moto, STATIC, &[("db", "path: prod/db", "{{ secret.db.password }}")]));
    let object = |password: &str| json!({ "user": "me", "password": password }).to_string();
    let broken = [
        (None, "has no value"),
        (Some("{\"user\":\"me\",\"password\":".to_owned()), "half of one"),
        (Some(object("")), "field password is empty"),
    ];
    let mut last_good = "one".to_owned();
    for (number, (half, expected)) in broken.iter().enumerate() {
        match half {
            None => drop(moto.call("RotateSecret", json!({ "SecretId": "prod/db" })).await),
            Some(half) => moto.put("prod/db", half).await,
        }
        let said = sidecar.says("secret/db", &["degraded", "AWSCURRENT", expected, "serving version"]).await;
        assert!(!said.contains("password\":"), "{said}");
        assert_eq!(sidecar.folder.read("db.out"), last_good);
        last_good = format!("whole-{number}");
        moto.put("prod/db", &object(&last_good)).await;
        follows(&sidecar, "db.out", &last_good).await;
        sidecar.says("secret/db", &["ok"]).await;
    }
    let failed = sidecar.folder.audit("secret.failed");
    assert_eq!(failed.len(), 3, "{failed:?}");
    assert!(failed.iter().all(|event| event["attributes"]["error.type"] == "incomplete"), "{failed:?}");
    assert_eq!(sidecar.folder.audit("secret.recovered").len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_may_go_and_come_back() {
    let mut moto = Moto::start().await;
    moto.create("a", "one").await;
    let sidecar = start(folder(&moto, STATIC, &[("a", "path: a", "{{ secret.a.value }}")]));
    moto.down();
    sidecar.says("provider/cloud", &["degraded", &moto.address(), "asking every second"]).await;
    sidecar.says("secret/a", &["degraded", "serving version 1"]).await;
    moto.up().await;
    moto.create("a", "two").await;
    follows(&sidecar, "a.out", "two").await;
    sidecar.says("provider/cloud", &["ok"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_identity_assumes_a_chain_of_roles() {
    let moto = Moto::start().await;
    moto.create("a", "one").await;
    let login = "      auth: { method: web-identity, role_arn: \"arn:aws:iam::123456789012:role/first\", token_file: token }\n      \
                 assume_roles: [ { role_arn: \"arn:aws:iam::123456789012:role/second\", external_id: x } ]\n";
    let folder = folder(&moto, login, &[("a", "path: a", "{{ secret.a.value }}")]);
    folder.write("token", "header.payload.signature");
    let sidecar = start(folder);
    assert_eq!(sidecar.folder.read("a.out"), "one");
    moto.put("a", "two").await;
    follows(&sidecar, "a.out", "two").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_secrets_start_in_few_requests_and_a_missing_one_leaves_the_others_alone() {
    let moto = Moto::start().await;
    let names: Vec<String> = (0..50).map(|number| format!("many-{number}")).collect();
    for name in &names {
        moto.create(name, &format!("value of {name}")).await;
    }
    let mut items: Vec<(String, String, String)> = names
        .iter()
        .map(|name| (name.clone(), format!("path: {name}"), format!("{{{{ secret[\"{name}\"].value }}}}")))
        .collect();
    items.push(("gone".to_owned(), "path: gone, require_at_start: false".to_owned(), "{{ secret.gone }}".to_owned()));
    let items: Vec<(&str, &str, &str)> =
        items.iter().map(|(name, settings, text)| (name.as_str(), settings.as_str(), text.as_str())).collect();
    moto.count().await;
    let sidecar = start(folder(&moto, STATIC, &items));
    // Three groups of 20 where the machine is idle; a busy one makes them smaller.
    let (batches, single) = (moto.counted("BatchGetSecretValue").await, moto.counted("GetSecretValue").await);
    assert!(batches >= 1 && batches + single <= 12, "{batches} batches and {single} single reads for 51 secrets");
    for name in &names {
        assert_eq!(sidecar.folder.read(&format!("{name}.out")), format!("value of {name}"));
    }
    let said = sidecar.says("secret/gone", &["degraded", "gone"]).await;
    assert!(said.contains("ResourceNotFoundException"), "{said}");
    sidecar.says("secret/many-7", &["ok"]).await;
    // What has not moved is not read again, also where the same value got a new version.
    moto.put("many-7", "value of many-7").await;
    eventually(Duration::from_secs(10), "many refreshes", async || {
        (moto.counted("DescribeSecret").await > 200).then_some(())
    })
    .await;
    assert!(moto.counted("GetSecretValue").await <= 20, "{} values were read", moto.counted("GetSecretValue").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_it_says_so_and_does_not_ask_the_metadata_address() {
    let moto = Moto::start().await;
    let folder = folder(&moto, "", &[("a", "path: a, require_at_start: false", "{{ secret.a.value }}")]);
    // A listener in the metadata address's place counts who comes.
    let metadata = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    metadata.set_nonblocking(true).unwrap();
    let address = format!("http://{}", metadata.local_addr().unwrap());
    let env = [
        ("AWS_CONFIG_FILE", "/nonexistent"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", address.as_str()),
    ];
    let sidecar = Sidecar::start_with(folder, &env);
    sidecar.says("provider/cloud", &["degraded", "no credentials"]).await;
    assert_eq!(metadata.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_it_trusts_the_ca_file_and_neither_the_old_value_nor_the_access_key_is_left_in_memory() {
    let certificates = TlsBao::start().await;
    let ca_file = PathBuf::from(certificates.ca_file());
    let moto = Moto::start_tls(ca_file.parent().unwrap().to_owned()).await;
    moto.create("a", &value(1)).await;
    let login = format!("{STATIC}      tls: {{ ca_file: {} }}\n", ca_file.display());
    let sidecar = start(folder(&moto, &login, &[("a", "path: a", "{{ secret.a.value }}")]));
    assert_eq!(sidecar.folder.read("a.out"), value(1));
    moto.put("a", &value(2)).await;
    follows(&sidecar, "a.out", &value(2)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let found = memory::find(sidecar.pid(), &value(1));
    assert!(found.is_empty(), "{} copies of the old value: {found:#?}", found.len());
    let found = memory::find(sidecar.pid(), &value(2));
    assert!(found.is_empty(), "{} copies of the current value outside of locked pages: {found:#?}", found.len());
    // The key is in plain memory while a request is under way, and at no other time.
    eventually(Duration::from_secs(10), "a moment without the access key", async || {
        memory::find(sidecar.pid(), "test-secret-access-key").is_empty().then_some(())
    })
    .await;
}
