//! A registry that does what a test wants (distribution-spec, as far as a pull needs it).

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hafen_integration::Value;

/// What is wrong with one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    Status(u16),
    /// The connection ends after so many bytes.
    ResetAfter(usize),
    /// Nothing comes after so many bytes.
    StallAfter(usize),
    /// As many bytes, but others.
    Lie,
    /// Everything, whatever part was asked for.
    Whole,
}

/// One request: path, from which byte on, and how often this path has been asked for before.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) from: Option<usize>,
    pub(super) before: usize,
}

type Script = dyn Fn(&Asked) -> Fault + Send + Sync;

pub(super) struct Server {
    pub(super) host: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// Serves the image of a layout under any repository and tag, for as long as the test runs.
    pub(super) fn start(
        layout: &Path,
        script: impl Fn(&Asked) -> Fault + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let host = listener.local_addr().expect("its address").to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (layout, all) = (layout.to_owned(), Arc::clone(&asked));
        let script: Arc<Script> = Arc::new(script);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (layout, all, script) = (layout.clone(), Arc::clone(&all), Arc::clone(&script));
                std::thread::spawn(move || serve(&stream, &layout, &all, &*script));
            }
        });
        Self { host, asked }
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic").clone()
    }
}

/// A client may ask again on the same connection.
fn serve(
    stream: &TcpStream,
    layout: &Path,
    all: &Mutex<Vec<Asked>>,
    script: &Script,
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let path = line.split(' ').nth(1)?.to_owned();
        let headers = headers(&mut reader)?;
        let start = headers.get("range").and_then(|range| {
            range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok()
        });
        let asked = {
            let mut all = all.lock().ok()?;
            let before = all.iter().filter(|a| a.path == path).count();
            all.push(Asked { path, from: start, before });
            all.last()?.clone()
        };
        answer(stream, layout, &asked, start, script(&asked))?;
    }
}

fn headers(reader: &mut impl BufRead) -> Option<BTreeMap<String, String>> {
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { return Some(headers) };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
}

fn answer(
    mut stream: &TcpStream,
    layout: &Path,
    asked: &Asked,
    start: Option<usize>,
    fault: Fault,
) -> Option<()> {
    if let Fault::Status(code) = fault {
        let head = format!("HTTP/1.1 {code} Trouble\r\nContent-Length: 0\r\n\r\n");
        return stream.write_all(head.as_bytes()).ok();
    }
    let Some((media_type, file)) = find(layout, &asked.path) else {
        let body =
            if asked.path == "/v2/" { "{}" } else { r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"# };
        let code = if asked.path == "/v2/" { "200 OK" } else { "404 Not Found" };
        let head = format!("HTTP/1.1 {code}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        return stream.write_all(head.as_bytes()).ok();
    };
    let whole = fs::read(file).ok()?;
    let start = start.filter(|_| fault != Fault::Whole);
    let mut body = whole.get(start.unwrap_or(0)..)?.to_vec();
    if fault == Fault::Lie {
        body.iter_mut().for_each(|byte| *byte ^= 1);
    }
    let code = if start.is_some() { "206 Partial Content" } else { "200 OK" };
    let range = start.map(|start| {
        format!("Content-Range: bytes {start}-{}/{}\r\n", whole.len().max(1) - 1, whole.len())
    });
    let head = format!(
        "HTTP/1.1 {code}\r\nContent-Type: {media_type}\r\n{}Content-Length: {}\r\n\r\n",
        range.unwrap_or_default(),
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    match fault {
        Fault::ResetAfter(n) if n < body.len() => {
            stream.write_all(&body[..n]).ok()?;
            None
        }
        Fault::StallAfter(n) if n < body.len() => {
            stream.write_all(&body[..n]).ok()?;
            std::thread::sleep(Duration::from_secs(60));
            None
        }
        _ => stream.write_all(&body).ok(),
    }
}

/// The file that a path of the API means.
fn find(layout: &Path, path: &str) -> Option<(String, PathBuf)> {
    let (_, name) = path.rsplit_once('/')?;
    let blob = |digest: &str| layout.join("blobs").join(digest.replace(':', "/"));
    if path.contains("/blobs/") {
        let file = blob(name);
        return file.exists().then(|| ("application/octet-stream".to_owned(), file));
    }
    if !path.contains("/manifests/") {
        return None;
    }
    let index: Value = fs::read_to_string(layout.join("index.json")).ok()?.parse().ok()?;
    let first = &index["manifests"][0];
    let media_type = first["mediaType"].as_str()?.to_owned();
    if name.starts_with("sha256:") {
        let file = blob(name);
        let own: Value = fs::read_to_string(&file).ok()?.parse().ok()?;
        let media_type = own["mediaType"].as_str().map_or(media_type, str::to_owned);
        return Some((media_type, file));
    }
    (name != "missing").then(|| (media_type, blob(first["digest"].as_str().unwrap_or_default())))
}
