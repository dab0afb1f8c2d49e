//! What placement must never do, on random nodes and tasks.

use std::collections::{BTreeMap, BTreeSet};

use hafen_coordinator::assign::{Outcome, Pool, Request, assign};
use hafen_coordinator::model::{
    Affinity, AllocId, Amounts, Constraint, Job, JobId, Kind, Machine, NodeId, Rules, Spread,
    Template, Test,
};
use proptest::prelude::*;

fn amounts(cpu_milli: u64, mebibytes: u64) -> Amounts {
    Amounts { cpu_milli, memory: mebibytes << 20, disk: 1 << 20, pids: 1 }
}

fn machine(cpu_milli: u64, mebibytes: u64, zone: u8, disk: &str) -> Machine {
    let attributes = [("zone", format!("z{zone}")), ("disk", disk.to_owned())];
    let allocatable = Amounts { disk: 1 << 40, pids: 1000, ..amounts(cpu_milli, mebibytes) };
    Machine {
        attributes: attributes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        features: BTreeSet::new(),
        allocatable,
    }
}

fn node(n: usize) -> NodeId {
    NodeId(format!("n{n:03}"))
}

fn machines() -> impl Strategy<Value = Vec<Machine>> {
    let sizes =
        prop::sample::select(vec![(2000, 4096), (4000, 8192), (8000, 8192), (16000, 65536)]);
    let disk = prop::sample::select(vec!["ssd", "hdd"]);
    let one = (sizes, 0_u8..3, disk).prop_map(|((c, m), zone, disk)| machine(c, m, zone, disk));
    prop::collection::vec(one, 1..30)
}

#[derive(Debug, Clone)]
struct Wanted {
    job: JobId,
    template: Template,
    priority: i32,
    preempts: bool,
}

fn rules() -> impl Strategy<Value = Rules> {
    let constraint = prop_oneof![
        4 => Just(Vec::new()),
        1 => Just(vec![Constraint { attribute: "disk".into(), test: Test::In(vec!["ssd".into()]) }]),
        1 => Just(vec![Constraint { attribute: "zone".into(), test: Test::NotIn(vec!["z1".into()]) }]),
        1 => Just(vec![Constraint { attribute: "gpu".into(), test: Test::Present }]),
    ];
    let spread = prop_oneof![
        3 => Just(None),
        1 => Just(Some(Spread { attribute: "zone".into(), most_uneven: Some(1) })),
        1 => Just(Some(Spread { attribute: "node".into(), most_uneven: None })),
    ];
    let ssd = Constraint { attribute: "disk".into(), test: Test::In(vec!["ssd".into()]) };
    let affinities = prop_oneof![
        Just(Vec::new()),
        (-5_i32..5).prop_map(move |weight| vec![Affinity { constraint: ssd.clone(), weight }]),
    ];
    (constraint, spread, affinities).prop_map(|(constraints, spread, affinities)| Rules {
        constraints,
        spread,
        affinities,
        ..Rules::default()
    })
}

fn wanted() -> impl Strategy<Value = Vec<Wanted>> {
    let ports = prop_oneof![4 => Just(BTreeSet::new()), 1 => Just(BTreeSet::from([80_u16]))];
    let most = prop_oneof![4 => Just(None), 1 => (1_u32..3).prop_map(Some)];
    let one =
        (rules(), 100_u64..5000, 64_u64..9000, ports, most, 0_i32..4, any::<bool>(), 1_usize..12);
    let group =
        one.prop_map(|(rules, cpu, memory, ports, most_per_node, priority, preempts, count)| {
            let request = amounts(cpu, memory);
            let template = Template { request, ports, rules, most_per_node, ..Template::default() };
            (Wanted { job: JobId(String::new()), template, priority, preempts }, count)
        });
    prop::collection::vec(group, 1..12).prop_map(|groups| {
        let mut all = Vec::new();
        for (n, (wanted, count)) in groups.into_iter().enumerate() {
            let job = JobId(format!("j{n}"));
            all.extend((0..count).map(|_| Wanted { job: job.clone(), ..wanted.clone() }));
        }
        all
    })
}

fn pool_of(machines: &[Machine]) -> Pool {
    let mut pool = Pool::default();
    for (n, machine) in machines.iter().enumerate() {
        pool.set_node(&node(n), machine, true);
    }
    pool
}

fn requests(wanted: &[Wanted]) -> Vec<Request<'_>> {
    (1..).zip(wanted).map(|(n, one)| request(n, one)).collect()
}

fn request(id: u64, one: &Wanted) -> Request<'_> {
    let Wanted { job, template, priority, preempts } = one;
    Request { id: AllocId(id), job, template, priority: *priority, preempts: *preempts, node: None }
}

/// A second bookkeeping, as simple as can be.
#[derive(Debug, Default)]
struct Books {
    on: BTreeMap<AllocId, NodeId>,
}

impl Books {
    fn check(&self, machines: &[Machine], wanted: &[Wanted]) {
        for (n, machine) in machines.iter().enumerate() {
            let here: Vec<&Wanted> = self.here(&node(n), wanted);
            let sum =
                here.iter().fold(Amounts::default(), |sum, one| sum.plus(one.template.request));
            assert!(sum.fits(&machine.allocatable), "{n}: {sum:?} on {machine:?}");
            let ports: Vec<_> = here.iter().flat_map(|one| &one.template.ports).collect();
            assert_eq!(ports.len(), ports.iter().collect::<BTreeSet<_>>().len(), "a port twice");
            for one in &here {
                let broken =
                    one.template.rules.constraints.iter().find(|c| !c.holds(&machine.attributes));
                assert_eq!(broken, None);
                let same = here.iter().filter(|other| other.job == one.job).count();
                assert!(one.template.most_per_node.is_none_or(|most| same <= most as usize));
            }
        }
    }

    fn here<'a>(&self, node: &NodeId, wanted: &'a [Wanted]) -> Vec<&'a Wanted> {
        let here = self.on.iter().filter(|(_, on)| *on == node);
        here.map(|(id, _)| &wanted[id.0 as usize - 1]).collect()
    }

    /// Of one job, over the zones that its rules allow.
    fn zones(
        &self,
        machines: &[Machine],
        wanted: &[Wanted],
        one: &Wanted,
    ) -> BTreeMap<String, u32> {
        let allows = |machine: &&Machine| {
            one.template.rules.constraints.iter().all(|c| c.holds(&machine.attributes))
        };
        let zones =
            machines.iter().filter(allows).map(|machine| (machine.attributes["zone"].clone(), 0));
        let mut zones: BTreeMap<String, u32> = zones.collect();
        for (id, on) in &self.on {
            if wanted[id.0 as usize - 1].job == one.job {
                let n: usize = on.0[1..].parse().unwrap();
                *zones.get_mut(&machines[n].attributes["zone"]).unwrap() += 1;
            }
        }
        zones
    }
}

fn fits_somewhere(books: &Books, machines: &[Machine], wanted: &[Wanted], one: &Wanted) -> bool {
    machines.iter().enumerate().any(|(n, machine)| {
        let here = books.here(&node(n), wanted);
        let sum = here.iter().fold(one.template.request, |sum, one| sum.plus(one.template.request));
        let same = here.iter().filter(|other| other.job == one.job).count();
        sum.fits(&machine.allocatable)
            && one.template.rules.constraints.iter().all(|c| c.holds(&machine.attributes))
            && here.iter().all(|other| other.template.ports.is_disjoint(&one.template.ports))
            && one.template.most_per_node.is_none_or(|most| same < most as usize)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// No node is over-allocated, no rule broken; what is not placed fits nowhere; the same input has the same outcome.
    #[test]
    fn a_batch(machines in machines(), mut wanted in wanted()) {
        wanted.iter_mut().for_each(|one| one.preempts = false);
        let requests = requests(&wanted);
        let outcomes = assign(&mut pool_of(&machines), &requests);
        prop_assert_eq!(&outcomes, &assign(&mut pool_of(&machines), &requests));
        let mut books = Books::default();
        for (request, outcome) in requests.iter().zip(&outcomes) {
            if let Outcome::Placed(node) = outcome {
                books.on.insert(request.id, node.clone());
            }
        }
        books.check(&machines, &wanted);
        for (one, outcome) in wanted.iter().zip(&outcomes) {
            if let Outcome::Nowhere(why) = outcome {
                prop_assert_eq!(why.0.values().sum::<u32>(), machines.len() as u32);
                let spread = one.template.rules.spread.as_ref().is_some_and(|s| s.attribute == "zone");
                prop_assert!(spread || !fits_somewhere(&books, &machines, &wanted, one), "{}", why);
            }
            if one.template.rules.spread.as_ref().is_some_and(|s| s.most_uneven == Some(1)) {
                let zones = books.zones(&machines, &wanted, one);
                let (least, most) = (zones.values().min(), zones.values().max());
                prop_assert!(most.unwrap_or(&0) - least.unwrap_or(&0) <= 1, "{zones:?}");
            }
        }
    }

    /// One after the other, with ends in between: indexes stay right. Whoever is pushed out has a lower priority, and what
    /// pushed it out fits once it is gone.
    #[test]
    fn a_stream(machines in machines(), wanted in wanted(), ends in prop::collection::vec(any::<u8>(), 0..60)) {
        let mut pool = pool_of(&machines);
        let mut books = Books::default();
        for (n, one) in wanted.iter().enumerate() {
            let request = request(n as u64 + 1, one);
            let outcome = assign(&mut pool, &[request]).remove(0);
            let Some(node) = settle(&mut pool, &mut books, &machines, &wanted, &request, outcome) else { continue };
            books.on.insert(request.id, node);
            books.check(&machines, &wanted);
            if ends.get(n).is_some_and(|end| end % 3 == 0) {
                end_one(&mut pool, &mut books, ends[n]);
            }
            if ends.get(n).is_some_and(|end| end % 7 == 0) {
                close_one(&mut pool, &machines, ends[n]);
            }
        }
    }

    /// Tasks that are all the same: as many as any order of nodes would take.
    #[test]
    fn of_one_kind(machines in machines(), cpu in 100_u64..3000, memory in 100_u64..3000) {
        let request = amounts(cpu, memory);
        let template = Template { request, ..Template::default() };
        let one = Wanted { job: JobId("j".into()), template, priority: 0, preempts: false };
        let room: u64 = machines.iter().map(|machine| {
            let all = machine.allocatable;
            (all.cpu_milli / request.cpu_milli).min(all.memory / request.memory).min(all.pids)
        }).sum();
        let wanted = vec![one; room as usize + 5];
        let outcomes = assign(&mut pool_of(&machines), &requests(&wanted));
        let placed = outcomes.iter().filter(|o| matches!(o, Outcome::Placed(_))).count();
        prop_assert_eq!(placed as u64, room);
    }
}

/// Carry out what a request needs, until it is placed or there is no room.
fn settle(
    pool: &mut Pool,
    books: &mut Books,
    machines: &[Machine],
    wanted: &[Wanted],
    request: &Request<'_>,
    outcome: Outcome,
) -> Option<NodeId> {
    match outcome {
        Outcome::Placed(node) => Some(node),
        Outcome::Nowhere(why) => {
            let one = &wanted[request.id.0 as usize - 1];
            let spread = one.template.rules.spread.as_ref().is_some_and(|s| s.attribute == "zone");
            assert!(spread || !fits_somewhere(books, machines, wanted, one), "{why}");
            None
        }
        Outcome::Waits(_) => panic!("nothing is leaving"),
        Outcome::Preempts { node, victims } => {
            assert!(request.preempts && !victims.is_empty());
            for victim in &victims {
                assert!(wanted[victim.0 as usize - 1].priority < request.priority);
                assert_eq!(books.on.remove(victim), Some(node.clone()));
            }
            spared_by_none(books, machines, wanted, request, &node, &victims);
            let waits = assign(pool, std::slice::from_ref(request)).remove(0);
            assert_eq!(waits, Outcome::Waits(node.clone()), "nobody else goes meanwhile");
            for victim in victims {
                pool.release(victim, &node);
            }
            let after = assign(pool, std::slice::from_ref(request)).remove(0);
            let Outcome::Placed(on) = after else { panic!("no room was made: {after:?}") };
            Some(on)
        }
    }
}

/// With one of the victims less there would not be room.
fn spared_by_none(
    books: &Books,
    machines: &[Machine],
    wanted: &[Wanted],
    request: &Request<'_>,
    on: &NodeId,
    victims: &[AllocId],
) {
    let n: usize = on.0[1..].parse().unwrap();
    for victim in victims {
        let spared = &wanted[victim.0 as usize - 1].template;
        let here = books.here(on, wanted);
        let all = request.template.request.plus(spared.request);
        let sum = here.iter().fold(all, |sum, one| sum.plus(one.template.request));
        let fits = sum.fits(&machines[n].allocatable);
        assert!(
            !fits || !spared.ports.is_disjoint(&request.template.ports),
            "{victim} for nothing"
        );
    }
}

fn end_one(pool: &mut Pool, books: &mut Books, choice: u8) {
    let Some(id) = books.on.keys().nth(usize::from(choice) % books.on.len().max(1)).copied() else {
        return;
    };
    let node = books.on.remove(&id).unwrap();
    pool.release(id, &node);
}

/// It takes no tasks for a moment, and then is another zone's.
fn close_one(pool: &mut Pool, machines: &[Machine], choice: u8) {
    let n = usize::from(choice) % machines.len();
    pool.open(&node(n), false);
    pool.set_node(&node(n), &machines[n], true);
}

#[test]
fn the_reason_is_counted() {
    let mut machines = vec![machine(4000, 1024, 0, "ssd"); 3];
    machines.push(machine(4000, 8192, 1, "hdd"));
    let mut pool = pool_of(&machines);
    let constraints =
        vec![Constraint { attribute: "disk".into(), test: Test::In(vec!["ssd".into()]) }];
    let rules = Rules { constraints, ..Rules::default() };
    let template = Template { request: amounts(100, 4096), rules, ..Template::default() };
    let one = Wanted { job: JobId("j".into()), template, priority: 0, preempts: false };
    let outcome = assign(&mut pool, &[request(1, &one)]).remove(0);
    let Outcome::Nowhere(why) = outcome else { panic!("{outcome:?}") };
    assert_eq!(why.to_string(), "3 nodes: memory; 1 node: constraint disk");
}

/// Revocable tasks take what is idle, whatever was asked for; they hold nothing that others ask for.
#[test]
fn revocable_tasks_use_what_is_idle() {
    let mut pool = pool_of(&[machine(4000, 8192, 0, "ssd")]);
    let firm = Template { request: amounts(4000, 8192), ..Template::default() };
    let rules = Rules { revocable: true, ..Rules::default() };
    let idle = Template { request: amounts(1000, 1024), rules, ..Template::default() };
    let of = |template: &Template| Wanted {
        job: JobId("j".into()),
        template: template.clone(),
        priority: 0,
        preempts: false,
    };
    let (firm, idle) = (of(&firm), of(&idle));
    let placed = |pool: &mut Pool, id, one| {
        matches!(assign(pool, &[request(id, one)])[0], Outcome::Placed(_))
    };
    assert!(!placed(&mut pool, 1, &idle), "nothing is known to be idle");
    pool.set_idle(&node(0), Amounts { disk: 1 << 40, pids: 9, ..amounts(2000, 8192) });
    assert!(placed(&mut pool, 2, &idle) && placed(&mut pool, 3, &idle));
    assert!(!placed(&mut pool, 4, &idle), "no more than is idle");
    assert!(placed(&mut pool, 5, &firm), "requests of others are not touched");
}

#[test]
fn a_job_is_plain_data() {
    fn is_plain<T: serde::Serialize + for<'a> serde::Deserialize<'a>>() {}
    is_plain::<Job>();
    assert_eq!(serde_json::to_string(&Kind::Replicas(3)).unwrap(), r#"{"replicas":3}"#);
}
