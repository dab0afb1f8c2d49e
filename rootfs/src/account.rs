//! Accounts as the root file system knows them.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::Path;

use hafen_sys::file::{OpenHow, open_how, resolve};
use nix::fcntl::OFlag;

/// Where a user without a home folder is at home.
const NOWHERE: &str = "/";

/// The home folder of a user by the `/etc/passwd` of a root file system (passwd(5)), or `/`: as runc, for
/// programs that were given no HOME. A file that cannot be read names nobody.
#[must_use]
pub fn home(root: impl AsFd, uid: u32) -> String {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let how = OpenHow {
        flags: u64::from(flags.bits().cast_unsigned()),
        mode: 0,
        resolve: resolve::IN_ROOT | resolve::NO_MAGICLINKS,
    };
    let Ok(file) = open_how(root, Path::new("etc/passwd"), how) else { return NOWHERE.to_owned() };
    let lines = BufReader::new(File::from(file)).lines().map_while(Result::ok);
    lines.filter_map(|line| home_in(&line, uid)).next().unwrap_or_else(|| NOWHERE.to_owned())
}

/// Who somebody is in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
    /// Groups that name the user as a member.
    pub groups: Vec<u32>,
    pub home: String,
}

/// The account that `USER[:GROUP]` means, in names or numbers, by the texts of passwd(5) and group(5): as the image spec
/// has it, a user without a group has the one of passwd and those of group, and one with a group has that alone.
///
/// # Errors
/// Names the user or the group that is not there.
pub fn find(user: &str, passwd: &str, group: &str) -> Result<Account, String> {
    let (user, wanted) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let lines = || passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let line = lines()
        .find(|l| l.first() == Some(&user))
        .or_else(|| lines().find(|l| l.get(2).is_some_and(|uid| *uid == user)));
    let number = |at: usize| line.as_ref()?.get(at)?.parse::<u32>().ok();
    let uid = number(2).or_else(|| user.parse().ok());
    let uid = uid.ok_or_else(|| format!("user {user:?} is not in /etc/passwd of the image"))?;
    let home = line.as_ref().and_then(|l| l.get(5)).filter(|home| home.starts_with('/'));
    let home = home.map_or(NOWHERE, |home| *home).to_owned();
    let groups = || group.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let gid_of = |line: &Vec<&str>| line.get(2)?.parse::<u32>().ok();
    if let Some(wanted) = wanted {
        let found = groups().find(|l| l.first() == Some(&wanted)).and_then(|l| gid_of(&l));
        let gid = found.or_else(|| wanted.parse().ok());
        let gid =
            gid.ok_or_else(|| format!("group {wanted:?} is not in /etc/group of the image"))?;
        return Ok(Account { uid, gid, groups: Vec::new(), home });
    }
    let name = line.as_ref().and_then(|l| l.first().copied()).unwrap_or(user);
    let is_member = |l: &Vec<&str>| l.get(3).is_some_and(|all| all.split(',').any(|m| m == name));
    let groups = groups().filter(is_member).filter_map(|l| gid_of(&l)).collect();
    Ok(Account { uid, gid: number(3).unwrap_or(0), groups, home })
}

/// name:password:UID:GID:comment:home:shell
fn home_in(line: &str, uid: u32) -> Option<String> {
    let mut fields = line.split(':');
    let found = fields.nth(2)?.parse::<u32>().ok()?;
    let home = fields.nth(2)?;
    (found == uid && home.starts_with('/')).then(|| home.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Account, find, home_in};

    #[test]
    fn names_and_numbers_of_an_image() {
        let passwd =
            "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n12:x:99:98::/n:/bin/sh\n";
        let group = "root:x:0:\nweb:x:34:\nlog:x:4:web,root\nadm:x:5:other\n";
        let account = |uid, gid, groups: &[u32], home: &str| {
            Ok(Account { uid, gid, groups: groups.to_vec(), home: home.to_owned() })
        };
        let found = |user| find(user, passwd, group);
        assert_eq!(found(""), account(0, 0, &[4], "/root"));
        assert_eq!(found("web"), account(33, 34, &[4], "/srv"));
        assert_eq!(found("33"), account(33, 34, &[4], "/srv"));
        assert_eq!(found("web:log"), account(33, 4, &[], "/srv"));
        assert_eq!(found("web:7"), account(33, 7, &[], "/srv"));
        assert_eq!(found("1000"), account(1000, 0, &[], "/"));
        assert_eq!(found("12"), account(99, 98, &[], "/n"), "a name of digits comes first");
        assert!(found("nobody").is_err());
        assert!(found("web:none").is_err());
    }

    #[test]
    fn a_home_is_found_by_uid() {
        assert_eq!(home_in("root:x:0:0:root:/root:/bin/sh", 0).as_deref(), Some("/root"));
        assert_eq!(home_in("root:x:0:0:root:/root:/bin/sh", 1), None);
        assert_eq!(home_in("broken:x:0", 0), None);
        assert_eq!(home_in("nobody:x:0:0::relative:/bin/sh", 0), None);
    }
}
