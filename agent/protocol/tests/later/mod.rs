//! What a later version may say: new fields, new kinds of messages, new values of enums.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::prost_types::field_descriptor_proto::{Label, Type};
use prost_reflect::prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto,
    FileDescriptorSet,
};
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, ReflectMessage, Value};

use crate::filled::Filler;
use crate::{DESCRIPTORS, PACKAGE, message};

const NUMBER: i32 = 500;
const TEXT: i32 = 501;
const LIST: i32 = 502;
const MESSAGE: i32 = 503;
const ARM: i32 = 510;
const VALUE: i32 = 99;
/// What new messages consist of.
const INNER: &str = "IoLimit";

/// The descriptors of a version that adds something everywhere.
pub fn pool() -> &'static DescriptorPool {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(make);
    &POOL
}

fn make() -> DescriptorPool {
    let mut set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    for file in set.file.iter_mut().filter(|file| file.package() == PACKAGE) {
        file.message_type.iter_mut().for_each(extend);
        file.enum_type.iter_mut().for_each(extend_enum);
    }
    DescriptorPool::from_file_descriptor_set(set).unwrap()
}

fn extend(message: &mut DescriptorProto) {
    if message.options.as_ref().is_some_and(|options| options.map_entry()) {
        return;
    }
    message.nested_type.iter_mut().for_each(extend);
    message.enum_type.iter_mut().for_each(extend_enum);
    let arm = message.field.iter().find(|f| f.oneof_index.is_some() && !f.proto3_optional());
    let arm = arm.and_then(|arm| arm.oneof_index);
    message.field.extend([
        field("later_number", NUMBER, Type::Uint64, Label::Optional),
        field("later_text", TEXT, Type::String, Label::Optional),
        field("later_list", LIST, Type::Fixed64, Label::Repeated),
    ]);
    // It is no part of itself.
    message.field.extend((message.name() != INNER).then(|| FieldDescriptorProto {
        type_name: Some(format!(".{PACKAGE}.{INNER}")),
        ..field("later_message", MESSAGE, Type::Message, Label::Optional)
    }));
    message.field.extend(arm.map(|index| FieldDescriptorProto {
        oneof_index: Some(index),
        type_name: Some(format!(".{PACKAGE}.{INNER}")),
        ..field("later_kind", ARM, Type::Message, Label::Optional)
    }));
}

fn field(name: &str, number: i32, kind: Type, label: Label) -> FieldDescriptorProto {
    let mut field = FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        ..FieldDescriptorProto::default()
    };
    field.set_type(kind);
    field.set_label(label);
    field
}

fn extend_enum(kind: &mut EnumDescriptorProto) {
    kind.value.push(EnumValueDescriptorProto {
        name: Some(format!("{}_LATER", kind.name().to_uppercase())),
        number: Some(VALUE),
        ..EnumValueDescriptorProto::default()
    });
}

fn number(field: i32) -> u32 {
    field.cast_unsigned()
}

/// To it, and to all in it.
pub fn add_fields(message: &mut DynamicMessage) {
    message.fields_mut().for_each(|(_, value)| add_to_each(value));
    if message.descriptor().package_name() != PACKAGE || message.descriptor().is_map_entry() {
        return;
    }
    let list = [u64::MAX, 1].map(Value::U64).to_vec();
    message.set_field_by_number(number(NUMBER), Value::U64(u64::MAX));
    message.set_field_by_number(number(TEXT), Value::String("later".to_owned()));
    message.set_field_by_number(number(LIST), Value::List(list));
    if message.descriptor().name() != INNER {
        message.set_field_by_number(number(MESSAGE), Value::Message(something()));
    }
}

fn add_to_each(value: &mut Value) {
    match value {
        Value::Message(message) => add_fields(message),
        Value::List(list) => list.iter_mut().for_each(add_to_each),
        Value::Map(map) => map.values_mut().for_each(add_to_each),
        _ => {}
    }
}

fn something() -> DynamicMessage {
    let mut inner = DynamicMessage::new(message(pool(), INNER));
    inner.set_field_by_name("device", Value::String("later".to_owned()));
    inner
}

/// Where a later version may say something else: the root, and the arms that lead there.
pub const fn places_of_kinds() -> [(&'static str, &'static [&'static str]); 8] {
    [
        ("FromAgent", &[]),
        ("FromMaster", &[]),
        ("FromMaster", &["command"]),
        ("FromMaster", &["command", "open"]),
        ("ChannelUp", &[]),
        ("ChannelDown", &[]),
        ("ChannelDown", &["exec"]),
        ("ChannelDown", &["attach"]),
    ]
}

/// Such a message, with all that it says beside.
pub fn kind(root: &str, path: &[&str]) -> Vec<u8> {
    let mut arms: Vec<String> = path.iter().map(|&arm| arm.to_owned()).collect();
    arms.push("later_kind".to_owned());
    let mut filled = Filler::default().message(&message(pool(), root), &arms);
    remove_later_fields(&mut filled, &arms);
    filled.encode_to_vec()
}

/// All but the kind itself.
fn remove_later_fields(message: &mut DynamicMessage, arms: &[String]) {
    if message.descriptor().name() != INNER {
        for field in [NUMBER, TEXT, LIST, MESSAGE] {
            message.clear_field_by_number(number(field));
        }
    }
    let Some((arm, rest)) = arms.split_first() else { return };
    if let Some(Value::Message(inner)) = message.get_field_by_name_mut(arm) {
        remove_later_fields(inner, rest);
    }
}

/// Say an enum's new value at a place.
pub fn set_value(message: &mut DynamicMessage, path: &[&str]) {
    let (first, rest) = path.split_first().unwrap();
    if rest.is_empty() {
        let field = message.descriptor().get_field_by_name(first).unwrap();
        assert!(matches!(field.kind(), Kind::Enum(_)), "{first}");
        message.set_field(&field, Value::EnumNumber(VALUE));
    } else {
        let inner = message.get_field_by_name_mut(first).and_then(Value::as_message_mut).unwrap();
        set_value(inner, rest);
    }
}
