//! Sealed files: with the format's own peer, in place, and as a provider.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::Duration;

use crate::support::sidecar::{Folder, PROGRAM, Sidecar};
use crate::support::{eventually, memory, peers};

/// Runs a line of Python that has `pyrage`, and `folder` as where it is.
fn pyrage(folder: &Folder, line: &str) {
    let output = Command::new(peers::path("pyrage_python"))
        .args(["-c", &format!("import pyrage, pathlib\nfile = pathlib.Path\n{line}")])
        .current_dir(folder.path(""))
        .output()
        .unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn mcpeg(folder: &Folder, args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).current_dir(folder.path("")).output().unwrap()
}

/// Runs it to its good end and gives what it said.
fn done(folder: &Folder, args: &[&str]) -> String {
    let output = mcpeg(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(folder: &Folder, args: &[&str]) -> String {
    let output = mcpeg(folder, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn mode(folder: &Folder, name: &str) -> u32 {
    fs::metadata(folder.path(name)).unwrap().permissions().mode() & 0o7777
}

fn names(folder: &Folder) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder.path("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_the_peer_has_sealed_opens_here_and_the_other_way_round() {
    let folder = Folder::new(&[("passphrase", "correct horse battery\n")]);
    let public = done(&folder, &["seal", "--generate-key", "ours"]);
    pyrage(
        &folder,
        "i = pyrage.x25519.Identity.generate()
file('theirs').write_text(f'# created: today\\n# public key: {i.to_public()}\\n{i}\\n')
file('theirs').chmod(0o600)
file('theirs.pub').write_text(str(i.to_public()))",
    );
    let plain = "a: line\n".repeat(30_000);
    folder.write("plain", &plain);
    // Theirs, to both keys; binary and armored.
    let public = public.trim();
    pyrage(
        &folder,
        &format!(
            "to = [pyrage.x25519.Recipient.from_str(t) for t in ('{public}', file('theirs.pub').read_text())]
file('binary').write_bytes(pyrage.encrypt(file('plain').read_bytes(), to))
file('armored').write_bytes(pyrage.encrypt(file('plain').read_bytes(), to, armored=True))
file('phrase').write_bytes(pyrage.passphrase.encrypt(b'of a passphrase', 'correct horse battery'))"
        ),
    );
    for (name, key) in [("binary", "ours"), ("armored", "ours"), ("binary", "theirs"), ("armored", "theirs")] {
        assert_eq!(done(&folder, &["unseal", name, "--key", key, "--stdout"]), plain, "{name} by {key}");
    }
    assert_eq!(done(&folder, &["unseal", "phrase", "--passphrase-file", "passphrase", "--stdout"]), "of a passphrase");
    // Ours.
    let theirs = folder.read("theirs.pub");
    for (name, extra) in [("sealed", None), ("sealed-armored", Some("--armor"))] {
        folder.write(name, &plain);
        let args = ["seal", name, "--recipient", &theirs, "--key", "ours"];
        done(&folder, &args.into_iter().chain(extra).collect::<Vec<_>>());
    }
    folder.write("sealed-phrase", "of a passphrase");
    done(&folder, &["seal", "sealed-phrase", "--passphrase-file", "passphrase"]);
    pyrage(
        &folder,
        "plain = file('plain').read_bytes()
for key in ('ours', 'theirs'):
    i = pyrage.x25519.Identity.from_str([l for l in file(key).read_text().splitlines() if not l.startswith('#')][0])
    for name in ('sealed', 'sealed-armored'):
        assert pyrage.decrypt(file(name).read_bytes(), [i]) == plain, (key, name)
assert pyrage.passphrase.decrypt(file('sealed-phrase').read_bytes(), 'correct horse battery') == b'of a passphrase'",
    );
}

#[test]
fn a_file_is_sealed_and_opened_in_place_and_nothing_lies_beside_it() {
    let folder = Folder::new(&[("keys.yaml", "a: plaintext\n")]);
    let public = done(&folder, &["seal", "--generate-key", "key"]);
    assert!(public.starts_with("age1"));
    assert_eq!(mode(&folder, "key"), 0o600);
    assert!(refused(&folder, &["seal", "--generate-key", "key"]).contains("exists"), "a key is never overwritten");
    fs::set_permissions(folder.path("keys.yaml"), fs::Permissions::from_mode(0o644)).unwrap();
    let old = fs::File::open(folder.path("keys.yaml")).unwrap();
    done(&folder, &["seal", "keys.yaml", "--key", "key"]);
    assert_eq!((mode(&folder, "keys.yaml"), names(&folder)), (0o600, vec!["key".to_owned(), "keys.yaml".to_owned()]));
    assert!(fs::read(folder.path("keys.yaml")).unwrap().starts_with(b"age-encryption.org/v1\n"));
    let left = std::io::read_to_string(old).unwrap();
    assert!(left.bytes().all(|byte| byte == 0), "the old bytes are overwritten: {left:?}");
    assert!(refused(&folder, &["seal", "keys.yaml", "--key", "key"]).contains("sealed already"));

    done(&folder, &["seal", "--generate-key", "other"]);
    let sealed = fs::read(folder.path("keys.yaml")).unwrap();
    let why = refused(&folder, &["unseal", "keys.yaml", "--key", "other"]);
    assert!(why.contains("sealed for other keys"), "{why}");
    assert_eq!(fs::read(folder.path("keys.yaml")).unwrap(), sealed, "a failure leaves it as it was");
    done(&folder, &["unseal", "keys.yaml", "--key", "key"]);
    assert_eq!((folder.read("keys.yaml").as_str(), mode(&folder, "keys.yaml")), ("a: plaintext\n", 0o600));
    assert_eq!(names(&folder), ["key", "keys.yaml", "other"]);

    fs::hard_link(folder.path("keys.yaml"), folder.path("second")).unwrap();
    assert!(refused(&folder, &["seal", "keys.yaml", "--key", "key"]).contains("hard link"));
    fs::set_permissions(folder.path("key"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refused(&folder, &["unseal", "keys.yaml", "--key", "key"]).contains("mode 0644"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_file_is_served_followed_and_leaves_nothing_of_its_old_values() {
    let folder = Folder::new(&[
        (
            "mcpeg.yaml",
            "version: \"1.0\"
secrets:
  providers: { dev: { type: file, path: keys.age, sealed_with: { credential: mcpeg-key } } }
  items: { api: { provider: dev, path: api }, other: { provider: dev, path: other } }
templates: [ { source: t.j2, destination: out } ]
",
        ),
        ("t.j2", "{{ secret.api.key }} {{ secret.other.value }}"),
        ("keys.age", "api: { key: first-value-8841 }\nother: steady\n"),
        ("next.age", "api: { key: second-value-8841 }\nother: steady\n"),
        ("plain.yaml", "api: { key: third }\nother: steady\n"),
    ]);
    fs::create_dir(folder.path("credentials")).unwrap();
    done(&folder, &["seal", "--generate-key", "credentials/mcpeg-key"]);
    for name in ["keys.age", "next.age"] {
        done(&folder, &["seal", name, "--key", "credentials/mcpeg-key"]);
    }
    let credentials = folder.path("credentials").display().to_string();
    let sidecar = Sidecar::start_with(folder, &[("CREDENTIALS_DIRECTORY", &credentials)]);
    assert_eq!(sidecar.folder.read("out"), "first-value-8841 steady");
    fs::rename(sidecar.folder.path("next.age"), sidecar.folder.path("keys.age")).unwrap();
    eventually(Duration::from_secs(5), "the second value is rendered", async || {
        (sidecar.folder.read("out") == "second-value-8841 steady").then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let found = memory::find(sidecar.pid(), "first-value-8841");
    assert!(found.is_empty(), "{} copies of the old value: {found:#?}", found.len());
    let key = sidecar.folder.read("credentials/mcpeg-key");
    let secret = key.lines().find_map(|line| line.strip_prefix("AGE-SECRET-KEY-1")).unwrap();
    let found = memory::find(sidecar.pid(), secret);
    assert!(found.is_empty(), "{} copies of the key: {found:#?}", found.len());
    // Plain where it has to be sealed: refused, and the last good value serves.
    fs::rename(sidecar.folder.path("plain.yaml"), sidecar.folder.path("keys.age")).unwrap();
    sidecar.says("secret/api", &["degraded", "it is not sealed", "serving version 2"]).await;
    assert_eq!(sidecar.folder.read("out"), "second-value-8841 steady");
}
