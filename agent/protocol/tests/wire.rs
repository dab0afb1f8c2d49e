//! Version 1 on the wire: what it was stays readable, and what comes later is passed over.
//!
//! `wire-1/` has every kind of message between agent and master with all fields set, each beside the JSON of what is in
//! it. `wire-later/` has the same as a later version may send it. `wire-1.txt` lists every field and enum value.
//!
//! With `HAFEN_WIRE=write` what is missing is made; what is there is never changed.

mod filled;
mod later;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;

use hafen_protocol::{DESCRIPTORS, v1};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, ReflectMessage};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

/// What goes over the wire as a whole.
const ROOTS: [&str; 6] =
    ["FromAgent", "FromMaster", "JoinRequest", "JoinResponse", "ChannelUp", "ChannelDown"];
const PACKAGE: &str = "hafen.v1";

fn today() -> DescriptorPool {
    DescriptorPool::decode(DESCRIPTORS).unwrap()
}

fn message(pool: &DescriptorPool, name: &str) -> MessageDescriptor {
    pool.get_message_by_name(&format!("{PACKAGE}.{name}")).unwrap()
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn writes() -> bool {
    std::env::var("HAFEN_WIRE").is_ok_and(|word| word == "write")
}

/// What today's types make of a message: its JSON, its bytes, and the bytes of what the JSON says.
struct Read {
    json: Json,
    again: Vec<u8>,
    from_json: Vec<u8>,
}

fn read(root: &str, bytes: &[u8]) -> Read {
    match root {
        "FromAgent" => read_as::<v1::FromAgent>(bytes),
        "FromMaster" => read_as::<v1::FromMaster>(bytes),
        "JoinRequest" => read_as::<v1::JoinRequest>(bytes),
        "JoinResponse" => read_as::<v1::JoinResponse>(bytes),
        "ChannelUp" => read_as::<v1::ChannelUp>(bytes),
        "ChannelDown" => read_as::<v1::ChannelDown>(bytes),
        other => panic!("{other} is no root"),
    }
}

fn read_as<M: Message + Default + Serialize + DeserializeOwned>(bytes: &[u8]) -> Read {
    let message = M::decode(bytes).unwrap();
    let json = serde_json::to_value(&message).unwrap();
    let back: M = serde_json::from_value(json.clone()).unwrap();
    Read { json, again: message.encode_to_vec(), from_json: back.encode_to_vec() }
}

/// Files of a folder by name, without their ends.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).map(|entries| entries.flatten().collect());
    let entries: Vec<_> = entries.unwrap_or_default();
    let names = entries.iter().filter_map(|e| e.file_name().into_string().ok());
    let mut names: Vec<_> =
        names.filter_map(|n| Some(n.strip_suffix(".bin")?.to_owned())).collect();
    names.sort();
    names
}

/// The files of version 1.
fn version_1() -> PathBuf {
    static WRITTEN: Once = Once::new();
    let folder = folder("wire-1");
    if writes() {
        WRITTEN.call_once(|| write_missing(&folder));
    }
    folder
}

fn root_of(name: &str) -> &str {
    name.split(['.', '+']).next().unwrap()
}

fn bytes_of(folder: &Path, name: &str) -> Vec<u8> {
    fs::read(folder.join(format!("{name}.bin"))).unwrap()
}

fn json_of(folder: &Path, name: &str) -> Json {
    let text = fs::read(folder.join(format!("{name}.json"))).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join(format!("{name}.bin")), bytes).unwrap();
    let json = serde_json::to_string_pretty(&read(root_of(name), bytes).json).unwrap();
    fs::write(folder.join(format!("{name}.json")), json + "\n").unwrap();
}

/// As `Command.id`.
fn set_fields(message: &DynamicMessage, found: &mut BTreeSet<String>) {
    for (field, value) in message.fields() {
        if !field.parent_message().is_map_entry() {
            found.insert(field.full_name().to_owned());
        }
        filled::each_message(value, &mut |inner| set_fields(inner, found));
    }
}

/// Of all that is in these files.
fn covered(folder: &Path) -> BTreeSet<String> {
    let (pool, mut found) = (today(), BTreeSet::new());
    for name in names(folder) {
        let root = message(&pool, root_of(&name));
        let message = DynamicMessage::decode(root, &*bytes_of(folder, &name)).unwrap();
        set_fields(&message, &mut found);
    }
    found
}

/// All that can be said from these on.
fn reachable(message: &MessageDescriptor, found: &mut BTreeSet<String>) {
    for field in message.fields() {
        let is_new = message.is_map_entry() || found.insert(field.full_name().to_owned());
        if let (true, Kind::Message(inner)) = (is_new, field.kind()) {
            reachable(&inner, found);
        }
    }
}

/// A message that says something that no file says yet becomes a file.
fn write_missing(folder: &Path) {
    let (pool, mut filler) = (today(), filled::Filler::default());
    for root in ROOTS {
        let root = message(&pool, root);
        for arms in filled::variants(&root) {
            let message = filler.message(&root, &arms);
            let mut found = BTreeSet::new();
            set_fields(&message, &mut found);
            if found.is_subset(&covered(folder)) {
                continue;
            }
            let stem: Vec<&str> =
                [root.name()].into_iter().chain(arms.iter().map(|a| &**a)).collect();
            let stem = stem.join(".");
            let later = (2..).map(|n| format!("{stem}+{n}"));
            let mut names = [stem.clone()].into_iter().chain(later);
            let name = names.find(|n| !folder.join(format!("{n}.bin")).exists()).unwrap();
            // In the order that prost writes, which has sorted maps.
            write(folder, &name, &read(root.name(), &message.encode_to_vec()).again);
        }
    }
}

#[test]
fn version_1_is_read_and_written_as_ever() {
    let folder = version_1();
    for name in names(&folder) {
        let bytes = bytes_of(&folder, &name);
        let read = read(root_of(&name), &bytes);
        assert_eq!(read.json, json_of(&folder, &name), "{name}");
        assert_eq!(read.again, bytes, "{name}: other bytes");
        assert_eq!(read.from_json, bytes, "{name}: its JSON says something else");
    }
}

#[test]
fn every_field_is_in_a_file() {
    let (pool, mut all) = (today(), BTreeSet::new());
    ROOTS.iter().for_each(|root| reachable(&message(&pool, root), &mut all));
    let covered = covered(&version_1());
    let missing: Vec<_> = all.difference(&covered).collect();
    assert!(missing.is_empty(), "HAFEN_WIRE=write makes files for {missing:?}");
}

/// New fields everywhere.
#[test]
fn later_fields_are_passed_over() {
    let (before, later) = (version_1(), folder("wire-later"));
    for name in names(&before) {
        let path = later.join(format!("{name}.bin"));
        if writes() && !path.exists() {
            let root = message(later::pool(), root_of(&name));
            let mut message = DynamicMessage::decode(root, &*bytes_of(&before, &name)).unwrap();
            later::add_fields(&mut message);
            fs::create_dir_all(&later).unwrap();
            fs::write(&path, message.encode_to_vec()).unwrap();
        }
        let (bytes, known) = (fs::read(&path).unwrap(), bytes_of(&before, &name));
        assert!(bytes.len() > known.len(), "{name} has nothing new");
        let read = read(root_of(&name), &bytes);
        assert_eq!(read.json, json_of(&before, &name), "{name}");
        assert_eq!(read.again, known, "{name}");
    }
}

/// New kinds of messages and commands: as if nothing had been said in their place.
#[test]
fn later_kinds_are_absent() {
    let folder = folder("wire-later-kinds");
    let today = today();
    for (root, path) in later::places_of_kinds() {
        let name = [&[root], path, &["later"]].concat().join(".");
        if writes() && !folder.join(format!("{name}.bin")).exists() {
            write(&folder, &name, &later::kind(root, path));
        }
        let bytes = bytes_of(&folder, &name);
        let read = read(root, &bytes);
        assert_eq!(read.json, json_of(&folder, &name), "{name}");
        let mut inner = DynamicMessage::decode(message(&today, root), &*bytes).unwrap();
        for arm in path {
            let next = inner.get_field_by_name(arm).unwrap().as_message().unwrap().clone();
            inner = next;
        }
        let kinds = inner.descriptor();
        let oneof = kinds.oneofs().next().unwrap();
        assert!(oneof.fields().all(|arm| !inner.has_field(&arm)), "{name}: {}", read.json);
    }
}

fn later_value<M: Message + Default>(name: &str, path: &[&str]) -> M {
    let (folder, root) = (folder("wire-later-values"), root_of(name));
    let path_of_file = folder.join(format!("{name}.bin"));
    if writes() && !path_of_file.exists() {
        let known = bytes_of(&version_1(), name);
        let mut message = DynamicMessage::decode(message(later::pool(), root), &*known).unwrap();
        later::set_value(&mut message, path);
        fs::create_dir_all(&folder).unwrap();
        fs::write(&path_of_file, message.encode_to_vec()).unwrap();
    }
    M::decode(&*bytes_of(&folder, name)).unwrap()
}

/// New values of enums: as if they had not been said.
#[test]
fn later_values_are_unspecified() {
    use v1::{command, from_agent, from_master};
    let update: v1::FromAgent = later_value("FromAgent.update", &["update", "status", "state"]);
    let Some(from_agent::What::Update(update)) = update.what else { panic!("{update:?}") };
    let status = update.status.unwrap();
    assert_eq!((status.state, status.state()), (99, v1::State::Unspecified));
    let result: v1::FromAgent = later_value("FromAgent.result", &["result", "failure", "kind"]);
    let Some(from_agent::What::Result(result)) = result.what else { panic!("{result:?}") };
    assert_eq!(result.failure.unwrap().kind(), v1::failure::Kind::Unspecified);
    let refused: v1::FromMaster = later_value("FromMaster.refused", &["refused", "kind"]);
    let Some(from_master::What::Refused(refused)) = refused.what else { panic!("{refused:?}") };
    assert_eq!(refused.kind(), v1::refused::Kind::Unspecified);
    let stop: v1::FromMaster = later_value("FromMaster.command.stop", &["command", "stop", "why"]);
    let Some(from_master::What::Command(v1::Command {
        what: Some(command::What::Stop(stop)), ..
    })) = stop.what
    else {
        panic!("{stop:?}")
    };
    assert_eq!(stop.why(), v1::reason::Kind::Unspecified);
}

/// A line for each field and each value of an enum; of messages that agents and masters do not send to each other, too.
fn listing(pool: &DescriptorPool) -> BTreeSet<String> {
    let is_wire = |file: &str| !file.ends_with("cluster.proto");
    let mut lines = BTreeSet::new();
    let messages = pool.all_messages().filter(|m| m.package_name() == PACKAGE);
    for message in messages.filter(|m| is_wire(m.parent_file().name())) {
        lines.extend(message.fields().map(|field| line(&field)));
    }
    let enums = pool.all_enums().filter(|e| e.package_name() == PACKAGE);
    for kind in enums.filter(|e| is_wire(e.parent_file().name())) {
        let name = kind.full_name();
        lines.extend(
            kind.values().map(|value| format!("{name} {} {}", value.number(), value.name())),
        );
    }
    lines
}

fn line(field: &prost_reflect::FieldDescriptor) -> String {
    let (message, number) = (field.parent_message(), field.number());
    let (message, name) = (message.full_name(), field.name());
    let kind = match field.kind() {
        Kind::Message(inner) => inner.full_name().to_owned(),
        Kind::Enum(inner) => inner.full_name().to_owned(),
        kind => format!("{kind:?}").to_lowercase(),
    };
    let oneof = field.containing_oneof().filter(|oneof| !oneof.is_synthetic());
    let more = match oneof {
        Some(oneof) => format!(" of {}", oneof.name()),
        None if field.is_list() || field.is_map() => " repeated".to_owned(),
        None if field.supports_presence() => " optional".to_owned(),
        None => String::new(),
    };
    format!("{message} {number} {name} {kind}{more}")
}

#[test]
fn no_field_is_lost_or_has_another_number() {
    let path = folder("wire-1.txt");
    let text = fs::read_to_string(&path).unwrap_or_default();
    let before: BTreeSet<String> = text.lines().map(str::to_owned).collect();
    let now = listing(&today());
    let lost: Vec<_> = before.difference(&now).collect();
    assert!(lost.is_empty(), "what others rely on is gone: {lost:#?}");
    if writes() {
        let lines: Vec<String> = now.iter().map(|line| format!("{line}\n")).collect();
        fs::write(&path, lines.concat()).unwrap();
    } else {
        let new: Vec<_> = now.difference(&before).collect();
        assert!(new.is_empty(), "HAFEN_WIRE=write makes these stay: {new:#?}");
    }
}
