//! What a file is apart from its bytes: owner, permission bits, SELinux label. Set by descriptor, never by path.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::fs::{Gid, Uid, XattrFlags, fchown, fgetxattr, fsetxattr};
use rustix::io::Errno;

use super::super::RenderError;
use super::super::settings::FileSettings;
use super::accounts::Ids;

#[derive(Debug, Clone)]
pub(super) struct Attributes {
    mode: u32,
    owner: Ids,
    label: Option<String>,
}

impl Attributes {
    /// Fails when the owner is unknown.
    pub fn of(settings: &FileSettings) -> Result<Self, RenderError> {
        let owner = Ids::of(settings.owner.as_ref())
            .map_err(|problem| RenderError::Owner { destination: settings.destination.clone(), problem })?;
        Ok(Self { mode: settings.mode, owner, label: settings.selinux_label.clone() })
    }

    /// Changes what differs; with what was tried when it fails. The owner comes first, because a change of it may clear mode bits.
    pub fn apply(&self, file: &File) -> Result<(), (&'static str, io::Error)> {
        let facts = file.metadata().map_err(|error| ("looking at", error))?;
        let user = self.owner.user.filter(|user| user.as_raw() != facts.uid());
        let group = self.owner.group.filter(|group| group.as_raw() != facts.gid());
        if user.is_some() || group.is_some() {
            fchown(file, user, group).map_err(|errno| ("setting the owner of", errno.into()))?;
        }
        if facts.mode() & 0o7777 != self.mode {
            let mode = Permissions::from_mode(self.mode);
            file.set_permissions(mode).map_err(|error| ("setting the mode of", error))?;
        }
        if let Some(label) = &self.label
            && label_of(file).as_ref() != Some(label)
        {
            // The kernel keeps it with its closing zero.
            let value = [label.as_bytes(), b"\0"].concat();
            fsetxattr(file, LABEL, &value, XattrFlags::empty())
                .map_err(|errno| ("setting the SELinux label of", told(errno)))?;
        }
        Ok(())
    }

    /// How the file differs, in words: `mode 0644, not 0600`.
    pub fn drift(&self, file: &File) -> io::Result<Vec<String>> {
        let facts = file.metadata()?;
        let mut drift = Vec::new();
        let mode = facts.mode() & 0o7777;
        if mode != self.mode {
            drift.push(format!("mode {mode:04o}, not {:04o}", self.mode));
        }
        if let Some(user) = self.owner.user.map(Uid::as_raw).filter(|user| *user != facts.uid()) {
            drift.push(format!("owner {}, not {user}", facts.uid()));
        }
        if let Some(group) = self.owner.group.map(Gid::as_raw).filter(|group| *group != facts.gid()) {
            drift.push(format!("group {}, not {group}", facts.gid()));
        }
        if let Some(label) = &self.label {
            match label_of(file) {
                Some(found) if found == *label => {}
                Some(found) => drift.push(format!("SELinux label {found}, not {label}")),
                None => drift.push(format!("no SELinux label, not {label}")),
            }
        }
        Ok(drift)
    }
}

fn label_of(file: &File) -> Option<String> {
    let mut value = [0_u8; 512];
    let length = fgetxattr(file, LABEL, &mut value).ok()?;
    let value = value[..length].strip_suffix(b"\0").unwrap_or(&value[..length]);
    String::from_utf8(value.to_vec()).ok()
}

fn told(errno: Errno) -> io::Error {
    match errno {
        Errno::OPNOTSUPP => io::Error::new(io::ErrorKind::Unsupported, "this file system keeps no SELinux labels"),
        Errno::INVAL => io::Error::new(io::ErrorKind::InvalidInput, "the system's policy does not know this label"),
        Errno::PERM | Errno::ACCESS => {
            io::Error::new(io::ErrorKind::PermissionDenied, "not permitted here, or there is no SELinux on this system")
        }
        errno => errno.into(),
    }
}

const LABEL: &str = "security.selinux";
