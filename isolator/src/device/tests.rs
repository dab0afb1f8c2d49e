use super::*;

/// `allow c 1:3 rw`
fn rule(text: &str) -> DeviceRule {
    let mut words = text.split([' ', ':']);
    let mut word = || words.next().unwrap();
    let allow = word() == "allow";
    let kind = match word() {
        "a" => None,
        "b" => Some(DeviceType::Block),
        "c" => Some(DeviceType::Char),
        other => panic!("{other}"),
    };
    let (major, minor) = (word().parse().ok(), word().parse().ok());
    let letters = word();
    let has = |c| letters.contains(c);
    DeviceRule { allow, kind, major, minor, read: has('r'), write: has('w'), mknod: has('m') }
}

fn rules(texts: &[&str]) -> Vec<DeviceRule> {
    texts.iter().map(|t| rule(t)).collect()
}

/// Run a program as the kernel does, on an access.
fn run(program: &[Insn], kind: u32, major: u32, minor: u32, access: u32) -> bool {
    let context = [access << 16 | kind, major, minor];
    let mut registers = [None; 10];
    let mut at = 0;
    loop {
        let insn = program[at];
        let (to, from) = (usize::from(insn.registers & 15), usize::from(insn.registers >> 4));
        let number = insn.immediate as u32;
        let value =
            |register: usize| -> u32 { registers[register].expect("a register that was set") };
        let jump = match insn.code {
            code::LOAD => {
                assert_eq!(from, 1, "loads from the context");
                registers[to] = Some(context[insn.offset as usize / 4]);
                false
            }
            code::SET => {
                registers[to] = Some(number);
                false
            }
            code::COPY => {
                registers[to] = Some(value(from));
                false
            }
            code::AND => {
                registers[to] = Some(value(to) & number);
                false
            }
            code::OR => {
                registers[to] = Some(value(to) | value(from));
                false
            }
            code::SHIFT_LEFT => {
                registers[to] = Some(value(to) << number);
                false
            }
            code::SHIFT_RIGHT => {
                registers[to] = Some(value(to) >> number);
                false
            }
            code::JUMP_EQUAL => value(to) == number,
            code::JUMP_UNEQUAL => value(to) != number,
            code::JUMP_COMMON => value(to) & number != 0,
            code::JUMP => true,
            code::EXIT => return value(0) == 1,
            other => panic!("instruction {other:#x}"),
        };
        at += 1;
        if jump {
            at += usize::try_from(insn.offset).expect("forward jumps only");
        }
    }
}

/// What the rules mean, said as plainly as possible.
fn meaning(rules: &[DeviceRule], kind: u32, major: u32, minor: u32, access: u32) -> bool {
    [access::MKNOD, access::READ, access::WRITE].iter().filter(|bit| access & **bit != 0).all(
        |bit| {
            let last = rules.iter().rfind(|r| {
                r.kind.is_none_or(|k| (k == DeviceType::Block) == (kind == 1))
                    && r.major.is_none_or(|m| m == major)
                    && r.minor.is_none_or(|m| m == minor)
                    && bits(r) & bit != 0
            });
            last.is_some_and(|r| r.allow)
        },
    )
}

/// What the v1 controller answers (security/device_cgroup.c).
fn v1_answer(settings: &[Setting], kind: u32, major: u32, minor: u32, access: u32) -> bool {
    let kind = if kind == 1 { "b" } else { "c" };
    let general = settings.first().is_none_or(|s| s.value != "a");
    let matches = |s: &&Setting| {
        let words: Vec<&str> = s.value.split([' ', ':']).collect();
        let [k, major_text, minor_text, letters] = words[..] else { return false };
        let number = |text: &str, n: u32| text == "*" || text.parse() == Ok(n);
        let letter = |bit| {
            letters.contains(if bit == access::MKNOD {
                'm'
            } else if bit == access::READ {
                'r'
            } else {
                'w'
            })
        };
        let mut wanted =
            [access::MKNOD, access::READ, access::WRITE].into_iter().filter(|b| access & b != 0);
        let covered = if general { wanted.any(letter) } else { wanted.all(letter) };
        k == kind && number(major_text, major) && number(minor_text, minor) && covered
    };
    settings.iter().any(|s| matches(&s)) != general
}

const LISTS: [&[&str]; 12] = [
    &["deny a *:* rwm"],
    &["allow a *:* rwm", "deny b 8:0 w"],
    &["deny a *:* rwm", "allow c 10:200 rwm", "allow b *:* m"],
    &["allow c 1:3 r", "allow c 1:* w"],
    &["allow c 1:* rw", "deny c 1:3 w"],
    &["deny c 1:3 w", "allow c 1:* rw"],
    &["allow a *:* r"],
    &["allow a 8:* rw", "deny b 8:1 r", "allow b 8:1 r"],
    &["allow c 4294967295:* rwm", "deny c 1:4294967295 rwm", "allow a *:200 w", "deny b 4095:* w"],
    &["allow a *:* rwm", "deny a *:* rwm", "allow c 4:1 rw"],
    &["deny a *:* rwm", "allow a *:* rwm", "deny c *:* m"],
    &["allow b 8:16 rwm", "deny a *:* m"],
];

fn each_access(mut check: impl FnMut(u32, u32, u32, u32)) {
    for kind in [1, 2] {
        for major in [0, 1, 4, 5, 8, 10, 136, 4095] {
            for minor in [0, 1, 3, 16, 200, (1 << 20) - 1] {
                for access in 1..=access::ALL {
                    check(kind, major, minor, access);
                }
            }
        }
    }
}

#[test]
fn the_program_means_what_the_rules_mean() {
    for list in LISTS {
        let rules = rules(list);
        for rules in [rules.clone(), effective(&rules)] {
            let program = program(&rules);
            each_access(|kind, major, minor, access| {
                assert_eq!(
                    run(&program, kind, major, minor, access),
                    meaning(&rules, kind, major, minor, access),
                    "{list:?}: kind {kind}, {major}:{minor}, access {access}"
                );
            });
        }
    }
}

#[test]
fn the_effective_rules_differ_in_the_standard_devices_only() {
    for list in LISTS {
        let given = rules(list);
        let effective = effective(&given);
        each_access(|kind, major, minor, access| {
            let standard = kind == 2
                && ALWAYS.iter().any(|(ma, mi)| *ma == major && mi.is_none_or(|mi| mi == minor));
            let expected = standard || meaning(&given, kind, major, minor, access & !access::MKNOD);
            assert_eq!(
                meaning(&effective, kind, major, minor, access),
                expected,
                "{list:?}: kind {kind}, {major}:{minor}, access {access}"
            );
        });
    }
}

#[test]
fn the_v1_files_mean_the_same_or_do_not_exist() {
    let mut refused = Vec::new();
    for list in LISTS {
        let rules = effective(&rules(list));
        match legacy(&rules) {
            Err(why) => refused.push((list, why)),
            Ok(settings) => each_access(|kind, major, minor, access| {
                assert_eq!(
                    v1_answer(&settings, kind, major, minor, access),
                    meaning(&rules, kind, major, minor, access),
                    "{list:?}: kind {kind}, {major}:{minor}, access {access}: {settings:?}"
                );
            }),
        }
    }
    let refused: Vec<&[&str]> = refused.into_iter().map(|(list, _)| list).collect();
    assert_eq!(refused, [LISTS[4], LISTS[7], LISTS[8]]);
}

#[test]
fn nothing_is_done_where_nothing_is_denied() {
    for list in [
        &[][..],
        &["allow a *:* rwm"],
        &["deny a *:* rwm", "allow a *:* rwm"],
        &["allow a *:* rwm", "allow c 1:3 r"],
    ] {
        assert_eq!(
            confinement(&rules(list), &HostFacts::default()),
            Ok(Confinement::None),
            "{list:?}"
        );
    }
}

#[test]
fn the_program_is_preferred_and_v1_stands_in() {
    let denied = rules(&["deny a *:* rwm"]);
    let mut facts = HostFacts::default();
    facts.cgroup.legacy.insert("devices".to_owned(), "/v1/devices".into());
    assert!(matches!(confinement(&denied, &facts), Ok(Confinement::Program(_))));
    facts.missing_calls.push("bpf".to_owned());
    let Ok(Confinement::Legacy(files)) = confinement(&denied, &facts) else { panic!("v1 files") };
    let lines: Vec<String> = files.iter().map(|s| format!("{} {}", s.file, s.value)).collect();
    let expected = [
        "devices.deny a",
        "devices.allow c *:* m",
        "devices.allow b *:* m",
        "devices.allow c 1:3 rwm",
        "devices.allow c 1:5 rwm",
        "devices.allow c 1:7 rwm",
        "devices.allow c 1:8 rwm",
        "devices.allow c 1:9 rwm",
        "devices.allow c 5:0 rwm",
        "devices.allow c 5:1 rwm",
        "devices.allow c 5:2 rwm",
        "devices.allow c 136:* rwm",
    ];
    assert_eq!(lines, expected);
    facts.cgroup.legacy.clear();
    assert!(confinement(&denied, &facts).is_err());
}

#[test]
fn the_longest_program_keeps_its_jumps() {
    let mut list = vec![rule("deny c 1:3 w"); MOST_RULES];
    list[0] = rule("allow a *:* rwm");
    let program = program(&list);
    assert!(!run(&program, 2, 1, 3, access::WRITE));
    assert!(run(&program, 2, 1, 3, access::READ));
    assert!(run(&program, 1, 1, 3, access::WRITE));
    let facts = HostFacts::default();
    list.push(rule("deny c 1:3 w"));
    assert!(confinement(&list, &facts).is_err());
}

#[test]
fn every_instruction_can_be_reached() {
    for list in LISTS {
        let program = program(&rules(list));
        let mut reached = vec![false; program.len()];
        let mut ways = vec![0];
        while let Some(at) = ways.pop() {
            if std::mem::replace(&mut reached[at], true) {
                continue;
            }
            let insn = program[at];
            let target = at + 1 + usize::try_from(insn.offset).unwrap();
            match insn.code {
                code::EXIT => {}
                code::JUMP => ways.push(target),
                code::JUMP_EQUAL | code::JUMP_UNEQUAL | code::JUMP_COMMON => {
                    ways.extend([at + 1, target]);
                }
                _ => ways.push(at + 1),
            }
        }
        assert!(reached.iter().all(|r| *r), "{list:?}: {program:?}");
    }
}
