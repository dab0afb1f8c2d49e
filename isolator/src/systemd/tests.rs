use super::*;

fn setting(file: &str, value: &str, home: Home) -> Setting {
    Setting {
        controller: String::new(),
        home,
        file: file.to_owned(),
        value: value.to_owned(),
        instead: None,
    }
}

#[test]
fn files_and_their_properties() {
    let unified = |file, value| setting(file, value, Home::Unified);
    let settings = [
        unified("memory.max", "67108864"),
        unified("memory.swap.max", "max"),
        unified("pids.max", "32"),
        unified("cpu.weight", "59"),
        unified("cpuset.cpus", "0-2,9"),
        unified("cpu.idle", "1"),
        setting("memory.limit_in_bytes", "5", Home::Legacy),
    ];
    let wanted = [
        property("MemoryMax", PropertyValue::Number(64 << 20)),
        property("MemorySwapMax", PropertyValue::Number(u64::MAX)),
        property("TasksMax", PropertyValue::Number(32)),
        property("CPUWeight", PropertyValue::Number(59)),
        property("AllowedCPUs", PropertyValue::Bytes(vec![0b111, 0b10])),
    ];
    assert_eq!(properties(&settings), wanted);
}

#[test]
fn a_quota_is_rounded_up_to_whole_percents() {
    let share = |value: &str| match bandwidth(value)[0].value {
        PropertyValue::Number(n) => n,
        PropertyValue::Bytes(_) => 0,
    };
    assert_eq!(share("50000 100000"), 500_000);
    assert_eq!(share("333 1000"), 340_000);
    assert_eq!(share("max 100000"), u64::MAX);
    assert_eq!(
        bandwidth("5 200000")[1],
        property("CPUQuotaPeriodUSec", PropertyValue::Number(200_000))
    );
}
