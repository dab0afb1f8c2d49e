use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;
use serde_json::{Value, json};

use super::{Digest, Platform, problem, typed};
use crate::Problems;

/// The configuration of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub platform: Platform,
    /// RFC 3339.
    pub created: Option<String>,
    /// Of the uncompressed layers, from the lowest to the topmost.
    pub diff_ids: Vec<Digest>,
    pub defaults: Defaults,
}

/// What a container of an image is unless somebody says otherwise (image-spec, config, "config").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Defaults {
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    pub env: Vec<String>,
    /// Names or numbers, with `:` and a group.
    pub user: String,
    pub working_dir: String,
    pub labels: BTreeMap<String, String>,
    pub stop_signal: Option<String>,
    /// Folders that outlive a container.
    pub volumes: Vec<String>,
    /// `80/tcp`
    pub exposed_ports: Vec<String>,
}

impl Config {
    /// # Errors
    /// Names each field that is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, Problems> {
        let mut value: Value = super::json(bytes, "config")?;
        mend(&mut value);
        let parsed: ImageConfiguration = typed(value, "config")?;
        let mut problems = Problems::default();
        if parsed.rootfs().typ() != "layers" {
            problems.add("rootfs.type", format!("{:?} is not \"layers\"", parsed.rootfs().typ()));
        }
        let digest = |(i, text): (usize, &String)| match text.parse::<Digest>() {
            Ok(digest) => Some(digest),
            Err(why) => {
                problems.add(format!("rootfs.diff_ids[{i}]"), why);
                None
            }
        };
        let diff_ids = parsed.rootfs().diff_ids().iter().enumerate().filter_map(digest).collect();
        let platform = Platform {
            os: parsed.os().to_string(),
            architecture: parsed.architecture().to_string(),
            variant: parsed.variant().clone(),
        };
        let created = parsed.created().clone();
        let defaults = parsed.config().as_ref().map(defaults).unwrap_or_default();
        problems.into_result(Self { platform, created, diff_ids, defaults })
    }

    /// The document of an image that was made here.
    #[must_use]
    pub fn document(&self) -> Value {
        json!({
            "created": self.created,
            "os": self.platform.os,
            "architecture": self.platform.architecture,
            "config": { "Env": self.defaults.env, "Cmd": self.defaults.command },
            "rootfs": { "type": "layers", "diff_ids": self.diff_ids },
        })
    }
}

/// Docker writes null where it has nothing, and `history` is of no use here.
fn mend(value: &mut Value) {
    if let Some(fields) = value.as_object_mut() {
        fields.remove("history");
        fields.retain(|_, value| !value.is_null());
    }
    if let Some(fields) = value.get_mut("config").and_then(Value::as_object_mut) {
        fields.retain(|_, value| !value.is_null());
    }
    if let Some(ids) = value.pointer_mut("/rootfs/diff_ids")
        && ids.is_null()
    {
        *ids = json!([]);
    }
}

fn defaults(config: &oci_spec::image::Config) -> Defaults {
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    Defaults {
        entrypoint: list(config.entrypoint()),
        command: list(config.cmd()),
        env: list(config.env()),
        user: config.user().clone().unwrap_or_default(),
        working_dir: config.working_dir().clone().unwrap_or_default(),
        labels: config.labels().clone().unwrap_or_default().into_iter().collect(),
        stop_signal: config.stop_signal().clone().filter(|signal| !signal.is_empty()),
        volumes: list(config.volumes()),
        exposed_ports: list(config.exposed_ports()),
    }
}

impl Defaults {
    /// What is executed: the caller's words stand in place of the command, behind the entrypoint (as docker run).
    ///
    /// # Errors
    /// There is nothing to execute.
    pub fn args(
        &self,
        words: &[String],
        entrypoint: Option<&str>,
    ) -> Result<Vec<String>, Problems> {
        let (first, usual) = match entrypoint {
            // Another entrypoint has other arguments.
            Some(_) => (&[][..], &[][..]),
            None => (&self.entrypoint[..], &self.command[..]),
        };
        let rest = if words.is_empty() { usual } else { words };
        let own = entrypoint.filter(|e| !e.is_empty()).map(str::to_owned);
        let all: Vec<String> =
            own.into_iter().chain(first.iter().cloned()).chain(rest.iter().cloned()).collect();
        if all.is_empty() {
            return Err(problem(
                "COMMAND",
                "is missing, and the image names none: write it after --",
            ));
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIFF: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(value: &Value) -> Result<Config, Problems> {
        Config::parse(value.to_string().as_bytes())
    }

    #[test]
    fn dockers_null_is_nothing() {
        let config = parse(&json!({
            "architecture": "amd64", "os": "linux", "created": null, "history": [{ "created": "never" }],
            "config": { "Env": null, "Cmd": ["sh"], "Entrypoint": null, "Volumes": { "/data": {} }, "User": "",
                        "ExposedPorts": { "80/tcp": {} }, "Labels": { "a": "b" }, "StopSignal": "" },
            "rootfs": { "type": "layers", "diff_ids": [DIFF] }
        }))
        .unwrap();
        assert_eq!(config.defaults.command, ["sh"]);
        assert_eq!(config.defaults.volumes, ["/data"]);
        assert_eq!(config.defaults.exposed_ports, ["80/tcp"]);
        assert_eq!(config.defaults.stop_signal, None);
        assert_eq!(config.diff_ids.len(), 1);
        assert_eq!(parse(&config.document()).unwrap().diff_ids, config.diff_ids);
    }

    #[test]
    fn wrong_fields_are_named() {
        let wrong = json!({ "architecture": "amd64", "os": "linux",
            "rootfs": { "type": "tree", "diff_ids": [DIFF, "md5:1"] } });
        let told = parse(&wrong).unwrap_err().to_string();
        assert!(told.contains("rootfs.type") && told.contains("rootfs.diff_ids[1]"), "{told}");
        let missing = parse(&json!({ "os": "linux" })).unwrap_err().to_string();
        assert!(missing.contains("architecture"), "{missing}");
    }

    #[test]
    fn words_replace_the_command() {
        let text = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let defaults =
            Defaults { entrypoint: text(&["e"]), command: text(&["c"]), ..Defaults::default() };
        assert_eq!(defaults.args(&[], None).unwrap(), ["e", "c"]);
        assert_eq!(defaults.args(&text(&["w"]), None).unwrap(), ["e", "w"]);
        assert_eq!(defaults.args(&[], Some("x")).unwrap(), ["x"]);
        assert_eq!(defaults.args(&text(&["w"]), Some("")).unwrap(), ["w"]);
        assert!(Defaults::default().args(&[], None).is_err());
    }
}
