//! All end-to-end tests, in one program that can be carried into the virtual machine.

mod differential;
mod smoke;

use std::process::ExitCode;

fn main() -> ExitCode {
    let modules = [smoke::trials(), differential::trials()];
    hafen_integration::main(modules.into_iter().flatten().collect())
}
