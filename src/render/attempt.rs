//! One attempt at one unit, in three steps: `prepare` renders and writes beside, `validate` asks whether the new is good, `commit` puts it
//! on record and switches. `render_once` is a loop around them.
//!
//! The first and the last are synchronous and belong on a thread that may block. What was prepared and is dropped is removed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::ports::{AuditLog, SecretReader, SecretUnavailable};
use crate::secret::SecretVersion;

use super::RenderError;
use super::context::{record_rendered, record_switched};
use super::file::{self, Prepared};
use super::generation::{Built, Place};
use super::hook::{self, HookError};
use super::settings::{GroupSettings, TemplateSettings, Validation};
use super::template::{Reads, Template};
use super::unit::Unit;

/// What `render_once` did for one template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub source: PathBuf,
    pub destination: PathBuf,
    /// The bytes on disk are new.
    pub changed: bool,
}

/// Renders every template once and tells nobody (no hooks run). What could be written is written, beside the failures in words.
pub async fn render_once(
    templates: &[TemplateSettings],
    secrets: &dyn SecretReader,
    audit: &dyn AuditLog,
) -> (Vec<Rendered>, Vec<String>) {
    let mut rendered = Vec::with_capacity(templates.len());
    let mut failures = Vec::new();
    for unit in Unit::of_all(templates) {
        match once(&unit, secrets, audit).await {
            Ok(changed) => rendered.extend(unit.members().iter().map(|settings| Rendered {
                source: settings.source.clone(),
                destination: settings.file.destination.clone(),
                changed,
            })),
            Err(error) => failures.push(error.to_string()),
        }
        tokio::task::yield_now().await;
    }
    (rendered, failures)
}

async fn once(unit: &Unit, secrets: &dyn SecretReader, audit: &dyn AuditLog) -> Result<bool, RenderError> {
    let load = |settings: &TemplateSettings| Template::load(&settings.source).map(Arc::new);
    let templates = unit.members().iter().map(load).collect::<Result<Vec<_>, _>>()?;
    let (reads, fresh) = prepare(unit, &templates, secrets);
    let Some(fresh) = fresh? else { return Ok(false) };
    validate(unit, &fresh, &reads).await?;
    commit(unit, fresh, &reads, audit, Tell::Nobody)?;
    Ok(true)
}

/// New bytes that have not taken effect.
pub(super) enum Fresh {
    File(Prepared),
    Generation(Built),
}

/// What took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Switched {
    File,
    Generation { number: u64, before: Option<u64> },
}

/// Who is told after the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tell {
    Nobody,
    /// Whoever the hooks reach; where that fails for a group, the generation to go back to, if not the one before.
    Hooks {
        back_to: Option<u64>,
    },
}

/// Renders all members from the same versions and writes what they came to beside what is there. What was read is known even when it
/// fails. `None`: the bytes on disk are what they should be.
pub(super) fn prepare(
    unit: &Unit,
    templates: &[Arc<Template>],
    secrets: &dyn SecretReader,
) -> (Reads, Result<Option<Fresh>, RenderError>) {
    match unit {
        Unit::File(settings) => {
            let Some(template) = templates.first() else { return (Reads::default(), Ok(None)) };
            let (reads, text) = template.render(secrets, settings.max_size);
            let fresh = text.and_then(|text| file::prepare(&settings.file, &text));
            (reads, fresh.map(|prepared| prepared.map(Fresh::File)))
        }
        Unit::Group(group, members) => prepare_group(group, members, templates, &Snapshot::of(secrets)),
    }
}

fn prepare_group(
    group: &GroupSettings,
    members: &[TemplateSettings],
    templates: &[Arc<Template>],
    secrets: &Snapshot<'_>,
) -> (Reads, Result<Option<Fresh>, RenderError>) {
    let mut reads = Reads::default();
    let mut files = Vec::with_capacity(members.len());
    let mut failures = Vec::new();
    for (settings, template) in members.iter().zip(templates) {
        let (read, text) = template.render(secrets, settings.max_size);
        reads.0.extend(read.0);
        match text {
            Ok(text) => files.push((&settings.file, text)),
            Err(error) => failures.push(error),
        }
    }
    // Of several, one that is worse than waiting for a secret decides how soon it is tried again.
    let built = match failures.into_iter().max_by_key(|error| !error.is_waiting()) {
        None => Place::of(group).build(&files),
        Some(error) => Err(error),
    };
    (reads, built.map(|built| built.map(Fresh::Generation)))
}

/// Asks every command that judges the new bytes; the first that refuses them decides.
pub(super) async fn validate(unit: &Unit, fresh: &Fresh, reads: &Reads) -> Result<(), RenderError> {
    let in_place = |settings: &TemplateSettings| match fresh {
        Fresh::File(prepared) => prepared.path().to_owned(),
        Fresh::Generation(built) => built.path().join(settings.file.destination.file_name().unwrap_or_default()),
    };
    let folder_of = |file: &Path| file.parent().unwrap_or(Path::new("/")).to_owned();
    for settings in unit.members() {
        let Some(validation) = &settings.validate else { continue };
        let file = in_place(settings);
        judge(validation, Some(&file), &folder_of(&file), &settings.file.destination, reads).await?;
    }
    let (Some(group), Fresh::Generation(built)) = (unit.group(), fresh) else { return Ok(()) };
    let Some(validation) = &group.validate else { return Ok(()) };
    if !validation.argv.iter().any(|word| word.contains(FILE)) {
        return judge(validation, None, built.path(), &group.folder, reads).await;
    }
    for settings in unit.members() {
        let file = in_place(settings);
        judge(validation, Some(&file), built.path(), &settings.file.destination, reads).await?;
    }
    Ok(())
}

async fn judge(
    validation: &Validation,
    file: Option<&Path>,
    folder: &Path,
    destination: &Path,
    reads: &Reads,
) -> Result<(), RenderError> {
    let filled = |word: &String| {
        let word = word.replace(FOLDER, &folder.to_string_lossy());
        file.map_or_else(|| word.clone(), |file| word.replace(FILE, &file.to_string_lossy()))
    };
    let argv = validation.argv.iter().map(filled).collect();
    hook::validate(validation, argv, reads).await.map_err(|error: HookError| RenderError::Invalid {
        destination: destination.to_owned(),
        reason: error.to_string(),
        output: error.output().unwrap_or_default().to_owned(),
    })
}

/// Puts it on record, then it takes effect.
pub(super) fn commit(
    unit: &Unit,
    fresh: Fresh,
    reads: &Reads,
    audit: &dyn AuditLog,
    tell: Tell,
) -> Result<Switched, RenderError> {
    let unaudited = |refused| RenderError::Unaudited { destination: unit.path().to_owned(), refused };
    match (unit, fresh) {
        (Unit::Group(group, members), Fresh::Generation(built)) => {
            let (number, before, place) = (built.number, built.before, Place::of(group));
            record_switched(audit, group, members, number, reads).map_err(unaudited)?;
            if let Tell::Hooks { back_to } = tell {
                place.mark_untold(back_to.or(before))?;
            }
            let switched = place.switch_to(number);
            // It may fail after the link has moved, and then readers have it.
            if switched.is_ok() || !matches!(place.current(), Ok(current) if current != Some(number)) {
                built.keep();
            }
            switched?;
            Ok(Switched::Generation { number, before })
        }
        (_, Fresh::File(prepared)) => {
            for settings in unit.members() {
                record_rendered(audit, settings, reads).map_err(unaudited)?;
            }
            if let Tell::Hooks { .. } = tell {
                prepared.mark_untold()?;
            }
            prepared.commit()?;
            Ok(Switched::File)
        }
        // `prepare` makes generations of groups alone.
        (Unit::File(_), Fresh::Generation(_)) => Ok(Switched::File),
    }
}

/// Gives every template of a group the same version of an item, whatever is published meanwhile.
struct Snapshot<'a> {
    secrets: &'a dyn SecretReader,
    found: Mutex<BTreeMap<String, Result<Arc<SecretVersion>, SecretUnavailable>>>,
}

impl<'a> Snapshot<'a> {
    fn of(secrets: &'a dyn SecretReader) -> Self {
        Self { secrets, found: Mutex::default() }
    }
}

impl SecretReader for Snapshot<'_> {
    fn current(&self, item: &str) -> Result<Arc<SecretVersion>, SecretUnavailable> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.entry(item.to_owned()).or_insert_with(|| self.secrets.current(item)).clone()
    }

    fn subscribe(&self, item: &str) -> Option<watch::Receiver<u64>> {
        self.secrets.subscribe(item)
    }
}

const FILE: &str = "{file}";
const FOLDER: &str = "{folder}";
