//! Files of jobs, and of other messages of the protocol: TOML, YAML or JSON, with amounts as people write them. What is
//! wrong is told all at once, each with its line and the path of its field.

mod fields;
mod tree;

use std::fmt;
use std::path::Path;

use hafen_protocol::v1;
use serde::de::DeserializeOwned;

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Toml,
    Yaml,
    Json,
}

impl Form {
    /// By the end of its name.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "toml" => Some(Self::Toml),
            "yaml" | "yml" => Some(Self::Yaml),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// From 1; 0: whoever reads JSON is not told.
    pub line: usize,
    /// As "task.resources.limit.memory"; empty: the whole file.
    pub path: String,
    pub reason: String,
}

/// In the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    fn add(&mut self, line: usize, path: impl Into<String>, reason: impl Into<String>) {
        self.0.push(Problem { line, path: path.into(), reason: reason.into() });
    }

    /// One to a line, as compilers do.
    #[must_use]
    pub fn of_file(&self, name: &str) -> String {
        let lines: Vec<String> = self
            .0
            .iter()
            .map(|problem| match problem.line {
                0 => format!("{name}: {problem}"),
                line => format!("{name}:{line}: {problem}"),
            })
            .collect();
        lines.join("\n")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(&self.reason),
            path => write!(f, "{path}: {}", self.reason),
        }
    }
}

/// A job, as it is submitted.
///
/// # Errors
/// All that is wrong.
pub fn job(text: &str, form: Form) -> Result<v1::JobSpec, Problems> {
    let job: v1::JobSpec = message(text, form, "JobSpec")?;
    let mut problems = Problems::default();
    if job.name.is_empty() {
        problems.add(0, "name", "is missing: what is the job called?");
    }
    if job.what.is_none() {
        problems.add(
            0,
            "task",
            "is missing: what does the job run? A \"pod\" may stand in its place",
        );
    }
    if problems.0.is_empty() { Ok(job) } else { Err(problems) }
}

/// A message of the protocol, by its name there.
///
/// # Errors
/// All that is wrong.
pub fn message<T: DeserializeOwned>(text: &str, form: Form, name: &str) -> Result<T, Problems> {
    let node = tree::parse(text, form)?;
    let value = fields::message(&node, name)?;
    serde_json::from_value(value).map_err(|e| {
        Problems(vec![Problem { line: 0, path: String::new(), reason: e.to_string() }])
    })
}

#[cfg(test)]
mod tests;
