use std::io;

use nix::errno::Errno;

/// A system call that failed: `call` names it with its arguments, `source` is the kernel's answer.
///
/// Printed with its source it reads as *write "max 100000" to /sys/fs/cgroup/a/cpu.max: Invalid argument*.
#[derive(Debug, thiserror::Error)]
#[error("{call}")]
pub struct CallError {
    pub call: String,
    pub source: io::Error,
}

impl CallError {
    pub fn new(call: impl Into<String>, source: io::Error) -> Self {
        Self { call: call.into(), source }
    }

    pub fn errno(call: impl Into<String>, errno: Errno) -> Self {
        Self::new(call, errno.into())
    }

    /// The kernel's error number; 0 where the error did not come from the kernel.
    #[must_use]
    pub fn raw(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }

    #[must_use]
    pub fn is(&self, errno: Errno) -> bool {
        self.raw() == errno as i32
    }
}

/// Names the call at the place where its arguments are known.
pub trait Context<T> {
    /// # Errors
    /// The same failure, with the call named.
    fn call(self, call: impl FnOnce() -> String) -> Result<T, CallError>;
}

impl<T> Context<T> for io::Result<T> {
    fn call(self, call: impl FnOnce() -> String) -> Result<T, CallError> {
        self.map_err(|e| CallError::new(call(), e))
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn call(self, call: impl FnOnce() -> String) -> Result<T, CallError> {
        self.map_err(|e| CallError::errno(call(), e))
    }
}
