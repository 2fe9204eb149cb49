//! What a template says of the file that is written: owner, label, backup, and where it may lie.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Check, join};
use crate::config::raw::operation::RawTemplate;
use crate::config::raw::render::{RawOnRemove, RawRender};
use crate::render::settings::{AllowedFolders, FileSettings, OnRemove, Owner};

pub fn allowed_folders(raw: &RawRender) -> AllowedFolders {
    AllowedFolders::new(raw.allowed_folders.iter().map(|folder| folder.0.as_path()))
}

/// The file of one template, whose place is `path`.
pub fn file(raw: &RawTemplate, allowed: &AllowedFolders, path: &[&str], check: &mut Check<'_>) -> FileSettings {
    let destination = raw.destination.0.clone();
    if !allowed.admit_now(&destination) {
        let message = format!("{} is outside of `render.allowed_folders`", destination.display());
        check.problem(&join(path, &["destination"]), message);
    }
    let owner = raw.owner.as_deref().and_then(|text| {
        let owner = Owner::parse(text);
        if owner.is_none() {
            check.problem(&join(path, &["owner"]), "expected `USER`, `USER:GROUP` or `:GROUP`, names or ids");
        }
        owner
    });
    if raw.selinux_label.as_deref().is_some_and(|label| !is_label(label)) {
        check.problem(&join(path, &["selinux_label"]), "expected a label such as `system_u:object_r:etc_t:s0`");
    }
    FileSettings {
        destination,
        mode: raw.mode.as_ref().map_or(0o600, |mode| mode.0),
        owner,
        selinux_label: raw.selinux_label.clone(),
        backup: raw.backup,
        on_remove: match raw.on_remove {
            Some(RawOnRemove::Remove) => OnRemove::Remove,
            Some(RawOnRemove::Keep) | None => OnRemove::Keep,
        },
        allowed_folders: allowed.clone(),
    }
}

/// Reports files that two templates would write, the backups among them.
pub fn differ(files: &[&FileSettings], check: &mut Check<'_>) {
    let mut written: BTreeMap<&Path, usize> = BTreeMap::new();
    for (index, file) in files.iter().enumerate() {
        if let Some(first) = written.get(file.destination.as_path()) {
            let message = format!("template {} already writes this file", first + 1);
            check.problem(&["templates", &index.to_string(), "destination"], message);
        }
        written.entry(&file.destination).or_insert(index);
    }
    for (index, file) in files.iter().enumerate().filter(|(_, file)| file.backup) {
        let mut backup = file.destination.clone().into_os_string();
        backup.push(".bak");
        if let Some(other) = written.get(Path::new(&backup)) {
            let message = format!("template {} writes the file that the backup would be", other + 1);
            check.problem(&["templates", &index.to_string(), "backup"], message);
        }
    }
}

/// `user:role:type`, and a level where the policy has them (selinux(8)).
fn is_label(text: &str) -> bool {
    text.len() <= 255
        && text.split(':').count() >= 3
        && text.split(':').all(|part| !part.is_empty())
        && text.bytes().all(|byte| byte.is_ascii_graphic())
}
