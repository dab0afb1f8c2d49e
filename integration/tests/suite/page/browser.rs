//! A browser without a window, driven by the DevTools protocol over a pair of pipes.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hafen_integration::{Test, Value, json, patience, wait_until};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, geteuid};

pub(super) const PROGRAM: &str = "chromium-headless-shell";
const ANSWER: Duration = Duration::from_secs(60);
pub(super) const CHANGE: Duration = Duration::from_secs(20);
/// The protocol's pipes are the descriptors 3 and 4 of the browser.
const WITH_PIPES: &str = r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >&2"#;

/// Of the keyboard: name, code, and what it writes.
pub(super) type Key = (&'static str, u32, &'static str);
pub(super) const TAB: Key = ("Tab", 9, "");
pub(super) const ENTER: Key = ("Enter", 13, "\r");
pub(super) const ESCAPE: Key = ("Escape", 27, "");
pub(super) const SPACE: Key = (" ", 32, " ");

/// With one page. What goes wrong in it is remembered.
pub(super) struct Browser {
    child: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
    session: Option<String>,
    calls: u64,
    events: VecDeque<Value>,
}

impl Browser {
    pub(super) fn start(t: &Test) -> Self {
        let folder = t.dir().join("browser");
        fs::create_dir_all(&folder).expect("mkdir");
        let log = File::create(folder.join("log")).expect("a log of the browser");
        let mut command = Command::new("sh");
        command.args(["-c", WITH_PIPES, PROGRAM, "--remote-debugging-pipe", "--disable-gpu"]);
        command.arg(format!("--user-data-dir={}", folder.display()));
        command.args(["--hide-scrollbars", "--force-color-profile=srgb", "about:blank"]);
        if geteuid().is_root() {
            // Its sandbox is none of root's, and the page is our own.
            command.arg("--no-sandbox");
        }
        for variable in ["HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"] {
            command.env(variable, &folder);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).process_group(0);
        let mut child = command.spawn().expect("sh");
        let input = child.stdin.take().expect("a pipe");
        let messages = messages(child.stdout.take().expect("a pipe"));
        let mut browser =
            Self { child, input, messages, session: None, calls: 0, events: VecDeque::new() };
        browser.attach();
        browser
    }

    fn attach(&mut self) {
        let target = self.call("Target.createTarget", &json!({ "url": "about:blank" }));
        let asked = json!({ "targetId": target["targetId"], "flatten": true });
        let session = self.call("Target.attachToTarget", &asked);
        self.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Audits", "DOM", "Accessibility"] {
            self.call(&format!("{domain}.enable"), &json!({}));
        }
        let look = json!({ "source": include_str!("look.js") });
        self.call("Page.addScriptToEvaluateOnNewDocument", &look);
    }

    /// The answer of a command of the protocol.
    pub(super) fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.calls += 1;
        let mut message = json!({ "id": self.calls, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.input.write_all(format!("{message}\0").as_bytes()).expect("the browser listens");
        loop {
            let answer = self.messages.recv_timeout(patience(ANSWER));
            let answer = answer.unwrap_or_else(|e| panic!("{method}: no answer, {e}"));
            if answer["id"] == self.calls {
                assert_eq!(answer["error"], Value::Null, "{method} {parameters}");
                return answer["result"].clone();
            }
            self.events.push_back(answer);
        }
    }

    /// What an expression of the page is, awaited.
    #[track_caller]
    pub(super) fn js(&mut self, expression: &str) -> Value {
        let asked =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", &asked);
        assert_eq!(answer["exceptionDetails"], Value::Null, "{expression}");
        answer["result"]["value"].clone()
    }

    #[track_caller]
    pub(super) fn text(&mut self, expression: &str) -> String {
        let value = self.js(expression);
        value.as_str().unwrap_or_else(|| panic!("{expression}: no text: {value}")).to_owned()
    }

    /// Waits until an expression holds.
    #[track_caller]
    pub(super) fn until(&mut self, expression: &str) {
        let end = Instant::now() + patience(CHANGE);
        while self.js(expression) != json!(true) {
            if Instant::now() > end {
                let text = self.js("document.body.innerText.slice(0, 2000)");
                panic!("never: {expression}\n{}\n{:?}", text.as_str().unwrap_or(""), self.faults());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(super) fn open(&mut self, url: &str) {
        self.call("Page.navigate", &json!({ "url": url }));
        self.until("document.readyState === 'complete'");
    }

    pub(super) fn size(&mut self, width: u32, height: u32, scale: f64) {
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": scale, "mobile": false,
        });
        self.call("Emulation.setDeviceMetricsOverride", &size);
    }

    /// As a person has set it: light or dark, and with or without motion.
    pub(super) fn prefers(&mut self, scheme: &str, motion: &str) {
        let features = json!([
            { "name": "prefers-color-scheme", "value": scheme },
            { "name": "prefers-reduced-motion", "value": motion },
        ]);
        self.call("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    pub(super) fn press(&mut self, (name, code, text): Key) {
        for kind in ["keyDown", "keyUp"] {
            let mut key =
                json!({ "type": kind, "key": name, "code": name, "windowsVirtualKeyCode": code });
            if !text.is_empty() && kind == "keyDown" {
                key["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", &key);
        }
    }

    pub(super) fn write(&mut self, text: &str) {
        self.call("Input.insertText", &json!({ "text": text }));
    }

    /// A picture beside the test program, for people.
    pub(super) fn picture(&mut self, name: &str) {
        let asked = json!({ "format": "png", "captureBeyondViewport": false });
        let answer = self.call("Page.captureScreenshot", &asked);
        let bytes = STANDARD.decode(answer["data"].as_str().unwrap_or_default()).expect("base64");
        let folder = pictures();
        fs::create_dir_all(&folder).expect("mkdir");
        fs::write(folder.join(format!("{name}.png")), bytes).expect("a picture");
    }

    /// What the page did wrong: errors in its console, exceptions, and what its policy forbade.
    pub(super) fn faults(&mut self) -> Vec<String> {
        // An answer comes after all that was told before.
        self.call("Runtime.evaluate", &json!({ "expression": "0" }));
        self.events.iter().filter_map(fault).collect()
    }

    /// That the server could not be reached, or refused, is told in the console by the browser itself.
    #[track_caller]
    pub(super) fn is_without_faults(&mut self) {
        let faults = self.faults();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
}

fn fault(event: &Value) -> Option<String> {
    let parameters = &event["params"];
    let entry = &parameters["entry"];
    let is_fault = match event["method"].as_str()? {
        "Runtime.exceptionThrown" => true,
        "Runtime.consoleAPICalled" => {
            matches!(parameters["type"].as_str(), Some("error" | "warning"))
        }
        "Log.entryAdded" => {
            entry["source"] != "network"
                && matches!(entry["level"].as_str(), Some("error" | "warning"))
        }
        // A view that is gone back to by a script, and by nobody's hand, is one for a browser to skip.
        "Audits.issueAdded" => {
            let generic = &parameters["issue"]["details"]["genericIssueDetails"];
            generic["errorType"] != "NavigationEntryMarkedSkippable"
        }
        _ => false,
    };
    is_fault.then(|| event.to_string())
}

fn pictures() -> PathBuf {
    let program = std::env::current_exe().expect("/proc/self/exe");
    program.ancestors().nth(2).expect("a target folder").join("screenshots")
}

/// Each ends with a zero byte.
fn messages(output: std::process::ChildStdout) -> Receiver<Value> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for message in BufReader::new(output).split(0).map_while(Result::ok) {
            let Ok(message) = serde_json::from_slice(&message) else { continue };
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    receiver
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.session = None;
        let close = json!({ "id": 0, "method": "Browser.close" });
        let _ = self.input.write_all(format!("{close}\0").as_bytes());
        let ended = wait_until(Duration::from_secs(10), || self.child.try_wait().ok().flatten());
        let group = Pid::from_raw(self.child.id().cast_signed());
        if ended.is_none() {
            let _ = killpg(group, Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}
