//! An image of busybox, made on the spot: no registry is asked.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use hafen_integration::Test;

/// An OCI image layout whose tag `box` is a busybox with the users `root`, `nobody` and `app` (1000). Beside the applets
/// it has `/script`, which may not be executed, `size`, which prints the terminal's size, and `/data/seed`, for volumes that
/// take what is below them.
pub(crate) fn layout(t: &Test) -> PathBuf {
    t.shared("image", |layout| {
        let image = format!("{}:box", layout.display());
        let unpacked = t.dir().join("unpacked");
        let bundle = unpacked.display().to_string();
        umoci(t, &["init", "--layout", &layout.display().to_string()]);
        umoci(t, &["new", "--image", &image]);
        umoci(t, &["unpack", "--image", &image, &bundle]);
        fill(t, &unpacked.join("rootfs"));
        umoci(t, &["repack", "--image", &image, &bundle]);
        let config = ["--config.cmd", "/bin/sh", "--config.env", "PATH=/bin", "--config.env"];
        let more = ["FROM_IMAGE=yes", "--config.stopsignal", "SIGTERM", "--architecture", "amd64"];
        umoci(t, &[&["config", "--image", &image], &config[..], &more].concat());
    })
}

/// Its files as a tar archive.
pub(super) fn rootfs(t: &Test) -> PathBuf {
    let image = format!("{}:box", layout(t).display());
    t.shared("rootfs.tar", |tar| {
        let unpacked = t.dir().join("files");
        umoci(t, &["unpack", "--image", &image, &unpacked.display().to_string()]);
        pack(t, tar, &unpacked.join("rootfs"));
    })
}

/// The layout as a tar archive.
pub(crate) fn archive(t: &Test) -> PathBuf {
    let layout = layout(t);
    t.shared("image.tar", |tar| pack(t, tar, &layout))
}

fn pack(t: &Test, tar: &Path, folder: &Path) {
    let words = ["-cf".as_ref(), tar.as_os_str(), "-C".as_ref(), folder.as_os_str()];
    t.program("tar", words.into_iter().chain([".".as_ref()])).output().ok();
}

fn umoci(t: &Test, words: &[&str]) {
    t.program("umoci", words).output().ok();
}

fn fill(t: &Test, root: &Path) {
    let template = t.bundle().rootfs();
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp", "root", "run", "mnt", "data"] {
        std::fs::create_dir_all(root.join(folder)).expect("mkdir in the image");
    }
    let everybodys = std::fs::Permissions::from_mode(0o1777);
    std::fs::set_permissions(root.join("tmp"), everybodys).expect("chmod /tmp");
    let busybox = std::fs::canonicalize(template.join("bin/busybox")).expect("busybox");
    std::fs::copy(busybox, root.join("bin/busybox")).expect("copy busybox");
    let applets = std::fs::read_dir(template.join("bin")).expect("read /bin");
    for name in applets.filter_map(Result::ok).map(|e| e.file_name()).filter(|n| n != "busybox") {
        symlink("busybox", root.join("bin").join(name)).expect("link an applet");
    }
    let files = [
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\napp:x:1000:1000::/tmp:/bin/sh\n",
        ),
        ("etc/group", "root:x:0:\nnogroup:x:65534:\napp:x:1000:\nextra:x:2000:app\n"),
        ("script", "#!/bin/sh\necho never\n"),
        // A client tells the size after the start, and reads what is written before the end.
        ("bin/size", "#!/bin/sh\nsleep 0.5; stty size; sleep 0.5\n"),
        ("data/seed", "seed\n"),
    ];
    for (path, text) in files {
        std::fs::write(root.join(path), text).expect("write a file of the image");
    }
    let program = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(root.join("bin/size"), program).expect("chmod /bin/size");
}
