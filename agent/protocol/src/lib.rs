//! What is said to a node, and what it answers: messages and services of the `.proto` files beside this crate, which
//! are the reference. Every message has the JSON of proto3 as well.

/// Version 1.
#[expect(clippy::large_enum_variant, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("hafen.v1");
    include!(concat!(env!("OUT_DIR"), "/hafen.v1.serde.rs"));
}

/// All messages and services, for reflection and for clients without the `.proto` files (a `FileDescriptorSet`).
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
