use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::Error;
use crate::journal::{Record, Status};

/// The state of a container (runtime-spec, runtime, "State").
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    pub(crate) oci_version: String,
    pub(crate) id: String,
    pub(crate) status: &'static str,
    /// Present while there is a process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<i32>,
    pub(crate) bundle: PathBuf,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl State {
    pub(crate) fn of(record: &Record, status: Status, pid: Option<i32>) -> Self {
        Self {
            oci_version: record.oci_version.clone(),
            id: record.id.clone(),
            status: status.name(),
            pid,
            bundle: record.bundle.clone(),
            annotations: record.annotations.clone(),
        }
    }

    /// # Errors
    /// None that is known of: every field is text or a number.
    pub(crate) fn json(&self) -> Result<String, Error> {
        serde_json::to_string(self).map_err(|e| Error::Refused(format!("state: {e}")))
    }
}
