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

/// name:password:UID:GID:comment:home:shell
fn home_in(line: &str, uid: u32) -> Option<String> {
    let mut fields = line.split(':');
    let found = fields.nth(2)?.parse::<u32>().ok()?;
    let home = fields.nth(2)?;
    (found == uid && home.starts_with('/')).then(|| home.to_owned())
}

#[cfg(test)]
mod tests {
    use super::home_in;

    #[test]
    fn a_home_is_found_by_uid() {
        assert_eq!(home_in("root:x:0:0:root:/root:/bin/sh", 0).as_deref(), Some("/root"));
        assert_eq!(home_in("root:x:0:0:root:/root:/bin/sh", 1), None);
        assert_eq!(home_in("broken:x:0", 0), None);
        assert_eq!(home_in("nobody:x:0:0::relative:/bin/sh", 0), None);
    }
}
