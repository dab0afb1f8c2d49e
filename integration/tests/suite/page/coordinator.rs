//! The page and the JSON that it asks for, with what a test wants them to say.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hafen_integration::{Value, json};

const INDEX: &str = include_str!("../../../../agent/coordinator/page/index.html");
const SCRIPT: &str = include_str!("../../../../agent/coordinator/page/page.js");
const STYLE: &str = include_str!("../../../../agent/coordinator/page/page.css");

/// With trusted types: what would make markup of a text fails, even where the text is harmless.
const POLICY: &str = "default-src 'self'; style-src 'self'; script-src 'self'; base-uri 'none'; \
    frame-ancestors 'none'; form-action 'none'; require-trusted-types-for 'script'; \
    trusted-types 'none'";
const LONGEST_POLL: Duration = Duration::from_secs(20);

/// A change that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) body: Value,
}

#[derive(Default)]
struct Shown {
    view: Value,
    /// Of one job and one instance by name.
    more: Value,
    log: Vec<String>,
    asked: Vec<Asked>,
    /// Nobody may change anything.
    refuses: bool,
    is_down: bool,
    is_over: bool,
}

pub(super) struct Coordinator {
    pub(super) url: String,
    port: u16,
    shown: Arc<(Mutex<Shown>, Condvar)>,
}

impl Coordinator {
    pub(super) fn start(view: Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let shown = Arc::new((Mutex::new(Shown { view, ..Shown::default() }), Condvar::new()));
        let served = Arc::clone(&shown);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if served.0.lock().is_ok_and(|shown| shown.is_over) {
                    return;
                }
                let served = Arc::clone(&served);
                std::thread::spawn(move || serve(&stream, &served));
            }
        });
        Self { url: format!("http://127.0.0.1:{port}"), port, shown }
    }

    fn change(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut self.shown.0.lock().expect("no panic"));
        self.shown.1.notify_all();
    }

    /// The next revision.
    pub(super) fn publish(&self, view: Value) {
        self.change(|shown| shown.view = view);
    }

    pub(super) fn more(&self, more: Value) {
        self.change(|shown| shown.more = more);
    }

    /// A line of the log of every instance.
    pub(super) fn say(&self, stream: &str, line: &[u8]) {
        let entry = json!({
            "time": super::cluster::NOW, "stream": stream, "line": STANDARD.encode(line),
        });
        self.change(|shown| shown.log.push(entry.to_string()));
    }

    pub(super) fn refuse(&self) {
        self.change(|shown| shown.refuses = true);
    }

    pub(super) fn is_down(&self, is_down: bool) {
        self.change(|shown| shown.is_down = is_down);
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.shown.0.lock().expect("no panic").asked.clone()
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.change(|shown| (shown.is_down, shown.is_over) = (true, true));
        // The listener ends with the next connection.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// One request of a connection.
fn serve(stream: &TcpStream, shown: &(Mutex<Shown>, Condvar)) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    if shown.0.lock().ok()?.is_down {
        return None;
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    match (method, path) {
        ("GET", "/") => send(stream, 200, "text/html; charset=utf-8", INDEX),
        ("GET", "/page.js") => send(stream, 200, "text/javascript; charset=utf-8", SCRIPT),
        ("GET", "/page.css") => send(stream, 200, "text/css; charset=utf-8", STYLE),
        ("GET", "/v1/cluster") => cluster(stream, shown, query.strip_prefix("after=")?),
        ("GET", path) if path.ends_with("/logs") => log(stream, shown),
        ("GET", path) => more(stream, shown, path),
        ("POST", path) => {
            let asked = Asked { path: path.to_owned(), body: serde_json::from_slice(&body).ok()? };
            order(stream, shown, asked)
        }
        _ => send(stream, 405, "text/plain", ""),
    }
}

fn send(mut stream: &TcpStream, status: u16, kind: &str, body: &str) -> Option<()> {
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Security-Policy: {POLICY}\r\n\
         X-Content-Type-Options: nosniff\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).ok()
}

fn json(stream: &TcpStream, status: u16, body: &Value) -> Option<()> {
    send(stream, status, "application/json", &body.to_string())
}

/// Waits while the caller knows the present revision.
fn cluster(stream: &TcpStream, shown: &(Mutex<Shown>, Condvar), after: &str) -> Option<()> {
    let known = |shown: &mut Shown| !shown.is_down && shown.view["revision"] == after;
    let view = {
        let shown = waited(shown, LONGEST_POLL, known)?;
        (!shown.is_down).then(|| shown.view.clone())?
    };
    json(stream, 200, &view)
}

fn waited<'a>(
    (shown, changed): &'a (Mutex<Shown>, Condvar),
    limit: Duration,
    wait: impl FnMut(&mut Shown) -> bool,
) -> Option<MutexGuard<'a, Shown>> {
    Some(changed.wait_timeout_while(shown.lock().ok()?, limit, wait).ok()?.0)
}

/// Without the last chunk, so that an end is a broken connection.
fn log(mut stream: &TcpStream, shown: &(Mutex<Shown>, Condvar)) -> Option<()> {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\
        Transfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).ok()?;
    let mut told = 0;
    loop {
        let lines = {
            let shown = waited(shown, LONGEST_POLL, |s| !s.is_down && s.log.len() == told)?;
            (!shown.is_down).then(|| shown.log[told..].to_vec())?
        };
        told += lines.len();
        for line in lines {
            let chunk = format!("{:x}\r\n{line}\n\r\n", line.len() + 1);
            stream.write_all(chunk.as_bytes()).ok()?;
        }
    }
}

fn more(stream: &TcpStream, shown: &(Mutex<Shown>, Condvar), path: &str) -> Option<()> {
    let found = shown.0.lock().ok()?.more[path].clone();
    match found {
        Value::Null => {
            json(stream, 404, &json!({ "code": "not_found", "message": "there is none" }))
        }
        found => json(stream, 200, &found),
    }
}

fn order(stream: &TcpStream, shown: &(Mutex<Shown>, Condvar), asked: Asked) -> Option<()> {
    let refuses = {
        let mut shown = shown.0.lock().ok()?;
        shown.asked.push(asked);
        shown.refuses
    };
    if refuses {
        let refusal = json!({ "code": "permission_denied", "message": "you may only look" });
        return json(stream, 403, &refusal);
    }
    json(stream, 200, &json!({}))
}
