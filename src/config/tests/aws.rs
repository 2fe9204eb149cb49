//! `aws-secrets-manager` and `directory` as a user writes them.

use super::*;

#[test]
fn an_aws_provider_takes_its_login_its_roles_and_the_stage_of_each_item() {
    let folder = Folder::with(&[
        (
            "mcpeg.yaml",
            r#"version: "1.0"
secrets:
  providers:
    cloud:
      type: aws-secrets-manager
      region: eu-west-1
      endpoint: "${AWS_ENDPOINT_URL:}"
      auth: { method: web-identity, role_arn: "arn:aws:iam::1:role/a", token_file: token }
      assume_roles: [ { role_arn: "arn:aws:iam::2:role/b", external_id: x } ]
  items:
    now: { provider: cloud, path: prod/openai }
    next: { provider: cloud, path: prod/openai, version_stage: AWSPENDING }
"#,
        ),
        ("token", "t"),
    ]);
    let secrets = folder.load().unwrap().secrets;
    let ProviderSettings::AwsSecretsManager(aws) = &secrets.providers["cloud"] else { panic!("not AWS") };
    assert_eq!((aws.region.as_deref(), &aws.endpoint), (Some("eu-west-1"), &None));
    assert_eq!((aws.roles[0].external_id.as_deref(), aws.roles[0].session_name.as_str()), (Some("x"), "mcpeg"));
    assert_eq!(secrets.items["now"].path, "prod/openai#AWSCURRENT");
    assert_eq!(secrets.items["next"].path, "prod/openai#AWSPENDING");
}

#[test]
fn mistakes_of_aws_and_directory_providers_are_named() {
    let found = problems_of(
        r#"version: "1.0"
secrets:
  providers:
    a: { type: aws-secrets-manager, endpoint: nowhere, profile: p, auth: { method: static, access_key_id: A, secret_access_key: "${secret.x}" } }
    b: { type: aws-secrets-manager, profile: p, auth: { method: static, access_key_id: A, secret_access_key: B } }
    d: { type: directory, path: /nonexistent/secrets }
    e: { type: environment }
    f: { type: directory }
  items:
    x: { provider: b, path: "a b" }
    y: { provider: e, path: HOME, version_stage: AWSPENDING }
    z: { provider: d, path: ../other }
"#,
    )
    .join("\n");
    for words in [
        "a login may not refer to a secret",
        "`profile` names credentials already",
        "mcpeg.yaml:4:8: nothing says the region",
        "/nonexistent/secrets cannot be opened: no such file",
        "`path` is missing, and so is the variable CREDENTIALS_DIRECTORY",
        "a secret's name has letters",
        "only secrets of an `aws-secrets-manager` have version stages",
        "the path may not lead out of the folder",
    ] {
        assert!(found.contains(words), "{words}: {found}");
    }
}
