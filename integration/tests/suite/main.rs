//! All end-to-end tests, in one program that can be carried into the virtual machine.

mod bad_input;
mod differential;
mod explain;
mod faults;
mod limits;
mod smoke;
mod without;

use std::process::ExitCode;

fn main() -> ExitCode {
    let modules = [
        smoke::trials(),
        bad_input::trials(),
        differential::trials(),
        explain::trials(),
        limits::trials(),
        faults::trials(),
        without::trials(),
    ];
    hafen_integration::main(modules.into_iter().flatten().collect())
}
