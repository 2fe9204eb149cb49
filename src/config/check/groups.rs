//! `render.groups`, and which templates belong to them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Check, hooks, join};
use crate::config::raw::hooks::RawGroup;
use crate::render::settings::{AllowedFolders, GroupSettings, OnRemove, TemplateSettings};

/// Puts the templates into their groups. `names` are what they give as `group`, in the same order.
pub fn assign(
    templates: &mut [TemplateSettings],
    names: &[Option<String>],
    raw: BTreeMap<String, RawGroup>,
    check: &mut Check<'_>,
) {
    let folders = folders(templates, names, &raw, check);
    let mut groups = BTreeMap::new();
    for (name, raw) in raw {
        check.name(&["render", "groups", &name], "group", &name);
        let Some(folder) = folders.get(&name) else {
            if !names.iter().flatten().any(|given| *given == name) {
                check.problem(&["render", "groups", &name], "no template names this group");
            }
            continue;
        };
        let of_members = templates.iter().zip(names).find(|(_, given)| given.as_deref() == Some(name.as_str()));
        let allowed_folders = of_members.map(|(member, _)| member.file.allowed_folders.clone()).unwrap_or_default();
        let settings = GroupSettings { allowed_folders, ..group(&name, raw, folder.clone(), check) };
        groups.insert(name, Arc::new(settings));
    }
    for (settings, name) in templates.iter_mut().zip(names) {
        settings.group = name.as_ref().and_then(|name| groups.get(name)).cloned();
    }
    apart(templates, names, &folders, check);
}

/// The one folder of each group.
fn folders(
    templates: &[TemplateSettings],
    names: &[Option<String>],
    raw: &BTreeMap<String, RawGroup>,
    check: &mut Check<'_>,
) -> BTreeMap<String, PathBuf> {
    let mut folders: BTreeMap<String, PathBuf> = BTreeMap::new();
    for (index, (settings, name)) in templates.iter().zip(names).enumerate() {
        let Some(name) = name else { continue };
        let number = index.to_string();
        let path = ["templates", number.as_str()];
        if !raw.contains_key(name) {
            check.unknown(&join(&path, &["group"]), "group", name, raw.keys().map(String::as_str));
            continue;
        }
        if settings.on_change.is_some() {
            let message = format!("what follows a change of a group is one for all: `render.groups.{name}.on_change`");
            check.problem(&join(&path, &["on_change"]), message);
        }
        if settings.file.backup {
            let message = format!("a group keeps old generations: `render.groups.{name}.keep`");
            check.problem(&join(&path, &["backup"]), message);
        }
        if settings.file.on_remove == OnRemove::Remove {
            check.problem(&join(&path, &["on_remove"]), "the last generation of a group stays where it is");
        }
        let destination = &settings.file.destination;
        let folder = destination.parent().filter(|folder| folder.file_name().is_some());
        let Some(folder) = folder else {
            check.problem(&join(&path, &["destination"]), "a file of a group stands in a folder of its own");
            continue;
        };
        match folders.get(name) {
            Some(first) if first != folder => {
                let message =
                    format!("the files of the group `{name}` stand in {}, and all in one folder", first.display());
                check.problem(&join(&path, &["destination"]), message);
            }
            Some(_) => {}
            None => {
                folders.insert(name.clone(), folder.to_owned());
            }
        }
        if fs::symlink_metadata(folder).is_ok_and(|facts| facts.is_dir()) {
            let message = format!("{} is a folder; a group's folder is a link that mcpeg makes", folder.display());
            check.problem_with(&join(&path, &["destination"]), message, "move it away, or name another");
        }
    }
    folders
}

fn group(name: &str, raw: RawGroup, folder: PathBuf, check: &mut Check<'_>) -> GroupSettings {
    let path = ["render", "groups", name];
    if raw.on_change.as_ref().is_some_and(|on_change| on_change.settle.is_some()) {
        let message = format!("a group waits before it changes: `render.groups.{name}.settle`");
        check.problem(&join(&path, &["on_change", "settle"]), message);
    }
    if raw.rollback && raw.on_change.is_none() {
        check.problem(&join(&path, &["rollback"]), "it is for when `on_change` fails, and there is none");
    }
    let mode = raw.mode.map_or(0o700, |mode| mode.0);
    if mode & 0o300 != 0o300 {
        check.problem(&join(&path, &["mode"]), "expected the mode of a folder, such as `0700` or `0755`");
    }
    GroupSettings {
        name: name.to_owned(),
        folder,
        mode,
        validate: hooks::validation(raw.validate, raw.timeout, &path, check),
        on_change: raw.on_change.map(|raw| hooks::on_change(raw, &join(&path, &["on_change"]), check)),
        rollback: raw.rollback,
        settle: hooks::settle(raw.settle, &join(&path, &["settle"]), check),
        keep: raw.keep.and_then(|keep| usize::try_from(keep).ok()).unwrap_or(1),
        allowed_folders: AllowedFolders::default(),
    }
}

/// A group's folder holds that group's files and nothing else.
fn apart(
    templates: &[TemplateSettings],
    names: &[Option<String>],
    folders: &BTreeMap<String, PathBuf>,
    check: &mut Check<'_>,
) {
    for (index, (settings, name)) in templates.iter().zip(names).enumerate() {
        let number = index.to_string();
        let destination = settings.file.destination.as_path();
        let parent = if name.is_some() { destination.parent().unwrap_or(Path::new("/")) } else { destination };
        let others = folders.iter().filter(|(other, _)| name.as_ref() != Some(*other));
        if let Some((other, folder)) = others.into_iter().find(|(_, folder)| parent.starts_with(folder)) {
            let message = format!("{} belongs to the group `{other}`", folder.display());
            check.problem(&["templates", &number, "destination"], message);
        }
    }
}
