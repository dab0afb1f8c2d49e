//! `hafen image`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use comfy_table::{Table, presets};
use hafen_registry::{Progress, Tell, pull, push};
use hafen_rootfs::export::export;
use hafen_rootfs::import::{Import, import};
use hafen_rootfs::pack::LeftOut;
use hafen_rootfs::store::{
    Collected, Collecting, Garbage, Image, Named, Policy, Store, StoreError, Unpacking, chain_ids,
};
use hafen_rootfs::unpack::Bounds;
use hafen_spec::image::{Blob, Digest, Reference};
use hafen_sys::file::boot_id;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::cli::{Format, ImageCommand, ImportArgs, PruneArgs, PullArgs, PushArgs, RegistryArgs};
use crate::{Error, chain, fsck};

pub(crate) fn run(root: &Path, command: &ImageCommand) -> Result<ExitCode, Error> {
    let store = Store::at(root.to_owned());
    match command {
        ImageCommand::Pull(args) => fetch(&store, args)?,
        ImageCommand::Push(args) => send(&store, args)?,
        ImageCommand::Import(args) => take_in(&store, args)?,
        ImageCommand::Export { image, file } => {
            let named = store.find(image)?;
            export(&store, &named, file)?;
        }
        ImageCommand::Ls { format } => list(&store, *format)?,
        ImageCommand::Inspect { image } => {
            println!("{:#}", describe(&store, &store.find(image)?)?);
        }
        ImageCommand::Tag { image, name } => {
            let _guard = store.hold()?;
            let named = store.find(image)?;
            store.tag(&reference(name)?, named.target, now())?;
        }
        ImageCommand::Pin { image } => pin(&store, image, true)?,
        ImageCommand::Unpin { image } => pin(&store, image, false)?,
        ImageCommand::Rm { names } => return remove(&store, names),
        ImageCommand::Prune(args) => return prune(&store, args),
        ImageCommand::Fsck(args) => return fsck::check(&store, args),
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn now() -> String {
    time(SystemTime::now())
}

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

pub(crate) fn reference(text: &str) -> Result<Reference, Error> {
    text.parse().map_err(Error::Refused)
}

fn pin(store: &Store, image: &str, pinned: bool) -> Result<(), Error> {
    let _guard = store.hold()?;
    let name = reference(&store.find(image)?.reference)?;
    store.pin(&name, pinned)?;
    println!("{} {name}", if pinned { "pinned" } else { "unpinned" });
    Ok(())
}

fn fetch(store: &Store, args: &PullArgs) -> Result<(), Error> {
    let name = reference(&args.image)?;
    let _guard = store.hold()?;
    let boot = boot_id()?;
    store.sync_layers(&boot)?;
    let target = pull_target(store, &name, &args.registry)?;
    unpack(store, &target, &name.to_string(), args.bounds.bounds(), &boot)?;
    println!("{name} {}", target.digest);
    store.tag(&name, target, now())?;
    Ok(())
}

pub(crate) fn pull_target(
    store: &Store,
    name: &Reference,
    args: &RegistryArgs,
) -> Result<Blob, Error> {
    let bar = bar(&format!("pull {name}"));
    let target = threads()?.block_on(pull(store, name, &args.options(), tell(&bar)));
    bar.finish_and_clear();
    Ok(target?)
}

fn send(store: &Store, args: &PushArgs) -> Result<(), Error> {
    let _guard = store.hold()?;
    let named = store.find(&args.image)?;
    let to = reference(args.destination.as_ref().unwrap_or(&named.reference))?;
    if to.digest.is_some() {
        return Err(Error::Refused(format!("{to}: an image is sent to a tag, and has its digest")));
    }
    let bar = bar(&format!("push {to}"));
    let options = args.registry.options();
    let sent = threads()?.block_on(push(store, &named, &to, &options, tell(&bar)));
    bar.finish_and_clear();
    println!("{to} {}", sent?.digest);
    Ok(())
}

fn threads() -> Result<tokio::runtime::Runtime, Error> {
    let threads = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    threads.map_err(|e| Error::Refused(format!("start threads: {e}")))
}

fn tell(bar: &ProgressBar) -> Tell {
    let shown = bar.clone();
    Arc::new(move |progress| match progress {
        Progress::Expect(bytes) => shown.set_length(bytes),
        Progress::Got(bytes) => shown.inc(bytes),
        Progress::Lost(bytes) => shown.dec(bytes),
    })
}

pub(crate) fn unpack(
    store: &Store,
    target: &Blob,
    name: &str,
    bounds: Bounds,
    boot_id: &str,
) -> Result<(), Error> {
    let image = store.image(target)?;
    let bar = bar(&format!("unpack {name}"));
    let progress = |_: &Digest, bytes: u64| bar.inc(bytes);
    let layers = store.layers_of(&image, &Unpacking { bounds, boot_id, progress: &progress });
    bar.finish_and_clear();
    layers?;
    Ok(())
}

fn take_in(store: &Store, args: &ImportArgs) -> Result<(), Error> {
    let name = args.name.as_deref().map(reference).transpose()?;
    let bar = bar(&format!("unpack {}", args.file.display()));
    let boot = boot_id()?;
    let progress = |_: &Digest, bytes: u64| bar.inc(bytes);
    let unpacking = Unpacking { bounds: args.bounds.bounds(), boot_id: &boot, progress: &progress };
    let how = Import { name: name.as_ref(), now: now(), unpacking };
    let taken = import(store, &args.file, &how);
    bar.finish_and_clear();
    let taken = taken?;
    for LeftOut { path, why } in &taken.left_out {
        eprintln!("hafen: {} is left out: {why}", args.file.join(path).display());
    }
    for image in &taken.images {
        println!("{} {}", image.reference, image.target.digest);
    }
    Ok(())
}

/// Drawn on a terminal only.
fn bar(what: &str) -> ProgressBar {
    const TEMPLATE: &str = "{spinner} {msg}  {bytes}  {bytes_per_sec}";
    let style =
        ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_spinner());
    ProgressBar::new_spinner().with_style(style).with_message(what.to_owned())
}

/// Names first, then digest, platform and size; what cannot be read says why.
fn list(store: &Store, format: Format) -> Result<(), Error> {
    let named = store.all_named()?;
    if format == Format::Json {
        let all: Vec<Value> = named
            .iter()
            .map(|named| {
                let image = store.image(&named.target);
                let size = image.as_ref().map(Image::size).ok();
                json!({
                    "reference": named.reference,
                    "digest": named.target.digest,
                    "updated": named.updated,
                    "pinned": named.pinned,
                    "size": size,
                    "problem": image.err().map(|e| say(&e)),
                })
            })
            .collect();
        println!("{}", json!(all));
        return Ok(());
    }
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["IMAGE", "DIGEST", "PLATFORM", "LAYERS", "SIZE", "PINNED", "UPDATED"]);
    for named in named {
        let short = named.target.digest.short().to_owned();
        let pinned = if named.pinned { "yes" } else { "" }.to_owned();
        let row = match store.image(&named.target) {
            Ok(image) => [
                named.reference,
                short,
                image.config.platform.to_string(),
                image.manifest.layers.len().to_string(),
                size(image.size()),
                pinned,
                named.updated,
            ],
            Err(e) => [
                named.reference,
                short,
                say(&e),
                String::new(),
                String::new(),
                pinned,
                named.updated,
            ],
        };
        table.add_row(row);
    }
    print(&table);
    Ok(())
}

/// Without the blank that stands for a border. A reader that has gone away wants no more.
pub(crate) fn print(table: &Table) {
    let mut stdout = std::io::stdout().lock();
    let _ = table.lines().try_for_each(|line| writeln!(stdout, "{}", line.trim()));
}

fn say(error: &StoreError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

fn describe(store: &Store, named: &Named) -> Result<Value, Error> {
    let image = store.image(&named.target)?;
    let (config, defaults) = (&image.config, &image.config.defaults);
    let chain = chain_ids(&config.diff_ids);
    let boot = boot_id()?;
    let layers = image.manifest.layers.iter().zip(&config.diff_ids).zip(&chain);
    let layers: Vec<Value> = layers
        .map(|((layer, diff), chain)| {
            json!({ "digest": layer.blob.digest, "mediaType": layer.blob.media_type, "size": layer.blob.size,
                    "diffId": diff, "chainId": chain })
        })
        .collect();
    Ok(json!({
        "reference": named.reference,
        "target": named.target,
        "updated": named.updated,
        "pinned": named.pinned,
        "lastUse": time(store.last_use(named)?),
        "digest": image.digest,
        "platform": config.platform,
        "created": config.created,
        "size": image.size(),
        "unpacked": store.ready_layers(&image, &boot)?.is_some(),
        "layers": layers,
        "config": {
            "entrypoint": defaults.entrypoint, "cmd": defaults.command, "env": defaults.env, "user": defaults.user,
            "workingDir": defaults.working_dir, "labels": defaults.labels, "stopSignal": defaults.stop_signal,
            "volumes": defaults.volumes, "exposedPorts": defaults.exposed_ports,
        },
    }))
}

/// Every name, or none of them.
fn remove(store: &Store, images: &[String]) -> Result<ExitCode, Error> {
    let mut found = Vec::new();
    for image in images {
        let named = store.find(image)?;
        named.may_go()?;
        found.push(reference(&named.reference)?);
    }
    {
        let _guard = store.hold()?;
        for reference in &found {
            store.untag(reference)?;
            println!("untagged {reference}");
        }
    }
    let boot = boot_id()?;
    let how = Collecting { patience: A_WHILE, ..collecting(Policy::default(), &boot) };
    let Some(collected) = store.collect(&how)? else {
        println!(
            "somebody is at work in the store: \"hafen image prune\" removes the content later"
        );
        return Ok(ExitCode::SUCCESS);
    };
    println!("removed {}", told(&collected));
    Ok(complain(&collected))
}

/// For who only starts a container: that one lets go of the store when it runs.
const A_WHILE: Duration = Duration::from_secs(2);

fn collecting(policy: Policy, boot_id: &str) -> Collecting<'_> {
    Collecting { policy, now: SystemTime::now(), boot_id, patience: Duration::ZERO, dry: false }
}

fn prune(store: &Store, args: &PruneArgs) -> Result<ExitCode, Error> {
    let boot = boot_id()?;
    let policy = args.policy().map_err(Error::Refused)?;
    let how = Collecting { dry: args.dry_run, ..collecting(policy, &boot) };
    let collected = match store.collect(&how)? {
        Some(collected) => collected,
        None => {
            eprintln!("somebody is at work in the store: waiting for them");
            let how = Collecting { patience: Duration::MAX, now: SystemTime::now(), ..how };
            store.collect(&how)?.unwrap_or_default()
        }
    };
    let (untagged, removed) =
        if args.dry_run { ("would untag", "would remove") } else { ("untagged", "removed") };
    collected.names.iter().for_each(|name| println!("{untagged} {name}"));
    println!("{removed} {}", told(&collected));
    Ok(complain(&collected))
}

fn complain(collected: &Collected) -> ExitCode {
    for error in &collected.failed {
        eprintln!("hafen: {}", chain(error));
    }
    if collected.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn told(collected: &Collected) -> String {
    let Garbage { blobs, layers, parts } = &collected.garbage;
    let parts = match parts.len() {
        0 => String::new(),
        n => format!(" and {n} parts of blobs"),
    };
    format!("{} blobs and {} layers{parts}, {}", blobs.len(), layers.len(), size(collected.bytes))
}
