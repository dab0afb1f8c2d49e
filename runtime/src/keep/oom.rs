//! Whom the kernel's OOM killer ended, as its log tells.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use hafen_spec::keep::Oom;
use nix::fcntl::OFlag;

/// A record of /dev/kmsg (Documentation/ABI/testing/dev-kmsg) is no longer than this.
const LONGEST: usize = 8192;

/// The last process that was ended in a cgroup with this name, or below it, whosever limit it was. `None`: the kernel's
/// log does not say so, or we may not read it.
pub(crate) fn last_of(cgroup: &Path) -> Option<Oom> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits() | OFlag::O_CLOEXEC.bits())
        .open("/dev/kmsg")
        .ok()?;
    let name = cgroup.file_name()?.to_str()?;
    let mut found = Search::default();
    let mut bytes = [0; LONGEST];
    loop {
        match file.read(&mut bytes) {
            Ok(0) => break,
            Ok(n) => found.look_at(&String::from_utf8_lossy(&bytes[..n]), name),
            // What was overwritten meanwhile is passed over.
            Err(e) if e.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => break,
        }
    }
    found.last
}

/// Two records belong together: where it was, and who was ended.
#[derive(Default)]
struct Search {
    victim: Option<i32>,
    last: Option<Oom>,
}

impl Search {
    fn look_at(&mut self, record: &str, name: &str) {
        let Some((_, text)) = record.split_once(';') else { return };
        if let Some(fields) = text.strip_prefix("oom-kill:") {
            let field = |key: &str| {
                fields
                    .split(',')
                    .find_map(|f| f.strip_prefix(key)?.strip_prefix('='))
                    .map(str::trim)
            };
            let ours =
                field("task_memcg").is_some_and(|path| path.split('/').any(|part| part == name));
            self.victim = field("pid").filter(|_| ours).and_then(|pid| pid.parse().ok());
        } else if let Some((_, words)) = text.split_once("Killed process ") {
            let oom = killed(words);
            if oom.as_ref().map(|oom| oom.pid) == self.victim {
                self.last = oom.or(self.last.take());
            }
        }
    }
}

/// `42 (name) total-vm:1kB, anon-rss:2kB, file-rss:3kB, shmem-rss:4kB, UID:0 ...`
fn killed(words: &str) -> Option<Oom> {
    let (pid, rest) = words.split_once(" (")?;
    let (process, numbers) = rest.rsplit_once(") ")?;
    let kib = |key: &str| -> u64 {
        let value = numbers.split(", ").find_map(|n| n.strip_prefix(key)?.strip_suffix("kB"));
        value.and_then(|v| v.parse().ok()).unwrap_or(0)
    };
    let resident = (kib("anon-rss:") + kib("file-rss:") + kib("shmem-rss:")) << 10;
    Some(Oom { pid: pid.parse().ok()?, process: process.to_owned(), resident })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_records_make_one_end() {
        let records = [
            "6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/hafen/other,task_memcg=/hafen/other,task=x,pid=7,uid=0\n",
            "3,1,3,-;Memory cgroup out of memory: Killed process 7 (x) total-vm:9kB, anon-rss:9kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:44kB oom_score_adj:0\n",
            "6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/hafen/web,task_memcg=/hafen/web,task=py (3),pid=42,uid=0\n",
            "3,1,3,-;Memory cgroup out of memory: Killed process 42 (py (3)) total-vm:70000kB, anon-rss:59392kB, file-rss:8kB, shmem-rss:0kB, UID:0 pgtables:144kB oom_score_adj:0\n",
        ];
        let mut search = Search::default();
        records.iter().for_each(|record| search.look_at(record, "web"));
        let resident = (59392 + 8) << 10;
        assert_eq!(search.last, Some(Oom { pid: 42, process: "py (3)".to_owned(), resident }));
    }

    #[test]
    fn the_limit_may_be_that_of_a_cgroup_above_or_the_machines() {
        for whose in
            ["CONSTRAINT_MEMCG,nodemask=(null),oom_memcg=/hafen/pod", "CONSTRAINT_NONE,global_oom"]
        {
            let mut search = Search::default();
            let record = format!(
                "6,1,2,-;oom-kill:constraint={whose},task_memcg=/hafen/pod/web/inner,task=py,pid=42,uid=0\n"
            );
            search.look_at(&record, "web");
            let record = "3,1,3,-;Out of memory: Killed process 42 (py) total-vm:7kB, anon-rss:4kB, file-rss:0kB, shmem-rss:0kB, UID:0\n";
            search.look_at(record, "web");
            let last = search.last.map(|oom| (oom.pid, oom.resident));
            assert_eq!(last, Some((42, 4 << 10)), "{whose}");
        }
    }
}
