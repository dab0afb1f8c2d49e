//! Which commands were carried out, and with what result: one that comes again is answered, and not carried out.

use std::collections::{HashMap, VecDeque};

use hafen_protocol::v1;

/// Results that are remembered.
const MOST: usize = 1_024;

#[derive(Debug, Default)]
pub(super) struct Ledger {
    known: HashMap<String, Entry>,
    /// With results, the oldest first.
    over: VecDeque<String>,
}

#[derive(Debug)]
struct Entry {
    /// The last stream that asked for it.
    stream: u64,
    result: Option<v1::CommandResult>,
}

/// What is to be done with a command.
#[derive(Debug, PartialEq)]
pub(super) enum Known {
    No,
    /// Its result will be told; `here`: to this stream, without this repetition.
    UnderWay {
        here: bool,
    },
    Done(v1::CommandResult),
}

impl Ledger {
    /// A stream has brought a command.
    pub(super) fn begin(&mut self, command: &str, stream: u64) -> Known {
        let Some(entry) = self.known.get_mut(command) else {
            self.known.insert(command.to_owned(), Entry { stream, result: None });
            return Known::No;
        };
        let here = entry.stream == stream;
        entry.stream = stream;
        entry.result.clone().map_or(Known::UnderWay { here }, Known::Done)
    }

    /// It was carried out. Which stream is to be told?
    pub(super) fn finish(&mut self, result: &v1::CommandResult) -> Option<u64> {
        let entry = self.known.get_mut(&result.command).filter(|entry| entry.result.is_none())?;
        // A list is long, and only a moment's truth: whoever asks again gets another one.
        if result.tasks.is_some() {
            return self.known.remove(&result.command).map(|entry| entry.stream);
        }
        entry.result = Some(result.clone());
        let stream = entry.stream;
        self.over.push_back(result.command.clone());
        if self.over.len() > MOST
            && let Some(oldest) = self.over.pop_front()
        {
            self.known.remove(&oldest);
        }
        Some(stream)
    }

    /// It was thrown away, and comes anew if it comes again. Which stream waits for it?
    pub(super) fn forget(&mut self, command: &str) -> Option<u64> {
        self.known.remove(command).map(|entry| entry.stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(number: usize) -> v1::CommandResult {
        v1::CommandResult { command: format!("c{number}"), ..v1::CommandResult::default() }
    }

    #[test]
    fn a_command_is_carried_out_once() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.begin("c1", 1), Known::No);
        // On a later stream: who asked last is told.
        assert_eq!(ledger.begin("c1", 2), Known::UnderWay { here: false });
        assert_eq!(ledger.begin("c1", 2), Known::UnderWay { here: true });
        assert_eq!(ledger.finish(&done(1)), Some(2));
        assert_eq!(ledger.finish(&done(1)), None);
        assert_eq!(ledger.begin("c1", 3), Known::Done(done(1)));
        assert_eq!(ledger.begin("c2", 3), Known::No);
        assert_eq!(ledger.forget("c2"), Some(3));
        assert_eq!(ledger.begin("c2", 3), Known::No);
    }

    #[test]
    fn the_last_1024_results_are_remembered_and_what_is_under_way() {
        let mut ledger = Ledger::default();
        ledger.begin("first", 1);
        for number in 0..=MOST {
            ledger.begin(&format!("c{number}"), 1);
            ledger.finish(&done(number));
        }
        assert_eq!(ledger.begin("first", 1), Known::UnderWay { here: true });
        assert_eq!(ledger.begin("c0", 1), Known::No);
        assert_eq!(ledger.begin("c1", 1), Known::Done(done(1)));
        assert_eq!(ledger.known.len(), MOST + 2);
    }

    #[test]
    fn lists_are_made_anew() {
        let mut ledger = Ledger::default();
        ledger.begin("c1", 1);
        let tasks = Some(v1::Tasks::default());
        assert_eq!(ledger.finish(&v1::CommandResult { tasks, ..done(1) }), Some(1));
        assert_eq!(ledger.begin("c1", 1), Known::No);
    }
}
