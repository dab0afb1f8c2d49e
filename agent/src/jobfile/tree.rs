//! Text to a tree that knows its lines.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::Value as Json;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Form, Problem, Problems};

/// Nobody writes more by hand, and who reads it may recurse.
const DEEPEST: usize = 32;

#[derive(Debug, Clone)]
pub(super) struct Node {
    /// From 1; 0: not known.
    pub(super) line: usize,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    /// Of YAML, without quotes: text, number or yes and no, as its field is.
    Plain(String),
    List(Vec<Node>),
    Table(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) line: usize,
    pub(super) key: String,
    pub(super) node: Node,
}

pub(super) fn parse(text: &str, form: Form) -> Result<Node, Problems> {
    match form {
        Form::Toml => toml(text),
        Form::Yaml => yaml(text).map_err(|problem| Problems(vec![problem])),
        Form::Json => json(text).map_err(|problem| Problems(vec![problem])),
    }
}

fn problem(line: usize, reason: impl Into<String>) -> Problem {
    Problem { line, path: String::new(), reason: reason.into() }
}

/// Where lines begin.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect())
    }

    fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|start| *start <= offset)
    }
}

fn toml(text: &str) -> Result<Node, Problems> {
    let lines = Lines::of(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    let problems = errors.iter().map(|error| {
        let line = error.span().map_or(0, |span| lines.at(span.start));
        problem(line, error.message())
    });
    let problems = Problems(problems.collect());
    if !problems.0.is_empty() {
        return Err(problems);
    }
    Ok(Node { line: 1, value: of_table(table.get_ref(), &lines) })
}

fn of_table(table: &DeTable<'_>, lines: &Lines) -> Value {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(key, value)| Entry {
            line: lines.at(key.span().start),
            key: key.get_ref().to_string(),
            node: of_toml(value, lines),
        })
        .collect();
    entries.sort_by_key(|entry| entry.line);
    Value::Table(entries)
}

fn of_toml(value: &Spanned<DeValue<'_>>, lines: &Lines) -> Node {
    let line = lines.at(value.span().start);
    let value = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => Value::Number(decimal(number.as_str(), number.radix())),
        DeValue::Float(number) => Value::Number(number.as_str().to_owned()),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(time) => Value::Text(time.to_string()),
        DeValue::Array(items) => {
            Value::List(items.iter().map(|item| of_toml(item, lines)).collect())
        }
        DeValue::Table(table) => of_table(table, lines),
    };
    Node { line, value }
}

/// What is too long for a number stays as it is, and its field says so.
fn decimal(digits: &str, radix: u32) -> String {
    i128::from_str_radix(digits, radix)
        .map_or_else(|_| digits.to_owned(), |number| number.to_string())
}

fn json(text: &str) -> Result<Node, Problem> {
    // Only the innermost says where.
    let value = serde_json::from_str(text).map_err(|e| problem(e.line(), e.to_string()))?;
    Ok(of_json(value))
}

fn of_json(value: Json) -> Node {
    let value = match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(value),
        Json::Number(number) => Value::Number(number.to_string()),
        Json::String(text) => Value::Text(text),
        Json::Array(items) => Value::List(items.into_iter().map(of_json).collect()),
        Json::Object(entries) => {
            let entry = |(key, value)| Entry { line: 0, key, node: of_json(value) };
            Value::Table(entries.into_iter().map(entry).collect())
        }
    };
    Node { line: 0, value }
}

/// YAML 1.2 without what no document of ours needs: anchors, tags, more than one document.
fn yaml(text: &str) -> Result<Node, Problem> {
    let mut events = Events(Parser::new_from_str(text));
    let mut found = None;
    loop {
        let (event, line) = events.next()?;
        match event {
            Event::StreamEnd => return found.ok_or_else(|| problem(0, "is empty")),
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            _ if found.is_some() => return Err(problem(line, "a second document: one is taken")),
            event => found = Some(events.node(event, line, 0)?),
        }
    }
}

struct Events<'a>(Parser<'a, saphyr_parser::StrInput<'a>>);

impl<'a> Events<'a> {
    fn next(&mut self) -> Result<(Event<'a>, usize), Problem> {
        let told = |event: (Event<'a>, Span)| (event.0, event.1.start.line());
        match self.0.next_event() {
            None => Ok((Event::StreamEnd, 0)),
            Some(Ok(event)) => Ok(told(event)),
            Some(Err(e)) => Err(problem(e.marker().line(), e.info())),
        }
    }

    fn node(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Node, Problem> {
        if depth > DEEPEST {
            return Err(problem(line, "is too deep"));
        }
        let value = match event {
            Event::Scalar(_, _, 1.., _)
            | Event::SequenceStart(1.., _)
            | Event::MappingStart(1.., _) => {
                return Err(problem(line, "has an anchor, which is not taken: write it out"));
            }
            Event::Scalar(.., Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => {
                return Err(problem(line, "has a tag, which is not taken"));
            }
            Event::Scalar(text, style, ..) => scalar(text.into_owned(), style),
            Event::SequenceStart(..) => self.list(depth)?,
            Event::MappingStart(..) => self.table(depth)?,
            Event::Alias(_) => {
                return Err(problem(line, "is an alias, which is not taken: write it out"));
            }
            _ => return Err(problem(line, "is nothing that YAML knows")),
        };
        Ok(Node { line, value })
    }

    fn list(&mut self, depth: usize) -> Result<Value, Problem> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::List(items)),
                (event, line) => items.push(self.node(event, line, depth + 1)?),
            }
        }
    }

    fn table(&mut self, depth: usize) -> Result<Value, Problem> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let (key, line) = match self.next()? {
                (Event::MappingEnd, _) => return Ok(Value::Table(entries)),
                (Event::Scalar(key, ..), line) => (key.into_owned(), line),
                (_, line) => return Err(problem(line, "is a key that is no text")),
            };
            if entries.iter().any(|entry| entry.key == key) {
                return Err(problem(line, format!("{key} is said twice")));
            }
            let (event, at) = self.next()?;
            entries.push(Entry { line, key, node: self.node(event, at, depth + 1)? });
        }
    }
}

fn scalar(text: String, style: ScalarStyle) -> Value {
    match (style, text.as_str()) {
        (ScalarStyle::Plain, "" | "~" | "null") => Value::Null,
        (ScalarStyle::Plain, _) => Value::Plain(text),
        _ => Value::Text(text),
    }
}
