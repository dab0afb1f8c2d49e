use std::io;
use std::path::Path;

use clap::Parser;
use hafen_protocol::v1::{self, TaskSpec};
use hafen_spec::Problems;
use serde_json::{Value, json};

use super::args::RunArgs;
use super::spec::{Around, spec};

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    run: RunArgs,
}

fn typed(line: &str) -> Result<TaskSpec, Problems> {
    let words = std::iter::once("run").chain(line.split_whitespace());
    let line = Line::try_parse_from(words).unwrap();
    let variable = |name: &str| (name == "OURS").then(|| "here".to_owned());
    let read = |path: &Path| match path.to_str() {
        Some("/secret") => Ok(b"hidden".to_vec()),
        Some("/env") => Ok(b"# comment\nA=file\n  B=b = c\n\nOURS\n".to_vec()),
        _ => Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    let around = Around { cwd: Path::new("/cwd"), variable: &variable, read: &read };
    spec(&line.run.spec, &around)
}

/// Each line with what it adds to that of a bare image.
#[test]
fn options_are_fields() {
    let cases: &[(&str, Value)] = &[
        ("i", json!({})),
        ("i sh -c true", json!({"command": ["sh", "-c", "true"]})),
        ("-it --rm i", json!({"stdin": true, "terminal": true, "remove": true})),
        ("-e A=1=2 -e OURS -e THEIRS i", json!({"env": {"A": "1=2", "OURS": "here"}})),
        ("--env-file /env -e A=own i", json!({"env": {"A": "own", "B": "b = c", "OURS": "here"}})),
        ("-u 1:2 -w /w i", json!({"user": "1:2", "cwd": "/w"})),
        ("-v /a:/b i", json!({"mounts": [{"host": "/a", "destination": "/b"}]})),
        (
            "-v ./a:/b:ro,noexec i",
            json!({"mounts": [{"host": "/cwd/a", "destination": "/b", "options": ["ro", "noexec"]}]}),
        ),
        ("-v data:/b i", json!({"mounts": [{"volume": "data", "destination": "/b"}]})),
        (
            "--tmpfs /t:size=1M,noexec i",
            json!({"mounts": [{"tmpfs": "1048576", "destination": "/t", "options": ["noexec"]}]}),
        ),
        ("-p 80 i", json!({"network": {"mode": "MODE_CNI", "ports": [{"container": 80}]}})),
        (
            "-p 8080:80/udp i",
            json!({"network": {"mode": "MODE_CNI", "ports": [{"host": 8080, "container": 80, "protocol": "udp"}]}}),
        ),
        (
            "-p 127.0.0.1:8080:80 i",
            json!({"network": {"mode": "MODE_CNI", "ports": [{"host": 8080, "container": 80, "hostIp": "127.0.0.1"}]}}),
        ),
        (
            "-p [::1]:8080:80 i",
            json!({"network": {"mode": "MODE_CNI", "ports": [{"host": 8080, "container": 80, "hostIp": "::1"}]}}),
        ),
        (
            "-p 127.0.0.1::80 i",
            json!({"network": {"mode": "MODE_CNI", "ports": [{"container": 80, "hostIp": "127.0.0.1"}]}}),
        ),
        ("--network host i", json!({"network": {"mode": "MODE_HOST"}})),
        (
            "--network none --hostname h i",
            json!({"network": {"mode": "MODE_NONE", "hostname": "h"}}),
        ),
        ("--network blue i", json!({"network": {"mode": "MODE_CNI", "name": "blue"}})),
        (
            "--add-host a:::1 --dns 1.1.1.1 i",
            json!({"network": {"hosts": {"a": "::1"}, "dns": ["1.1.1.1"]}}),
        ),
        (
            "-m 64M --cpus 1.5 --pids-limit 9 i",
            json!({"resources": {"limit": {"memory": "67108864", "cpuMilli": "1500", "pids": "9"}}}),
        ),
        (
            "-m 1M --memory-swap 3M i",
            json!({"resources": {"limit": {"memory": "1048576", "swap": "2097152"}}}),
        ),
        ("-m 1M --memory-swap -1 i", json!({"resources": {"limit": {"memory": "1048576"}}})),
        ("--restart always i", json!({"restart": {"when": "WHEN_ALWAYS"}})),
        ("--restart no i", json!({"restart": {"when": "WHEN_NEVER"}})),
        ("--restart on-failure:3 i", json!({"restart": {"when": "WHEN_ON_FAILURE", "most": 3}})),
        (
            "--stop-signal INT --stop-timeout 30 i",
            json!({"kill": {"signal": "INT", "grace": "30s"}}),
        ),
        ("-l a=b=c -l d i", json!({"labels": {"a": "b=c", "d": ""}})),
        ("--entrypoint= i a", json!({"entrypoint": "", "command": ["a"]})),
        ("--max-run-time 1h i", json!({"maxRunTime": "3600s"})),
        (
            "--log-max-size 1K --log-max-files 2 i",
            json!({"log": {"maxBytes": "1024", "maxFiles": 2}}),
        ),
        (
            "--secret n=/secret:/run/s i",
            json!({"secrets": [{"destination": "/run/s", "content": "aGlkZGVu"}]}),
        ),
        (
            "--secret src=/secret,dst=/s,mode=0440,uid=7 i",
            json!({"secrets": [{"destination": "/s", "content": "aGlkZGVu", "mode": 288, "uid": 7}]}),
        ),
        (
            "--health-cmd true --health-interval 5s --health-retries 2 i",
            json!({"checks": [{"name": "health", "kind": "KIND_HEALTH", "interval": "5s", "failures": 2,
                               "command": {"args": ["/bin/sh", "-c", "true"]}}]}),
        ),
    ];
    are_fields(cases);
}

fn are_fields(cases: &[(&str, Value)]) {
    for (line, more) in cases {
        let mut wanted = more.clone();
        wanted["root"] = json!({"image": "i"});
        let wanted: TaskSpec = serde_json::from_value(wanted).unwrap();
        assert_eq!(typed(line), Ok(wanted), "{line}");
    }
}

#[test]
fn rights_are_fields() {
    are_fields(&[
        (
            "--cap-add NET_ADMIN --cap-drop ALL i",
            json!({"security": {"capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}}),
        ),
        (
            "--security-opt seccomp=unconfined --security-opt no-new-privileges=false i",
            json!({"security": {"seccomp": {"unconfined": true}, "noNewPrivileges": false}}),
        ),
        (
            "--security-opt seccomp=/secret --security-opt no-new-privileges:true i",
            json!({"security": {"seccomp": {"profile": "hidden"}, "noNewPrivileges": true}}),
        ),
        (
            "--device /dev/a --device /dev/a:r --device /dev/a:/dev/b --device /dev/a:/dev/b:rw i",
            json!({"security": {"devices": [{"path": "/dev/a"}, {"path": "/dev/a", "access": "r"},
                {"path": "/dev/a", "destination": "/dev/b"},
                {"path": "/dev/a", "destination": "/dev/b", "access": "rw"}]}}),
        ),
    ]);
}

#[test]
fn there_are_other_roots_than_images() {
    let root = |line| typed(line).unwrap().root.unwrap();
    assert_eq!(root("--rootfs host true").kind, Some(v1::root::Kind::Host(true)));
    assert_eq!(root("--rootfs /r true").kind, Some(v1::root::Kind::Rootfs("/r".to_owned())));
    assert_eq!(typed("--rootfs /r sh -l").unwrap().command, ["sh", "-l"]);
    let root = root("--read-only --pull always i");
    assert!(root.read_only);
    assert_eq!(root.pull(), v1::Pull::Always);
}

#[test]
fn all_problems_are_told_together() {
    let line = "-v a -p 0 -p 80/x -m 1X --cpus 0 --restart maybe --stop-timeout soon --secret x --tmpfs t \
                --memory-swap 1G --env-file /none -e =1 --add-host x --log-max-files 0 --log-max-size x \
                --device x --security-opt apparmor=x";
    let problems = typed(line).expect_err("problems");
    let fields: Vec<&str> = problems.0.iter().map(|problem| problem.field.as_str()).collect();
    let wanted = [
        "IMAGE",
        "--env-file /none",
        "--env",
        "--memory",
        "--cpus",
        "--volume",
        "--tmpfs",
        "--publish",
        "--publish",
        "--add-host",
        "--secret",
        "--restart",
        "--stop-timeout",
        "--log-max-size",
        "--log-max-files",
        "--device",
        "--security-opt",
    ];
    assert_eq!(fields, wanted, "{problems}");
}

#[test]
fn a_file_says_all_of_it() {
    let cases = [
        ("run -f a.toml", false),
        ("run -f a.toml -d --name b", false),
        ("run image", false),
        ("run -f a.toml image", true),
        ("run -f a.toml -m 1M", true),
        ("run -f a.toml --rm", true),
    ];
    for (line, wanted) in cases {
        let run = Line::try_parse_from(line.split(' ')).unwrap().run;
        assert_eq!(run.is_said_twice(), wanted, "{line}");
    }
}
