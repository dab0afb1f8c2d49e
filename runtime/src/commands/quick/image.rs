//! What an image says about its containers (image-spec, conversion).

use std::path::PathBuf;

use hafen_rootfs::account;
use hafen_rootfs::layers;
use hafen_rootfs::store::{Stack, Store, Unpacking, chain_ids};
use hafen_rootfs::unpack::Bounds;
use hafen_spec::Problems;
use serde_json::{Value, json};

use crate::Error;
use crate::cli::QuickArgs;
use crate::prepare::ImageBase;
use hafen_sys::file::boot_id;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The image and its layers. They are unpacked mostly; else they are unpacked now.
pub(super) fn find(store: Store, text: &str) -> Result<ImageBase, Error> {
    if !store.root().exists() {
        // Nothing is made for a look.
        store.find(text)?;
    }
    let guard = store.hold()?;
    let named = store.find(text)?;
    let image = store.image(&named.target)?;
    let boot = boot_id()?;
    let chain = chain_ids(&image.config.diff_ids);
    let Some(top) = chain.last().cloned() else {
        return Err(Error::Refused(format!("--image: {} has no layers", named.reference)));
    };
    if let Some(stack) = store.stack(&top, &boot) {
        let layers = store.layer_trees(&chain);
        return Ok(ImageBase { store, named, image, chain, layers, stack, guard });
    }
    let layers = match store.ready_layers(&image, &boot)? {
        Some(layers) => layers,
        None => {
            let how = Unpacking { bounds: Bounds::default(), boot_id: &boot, progress: &|_, _| {} };
            store.layers_of(&image, &how)?
        }
    };
    let stack = look(&layers, boot)?;
    store.keep_stack(&top, &stack);
    Ok(ImageBase { store, named, image, chain, layers, stack, guard })
}

fn look(layers: &[PathBuf], boot_id: String) -> Result<Stack, Error> {
    let text = |path| -> Result<String, Error> {
        let bytes = layers::read(layers, path)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Stack { boot_id, passwd: text("etc/passwd")?, group: text("etc/group")? })
}

/// What runs: the image's own words, changed by those of the caller.
pub(super) fn process(
    base: &ImageBase,
    args: &QuickArgs,
    spec: &mut Value,
    problems: &mut Problems,
) {
    let defaults = &base.image.config.defaults;
    match defaults.args(&args.command, args.entrypoint.as_deref()) {
        Ok(args) => spec["process"]["args"] = json!(args),
        Err(missing) => problems.0.extend(missing.0),
    }
    let cwd = args.cwd.clone().unwrap_or_else(|| defaults.working_dir.clone());
    spec["process"]["cwd"] = json!(if cwd.is_empty() { "/" } else { &cwd });
    let wanted = args.user.as_deref().unwrap_or(&defaults.user);
    let mut home = "/".to_owned();
    match account::find(wanted, &base.stack.passwd, &base.stack.group) {
        Ok(account) => {
            spec["process"]["user"] = json!({
                "uid": account.uid, "gid": account.gid, "additionalGids": account.groups });
            home = account.home;
        }
        Err(why) => problems.add("--user", why),
    }
    spec["process"]["env"] = json!(environment(&defaults.env, &args.env, &home));
    spec["annotations"] = annotations(base);
}

/// The image's variables, then the caller's: of two with one name the later counts.
fn environment(image: &[String], own: &[String], home: &str) -> Vec<String> {
    let has = |name: &str| image.iter().chain(own).any(|variable| variable.starts_with(name));
    let path = (!has("PATH=")).then(|| PATH.to_owned());
    let home = (!has("HOME=")).then(|| format!("HOME={home}"));
    path.into_iter().chain(home).chain(image.iter().cloned()).chain(own.iter().cloned()).collect()
}

/// As the image spec names them; labels are annotations, and what they say comes last.
fn annotations(base: &ImageBase) -> Value {
    let config = &base.image.config;
    let defaults = &config.defaults;
    let mut all = json!({
        "org.opencontainers.image.os": config.platform.os,
        "org.opencontainers.image.architecture": config.platform.architecture,
    });
    let ports = (!defaults.exposed_ports.is_empty()).then(|| defaults.exposed_ports.join(","));
    for (key, value) in [
        ("org.opencontainers.image.variant", config.platform.variant.clone()),
        ("org.opencontainers.image.created", config.created.clone()),
        ("org.opencontainers.image.stopSignal", defaults.stop_signal.clone()),
        ("org.opencontainers.image.exposedPorts", ports),
    ] {
        if let Some(value) = value {
            all[key] = json!(value);
        }
    }
    for (key, value) in &defaults.labels {
        all[key] = json!(value);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::environment;

    #[test]
    fn what_is_missing_is_added() {
        let text = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let all = environment(&text(&["A=1"]), &text(&["A=2"]), "/root");
        assert_eq!(all[1..], text(&["HOME=/root", "A=1", "A=2"]));
        let all = environment(&text(&["PATH=/bin", "HOME=/x"]), &[], "/root");
        assert_eq!(all, text(&["PATH=/bin", "HOME=/x"]));
    }
}
