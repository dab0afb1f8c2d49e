//! CNI networks: what a folder configures, and one that is built in (CNI 1.1.0, section 1).

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::failure::{Failure, Kind};

/// Where administrators configure networks.
pub const DEFAULT_FOLDER: &str = "/etc/cni/net.d";
/// Name of the network that is built in.
pub const BUILT_IN: &str = "hafen";

/// Versions of the specification whose configuration and results are understood, oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A network: plugins, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    pub name: String,
    /// That its configuration allows and we understand, newest first; at least one.
    pub versions: Vec<String>,
    /// CHECK would fail without anything being wrong.
    pub disable_check: bool,
    pub plugins: Vec<Plugin>,
}

/// One plugin with its part of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plugin {
    /// Name of the program.
    #[serde(rename = "type")]
    pub kind: String,
    pub config: Map<String, Value>,
    /// Its CHECK would fail without anything being wrong.
    #[serde(default)]
    pub unchecked: bool,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Of a file or a folder.
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// No JSON.
    #[error("{}: is no JSON object", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    /// A field that is wrong or missing.
    #[error("{file}: {field}: {reason}")]
    Field { file: String, field: String, reason: String },
    /// No network of that name.
    #[error(
        "there is no CNI network {name:?} in {}: put a .conflist with that name there, or use one of: {known}",
        folder.display()
    )]
    Unknown { name: String, folder: PathBuf, known: String },
    /// Two files say the same name.
    #[error("{second} and {first} both configure the network {name:?}: rename one of them")]
    Twice { name: String, first: String, second: String },
}

/// What the built-in network looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltIn {
    pub bridge: String,
    /// By default none that podman (10.88), Docker (172.17) or flannel (10.244) take.
    pub subnet: (Ipv4Addr, u8),
    /// Where addresses that are in use are noted; no task outlives a boot, so it should not either.
    pub leases: PathBuf,
    /// Accept what tasks send, and the answers, even where the node's FORWARD chain drops what nobody accepts. Published
    /// ports need a rule of the administrator's there.
    pub firewall: bool,
}

impl Default for BuiltIn {
    fn default() -> Self {
        Self {
            bridge: "hafen0".to_owned(),
            subnet: (Ipv4Addr::new(10, 187, 0, 0), 16),
            leases: PathBuf::from("/run/hafen/cni/leases"),
            firewall: true,
        }
    }
}

impl BuiltIn {
    /// A bridge with a private range behind the node's addresses, and published ports.
    ///
    /// # Errors
    /// Names the field.
    pub fn network(&self) -> Result<Network, ConfigError> {
        let field = |field: &str, reason: String| ConfigError::Field {
            file: format!("built-in network {BUILT_IN}"),
            field: field.to_owned(),
            reason,
        };
        // IFNAMSIZ, with its terminator.
        if self.bridge.is_empty() || self.bridge.len() > 15 || self.bridge.contains(['/', ' ']) {
            return Err(field("bridge", format!("{:?} is no name of an interface", self.bridge)));
        }
        let (address, bits) = self.subnet;
        let host = u32::MAX.checked_shr(bits.into()).unwrap_or(0);
        if !(8..=29).contains(&bits) || u32::from(address) & host != 0 || !address.is_private() {
            let reason = format!("{address}/{bits} is no private range from /8 to /29");
            return Err(field("subnet", reason));
        }
        let mut plugins = vec![
            json!({
                "type": "bridge",
                "bridge": self.bridge,
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": self.leases,
                    "ranges": [[{ "subnet": format!("{address}/{bits}") }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            }),
            json!({ "type": "portmap", "capabilities": { "portMappings": true } }),
        ];
        if self.firewall {
            plugins.push(json!({ "type": "firewall" }));
        }
        let list = json!({ "cniVersion": "1.0.0", "name": BUILT_IN, "plugins": plugins });
        let mut network = read_list(&format!("built-in network {BUILT_IN}"), &list)?;
        // Version 1.1.1, which Debian 12 has, misses rules for IPv6 where the container has no such address.
        network.plugins.iter_mut().for_each(|plugin| plugin.unchecked = plugin.kind == "portmap");
        Ok(network)
    }
}

/// The networks of a folder, by the names of their files. A missing folder has none.
///
/// # Errors
/// The first file that cannot be used.
pub fn load(folder: &Path) -> Result<Vec<Network>, ConfigError> {
    let mut found: Vec<(String, Network)> = Vec::new();
    for path in files(folder)? {
        let file = path.display().to_string();
        let network = load_file(&path)?;
        if let Some((first, _)) = found.iter().find(|(_, other)| other.name == network.name) {
            let first = first.clone();
            return Err(ConfigError::Twice { name: network.name, first, second: file });
        }
        found.push((file, network));
    }
    Ok(found.into_iter().map(|(_, network)| network).collect())
}

/// The network of that name; the empty name is the built-in one, unless the folder has one that is called like it.
///
/// # Errors
/// [`ConfigError::Unknown`]; a file that cannot be used.
pub fn find(folder: &Path, name: &str, built_in: &BuiltIn) -> Result<Network, ConfigError> {
    let name = if name.is_empty() { BUILT_IN } else { name };
    let networks = load(folder)?;
    if let Some(network) = networks.iter().find(|network| network.name == name) {
        return Ok(network.clone());
    }
    if name == BUILT_IN {
        return built_in.network();
    }
    let mut known: Vec<&str> = networks.iter().map(|network| network.name.as_str()).collect();
    known.push(BUILT_IN);
    let (name, folder, known) = (name.to_owned(), folder.to_owned(), known.join(", "));
    Err(ConfigError::Unknown { name, folder, known })
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let read = |source| ConfigError::Read { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(read)?,
    };
    let paths: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(read)?;
    let is_config = |path: &PathBuf| {
        path.extension().is_some_and(|end| ["conflist", "conf", "json"].iter().any(|e| end == *e))
    };
    paths.retain(is_config);
    paths.sort();
    Ok(paths)
}

/// A file with a list of plugins, or with one.
///
/// # Errors
/// Names the file and the field.
pub fn load_file(path: &Path) -> Result<Network, ConfigError> {
    let text =
        fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let value: Map<String, Value> = serde_json::from_slice(&text)
        .map_err(|source| ConfigError::Json { path: path.to_owned(), source })?;
    let file = path.display().to_string();
    let is_list =
        value.contains_key("plugins") || path.extension().is_some_and(|e| e == "conflist");
    let list = if is_list { Value::Object(value) } else { as_list(&value) };
    read_list(&file, &list)
}

/// One plugin's configuration as a list of one.
fn as_list(plugin: &Map<String, Value>) -> Value {
    let mut list = Map::new();
    for key in ["cniVersion", "cniVersions", "name", "disableCheck"] {
        if let Some(value) = plugin.get(key) {
            list.insert(key.to_owned(), value.clone());
        }
    }
    list.insert("plugins".to_owned(), json!([plugin]));
    Value::Object(list)
}

fn read_list(file: &str, list: &Value) -> Result<Network, ConfigError> {
    let reader = Reader { file };
    let name = reader.text(list, "", "name")?;
    if !is_network_name(name) {
        let reason =
            format!("{name:?}: letters and digits, after the first also \"_\", \".\" and \"-\"");
        return Err(reader.wrong("name", reason));
    }
    let plugins = match &list["plugins"] {
        Value::Array(plugins) if !plugins.is_empty() => plugins,
        _ => return Err(reader.wrong("plugins", "must be an array with at least one plugin")),
    };
    let plugins = plugins.iter().enumerate().map(|(at, plugin)| reader.plugin(at, plugin));
    Ok(Network {
        name: name.to_owned(),
        versions: reader.versions(list)?,
        // Some write it as text (CNI 1.0.0 and libcni allow both).
        disable_check: list["disableCheck"] == true || list["disableCheck"] == "true",
        plugins: plugins.collect::<Result<_, _>>()?,
    })
}

fn is_network_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

struct Reader<'a> {
    file: &'a str,
}

impl Reader<'_> {
    fn wrong(&self, field: impl Into<String>, reason: impl Into<String>) -> ConfigError {
        let file = self.file.to_owned();
        ConfigError::Field { file, field: field.into(), reason: reason.into() }
    }

    fn text<'v>(&self, of: &'v Value, place: &str, key: &str) -> Result<&'v str, ConfigError> {
        match &of[key] {
            Value::String(text) if !text.is_empty() => Ok(text),
            Value::Null => Err(self.wrong(format!("{place}{key}"), "is missing")),
            _ => Err(self.wrong(format!("{place}{key}"), "must be a text that is not empty")),
        }
    }

    /// The one version, or those to choose from (since 1.1.0).
    fn versions(&self, list: &Value) -> Result<Vec<String>, ConfigError> {
        let mut said: Vec<&str> = Vec::new();
        if let Value::Array(several) = &list["cniVersions"] {
            for version in several {
                let wrong = || self.wrong("cniVersions", "must be an array of texts");
                said.push(version.as_str().ok_or_else(wrong)?);
            }
        }
        if said.is_empty() || !list["cniVersion"].is_null() {
            said.push(self.text(list, "", "cniVersion")?);
        }
        let understood = VERSIONS.iter().rev().filter(|version| said.contains(version));
        let understood: Vec<String> = understood.map(|version| (*version).to_owned()).collect();
        if understood.is_empty() {
            let reason = format!("{} is none of {}", said.join(", "), VERSIONS.join(", "));
            return Err(self.wrong("cniVersion", reason));
        }
        Ok(understood)
    }

    fn plugin(&self, at: usize, plugin: &Value) -> Result<Plugin, ConfigError> {
        let place = format!("plugins[{at}].");
        let Value::Object(config) = plugin else {
            return Err(self.wrong(format!("plugins[{at}]"), "must be an object"));
        };
        let kind = self.program(plugin, &place)?;
        match config.get("capabilities") {
            None => {}
            Some(Value::Object(all)) if all.values().all(Value::is_boolean) => {}
            Some(_) => {
                let reason = "must be an object with values true and false";
                return Err(self.wrong(format!("{place}capabilities"), reason));
            }
        }
        // A plugin without addresses of its own may say {}.
        if config.get("ipam").is_some_and(|ipam| ipam.as_object().is_none_or(|i| !i.is_empty())) {
            self.program(&plugin["ipam"], &format!("{place}ipam."))?;
        }
        Ok(Plugin { kind: kind.to_owned(), config: config.clone(), unchecked: false })
    }

    /// It is looked for in folders: no way out of them.
    fn program<'v>(&self, of: &'v Value, place: &str) -> Result<&'v str, ConfigError> {
        let kind = self.text(of, place, "type")?;
        if kind.contains(['/', '\0']) || kind == "." || kind == ".." {
            let reason = format!("{kind:?} is no name of a program");
            return Err(self.wrong(format!("{place}type"), reason));
        }
        Ok(kind)
    }
}

impl From<ConfigError> for Failure {
    fn from(e: ConfigError) -> Self {
        let unknown = matches!(e, ConfigError::Unknown { .. });
        Self::of(if unknown { Kind::NotFound } else { Kind::State }, &e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(list: &Value) -> String {
        read_list("x.conflist", list).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_the_file_and_the_field() {
        let plugins = json!([{ "type": "bridge" }]);
        assert_eq!(
            says(&json!({ "cniVersion": "1.0.0", "plugins": plugins })),
            "x.conflist: name: is missing"
        );
        assert!(
            says(&json!({ "name": "../x", "plugins": plugins })).starts_with("x.conflist: name: ")
        );
        assert_eq!(
            says(&json!({ "name": "x", "plugins": plugins })),
            "x.conflist: cniVersion: is missing"
        );
        let old = says(&json!({ "cniVersion": "0.2.0", "name": "x", "plugins": plugins }));
        assert!(old.starts_with("x.conflist: cniVersion: 0.2.0 is none of 0.3.0"), "{old}");
        let plugin = |plugin: Value| {
            says(&json!({ "cniVersion": "1.0.0", "name": "x", "plugins": [plugin] }))
        };
        assert!(plugin(json!({})).contains("plugins[0].type: is missing"));
        assert!(plugin(json!({ "type": "../sh" })).contains("plugins[0].type: \"../sh\""));
        assert!(plugin(json!({ "type": "a", "ipam": {"x": 1} })).contains("plugins[0].ipam.type"));
        assert!(plugin(json!({ "type": "a", "ipam": 1 })).contains("plugins[0].ipam.type"));
        assert!(
            plugin(json!({ "type": "a", "capabilities": [] })).contains("plugins[0].capabilities")
        );
        assert!(
            says(&json!({ "cniVersion": "1.0.0", "name": "x", "plugins": [] }))
                .contains("plugins: ")
        );
    }

    #[test]
    fn the_newest_version_that_both_know_comes_first() {
        let list = json!({
            "cniVersion": "0.4.0", "cniVersions": ["2.0.0", "1.1.0", "1.0.0"], "name": "x",
            "plugins": [{ "type": "a" }],
        });
        assert_eq!(read_list("x", &list).unwrap().versions, ["1.1.0", "1.0.0", "0.4.0"]);
    }

    #[test]
    fn a_folder_is_read_in_order_and_names_are_unique() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, value: Value| {
            fs::write(folder.path().join(name), value.to_string()).unwrap();
        };
        write("20-b.conf", json!({ "cniVersion": "1.0.0", "name": "b", "type": "ptp" }));
        write(
            "10-a.conflist",
            json!({ "cniVersion": "1.0.0", "name": "a", "plugins": [{ "type": "x" }] }),
        );
        write("readme.txt", json!({}));
        let networks = load(folder.path()).unwrap();
        let names: Vec<&str> = networks.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(networks[1].plugins[0].kind, "ptp");
        let unknown = find(folder.path(), "c", &BuiltIn::default()).unwrap_err().to_string();
        assert!(unknown.ends_with("use one of: a, b, hafen"), "{unknown}");
        assert_eq!(find(folder.path(), "", &BuiltIn::default()).unwrap().name, BUILT_IN);
        write("30-c.conf", json!({ "cniVersion": "1.0.0", "name": "a", "type": "ptp" }));
        assert!(matches!(load(folder.path()), Err(ConfigError::Twice { .. })));
        assert!(load(&folder.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn the_built_in_network_is_a_private_range() {
        let network = BuiltIn::default().network().unwrap();
        let kinds: Vec<&str> = network.plugins.iter().map(|p| p.kind.as_str()).collect();
        assert_eq!(kinds, ["bridge", "portmap", "firewall"]);
        assert_eq!(network.plugins[0].config["ipam"]["ranges"][0][0]["subnet"], "10.187.0.0/16");
        for subnet in
            [([8, 8, 8, 0], 24), ([10, 0, 0, 1], 16), ([10, 0, 0, 0], 30), ([10, 0, 0, 0], 200)]
        {
            let built_in = BuiltIn { subnet: (subnet.0.into(), subnet.1), ..BuiltIn::default() };
            assert!(built_in.network().is_err(), "{subnet:?}");
        }
    }
}
