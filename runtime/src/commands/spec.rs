use std::fs::OpenOptions;
use std::io::Write;

use hafen_spec::template;
use hafen_sys::Context;

use crate::Error;
use crate::cli::SpecArgs;

pub(super) fn spec(args: &SpecArgs) -> Result<u8, Error> {
    let path = args.bundle.join("config.json");
    let text = serde_json::to_string_pretty(&template::default_spec())
        .map_err(|e| Error::Refused(e.to_string()))?;
    let write = || {
        // What somebody wrote there is not ours to replace.
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        writeln!(file, "{text}")
    };
    write().call(|| format!("create {}", path.display()))?;
    Ok(0)
}
