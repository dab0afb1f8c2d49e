//! Messages with all of their fields set, each to something else.

use std::collections::HashMap;

use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    OneofDescriptor, Value,
};

#[derive(Default)]
pub struct Filler {
    number: u32,
    /// Of each enum and each oneof the next in turn.
    turns: HashMap<String, usize>,
}

pub fn oneof_of(message: &MessageDescriptor) -> Option<OneofDescriptor> {
    message.oneofs().find(|oneof| !oneof.is_synthetic())
}

/// Every way to say it: the names of the arms, from the outermost.
pub fn variants(message: &MessageDescriptor) -> Vec<Vec<String>> {
    let Some(oneof) = oneof_of(message) else { return vec![Vec::new()] };
    let inner = |arm: &FieldDescriptor| match arm.kind() {
        Kind::Message(inner) => variants(&inner),
        _ => vec![Vec::new()],
    };
    let of_arm = |arm: FieldDescriptor| {
        let name = arm.name().to_owned();
        inner(&arm).into_iter().map(move |rest| [vec![name.clone()], rest].concat())
    };
    oneof.fields().flat_map(of_arm).collect()
}

/// The messages in it.
pub fn each_message(value: &Value, act: &mut dyn FnMut(&DynamicMessage)) {
    match value {
        Value::Message(message) => act(message),
        Value::List(list) => list.iter().for_each(|value| each_message(value, act)),
        Value::Map(map) => map.values().for_each(|value| each_message(value, act)),
        _ => {}
    }
}

impl Filler {
    /// `arms` of its oneof, and of the oneof of that one; otherwise they take turns.
    pub fn message(&mut self, of: &MessageDescriptor, arms: &[String]) -> DynamicMessage {
        let mut message = DynamicMessage::new(of.clone());
        if let "google.protobuf.Duration" | "google.protobuf.Timestamp" = of.full_name() {
            let number = self.next();
            message.set_field_by_name("seconds", Value::I64(number.into()));
            message.set_field_by_name("nanos", Value::I32(number.cast_signed() * 1_000));
            return message;
        }
        let oneof = oneof_of(of);
        let chosen = oneof.as_ref().map(|oneof| self.arm(oneof, arms));
        let is_other = |field: &FieldDescriptor| {
            field.containing_oneof() == oneof && oneof.is_some() && Some(field) != chosen.as_ref()
        };
        for field in of.fields().filter(|field| !is_other(field)) {
            let rest = if Some(&field) == chosen.as_ref() { arms.get(1..) } else { None };
            let value = self.field(&field, rest.unwrap_or_default());
            message.set_field(&field, value);
        }
        message
    }

    const fn next(&mut self) -> u32 {
        self.number += 1;
        self.number
    }

    fn turn(&mut self, name: &str, of: usize) -> usize {
        let turn = self.turns.entry(name.to_owned()).or_default();
        *turn += 1;
        (*turn - 1) % of
    }

    fn arm(&mut self, oneof: &OneofDescriptor, arms: &[String]) -> FieldDescriptor {
        let all: Vec<_> = oneof.fields().collect();
        let at = match arms.first() {
            Some(name) => all.iter().position(|arm| arm.name() == name).unwrap(),
            None => self.turn(oneof.full_name(), all.len()),
        };
        all[at].clone()
    }

    fn field(&mut self, field: &FieldDescriptor, arms: &[String]) -> Value {
        if field.is_map() {
            let Kind::Message(entry) = field.kind() else { panic!("{field:?}") };
            let value = entry.map_entry_value_field();
            let mut pair = || {
                let key = format!("{}-{}", field.name(), self.next());
                (MapKey::String(key), self.single(&value, &[]))
            };
            return Value::Map([pair(), pair()].into());
        }
        if field.is_list() {
            // Each way to say it is once in it.
            let count = match field.kind() {
                Kind::Message(inner) => oneof_of(&inner).map_or(2, |o| o.fields().count()),
                _ => 2,
            };
            return Value::List((0..count).map(|_| self.single(field, &[])).collect());
        }
        self.single(field, arms)
    }

    fn single(&mut self, field: &FieldDescriptor, arms: &[String]) -> Value {
        match field.kind() {
            Kind::Message(inner) => Value::Message(self.message(&inner, arms)),
            Kind::Enum(inner) => self.value(&inner),
            kind => self.scalar(field.name(), &kind),
        }
    }

    fn value(&mut self, kind: &EnumDescriptor) -> Value {
        let said: Vec<i32> = kind.values().map(|v| v.number()).filter(|n| *n != 0).collect();
        Value::EnumNumber(said[self.turn(kind.full_name(), said.len())])
    }

    /// Of the whole width of its type.
    fn scalar(&mut self, name: &str, kind: &Kind) -> Value {
        let number = self.next();
        match kind {
            Kind::Bool => Value::Bool(true),
            Kind::String => Value::String(format!("{name}-{number}")),
            Kind::Bytes => Value::Bytes(format!("\0\u{e9}{name}-{number}").into_bytes().into()),
            Kind::Double => Value::F64(f64::from(number) + 0.125),
            Kind::Int32 => Value::I32(-number.cast_signed()),
            Kind::Uint32 => Value::U32(1 << 31 | number),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(1 << 63 | u64::from(number)),
            other => panic!("{name}: no value of {other:?} is made yet"),
        }
    }
}
