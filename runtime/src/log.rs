//! The log file that clients read: runc's text and JSON lines. Everything else goes to stderr, once.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::OnceLock;
use std::time::SystemTime;

use crate::cli::{LogArgs, LogFormat};

/// Tell what went wrong: on stderr for people, and as the last line of `--log` for clients.
pub fn report(args: &LogArgs, message: &str) {
    eprintln!("hafen-oci: {message}");
    write(args, "error", message);
}

static CURRENT: OnceLock<LogArgs> = OnceLock::new();

/// Where [`note`] writes to.
pub fn remember(args: &LogArgs) {
    let _ = CURRENT.set(args.clone());
}

/// Tell of a failure that stops nothing.
pub fn note(message: &str) {
    eprintln!("hafen-oci: warning: {message}");
    if let Some(args) = CURRENT.get() {
        write(args, "warning", message);
    }
}

/// Tell what was done otherwise than asked; only in the log file, or with `--debug` on stderr.
pub fn warn(args: &LogArgs, message: &str) {
    if args.debug {
        eprintln!("hafen-oci: warning: {message}");
    }
    write(args, "warning", message);
}

fn write(args: &LogArgs, level: &str, message: &str) {
    let Some(path) = &args.log else { return };
    let time = humantime::format_rfc3339_seconds(SystemTime::now());
    let line = match args.log_format {
        LogFormat::Json => {
            format!(
                "{}\n",
                serde_json::json!({ "level": level, "msg": message, "time": time.to_string() })
            )
        }
        LogFormat::Text => format!("time=\"{time}\" level={level} msg={message:?}\n"),
    };
    let opened = OpenOptions::new().create(true).append(true).open(path);
    if let Err(e) = opened.and_then(|mut file| file.write_all(line.as_bytes())) {
        eprintln!("hafen-oci: write {}: {e}", path.display());
    }
}
