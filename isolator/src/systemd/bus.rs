//! As much of D-Bus (D-Bus Specification, "Message Protocol") as is needed to ask systemd, on its own socket: no
//! bus daemon between, no thread, one call after the other.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hafen_sys::{CallError, Context};

/// For root only; systemctl(1) uses it, too.
const SOCKET: &str = "/run/systemd/private";
const PATIENCE: Duration = Duration::from_secs(30);
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// The longest message that the specification allows is 128 MiB; systemd's answers are short.
const LONGEST: usize = 1 << 20;

/// Values as they stand in a message: little-endian, each aligned to its size.
#[derive(Debug, Clone, Default)]
pub(super) struct Body {
    bytes: Vec<u8>,
    signature: String,
}

impl Body {
    /// What the values are together; a text or two need not be said.
    pub(super) fn signature(mut self, signature: &str) -> Self {
        signature.clone_into(&mut self.signature);
        self
    }

    fn align(mut self, size: usize) -> Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(size), 0);
        self
    }

    pub(super) fn number(self, number: u32) -> Self {
        let mut body = self.align(4);
        body.bytes.extend(number.to_le_bytes());
        body
    }

    pub(super) fn long(self, number: u64) -> Self {
        let mut body = self.align(8);
        body.bytes.extend(number.to_le_bytes());
        body
    }

    pub(super) fn text(self, text: &str) -> Self {
        let mut body = self.number(length(text.len()));
        body.bytes.extend(text.as_bytes());
        body.bytes.push(0);
        body.signature.push('s');
        body
    }

    fn signature_value(mut self, signature: &str) -> Self {
        self.bytes.push(u8::try_from(signature.len()).unwrap_or(0));
        self.bytes.extend(signature.as_bytes());
        self.bytes.push(0);
        self
    }

    pub(super) fn bytes(self, bytes: &[u8]) -> Self {
        let mut body = self.number(length(bytes.len()));
        body.bytes.extend(bytes);
        body
    }

    /// A list of numbers.
    pub(super) fn list(self, fill: impl FnOnce(Self) -> Self) -> Self {
        self.array(4, fill)
    }

    /// A list of structs.
    pub(super) fn structs(self, fill: impl FnOnce(Self) -> Self) -> Self {
        self.array(8, fill)
    }

    /// Its length in bytes, without what aligns the first element.
    fn array(self, alignment: usize, fill: impl FnOnce(Self) -> Self) -> Self {
        let body = self.number(0);
        let place = body.bytes.len() - 4;
        let body = body.align(alignment);
        let start = body.bytes.len();
        let mut body = fill(body);
        let filled = length(body.bytes.len() - start);
        body.bytes[place..place + 4].copy_from_slice(&filled.to_le_bytes());
        body
    }

    /// A struct of a name and a value that says of which kind it is.
    pub(super) fn property(self, name: &str, kind: &str, value: impl FnOnce(Self) -> Self) -> Self {
        value(self.align(8).text(name).signature_value(kind))
    }

    /// A field of a header.
    fn field(mut self, code: u8, kind: &str, value: &str) -> Self {
        self = self.align(8);
        self.bytes.push(code);
        self = self.signature_value(kind);
        if kind == "g" { self.signature_value(value) } else { self.text(value) }
    }
}

fn length(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Why a call has no answer.
#[derive(Debug)]
pub(super) enum Refusal {
    /// systemd's own name for it, and its words.
    Error {
        name: String,
        words: String,
    },
    Call(CallError),
}

impl From<CallError> for Refusal {
    fn from(e: CallError) -> Self {
        Self::Call(e)
    }
}

impl Refusal {
    pub(super) fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Error { name, .. } if name == wanted)
    }

    pub(super) fn into_error(self, call: String) -> CallError {
        match self {
            Self::Error { name, words } => {
                CallError::new(call, io::Error::other(format!("systemd: {words} ({name})")))
            }
            Self::Call(e) => CallError::new(format!("{call}: {}", e.call), e.source),
        }
    }
}

/// A message that came.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    kind: u8,
    reply_to: u32,
    member: String,
    error: String,
    body: Vec<u8>,
}

const REPLY: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

impl Message {
    /// The text or path that it begins with.
    pub(super) fn first_text(&self) -> String {
        Reader { bytes: &self.body, at: 0 }.text().unwrap_or_default()
    }

    /// Of `JobRemoved` (number, path, unit, result): path and result.
    fn job(&self) -> Option<(String, String)> {
        let mut body = Reader { bytes: &self.body, at: 0 };
        body.number()?;
        let (job, _unit, result) = (body.text()?, body.text()?, body.text()?);
        Some((job, result))
    }
}

/// A connection to systemd.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    signals: VecDeque<Message>,
}

impl Bus {
    pub(super) fn connect() -> Result<Self, CallError> {
        let call = || format!("connect to systemd at {SOCKET}");
        let stream = UnixStream::connect(SOCKET).call(call)?;
        stream.set_read_timeout(Some(PATIENCE)).call(call)?;
        let mut bus = Self { stream, serial: 0, signals: VecDeque::new() };
        bus.authenticate().call(call)?;
        Ok(bus)
    }

    /// The kernel says who we are; the name is only said ("EXTERNAL", with the user id's digits in hexadecimal). All in one
    /// write: systemd 252 does not look at a message that it read together with the end of this, until more comes.
    fn authenticate(&mut self) -> io::Result<()> {
        let uid = nix::unistd::geteuid().to_string();
        let digits: String = uid.bytes().map(|b| format!("{b:02x}")).collect();
        self.stream.write_all(format!("\0AUTH EXTERNAL {digits}\r\nBEGIN\r\n").as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n") && answer.len() < 1024 {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            answer.push(byte[0]);
        }
        if !answer.starts_with(b"OK ") {
            let words = String::from_utf8_lossy(&answer).trim().to_owned();
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, words));
        }
        Ok(())
    }

    /// Call a method of the manager and wait for its answer.
    pub(super) fn call(
        &mut self,
        method: &str,
        body: impl std::borrow::Borrow<Body>,
    ) -> Result<Message, Refusal> {
        let call = || format!("call {method} of systemd");
        self.serial += 1;
        self.stream.write_all(&encode(self.serial, method, body.borrow())).call(call)?;
        loop {
            let message = self.next().call(call)?;
            match message.kind {
                REPLY if message.reply_to == self.serial => return Ok(message),
                ERROR if message.reply_to == self.serial => {
                    let words = message.first_text();
                    return Err(Refusal::Error { name: message.error, words });
                }
                SIGNAL => self.signals.push_back(message),
                _ => {}
            }
        }
    }

    /// Until systemd says that a job is done.
    pub(super) fn wait_for_job(&mut self, wanted: &str) -> Result<(), Refusal> {
        let call = || format!("wait for job {wanted} of systemd");
        loop {
            let message = match self.signals.pop_front() {
                Some(message) => message,
                None => self.next().call(call)?,
            };
            if message.member != "JobRemoved" {
                continue;
            }
            match message.job() {
                Some((job, result)) if job == wanted => {
                    return match result.as_str() {
                        "done" => Ok(()),
                        _ => Err(CallError::new(call(), io::Error::other(result)).into()),
                    };
                }
                _ => {}
            }
        }
    }

    fn next(&mut self) -> io::Result<Message> {
        let mut start = [0; 16];
        self.stream.read_exact(&mut start)?;
        let number = |at: usize| {
            let bytes = start[at..at + 4].try_into().unwrap_or_default();
            u32::from_le_bytes(bytes) as usize
        };
        let (body, fields) = (number(4), number(12));
        if start[0] != b'l' || body + fields > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a message"));
        }
        let header = (16 + fields).next_multiple_of(8);
        let mut bytes = start.to_vec();
        bytes.resize(header + body, 0);
        self.stream.read_exact(&mut bytes[16..])?;
        Ok(decode(&bytes, header, fields))
    }
}

/// A method call to the manager.
fn encode(serial: u32, method: &str, body: &Body) -> Vec<u8> {
    const CALL: u8 = 1;
    const VERSION: u8 = 1;
    let mut head = Body { bytes: vec![b'l', CALL, 0, VERSION], signature: String::new() };
    head = head.number(length(body.bytes.len())).number(serial);
    head = head.structs(|fields| {
        let fields = fields
            .field(1, "o", OBJECT)
            .field(2, "s", MANAGER)
            .field(3, "s", method)
            .field(6, "s", "org.freedesktop.systemd1");
        if body.signature.is_empty() { fields } else { fields.field(8, "g", &body.signature) }
    });
    let mut message = head.align(8).bytes;
    message.extend(&body.bytes);
    message
}

fn decode(bytes: &[u8], header: usize, fields: usize) -> Message {
    let mut message =
        Message { kind: bytes[1], body: bytes[header..].to_vec(), ..Message::default() };
    let mut reader = Reader { bytes: &bytes[..16 + fields], at: 16 };
    while let Some((code, kind)) = reader.field() {
        match (code, kind.as_str()) {
            (3, "s") => message.member = reader.text().unwrap_or_default(),
            (4, "s") => message.error = reader.text().unwrap_or_default(),
            (5, "u") => message.reply_to = reader.number().unwrap_or_default(),
            (_, "s" | "o") => drop(reader.text()),
            (_, "u") => drop(reader.number()),
            (_, "g") => drop(reader.signature()),
            // Nothing else stands in a header.
            _ => break,
        }
    }
    message
}

/// Values out of a message.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, size: usize, alignment: usize) -> Option<&[u8]> {
        let start = self.at.next_multiple_of(alignment);
        let end = start.checked_add(size)?;
        let found = self.bytes.get(start..end)?;
        self.at = end;
        Some(found)
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4, 4)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<String> {
        let length = self.number()? as usize;
        let text = String::from_utf8_lossy(self.take(length, 1)?).into_owned();
        self.take(1, 1)?;
        Some(text)
    }

    fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.take(1, 1)?[0]);
        let text = String::from_utf8_lossy(self.take(length, 1)?).into_owned();
        self.take(1, 1)?;
        Some(text)
    }

    fn field(&mut self) -> Option<(u8, String)> {
        let code = self.take(1, 8)?[0];
        Some((code, self.signature()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the specification's rules, by hand.
    #[test]
    fn a_call_on_the_wire() {
        let body = Body::default().text("a.scope").text("fail");
        let message = encode(7, "StopUnit", &body);
        assert_eq!(&message[..8], [b'l', 1, 0, 1, 21, 0, 0, 0]);
        assert_eq!(message.len() % 8, 21 % 8);
        assert_eq!(&message[8..12], [7, 0, 0, 0]);
        let wire = String::from_utf8_lossy(&message).into_owned();
        for part in
            ["\u{1}\u{1}o\0\u{19}\0\0\0/org/freedesktop/systemd1\0", "\u{8}\u{1}g\0\u{2}ss\0"]
        {
            assert!(wire.contains(part), "{part:?} in {wire:?}");
        }
        assert!(message.ends_with(b"\x07\0\0\0a.scope\0\x04\0\0\0fail\0"));
    }

    #[test]
    fn lists_and_values_are_aligned() {
        let body = Body::default().text("x").structs(|l| l.property("P", "t", |v| v.long(5)));
        let wanted = [
            1, 0, 0, 0, b'x', 0, 0, 0, // text, then four bytes of
            24, 0, 0, 0, 0, 0, 0, 0, // length, aligned to the struct
            1, 0, 0, 0, b'P', 0, 1, b't', 0, 0, 0, 0, 0, 0, 0, 0, // name, kind, up to eight
            5, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(body.bytes, wanted);
        // An empty list is aligned all the same.
        assert_eq!(Body::default().structs(|l| l).bytes, [0; 8]);
    }

    #[test]
    fn an_answer_is_read_back() {
        let text = Body::default().text("/org/job/1");
        let head = Body { bytes: vec![b'l', REPLY, 0, 1], signature: String::new() };
        let head = head.number(length(text.bytes.len())).number(1);
        let mut fields = 0;
        let head = head.structs(|l| {
            let start = l.bytes.len();
            let mut l = l.align(8);
            l.bytes.push(5);
            let l = l.signature_value("u").number(7);
            let l = l.field(8, "g", "o");
            fields = l.bytes.len() - start;
            l
        });
        let mut bytes = head.align(8).bytes;
        let header = bytes.len();
        bytes.extend(text.bytes);
        let message = decode(&bytes, header, fields);
        assert_eq!((message.kind, message.reply_to), (REPLY, 7));
        assert_eq!(message.first_text(), "/org/job/1");
    }

    #[test]
    fn cut_messages_do_not_panic() {
        let message = encode(1, "StopUnit", &Body::default().text("a"));
        for end in 16..message.len() {
            let _ = decode(&message[..end], end, end - 16);
        }
    }
}
