//! What should happen to a task.
//!
//! ```text
//!   Staging --> Starting --> Running --> Killing --+
//!                  ^  |         |                  |
//!                  |  +---------+------------------+--> Releasing --> Ended
//!                  |                                        |
//!                  +--------------- Waiting <---------------+
//! ```
//!
//! [`Core::step`] takes what has happened and says what is to be done. It neither does it nor waits: there is no clock
//! (durations go out with [`Effect::Arm`], and come back as [`Event::Elapsed`]), no thread, and no file. So every schedule
//! of events, crashes and recoveries can be tried in a test.
//!
//! Nothing happens before it is written down: each change of a task goes out as [`Effect::Save`], and what follows from it
//! is held until [`Event::Saved`] says that it is on the disk. After a crash [`Core::recover`] goes on from the records
//! and from what is found on the machine.

mod core;
mod recovery;
mod task;
mod words;

pub use core::{Core, Effect, Event, Refused, Timer};
pub use recovery::{Evidence, Found, Recovered};
pub use task::{
    Attempt, BackOff, Definition, Exit, Next, Phase, Reason, Record, Refusal, Restart, State, Stop,
    TaskId, Update, Violation,
};
