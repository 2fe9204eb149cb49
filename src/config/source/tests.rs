//! Trees: their names and bounds, where paths in them lead, and the last good one on the disk.

use super::*;

fn files(names: &[(&str, &str)]) -> BTreeMap<String, Zeroizing<Vec<u8>>> {
    names.iter().map(|(name, text)| ((*name).to_owned(), Zeroizing::new(text.as_bytes().to_vec()))).collect()
}

fn options(folder: &Path) -> Options {
    let sources = Sources {
        variables: super::super::Variables::Only(BTreeMap::from([
            ("MCPEG_SOURCE__WORK".to_owned(), folder.display().to_string()),
            ("MCPEG_SOURCE__MAX_FILES".to_owned(), "4".to_owned()),
            ("MCPEG_SOURCE__MAX_SIZE".to_owned(), "1KiB".to_owned()),
        ])),
        ..Sources::default()
    };
    options::load(&sources).unwrap()
}

fn snapshot(revision: &str, names: &[(&str, &str)]) -> Snapshot {
    Snapshot { revision: revision.to_owned(), index: 7, files: files(names) }
}

const SOURCE: &str = "etcd://host:2379/mcpeg/";
const TREE: [(&str, &str); 3] =
    [("mcpeg.yaml", "version: '1.0'"), ("services/a.yaml", "type: mcp"), ("tls/ca.pem", "a certificate")];

#[test]
fn names_that_lead_elsewhere_and_trees_that_are_too_large_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path());
    let refused = |names: &[(&str, &str)]| check(&files(names), "x", &options).unwrap_err().to_string();
    for name in ["../a", "a/../b", "/a", "a//b", "a/", "./a", "a\nb", ""] {
        assert!(refused(&[(name, "")]).contains("no relative path"), "{name:?}");
    }
    assert!(refused(&[("a", ""), ("a/b", "")]).contains("`a` as a file and as a folder"));
    assert!(refused(&[("a", ""), ("a-", ""), ("a/b", "")]).contains("`a` as a file and as a folder"));
    assert!(refused(&[("1", ""), ("2", ""), ("3", ""), ("4", ""), ("5", "")]).contains("5 files; `max_files` is 4"));
    assert!(refused(&[("a", &"x".repeat(1025))]).contains("1025 bytes"));
    assert!(refused(&[]).contains("there is nothing"));
    check(&files(&TREE), "x", &options).unwrap();
}

#[test]
fn a_path_is_the_trees_file_where_it_has_one_and_else_below_the_work_folder() {
    let tree =
        Fetched::new(SOURCE, snapshot("7", &TREE), "mcpeg.yaml", Path::new("/base"), PathBuf::from("/keep/files"));
    let shown = |path: &Path| tree.name_of(path).unwrap_or_else(|| path.display().to_string());
    for (folder, text, leads) in [
        ("", "tls/ca.pem", "tls/ca.pem"),
        ("services", "../tls/ca.pem", "tls/ca.pem"),
        ("services", "a.yaml", "services/a.yaml"),
        ("", "tls", "tls"),
        ("", "run/mcpeg.sock", "/base/run/mcpeg.sock"),
        ("services", "cwd", "/base/services/cwd"),
        ("", "/etc/passwd", "/etc/passwd"),
        ("services", "../../mcpeg.yaml", "/base/services/../../mcpeg.yaml"),
    ] {
        assert_eq!(shown(&tree.resolve(folder, text)), leads, "{folder} {text}");
    }
    assert_eq!(tree.shown("tls/ca.pem"), Path::new("etcd://host:2379/mcpeg/tls/ca.pem"));
}

#[test]
fn files_are_shown_as_their_source_names_them() {
    for (source, main, shown) in [
        ("etcd://h/p", "mcpeg.yaml", "etcd://h/p/a/b"),
        ("consul://h/p/side.yaml", "side.yaml", "consul://h/p/a/b"),
        ("git+https://h/r.git", "mcpeg.yaml", "git+https://h/r.git#:a/b"),
        ("git+https://h/r.git#main", "mcpeg.yaml", "git+https://h/r.git#main:a/b"),
        ("git+https://h/r.git#main:deploy", "mcpeg.yaml", "git+https://h/r.git#main:deploy/a/b"),
    ] {
        let tree = Fetched::new(source, snapshot("7", &TREE), main, Path::new("/base"), PathBuf::from("/keep"));
        assert_eq!(tree.shown("a/b"), Path::new(shown));
    }
}

#[test]
fn a_path_changes_when_what_it_leads_to_does_and_no_other() {
    let at = |names: &[(&str, &str)]| {
        let tree = Fetched::new(SOURCE, snapshot("7", names), "mcpeg.yaml", Path::new("/w"), PathBuf::from("/keep"));
        (tree.on_disk("tls/ca.pem").unwrap(), tree.on_disk("services/a.yaml").unwrap())
    };
    let mut changed = TREE;
    changed[1].1 = "type: http";
    let ((ca, service), (same_ca, other_service)) = (at(&TREE), at(&changed));
    assert_eq!(ca, same_ca);
    assert_ne!(service, other_service);
}

#[test]
fn the_last_good_tree_is_private_and_a_damaged_or_foreign_one_is_none() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let keep = Keep::new(folder.path().join("keep"), SOURCE.to_owned());
    let tree = keep.lay(snapshot("7", &TREE), "mcpeg.yaml", folder.path()).unwrap();
    assert!(keep.last_good("mcpeg.yaml", folder.path()).is_none());
    keep.settle(&tree).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let file = folder.path().join("keep/last-good.json");
    assert_eq!((mode(&file), mode(&tree.on_disk("tls/ca.pem").unwrap())), (0o600, 0o600));
    assert_eq!(mode(&folder.path().join("keep")), 0o700);
    let kept = keep.last_good("mcpeg.yaml", folder.path()).unwrap();
    assert!(kept.is_same(&tree) && kept.revision == "7");

    // What a crash left half-written is laid again.
    std::fs::write(tree.on_disk("tls/ca.pem").unwrap(), "").unwrap();
    keep.last_good("mcpeg.yaml", folder.path()).unwrap();
    assert_eq!(std::fs::read(tree.on_disk("tls/ca.pem").unwrap()).unwrap(), b"a certificate");

    assert!(
        Keep::new(folder.path().join("keep"), "etcd://other/".to_owned())
            .last_good("mcpeg.yaml", folder.path())
            .is_none()
    );
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("\"7\"", "\"8\"")).unwrap();
    assert!(keep.last_good("mcpeg.yaml", folder.path()).is_none());
}

#[test]
fn what_a_tree_does_not_have_any_more_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let keep = Keep::new(folder.path().join("keep"), SOURCE.to_owned());
    let first = keep.lay(snapshot("7", &TREE), "mcpeg.yaml", folder.path()).unwrap();
    let second = keep.lay(snapshot("8", &TREE[..2]), "mcpeg.yaml", folder.path()).unwrap();
    assert!(first.on_disk("tls/ca.pem").unwrap().exists());
    keep.settle(&second).unwrap();
    assert!(!first.on_disk("tls/ca.pem").unwrap().exists());
    assert!(second.main().exists());
}

#[test]
fn waits_double_up_to_a_bound() {
    let mut backoff = Backoff::default();
    for ceiling in [250_u128, 500, 1000, 2000] {
        let wait = backoff.wait().as_millis();
        assert!((ceiling * 3 / 4..=ceiling).contains(&wait), "{wait} of {ceiling}");
    }
    (0..40).for_each(|_| assert!(backoff.wait() > Duration::ZERO));
    assert!(backoff.wait() <= LONGEST_WAIT);
    backoff.reset();
    assert!(backoff.wait() <= FIRST_WAIT);
}
