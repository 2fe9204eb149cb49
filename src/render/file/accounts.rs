//! The ids behind the names of an owner.
//!
//! Names are those of /etc/passwd and /etc/group (passwd(5), group(5)), read at each use; directories of accounts elsewhere (LDAP and the
//! like) are not asked. An id needs no name.

use std::fs;

use rustix::fs::{Gid, Uid};

use super::super::settings::{Account, Owner};

/// Whom the file is given to; `None`: left as it is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ids {
    pub user: Option<Uid>,
    pub group: Option<Gid>,
}

impl Ids {
    /// Or what is unknown, in words.
    pub fn of(owner: Option<&Owner>) -> Result<Self, String> {
        let Some(owner) = owner else { return Ok(Self::default()) };
        let user = owner.user.as_ref().map(|user| id_of(user, "user", "/etc/passwd")).transpose()?;
        let group = owner.group.as_ref().map(|group| id_of(group, "group", "/etc/group")).transpose()?;
        Ok(Self { user: user.map(Uid::from_raw), group: group.map(Gid::from_raw) })
    }
}

fn id_of(account: &Account, what: &str, file: &str) -> Result<u32, String> {
    let name = match account {
        Account::Id(id) => return Ok(*id),
        Account::Name(name) => name,
    };
    let text = fs::read(file).map_err(|error| format!("the {what} {name} cannot be looked up in {file}: {error}"))?;
    find(&String::from_utf8_lossy(&text), name).ok_or_else(|| format!("there is no {what} {name} in {file}"))
}

/// `NAME:PASSWORD:ID:...`, one account a line.
fn find(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_ids_need_none() {
        let text = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/:\n";
        assert_eq!((find(text, "web"), find(text, "we"), find(text, "broken")), (Some(33), None, None));
        let ids = Ids::of(Owner::parse("root:4711").as_ref()).unwrap();
        assert_eq!((ids.user.map(Uid::as_raw), ids.group.map(Gid::as_raw)), (Some(0), Some(4711)));
        let unknown = Ids::of(Owner::parse("no-such-user").as_ref()).unwrap_err();
        assert_eq!(unknown, "there is no user no-such-user in /etc/passwd");
    }
}
