//! What AWS answers to credentials, permissions and haste, by a stand-in that gives the answers of its API reference; moto accepts everybody.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::support::sidecar::{Folder, Sidecar};
use crate::support::stand_in::{Asked, Reply, StandIn};
use crate::support::{eventually, memory};

/// What the stand-in for Secrets Manager and STS holds and does.
#[derive(Default)]
struct Account {
    value: String,
    version: u32,
    /// The access key that is good; `None`: any is.
    key: Option<String>,
    /// Actions that the credentials do not allow.
    denied: Vec<&'static str>,
    throttled: bool,
    sessions: u32,
}

struct Aws {
    stand_in: StandIn,
    account: Arc<Mutex<Account>>,
}

impl Aws {
    async fn start(account: Account) -> Self {
        let account = Arc::new(Mutex::new(Account { value: "one".into(), version: 1, ..account }));
        let answering = account.clone();
        let stand_in = StandIn::replying(move |asked| answer(&mut answering.lock().unwrap(), asked)).await;
        Self { stand_in, account }
    }

    fn change(&self, change: impl FnOnce(&mut Account)) {
        change(&mut self.account.lock().unwrap());
    }

    fn put(&self, value: &str) {
        self.change(|account| {
            account.value = value.to_owned();
            account.version += 1;
        });
    }

    /// The requests for this action so far.
    fn asked(&self, wanted: &str) -> Vec<Asked> {
        self.stand_in.asked("/").into_iter().filter(|asked| action(asked) == wanted).collect()
    }

    /// A sidecar with the items `a` and `b`, these lines more for its provider, and these variables.
    fn sidecar(&self, more: &str, env: &[(&str, &str)]) -> Sidecar {
        self.sidecar_every("500ms", more, env)
    }

    fn sidecar_every(&self, refresh: &str, more: &str, env: &[(&str, &str)]) -> Sidecar {
        let address = &self.stand_in.address;
        let main = format!(
            "version: \"1.0\"\nsecrets:\n  providers:\n    cloud:\n      type: aws-secrets-manager\n      endpoint: {address}\n      \
             sts_endpoint: {address}\n{more}  items:\n    a: {{ provider: cloud, path: a, refresh: {refresh} }}\n    \
             b: {{ provider: cloud, path: b, refresh: {refresh}, version_stage: AWSPENDING }}\n    \
             c: {{ provider: cloud, path: c, refresh: {refresh} }}\n\
             templates: [ {{ source: a.j2, destination: a.out }} ]\naudit: {{ path: audit.log }}\n"
        );
        let folder = Folder::new(&[("mcpeg.yaml", &main), ("a.j2", "{{ secret.a.value }}")]);
        folder.write("credentials", &profile("AKIAOLD"));
        let credentials = folder.path("credentials").display().to_string();
        let mut all = vec![("AWS_CONFIG_FILE", "/nonexistent"), ("AWS_SHARED_CREDENTIALS_FILE", credentials.as_str())];
        all.extend(env);
        Sidecar::start_with(folder, &all)
    }
}

fn answer(account: &mut Account, asked: &Asked) -> Reply {
    let refused = |code: &str| Reply::new(400, json!({ "__type": code, "message": "no" }));
    let action = action(asked);
    if action == "AssumeRole" {
        account.sessions += 1;
        return session(account.sessions);
    }
    if account.key.as_ref().is_some_and(|key| !key_of(asked).starts_with(key)) {
        return refused("ExpiredTokenException");
    }
    if account.throttled {
        let reply = refused("ThrottlingException");
        return Reply { headers: vec![("retry-after", "3".to_owned())], ..reply };
    }
    if account.denied.contains(&action.as_str()) {
        return refused("AccessDeniedException");
    }
    let version = format!("version-{}", account.version);
    let name = asked.body["SecretId"].as_str().unwrap_or_default();
    match action.as_str() {
        "GetSecretValue" => Reply::new(
            200,
            json!({ "Name": name, "VersionId": version, "SecretString": account.value, "VersionStages": [asked.body["VersionStage"]] }),
        ),
        "DescribeSecret" => {
            Reply::new(200, json!({ "Name": name, "VersionIdsToStages": { version: ["AWSCURRENT", "AWSPENDING"] } }))
        }
        "ListSecretVersionIds" => {
            let versions = json!([{ "VersionId": version, "VersionStages": ["AWSCURRENT", "AWSPENDING"] }]);
            Reply::new(200, json!({ "Name": name, "Versions": versions }))
        }
        "BatchGetSecretValue" => {
            let names = asked.body["SecretIdList"].as_array().unwrap().iter();
            let entry = |name: &Value| json!({ "Name": name, "VersionId": version, "SecretString": account.value, "VersionStages": ["AWSCURRENT"] });
            Reply::new(200, json!({ "SecretValues": names.map(entry).collect::<Vec<_>>(), "Errors": [] }))
        }
        other => panic!("nothing here answers {other}"),
    }
}

/// Of a role, for 14 seconds: the SDK takes a new one 10 seconds before the end.
fn session(number: u32) -> Reply {
    let end = humantime(SystemTime::now() + Duration::from_secs(14));
    Reply::new(
        200,
        format!(
            "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><Credentials>\
             <AccessKeyId>ASIAROLE{number}</AccessKeyId><SecretAccessKey>k</SecretAccessKey><SessionToken>t</SessionToken>\
             <Expiration>{end}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
        ),
    )
}

fn humantime(time: SystemTime) -> String {
    let output = std::process::Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d"])
        .arg(format!("@{}", time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()))
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The name of a Secrets Manager action, or of an STS one.
fn action(asked: &Asked) -> String {
    let target = asked.headers.get("x-amz-target").map(|target| target.to_str().unwrap().to_owned());
    let target = target.as_deref().and_then(|target| target.strip_prefix("secretsmanager."));
    let form = asked.body.as_str().and_then(|form| form.strip_prefix("Action=")?.split('&').next());
    target.or(form).unwrap_or_default().to_owned()
}

/// `KEY/DATE/REGION/SERVICE/aws4_request`: who signed it, and for what.
fn key_of(asked: &Asked) -> &str {
    let signed = asked.headers["authorization"].to_str().unwrap();
    signed.split_once("Credential=").unwrap().1.split(',').next().unwrap()
}

fn profile(key: &str) -> String {
    format!("[agent]\naws_access_key_id = {key}\naws_secret_access_key = k\n")
}

const REGION: &str = "      region: eu-west-1\n";

async fn follows(sidecar: &Sidecar, text: &str) {
    eventually(Duration::from_secs(10), &format!("the file says {text}"), async || {
        (sidecar.folder.read("a.out") == text).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_a_profile_that_are_refused_are_read_again_at_once() {
    let aws = Aws::start(Account { key: Some("AKIAOLD".into()), ..Account::default() }).await;
    let sidecar = aws.sidecar(&format!("{REGION}      profile: agent\n"), &[]);
    assert_eq!(sidecar.folder.read("a.out"), "one");
    sidecar.folder.write("credentials", &profile("AKIANEW"));
    aws.change(|account| account.key = Some("AKIANEW".into()));
    aws.put("two");
    follows(&sidecar, "two").await;
    sidecar.says("provider/cloud", &["ok"]).await;
    assert!(sidecar.folder.audit("secret.failed").is_empty(), "nobody had to hear of it");
    // With none that are good it says so, and keeps what it has.
    aws.change(|account| account.key = Some("AKIANONE".into()));
    sidecar.says("provider/cloud", &["degraded", "refused the credentials", "ExpiredTokenException"]).await;
    sidecar.says("secret/a", &["degraded", "serving version 2"]).await;
    sidecar.folder.write("credentials", &profile("AKIANONE"));
    eventually(Duration::from_secs(40), "it is well again", async || {
        sidecar.condition("secret/a").filter(|text| text.contains("ok")).map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_assumed_in_turn_and_anew_before_their_sessions_end() {
    let aws = Aws::start(Account { key: Some("ASIAROLE".into()), ..Account::default() }).await;
    let login = format!(
        "{REGION}      auth: {{ method: static, access_key_id: AKIABASE, secret_access_key: k }}\n      assume_roles:\n        \
         - {{ role_arn: \"arn:aws:iam::1:role/first\" }}\n        - {{ role_arn: \"arn:aws:iam::2:role/second\", external_id: agent-1 }}\n"
    );
    let sidecar = aws.sidecar(&login, &[]);
    assert_eq!(sidecar.folder.read("a.out"), "one");
    let assumed = aws.asked("AssumeRole");
    assert!(key_of(&assumed[0]).starts_with("AKIABASE/"), "{}", key_of(&assumed[0]));
    assert!(key_of(&assumed[1]).starts_with("ASIAROLE1/"), "{}", key_of(&assumed[1]));
    let form = |asked: &Asked| asked.body.as_str().unwrap().to_owned();
    assert!(form(&assumed[0]).contains("first") && !form(&assumed[0]).contains("ExternalId"));
    assert!(form(&assumed[1]).contains("second") && form(&assumed[1]).contains("ExternalId=agent-1"));
    eventually(Duration::from_secs(20), "a session of later", async || {
        let asked = aws.asked("DescribeSecret");
        asked.last().filter(|asked| key_of(asked).starts_with("ASIAROLE4/")).map(drop)
    })
    .await;
    assert!(sidecar.folder.audit("secret.failed").is_empty());
    assert!(aws.asked("AssumeRole").len() <= 6, "{} sessions", aws.asked("AssumeRole").len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_allowed_is_done_in_another_way_and_the_label_is_always_sent() {
    let denied = vec!["BatchGetSecretValue", "DescribeSecret"];
    let aws = Aws::start(Account { denied, ..Account::default() }).await;
    // The default chain: the environment says the key and the region.
    let env =
        [("AWS_ACCESS_KEY_ID", "AKIAENV"), ("AWS_SECRET_ACCESS_KEY", "k"), ("AWS_DEFAULT_REGION", "eu-central-1")];
    let sidecar = aws.sidecar("", &env);
    assert_eq!(sidecar.folder.read("a.out"), "one");
    aws.put("two");
    follows(&sidecar, "two").await;
    assert_eq!(aws.asked("BatchGetSecretValue").len(), 1, "it is not asked again");
    let described = aws.asked("DescribeSecret").len();
    assert!((1..=3).contains(&described), "{described} times, where once for each item is enough");
    assert!(!aws.asked("ListSecretVersionIds").is_empty());
    let reads = aws.asked("GetSecretValue");
    for read in &reads {
        let expected = if read.body["SecretId"] == "b" { "AWSPENDING" } else { "AWSCURRENT" };
        assert_eq!(read.body["VersionStage"], expected, "{}", read.body);
        assert!(key_of(read).starts_with("AKIAENV/") && key_of(read).contains("/eu-central-1/"), "{}", key_of(read));
    }
    assert!(reads.len() <= 6, "{} reads of 3 secrets with 2 versions", reads.len());
    // Without that permission too, the values themselves are compared.
    aws.change(|account| account.denied.push("ListSecretVersionIds"));
    aws.put("three");
    follows(&sidecar, "three").await;
    assert!(sidecar.folder.audit("secret.failed").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_asks_for_a_pause_gets_it() {
    let aws = Aws::start(Account::default()).await;
    let login = format!("{REGION}      auth: {{ method: static, access_key_id: A, secret_access_key: k }}\n");
    let sidecar = aws.sidecar(&login, &[]);
    aws.change(|account| account.throttled = true);
    sidecar.says("provider/cloud", &["degraded", "too many requests", "ThrottlingException"]).await;
    sidecar.says("secret/a", &["degraded", "too many requests", "serving version 1"]).await;
    // Of one item, whose requests follow one another.
    let of_item = || aws.stand_in.asked("/").into_iter().filter(|asked| asked.body["SecretId"] == "a");
    let before = of_item().count();
    eventually(Duration::from_secs(15), "the item is asked for again", async || {
        (of_item().count() > before).then_some(())
    })
    .await;
    let times: Vec<_> = of_item().map(|asked| asked.at).collect();
    let pause = times[before] - times[before - 1];
    assert!(pause >= Duration::from_secs(3), "it waited {pause:?}");
    aws.change(|account| account.throttled = false);
    aws.put("two");
    follows(&sidecar, "two").await;
    sidecar.says("provider/cloud", &["ok"]).await;
}

/// moto closes each connection by itself, AWS does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_keeps_connections_open_leaves_no_value_in_memory() {
    let aws = Aws::start(Account::default()).await;
    let login = format!("{REGION}      auth: {{ method: static, access_key_id: A, secret_access_key: k }}\n");
    let value = |number: u32| format!("kept-alive-{number:08}-0123456789-abcdefghijklmnopqrstuvwxyz");
    aws.put(&value(1));
    // Nothing is asked in between that would be written over what an open connection keeps.
    let sidecar = aws.sidecar_every("1h", &login, &[]);
    assert_eq!(sidecar.folder.read("a.out"), value(1));
    aws.put(&value(2));
    assert!(sidecar.folder.mcpeg(&["secrets", "refresh", "a"]).status.success());
    follows(&sidecar, &value(2)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    for number in [1, 2] {
        let found = memory::find(sidecar.pid(), &value(number));
        assert!(found.is_empty(), "{} copies of value {number} outside of locked pages: {found:#?}", found.len());
    }
}
