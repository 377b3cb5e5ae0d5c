//! Who a container runs as: `user[:group]` looked up in the image, as docker does.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::rooted::Root;

/// A user as the kernel knows one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    /// The user id.
    pub uid: u32,
    /// The primary group id.
    pub gid: u32,
    /// The supplementary groups. Always holds `gid`: an empty list would leave the groups of
    /// whoever started the container in place.
    pub additional_gids: Vec<u32>,
    /// The home directory, `/` when the image does not say.
    pub home: String,
}

impl ResolvedUser {
    /// Root without supplementary groups.
    pub fn root() -> Self {
        Self { uid: 0, gid: 0, additional_gids: vec![0], home: "/root".to_owned() }
    }
}

/// A user or group that an instance with users of its own cannot have.
#[derive(Debug, thiserror::Error)]
#[error(
    "there is no user or group {0} in a user namespace, whose ids are 0 to 65535: run as another \
     with process.user, or say user_namespace = false in the manifest"
)]
pub struct UserOutOfRange(pub(crate) u32);

/// Why `user[:group]` names nobody.
#[derive(Debug, thiserror::Error)]
pub enum ResolveUserError {
    /// The root file system or a file in it could not be read.
    #[error("reading {what} of the image")]
    Read {
        /// The file.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The name is not in `/etc/passwd`.
    #[error("user {0:?} is not in the image's /etc/passwd: give a name from there or a number")]
    UnknownUser(String),
    /// The name is not in `/etc/group`.
    #[error("group {0:?} is not in the image's /etc/group: give a name from there or a number")]
    UnknownGroup(String),
    /// The number is out of range.
    #[error("{0:?} is not a user or group id: give 0 to 2147483647")]
    OutOfRange(String),
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let home = fields.nth(1).unwrap_or("");
        Some(PasswdEntry { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    })
}

/// The name, id and members of each group.
fn group_entries(text: &str) -> impl Iterator<Item = (&str, u32, std::str::Split<'_, char>)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some((name, gid.parse().ok()?, fields.next().unwrap_or("").split(',')))
    })
}

/// A text of digits alone is an id, unless a name in the file says otherwise.
fn parse_id(text: &str) -> Option<Result<u32, ResolveUserError>> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| {
        text.parse::<i32>()
            .ok()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| ResolveUserError::OutOfRange(text.to_owned()))
    })
}

/// Looks `user[:group]` up in `/etc/passwd` and `/etc/group` of the root file system. An empty text
/// is root. Without a group the user's own applies, and the groups that list the user are added.
/// Reads files; call it where blocking is allowed.
pub fn resolve_user(rootfs: &Path, text: &str) -> Result<ResolvedUser, ResolveUserError> {
    let read = |what| move |source| ResolveUserError::Read { what, source };
    let root = Root::open(rootfs).map_err(read("the root file system"))?;
    let passwd = root.read_text("etc/passwd").map_err(read("/etc/passwd"))?.unwrap_or_default();
    let groups = root.read_text("etc/group").map_err(read("/etc/group"))?.unwrap_or_default();
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };

    let id = parse_id(user).transpose()?;
    let entry = passwd_entries(&passwd)
        .find(|entry| entry.name == user)
        .or_else(|| passwd_entries(&passwd).find(|entry| Some(entry.uid) == id));
    let uid = match (&entry, id) {
        (Some(entry), _) => entry.uid,
        (None, Some(id)) => id,
        (None, None) => return Err(ResolveUserError::UnknownUser(user.to_owned())),
    };
    let gid = match group {
        None => entry.as_ref().map_or(0, |entry| entry.gid),
        Some(name) => match group_entries(&groups).find(|(known, ..)| *known == name) {
            Some((_, gid, _)) => gid,
            None => parse_id(name)
                .unwrap_or_else(|| Err(ResolveUserError::UnknownGroup(name.to_owned())))?,
        },
    };
    let mut additional_gids = vec![gid];
    if let (None, Some(entry)) = (group, &entry) {
        for (_, gid, mut members) in group_entries(&groups) {
            if members.any(|member| member.trim() == entry.name) && !additional_gids.contains(&gid)
            {
                additional_gids.push(gid);
            }
        }
    }
    let home = entry.map(|entry| entry.home).filter(|home| home.starts_with('/')).unwrap_or("/");
    Ok(ResolvedUser { uid, gid, additional_gids, home: home.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn resolves_as_docker_does() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34:w:/srv:/bin/sh\n7:x:70:71::/seven:\n";
        fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        let group = "root:x:0:root\nweb:x:34:\nlog:x:40:web,root\nssl:x:41:web\n";
        fs::write(dir.path().join("etc/group"), group).unwrap();
        let check = |text: &str, uid, gid, more: &[u32], home: &str| {
            let expected =
                ResolvedUser { uid, gid, additional_gids: more.to_vec(), home: home.to_owned() };
            assert_eq!(resolve_user(dir.path(), text).unwrap(), expected, "{text:?}");
        };
        check("", 0, 0, &[0, 40], "/root");
        check("0", 0, 0, &[0, 40], "/root");
        check("root:", 0, 0, &[0, 40], "/root");
        check("web", 33, 34, &[34, 40, 41], "/srv");
        check("33", 33, 34, &[34, 40, 41], "/srv");
        check("web:log", 33, 40, &[40], "/srv");
        check("web:9", 33, 9, &[9], "/srv");
        check("1234", 1234, 0, &[0], "/");
        check("1234:ssl", 1234, 41, &[41], "/");
        check("7", 70, 71, &[71], "/seven");
        for bad in ["nobody", "web:none", "4294967295", "0:2147483648", "-1", "we b"] {
            assert!(resolve_user(dir.path(), bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_image_without_passwd_has_numbers_only() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(resolve_user(dir.path(), "5:6").unwrap().gid, 6);
        assert_eq!(resolve_user(dir.path(), "").unwrap().home, "/");
        assert!(resolve_user(dir.path(), "root").is_err());
    }
}
