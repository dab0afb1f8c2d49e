use std::fs::OpenOptions;
use std::io::Write;

use hafen_spec::template;
use hafen_sys::Context;
use nix::unistd::{getgid, getuid};

use crate::Error;
use crate::cli::{CONFIG, SpecArgs};

pub(super) fn spec(args: &SpecArgs) -> Result<u8, Error> {
    let path = args.bundle.join(CONFIG);
    let spec = if args.rootless {
        template::rootless_spec(getuid().as_raw(), getgid().as_raw())
    } else {
        template::default_spec()
    };
    let text = serde_json::to_string_pretty(&spec).map_err(|e| Error::Refused(e.to_string()))?;
    let write = || {
        // What somebody wrote there is not ours to replace.
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        writeln!(file, "{text}")
    };
    write().call(|| format!("create {}", path.display()))?;
    Ok(0)
}
