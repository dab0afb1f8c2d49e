//! Made-up machines, and tasks of many sizes for them.

use hafen_coordinator::model::{
    Amounts, Constraint, Machine, NodeId, Rules, Spread, Template, Test,
};

pub const NODE_CPU: u64 = 32_000;
pub const NODE_MEMORY: u64 = 128 << 30;

/// Numbers that are the same each time.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub const fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

#[must_use]
pub const fn amounts(cpu_milli: u64, memory: u64) -> Amounts {
    Amounts { cpu_milli, memory, disk: 0, pids: 0 }
}

#[must_use]
pub fn name(n: u64) -> NodeId {
    NodeId(format!("n{n:06}"))
}

#[must_use]
pub fn machine(n: u64) -> Machine {
    let attributes = [
        ("zone".into(), format!("z{}", n % 3)),
        ("disk".into(), ["ssd", "hdd"][(n % 2) as usize].into()),
    ];
    Machine {
        attributes: attributes.into(),
        allocatable: amounts(NODE_CPU, NODE_MEMORY),
        ..Machine::default()
    }
}

pub type Sizes = fn(&mut Random) -> Amounts;

pub const SMALL: Sizes = |r| amounts(50 + 50 * r.below(40), (64 + 64 * r.below(128)) << 20);

pub const SIZES: [(&str, Sizes); 4] = [
    ("small", SMALL),
    ("skewed", |r| {
        if r.below(2) == 0 {
            amounts(2000 + r.below(6000), 1 << 30)
        } else {
            amounts(100 + r.below(400), (4 + r.below(28)) << 30)
        }
    }),
    ("large", |r| amounts(4000 + 100 * r.below(140), (8 + r.below(56)) << 30)),
    ("heavy-tailed", |r| {
        let n = 1 << r.below(8);
        amounts(100 * n + r.below(100), (n << 28) + (r.below(256) << 20))
    }),
];

/// Requests of jobs with ten instances each; every eighth job has rules, if any has.
#[must_use]
pub fn templates(sizes: Sizes, count: usize, with_rules: bool) -> Vec<Template> {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut templates = Vec::new();
    while templates.len() < count {
        let rules = if with_rules { rules(random.below(16)) } else { Rules::default() };
        let template = Template { request: sizes(&mut random), rules, ..Template::default() };
        templates.extend(std::iter::repeat_n(template, 10));
    }
    templates.truncate(count);
    templates
}

fn rules(choice: u64) -> Rules {
    let ssd = Constraint { attribute: "disk".into(), test: Test::In(vec!["ssd".into()]) };
    match choice {
        0 => Rules { constraints: vec![ssd], ..Rules::default() },
        1 => Rules {
            spread: Some(Spread { attribute: "zone".into(), most_uneven: Some(1) }),
            ..Rules::default()
        },
        _ => Rules::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_the_same_each_time_and_fit_a_node() {
        for (name, sizes) in SIZES {
            let [one, other] = [0; 2].map(|_| templates(sizes, 1_005, true));
            assert_eq!(one, other);
            assert_eq!(one.len(), 1_005);
            let node = machine(0).allocatable;
            assert!(one.iter().all(|template| template.request.fits(&node)), "{name}");
        }
    }

    #[test]
    fn one_job_in_eight_has_rules() {
        let with = |rules| {
            let all = templates(SMALL, 10_000, rules);
            all.iter().filter(|template| template.rules != Rules::default()).count()
        };
        assert_eq!(with(false), 0);
        assert!((800..1_700).contains(&with(true)), "{}", with(true));
    }
}
