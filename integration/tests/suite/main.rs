//! All end-to-end tests, in one program that can be carried into the virtual machine.

mod agent;
mod bad_input;
mod clients;
mod cluster;
mod differential;
mod docs;
mod endurance;
mod events;
mod exec;
mod explain;
mod faults;
mod foreign;
mod hooks;
mod images;
mod keeper;
mod lifecycle;
mod limits;
mod masters;
mod misuse;
mod mounts;
mod namespaces;
mod netdevices;
mod page;
mod pause;
mod process_attributes;
mod seccomp;
mod security;
mod smoke;
mod sockets;
mod systemd;
mod terminal;
mod up;
mod update;
mod user;
mod without;

use std::process::ExitCode;

fn main() -> ExitCode {
    let modules = [
        smoke::trials(),
        bad_input::trials(),
        differential::trials(),
        docs::trials(),
        explain::trials(),
        lifecycle::trials(),
        limits::trials(),
        mounts::trials(),
        namespaces::trials(),
        process_attributes::trials(),
        netdevices::trials(),
        pause::trials(),
        systemd::trials(),
        update::trials(),
        events::trials(),
        exec::trials(),
        terminal::trials(),
        hooks::trials(),
        images::trials(),
        sockets::trials(),
        seccomp::trials(),
        security::trials(),
        keeper::trials(),
        faults::trials(),
        endurance::trials(),
        foreign::trials(),
        without::trials(),
        user::trials(),
        clients::trials(),
        agent::trials(),
        cluster::trials(),
        page::trials(),
        up::trials(),
        masters::trials(),
        misuse::trials(),
    ];
    hafen_integration::main(modules.into_iter().flatten().collect())
}
