//! Files that begin with what others say.

use super::*;

#[test]
fn a_file_says_its_own_over_what_it_extends() {
    let folder = Folder::with(&[
        (
            "mcpeg.yaml",
            "extends: [base/one.yaml, base/two.yaml]\nversion: \"1.0\"\nservices: { a: { config_file: services/a.yaml } }\n",
        ),
        ("base/one.yaml", "metadata: { name: one, environment: e }\nadmin: { unix: { path: run/one.sock } }\n"),
        ("base/two.yaml", "metadata: { name: two }\nglobal: { shutdown_timeout: 3s }\n"),
        ("mcpeg-e.yaml", "global: { shutdown_timeout: 4s }\n"),
        ("services/a.yaml", "extends: ../base/service.yaml\nheaders: { X-More: more }\ntimeout:\n"),
        ("base/service.yaml", "extends: ../base/mcp.yaml\nurl: http://127.0.0.1:1/mcp\nheaders: { X-Base: base }\n"),
        ("base/mcp.yaml", "type: mcp\nurl: http://127.0.0.1:2/mcp\ntimeout: 9s\n"),
    ]);
    let config = folder.load().unwrap();
    assert_eq!((config.name.as_str(), config.shutdown_timeout), ("two", std::time::Duration::from_secs(4)));
    // A path is relative to the file that says it.
    assert_eq!(config.admin.unix.unwrap().path, folder.path("base/run/one.sock"));
    let names: Vec<String> =
        config.files.iter().map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(names, ["mcpeg.yaml", "one.yaml", "two.yaml", "mcpeg-e.yaml", "a.yaml", "service.yaml", "mcp.yaml"]);
    let service = format!("{:?}", config.mcp.services["a"]);
    assert!(service.contains("127.0.0.1") && service.contains("x-base") && service.contains("x-more"), "{service}");
    assert!(!service.contains("9s"), "what has nothing behind it is taken away: {service}");
}

#[test]
fn circles_and_files_that_are_not_there_are_said_at_their_place() {
    let folder = Folder::with(&[
        (
            "mcpeg.yaml",
            "version: \"1.0\"\nservices:\n  a: { config_file: a.yaml }\n  b: { config_file: b.yaml }\n  c: { config_file: c.yaml }\n",
        ),
        ("a.yaml", "extends: aa.yaml\ntype: vault\n"),
        ("aa.yaml", "type: vault\nextends: a.yaml\n"),
        ("b.yaml", "type: vault\nextends: [c.yaml, none.yaml]\n"),
        ("c.yaml", "type: vault\nextends: { a: b }\n"),
    ]);
    let problems = folder.problems(&folder.sources());
    for expected in [
        "aa.yaml:2:10: the file extends itself, by way of this one",
        "c.yaml:2:10: `extends` is the path of a file, or a list of such",
    ] {
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{expected}: {problems:#?}");
    }
    fs::write(folder.path("c.yaml"), "type: vault\n").unwrap();
    let problems = folder.problems(&folder.sources());
    assert!(
        problems
            .iter()
            .any(|problem| problem.contains("b.yaml:2:19: ") && problem.contains("none.yaml cannot be opened")),
        "{problems:#?}"
    );
}
