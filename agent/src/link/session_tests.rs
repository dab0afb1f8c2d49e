use hafen_protocol::v1::command;
use proptest::prelude::*;

use super::*;
use crate::time::span;

const EPOCH: u64 = 7;

fn at(millis: u64) -> BootTime {
    BootTime(Duration::from_secs(1_000) + Duration::from_millis(millis))
}

fn from_master(number: u64, heard: u64, what: from_master::What) -> v1::FromMaster {
    v1::FromMaster { number, heard, epoch: EPOCH, what: Some(what) }
}

fn ping() -> from_master::What {
    from_master::What::Ping(v1::Ping {})
}

fn welcome() -> v1::Welcome {
    let lease = Some(span(Duration::from_secs(5)));
    v1::Welcome { version: 1, lease, ..v1::Welcome::default() }
}

fn command(id: &str, epoch: u64) -> v1::Command {
    let what = Some(command::What::Drain(v1::Drain::default()));
    v1::Command { id: id.to_owned(), epoch, what }
}

fn opened() -> Session {
    let (session, first) = Session::open(v1::Hello::default(), 5, at(0));
    assert_eq!((first.number, first.heard), (1, 0));
    session
}

fn welcomed() -> Session {
    let mut session = opened();
    let acts = session.take(from_master(1, 1, from_master::What::Welcome(welcome())), at(100));
    assert_eq!(acts.unwrap(), [Act::Epoch(EPOCH), Act::Heard(at(0)), Act::Welcomed(welcome())]);
    session
}

fn told(session: &mut Session, now: BootTime) -> Vec<from_agent::What> {
    let all = std::iter::from_fn(|| session.next(now));
    all.filter_map(|message| message.what).collect()
}

#[test]
fn nothing_is_said_before_the_welcome() {
    let mut session = opened();
    session.say(from_agent::What::Drain(v1::DrainWish::default()));
    assert_eq!(session.next(at(9_000)), None);
    assert_eq!(session.check(at(9_999)), Ok(()));
    assert_eq!(session.check(at(10_000)), Err(End::Silence(PATIENCE)));
}

/// What a master may not do, and what becomes of it.
#[test]
fn faults() {
    use from_master::What;
    let with = |change: fn(&mut v1::Welcome)| {
        let mut welcome = welcome();
        change(&mut welcome);
        from_master(1, 1, What::Welcome(welcome))
    };
    let refused = v1::Refused { kind: 2, ..v1::Refused::default() };
    let old = v1::FromMaster { epoch: 4, ..with(|_| {}) };
    let before: Vec<(v1::FromMaster, &str)> = vec![
        (from_master(1, 1, ping()), "the first message is no Welcome"),
        (v1::FromMaster { what: None, ..with(|_| {}) }, "the first message is no Welcome"),
        (v1::FromMaster { number: 2, ..with(|_| {}) }, "message 2 came after 0"),
        (v1::FromMaster { heard: 2, ..with(|_| {}) }, "message 2 is said to be heard, and 1 were"),
        (with(|welcome| welcome.version = 2), "version 2 was not offered"),
        (with(|welcome| welcome.lease = None), "a lease of 0.0 s"),
        (with(|w| w.lease = Some(span(Duration::from_secs(601)))), "a lease of 601.0 s"),
        (from_master(1, 1, What::Refused(refused)), "refused: KIND_IDENTITY"),
        (from_master(1, 1, What::Redirect(v1::Redirect::default())), "another master"),
        (old, "the master is of epoch 4, and 5 was seen"),
    ];
    for (message, wanted) in before {
        let end = opened().take(message, at(1)).unwrap_err().to_string();
        assert!(end.contains(wanted), "{wanted:?}: {end}");
    }
    let after = [
        (from_master(2, 2, ping()), "message 2 is said to be heard, and 1 were sent"),
        (from_master(1, 1, ping()), "message 1 came after 1"),
        (from_master(3, 1, ping()), "message 3 came after 1"),
        (from_master(2, 1, What::Welcome(welcome())), "a second Welcome"),
    ];
    for (message, wanted) in after {
        let end = welcomed().take(message, at(200)).unwrap_err().to_string();
        assert!(end.contains(wanted), "{wanted:?}: {end}");
    }
    // A message of a kind that is not known yet.
    let unknown = v1::FromMaster { what: None, ..from_master(2, 1, ping()) };
    assert_eq!(welcomed().take(unknown, at(200)), Ok(vec![]));
}

#[test]
fn the_lease_counts_from_what_was_sent() {
    let mut session = welcomed();
    // A fifth of the lease after the Hello.
    assert_eq!((session.due(), session.next(at(999))), (at(1_000), None));
    let sent = session.next(at(1_000)).unwrap();
    assert_eq!((sent.number, sent.heard), (2, 1));
    assert!(matches!(sent.what, Some(from_agent::What::Ping(_))));
    session.next(at(2_000)).unwrap();
    assert_eq!(session.take(from_master(2, 1, ping()), at(2_500)), Ok(vec![]));
    assert_eq!(session.until(), at(5_000));
    let acts = session.take(from_master(3, 2, ping()), at(4_900));
    assert_eq!(acts, Ok(vec![Act::Heard(at(1_000))]));
    assert_eq!(session.until(), at(6_000));
    // It came, and was kept waiting: by the network, or because the machine slept.
    let command = from_master::What::Command(command("c", EPOCH));
    let late = session.take(from_master(4, 3, command), at(6_000));
    assert_eq!(late, Err(End::Silence(Duration::from_secs(5))));
}

#[test]
fn nobody_lower_is_obeyed() {
    use from_master::What;
    let mut session = welcomed();
    let said = |number, epoch, command| v1::FromMaster {
        epoch,
        ..from_master(number, 1, What::Command(command))
    };
    assert_eq!(session.take(said(2, 6, command("old", 6)), at(1)), Ok(vec![]));
    assert_eq!(session.take(said(3, 7, command("decided before", 6)), at(1)), Ok(vec![]));
    assert_eq!(session.take(said(4, 7, command("too new", 8)), at(1)), Ok(vec![]));
    assert_eq!(session.take(said(5, 7, command("", 7)), at(1)), Ok(vec![]));
    let unknown = v1::Command { what: None, ..command("unknown", 7) };
    assert_eq!(session.take(said(6, 7, unknown), at(1)), Ok(vec![]));
    let fine = command("fine", 7);
    assert_eq!(session.take(said(7, 7, fine.clone()), at(1)), Ok(vec![Act::Carry(fine.into())]));
    let taken_over = session.take(said(8, 9, command("later", 9)), at(1)).unwrap();
    assert_eq!(taken_over, [Act::Epoch(9), Act::Carry(command("later", 9).into())]);
    use failure::Kind;
    let results = told(&mut session, at(2)).into_iter().map(|what| match what {
        from_agent::What::Result(result) => (result.command, result.failure.unwrap().kind()),
        other => panic!("{other:?}"),
    });
    let wanted = [
        ("old", Kind::Fenced),
        ("decided before", Kind::Fenced),
        ("too new", Kind::Invalid),
        ("", Kind::Invalid),
        ("unknown", Kind::Unsupported),
    ];
    assert_eq!(results.collect::<Vec<_>>(), wanted.map(|(id, kind)| (id.to_owned(), kind)));
}

#[test]
fn reports_wait_for_all_else_and_the_latest_holds() {
    use from_agent::What;
    let mut session = welcomed();
    let report = |memory| v1::NodeReport {
        used_firm: Some(v1::Amounts { memory: Some(memory), ..v1::Amounts::default() }),
        ..v1::NodeReport::default()
    };
    session.report(report(1));
    session.report(report(2));
    let update = What::Update(v1::TaskUpdate::default());
    session.say(update.clone());
    session.say(What::Leaving(v1::Leaving::default()));
    session.say(update.clone());
    let all = told(&mut session, at(1));
    assert_eq!(all, [update, What::Leaving(v1::Leaving::default())]);
    assert!(session.is_over() && !session.has_news(at(4_000)));
    let mut session = welcomed();
    session.report(report(1));
    session.report(report(2));
    assert_eq!(told(&mut session, at(1)), [What::Report(report(2))]);
    // What has ended is said once, so it outlives a report that was not sent.
    let pressed = |all: &[(&str, bool)]| {
        let one = |(of, ended): &(&str, bool)| v1::Pressure {
            of: (*of).to_owned(),
            ended: *ended,
            ..v1::Pressure::default()
        };
        v1::NodeReport { pressure: all.iter().map(one).collect(), ..report(3) }
    };
    session.report(pressed(&[("cpu", true), ("memory", false), ("io", true)]));
    session.report(pressed(&[("io", false)]));
    let wanted = pressed(&[("io", false), ("cpu", true)]);
    assert_eq!(told(&mut session, at(2)), [What::Report(wanted)]);
}

#[test]
fn a_master_that_orders_without_end_is_made_to_wait() {
    let mut session = welcomed();
    for number in 0..MOST_COMMANDS as u64 {
        assert!(!session.is_full());
        let what = from_master::What::Command(command("c", EPOCH));
        session.take(from_master(number + 2, 1, what), at(1)).unwrap();
    }
    assert!(session.is_full());
    session.answer(words::result("c", Ok(None)));
    assert!(!session.is_full());
}

/// A master as docs/protocol.md has it, and a network that keeps what it carries for as long as it likes.
struct World {
    now: u64,
    session: Session,
    up: VecDeque<v1::FromAgent>,
    down: VecDeque<v1::FromMaster>,
    /// Of the master: messages sent and taken in, and when the last one came.
    sent: u64,
    taken: u64,
    received: u64,
    is_open: bool,
}

impl World {
    fn new() -> Self {
        let (session, hello) = Session::open(v1::Hello::default(), 0, at(0));
        Self {
            now: 0,
            session,
            up: VecDeque::from([hello]),
            down: VecDeque::new(),
            sent: 0,
            taken: 0,
            received: 0,
            is_open: true,
        }
    }

    fn master_says(&mut self, what: from_master::What) {
        // Its lease begins with the Hello, which it receives first of all.
        if self.is_open && self.taken > 0 {
            self.sent += 1;
            self.down.push_back(from_master(self.sent, self.taken, what));
        }
    }

    fn master_takes(&mut self) {
        if !self.is_open {
            return;
        }
        let Some(message) = self.up.pop_front() else { return };
        assert_eq!(message.number, self.taken + 1);
        self.taken = message.number;
        self.received = self.now;
        let first = self.taken == 1;
        self.master_says(if first { from_master::What::Welcome(welcome()) } else { ping() });
    }

    /// `Ok(true)`: a command is carried out.
    fn agent_takes(&mut self) -> Result<bool, End> {
        let Some(message) = self.down.pop_front() else { return Ok(false) };
        let acts = self.session.take(message, at(self.now))?;
        Ok(acts.iter().any(|act| matches!(act, Act::Carry(_))))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// However long messages are under way, no command is carried out after the master has given the node up.
    #[test]
    fn nothing_is_carried_out_after_the_lease_of_the_master(
        schedule in prop::collection::vec((0_u8..8, 0_u64..2_500), 0..200),
    ) {
        let mut world = World::new();
        for (what, wait) in schedule {
            world.now += if what < 2 { wait } else { wait / 100 };
            if world.taken > 0 && world.now - world.received >= 5_000 {
                world.is_open = false;
            }
            match what {
                0..=2 => world.master_takes(),
                3 => world.master_says(from_master::What::Command(command("c", EPOCH))),
                4 | 5 => world.up.extend(world.session.next(at(world.now))),
                _ => match world.agent_takes() {
                    Ok(carried) => prop_assert!(!carried || world.is_open, "{}", world.now),
                    Err(End::Silence(_)) => break,
                    Err(other) => prop_assert!(false, "{other}"),
                },
            }
        }
    }
}
