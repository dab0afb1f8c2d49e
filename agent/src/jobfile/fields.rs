//! A tree to the JSON of a message, by the descriptors of the protocol: a field that is new there is known here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hafen_protocol::DESCRIPTORS;
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto,
    FileDescriptorSet, MessageOptions,
};
use serde_json::{Map, Value as Json, json};

use super::Problems;
use super::tree::{Entry, Node, Value};
use crate::amount;

/// How like two names are before one is taken for the other.
const LIKE: f64 = 0.8;

#[derive(Debug, Default)]
pub(super) struct Schema {
    /// By their full names, as ".hafen.v1.TaskSpec".
    pub(super) messages: BTreeMap<String, DescriptorProto>,
    pub(super) enums: BTreeMap<String, EnumDescriptorProto>,
}

// What this crate was built with can be read: a test sees to it.
pub(super) static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let mut schema = Schema::default();
    for file in FileDescriptorSet::decode(DESCRIPTORS).unwrap_or_default().file {
        let prefix = format!(".{}", file.package());
        schema.take(&prefix, file.message_type, file.enum_type);
    }
    schema
});

impl Schema {
    fn take(
        &mut self,
        prefix: &str,
        messages: Vec<DescriptorProto>,
        enums: Vec<EnumDescriptorProto>,
    ) {
        for message in messages {
            let name = format!("{prefix}.{}", message.name());
            self.take(&name, message.nested_type.clone(), message.enum_type.clone());
            self.messages.insert(name, message);
        }
        for one in enums {
            self.enums.insert(format!("{prefix}.{}", one.name()), one);
        }
    }
}

/// # Errors
/// All that does not fit.
pub(super) fn message(node: &Node, name: &str) -> Result<Json, Problems> {
    let mut reader = Reader::default();
    let value = reader.message(node, "", &format!(".hafen.v1.{name}"));
    if reader.problems.0.is_empty() { Ok(value.unwrap_or_default()) } else { Err(reader.problems) }
}

#[derive(Debug, Default)]
struct Reader {
    problems: Problems,
}

/// `None` has been told as a problem.
impl Reader {
    fn refuse(&mut self, node: &Node, path: &str, reason: impl Into<String>) -> Option<Json> {
        self.problems.add(node.line, path, reason);
        None
    }

    fn message(&mut self, node: &Node, path: &str, name: &str) -> Option<Json> {
        match name {
            ".google.protobuf.Duration" => return self.duration(node, path),
            ".google.protobuf.Timestamp" => return self.text(node, path),
            _ => {}
        }
        let Some(message) = SCHEMA.messages.get(name) else {
            return self.refuse(node, path, format!("{name} is not known"));
        };
        match (&node.value, message.field.as_slice()) {
            (Value::Table(entries), _) => Some(self.table(entries, path, message)),
            // Where a list is all that there is, it stands for the whole.
            (Value::List(_), [field]) if is_repeated(field) => {
                let value = self.field(node, path, field)?;
                Some(json!({ field.json_name(): value }))
            }
            _ => self.refuse(node, path, "is no table"),
        }
    }

    fn table(&mut self, entries: &[Entry], path: &str, message: &DescriptorProto) -> Json {
        let mut all = Map::new();
        let mut choices = BTreeMap::new();
        for entry in entries {
            let path = below(path, &entry.key);
            let Some(field) = field(message, &entry.key) else {
                self.problems.add(entry.line, path, stranger(message, &entry.key));
                continue;
            };
            if matches!(entry.node.value, Value::Null) {
                continue;
            }
            let choice = field.oneof_index.filter(|_| !field.proto3_optional());
            if let Some(before) = choice.and_then(|choice| choices.insert(choice, &entry.key)) {
                let reason = format!("and {before} are said, and only one of them can hold");
                self.problems.add(entry.line, &path, reason);
            }
            if all.contains_key(field.json_name()) {
                self.problems.add(entry.line, &path, "is said twice");
            }
            let value = if entry.key == CPUS {
                self.cpus(&entry.node, &path)
            } else {
                self.field(&entry.node, &path, field)
            };
            all.extend(value.map(|value| (field.json_name().to_owned(), value)));
        }
        Json::Object(all)
    }

    fn field(&mut self, node: &Node, path: &str, field: &FieldDescriptorProto) -> Option<Json> {
        if !is_repeated(field) {
            return self.single(node, path, field);
        }
        if let Some(value) = map_value(field) {
            return self.map(node, path, value);
        }
        let Value::List(items) = &node.value else { return self.refuse(node, path, "is no list") };
        let mut all = Vec::new();
        for (index, item) in items.iter().enumerate() {
            all.extend(self.single(item, &format!("{path}[{index}]"), field));
        }
        Some(Json::Array(all))
    }

    fn map(&mut self, node: &Node, path: &str, value: &FieldDescriptorProto) -> Option<Json> {
        let Value::Table(entries) = &node.value else {
            return self.refuse(node, path, "is no table");
        };
        let mut all = Map::new();
        for entry in entries {
            let found = self.single(&entry.node, &below(path, &entry.key), value);
            all.extend(found.map(|found| (entry.key.clone(), found)));
        }
        Some(Json::Object(all))
    }

    fn single(&mut self, node: &Node, path: &str, field: &FieldDescriptorProto) -> Option<Json> {
        match field.r#type() {
            Type::Message | Type::Group => self.message(node, path, field.type_name()),
            Type::Enum => self.one_of(node, path, field.type_name()),
            Type::String => self.text(node, path),
            Type::Bytes => self.bytes(node, path),
            Type::Bool => self.boolean(node, path),
            Type::Uint64 | Type::Fixed64 => self.amount(node, path),
            Type::Uint32 | Type::Fixed32 => self.whole(node, path, 0, u32::MAX.into()),
            Type::Int32 | Type::Sint32 | Type::Sfixed32 => {
                self.whole(node, path, i32::MIN.into(), i32::MAX.into())
            }
            Type::Int64 | Type::Sint64 | Type::Sfixed64 => {
                self.whole(node, path, i64::MIN, i64::MAX)
            }
            Type::Double | Type::Float => self.real(node, path),
        }
    }

    fn text(&mut self, node: &Node, path: &str) -> Option<Json> {
        match &node.value {
            Value::Text(text) | Value::Plain(text) => Some(json!(text)),
            Value::Number(_) | Value::Bool(_) => {
                self.refuse(node, path, "is no text: put it in quotes")
            }
            _ => self.refuse(node, path, "is no text"),
        }
    }

    fn bytes(&mut self, node: &Node, path: &str) -> Option<Json> {
        match said(node).filter(|text| STANDARD.decode(text).is_ok()) {
            Some(text) => Some(json!(text)),
            None => self.refuse(node, path, "is no base64"),
        }
    }

    fn boolean(&mut self, node: &Node, path: &str) -> Option<Json> {
        match &node.value {
            Value::Bool(value) => Some(json!(value)),
            Value::Plain(text) if text == "true" => Some(json!(true)),
            Value::Plain(text) if text == "false" => Some(json!(false)),
            _ => self.refuse(node, path, "is neither true nor false"),
        }
    }

    fn amount(&mut self, node: &Node, path: &str) -> Option<Json> {
        match said(node).and_then(amount::bytes) {
            Some(number) => Some(json!(number.to_string())),
            None => {
                self.refuse(node, path, format!("{}is no number, as 1000 or 128M", quoted(node)))
            }
        }
    }

    fn cpus(&mut self, node: &Node, path: &str) -> Option<Json> {
        match said(node).and_then(amount::cpus) {
            Some(milli) => Some(json!(milli.to_string())),
            None => {
                self.refuse(node, path, format!("{}is no number of CPUs, as 0.5", quoted(node)))
            }
        }
    }

    fn whole(&mut self, node: &Node, path: &str, least: i64, most: i64) -> Option<Json> {
        let number = said(node).and_then(|text| text.parse::<i64>().ok());
        match number.filter(|number| (least..=most).contains(number)) {
            Some(number) => Some(json!(number)),
            None => self.refuse(
                node,
                path,
                format!("{}is no whole number from {least} to {most}", quoted(node)),
            ),
        }
    }

    fn real(&mut self, node: &Node, path: &str) -> Option<Json> {
        match said(node).and_then(|text| text.parse::<f64>().ok()) {
            Some(number) => Some(json!(number)),
            None => self.refuse(node, path, format!("{}is no number", quoted(node))),
        }
    }

    fn duration(&mut self, node: &Node, path: &str) -> Option<Json> {
        let duration = said(node).and_then(|text| amount::duration(text).or_else(|| seconds(text)));
        let duration = duration.map(pbjson_types::Duration::from);
        match duration.and_then(|duration| serde_json::to_value(duration).ok()) {
            Some(value) => Some(value),
            None => {
                self.refuse(node, path, format!("{}is no duration, as 10s or 2m", quoted(node)))
            }
        }
    }

    fn one_of(&mut self, node: &Node, path: &str, name: &str) -> Option<Json> {
        let known = SCHEMA.enums.get(name);
        let prefix = known.map(|known| format!("{}_", known.name().to_ascii_uppercase()));
        let prefix = prefix.unwrap_or_default();
        let names: BTreeSet<&str> = known
            .into_iter()
            .flat_map(|known| &known.value)
            .map(EnumValueDescriptorProto::name)
            .collect();
        if let Some(text) = said(node) {
            let upper = text.to_ascii_uppercase().replace('-', "_");
            let long = format!("{prefix}{upper}");
            if let Some(found) = [upper, long].iter().find(|name| names.contains(name.as_str())) {
                return Some(json!(found));
            }
        }
        let short =
            |name: &&str| name.trim_start_matches(&prefix).to_ascii_lowercase().replace('_', "-");
        let wanted: Vec<String> =
            names.iter().filter(|name| !name.ends_with("_UNSPECIFIED")).map(short).collect();
        self.refuse(node, path, format!("{}is none of {}", quoted(node), wanted.join(", ")))
    }
}

/// In place of thousandths.
const CPUS: &str = "cpus";

/// By its name in JSON, or by that in the `.proto` file.
fn field<'a>(message: &'a DescriptorProto, key: &str) -> Option<&'a FieldDescriptorProto> {
    let is_it = |field: &&FieldDescriptorProto| {
        field.json_name() == key
            || field.name() == key
            || key == CPUS && field.name() == "cpu_milli"
    };
    message.field.iter().find(is_it)
}

fn stranger(message: &DescriptorProto, key: &str) -> String {
    let names: Vec<&str> = message.field.iter().map(FieldDescriptorProto::json_name).collect();
    let likeness = |name: &&str| strsim::jaro_winkler(name, key);
    let nearest = names.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match nearest.filter(|name| likeness(name) >= LIKE) {
        Some(name) => format!("is no key here; {name:?} is one"),
        None => format!("is no key here; these are: {}", names.join(", ")),
    }
}

pub(super) fn is_repeated(field: &FieldDescriptorProto) -> bool {
    field.label() == Label::Repeated
}

/// Of a map, whose keys are text in all our messages.
fn map_value(field: &FieldDescriptorProto) -> Option<&'static FieldDescriptorProto> {
    let entry = SCHEMA.messages.get(field.type_name())?;
    let is_map = entry.options.as_ref().is_some_and(MessageOptions::map_entry);
    entry.field.get(1).filter(|_| is_map)
}

fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Words, as they stand there.
fn said(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Number(text) | Value::Text(text) | Value::Plain(text) => Some(text),
        _ => None,
    }
}

fn quoted(node: &Node) -> String {
    said(node).map(|text| format!("{text:?} ")).unwrap_or_default()
}

/// As proto3 has it in JSON: "1.5s".
fn seconds(text: &str) -> Option<std::time::Duration> {
    let number: f64 = text.strip_suffix('s')?.parse().ok()?;
    std::time::Duration::try_from_secs_f64(number).ok()
}
