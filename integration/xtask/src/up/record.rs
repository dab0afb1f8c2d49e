//! The part of `hafen-oci run --report` that is judged here. A number is absent where the kernel has none.

use serde::Deserialize;

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Record {
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    /// From start to end.
    pub(crate) wall_usec: u64,
    pub(crate) usage: Usage,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Usage {
    pub(crate) cpu_usec: u64,
    pub(crate) max_rss_bytes: u64,
    pub(crate) memory_limit_bytes: Option<u64>,
    pub(crate) memory_peak_bytes: Option<u64>,
    pub(crate) oom_kills: Option<u64>,
    pub(crate) cpu_periods: Option<u64>,
    pub(crate) cpu_throttled_periods: Option<u64>,
    pub(crate) pids_limit: Option<u64>,
    pub(crate) pids_peak: Option<u64>,
    pub(crate) pids_limit_hits: Option<u64>,
}

impl Record {
    /// Processors in use, on average.
    pub(crate) fn cpus(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of seconds")]
        let share = self.usage.cpu_usec as f64 / self.wall_usec.max(1) as f64;
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let record: Record = serde_json::from_str(
            r#"{"id":"x","pid":123,"exit_code":null,"signal":9,"started_at":"2026-01-02T03:04:05Z","wall_usec":2000000,
               "usage":{"cpu_usec":1000000,"user_usec":1,"system_usec":2,"max_rss_bytes":3,"memory_limit_bytes":67108864,
               "memory_peak_bytes":null,"oom_events":1,"oom_kills":1,"cpu_periods":null,"cpu_throttled_periods":null,
               "cpu_throttled_usec":null,"pids_limit":null,"pids_peak":null,"pids_limit_hits":null}}"#,
        )
        .unwrap();
        assert_eq!((record.signal, record.usage.oom_kills), (Some(9), Some(1)));
        assert!((record.cpus() - 0.5).abs() < f64::EPSILON);
    }
}
