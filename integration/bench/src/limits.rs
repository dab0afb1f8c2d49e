//! The limits of a bundle as files, in both kinds of cgroup tree.

use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    pub controller: &'static str,
    /// Files of the cgroup2 folder and what is written to them.
    pub unified: Vec<(&'static str, String)>,
    /// The same for a folder of the controller's v1 hierarchy.
    pub legacy: Vec<(&'static str, String)>,
}

/// `linux.resources` of a config.json, as far as the measured bundles use it.
pub fn of(config: &Value) -> Vec<Limit> {
    let resources = &config["linux"]["resources"];
    [memory(resources), cpu(resources), pids(resources)].into_iter().flatten().collect()
}

fn memory(resources: &Value) -> Option<Limit> {
    let bytes = resources["memory"]["limit"].as_u64()?.to_string();
    Some(Limit {
        controller: "memory",
        unified: vec![("memory.max", bytes.clone())],
        legacy: vec![("memory.limit_in_bytes", bytes)],
    })
}

fn cpu(resources: &Value) -> Option<Limit> {
    let quota = resources["cpu"]["quota"].as_u64()?;
    let period = resources["cpu"]["period"].as_u64()?;
    Some(Limit {
        controller: "cpu",
        unified: vec![("cpu.max", format!("{quota} {period}"))],
        legacy: vec![
            ("cpu.cfs_period_us", period.to_string()),
            ("cpu.cfs_quota_us", quota.to_string()),
        ],
    })
}

fn pids(resources: &Value) -> Option<Limit> {
    let most = resources["pids"]["limit"].as_u64()?.to_string();
    let file = vec![("pids.max", most)];
    Some(Limit { controller: "pids", unified: file.clone(), legacy: file })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn absent_limits_are_no_files() {
        assert_eq!(of(&json!({ "linux": { "resources": { "devices": [] } } })), []);
    }

    #[test]
    fn cpu_is_one_file_or_two() {
        let limits =
            of(&json!({ "linux": { "resources": { "cpu": { "quota": 5, "period": 10 } } } }));
        assert_eq!(limits[0].unified, [("cpu.max", "5 10".to_owned())]);
        assert_eq!(limits[0].legacy.len(), 2);
    }
}
