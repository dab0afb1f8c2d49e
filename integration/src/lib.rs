//! The harness that every end-to-end test stands on.
//!
//! A test is a function that takes a [`Test`] and panics when something is wrong. It lives in a module of
//! `tests/suite/`, which lists its cases; `tests/suite/main.rs` collects the lists:
//!
//! ```text
//! use hafen_integration::{Case, Test, cases, json};
//!
//! pub(crate) fn trials() -> Vec<Case> {
//!     cases![
//!         exit_code_is_the_containers(Root, Busybox),
//!         memory_limit_kills(Root, Limit("memory")),
//!     ]
//! }
//!
//! fn exit_code_is_the_containers(t: &Test) {
//!     let bundle = t.bundle().args(["/inside", "exit", "7"]);
//!     t.oci().run(&t.id(), &bundle).code(7);
//! }
//!
//! fn memory_limit_kills(t: &Test) {
//!     let bundle = t.bundle().args(["/inside", "eat", "268435456"]).set("/linux/resources/memory/limit", json!(64 << 20));
//!     let (output, record) = t.oci().run_with_report(&t.id(), &bundle);
//!     output.code(128 + 9);
//!     assert!(record["usage"]["oom_kills"].as_u64() >= Some(1), "{record}");
//! }
//! ```
//!
//! # What a test gets
//!
//! - [`Test::bundle`]: a fresh [`Bundle`] in the test's own folder: `rootfs/` with busybox, a link for each of its
//!   applets, and the program `/inside` (see the `hafen-inside` crate); `config.json` like the one that `runc spec`
//!   makes, without a terminal, running `/inside facts`. It is edited through JSON pointers or closures, and
//!   written at once after each edit.
//! - [`Test::oci`]: the [`Oci`] runner of `hafen-oci` with a `--root` of its own; [`Test::peer`]: the same for another
//!   program with the same command line (`crun`, `runc`). Every call has a time limit and gives an
//!   [`Output`]; [`Oci::spawn`] gives a [`Running`] call. Output goes to files, so a container that stays behind holds no pipe.
//! - [`Test::id`]: a container id that nobody else uses. [`Test::dir`]: a folder that is removed afterwards. It is in
//!   `/var/tmp` (or `HAFEN_TEST_DIR`), which must be fit for an overlay's upper layer.
//! - [`Oci::facts`]: runs a bundle whose process is `/inside facts` and gives what it saw, as [`Facts`].
//! - [`cgroup`]: where this host's cgroup hierarchies are, and a process's folder and values in them.
//!
//! # The host is compared
//!
//! Before and after every test a [`Host`] snapshot is taken: mount table, cgroup folders of all hierarchies, `/run`,
//! network namespaces and interfaces, host name, scratch files, and this program's descendants (the suite is a
//! subreaper, so a container that was left behind shows up as its child; zombies are reaped). What differs
//! after a few seconds of grace fails the test, also one that passed, and is swept away as far as it is the test's.
//! Tests run one after another, and suites on one host wait for each other (a lock on `/var/tmp`), since
//! each would see the other's containers.
//!
//! # Needs
//!
//! A case names what it needs of the machine, see [`Need`]. When something is missing the case is *ignored* and the
//! line says what was missing. The variable `NEEDS` says where the suite runs: `native`, `vm`, `vm-user` or `all`;
//! a need which that environment promises to meet and does not is a *failure* ([`Need::promised_by`]).
//!
//! # Variables
//!
//! | variable | meaning |
//! |---|---|
//! | `HAFEN_OCI`, `HAFEN_INSIDE`, `HAFEN_REFERENCE`, `HAFEN_WITHOUT` | the programs; without it the one in the test program's target folder |
//! | `HAFEN_TEST_DIR` | where test folders are made (`/var/tmp`) |
//! | `NEEDS` | see above |
//! | `HAFEN_PATIENCE` | factor for time limits (1; 6 when `NEEDS` begins with `vm`) |

mod agent;
mod bundle;
mod case;
pub mod cgroup;
pub mod cluster;
mod daemon;
mod disk;
mod host;
pub mod keeper;
mod need;
mod oci;
pub mod person;
mod program;
mod receive;
mod terminal;
mod up;

pub use agent::{Agent, Answer};
pub use bundle::Bundle;
pub use case::{Case, Test, attempt, main};
pub use daemon::Daemon;
pub use disk::Disk;
pub use hafen_inside::{Facts, Mount, Status};
pub use host::Host;
pub use keeper::Kept;
pub use need::{Environment, Need};
pub use oci::{Call, Oci, Output, Running};
pub use program::{Program, patience, wait_until};
pub use receive::{Receiver, read_terminal};
pub use serde_json::{Value, json};
pub use terminal::Terminal;
pub use up::Up;

/// `cases![name(Need, Need(..)), ..]`: a [`Case`] for each function `name` of this module.
#[macro_export]
macro_rules! cases {
    ($($name:ident ( $($needs:tt)* )),* $(,)?) => {
        vec![$($crate::Case::new(
            $crate::case_name(module_path!(), stringify!($name)),
            $crate::needs![$($needs)*],
            $name,
        )),*]
    };
}

/// `needs![Root, Limit("memory"), Program("crun")]`: a list of [`Need`]s.
#[macro_export]
macro_rules! needs {
    ($($need:ident $(( $($argument:expr),* ))?),* $(,)?) => {
        vec![$($crate::Need::$need $(( $($argument),* ))?),*]
    };
}

/// A JSON object with fields of another one, in place of its own where it has them.
///
/// # Panics
/// The other one is no object.
#[must_use]
pub fn with(mut value: Value, more: &Value) -> Value {
    for (key, field) in more.as_object().expect("an object") {
        value[key] = field.clone();
    }
    value
}

/// `suite::limits` and `memory_max` -> `limits::memory_max`.
#[must_use]
pub fn case_name(module: &str, function: &str) -> String {
    let module = module.split_once("::").map_or(module, |(_, rest)| rest);
    format!("{module}::{function}")
}
