//! Files of tasks, pods and jobs.

use std::io::Read;
use std::path::Path;

use hafen::jobfile::{self, Form};
use serde::de::DeserializeOwned;

use crate::Error;

/// A message of the protocol by its name, from a file; `-` is stdin.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, message: &str) -> Result<T, Error> {
    let text = text(path)?;
    let read = jobfile::message(&text, form(path, &text), message);
    read.map_err(|problems| Error::Document(problems.of_file(&path.display().to_string())))
}

pub(super) fn text(path: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text))
    };
    read.map_err(|e| Error::Refused(format!("read {}: {e}", path.display())))?;
    Ok(text)
}

/// As its name says; else, what does not begin like JSON is TOML.
pub(super) fn form(path: &Path, text: &str) -> Form {
    let is_json = text.trim_start().starts_with('{');
    Form::of(path).unwrap_or(if is_json { Form::Json } else { Form::Toml })
}
