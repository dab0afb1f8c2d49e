//! CNI plugins: programs that attach a namespace to a network (CNI 1.1.0, sections 2, 4 and 5).
//!
//! | call | record on disk | after a crash |
//! |---|---|---|
//! | [`Cni::add`] | written before the first plugin, and after each | [`Cni::delete`] undoes what there is |
//! | [`Cni::delete`] | removed once all plugins have succeeded | called again |

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use hafen_sys::file::{replace, sync_folder};
use hafen_sys::{CallError, Context};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::conflist::{Network, Plugin};
use super::netns::is_pinned;
use crate::failure::{Failure, Kind};

/// Where plugins are looked for.
pub const DEFAULT_PATHS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
/// Of one plugin's answer: an address and a few routes are a thousandth of it.
const LONGEST_ANSWER: u64 = 1 << 20;
/// Of what a plugin writes for people, in an error of ours.
const LONGEST_MESSAGE: usize = 2048;

/// How plugins are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cni {
    pub paths: Vec<PathBuf>,
    /// Of one plugin.
    pub deadline: Duration,
}

impl Default for Cni {
    fn default() -> Self {
        Self { paths: DEFAULT_PATHS.map(PathBuf::from).to_vec(), deadline: Duration::from_secs(60) }
    }
}

/// What is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// A name that is unique on this node.
    pub container: String,
    /// File of the network namespace.
    pub namespace: PathBuf,
    /// Inside, such as `eth0`.
    pub interface: String,
    /// For `CNI_ARGS`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, String>,
    /// Values for plugins with that capability, such as `portMappings`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub capabilities: Map<String, Value>,
}

/// What plugins say that they made.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Of the container.
    pub addresses: Vec<IpAddr>,
    /// Name servers.
    pub dns: Vec<String>,
    pub dns_search: Vec<String>,
}

/// Why a network is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// No such program.
    #[error(
        "the CNI plugin {plugin:?} is not in {folders}: apt-get install containernetworking-plugins"
    )]
    Missing { plugin: String, folders: String },
    /// The plugin says so.
    #[error("{command} of the CNI plugin {plugin:?} for {container}: {message} (code {code})")]
    Refused { command: &'static str, plugin: String, container: String, code: u64, message: String },
    /// It ended without saying why.
    #[error("{command} of the CNI plugin {plugin:?} for {container} ended with {status}: {output}")]
    Failed {
        command: &'static str,
        plugin: String,
        container: String,
        status: ExitStatus,
        output: String,
    },
    /// It was killed.
    #[error("{command} of the CNI plugin {plugin:?} for {container} took longer than {} s", deadline.as_secs())]
    Late { command: &'static str, plugin: String, container: String, deadline: Duration },
    /// What it says is no result.
    #[error(
        "{command} of the CNI plugin {plugin:?} for {container} answered no result of CNI: {reason}"
    )]
    Answer { command: &'static str, plugin: String, container: String, reason: String },
    /// It could not be executed.
    #[error("execute the CNI plugin {}", program.display())]
    Execute { program: PathBuf, source: io::Error },
    /// No version for all of them.
    #[error(
        "the network {network:?} allows CNI {versions}, and its plugin {plugin:?} knows none of these: \
         name another one in its cniVersion"
    )]
    Version { network: String, versions: String, plugin: String },
    /// The attachment is not what can be passed on.
    #[error("{field}: {reason}")]
    Invalid { field: &'static str, reason: String },
    /// The record.
    #[error(transparent)]
    Record(#[from] CallError),
    /// The record is no such thing.
    #[error("{} is no record of a CNI attachment: see what of it is left, and remove the file", path.display())]
    Unreadable { path: PathBuf, source: serde_json::Error },
}

/// All that DEL and CHECK need, whatever has become of the configuration and of us.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    attachment: Attachment,
    network: Network,
    version: String,
    /// Of the last plugin that has given one: others need it to undo what they did.
    result: Option<Value>,
    /// All plugins have.
    complete: bool,
}

impl Cni {
    /// Attach a namespace; what plugins have made is removed again if one of them fails. `record` is a file of the
    /// caller's that must not exist yet: an attachment without an end is deleted first.
    ///
    /// # Errors
    /// Of the first plugin that failed.
    pub async fn add(
        &self,
        network: &Network,
        attachment: &Attachment,
        record: &Path,
    ) -> Result<Attached, CniError> {
        attachment.validate()?;
        // Before anything has to be undone.
        network.plugins.iter().try_for_each(|plugin| self.find(&plugin.kind).map(drop))?;
        let version = self.negotiate(network).await?;
        if record.exists() {
            let reason = format!("{} exists: delete that attachment first", record.display());
            return Err(CniError::Invalid { field: "record", reason });
        }
        let (attachment, network) = (attachment.clone(), network.clone());
        let mut known = Record { attachment, network, version, result: None, complete: false };
        known.save(record)?;
        match self.add_all(&mut known, record).await {
            Ok(()) => Ok(known.attached()),
            Err(e) => {
                // The first failure is the one to tell; what is left stays in the record.
                let _ = self.delete(record).await;
                Err(e)
            }
        }
    }

    async fn add_all(&self, known: &mut Record, record: &Path) -> Result<(), CniError> {
        for at in 0..known.network.plugins.len() {
            let plugin = &known.network.plugins[at];
            let output = self.call("ADD", plugin, known).await?;
            let wrong = |reason: String| CniError::Answer {
                command: "ADD",
                plugin: plugin.kind.clone(),
                container: known.attachment.container.clone(),
                reason,
            };
            let result: Map<String, Value> =
                serde_json::from_slice(&output).map_err(|e| wrong(e.to_string()))?;
            let result = Value::Object(result);
            addresses(&result).map_err(wrong)?;
            known.result = Some(result);
            known.complete = at + 1 == known.network.plugins.len();
            known.save(record)?;
        }
        Ok(())
    }

    /// Whether all is as ADD left it. Versions before 0.4.0 have no CHECK.
    ///
    /// # Errors
    /// Of the first plugin that misses something; an attachment that is not complete.
    pub async fn check(&self, record: &Path) -> Result<(), CniError> {
        let missing = |reason: String| CniError::Invalid { field: "record", reason };
        let known = Record::load(record)?.ok_or_else(|| {
            missing(format!("there is no {}: nothing is attached", record.display()))
        })?;
        if !known.complete {
            return Err(missing(format!("{}: ADD did not come to its end", record.display())));
        }
        if known.network.disable_check || known.version.starts_with("0.3.") {
            return Ok(());
        }
        for plugin in known.network.plugins.iter().filter(|plugin| !plugin.unchecked) {
            self.call("CHECK", plugin, &known).await?;
        }
        Ok(())
    }

    /// Detach again, last plugin first; one that fails does not keep the others. What is gone is deleted already. To be
    /// called while the namespace is there: plugins look into it for what they have to undo on the node.
    ///
    /// # Errors
    /// The first failure; the record stays then.
    pub async fn delete(&self, record: &Path) -> Result<(), CniError> {
        let Some(known) = Record::load(record)? else { return Ok(()) };
        let mut first = Ok(());
        for plugin in known.network.plugins.iter().rev() {
            let deleted = self.call("DEL", plugin, &known).await;
            first = first.and(deleted.map(drop));
        }
        first?;
        Record::remove(record)?;
        Ok(())
    }

    /// The addresses and name servers of an attachment that was made earlier.
    ///
    /// # Errors
    /// The record cannot be read. `None`: nothing is attached, or not completely.
    pub fn attached(record: &Path) -> Result<Option<Attached>, CniError> {
        let known = Record::load(record)?.filter(|known| known.complete);
        Ok(known.map(|known| known.attached()))
    }

    /// Plugins are asked only where there is a choice: each says by itself that it does not know a version.
    async fn negotiate(&self, network: &Network) -> Result<String, CniError> {
        let mut common = network.versions.clone();
        if common.len() > 1 {
            for plugin in &network.plugins {
                let known = self.versions(plugin).await?;
                common.retain(|version| known.contains(version));
                if common.is_empty() {
                    let versions = network.versions.join(", ");
                    let (network, plugin) = (network.name.clone(), plugin.kind.clone());
                    return Err(CniError::Version { network, versions, plugin });
                }
            }
        }
        common.into_iter().next().ok_or_else(|| CniError::Invalid {
            field: "network.versions",
            reason: "is empty".to_owned(),
        })
    }

    async fn versions(&self, plugin: &Plugin) -> Result<Vec<String>, CniError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Known {
            supported_versions: Vec<String>,
        }
        let call = Call { command: "VERSION", plugin: &plugin.kind, container: "its version" };
        let config = serde_json::json!({ "cniVersion": super::conflist::VERSIONS[0] });
        let output = self.execute(&call, &[], &config).await?;
        let known: Known =
            serde_json::from_slice(&output).map_err(|e| call.wrong_answer(&e.to_string()))?;
        Ok(known.supported_versions)
    }

    async fn call(
        &self,
        command: &'static str,
        plugin: &Plugin,
        known: &Record,
    ) -> Result<Vec<u8>, CniError> {
        let call = Call { command, plugin: &plugin.kind, container: &known.attachment.container };
        let environment = known.attachment.environment(command == "DEL");
        self.execute(&call, &environment, &known.config(plugin)).await
    }

    async fn execute(
        &self,
        call: &Call<'_>,
        environment: &[(&str, String)],
        config: &Value,
    ) -> Result<Vec<u8>, CniError> {
        let program = self.find(call.plugin)?;
        let execute = |source| CniError::Execute { program: program.clone(), source };
        let paths = std::env::join_paths(&self.paths).map_err(io::Error::other).map_err(execute)?;
        let mut child = Command::new(&program)
            .env_clear()
            // They execute iptables.
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", call.command)
            .env("CNI_PATH", paths)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(execute)?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let config = config.to_string();
        let talk = async {
            let tell = async {
                if let Some(mut stdin) = stdin {
                    // A plugin that fails early does not read: what it says tells more than EPIPE.
                    let _ = stdin.write_all(config.as_bytes()).await;
                }
            };
            let ((), output, errors) = tokio::join!(tell, bounded(stdout), bounded(stderr));
            Ok((child.wait().await?, output?, errors?))
        };
        // At the deadline the child is dropped, which kills it.
        let (status, output, errors) = match tokio::time::timeout(self.deadline, talk).await {
            Ok(done) => done.map_err(execute)?,
            Err(_) => return Err(call.late(self.deadline)),
        };
        if status.success() { Ok(output) } else { Err(call.failed(status, &output, &errors)) }
    }

    fn find(&self, plugin: &str) -> Result<PathBuf, CniError> {
        let is_program = |path: &PathBuf| {
            fs::metadata(path)
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        };
        self.paths.iter().map(|folder| folder.join(plugin)).find(is_program).ok_or_else(|| {
            let folders: Vec<String> = self.paths.iter().map(|p| p.display().to_string()).collect();
            CniError::Missing { plugin: plugin.to_owned(), folders: folders.join(" or ") }
        })
    }
}

/// What is written on a pipe. More than the bound is read and forgotten: the writer is not to wait for ever.
async fn bounded(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let Some(mut pipe) = pipe else { return Ok(text) };
    (&mut pipe).take(LONGEST_ANSWER).read_to_end(&mut text).await?;
    tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    Ok(text)
}

/// For errors.
struct Call<'a> {
    command: &'static str,
    plugin: &'a str,
    container: &'a str,
}

impl Call<'_> {
    fn late(&self, deadline: Duration) -> CniError {
        let (plugin, container) = (self.plugin.to_owned(), self.container.to_owned());
        CniError::Late { command: self.command, plugin, container, deadline }
    }

    fn wrong_answer(&self, reason: &str) -> CniError {
        let (plugin, container) = (self.plugin.to_owned(), self.container.to_owned());
        CniError::Answer { command: self.command, plugin, container, reason: reason.to_owned() }
    }

    /// Plugins say why on stdout, as JSON; some that break say it on stderr.
    fn failed(&self, status: ExitStatus, output: &[u8], errors: &[u8]) -> CniError {
        #[derive(Deserialize)]
        struct Said {
            code: u64,
            #[serde(default)]
            msg: String,
            #[serde(default)]
            details: String,
        }
        let command = self.command;
        let (plugin, container) = (self.plugin.to_owned(), self.container.to_owned());
        match serde_json::from_slice(output) {
            Ok(Said { code, msg, details }) => {
                let both = if details.is_empty() { msg } else { format!("{msg}: {details}") };
                CniError::Refused {
                    command,
                    plugin,
                    container,
                    code,
                    message: short(both.as_bytes()),
                }
            }
            Err(_) => {
                let output = short(if errors.is_empty() { output } else { errors });
                CniError::Failed { command, plugin, container, status, output }
            }
        }
    }
}

/// On one line, fit for a log.
fn short(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(LONGEST_MESSAGE)]).into_owned();
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl Attachment {
    fn validate(&self) -> Result<(), CniError> {
        let invalid = |field, reason| Err(CniError::Invalid { field, reason });
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let id = &self.container;
        if !id.starts_with(|c: char| c.is_ascii_alphanumeric()) || !id.chars().all(plain) {
            return invalid("container", format!("{id:?} is no name of a container for CNI"));
        }
        let name = &self.interface;
        let wrong = |c: char| c == '/' || c == ':' || c.is_whitespace();
        if name.is_empty()
            || name.len() > 15
            || name.contains(wrong)
            || [".", ".."].contains(&&**name)
        {
            return invalid("interface", format!("{name:?} is no name of an interface"));
        }
        for (key, value) in &self.args {
            if key.contains(['=', ';']) || value.contains(';') {
                return invalid("args", format!("{key:?}: \"=\" and \";\" separate arguments"));
            }
        }
        Ok(())
    }

    fn environment(&self, deleting: bool) -> Vec<(&'static str, String)> {
        let args: Vec<String> = self.args.iter().map(|(k, v)| format!("{k}={v}")).collect();
        // Of a namespace that is gone, everything inside is gone.
        let there = !deleting || is_pinned(&self.namespace);
        let namespace = if there { self.namespace.display().to_string() } else { String::new() };
        vec![
            ("CNI_CONTAINERID", self.container.clone()),
            ("CNI_NETNS", namespace),
            ("CNI_IFNAME", self.interface.clone()),
            ("CNI_ARGS", args.join(";")),
        ]
    }
}

impl Record {
    fn load(path: &Path) -> Result<Option<Self>, CniError> {
        let text = match fs::read(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.call(|| format!("read {}", path.display()))?,
        };
        let unreadable = |source| CniError::Unreadable { path: path.to_owned(), source };
        serde_json::from_slice(&text).map(Some).map_err(unreadable)
    }

    fn save(&self, path: &Path) -> Result<(), CallError> {
        let text = serde_json::to_vec(self)
            .map_err(io::Error::from)
            .call(|| format!("write {}", path.display()))?;
        replace(path, &text, true)
    }

    fn remove(path: &Path) -> Result<(), CallError> {
        match fs::remove_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            answer => answer.call(|| format!("unlink {}", path.display()))?,
        }
        path.parent().map_or(Ok(()), sync_folder)
    }

    /// What a plugin gets on stdin (CNI 1.1.0, section 5, "Deriving request configuration").
    fn config(&self, plugin: &Plugin) -> Value {
        let mut config = plugin.config.clone();
        config.insert("cniVersion".to_owned(), self.version.clone().into());
        config.insert("name".to_owned(), self.network.name.clone().into());
        let able = config.remove("capabilities");
        let wanted = |name: &str| able.as_ref().is_some_and(|all| all[name] == true);
        let given = self.attachment.capabilities.iter().filter(|(name, _)| wanted(name));
        let given: Map<String, Value> = given.map(|(k, v)| (k.clone(), v.clone())).collect();
        if !given.is_empty() {
            config.insert("runtimeConfig".to_owned(), given.into());
        }
        if let Some(result) = &self.result {
            config.insert("prevResult".to_owned(), result.clone());
        }
        config.into()
    }

    fn attached(&self) -> Attached {
        let result = self.result.as_ref().unwrap_or(&Value::Null);
        let texts = |key: &str| {
            let all = result["dns"][key].as_array().into_iter().flatten();
            all.filter_map(|text| text.as_str().map(str::to_owned)).collect()
        };
        Attached {
            // They could be read when the result came.
            addresses: addresses(result).unwrap_or_default(),
            dns: texts("nameservers"),
            dns_search: texts("search"),
        }
    }
}

/// Addresses of interfaces inside: those of the node's side have no sandbox.
fn addresses(result: &Value) -> Result<Vec<IpAddr>, String> {
    let inside = |ip: &Value| match ip["interface"].as_u64() {
        None => true,
        Some(at) => {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            result["interfaces"][at]["sandbox"].as_str().is_some_and(|path| !path.is_empty())
        }
    };
    let read = |ip: &Value| {
        let text = ip["address"].as_str().unwrap_or_default();
        let address = text.split('/').next().unwrap_or_default();
        address.parse().map_err(|_| format!("ips: {text:?} is no address"))
    };
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.filter(|ip| inside(ip)).map(read).collect()
}

impl From<CniError> for Failure {
    fn from(e: CniError) -> Self {
        /// "Try again later" (CNI 1.1.0, "Error").
        const LATER: u64 = 11;
        let kind = match &e {
            CniError::Missing { .. } | CniError::Version { .. } => Kind::Unsupported,
            CniError::Refused { code: LATER, .. } => Kind::Unavailable,
            CniError::Late { .. } => Kind::Deadline,
            CniError::Unreadable { .. } => Kind::State,
            _ => Kind::Internal,
        };
        Self::of(kind, &e)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Plugins as shell scripts that write down how they were called.
    struct Place {
        folder: tempfile::TempDir,
        cni: Cni,
    }

    impl Place {
        fn new(plugins: &[(&str, &str)]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            for (name, script) in plugins {
                let path = folder.path().join(name);
                let log = folder.path().join("log").display().to_string();
                let text = format!(
                    "#!/bin/sh\nconfig=$(cat)\necho \"$CNI_COMMAND {name} $config\" >> {log}\n{script}\n"
                );
                fs::write(&path, text).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            }
            let paths = vec![folder.path().to_owned()];
            Self { folder, cni: Cni { paths, deadline: Duration::from_secs(10) } }
        }

        fn record(&self) -> PathBuf {
            self.folder.path().join("record.json")
        }

        fn log(&self) -> Vec<(String, Value)> {
            let text = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let line = |line: &str| {
                let mut parts = line.splitn(3, ' ');
                let call = format!("{} {}", parts.next().unwrap(), parts.next().unwrap());
                (call, serde_json::from_str(parts.next().unwrap()).unwrap())
            };
            text.lines().map(line).collect()
        }

        fn calls(&self) -> Vec<String> {
            self.log().into_iter().map(|(call, _)| call).collect()
        }

        async fn add(&self, versions: &[&str]) -> Result<Attached, CniError> {
            let plugin = |kind: &str| Plugin {
                kind: kind.to_owned(),
                config:
                    json!({ "type": kind, "capabilities": { "portMappings": kind == "second" } })
                        .as_object()
                        .unwrap()
                        .clone(),
                unchecked: false,
            };
            let network = Network {
                name: "net".to_owned(),
                versions: versions.iter().map(|v| (*v).to_owned()).collect(),
                disable_check: false,
                plugins: vec![plugin("first"), plugin("second")],
            };
            let attachment = Attachment {
                container: "task-1".to_owned(),
                namespace: "/nowhere".into(),
                interface: "eth0".to_owned(),
                args: BTreeMap::new(),
                capabilities: json!({ "portMappings": [1], "other": 2 })
                    .as_object()
                    .unwrap()
                    .clone(),
            };
            self.cni.add(&network, &attachment, &self.record()).await
        }
    }

    const FIRST: &str = r#"[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.0.0",
        "interfaces":[{"name":"br"},{"name":"eth0","sandbox":"/nowhere"}],
        "ips":[{"address":"10.0.0.1/16","interface":0},{"address":"10.0.0.2/16","interface":1}],
        "dns":{"nameservers":["10.0.0.1"]}}'; exit 0"#;
    const SECOND: &str = r#"[ $CNI_COMMAND = ADD ] && echo '{"ips":[{"address":"10.0.0.2/16"}],
        "dns":{"nameservers":["10.0.0.1"]}}'; exit 0"#;

    #[tokio::test]
    async fn results_are_passed_on_and_undone_in_reverse() {
        let place = Place::new(&[("first", FIRST), ("second", SECOND)]);
        let attached = place.add(&["1.0.0"]).await.unwrap();
        assert_eq!(attached.addresses, ["10.0.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(attached.dns, ["10.0.0.1"]);
        assert_eq!(Cni::attached(&place.record()).unwrap(), Some(attached));
        let (_, config) = place.log().pop().unwrap();
        assert_eq!(config["runtimeConfig"], json!({ "portMappings": [1] }));
        assert_eq!(config["name"], "net");
        assert_eq!(config["prevResult"]["ips"][1]["address"], "10.0.0.2/16");
        assert!(config.get("capabilities").is_none());
        assert!(place.add(&["1.0.0"]).await.unwrap_err().to_string().starts_with("record: "));
        place.cni.check(&place.record()).await.unwrap();
        place.cni.delete(&place.record()).await.unwrap();
        place.cni.delete(&place.record()).await.unwrap();
        let calls =
            ["ADD first", "ADD second", "CHECK first", "CHECK second", "DEL second", "DEL first"];
        assert_eq!(place.calls(), calls);
        assert!(place.log()[4].1.get("prevResult").is_some());
        assert!(!place.record().exists());
    }

    #[tokio::test]
    async fn what_a_plugin_says_is_told_and_undone() {
        let refuses = r#"[ $CNI_COMMAND = ADD ] || exit 0
            echo '{"code":11,"msg":"no address","details":"all in use"}'; exit 1"#;
        let place = Place::new(&[("first", FIRST), ("second", refuses)]);
        let error = place.add(&["1.0.0"]).await.unwrap_err().to_string();
        let says = "ADD of the CNI plugin \"second\" for task-1: no address: all in use (code 11)";
        assert_eq!(error, says);
        assert_eq!(place.calls(), ["ADD first", "ADD second", "DEL second", "DEL first"]);
        assert!(!place.record().exists());
    }

    #[tokio::test]
    async fn del_goes_on_after_a_failure_and_can_be_repeated() {
        let fails = "[ $CNI_COMMAND = ADD ] && echo '{}'; [ $CNI_COMMAND != DEL ] || \
            [ -e $0.well ] || { echo broken >&2; exit 3; }";
        let place = Place::new(&[("first", FIRST), ("second", fails)]);
        place.add(&["1.0.0"]).await.unwrap();
        let error = place.cni.delete(&place.record()).await.unwrap_err().to_string();
        assert!(error.ends_with("ended with exit status: 3: broken"), "{error}");
        assert_eq!(place.calls()[2..], ["DEL second", "DEL first"]);
        assert!(place.record().exists());
        fs::write(place.folder.path().join("second.well"), "").unwrap();
        place.cni.delete(&place.record()).await.unwrap();
        assert!(!place.record().exists());
    }

    #[tokio::test]
    async fn a_missing_plugin_says_where_it_comes_from() {
        let place = Place::new(&[("first", FIRST)]);
        let error = place.add(&["1.0.0"]).await.unwrap_err().to_string();
        assert!(error.ends_with("apt-get install containernetworking-plugins"), "{error}");
        assert!(place.calls().is_empty());
        assert!(!place.record().exists());
    }

    #[tokio::test]
    async fn a_plugin_that_hangs_is_killed() {
        let mut place = Place::new(&[("first", "exec sleep 30"), ("second", SECOND)]);
        place.cni.deadline = Duration::from_millis(200);
        let error = place.add(&["1.0.0"]).await.unwrap_err();
        assert!(matches!(error, CniError::Late { command: "ADD", .. }), "{error}");
        // DEL hangs as well: the record says what is left.
        assert!(place.record().exists());
        assert!(place.cni.check(&place.record()).await.is_err());
    }

    #[tokio::test]
    async fn the_version_is_one_that_all_plugins_know() {
        let knows = |versions: &str| {
            format!(
                r#"[ $CNI_COMMAND = VERSION ] && echo '{{"cniVersion":"1.0.0","supportedVersions":[{versions}]}}' || echo '{{}}'"#
            )
        };
        let (first, second) = (knows(r#""0.4.0","1.0.0","1.1.0""#), knows(r#""0.4.0","1.0.0""#));
        let place = Place::new(&[("first", &first), ("second", &second)]);
        place.add(&["1.1.0", "1.0.0", "0.4.0"]).await.unwrap();
        assert_eq!(place.log().pop().unwrap().1["cniVersion"], "1.0.0");
        let place = Place::new(&[("first", &first), ("second", &knows(r#""0.2.0""#))]);
        let error = place.add(&["1.1.0", "1.0.0"]).await.unwrap_err();
        assert!(matches!(error, CniError::Version { .. }), "{error}");
    }

    #[tokio::test]
    async fn names_are_what_cni_allows() {
        let place = Place::new(&[]);
        let network = Network {
            name: "net".to_owned(),
            versions: vec!["1.0.0".to_owned()],
            disable_check: false,
            plugins: Vec::new(),
        };
        for (container, interface) in [("-x", "eth0"), ("a/b", "eth0"), ("a", ""), ("a", "a/b")] {
            let attachment = Attachment {
                container: container.to_owned(),
                namespace: "/x".into(),
                interface: interface.to_owned(),
                args: BTreeMap::new(),
                capabilities: Map::new(),
            };
            let added = place.cni.add(&network, &attachment, &place.record()).await;
            assert!(matches!(added, Err(CniError::Invalid { .. })), "{container} {interface}");
        }
    }
}
