//! The file that `floor` executes: a list of system calls with their arguments.
//!
//! The file is mapped at the fixed address [`BASE`], so every pointer in it is
//! written as the address it will have. Nothing is parsed, relocated or copied:
//! what `floor` measures is the kernel.

/// Where the file is mapped. Far from where Linux puts programs, libraries and
/// stacks, and within 47 bits, which x86-64 and the usual arm64 kernels have.
pub const BASE: u64 = 0x6000_0000_0000;
/// Bytes mapped; a file may be shorter.
pub const SIZE: usize = 256 * 1024;
/// Byte offset of the first [`Call`].
pub const CALLS: usize = 64;
/// Byte offset of strings, structures and result cells.
pub const DATA: usize = 64 * 1024;
/// First eight bytes of the file, and its version.
pub const MAGIC: u64 = u64::from_le_bytes(*b"floor\0\0\x01");

/// [`Call::flags`]: `EBUSY` means *not yet*: try again until it is something else.
pub const RETRY_BUSY: u32 = 1;

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Header {
    pub magic: u64,
    /// Number of calls.
    pub calls: u32,
    /// Index of the first call after the clone; the child goes on here.
    pub child: u32,
    /// Index of the first call that the child no longer makes; the parent goes on here.
    pub parent: u32,
    pub reserved: u32,
}

/// One system call.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Call {
    pub number: i64,
    /// A value, or, where [`Call::loads`] has the bit, the address of an `i32`.
    pub arguments: [u64; 6],
    /// Bit n: argument n is read from the `i32` at the given address.
    pub loads: u32,
    pub flags: u32,
    /// Address of the `i32` that the result goes to; 0 for nowhere.
    pub store: u64,
    /// Address of the NUL-terminated name used in error messages.
    pub label: u64,
    /// Written when the steps are timed: `CLOCK_MONOTONIC` in nanoseconds.
    pub began: u64,
    /// Written when the steps are timed; 0 if the call never returned.
    pub ended: u64,
    /// Written when the steps are timed: number of [`RETRY_BUSY`] rounds.
    pub retries: u64,
}

pub const CALL_SIZE: usize = size_of::<Call>();
/// How many calls fit between [`CALLS`] and [`DATA`].
pub const MOST_CALLS: usize = (DATA - CALLS) / CALL_SIZE;
