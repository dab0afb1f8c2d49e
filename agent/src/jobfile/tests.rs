use std::path::Path;

use hafen_protocol::v1::{self, JobSpec, constraint, job_spec};
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FieldDescriptorProto, MessageOptions};
use serde_json::{Value, json};

use super::fields::SCHEMA;
use super::{Form, Problems, job, message};

const YAML: &str = r#"
# What a person writes.
name: web
namespace: shop
replicas: 3
task:
  root: {image: localhost/busybox}
  command: [httpd, -f, -p, "8080"]
  env: {PORT: 8080, ON: yes, EMPTY: ""}
  resources:
    request: {cpus: 0.5, memory: 64M}
    limit: {cpus: 1, memory: 128M, pids: 50}
  network:
    mode: cni
    ports: [{host: 0, container: 8080}]
  restart: {when: on-failure, most: 2, backOff: 2s}
  checks:
    - name: up
      kind: readiness
      interval: 1m 30s
      tcp: {port: 8080}
  stop_after_disconnect: 1.5s
constraints:
  - {attribute: zone, in: [a, b]}
  - {attribute: kernel, atLeast: 6}
update: {mostParallel: 1, healthyWithin: 120}
atMostOne: true
"#;

const TOML: &str = r#"
name = "web"
namespace = "shop"
replicas = 3
atMostOne = true
constraints = [{ attribute = "zone", in = ["a", "b"] }, { attribute = "kernel", atLeast = 6 }]
update = { mostParallel = 1, healthyWithin = 120 }
[task]
root.image = "localhost/busybox"
command = ["httpd", "-f", "-p", "8080"]
env = { PORT = "8080", ON = "yes", EMPTY = "" }
stop_after_disconnect = "1.5s"
[task.resources]
request = { cpus = 0.5, memory = "64M" }
limit = { cpus = 1, memory = 0x8000000, pids = 50 }
[task.network]
mode = "cni"
ports = [{ host = 0, container = 8080 }]
[task.restart]
when = "on-failure"
most = 2
backOff = "2s"
[[task.checks]]
name = "up"
kind = "KIND_READINESS"
interval = "1m 30s"
tcp.port = 8080
"#;

fn problems(text: &str, form: Form) -> Vec<String> {
    let found: Result<JobSpec, Problems> = job(text, form);
    found.unwrap_err().of_file("f").lines().map(str::to_owned).collect()
}

#[test]
fn amounts_are_as_people_write_them() {
    let job = job(YAML, Form::Yaml).unwrap();
    assert_eq!(super::job(TOML, Form::Toml).unwrap(), job);
    assert_eq!(job.kind, Some(job_spec::Kind::Replicas(3)));
    let Some(job_spec::What::Task(task)) = &job.what else { panic!("no task") };
    let resources = task.resources.as_ref().unwrap();
    assert_eq!(resources.request.unwrap().cpu_milli, Some(500));
    assert_eq!(resources.limit.unwrap().memory, Some(128 << 20));
    assert_eq!(task.env["ON"], "yes", "text is text");
    assert_eq!(task.stop_after_disconnect.unwrap().nanos, 500_000_000);
    assert_eq!(task.checks[0].interval.unwrap().seconds, 90);
    assert_eq!(task.restart.as_ref().unwrap().when(), v1::restart_policy::When::OnFailure);
    let zones = constraint::Values { values: vec!["a".to_owned(), "b".to_owned()] };
    assert_eq!(job.constraints[0].test, Some(constraint::Test::In(zones)));
    assert_eq!(job.update.unwrap().healthy_within.unwrap().seconds, 120);
}

#[test]
fn all_that_is_wrong_is_told_with_its_line() {
    let text = "\
name: web
replicas: -1
task:
  root: {image: a, rootfs: /r}
  comand: [a]
  env: [a]
  resources:
    limit: {memory: lots, cpus: half}
  kill: {grace: soon}
  network: {mode: cnni}
  terminal: maybe
  secrets: [{content: '!'}]
  checks: {}
what: 1
";
    let wanted = [
        "f:2: replicas: \"-1\" is no whole number from 0 to 4294967295",
        "f:4: task.root.rootfs: and image are said, and only one of them can hold",
        "f:5: task.comand: is no key here; \"command\" is one",
        "f:6: task.env: is no table",
        "f:8: task.resources.limit.memory: \"lots\" is no number, as 1000 or 128M",
        "f:8: task.resources.limit.cpus: \"half\" is no number of CPUs, as 0.5",
        "f:9: task.kill.grace: \"soon\" is no duration, as 10s or 2m",
        "f:10: task.network.mode: \"cnni\" is none of cni, host, none",
        "f:11: task.terminal: is neither true nor false",
        "f:12: task.secrets[0].content: is no base64",
        "f:13: task.checks: is no list",
    ];
    let told = problems(text, Form::Yaml);
    assert_eq!(told[..wanted.len()], wanted);
    assert!(told[wanted.len()].starts_with("f:14: what: is no key here; "), "{told:?}");
    assert_eq!(told.len(), wanted.len() + 1);
    let told = problems("name = 3\nreplicas = \"x\"\n[task]\nroot.imagee = \"a\"\n", Form::Toml);
    assert_eq!(
        told,
        [
            "f:1: name: is no text: put it in quotes",
            "f:2: replicas: \"x\" is no whole number from 0 to 4294967295",
            "f:4: task.root.imagee: is no key here; \"image\" is one"
        ]
    );
    let told = problems(r#"{"name": "a", "task": {"rooot": {}}}"#, Form::Json);
    assert_eq!(told, ["f: task.rooot: is no key here; \"root\" is one"]);
}

#[test]
fn a_job_has_a_name_and_runs_something() {
    let told = problems("replicas: 1\n", Form::Yaml);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("f: name: is missing"), "{told:?}");
    assert!(told[1].starts_with("f: task: is missing"), "{told:?}");
}

#[test]
fn broken_files_say_where() {
    let cases = [
        ("name: [a\n", Form::Yaml, "f:"),
        ("a: 1\nb: &x 2\n", Form::Yaml, "f:2: has an anchor"),
        ("a: 1\nb: *x\n", Form::Yaml, "f:"),
        ("a: !!int 2\n", Form::Yaml, "f:1: has a tag"),
        ("a: 1\na: 2\n", Form::Yaml, "f:2: a is said twice"),
        ("a: 1\n---\na: 2\n", Form::Yaml, "f:3: a second document"),
        ("? [a]\n: 1\n", Form::Yaml, "f:1: is a key that is no text"),
        ("# nothing\n", Form::Yaml, "f: is empty"),
        ("- a\n", Form::Yaml, "f:1: is no table"),
        ("a = 1\nb = \n", Form::Toml, "f:2: "),
        ("a = 1\na = 2\n", Form::Toml, "f:2: "),
        ("{\"a\": 1,\n b}", Form::Json, "f:2: "),
    ];
    for (text, form, wanted) in cases {
        let told = problems(text, form);
        assert!(told[0].starts_with(wanted), "{text}: {told:?}");
    }
    let deep = format!("a: {}1{}\n", "[".repeat(90), "]".repeat(90));
    assert!(problems(&deep, Form::Yaml)[0].contains("too deep"));
}

/// One document for each key there is, with all that is around it.
fn documents(message: &DescriptorProto) -> Vec<Value> {
    let of_field = |field: &FieldDescriptorProto| {
        let all = values(field).into_iter();
        let name = field.json_name().to_owned();
        all.map(move |value| json!({ name.clone(): value })).collect::<Vec<_>>()
    };
    message.field.iter().flat_map(of_field).collect()
}

fn values(field: &FieldDescriptorProto) -> Vec<Value> {
    let one = match field.r#type() {
        Type::Message if field.type_name() == ".google.protobuf.Duration" => vec![json!("7s")],
        Type::Message => {
            let message = &SCHEMA.messages[field.type_name()];
            if message.options.as_ref().is_some_and(MessageOptions::map_entry) {
                return vec![json!({ "a": "b" })];
            }
            documents(message)
        }
        Type::Enum => vec![json!(SCHEMA.enums[field.type_name()].value[1].name())],
        Type::Bool => vec![json!(true)],
        Type::Bytes => vec![json!("aGlkZGVu")],
        Type::Uint64 => vec![json!("7")],
        Type::Int64 => vec![json!("-7")],
        Type::Uint32 | Type::Int32 => vec![json!(7)],
        _ => vec![json!("text")],
    };
    let is_list = super::fields::is_repeated(field);
    one.into_iter().map(|one| if is_list { json!([one]) } else { one }).collect()
}

#[test]
fn every_key_is_known_in_all_forms() {
    let documents = documents(&SCHEMA.messages[".hafen.v1.JobSpec"]);
    assert!(documents.len() > 100, "{}", documents.len());
    for document in documents {
        let wanted: JobSpec = serde_json::from_value(document.clone()).unwrap();
        assert_ne!(wanted, JobSpec::default(), "{document}");
        let text = document.to_string();
        let toml = toml::to_string(&document).unwrap();
        for (form, text) in [(Form::Json, &text), (Form::Yaml, &text), (Form::Toml, &toml)] {
            let read: JobSpec = message(text, form, "JobSpec").unwrap_or_else(|e| {
                panic!("{text}: {}", e.of_file("f"));
            });
            assert_eq!(read, wanted, "{text}");
        }
    }
}

#[test]
fn the_examples_are_jobs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/jobs");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let read = job(&text, Form::of(&path).unwrap());
        read.unwrap_or_else(|e| panic!("{}", e.of_file(&path.display().to_string())));
        count += 1;
    }
    assert!(count >= 3, "{count}");
}
