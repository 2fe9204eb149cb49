//! `Unit`, what changes as one: a file, or a group of them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::settings::{GroupSettings, OnChange, TemplateSettings};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Unit {
    File(Box<TemplateSettings>),
    /// At least one member.
    Group(Arc<GroupSettings>, Vec<TemplateSettings>),
}

impl Unit {
    /// A group stands where its first member did.
    pub fn of_all(templates: &[TemplateSettings]) -> Vec<Self> {
        let mut units: Vec<Self> = Vec::new();
        for template in templates {
            let Some(group) = &template.group else {
                units.push(Self::File(Box::new(template.clone())));
                continue;
            };
            let found = units.iter_mut().find_map(|unit| match unit {
                Self::Group(other, members) if other.name == group.name => Some(members),
                _ => None,
            });
            match found {
                Some(members) => members.push(template.clone()),
                None => units.push(Self::Group(group.clone(), vec![template.clone()])),
            }
        }
        units
    }

    pub fn members(&self) -> &[TemplateSettings] {
        match self {
            Self::File(template) => std::slice::from_ref(template),
            Self::Group(_, members) => members,
        }
    }

    /// What readers open: the file, or the group's folder.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(template) => &template.file.destination,
            Self::Group(group, _) => &group.folder,
        }
    }

    /// The path for people, metrics and events.
    pub fn label(&self) -> String {
        self.path().display().to_string()
    }

    pub fn group(&self) -> Option<&GroupSettings> {
        match self {
            Self::File(_) => None,
            Self::Group(group, _) => Some(group),
        }
    }

    pub fn on_change(&self) -> Option<&OnChange> {
        match self {
            Self::File(template) => template.on_change.as_ref(),
            Self::Group(group, _) => group.on_change.as_ref(),
        }
    }

    /// How long a change waits for others before anything is rendered.
    pub fn settle(&self) -> Duration {
        self.group().map_or(Duration::ZERO, |group| group.settle)
    }
}
