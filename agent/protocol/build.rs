//! The `.proto` files to Rust, with the JSON of proto3 (protobuf.dev, "ProtoJSON Format"), by libraries: no protoc is needed.

use std::error::Error;
use std::path::PathBuf;

use prost::Message;

const FILES: [&str; 4] = [
    "hafen/v1/task.proto",
    "hafen/v1/node.proto",
    "hafen/v1/master.proto",
    "hafen/v1/cluster.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let set = protox::compile(FILES, ["proto"])?;
    let descriptors = PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(&descriptors, set.encode_to_vec())?;
    tonic_prost_build::configure()
        .compile_well_known_types(true)
        .extern_path(".google.protobuf", "::pbjson_types")
        .btree_map(".")
        // Written by hand in src/lib.rs: what is secret is in no log.
        .skip_debug([".hafen.v1.Secret"])
        .compile_fds(set)?;
    pbjson_build::Builder::new()
        .register_descriptors(&std::fs::read(&descriptors)?)?
        .btree_map(["."])
        .build(&[".hafen.v1"])?;
    Ok(())
}
