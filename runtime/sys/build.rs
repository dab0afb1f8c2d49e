//! Whether the C library that is linked is the one whose start `src/start/c_library.rs` knows.

use std::env::var;
use std::fs;

const HEADER: &str = "/usr/include/features.h";
const KNOWN: [&str; 2] = ["#define\t__GLIBC__\t2", "#define\t__GLIBC_MINOR__\t36"];

fn main() {
    println!("cargo::rustc-check-cfg=cfg(known_libc)");
    println!("cargo::rerun-if-changed={HEADER}");
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| var(name).is_ok_and(|found| found == value);
    let has = |name: &str, word: &str| var(name).is_ok_and(|found| found.contains(word));
    let library = is("CARGO_CFG_TARGET_ARCH", "x86_64")
        && is("CARGO_CFG_TARGET_ENV", "gnu")
        && var("HOST").ok() == var("TARGET").ok();
    // A program that can stand anywhere has relocations, which are that start's work as well.
    let program = has("CARGO_CFG_TARGET_FEATURE", "crt-static")
        && has("CARGO_ENCODED_RUSTFLAGS", "relocation-model=static");
    let header = fs::read_to_string(HEADER).unwrap_or_default();
    let version = KNOWN.iter().all(|line| header.lines().any(|found| found == *line));
    if library && program && version {
        println!("cargo::rustc-cfg=known_libc");
    }
}
