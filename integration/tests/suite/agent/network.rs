//! Networks of CNI plugins. The agent is in network and mount namespaces of the test's own, so that the machine's network
//! and its `/run` stay as they are.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use hafen_integration::{Agent, Case, Test, Value, cases, json, wait_until};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Node, ends_with, exit_code, sentence};

pub(super) fn trials() -> Vec<Case> {
    cases![
        a_bridge_with_names_and_ports(
            Root,
            Busybox,
            Cni,
            Program("unshare"),
            Program("nsenter"),
            Program("iptables"),
            Program("ip")
        ),
        a_network_goes_with_its_task(
            Root,
            Busybox,
            Cni,
            Program("unshare"),
            Program("nsenter"),
            Program("iptables"),
            Program("ip")
        ),
        ports_that_are_taken(
            Root,
            Busybox,
            Cni,
            Program("unshare"),
            Program("nsenter"),
            Program("iptables"),
            Program("ip")
        ),
        networks_that_are_not_there(Root, Busybox),
    ]
}

const APART: &str = "mount -n -t tmpfs tmpfs /run && ip link set lo up && exec \"$@\"";

fn apart(t: &Test) -> Node<'_> {
    let words = ["unshare", "--net", "--mount", "sh", "-c", APART, "sh"];
    let mut agent = Agent::new(t, "agent").within(words);
    agent.restart();
    Node { agent, rootfs: t.bundle().rootfs() }
}

/// What a server says to whoever is in the network of the agent.
fn get(node: &Node<'_>, address: &str) -> Result<String, String> {
    let namespace = File::open(format!("/proc/{}/ns/net", node.pid())).expect("the agent runs");
    let address: SocketAddr = address.parse().expect("an address");
    let asking = std::thread::spawn(move || {
        let kind = Some(LinkNameSpaceType::Network);
        // Of this thread only, which ends.
        move_into_link_name_space(namespace.as_fd(), kind).map_err(|e| format!("setns: {e}"))?;
        ask(address).map_err(|e| format!("{address}: {e}"))
    });
    asking.join().expect("a thread that does not panic")
}

fn ask(address: SocketAddr) -> std::io::Result<String> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /f HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// A program of the machine's in the network of the agent.
fn beside(t: &Test, node: &Node<'_>, words: &[&str]) -> String {
    let pid = node.pid().to_string();
    t.program("nsenter", [&["-t", &pid, "-n", "-m"], words].concat()).output().ok().stdout
}

fn server(node: &Node<'_>, id: &str, ports: &Value) -> Value {
    let script = format!(
        "mkdir -p /tmp/w; echo from {id} > /tmp/w/f; httpd -p 8080 -h /tmp/w; {}",
        ends_with(0)
    );
    let mut spec = node.sh(id, &script);
    spec["network"] = json!({ "mode": "MODE_CNI", "ports": ports, "hosts": { "friend.test": "192.0.2.9" },
                              "dns": ["192.0.2.53"], "dnsSearch": ["example.test"] });
    spec["kill"] = json!({ "grace": "0.5s" });
    spec
}

fn address(task: &Value) -> String {
    task["addresses"][0].as_str().unwrap_or_else(|| panic!("no address: {task:#}")).to_owned()
}

/// The address of the bridge is that of the node there.
fn gateway(address: &str) -> String {
    let (network, _) = address.rsplit_once('.').expect("an IPv4 address");
    format!("{network}.1")
}

fn a_bridge_with_names_and_ports(t: &Test) {
    let node = apart(t);
    node.run(&server(&node, "web", &json!([{ "host": 18080, "container": 8080 }])));
    let task = node.wait_state("web", "STATE_RUNNING");
    let web = address(&task);
    assert_eq!(
        (task["ports"][0]["host"].as_u64(), task["ports"][0]["container"].as_u64()),
        (Some(18080), Some(8080)),
        "{task:#}"
    );
    reaches(&node, &format!("{web}:8080"), "from web\n");
    reaches(&node, &format!("{}:18080", gateway(&web)), "from web\n");
    let seen = node
        .hafen(["exec", "web", "/bin/sh", "-c", "cat /etc/hosts /etc/resolv.conf; hostname"])
        .ok()
        .stdout;
    for word in [
        "192.0.2.9",
        "friend.test",
        "nameserver 192.0.2.53",
        "search example.test",
        &web,
        "\nweb\n",
    ] {
        assert!(seen.contains(word), "{word}: {seen}");
    }
    // Another one reaches it by its address.
    let mut client = node.sh("client", &format!("wget -q -O - http://{web}:8080/f"));
    client["network"] = json!({ "mode": "MODE_CNI" });
    node.run(&client);
    let ended = node.wait("client");
    assert_eq!(
        (exit_code(&ended), node.logs("client").as_str()),
        (Some(0), "from web\n"),
        "{ended:#}"
    );
}

#[track_caller]
fn reaches(node: &Node<'_>, address: &str, wanted: &str) {
    let mut last = Err(String::new());
    let found = wait_until(Duration::from_secs(10), || {
        last = get(node, address);
        last.as_ref().is_ok_and(|text| text.ends_with(wanted)).then_some(())
    });
    assert!(found.is_some(), "{address}: {last:?}\n{}", node.said());
}

fn a_network_goes_with_its_task(t: &Test) {
    let node = apart(t);
    node.run(&server(&node, "web", &json!([{ "container": 8080 }])));
    let task = node.wait_state("web", "STATE_RUNNING");
    let port = task["ports"][0]["host"].as_u64().expect("one that is free was chosen");
    let first = address(&task);
    reaches(&node, &format!("{}:{port}", gateway(&first)), "from web\n");
    let links = || beside(t, &node, &["ip", "link"]).matches("veth").count();
    let rules = || beside(t, &node, &["iptables", "-w", "-t", "nat", "-S"]);
    assert!(links() > 0);
    assert!(rules().contains(&port.to_string()), "{}", rules());
    node.hafen(["rm", "--force", "web"]).ok();
    assert_eq!(links(), 0);
    assert!(!rules().contains(&port.to_string()), "{}", rules());
    assert!(!node.run_folder().join("sandboxes/web").exists());
    let leases = node.run_folder().join("cni");
    let left = t.program("grep", ["-rl", "web", leases.to_str().expect("text")]).output();
    assert_eq!(left.stdout, "", "its address is free again");
}

fn ports_that_are_taken(t: &Test) {
    let node = apart(t);
    node.run(&server(&node, "one", &json!([{ "host": 18080, "container": 8080 }])));
    node.wait_state("one", "STATE_RUNNING");
    node.run(&server(&node, "two", &json!([{ "host": 18080, "container": 8080 }])));
    let two = node.wait("two");
    assert_eq!(two["state"], "STATE_ERROR", "{two:#}");
    assert!(sentence(&two).contains("18080"), "{two:#}");
    node.hafen(["stop", "one"]).ok();
    node.run(&server(&node, "three", &json!([{ "host": 18080, "container": 8080 }])));
    node.wait_state("three", "STATE_RUNNING");
}

fn networks_that_are_not_there(t: &Test) {
    let node = Node::new(t);
    let mut spec = node.sh("a", "true");
    spec["network"] = json!({ "mode": "MODE_CNI", "name": "no-such-network" });
    node.run(&spec);
    let task = node.wait("a");
    assert_eq!(task["state"], "STATE_ERROR", "{task:#}");
    assert!(sentence(&task).contains("no-such-network"), "{task:#}");
    spec["id"] = json!("b");
    spec["network"] = json!({ "mode": "MODE_NONE", "ports": [{ "container": 80 }] });
    let answer = node.http("POST", "/v1/tasks", &spec.to_string());
    assert!(answer.status == 400 && answer.body.contains("network.ports"), "{answer:?}");
    // Its end is told before all is cleaned.
    let left = || fs::read_dir(node.run_folder().join("sandboxes")).expect("read").count();
    let clean = wait_until(Duration::from_secs(20), || (left() == 0).then_some(()));
    assert!(clean.is_some(), "{} sandboxes are left of it", left());
}
