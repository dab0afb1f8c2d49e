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

/// What the kernel's v1 controller makes of the files (security/device_cgroup.c).
fn v1_answer(settings: &[Setting], kind: u32, major: u32, minor: u32, access: u32) -> bool {
    let mut general = true;
    let mut exceptions: Vec<(&str, u32)> = Vec::new();
    for setting in settings {
        let allows = setting.file == "devices.allow";
        let Some((device, letters)) = setting.value.rsplit_once(' ') else {
            assert_eq!(setting.value, "a");
            (general, exceptions) = (allows, Vec::new());
            continue;
        };
        let bit = |letter, bit| if letters.contains(letter) { bit } else { 0 };
        let bits = bit('r', access::READ) | bit('w', access::WRITE) | bit('m', access::MKNOD);
        let same = exceptions.iter_mut().find(|(d, _)| *d == device);
        match (same, allows == general) {
            (Some(same), false) => same.1 |= bits,
            (Some(same), true) => same.1 &= !bits,
            (None, false) => exceptions.push((device, bits)),
            (None, true) => {}
        }
    }
    let name = if kind == 1 { "b" } else { "c" };
    let is_number = |text: &str, n: u32| text == "*" || text.parse() == Ok(n);
    let matches = |(device, bits): &(&str, u32)| {
        let words: Vec<&str> = device.split([' ', ':']).collect();
        let here = words[0] == name && is_number(words[1], major) && is_number(words[2], minor);
        here && if general { access & bits != 0 } else { access & !bits == 0 }
    };
    exceptions.iter().any(matches) != general
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

fn means(settings: &[Setting], rules: &[DeviceRule]) {
    each_access(|kind, major, minor, access| {
        // No call makes a device and opens it.
        if access == access::MKNOD || access & access::MKNOD == 0 {
            assert_eq!(
                v1_answer(settings, kind, major, minor, access),
                meaning(rules, kind, major, minor, access),
                "{rules:?}: kind {kind}, {major}:{minor}, access {access}: {settings:?}"
            );
        }
    });
}

/// File and value of each.
fn lines(settings: &[Setting]) -> Vec<String> {
    settings.iter().map(|s| format!("{} {}", s.file, s.value)).collect()
}

/// `devices.list` after these files were written to a folder that allowed everything.
fn shown(settings: &[Setting]) -> String {
    let mut exceptions: Vec<&str> = settings.iter().map(|s| s.value.as_str()).collect();
    match settings.first() {
        Some(first) if first.file == "devices.deny" && first.value == "a" => {
            exceptions.remove(0);
            exceptions.join("\n")
        }
        _ => "a *:* rwm".to_owned(),
    }
}

#[test]
fn a_transition_from_any_rules_to_any_others_means_the_others() {
    let expressible = || LISTS.iter().filter(|l| Table::of(&effective(&rules(l))).is_ok());
    for from in expressible() {
        let before = Table::of(&effective(&rules(from))).unwrap().files();
        for to in expressible() {
            let given = rules(to);
            let after = transition(&shown(&before), &given).unwrap();
            let all: Vec<Setting> = before.iter().chain(&after).cloned().collect();
            match &effective(&given)[..] {
                [] => means(&all, &[rule("allow a *:* rwm")]),
                effective => means(&all, effective),
            }
        }
    }
}

#[test]
fn a_transition_writes_the_difference_only() {
    let list = "c *:* m\nb *:* m\nc 1:3 rwm\nc 1:5 rwm\nc 1:7 rwm\nc 1:8 rwm\nc 1:9 rwm\nc 5:0 rwm\nc 5:1 rwm\n\
        c 5:2 rwm\nc 136:* rwm\nc 10:229 r\nb 8:0 rw\n";
    let wanted = rules(&["deny a *:* rwm", "allow c 10:229 rw", "allow c 10:200 rwm"]);
    assert_eq!(
        lines(&transition(list, &wanted).unwrap()),
        ["devices.allow c 10:229 w", "devices.allow c 10:200 rwm", "devices.deny b 8:0 rw"]
    );
    assert_eq!(transition("a *:* rwm\n", &[]).unwrap()[0].file, "devices.allow");
}

#[test]
fn each_write_has_its_way_back() {
    let back = |file, value, list| way_back(file, value, list).map(|files| lines(&files));
    let one = |line: &str| Some(vec![line.to_owned()]);
    assert_eq!(back("devices.allow", "c 1:3 r", "c 1:5 r"), one("devices.deny c 1:3 r"));
    assert_eq!(back("devices.deny", "c 1:3 r", "c 1:5 r"), one("devices.allow c 1:3 r"));
    let all = ["devices.deny a", "devices.allow c 1:5 rw"].map(str::to_owned);
    assert_eq!(back("devices.allow", "a", "c 1:5 rw"), Some(all.to_vec()));
    assert_eq!(back("devices.deny", "a", "a *:* rwm"), None);
}

#[test]
fn the_v1_files_mean_the_same_or_do_not_exist() {
    let mut refused = Vec::new();
    for list in LISTS {
        let rules = effective(&rules(list));
        match Table::of(&rules) {
            Err(why) => refused.push((list, why)),
            Ok(table) => means(&table.files(), &rules),
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
fn v1_is_preferred_and_the_program_says_the_rest() {
    let denied = rules(&["deny a *:* rwm"]);
    let split = rules(&["deny a *:* rwm", "allow c 1:* rwm", "deny c 1:11 rwm"]);
    let mut facts = HostFacts::default();
    let is_program = |rules: &[DeviceRule], facts: &HostFacts| {
        matches!(confinement(rules, facts), Ok(Confinement::Program(_)))
    };
    assert!(is_program(&denied, &facts));
    facts.cgroup.legacy.insert("devices".to_owned(), "/v1/devices".into());
    assert!(is_program(&split, &facts));
    facts.cgroup.closed.insert("/v1/devices".into());
    assert!(is_program(&denied, &facts));
    facts.cgroup.closed.clear();
    facts.missing_calls.push("bpf".to_owned());
    assert!(confinement(&split, &facts).is_err());
    let Ok(Confinement::Legacy(files)) = confinement(&denied, &facts) else { panic!("v1 files") };
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
    assert_eq!(lines(&files), expected);
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
