//! What the pages in `docs/` say is there, and what is there they say.

use std::collections::BTreeSet;

use hafen_integration::{Case, Test, Value, cases};

const CLI: &str = include_str!("../../../docs/cli.md");
const LIMITS: &str = include_str!("../../../docs/limits.md");
const SECURITY: &str = include_str!("../../../docs/security.md");
/// Where limits become files.
const KNOBS: &str = include_str!("../../../isolator/src/cgroup/knobs.rs");

pub(crate) fn trials() -> Vec<Case> {
    cases![
        commands_and_options_are_those_of_cli_md(),
        every_field_of_a_report_is_in_cli_md(Root, Busybox),
        every_file_of_a_limit_is_in_limits_md(),
        every_case_in_security_md_exists(),
    ]
}

/// Words as a program's names are: letters, digits, `-`, `_`, `.` and `:` between them.
fn words(text: &str) -> BTreeSet<&str> {
    let inside = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    text.split(|c| !inside(c)).map(|word| word.trim_end_matches(['.', ':'])).collect()
}

fn help(t: &Test, command: &[&str]) -> String {
    t.oci().call(command.iter().copied().chain(["--help"])).ok().stdout
}

fn commands(help: &str) -> Vec<&str> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names =
        list.take_while(|line| !line.is_empty()).filter_map(|l| l.split_whitespace().next());
    names.filter(|name| *name != "help").collect()
}

fn options(help: &str) -> BTreeSet<&str> {
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    lines.flat_map(words).filter(|word| word.starts_with("--") && word.len() > 2).collect()
}

/// From the heading that names the command to the next heading.
fn section(command: &str) -> String {
    let is_heading = |line: &&str| line.starts_with("## ");
    let mut lines =
        CLI.lines().skip_while(|line| !is_heading(line) || !words(line).contains(command));
    let heading = lines.next().unwrap_or_else(|| panic!("cli.md has no section {command}"));
    let body: Vec<&str> = lines.take_while(|line| !is_heading(line)).collect();
    format!("{heading}\n{}", body.join("\n"))
}

fn commands_and_options_are_those_of_cli_md(t: &Test) {
    let program = help(t, &[]);
    let names = commands(&program);
    assert!(names.len() >= 12, "{program}");
    let helps: Vec<String> = names.iter().map(|name| help(t, &[name])).collect();
    for (name, help) in names.iter().zip(&helps) {
        let section = section(name);
        let named = words(&section);
        let is_missing = |o: &&str| *o != "--help" && !named.contains(o);
        let missing: Vec<&str> = options(help).into_iter().filter(is_missing).collect();
        assert!(missing.is_empty(), "the section of {name} in cli.md does not name {missing:?}");
    }
    let known: BTreeSet<&str> =
        helps.iter().chain([&program]).flat_map(|help| options(help)).collect();
    // Without the lines of tables.
    let is_option = |w: &&str| w.starts_with("--") && !w.trim_matches('-').is_empty();
    let named: BTreeSet<&str> = words(CLI).into_iter().filter(is_option).collect();
    assert_eq!(named, known, "options in cli.md, and options there are");
}

/// The report is written to a bare name: the working directory is its folder.
fn every_field_of_a_report_is_in_cli_md(t: &Test) {
    let bundle = t.bundle().args(["/inside", "exit", "3"]);
    let script =
        format!("$OCI run --bundle {} --report end.json {}", bundle.path().display(), t.id());
    t.shell(&script).output().code(3);
    let report = std::fs::read(t.dir().join("end.json")).expect("a report");
    let report: Value = serde_json::from_slice(&report).expect("a report is JSON");
    let all = words(CLI);
    let fields =
        report.as_object().expect("an object").keys().filter(|key| *key != "usage").cloned();
    let usage =
        report["usage"].as_object().expect("an object").keys().map(|key| format!("usage.{key}"));
    let missing: Vec<String> =
        fields.chain(usage).filter(|field| !all.contains(&**field)).collect();
    assert!(missing.is_empty(), "cli.md does not name {missing:?}");
}

/// Everything that looks like a file of a controller in the code that decides about files.
fn every_file_of_a_limit_is_in_limits_md(_: &Test) {
    const CONTROLLERS: [&str; 8] =
        ["cpu.", "cpuset.", "memory.", "pids.", "io.", "blkio.", "rdma.", "net_"];
    let code = KNOBS.split("#[cfg(test)]").next().unwrap_or_default();
    let is_file = |text: &&str| {
        CONTROLLERS.iter().any(|c| text.starts_with(c))
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "._".contains(c))
    };
    let files: BTreeSet<&str> = code.split('"').filter(is_file).collect();
    assert!(files.len() >= 20, "{files:?}");
    let all = words(LIMITS);
    let missing: Vec<&&str> = files.iter().filter(|file| !all.contains(**file)).collect();
    assert!(missing.is_empty(), "limits.md does not name {missing:?}");
}

/// `module::case`, or `module::*`.
fn every_case_in_security_md_exists(t: &Test) {
    let suite = std::env::current_exe().expect("/proc/self/exe");
    let list = t.program(suite.to_str().expect("a path in UTF-8"), ["--list"]).output().ok().stdout;
    let cases: Vec<&str> = list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let named: Vec<&str> = words(SECURITY).into_iter().filter(|word| word.contains("::")).collect();
    assert!(named.len() >= 20, "{named:?}");
    for name in named {
        let exists =
            cases.iter().any(|case| *case == name || case.starts_with(&format!("{name}::")));
        assert!(exists, "security.md names {name}, which is no case");
    }
}
