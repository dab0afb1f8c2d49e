use std::fmt;

/// Why a request was not carried out: its kind for programs, a sentence for people that says what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: Kind,
    pub message: String,
}

/// The kinds, each one of gRPC's status codes (grpc.io, "Status Codes").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request itself is wrong.
    Invalid,
    NotFound,
    Exists,
    /// Not in the state that it is in.
    State,
    /// Somebody else was faster.
    Conflict,
    /// There is too little of something.
    Exhausted,
    /// The caller may not.
    Denied,
    OutOfRange,
    Deadline,
    /// Not now.
    Unavailable,
    /// Not here: this node cannot.
    Unsupported,
    /// Ours.
    Internal,
}

impl Failure {
    /// Not more than a sentence may have: what was wrong is told back, whatever its length.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(hafen_protocol::sentence(&message).len());
        Self { kind, message }
    }

    /// An error with all that caused it.
    pub fn of(kind: Kind, error: &dyn std::error::Error) -> Self {
        Self { kind, message: chain(error) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// An error with all that caused it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
