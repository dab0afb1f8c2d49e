//! The test programs that cargo built, from its JSON messages.

use std::path::PathBuf;

use serde::Deserialize;

#[derive(Debug, Default)]
pub(super) struct Artifacts {
    pub(super) programs: Vec<Program>,
}

/// A test program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    /// The package's folder below the repository and the target, such as `runtime/spec hafen_spec`.
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// The package's folder, where cargo runs its tests.
    pub(super) folder: PathBuf,
    is_suite: bool,
}

impl Program {
    /// The integration suite.
    pub(super) fn is_suite(&self) -> bool {
        self.is_suite
    }
}

/// A line of `cargo --message-format json` as far as it matters (cargo book, "External tools").
#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
    profile: Option<Profile>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

impl Artifacts {
    /// Takes the program out of a line that announces one.
    pub(super) fn read_line(&mut self, line: &str) {
        if let Ok(message) = serde_json::from_str::<Message>(line) {
            self.programs.extend(message.program());
        }
    }
}

impl Message {
    fn program(self) -> Option<Program> {
        let is_test = self.reason == "compiler-artifact" && self.profile?.test;
        let (target, manifest) = (self.target?, self.manifest_path?);
        let folder = manifest.parent()?.to_owned();
        let package = folder.strip_prefix(crate::workspace::root()).unwrap_or(&folder);
        let name = format!("{} {}", package.display(), target.name);
        let is_suite = target.kind == ["test"] && target.name == "suite";
        is_test.then_some(Program { name, path: self.executable?, folder, is_suite })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(test: bool, kind: &str, name: &str) -> String {
        let manifest = crate::workspace::root().join("integration/Cargo.toml");
        serde_json::json!({
            "reason": "compiler-artifact", "package_id": "x", "manifest_path": manifest,
            "target": {"kind": [kind], "name": name, "src_path": "x"},
            "profile": {"test": test, "opt_level": "0"}, "executable": "/t/debug/deps/x-1", "fresh": true
        })
        .to_string()
    }

    fn read(line: &str) -> Vec<Program> {
        let mut artifacts = Artifacts::default();
        artifacts.read_line(line);
        artifacts.programs
    }

    #[test]
    fn test_programs_are_found_and_the_suite_among_them() {
        let suite = &read(&line(true, "test", "suite"))[0];
        assert_eq!((suite.name.as_str(), suite.is_suite()), ("integration suite", true));
        assert!(!read(&line(true, "lib", "suite"))[0].is_suite());
    }

    #[test]
    fn other_messages_are_none() {
        assert_eq!(read(&line(false, "bin", "hafen-oci")), []);
        assert_eq!(read(r#"{"reason":"build-finished","success":true}"#), []);
        assert_eq!(read("running 3 tests"), []);
    }
}
