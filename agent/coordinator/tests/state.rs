//! The state survives what happens to programs and files.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use hafen_coordinator::cluster::Change;
use hafen_coordinator::model::{Amounts, Drain, Key, Namespace, Record, Withdrawal};
use hafen_coordinator::state::Store;

const FOLDER: &str = "HAFEN_STATE_WRITER";
/// Records that are always saved together.
const TOGETHER: u64 = 20;

fn put(name: u64, value: u64) -> Change {
    let amounts = Amounts { memory: value, ..Amounts::default() };
    Change::Put(Record::Quota(Namespace(format!("n{name:03}")), amounts))
}

fn values(store: &Store) -> Vec<u64> {
    let value = |record: &Record| match record {
        Record::Quota(_, amounts) => amounts.memory,
        other => panic!("{other:?}"),
    };
    store.load().unwrap().iter().map(value).collect()
}

/// Not a test of its own: what the next one kills.
#[test]
fn writer() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let store = Store::open(&std::path::Path::new(&folder).join("state")).unwrap();
    let first = values(&store).first().map_or(1, |last| last + 1);
    for round in first.. {
        let changes: Vec<Change> = (0..TOGETHER).map(|name| put(name, round)).collect();
        store.save(&changes).unwrap();
        // On a line of its own, whatever the harness prints before.
        println!("\nsaved {round}");
    }
}

#[test]
fn a_killed_writer_loses_nothing_and_leaves_no_half() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..8_u64 {
        let saved = run_and_kill(folder.path(), 3 + round * 5);
        let store = Store::open(&folder.path().join("state")).unwrap();
        let values = values(&store);
        assert_eq!(values.len() as u64, TOGETHER);
        assert!(values.iter().all(|value| *value == values[0]), "half a save: {values:?}");
        assert!(values[0] >= saved, "{saved} was saved, {} is there", values[0]);
    }
}

/// The last round that it said was saved.
fn run_and_kill(folder: &std::path::Path, after: u64) -> u64 {
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(writer.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut rounds = lines.filter_map(|line| line.strip_prefix("saved ")?.parse::<u64>().ok());
    let last = rounds.nth(after as usize).expect("it writes");
    writer.kill().unwrap();
    let last = rounds.last().unwrap_or(last);
    writer.wait().unwrap();
    last
}

/// What is torn is refused, or is what was there before: never something in between.
#[test]
fn a_torn_file_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    {
        let store = Store::open(&path).unwrap();
        for round in 1..=3 {
            let changes: Vec<Change> = (0..TOGETHER).map(|name| put(name, round)).collect();
            store.save(&changes).unwrap();
        }
    }
    let whole = std::fs::read(&path).unwrap();
    for part in [0, 1, 100, whole.len() / 2, whole.len() - 4096] {
        std::fs::write(&path, &whole[..part]).unwrap();
        let opened = std::panic::catch_unwind(|| Store::open(&path).map(|store| values(&store)));
        if let Ok(Ok(values)) = opened {
            assert!(values.iter().all(|value| *value == values[0]), "{part}: {values:?}");
        }
    }
}

#[test]
fn what_is_erased_is_gone_and_a_second_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let store = Store::open(&path).unwrap();
    store.save(&[put(1, 1), put(2, 2)]).unwrap();
    store.save(&[Change::Erase(Key::Quota(Namespace("n001".into())))]).unwrap();
    assert_eq!(values(&store), [2]);
    assert!(Store::open(&path).is_err());
    drop(store);
    assert_eq!(values(&Store::open(&path).unwrap()), [2]);
}

/// As they were written before there were pods, and before a job was kept as it was given.
#[test]
fn records_of_before_are_read() {
    let allocation = r#"{"allocation":{"id":1099511627777,"job":"web","namespace":"default","version":1,"slot":{"index":0},"node":"n1",
        "request":{"cpu_milli":500,"memory":0,"disk":0,"pids":0},"ports":[80],"priority":0,"revocable":false,"fence":null,
        "phase":{"stopping":"outdated"},"confirmed":true,"sequence":3,"failures":1}}"#;
    let Record::Allocation(read) = serde_json::from_str(allocation).unwrap() else { panic!() };
    assert!(read.members.is_empty());
    assert_eq!((read.task().as_str(), read.sequence), ("a10000000001", 3));
    let job = r#"{"job":{"id":"web","version":1,"versions":{"1":{"id":"web","namespace":"default","kind":{"replicas":2},
        "template":{"payload":[1,2],"is_pod":false,"request":{"cpu_milli":500}},"priority":0,"preempts":false,
        "update":{"most_parallel":1,"healthy_within":{"secs":300,"nanos":0},"roll_back":true},
        "reschedule":{"first":{"secs":1,"nanos":0},"most":{"secs":300,"nanos":0}},"grace":{"secs":0,"nanos":0}}},
        "stable":null,"rollout":"underWay","stopped":false,"purged":false}}"#;
    let Record::Job(read) = serde_json::from_str(job).unwrap() else { panic!() };
    assert!(read.job().source.is_empty() && read.job().template.members.is_empty());
    let node = r#"{"node":{"id":"n1","instance":"i","incarnation":2,"connection":1,"machine":{"attributes":{},"features":[],
        "allocatable":{"cpu_milli":0,"memory":0,"disk":0,"pids":0}},"draining":true}}"#;
    let Record::Node(read) = serde_json::from_str(node).unwrap() else { panic!() };
    assert_eq!(read.drain, Drain { on: true, ..Drain::default() });
}

#[test]
fn withdrawals_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let holder = "hafen:user:ann".to_owned();
    let one = |least, serials: &[&str]| {
        let serials = serials.iter().map(ToString::to_string).collect();
        Record::Withdrawal(Withdrawal { holder: holder.clone(), least, serials })
    };
    let last = one(2, &["a1b"]);
    Store::open(&path)
        .unwrap()
        .save(&[Change::Put(one(1, &[])), Change::Put(last.clone())])
        .unwrap();
    assert_eq!(Store::open(&path).unwrap().load().unwrap(), [last]);
    // As it was written before single ones were known.
    let before = r#"{"withdrawal":{"holder":"hafen:user:ann","least":1}}"#;
    assert_eq!(serde_json::from_str::<Record>(before).unwrap(), one(1, &[]));
    assert_eq!(serde_json::to_string(&one(1, &[])).unwrap(), before);
}
