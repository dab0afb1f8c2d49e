//! Which node a task is put on, or why on none: a function of the pool and of what waits, nothing else.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use crate::grid::{Grid, size};
use crate::model::{AllocId, Amounts, Dimension, JobId, Machine, NodeId, Rules, Template};

/// The attribute of a spread over the nodes themselves.
pub const NODE: &str = "node";

/// More kinds of rules at a time than these, and the indexes of all are built anew.
const CLASSES: usize = 64;

/// What waits for a node.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub id: AllocId,
    pub job: &'a JobId,
    pub template: &'a Template,
    pub priority: i32,
    pub preempts: bool,
    /// On this one, or nowhere.
    pub node: Option<&'a NodeId>,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Placed(NodeId),
    /// There is room once these have ended. They are leaving from now on; the request is to be made again then.
    Preempts {
        node: NodeId,
        victims: Vec<AllocId>,
    },
    /// There is room once what is leaving has left.
    Waits(NodeId),
    Nowhere(Arc<Why>),
}

/// Why a task is on none of the nodes: how many of them for which reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Why(pub BTreeMap<Hindrance, u32>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hindrance {
    Closed,
    Feature(String),
    Constraint(String),
    PerNode,
    Port(u16),
    Lacks(Dimension),
    Spread(String),
    /// Not of a node: of all.
    Quota(String),
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("takes no tasks"),
            Self::Feature(feature) => write!(f, "cannot {feature}"),
            Self::Constraint(attribute) => write!(f, "constraint {attribute}"),
            Self::PerNode => f.write_str("enough of this job"),
            Self::Port(port) => write!(f, "port {port}"),
            Self::Lacks(dimension) => dimension.fmt(f),
            Self::Spread(attribute) => write!(f, "spread over {attribute}"),
            Self::Quota(namespace) => write!(f, "quota of {namespace}"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut reasons: Vec<_> = self.0.iter().collect();
        reasons.sort_by_key(|(_, count)| Reverse(**count));
        if reasons.is_empty() {
            return f.write_str("no nodes");
        }
        for (n, (hindrance, count)) in reasons.into_iter().enumerate() {
            let between = if n == 0 { "" } else { "; " };
            match (hindrance, count) {
                (Hindrance::Quota(_), _) => write!(f, "{between}{hindrance}")?,
                (_, 1) => write!(f, "{between}1 node: {hindrance}")?,
                _ => write!(f, "{between}{count} nodes: {hindrance}")?,
            }
        }
        Ok(())
    }
}

/// What is on a node.
#[derive(Debug, Clone)]
struct Taken {
    job: JobId,
    request: Amounts,
    ports: BTreeSet<u16>,
    priority: i32,
    revocable: bool,
    leaving: bool,
}

#[derive(Debug, Clone)]
struct Place {
    id: NodeId,
    machine: Machine,
    /// Takes tasks.
    open: bool,
    /// Allocatable, less all requests that are not revocable.
    free: Amounts,
    /// What revocable tasks may share.
    idle: Amounts,
    revocable: Amounts,
    ports: BTreeSet<u16>,
    tasks: BTreeMap<AllocId, Taken>,
}

impl Place {
    fn room(&self, revocable: bool) -> Amounts {
        if revocable { self.idle.less(self.revocable) } else { self.free }
    }

    fn count_again(&mut self) {
        let sum = |revocable: bool| {
            let of = self.tasks.values().filter(|task| task.revocable == revocable);
            of.fold(Amounts::default(), |sum, task| sum.plus(task.request))
        };
        (self.free, self.revocable) = (self.machine.allocatable.less(sum(false)), sum(true));
    }
}

/// Nodes of one kind of rules: those that the rules allow, by the value that is spread over and how much they are liked.
#[derive(Debug, Clone, Default)]
struct Class {
    /// Sorted by value, the most liked first.
    tiers: BTreeMap<(String, Reverse<i64>), Grid>,
    of: Vec<Option<(String, Reverse<i64>)>>,
}

/// Instances of one job.
#[derive(Debug, Clone, Default)]
struct Group {
    nodes: BTreeMap<u32, u32>,
    /// By the value of this attribute: those that are not leaving.
    attribute: String,
    values: BTreeMap<String, u32>,
}

/// What decides that two requests are the same to every node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Shape {
    rules: Rules,
    request: [u64; 4],
    ports: Vec<u16>,
    per_node: Option<(u32, JobId)>,
    preempts: Option<i32>,
}

/// All nodes and what is on them.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    places: Vec<Place>,
    by_id: BTreeMap<NodeId, u32>,
    classes: BTreeMap<Rules, Class>,
    groups: BTreeMap<JobId, Group>,
    /// Requests for which there was no room, until there is more of anything.
    hopeless: HashMap<Shape, Arc<Why>>,
    /// Room that is kept for who waits, in the present call.
    promised: BTreeMap<u32, Amounts>,
}

impl Pool {
    /// A node is new, or has changed.
    pub fn set_node(&mut self, id: &NodeId, machine: &Machine, open: bool) {
        let index = self.index_or_new(id);
        let mut machine = machine.clone();
        machine.attributes.insert(NODE.to_owned(), id.0.clone());
        let place = &self.places[index as usize];
        if place.machine == machine && place.open == open {
            return;
        }
        self.hopeless.clear();
        self.unlist(index);
        let place = &mut self.places[index as usize];
        (place.machine, place.open) = (machine, open);
        place.count_again();
        self.list(index);
        // Values of a spread may have changed.
        self.groups.values_mut().for_each(|group| group.attribute.clear());
    }

    /// Whether it takes tasks.
    pub fn open(&mut self, id: &NodeId, open: bool) {
        let Some(&index) = self.by_id.get(id) else { return };
        if self.places[index as usize].open == open {
            return;
        }
        self.hopeless.clear();
        self.unlist(index);
        self.places[index as usize].open = open;
        self.list(index);
    }

    /// It is no more.
    pub fn remove(&mut self, id: &NodeId) {
        self.open(id, false);
        let Some(&index) = self.by_id.get(id) else { return };
        self.places[index as usize].machine = Machine::default();
    }

    /// What revocable tasks may share on it.
    pub fn set_idle(&mut self, id: &NodeId, idle: Amounts) {
        let Some(&index) = self.by_id.get(id) else { return };
        if self.places[index as usize].idle != idle {
            self.hopeless.clear();
            self.change(index, |place| place.idle = idle);
        }
    }

    /// Something is on a node, whether there is room for it or not.
    pub fn take(
        &mut self,
        id: AllocId,
        node: &NodeId,
        job: &JobId,
        template: &Template,
        priority: i32,
    ) {
        let index = self.index_or_new(node);
        let taken = Taken {
            job: job.clone(),
            request: template.request,
            ports: template.ports.clone(),
            priority,
            revocable: template.rules.revocable,
            leaving: false,
        };
        self.put(index, id, taken);
    }

    /// It is not there any more.
    pub fn release(&mut self, id: AllocId, node: &NodeId) {
        let Some(&index) = self.by_id.get(node) else { return };
        self.leave(id, node);
        let Some(taken) = self.places[index as usize].tasks.get(&id).cloned() else { return };
        self.hopeless.clear();
        self.change(index, |place| {
            place.tasks.remove(&id);
            for port in &taken.ports {
                place.ports.remove(port);
            }
            place.count_again();
        });
        let Some(group) = self.groups.get_mut(&taken.job) else { return };
        let Some(count) = group.nodes.get_mut(&index) else { return };
        *count -= 1;
        if *count == 0 {
            group.nodes.remove(&index);
        }
        if group.nodes.is_empty() {
            self.groups.remove(&taken.job);
        }
    }

    /// It will not be there for long: its job is not counted there any more, what it holds is held.
    pub fn leave(&mut self, id: AllocId, node: &NodeId) {
        let Some(&index) = self.by_id.get(node) else { return };
        let place = &mut self.places[index as usize];
        let Some(taken) = place.tasks.get_mut(&id).filter(|taken| !taken.leaving) else { return };
        taken.leaving = true;
        self.hopeless.clear();
        let Some(group) = self.groups.get_mut(&taken.job) else { return };
        let value = place.machine.attributes.get(&group.attribute);
        if let Some(count) = value.and_then(|value| group.values.get_mut(value)) {
            *count -= 1;
        }
    }

    /// What is free on a node by requests.
    #[must_use]
    pub fn free(&self, node: &NodeId) -> Option<Amounts> {
        self.by_id.get(node).map(|index| self.places[*index as usize].free)
    }

    fn index_or_new(&mut self, id: &NodeId) -> u32 {
        if let Some(index) = self.by_id.get(id) {
            return *index;
        }
        let index = u32::try_from(self.places.len()).expect("fewer nodes than addresses");
        self.by_id.insert(id.clone(), index);
        self.places.push(Place {
            id: id.clone(),
            machine: Machine::default(),
            open: false,
            free: Amounts::default(),
            idle: Amounts::default(),
            revocable: Amounts::default(),
            ports: BTreeSet::new(),
            tasks: BTreeMap::new(),
        });
        index
    }

    fn put(&mut self, index: u32, id: AllocId, taken: Taken) {
        let group = self.groups.entry(taken.job.clone()).or_default();
        *group.nodes.entry(index).or_default() += 1;
        let place = &self.places[index as usize];
        if let Some(value) = place.machine.attributes.get(&group.attribute) {
            *group.values.entry(value.clone()).or_default() += 1;
        }
        self.change(index, |place| {
            let charged = if taken.revocable { &mut place.revocable } else { &mut place.free };
            *charged = match taken.revocable {
                true => charged.plus(taken.request),
                false => charged.less(taken.request),
            };
            place.ports.extend(&taken.ports);
            place.tasks.insert(id, taken);
        });
    }

    /// Room changes: so does its position in every index.
    fn change(&mut self, index: u32, act: impl FnOnce(&mut Place)) {
        let place = &mut self.places[index as usize];
        let before = (place.room(false), place.room(true));
        act(place);
        let after = (place.room(false), place.room(true));
        for (rules, class) in &mut self.classes {
            let Some(tier) = &class.of.get(index as usize).cloned().flatten() else { continue };
            let (before, after) =
                if rules.revocable { (before.1, after.1) } else { (before.0, after.0) };
            if before != after
                && let Some(grid) = class.tiers.get_mut(tier)
            {
                grid.remove(index, &before);
                grid.insert(index, &after);
            }
        }
    }

    fn unlist(&mut self, index: u32) {
        let place = &self.places[index as usize];
        for (rules, class) in &mut self.classes {
            let of = class.of.get_mut(index as usize).and_then(Option::take);
            let Some(tier) = of else { continue };
            let Some(grid) = class.tiers.get_mut(&tier) else { continue };
            grid.remove(index, &place.room(rules.revocable));
            if grid.is_empty() {
                class.tiers.remove(&tier);
            }
        }
    }

    fn list(&mut self, index: u32) {
        let place = &self.places[index as usize];
        for (rules, class) in &mut self.classes {
            class.list(rules, index, place);
        }
    }

    fn class(&mut self, rules: &Rules) -> &Class {
        if !self.classes.contains_key(rules) {
            if self.classes.len() >= CLASSES {
                self.classes.clear();
            }
            let mut class = Class::default();
            for (index, place) in (0..).zip(&self.places) {
                class.list(rules, index, place);
            }
            self.classes.insert(rules.clone(), class);
        }
        &self.classes[rules]
    }

    /// Count a job's instances by this attribute, if they are not yet.
    fn count_by(&mut self, job: &JobId, attribute: &str) {
        let Some(group) = self.groups.get_mut(job) else { return };
        if group.attribute == attribute {
            return;
        }
        group.attribute = attribute.to_owned();
        group.values.clear();
        for index in group.nodes.keys() {
            let place = &self.places[*index as usize];
            let Some(value) = place.machine.attributes.get(attribute) else { continue };
            let here = place.tasks.values().filter(|task| task.job == *job && !task.leaving);
            *group.values.entry(value.clone()).or_default() += here.count() as u32;
        }
    }
}

impl Class {
    fn list(&mut self, rules: &Rules, index: u32, place: &Place) {
        self.of.resize(self.of.len().max(index as usize + 1), None);
        if !place.open || hindered(rules, &place.machine).is_some() {
            return;
        }
        let tier = tier(rules, &place.machine);
        self.tiers.entry(tier.clone()).or_default().insert(index, &place.room(rules.revocable));
        self.of[index as usize] = Some(tier);
    }
}

/// What of the rules keeps it away from a machine.
fn hindered(rules: &Rules, machine: &Machine) -> Option<Hindrance> {
    let feature = rules.features.iter().find(|feature| !machine.features.contains(*feature));
    if let Some(feature) = feature {
        return Some(Hindrance::Feature(feature.clone()));
    }
    let broken = rules.constraints.iter().find(|rule| !rule.holds(&machine.attributes))?;
    Some(Hindrance::Constraint(broken.attribute.clone()))
}

fn tier(rules: &Rules, machine: &Machine) -> (String, Reverse<i64>) {
    let spread = rules.spread.as_ref().filter(|spread| spread.attribute != NODE);
    let value = spread.and_then(|spread| machine.attributes.get(&spread.attribute));
    let liked = rules.affinities.iter().filter(|liked| liked.constraint.holds(&machine.attributes));
    let weight = liked.map(|affinity| i64::from(affinity.weight)).sum();
    (value.cloned().unwrap_or_default(), Reverse(weight))
}

/// Place what waits: the greatest priority first, then the largest. What is placed is taken in the pool, and what is
/// pushed out is leaving. Outcomes are in the order of the requests.
pub fn assign(pool: &mut Pool, requests: &[Request<'_>]) -> Vec<Outcome> {
    if !pool.promised.is_empty() {
        pool.promised.clear();
        pool.hopeless.clear();
    }
    assign_more(pool, requests)
}

/// As [`assign`], after others: what they wait for is kept for them.
pub fn assign_more(pool: &mut Pool, requests: &[Request<'_>]) -> Vec<Outcome> {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_cached_key(|&n| {
        let request = &requests[n];
        (Reverse(request.priority), Reverse(size(&request.template.request)), request.id)
    });
    let mut outcomes: Vec<Option<Outcome>> = vec![None; requests.len()];
    for n in order {
        outcomes[n] = Some(pool.place(&requests[n]));
    }
    outcomes.into_iter().flatten().collect()
}

impl Pool {
    fn place(&mut self, request: &Request<'_>) -> Outcome {
        if let Some(node) = request.node {
            return self.place_on(request, node);
        }
        let shape = (!self.hopeless.is_empty()).then(|| shape(request));
        if let Some(why) = shape.as_ref().and_then(|shape| self.hopeless.get(shape)) {
            return Outcome::Nowhere(Arc::clone(why));
        }
        if let Some(index) = self.find(request) {
            let node = self.places[index as usize].id.clone();
            self.take(request.id, &node, request.job, request.template, request.priority);
            return Outcome::Placed(node);
        }
        self.push_out(request).unwrap_or_else(|| self.give_up(request))
    }

    fn place_on(&mut self, request: &Request<'_>, node: &NodeId) -> Outcome {
        let Some(&index) = self.by_id.get(node) else { return Outcome::Nowhere(Arc::default()) };
        let hindrance = self.hindrance(request, index);
        if matches!(hindrance, Hindrance::Spread(_)) {
            self.take(request.id, node, request.job, request.template, request.priority);
            return Outcome::Placed(node.clone());
        }
        let closed = !self.places[index as usize].open
            || hindered(&request.template.rules, &self.places[index as usize].machine).is_some();
        let push = if closed { None } else { self.push(request, index) };
        let why = || Outcome::Nowhere(Arc::new(Why(BTreeMap::from([(hindrance, 1)]))));
        push.map_or_else(why, |push| self.carry_out(push, request))
    }

    fn give_up(&mut self, request: &Request<'_>) -> Outcome {
        let why = Arc::new(self.why(request));
        // Of a spread, even what is placed may make room.
        if request.template.rules.spread.is_none() {
            self.hopeless.insert(shape(request), Arc::clone(&why));
        }
        Outcome::Nowhere(why)
    }

    fn find(&mut self, request: &Request<'_>) -> Option<u32> {
        let rules = &request.template.rules;
        self.class(rules);
        match &rules.spread {
            None => self.find_in(request, "", |_| true),
            Some(spread) if spread.attribute == NODE => self
                .find_in(request, "", |count| count == 0)
                .or_else(|| self.find_in(request, "", |_| true)),
            Some(_) => {
                let values = self.values(request);
                values.into_iter().find_map(|value| self.find_in(request, &value, |_| true))
            }
        }
    }

    /// Values in which there may be one more, the one with the fewest first.
    fn values(&mut self, request: &Request<'_>) -> Vec<String> {
        let rules = &request.template.rules;
        let over = rules.spread.as_ref().filter(|spread| spread.attribute != NODE);
        let Some(spread) = over else { return Vec::new() };
        self.count_by(request.job, &spread.attribute);
        let class = &self.classes[rules];
        let group = self.groups.get(request.job);
        let count = |value: &String| group.and_then(|g| g.values.get(value)).copied().unwrap_or(0);
        let mut values: Vec<(u32, &String)> =
            class.tiers.keys().map(|(value, _)| (count(value), value)).collect();
        values.sort();
        values.dedup();
        let fewest = values.first().map_or(0, |(count, _)| *count);
        let most = spread.most_uneven.map_or(u32::MAX, |most| fewest.saturating_add(most.max(1)));
        let allowed = values.into_iter().filter(|(count, _)| *count < most);
        allowed.map(|(_, value)| value.clone()).collect()
    }

    fn find_in(
        &self,
        request: &Request<'_>,
        value: &str,
        may: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        let template = request.template;
        let class = &self.classes[&template.rules];
        let group = self.groups.get(request.job);
        let most = template.most_per_node.unwrap_or(u32::MAX);
        let count = |index| group.and_then(|group| group.nodes.get(&index)).copied().unwrap_or(0);
        let fits = |index: u32| {
            let place = &self.places[index as usize];
            let here = count(index);
            template.request.fits(&self.room(index, &template.rules))
                && here < most
                && may(here)
                && template.ports.is_disjoint(&place.ports)
        };
        let first = (value.to_owned(), Reverse(i64::MAX));
        let tiers = class.tiers.range(first..).take_while(|((of, _), _)| of == value);
        tiers.into_iter().find_map(|(_, grid)| grid.best(&template.request, fits))
    }

    /// What is promised to those who wait is not free.
    fn room(&self, index: u32, rules: &Rules) -> Amounts {
        let room = self.places[index as usize].room(rules.revocable);
        match self.promised.get(&index) {
            Some(promised) if !rules.revocable => room.less(*promised),
            _ => room,
        }
    }

    fn why(&self, request: &Request<'_>) -> Why {
        let mut why = Why::default();
        let known = |place: &Place| place.machine.attributes.contains_key(NODE);
        for (index, _) in (0..).zip(&self.places).filter(|(_, place)| known(place)) {
            *why.0.entry(self.hindrance(request, index)).or_default() += 1;
        }
        why
    }

    fn hindrance(&self, request: &Request<'_>, index: u32) -> Hindrance {
        let (place, template) = (&self.places[index as usize], request.template);
        if !place.open {
            return Hindrance::Closed;
        }
        if let Some(rule) = hindered(&template.rules, &place.machine) {
            return rule;
        }
        if self.is_full_of(request, index) {
            return Hindrance::PerNode;
        }
        if let Some(port) = template.ports.intersection(&place.ports).next() {
            return Hindrance::Port(*port);
        }
        if let Some(dimension) = template.request.lacking(&self.room(index, &template.rules)) {
            return Hindrance::Lacks(dimension);
        }
        let over = template.rules.spread.as_ref().map(|spread| spread.attribute.clone());
        Hindrance::Spread(over.unwrap_or_default())
    }

    fn is_full_of(&self, request: &Request<'_>, index: u32) -> bool {
        let Some(most) = request.template.most_per_node else { return false };
        let here = self.groups.get(request.job).and_then(|group| group.nodes.get(&index));
        here.is_some_and(|count| *count >= most)
    }
}

/// Who would have to go from a node, and how much that hurts.
#[derive(Debug)]
struct Push {
    index: u32,
    victims: Vec<AllocId>,
    pain: (i32, usize, u64),
}

impl Pool {
    /// Room that there will be: of what is leaving already, and of what has a lower priority if the request preempts.
    fn push_out(&mut self, request: &Request<'_>) -> Option<Outcome> {
        let values = self.values(request);
        let spread = request.template.rules.spread.as_ref().filter(|over| over.attribute != NODE);
        let class = &self.classes[&request.template.rules];
        let allowed = |of: &Option<(String, Reverse<i64>)>| {
            of.as_ref().is_some_and(|(value, _)| spread.is_none() || values.contains(value))
        };
        let listed = (0..).zip(&class.of).filter(|(_, of)| allowed(of));
        let pushes = listed.filter_map(|(index, _)| self.push(request, index));
        let push = pushes.min_by_key(|push| (push.pain, push.index))?;
        Some(self.carry_out(push, request))
    }

    fn carry_out(&mut self, push: Push, request: &Request<'_>) -> Outcome {
        let promised = self.promised.entry(push.index).or_default();
        *promised = promised.plus(request.template.request);
        let node = self.places[push.index as usize].id.clone();
        if push.victims.is_empty() {
            return Outcome::Waits(node);
        }
        for victim in &push.victims {
            self.leave(*victim, &node);
        }
        Outcome::Preempts { node, victims: push.victims }
    }

    fn push(&self, request: &Request<'_>, index: u32) -> Option<Push> {
        let (place, template) = (&self.places[index as usize], request.template);
        if template.rules.revocable || self.is_full_of(request, index) {
            return None;
        }
        let in_the_way = |taken: &Taken| !taken.ports.is_disjoint(&template.ports);
        let may_go = |taken: &Taken| {
            taken.leaving || (request.preempts && taken.priority < request.priority)
        };
        let mut candidates: Vec<(&AllocId, &Taken)> =
            place.tasks.iter().filter(|(_, taken)| may_go(taken)).collect();
        if candidates.is_empty() {
            return None;
        }
        candidates.sort_by_key(|(id, taken)| {
            let first = !(taken.leaving || in_the_way(taken));
            (first, taken.priority, Reverse(size(&taken.request)), **id)
        });
        let promised = self.promised.get(&index).copied().unwrap_or_default();
        let wanted = template.request.plus(promised);
        let chosen = choose(&candidates, place, &wanted, in_the_way)?;
        let blocked = place.tasks.iter().any(|(id, taken)| {
            in_the_way(taken) && !chosen.iter().any(|(chosen, _)| *chosen == id)
        });
        if blocked {
            return None;
        }
        let victims: Vec<_> = chosen.into_iter().filter(|(_, taken)| !taken.leaving).collect();
        let priority = victims.iter().map(|(_, taken)| taken.priority).max().unwrap_or(i32::MIN);
        let sum = victims.iter().map(|(_, taken)| size(&taken.request)).sum();
        let pain = (priority, victims.len(), sum);
        Some(Push { index, victims: victims.into_iter().map(|(id, _)| *id).collect(), pain })
    }
}

type Candidate<'a> = (&'a AllocId, &'a Taken);

/// As few as are enough, in the order in which they are given; then nobody goes for nothing.
fn choose<'a>(
    candidates: &[Candidate<'a>],
    place: &Place,
    wanted: &Amounts,
    must: impl Fn(&Taken) -> bool,
) -> Option<Vec<Candidate<'a>>> {
    let freed = |of: &[Candidate<'_>]| {
        let firm = of.iter().filter(|(_, taken)| !taken.revocable);
        let held = place.tasks.values().filter(|taken| !taken.revocable);
        let all = held.fold(Amounts::default(), |sum, taken| sum.plus(taken.request));
        let left = firm.fold(all, |left, (_, taken)| left.less(taken.request));
        place.machine.allocatable.less(left)
    };
    let is_free = |taken: &Taken| taken.leaving || must(taken);
    let mut chosen: Vec<Candidate<'a>> =
        candidates.iter().copied().filter(|(_, taken)| is_free(taken)).collect();
    for candidate in candidates.iter().filter(|(_, taken)| !is_free(taken) && !taken.revocable) {
        if wanted.fits(&freed(&chosen)) {
            break;
        }
        chosen.push(*candidate);
    }
    if !wanted.fits(&freed(&chosen)) {
        return None;
    }
    for n in (0..chosen.len()).rev() {
        let without: Vec<_> = chosen.iter().copied().filter(|c| c.0 != chosen[n].0).collect();
        if !is_free(chosen[n].1) && wanted.fits(&freed(&without)) {
            chosen = without;
        }
    }
    Some(chosen)
}

fn shape(request: &Request<'_>) -> Shape {
    let template = request.template;
    let Amounts { cpu_milli, memory, disk, pids } = template.request;
    Shape {
        rules: template.rules.clone(),
        request: [cpu_milli, memory, disk, pids],
        ports: template.ports.iter().copied().collect(),
        per_node: template.most_per_node.map(|most| (most, request.job.clone())),
        preempts: request.preempts.then_some(request.priority),
    }
}
