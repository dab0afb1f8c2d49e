//! `hafen volume`.

use std::path::Path;
use std::process::ExitCode;

use comfy_table::{Table, presets};
use hafen_rootfs::volumes::Volumes;
use hafen_sys::file::boot_id;
use serde_json::json;

use crate::cli::{Format, VolumeCommand};
use crate::{Error, image};

pub(crate) fn run(root: &Path, command: &VolumeCommand) -> Result<ExitCode, Error> {
    let volumes = Volumes::at(root.to_owned());
    match command {
        VolumeCommand::Create { name } => create(&volumes, name)?,
        VolumeCommand::Ls { format } => list(&volumes, *format)?,
        VolumeCommand::Inspect { name } => {
            println!("{:#}", json!(volumes.find(name, &boot_id()?)?));
        }
        VolumeCommand::Rm { names } => {
            for name in names {
                volumes.remove(name, &boot_id()?)?;
                println!("{name}");
            }
        }
        VolumeCommand::Prune => volumes.prune(&boot_id()?)?.iter().for_each(|n| println!("{n}")),
    }
    Ok(ExitCode::SUCCESS)
}

fn create(volumes: &Volumes, name: &str) -> Result<(), Error> {
    if !volumes.create(name, &image::now(), |_| Ok(()))? {
        return Err(Error::Refused(format!("there is a volume {name:?} already")));
    }
    println!("{name}");
    Ok(())
}

fn list(volumes: &Volumes, format: Format) -> Result<(), Error> {
    let all = volumes.list(&boot_id()?)?;
    if format == Format::Json {
        println!("{}", json!(all));
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["NAME", "CREATED", "USED BY", "PATH"]);
    for volume in all {
        let users: Vec<String> = volume.used_by.iter().map(|u| u.display().to_string()).collect();
        let path = volume.path.display().to_string();
        table.add_row([volume.name, volume.created, users.join(" "), path]);
    }
    image::print(&table);
    Ok(())
}
