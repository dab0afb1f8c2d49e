use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Config, Given, Problems, gather};

const FILE: &str = "/etc/hafen/agent.toml";

fn given(flags: &[(&'static str, &str)], variables: &[(&str, &str)], file: &str) -> Given {
    let mut all: BTreeMap<_, _> = flags.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
    // Any program will do: that there is one is not what these ask.
    all.entry("runtime").or_insert_with(|| "/proc/self/exe".to_owned());
    let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    gather(&all, variables, Some((Path::new(FILE), file)))
}

fn problems(given: &Given) -> Vec<String> {
    let Problems(all) = Config::resolve(given).expect_err("problems");
    all.iter().map(ToString::to_string).collect()
}

#[test]
fn a_flag_goes_before_a_variable_before_the_file_before_the_default() {
    let file = "state = \"/f\"\nrun = \"/f\"\ninstance = \"f\"\n";
    let variables = [("HAFEN_STATE", "/v"), ("HAFEN_RUN", "/v")];
    let config = Config::resolve(&given(&[("state", "/flag")], &variables, file)).unwrap();
    assert_eq!(config.state, PathBuf::from("/flag"));
    assert_eq!(config.run, PathBuf::from("/v"));
    assert_eq!(config.instance, "f");
    assert_eq!(config.gc.high, 85);
    assert_eq!(config.socket, PathBuf::from("/v/agent.sock"));
    assert_eq!(config.images, PathBuf::from("/flag/images"));
}

#[test]
fn all_problems_are_told_with_their_source() {
    let file = "stat = 1\n[log]\nlevel = \"loud\"\nspeed = 1\n\n[gc]\nhigh = 10\nlow = 20\n[tcp]\ncert = \"/c\"\n";
    let variables = [("HAFEN_RESERVED_CPU", "many"), ("HAFEN_SATTE", "x"), ("HAFEN_HOST", "x")];
    let given = given(&[("cni.subnet", "10.0.0.0")], &variables, file);
    assert_eq!(given.strangers, ["HAFEN_SATTE"]);
    let told = problems(&given);
    let wanted = [
        "log.speed (/etc/hafen/agent.toml:4): is no key",
        "stat (/etc/hafen/agent.toml:1): is no key",
        "log.level (/etc/hafen/agent.toml:3): \"loud\" is no level",
        "cni.subnet (--cni-subnet): \"10.0.0.0\" is no subnet",
        "reserved.cpu (HAFEN_RESERVED_CPU): \"many\" is no number of CPUs",
        "gc.low (/etc/hafen/agent.toml:8): 20 is more than gc.high, 10",
        "tcp.cert (/etc/hafen/agent.toml:10): means nothing without tcp.address",
    ];
    for wanted in wanted {
        assert!(told.iter().any(|t| t.starts_with(wanted)), "{wanted:?} is not in {told:#?}");
    }
    assert_eq!(told.len(), wanted.len(), "{told:#?}");
}

#[test]
fn a_file_that_is_no_toml_names_its_line() {
    let told = problems(&given(&[], &[], "run = \"/r\"\nstate = \n"));
    assert!(told[0].starts_with("/etc/hafen/agent.toml:2: "), "{told:?}");
}

#[test]
fn tcp_asks_for_all_of_tls() {
    let told = problems(&given(&[("tcp.address", "[::]:7443"), ("tcp.key", "/k")], &[], ""));
    assert_eq!(
        told,
        [
            "tcp.cert (default): is missing: TCP is served with mutual TLS only",
            "tcp.client-ca (default): is missing: TCP is served with mutual TLS only",
        ]
    );
}

#[test]
fn what_is_printed_is_a_file_that_says_the_same() {
    let file = "[cni]\nplugins = [\"/a\", \"/b\"]\n[tcp]\naddress = \"127.0.0.1:1\"\ncert = \"/c\"\nkey = \"/k\"\n\
                client-ca = \"/ca\"\n[reserved]\ncpu = 0.25\nmemory = \"64M\"\n[master]\nurls = [\"https://m:1\", \
                \"unix:///m\"]\ntoken = \"t\"\n";
    let file = format!(
        "attributes = [\"a=1\", \"b=\"]\ndomains = \"zone=z\"\n{file}authority = \"{}\"\ndrain-within = \"10m\"\n",
        "0a".repeat(32)
    );
    let file = file.as_str();
    let config = Config::resolve(&given(&[("name", "n")], &[], file)).unwrap();
    assert_eq!(config.reserved.cpu_milli, 250);
    let printed = config.to_toml().unwrap();
    let again = gather(&BTreeMap::new(), [], Some((Path::new("again"), &printed)));
    assert_eq!(Config::resolve(&again), Ok(config), "{printed}");
}

#[test]
fn without_tls_is_for_this_machine_only() {
    let local = [("master.urls", "http://127.0.0.1:1,http://[::1]:2,unix:///m,http://localhost:3")];
    assert_eq!(Config::resolve(&given(&local, &[], "")).unwrap().master.unwrap().urls.len(), 4);
    let open = ("master.urls", "http://127.0.0.1:1,http://10.0.0.1:2");
    let told = problems(&given(&[open], &[], ""));
    assert!(told[0].contains("http://10.0.0.1:2 is another machine"), "{told:?}");
    assert!(Config::resolve(&given(&[open, ("master.insecure", "true")], &[], "")).is_ok());
}

#[test]
fn what_is_said_of_masters_goes_together() {
    let urls = ("master.urls", "https://m:1");
    let digits = "0".repeat(63);
    let cases: [(&[(&'static str, &str)], &str); 8] = [
        (&[("master.token", "t")], "master.token (--master-token): means nothing without"),
        (&[("master.urls", "m:1")], "master.urls (--master-urls): \"m:1\" is no list of https"),
        (&[urls, ("master.ca", "/ca")], "master.cert (default): is missing"),
        (&[urls, ("master.token", "t")], "master.authority (default): is missing"),
        (&[urls, ("master.authority", &digits)], "master.authority (--master-authority): \"000"),
        (
            &[("master.drain-within", "1m")],
            "master.drain-within (--master-drain-within): means nothing",
        ),
        (&[("attributes", "a")], "attributes (--attributes): \"a\" is no list of NAME=VALUE"),
        (&[("domains", "zone=a,zone=b")], "domains (--domains): has \"zone\" twice"),
    ];
    for (flags, wanted) in cases {
        let told = problems(&given(flags, &[], ""));
        assert!(told[0].starts_with(wanted), "{wanted:?}: {told:?}");
    }
}
