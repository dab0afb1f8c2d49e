use oci_spec::runtime::{LinuxIntelRdt, Spec};

use crate::Problems;
use crate::resolved::IntelRdt;

/// Folders of the resctrl file system that are no groups.
const RESERVED: [&str; 3] = ["info", "mon_groups", "mon_data"];

pub(super) fn intel_rdt(spec: &Spec, id: &str, problems: &mut Problems) -> Option<IntelRdt> {
    let asked = spec.linux().as_ref()?.intel_rdt().as_ref()?;
    let named = asked.clos_id().as_deref().filter(|name| !name.is_empty());
    if let Some(name) = named {
        check_name(name, problems);
    }
    Some(IntelRdt {
        group: match named {
            Some("/") => String::new(),
            name => name.unwrap_or(id).to_owned(),
        },
        own: named.is_none(),
        schemata: schemata(asked, problems),
        monitoring: monitoring(asked).then(|| id.to_owned()),
    })
}

fn check_name(name: &str, problems: &mut Problems) {
    let wrong =
        name.contains(['/', '\0', '\n']) || name == "." || name == ".." || RESERVED.contains(&name);
    if wrong && name != "/" {
        problems.add("linux.intelRdt.closID", format!("{name:?} is not the name of a group"));
    }
}

/// Clients of runtime-spec 1.2 write the last two.
fn monitoring(asked: &LinuxIntelRdt) -> bool {
    let all = [asked.enable_monitoring(), asked.enable_cmt(), asked.enable_mbm()];
    all.into_iter().any(|flag| *flag == Some(true))
}

fn schemata(asked: &LinuxIntelRdt, problems: &mut Problems) -> Vec<String> {
    let text = |field: &Option<String>| field.clone().filter(|text| !text.trim().is_empty());
    let (cache, bandwidth) = (text(asked.l3_cache_schema()), text(asked.mem_bw_schema()));
    let lines = asked.schemata().clone().unwrap_or_default();
    if !lines.is_empty() {
        for (field, _) in [("l3CacheSchema", &cache), ("memBwSchema", &bandwidth)]
            .iter()
            .filter(|(_, text)| text.is_some())
        {
            problems.add(format!("linux.intelRdt.{field}"), "must not be set beside schemata");
        }
        return checked(lines, "schemata", problems);
    }
    // The lines about bandwidth are those of memBwSchema, if there are any (runtime-spec).
    let cache = cache.iter().flat_map(|text| text.lines()).map(str::trim);
    let cache: Vec<String> = cache
        .filter(|line| !line.is_empty() && (bandwidth.is_none() || !line.starts_with("MB:")))
        .map(str::to_owned)
        .collect();
    let bandwidth =
        bandwidth.iter().flat_map(|text| text.lines()).map(|line| line.trim().to_owned());
    let bandwidth = checked(bandwidth.collect(), "memBwSchema", problems);
    let mut lines = checked(cache, "l3CacheSchema", problems);
    lines.extend(bandwidth);
    lines
}

/// `L3:0=ff;1=f0`
fn checked(lines: Vec<String>, field: &str, problems: &mut Problems) -> Vec<String> {
    let domain = |text: &str| {
        text.split_once('=')
            .is_some_and(|(id, value)| id.trim().parse::<u32>().is_ok() && !value.trim().is_empty())
    };
    for line in &lines {
        let fits = line.split_once(':').is_some_and(|(name, rest)| {
            !name.trim().is_empty() && rest.split(';').all(domain) && !line.contains(['\n', '\0'])
        });
        if !fits {
            let words = format!("{line:?} is not a line as \"L3:0=ff;1=f0\"");
            problems.add(format!("linux.intelRdt.{field}"), words);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn resolve(value: &Value) -> Result<IntelRdt, Vec<String>> {
        let document = json!({ "ociVersion": "1.3.0", "linux": { "intelRdt": value } });
        let spec = crate::parse::parse(document.to_string().as_bytes()).unwrap();
        let mut problems = Problems::default();
        let found = intel_rdt(&spec, "web", &mut problems).unwrap();
        if problems.0.is_empty() {
            return Ok(found);
        }
        Err(problems.0.into_iter().map(|p| p.field).collect())
    }

    #[test]
    fn schemas_are_joined_as_the_spec_says() {
        let found = resolve(&json!({
            "l3CacheSchema": "L3:0=ff;1=ff\nMB:0=70", "memBwSchema": "MB:0=20;1=70"
        }))
        .unwrap();
        assert_eq!((&*found.group, found.own), ("web", true));
        assert_eq!(found.schemata, ["L3:0=ff;1=ff", "MB:0=20;1=70"]);
        assert_eq!(found.monitoring, None);
        let alone =
            resolve(&json!({ "closID": "gold", "l3CacheSchema": "L3:0=f\nMB:0=70" })).unwrap();
        assert_eq!((&*alone.group, alone.own), ("gold", false));
        assert_eq!(alone.schemata, ["L3:0=f", "MB:0=70"]);
    }

    #[test]
    fn the_root_group_and_monitoring() {
        let found = resolve(&json!({ "closID": "/", "enableMonitoring": true })).unwrap();
        assert_eq!(
            (&*found.group, found.own, found.monitoring.as_deref()),
            ("", false, Some("web"))
        );
        assert!(resolve(&json!({ "enableCMT": true })).unwrap().monitoring.is_some());
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (value, field) in [
            (json!({ "closID": "a/b" }), "closID"),
            (json!({ "closID": ".." }), "closID"),
            (json!({ "closID": "info" }), "closID"),
            (json!({ "l3CacheSchema": "ff" }), "l3CacheSchema"),
            (json!({ "memBwSchema": "MB:0" }), "memBwSchema"),
            (json!({ "schemata": ["L3:0=f\nMB:0=5"] }), "schemata"),
            (json!({ "schemata": ["L3:0=f"], "memBwSchema": "MB:0=5" }), "memBwSchema"),
        ] {
            assert_eq!(
                resolve(&value).unwrap_err(),
                [format!("linux.intelRdt.{field}")],
                "{value}"
            );
        }
    }
}
