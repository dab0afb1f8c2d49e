//! Who is where, before anything is begun.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// The network of several nodes; its first address is this machine's.
const NETWORK: [u8; 3] = [10, 189, 76];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) state: PathBuf,
    pub(super) run: PathBuf,
    /// Where the coordinator is called.
    pub(super) socket: PathBuf,
    pub(super) listen: String,
    /// Words of `hafen`.
    pub(super) coordinator: Vec<String>,
    pub(super) members: Vec<Member>,
    /// Nothing stays.
    pub(super) is_passing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    /// Words of `hafen`; none, if it is in our own process.
    pub(super) words: Vec<String>,
    /// Of its configuration, in that case.
    pub(super) keys: Vec<(&'static str, String)>,
    pub(super) socket: PathBuf,
    /// Its network, if it has one of its own, and its address there.
    pub(super) namespace: Option<PathBuf>,
    pub(super) address: Ipv4Addr,
    /// Our end of its cable.
    pub(super) cable: String,
    /// It has not ended by itself.
    pub(super) is_here: bool,
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).into()
}

impl Layout {
    /// All with one store of images: it has locks of its own.
    pub(super) fn new(nodes: u8, listen: &str, dir: Option<&Path>, images: Option<&Path>) -> Self {
        let is_passing = nodes > 1;
        let (state, run) = match dir {
            Some(dir) => (dir.join("state"), dir.join("run")),
            None if is_passing => ("/var/lib/hafen/up".into(), "/run/hafen/up".into()),
            None => ("/var/lib/hafen".into(), "/run/hafen".into()),
        };
        let socket = run.join("coordinator.sock");
        let url = format!("unix://{}", socket.display());
        let folder = state.join("coordinator").display().to_string();
        let mut coordinator = words(["coordinator", "--listen", &url, "--state", &folder]);
        coordinator.extend(words(["--listen", listen]));
        let members = (1..=nodes).map(|number| match nodes {
            1 => Member::alone(&state, &run, dir.is_some()),
            _ => Member::one_of_several(number, &state, &run, &url),
        });
        let mut members: Vec<Member> = members.collect();
        let shared = state.join("images");
        let images = images.or((nodes > 1).then_some(shared.as_path()));
        if let Some(images) = images.map(|images| images.display().to_string()) {
            members.iter_mut().for_each(|member| member.words.extend(words(["--images", &images])));
        }
        Self { state, run, socket, listen: listen.to_owned(), coordinator, members, is_passing }
    }

    pub(super) fn has_networks(&self) -> bool {
        self.members.iter().any(|member| member.namespace.is_some())
    }

    /// What a person does next.
    pub(super) fn greeting(&self) -> String {
        let mut lines = vec![format!("page  {}", self.listen)];
        for member in &self.members {
            let host = format!("unix://{}", member.socket.display());
            lines.push(match member.namespace {
                Some(_) => format!("{:5} {}  --host {host}", member.name, member.address),
                None => format!("node  --host {host}"),
            });
        }
        lines.push(format!("\n    export HAFEN_COORDINATOR=unix://{}", self.socket.display()));
        lines.push("    hafen nodes\n\nCtrl-C ends it".to_owned());
        lines.join("\n")
    }
}

impl Member {
    pub(super) fn called(&self) -> &str {
        if self.name.is_empty() { "the agent" } else { &self.name }
    }

    /// This machine, as an agent without more words has it.
    fn alone(state: &Path, run: &Path, is_elsewhere: bool) -> Self {
        let mut keys = Vec::new();
        if is_elsewhere {
            keys.push(("state", state.display().to_string()));
            keys.push(("run", run.display().to_string()));
            keys.push(("instance", "up".to_owned()));
        }
        Self {
            name: String::new(),
            words: Vec::new(),
            keys,
            socket: run.join("agent.sock"),
            namespace: None,
            address: Ipv4Addr::LOCALHOST,
            cable: String::new(),
            is_here: true,
        }
    }

    fn one_of_several(number: u8, state: &Path, run: &Path, url: &str) -> Self {
        let name = format!("n{number}");
        let (own_state, own_run) = (state.join(&name), run.join(&name));
        let mut all = words(["agent", "--master-urls", url, "--name", &name]);
        all.extend(words(["--instance", &format!("up-{name}")]));
        all.extend(folders(&own_state, &own_run));
        let [a, b, c] = NETWORK;
        Self {
            socket: own_run.join("agent.sock"),
            namespace: Some(run.join(format!("{name}.net"))),
            address: Ipv4Addr::new(a, b, c, number + 1),
            cable: format!("hafen-up{number}"),
            is_here: true,
            name,
            words: all,
            keys: Vec::new(),
        }
    }
}

fn folders(state: &Path, run: &Path) -> Vec<String> {
    let (state, run) = (state.display().to_string(), run.display().to_string());
    words(["--state", &state, "--run", &run])
}

/// Of this machine, among several nodes.
pub(super) fn own_address() -> Ipv4Addr {
    let [a, b, c] = NETWORK;
    Ipv4Addr::new(a, b, c, 1)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Layout;

    #[test]
    fn one_node_is_this_machine() {
        let layout = Layout::new(1, "http://127.0.0.1:1", None, None);
        assert_eq!(layout.socket, Path::new("/run/hafen/coordinator.sock"));
        let [node] = &layout.members[..] else { panic!("{layout:?}") };
        assert_eq!(node.keys, []);
        let layout = Layout::new(1, "http://127.0.0.1:1", Some(Path::new("/d")), None);
        let wanted = [("state", "/d/state"), ("run", "/d/run"), ("instance", "up")];
        assert_eq!(layout.members[0].keys, wanted.map(|(key, value)| (key, value.to_owned())));
        assert!(!layout.is_passing && !layout.has_networks());
    }

    #[test]
    fn several_nodes_share_nothing_but_images() {
        let layout = Layout::new(3, "http://127.0.0.1:1", Some(Path::new("/d")), None);
        let wanted = "coordinator --listen unix:///d/run/coordinator.sock --state /d/state/coordinator \
                      --listen http://127.0.0.1:1";
        assert_eq!(layout.coordinator.join(" "), wanted);
        let node = &layout.members[2];
        let wanted = "agent --master-urls unix:///d/run/coordinator.sock --name n3 --instance up-n3 \
                      --state /d/state/n3 --run /d/run/n3 --images /d/state/images";
        assert_eq!(node.words.join(" "), wanted);
        assert_eq!(node.address.to_string(), "10.189.76.4");
        assert!(layout.is_passing && layout.has_networks());
        assert!(
            layout.greeting().contains("n2    10.189.76.3  --host unix:///d/run/n2/agent.sock")
        );
    }
}
