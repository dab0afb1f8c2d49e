//! `config.json` of anybody: read, or refused by field; never a panic.

#![no_main]

use hafen_spec::parse::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(problems) = parse(bytes) {
        assert!(!problems.0.is_empty(), "refused without a reason");
    }
});
