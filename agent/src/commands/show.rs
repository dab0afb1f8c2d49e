//! How things are printed: tables that fit, JSON of proto3, and words for numbers.

use std::io::{self, Write};
use std::time::SystemTime;

use comfy_table::{ContentArrangement, Table, presets};
use hafen::{amount, time};
use hafen_protocol::v1;
use hafen_sys::terminal;
use serde::Serialize;

use crate::Error;

/// A reader that has gone away wants no more, and that is the end of it.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|e| told(&e))
}

pub(crate) fn errors(bytes: &[u8]) -> Result<(), Error> {
    io::stderr().lock().write_all(bytes).map_err(|e| told(&e))
}

fn told(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Error::Closed,
        _ => Error::Refused(format!("write: {error}")),
    }
}

pub(crate) fn line(text: &str) -> Result<(), Error> {
    bytes(format!("{text}\n").as_bytes())
}

pub(crate) fn json(value: &impl Serialize) -> Result<(), Error> {
    line(&serde_json::to_string_pretty(value).map_err(|e| Error::Refused(format!("output: {e}")))?)
}

/// On one line, for flows.
pub(crate) fn json_line(value: &impl Serialize) -> Result<(), Error> {
    line(&serde_json::to_string(value).map_err(|e| Error::Refused(format!("output: {e}")))?)
}

/// As wide as the terminal; whole lines for a pipe.
pub(crate) fn render<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    if let Some(size) = terminal::size(io::stdout()).filter(|size| size.columns > 0) {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(size.columns);
    }
    rows.into_iter().for_each(|row| {
        table.add_row(row);
    });
    // A blank stands for the border.
    let lines: Vec<String> = table
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned())
        .collect();
    lines.join("\n")
}

pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: Vec<[String; N]>,
) -> Result<(), Error> {
    line(&render(header, rows))
}

/// `STATE_RUNNING` is "running".
pub(crate) fn state(state: i32) -> String {
    let state = v1::State::try_from(state).unwrap_or_default();
    state.as_str_name().trim_start_matches("STATE_").to_ascii_lowercase()
}

pub(crate) fn has_ended(state: i32) -> bool {
    use v1::State;
    let ends = [State::Finished, State::Failed, State::Killed, State::Error, State::Lost];
    State::try_from(state).is_ok_and(|state| ends.contains(&state))
}

/// How long ago, in short. Where the clock was set back since, it is now.
pub(crate) fn age(stamp: Option<&pbjson_types::Timestamp>) -> String {
    let since = |then| SystemTime::now().duration_since(then).unwrap_or_default();
    stamp.map(|stamp| amount::say_duration(since(time::system(stamp)))).unwrap_or_default()
}

pub(crate) fn moment(stamp: Option<&pbjson_types::Timestamp>) -> String {
    let time = stamp.map(time::system);
    time.map(|time| humantime::format_rfc3339_millis(time).to_string()).unwrap_or_default()
}

pub(crate) fn ports(ports: &[v1::Port]) -> String {
    let all: Vec<String> = ports
        .iter()
        .map(|port| {
            let protocol = if port.protocol.is_empty() { "tcp" } else { &port.protocol };
            let address = match port.host_ip.as_str() {
                "" => String::new(),
                ip if ip.contains(':') => format!("[{ip}]:"),
                ip => format!("{ip}:"),
            };
            format!("{address}{}->{}/{protocol}", port.host, port.container)
        })
        .collect();
    all.join(" ")
}

/// What a task stands on.
pub(crate) fn root(spec: Option<&v1::TaskSpec>) -> String {
    match spec.and_then(|spec| spec.root.as_ref()).and_then(|root| root.kind.as_ref()) {
        Some(v1::root::Kind::Image(image)) => image.clone(),
        Some(v1::root::Kind::Rootfs(folder)) => folder.clone(),
        Some(v1::root::Kind::Host(_)) => "host".to_owned(),
        None => String::new(),
    }
}

/// As a shell counts: 128 and the signal.
pub(crate) fn exit_code(exit: &v1::Exit) -> u8 {
    const OF_SIGNAL: i32 = 128;
    let code = exit.code.or_else(|| exit.signal.map(|signal| OF_SIGNAL + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

/// Of a task that has ended.
pub(crate) fn end_code(status: &v1::TaskStatus) -> u8 {
    const NOT_STARTED: u8 = 125;
    let code = status.reason.as_ref().and_then(|reason| reason.exit.as_ref()).map(exit_code);
    let finished = status.state() == v1::State::Finished;
    code.unwrap_or(if finished { 0 } else { NOT_STARTED })
}

/// Text of a container on a terminal: it must not move the cursor.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
