//! Files as they are replaced, kept, compared and removed, in folders of their own.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::super::settings::{AllowedFolders, Owner};
use super::*;

fn replace(destination: &Path, mode: u32, bytes: &[u8]) -> Result<bool, RenderError> {
    let settings = FileSettings { mode, ..FileSettings::new(destination.to_owned()) };
    match prepare(&settings, bytes)? {
        Some(prepared) => prepared.commit().map(|()| true),
        None => Ok(false),
    }
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn names_in(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

#[test]
fn a_file_is_made_with_its_folder_then_left_alone_then_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/deep/app.conf");
    assert!(replace(&path, 0o600, b"one").unwrap());
    assert_eq!((mode_of(&path), mode_of(path.parent().unwrap())), (0o600, 0o700));
    let inode = fs::metadata(&path).unwrap().ino();
    assert!(!replace(&path, 0o600, b"one").unwrap());
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    assert!(!replace(&path, 0o640, b"one").unwrap());
    assert_eq!(mode_of(&path), 0o640);
    assert!(replace(&path, 0o640, b"two").unwrap());
    assert_eq!((fs::read(&path).unwrap(), mode_of(&path)), (b"two".to_vec(), 0o640));
    assert_eq!(names_in(path.parent().unwrap()), 1);
}

#[test]
fn links_and_folders_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (target, link) = (folder.path().join("target"), folder.path().join("link"));
    fs::write(&target, "kept").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let refused = replace(&link, 0o600, b"new").unwrap_err().to_string();
    assert!(refused.ends_with("is a symbolic link and is not replaced"), "{refused}");
    assert_eq!(fs::read(&target).unwrap(), b"kept");
    let refused = replace(folder.path(), 0o600, b"new").unwrap_err().to_string();
    assert!(refused.ends_with("is a folder and is not replaced"), "{refused}");
}

#[test]
fn what_is_dropped_and_a_failed_write_keep_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.conf");
    fs::write(&path, "old").unwrap();
    let settings = FileSettings::new(path.clone());
    let prepared = prepare(&settings, b"new").unwrap().unwrap();
    assert_eq!((fs::read(prepared.path()).unwrap(), fs::read(&path).unwrap()), (b"new".to_vec(), b"old".to_vec()));
    drop(prepared);
    assert_eq!((fs::read(&path).unwrap(), names_in(folder.path())), (b"old".to_vec(), 1));
    let under_a_file = path.join("below");
    assert!(matches!(replace(&under_a_file, 0o600, b"new"), Err(RenderError::Destination { .. })));
}

#[test]
fn what_a_killed_process_left_behind_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.conf");
    fs::write(folder.path().join(".app.conf.mcpeg-new"), "left").unwrap();
    assert!(replace(&path, 0o600, b"new").unwrap());
    assert_eq!((fs::read(&path).unwrap(), names_in(folder.path())), (b"new".to_vec(), 1));
}

fn allowing(path: &Path, folders: &[&Path]) -> FileSettings {
    let allowed_folders = AllowedFolders::new(folders.iter().copied());
    FileSettings { allowed_folders, ..FileSettings::new(path.to_owned()) }
}

fn write(settings: &FileSettings, bytes: &[u8]) -> Result<bool, String> {
    let prepared = prepare(settings, bytes).map_err(|error| error.to_string())?;
    prepared.map_or(Ok(false), |prepared| prepared.commit().map(|()| true).map_err(|error| error.to_string()))
}

#[test]
fn no_link_leads_out_of_the_allowed_folders() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let (inside, outside) = (root.join("in"), root.join("out"));
    for path in [&inside, &outside] {
        fs::create_dir(path).unwrap();
    }
    symlink(&outside, inside.join("link")).unwrap();
    symlink(&inside, root.join("way-in")).unwrap();
    for path in [inside.join("link/a"), inside.join("link/deep/er/a"), outside.join("a"), inside.join("../out/a")] {
        let error = write(&allowing(&path, &[&inside]), b"x").unwrap_err();
        assert!(error.contains("which is outside of render.allowed_folders"), "{error}");
    }
    assert_eq!(names_in(&outside), 0, "nothing is made outside");
    for path in [inside.join("a"), inside.join("deep/er/a"), root.join("way-in/b")] {
        assert!(write(&allowing(&path, &[&inside]), b"x").unwrap(), "{}", path.display());
    }
    // A folder that is replaced by a link after it was opened does not matter any more.
    let settings = allowing(&inside.join("deep/c"), &[&inside]);
    let prepared = prepare(&settings, b"x").unwrap().unwrap();
    fs::rename(inside.join("deep"), inside.join("moved")).unwrap();
    symlink(&outside, inside.join("deep")).unwrap();
    prepared.commit().unwrap();
    assert_eq!((fs::read(inside.join("moved/c")).unwrap(), names_in(&outside)), (b"x".to_vec(), 0));
    assert!(write(&settings, b"y").unwrap_err().contains("outside of"));
}

#[test]
fn the_last_one_is_kept_with_the_mode_of_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let (path, kept) = (folder.path().join("app.conf"), folder.path().join("app.conf.bak"));
    fs::write(&path, "one").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let settings = FileSettings { backup: true, mode: 0o640, ..FileSettings::new(path.clone()) };
    for (new, old) in [("two", "one"), ("three", "two")] {
        assert!(write(&settings, new.as_bytes()).unwrap());
        assert_eq!((fs::read_to_string(&path).unwrap(), fs::read_to_string(&kept).unwrap()), (new.into(), old.into()));
        assert_eq!((mode_of(&kept), mode_of(&path), names_in(folder.path())), (0o640, 0o640, 2));
    }
    assert!(!write(&settings, b"three").unwrap());
    assert_eq!(fs::read_to_string(&kept).unwrap(), "two");
    // What a commit that failed leaves: the backup is the file itself.
    fs::remove_file(&kept).unwrap();
    fs::hard_link(&path, &kept).unwrap();
    assert!(write(&settings, b"four").unwrap());
    assert_eq!((fs::read_to_string(&kept).unwrap(), names_in(folder.path())), ("three".into(), 2));
    assert!(remove(&settings).unwrap() && !remove(&settings).unwrap());
    assert_eq!(names_in(folder.path()), 0);
}

#[test]
fn an_owner_is_set_before_the_file_takes_effect_and_an_unknown_one_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.conf");
    let of = |owner: &str| FileSettings { owner: Owner::parse(owner), ..FileSettings::new(path.clone()) };
    let own = fs::metadata(folder.path()).unwrap();
    write(&of(&format!("{}:{}", own.uid(), own.gid())), b"old").unwrap();
    let error = write(&of("no-such-user"), b"new").unwrap_err();
    assert!(error.ends_with("app.conf is not written: there is no user no-such-user in /etc/passwd"), "{error}");
    let other = of("4711:4712");
    match (own.uid(), write(&other, b"new")) {
        (0, written) => {
            assert!(written.unwrap());
            let facts = fs::metadata(&path).unwrap();
            assert_eq!((facts.uid(), facts.gid(), facts.mode() & 0o7777), (4711, 4712, 0o600));
        }
        (_, written) => assert!(written.unwrap_err().starts_with("setting the owner of ")),
    }
    assert_eq!(names_in(folder.path()), 1);
    let drift = look(&of("4711:4713"), 100).unwrap().drift;
    assert!(drift.iter().any(|drift| drift.ends_with(", not 4713")), "{drift:?}");
}

#[test]
fn a_label_is_set_or_the_reason_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.conf");
    let label = Some("system_u:object_r:etc_t:s0".to_owned());
    let settings = FileSettings { selinux_label: label, ..FileSettings::new(path.clone()) };
    match write(&settings, b"x") {
        Ok(changed) => {
            assert!(changed && look(&settings, 9).unwrap().drift.is_empty());
            let other = FileSettings { selinux_label: Some("a:b:c".to_owned()), ..settings.clone() };
            assert_eq!(look(&other, 9).unwrap().drift, ["SELinux label system_u:object_r:etc_t:s0, not a:b:c"]);
        }
        Err(error) => {
            assert!(error.starts_with("setting the SELinux label of ") && !path.exists(), "{error}");
            assert_eq!(names_in(folder.path()), 0);
        }
    }
}

#[test]
fn a_comparison_writes_nothing_and_says_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/app.conf");
    let settings = FileSettings::new(path.clone());
    assert_eq!(look(&settings, 9).unwrap().drift, ["it does not exist"]);
    assert_eq!(names_in(folder.path()), 0);
    write(&settings, b"bytes").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let found = look(&settings, 9).unwrap();
    assert_eq!((found.bytes.unwrap().as_slice(), found.drift), (&b"bytes"[..], vec!["mode 0644, not 0600".to_owned()]));
}
