//! `process`, and who programs are run as.

use super::*;

#[test]
fn a_process_is_read_whole() {
    let folder = Folder::with(&[(
        "mcpeg.yaml",
        r#"version: "1.0"
secrets:
  providers: { own: { type: environment } }
  items: { openai: { provider: own, path: OPENAI } }
process:
  command: [agent]
  env: { KEY: "${secret.openai}" }
  inherit_env: [PATH]
  on_change: signal
  signal: SIGUSR1
  user: root
  restart: { policy: always, initial_backoff: 50ms, max_restarts: 3 }
  stop_timeout: 3s
  output: both
"#,
    )]);
    let process = folder.load().unwrap().process.unwrap();
    use crate::process::settings::{Inherit, OnChange, Output, Policy};
    assert_eq!(process.inherit, Inherit::Names(["PATH".to_owned()].into()));
    assert!(matches!(&process.on_change, OnChange::Signal(signal) if signal.number == libc::SIGUSR1));
    assert_eq!((process.restart.policy, process.restart.max_restarts), (Policy::Always, Some(3)));
    assert_eq!(process.identity.as_ref().map(|user| (user.uid, user.gid)), Some((0, 0)));
    assert_eq!((process.output, process.withheld.contains("OPENAI")), (Output::Both, true));
    let short = Sources { program: Some(vec!["sh".into()]), ..folder.sources() };
    let process = load(&short).unwrap().process.unwrap();
    assert_eq!((process.argv, process.restart.policy), (vec!["sh".to_owned()], Policy::Always));
}

#[test]
fn mistakes_of_a_process_are_named() {
    let found = problems_of(
        r#"version: "1.0"
process:
  command: [agent]
  inherit_env: [PATH, VAULT_TOKEN]
  signal: SIGHUP
  user: nobody-of-this-name
  restart: { initial_backoff: 2m, max_backoff: 1m }
  working_directory: none-such
"#,
    );
    for words in [
        "VAULT_TOKEN is a credential of mcpeg's own",
        "`signal` belongs to `on_change: signal`",
        "there is no user `nobody-of-this-name`",
        "shorter than `initial_backoff`",
        "is not a folder",
    ] {
        assert!(found.iter().any(|line| line.contains(words)), "{words}: {found:#?}");
    }
    assert_eq!(found.len(), 5, "{found:#?}");
    // For `mcpeg run -- PROGRAM` the command may be left out, for `mcpeg run` it may not.
    let folder = Folder::with(&[("mcpeg.yaml", "version: \"1.0\"\nprocess: { stop_timeout: 3s }\n")]);
    assert_eq!(folder.load().unwrap().process, None);
    let run = Sources { program: Some(Vec::new()), ..folder.sources() };
    assert!(load(&run).unwrap_err().render().contains("`command` is missing"));
}
