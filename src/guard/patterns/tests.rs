//! Each vendor's shape, at places where it stands in logs, and texts that look a little like one.

use super::*;

fn found(text: &str) -> Vec<(String, String)> {
    let patterns = Patterns::new(true, &[]).unwrap();
    let fits = patterns.find(text.as_bytes());
    fits.into_iter().map(|fit| (fit.name.to_string(), text[fit.range].to_owned())).collect()
}

fn run(characters: &str, count: usize) -> String {
    characters.chars().cycle().take(count).collect()
}

/// An example of each shape with a name, and the part of it that has to go.
fn examples() -> Vec<(&'static str, String, String)> {
    let (mixed, hex, upper) = ("aB3dE6gH9jK2mN5pQ8", "0123456789abcdef", "ABCDEFGHIJ234567");
    let mut all: Vec<(&str, String, String)> = Vec::new();
    let mut whole = |name, text: String| all.push((name, text.clone(), text));
    whole("aws-access-key", format!("AKIA{}", run(upper, 16)));
    whole("anthropic-key", format!("sk-ant-api03-{}", run(mixed, 90)));
    whole("openai-key", format!("sk-proj-{}", run(mixed, 90)));
    whole("github-token", format!("ghp_{}", run(mixed, 36)));
    whole("github-token", format!("github_pat_{}", run(mixed, 80)));
    whole("gitlab-token", format!("glpat-{}", run(mixed, 20)));
    whole("slack-token", format!("xoxb-123456789012-{}", run(mixed, 24)));
    whole("google-api-key", format!("AIza{}", run(mixed, 35)));
    whole("stripe-key", format!("sk_live_{}", run(mixed, 24)));
    whole("npm-token", format!("npm_{}", run(mixed, 36)));
    whole("pypi-token", format!("pypi-AgEIcHlwaS5vcmc{}", run(mixed, 80)));
    whole("vault-token", format!("hvs.{}", run(mixed, 90)));
    whole("vault-token", format!("s.{}", run(mixed, 24)));
    whole("jwt", format!("eyJ{}.eyJ{}.{}", run(mixed, 20), run(mixed, 60), run(mixed, 43)));
    whole("twilio-key", format!("SK{}", run(hex, 32)));
    whole("sendgrid-key", format!("SG.{}.{}", run(mixed, 22), run(mixed, 43)));
    whole("digitalocean-token", format!("dop_v1_{}", run(hex, 64)));
    whole("huggingface-token", format!("hf_{}", run(mixed, 34)));
    let pem = format!("-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----", run(mixed, 64));
    whole("private-key", pem.clone());
    whole("private-key", pem.replace('\n', "\\n"));
    let secret = run(mixed, 40);
    all.push(("aws-secret-key", format!("aws_secret_access_key = {secret}"), secret.clone()));
    all.push(("aws-secret-key", format!(r#"{{"SecretAccessKey":"{secret}"}}"#), secret.clone()));
    all.push(("azure-key", format!("AccountName=x;AccountKey={secret}{secret}==;y"), format!("{secret}{secret}==")));
    all.push(("url-password", "postgres://app:p4ss,w0rd@db:5432/x".to_owned(), "p4ss,w0rd".to_owned()));
    all.push(("bearer-token", "Authorization: Bearer abcdefgh12".to_owned(), "abcdefgh12".to_owned()));
    all
}

#[test]
fn each_shape_is_found_wherever_it_stands() {
    for (name, text, part) in examples() {
        for (before, after) in
            [("", ""), ("key=", " x"), ("{\"a\":\"", "\"}"), ("line\\n", "\\n"), ("a%3D", "&b=c"), ("(", ")")]
        {
            let found = found(&format!("{before}{text}{after}"));
            assert_eq!(found, [(name.to_owned(), part.clone())], "{before}{text}{after}");
        }
    }
}

#[test]
fn ordinary_texts_are_left_alone() {
    for text in [
        "the task-force asked for a disk-encryption-at-rest-of-all-things review",
        "tokens. And whatever.ThatIsALongNameWithoutDigit",
        "https://example.com/a:b@c https://user@host/ http://[::1]:8080/",
        "https://app:${DB_PASSWORD}@host postgres://app:[REDACTED:db]@host",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "eyJhbGciOi.only two",
        "AKIA is a prefix, AKIAIOSFODNN7 is too short, XAKIAIOSFODNN7EXAMPLE is within a word",
        "SK0123 sk-short ghp_short AIzaTooShort",
    ] {
        assert_eq!(found(text), [], "{text}");
    }
}

#[test]
fn a_private_key_that_is_cut_off_goes_as_far_as_it_is_there() {
    let cut = format!("log: -----BEGIN PRIVATE KEY-----\\n{}", run("MIIEvQ", 100));
    assert_eq!(found(&cut), [("private-key".to_owned(), cut["log: ".len()..].to_owned())]);
}

#[test]
fn many_beginnings_of_keys_take_no_longer_than_the_text_is() {
    let text = "-----BEGIN PRIVATE KEY-----!".repeat(40_000);
    let begun = std::time::Instant::now();
    found(&text);
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
}

#[test]
fn a_pattern_of_the_configuration_that_cannot_serve_is_named() {
    let compiled = |regex: &str| compile(&Custom { name: "mine".to_owned(), regex: regex.to_owned() });
    assert!(compiled(r"\bX-\d{4,8}\b").is_ok());
    for (regex, says) in [("(", "unclosed group"), ("a*", "fits an empty text"), (r"\w{5000}{1000}", "size limit")] {
        let error = compiled(regex).unwrap_err().to_string();
        assert!(error.starts_with("redaction pattern mine: ") && error.contains(says), "{error}");
    }
}
