//! What is said to a node, and what it answers: messages and services of the `.proto` files beside this crate, which
//! are the reference. Every message has the JSON of proto3 as well.

pub mod change;
pub mod time;

/// Version 1.
#[expect(clippy::large_enum_variant, reason = "generated, and moved about rarely")]
pub mod v1 {
    tonic::include_proto!("hafen.v1");
    include!(concat!(env!("OUT_DIR"), "/hafen.v1.serde.rs"));

    impl Amounts {
        /// What more does not say stays as it is.
        pub fn add(&mut self, more: &Self) {
            let add = |sum: &mut Option<u64>, more: Option<u64>| {
                if let Some(more) = more {
                    *sum = Some(sum.unwrap_or_default().saturating_add(more));
                }
            };
            add(&mut self.cpu_milli, more.cpu_milli);
            add(&mut self.memory, more.memory);
            add(&mut self.swap, more.swap);
            add(&mut self.pids, more.pids);
            add(&mut self.disk, more.disk);
        }
    }

    impl Capacity {
        /// What processes of a node may wait for, by the names that `Pressure.of` has.
        pub const WAITS: [&'static str; 3] = ["cpu", "memory", "io"];

        /// Percent of the time in which some process waited for each of [`Self::WAITS`], and in which all did.
        #[must_use]
        pub const fn waits(&self) -> [(&'static str, Option<f64>, Option<f64>); 3] {
            let [cpu, memory, io] = Self::WAITS;
            [
                (cpu, self.cpu_pressure, None),
                (memory, self.memory_pressure, self.memory_pressure_full),
                (io, self.io_pressure, self.io_pressure_full),
            ]
        }
    }

    /// Without the content.
    impl std::fmt::Debug for Secret {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            let Self { destination, content, mode, uid, gid } = self;
            f.debug_struct("Secret")
                .field("destination", destination)
                .field("content", &format_args!("({} bytes)", content.len()))
                .field("mode", &format_args!("{mode:#o}"))
                .field("uid", uid)
                .field("gid", gid)
                .finish()
        }
    }
}

/// Bytes of a sentence (docs/protocol.md, "Limits").
const SENTENCE: usize = 4 << 10;

/// As much of a sentence as may be sent.
#[must_use]
pub fn sentence(text: &str) -> &str {
    let mut end = text.len().min(SENTENCE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// All messages and services, for reflection and for clients without the `.proto` files (a `FileDescriptorSet`).
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
