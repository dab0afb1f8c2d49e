//! Who of several nodes is where, before anything is begun.

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
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    /// Words of `hafen`.
    pub(super) words: Vec<String>,
    pub(super) socket: PathBuf,
    /// Its network, and its address there.
    pub(super) namespace: PathBuf,
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
        let (state, run) = match dir {
            Some(dir) => (dir.join("state"), dir.join("run")),
            None => ("/var/lib/hafen/up".into(), "/run/hafen/up".into()),
        };
        let socket = run.join("coordinator.sock");
        let url = format!("unix://{}", socket.display());
        let folder = state.join("coordinator").display().to_string();
        let mut coordinator = words(["coordinator", "--listen", &url, "--state", &folder]);
        coordinator.extend(words(["--listen", listen]));
        let images = images.map_or_else(|| state.join("images"), Path::to_owned);
        let images = images.display().to_string();
        let members = (1..=nodes).map(|number| {
            let mut member = Member::new(number, &state, &run, &url);
            member.words.extend(words(["--images", &images]));
            member
        });
        let members = members.collect();
        Self { state, run, socket, listen: listen.to_owned(), coordinator, members }
    }

    pub(super) fn greeting(&self, page: &str) -> String {
        let nodes = self.members.iter().map(|Member { name, address, socket, .. }| {
            format!("{name:5} {address}  --host unix://{}", socket.display())
        });
        greeting(page, nodes, &self.socket)
    }
}

/// What a person does next.
pub(super) fn greeting(
    page: &str,
    nodes: impl IntoIterator<Item = String>,
    socket: &Path,
) -> String {
    let mut lines = vec![format!("page  {page}")];
    lines.extend(nodes);
    lines.push(format!("\n    export HAFEN_COORDINATOR=unix://{}", socket.display()));
    lines.push("    hafen nodes\n\nCtrl-C ends it".to_owned());
    lines.join("\n")
}

impl Member {
    fn new(number: u8, state: &Path, run: &Path, url: &str) -> Self {
        let name = format!("n{number}");
        let (own_state, own_run) = (state.join(&name), run.join(&name));
        let mut all = words(["agent", "--master-urls", url, "--name", &name]);
        all.extend(words(["--instance", &format!("up-{name}")]));
        all.extend(folders(&own_state, &own_run));
        let [a, b, c] = NETWORK;
        Self {
            socket: own_run.join("agent.sock"),
            namespace: run.join(format!("{name}.net")),
            address: Ipv4Addr::new(a, b, c, number + 1),
            cable: format!("hafen-up{number}"),
            is_here: true,
            name,
            words: all,
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
        let greeting = layout.greeting("http://127.0.0.1:2");
        assert!(greeting.starts_with("page  http://127.0.0.1:2\n"), "{greeting}");
        assert!(greeting.contains("n2    10.189.76.3  --host unix:///d/run/n2/agent.sock"));
    }
}
