//! A root filesystem made of one static program.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

const FOLDERS: &[&str] = &["bin", "dev", "etc", "proc", "root", "sys", "tmp"];

const FILES: &[(&str, &str)] = &[
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
];

/// Makes `root` with busybox and a link for each of its applets.
pub(crate) fn make(root: &Path) -> Result<()> {
    for folder in FOLDERS {
        let path = root.join(folder);
        fs::create_dir_all(&path).with_context(|| format!("mkdir {}", path.display()))?;
    }
    for (name, text) in FILES {
        let path = root.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    let program = PathBuf::from("/bin/busybox");
    let copy = root.join("bin/busybox");
    fs::copy(&program, &copy)
        .with_context(|| format!("copy {} to {}", program.display(), copy.display()))?;
    link_applets(&program, &root.join("bin"))
}

fn link_applets(program: &Path, folder: &Path) -> Result<()> {
    let output = Command::new(program).arg("--list").output().context("run busybox --list")?;
    ensure!(output.status.success(), "busybox --list: {}", output.status);
    for applet in String::from_utf8_lossy(&output.stdout).lines().filter(|a| *a != "busybox") {
        let link = folder.join(applet);
        symlink("busybox", &link).with_context(|| format!("symlink {}", link.display()))?;
    }
    Ok(())
}
