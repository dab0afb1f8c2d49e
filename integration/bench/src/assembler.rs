//! Writes the file that `floor` executes (see [`crate::format`]).

use crate::format::{BASE, CALL_SIZE, CALLS, Call, DATA, Header, MAGIC, MOST_CALLS, SIZE};

/// An argument of a system call.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    Value(u64),
    /// The `i32` that an earlier call left at this address.
    Cell(u64),
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self::Value(value)
    }
}

impl From<i32> for Arg {
    /// Sign-extended, as the C library does for the kernel.
    fn from(value: i32) -> Self {
        Self::Value(i64::from(value) as u64)
    }
}

impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Self::Value(u64::from(value))
    }
}

#[derive(Debug, Default)]
pub struct Assembler {
    calls: Vec<Call>,
    labels: Vec<String>,
    data: Vec<u8>,
    child: u32,
    parent: u32,
}

impl Assembler {
    /// Address of a NUL-terminated string.
    pub fn text(&mut self, text: &str) -> u64 {
        self.blob(&[text.as_bytes(), b"\0"].concat())
    }

    /// Address of these bytes, aligned to eight.
    pub fn blob(&mut self, bytes: &[u8]) -> u64 {
        let address = BASE + (DATA + self.data.len()) as u64;
        self.data.extend_from_slice(bytes);
        self.data.resize(self.data.len().next_multiple_of(8), 0);
        address
    }

    /// Address of an array of 64-bit words: pointers, or a structure of such words.
    pub fn words(&mut self, words: &[u64]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        self.blob(&bytes)
    }

    /// Address of a NULL-terminated array of strings.
    pub fn texts(&mut self, texts: &[String]) -> u64 {
        let mut addresses: Vec<u64> = texts.iter().map(|t| self.text(t)).collect();
        addresses.push(0);
        self.words(&addresses)
    }

    pub fn call(&mut self, label: impl Into<String>, number: i64, arguments: &[Arg]) -> &mut Call {
        let label = label.into();
        let mut call = Call { number, label: self.text(&label), ..Call::default() };
        for (n, argument) in arguments.iter().enumerate() {
            (call.arguments[n], call.loads) = match *argument {
                Arg::Value(value) => (value, call.loads),
                Arg::Cell(address) => (address, call.loads | 1 << n),
            };
        }
        self.labels.push(label);
        self.calls.push(call);
        self.calls.last_mut().expect("pushed just now")
    }

    /// A call whose result, a descriptor, later calls use.
    pub fn call_for(&mut self, label: impl Into<String>, number: i64, arguments: &[Arg]) -> Arg {
        let cell = self.words(&[0]);
        self.call(label, number, arguments).store = cell;
        Arg::Cell(cell)
    }

    /// The call before this point was the clone: here the child begins.
    pub fn child_begins(&mut self) {
        self.child = self.calls.len() as u32;
    }

    /// The child has replaced itself: here the parent goes on.
    pub fn parent_goes_on(&mut self) {
        self.parent = self.calls.len() as u32;
    }

    /// The names of the calls, in their order.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Indices of the calls that the child makes.
    pub fn child_calls(&self) -> std::ops::Range<usize> {
        self.child as usize..self.parent as usize
    }

    /// The bytes of the file.
    ///
    /// # Panics
    /// When there are more calls or data than the format has room for.
    pub fn finish(&self) -> Vec<u8> {
        assert!(self.calls.len() <= MOST_CALLS, "{} calls are too many", self.calls.len());
        let mut file = self.header();
        file.resize(CALLS, 0);
        self.calls.iter().for_each(|call| file.extend_from_slice(&encode(call)));
        file.resize(DATA, 0);
        file.extend_from_slice(&self.data);
        assert!(file.len() <= SIZE, "{} bytes are too many", file.len());
        file
    }

    fn header(&self) -> Vec<u8> {
        let header = Header {
            magic: MAGIC,
            calls: self.calls.len() as u32,
            child: self.child,
            parent: self.parent,
            reserved: 0,
        };
        let mut bytes = header.magic.to_ne_bytes().to_vec();
        for word in [header.calls, header.child, header.parent, header.reserved] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// Field by field in the order of the structure, which has no padding.
fn encode(call: &Call) -> Vec<u8> {
    let mut bytes = call.number.to_ne_bytes().to_vec();
    call.arguments.iter().for_each(|a| bytes.extend_from_slice(&a.to_ne_bytes()));
    bytes.extend_from_slice(&call.loads.to_ne_bytes());
    bytes.extend_from_slice(&call.flags.to_ne_bytes());
    for word in [call.store, call.label, call.began, call.ended, call.retries] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Start and end of every call, in nanoseconds, from a file that `floor --steps` ran.
pub fn times(file: &[u8], calls: usize) -> Vec<(u64, u64)> {
    let word = |at: usize| {
        file.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
    };
    let began = std::mem::offset_of!(Call, began);
    let ended = std::mem::offset_of!(Call, ended);
    let starts = (0..calls).map(|n| CALLS + n * CALL_SIZE);
    starts.map(|at| (word(at + began), word(at + ended))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_encoded_as_it_lies_in_memory() {
        let call = Call { number: 7, loads: 2, began: 11, ended: 13, ..Call::default() };
        let bytes = encode(&call);
        assert_eq!(bytes.len(), CALL_SIZE);
        assert_eq!(bytes[std::mem::offset_of!(Call, began)], 11);
        assert_eq!(bytes[std::mem::offset_of!(Call, loads)], 2);
    }

    #[test]
    fn pointers_are_addresses_in_the_mapping() {
        let mut plan = Assembler::default();
        let first = plan.text("abc");
        let second = plan.text("defg");
        assert_eq!(first, BASE + DATA as u64);
        assert_eq!(second, first + 8, "eight-byte alignment");
        let fd = plan.call_for("open", 2, &[first.into()]);
        let Arg::Cell(cell) = fd else { panic!("a result is a cell") };
        assert_eq!(plan.call("close", 3, &[fd]).loads, 1);
        assert_eq!(plan.calls[0].store, cell);
        assert_eq!(plan.finish()[DATA..DATA + 3], *b"abc");
    }

    #[test]
    fn times_are_read_back() {
        let mut plan = Assembler::default();
        plan.call("a", 1, &[]);
        *plan.call("b", 1, &[]) = Call { began: 5, ended: 9, ..Call::default() };
        assert_eq!(times(&plan.finish(), 2), [(0, 0), (5, 9)]);
    }
}
