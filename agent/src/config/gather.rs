//! Who said what: the texts of all keys with their sources, before anyone asks what they mean.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::{KEYS, Key, Problem};

/// Who said it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Flag(String),
    Variable(String),
    /// With its line, if it is one of them.
    File(PathBuf, Option<usize>),
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "--{flag}"),
            Self::Variable(name) => f.write_str(name),
            Self::File(path, Some(line)) => write!(f, "{}:{line}", path.display()),
            Self::File(path, None) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw {
    pub text: String,
    pub source: Source,
}

/// All that was said.
#[derive(Debug, Clone, Default)]
pub struct Given {
    pub values: BTreeMap<&'static str, Raw>,
    /// What was said and is no key.
    pub problems: Vec<Problem>,
    /// Variables with our prefix that nobody knows. They may be another program's: worth a word, and no failure.
    pub strangers: Vec<String>,
}

/// Of the command line, and nothing of the agent.
const OTHERS: [&str; 6] = [
    "HAFEN_CONFIG",
    "HAFEN_COORDINATOR",
    "HAFEN_HOST",
    "HAFEN_TLS_CA",
    "HAFEN_TLS_CERT",
    "HAFEN_TLS_KEY",
];

/// `flags` by the path of their key; `file` with its content. A later source never takes the place of an earlier one.
#[must_use]
pub fn gather(
    flags: &BTreeMap<&'static str, String>,
    variables: impl IntoIterator<Item = (String, String)>,
    file: Option<(&Path, &str)>,
) -> Given {
    let mut given = Given::default();
    for key in KEYS {
        if let Some(text) = flags.get(key.path) {
            let source = Source::Flag(key.flag());
            given.values.insert(key.path, Raw { text: text.clone(), source });
        }
    }
    for (name, text) in variables.into_iter().filter(|(name, _)| name.starts_with("HAFEN_")) {
        match KEYS.iter().find(|key| key.variable() == name) {
            Some(key) => add(&mut given, key, text, Source::Variable(name)),
            None if OTHERS.contains(&name.as_str()) => {}
            None => given.strangers.push(name),
        }
    }
    if let Some((path, text)) = file {
        read(&mut given, path, text);
    }
    for key in KEYS.iter().filter(|key| !key.default.is_empty()) {
        add(&mut given, key, key.default.to_owned(), Source::Default);
    }
    given
}

fn add(given: &mut Given, key: &Key, text: String, source: Source) {
    given.values.entry(key.path).or_insert(Raw { text, source });
}

fn read(given: &mut Given, path: &Path, text: &str) {
    let source = |at: usize| {
        let before = text.get(..at).unwrap_or(text);
        Source::File(path.to_owned(), Some(before.matches('\n').count() + 1))
    };
    match DeTable::parse(text) {
        Ok(table) => walk(given, "", table.get_ref(), &source),
        Err(e) => given.problems.push(Problem {
            key: String::new(),
            source: source(e.span().map_or(0, |span| span.start)),
            what: e.message().to_owned(),
        }),
    }
}

fn walk(given: &mut Given, above: &str, table: &DeTable<'_>, source: &impl Fn(usize) -> Source) {
    for (name, value) in table {
        let path = if above.is_empty() {
            name.get_ref().to_string()
        } else {
            format!("{above}.{}", name.get_ref())
        };
        let at = source(name.span().start);
        let is_table = KEYS.iter().any(|key| key.path.starts_with(&format!("{path}.")));
        match (Key::find(&path), value.get_ref()) {
            (None, DeValue::Table(inner)) if is_table => walk(given, &path, inner, source),
            (None, _) if is_table => complain(given, &path, at, "is a table"),
            (None, _) => complain(given, &path, at, &unknown(&path)),
            (Some(key), value) => match words(value, key.separator()) {
                Some(text) => add(given, key, text, at),
                None => complain(
                    given,
                    &path,
                    at,
                    &format!("is {}, and no {}", value.type_str(), key.value),
                ),
            },
        }
    }
}

fn complain(given: &mut Given, key: &str, source: Source, what: &str) {
    given.problems.push(Problem { key: key.to_owned(), source, what: what.to_owned() });
}

fn unknown(path: &str) -> String {
    let last = path.rsplit('.').next().unwrap_or(path);
    let near = KEYS.iter().find(|key| key.path.rsplit('.').next() == Some(last));
    near.map_or_else(
        || "is no key: \"hafen agent --help\" lists them".to_owned(),
        |key| format!("is no key; {:?} is one", key.path),
    )
}

/// As a flag would have it: a list in one word.
fn words(value: &DeValue<'_>, separator: &str) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(truth) => Some(truth.to_string()),
        DeValue::Array(parts) => {
            let parts: Option<Vec<&str>> = parts.iter().map(|p| p.get_ref().as_str()).collect();
            parts.map(|parts| parts.join(separator))
        }
        _ => None,
    }
}
