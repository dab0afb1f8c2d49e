//! Real agents: from publishing a job to its containers' first words, and from a machine's death to those of what replaces
//! its container.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use hafen_protocol::time::span;
use hafen_protocol::v1;
use hafen_protocol::v1::cluster_node::Presence;
use hafen_protocol::v1::instance::Phase;

use super::coordinator::Coordinator;
use super::nodes::Machine;
use super::report::{LIVE, Report};
use super::{Error, go_on};
use crate::agent::gate::Gate;
use crate::agent::{PATIENCE, Wanted, hafen, wait_until};
use crate::stats::median;

/// Of the job that is published: as many as there are machines.
const PUBLISHED: u32 = 3;
/// Of the job that loses one: a machine is free for another one.
const GUARDED: u32 = 2;
/// Containers live longer than anybody waits for them.
const FOREVER: u64 = 1_000_000;
/// Between a machine's last message and its death there is a random part of this.
const PINGS: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How often a job is published.
    pub publish: u32,
    /// How often a machine dies.
    pub failovers: u32,
    /// Of the coordinator.
    pub lease: Duration,
}

/// What all rounds share.
#[derive(Debug)]
pub struct Scene<'a> {
    pub coordinator: &'a Coordinator,
    pub machines: &'a mut [Machine],
    pub gate: &'a Gate,
    pub settings: Settings,
    pub interrupted: &'a AtomicBool,
}

/// Seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Failover {
    /// From the first kill to the first words of the replacement.
    whole: f64,
    /// From the moment in which the coordinator said that the machine is unreachable.
    after_told: f64,
}

impl Failover {
    /// The lease counts from the machine's last message, which came before it died: with the lease taken off, less is left than
    /// what came after the detection. But one that detects too late must not gain by it: so the greater one counts.
    fn beyond_detection(&self, lease: Duration) -> f64 {
        self.after_told.max(self.whole - lease.as_secs_f64())
    }
}

impl Scene<'_> {
    /// # Errors
    /// Of the calls, or if something does not happen in time.
    pub fn measure(&mut self, report: &mut Report) -> Result<(), Error> {
        self.settle()?;
        self.publish_all(report)?;
        self.fail_all(report)
    }

    fn publish_all(&self, report: &mut Report) -> Result<(), Error> {
        let mut all = Vec::new();
        for n in 1..=self.settings.publish {
            go_on(self.interrupted)?;
            eprintln!("publish, round {n}");
            all.push(self.publish(&format!("publish-{n}"))?);
        }
        report.named.publish_to_running_s = median(&all);
        let case = format!("{PUBLISHED} replicas on as many machines");
        report.add(LIVE, &case, "publish to last first words, s", all);
        Ok(())
    }

    fn publish(&self, name: &str) -> Result<f64, Error> {
        let job = self.job(name, PUBLISHED);
        let begin = Instant::now();
        self.coordinator.submit(job)?;
        let heard = self.gate.await_times(name, PUBLISHED as usize)?;
        let last = heard.into_iter().max().ok_or("no container")?;
        self.await_ready(name, PUBLISHED)?;
        self.end(name)?;
        Ok(last.duration_since(begin).as_secs_f64())
    }

    fn fail_all(&mut self, report: &mut Report) -> Result<(), Error> {
        let mut all = Vec::new();
        for n in 1..=self.settings.failovers {
            go_on(self.interrupted)?;
            eprintln!("failover, round {n}");
            all.push(self.fail(&format!("failover-{n}"))?);
        }
        let lease = self.settings.lease;
        let each = |of: &dyn Fn(&Failover) -> f64| -> Vec<f64> { all.iter().map(of).collect() };
        let beyond = each(&|one| one.beyond_detection(lease));
        report.named.failover_beyond_detection_s = median(&beyond);
        let case = format!("a machine dies, lease {} s", lease.as_secs_f64());
        report.add(LIVE, &case, "beyond detection, s", beyond);
        report.add(LIVE, &case, "after it is called unreachable, s", each(&|one| one.after_told));
        let less = each(&|one| one.whole - lease.as_secs_f64());
        report.add(LIVE, &case, "after its death, less the lease, s", less);
        report.add(LIVE, &case, "after its death, s", each(&|one| one.whole));
        Ok(())
    }

    fn fail(&mut self, name: &str) -> Result<Failover, Error> {
        self.coordinator.submit(self.job(name, GUARDED))?;
        self.gate.await_times(name, GUARDED as usize)?;
        let node = self.await_ready(name, GUARDED)?;
        let told = self.coordinator.unreachable(&node)?;
        std::thread::sleep(PINGS.mul_f64(fastrand::f64()));
        let machine = self.machines.iter_mut().find(|machine| machine.name == node);
        let machine = machine.ok_or_else(|| format!("{node} is none of our machines"))?;
        let begin = Instant::now();
        machine.die()?;
        let heard = self.gate.await_times(name, 1)?;
        let first = heard.into_iter().min().ok_or("no container")?;
        let told = told.recv_timeout(PATIENCE).map_err(|_| format!("{node}: no event tells"))?;
        machine.start()?;
        self.settle()?;
        self.end(name)?;
        Ok(Failover {
            whole: first.duration_since(begin).as_secs_f64(),
            after_told: first.saturating_duration_since(told).as_secs_f64(),
        })
    }

    fn job(&self, name: &str, replicas: u32) -> v1::JobSpec {
        let wanted = Wanted { name: name.to_owned(), sleep: FOREVER };
        let request =
            v1::Amounts { cpu_milli: Some(10), memory: Some(16 << 20), ..v1::Amounts::default() };
        // The first process of a container does not hear a signal for which it has no handler.
        let kill = v1::KillPolicy { signal: "SIGKILL".into(), grace: Some(span(Duration::ZERO)) };
        let task = v1::TaskSpec {
            id: String::new(),
            resources: Some(v1::Resources { request: Some(request), ..v1::Resources::default() }),
            kill: Some(kill),
            ..hafen::spec(&wanted, &self.gate.folder)
        };
        v1::JobSpec {
            name: name.to_owned(),
            what: Some(v1::job_spec::What::Task(task)),
            kind: Some(v1::job_spec::Kind::Replicas(replicas)),
            most_per_node: 1,
            ..v1::JobSpec::default()
        }
    }

    /// Until so many instances of a job are ready; the node of the first.
    fn await_ready(&self, job: &str, count: u32) -> Result<String, Error> {
        let mut node = None;
        wait_until(&format!("{count} instances of {job} are ready"), || {
            let Ok(view) = self.coordinator.view() else { return false };
            let is_ready = |one: &&v1::Instance| one.job == job && one.phase() == Phase::Ready;
            let mut ready = view.instances.iter().filter(is_ready);
            node = ready.next().map(|one| one.node.clone());
            ready.count() + 1 >= count as usize
        })?;
        node.ok_or_else(|| format!("{job} has no instance").into())
    }

    /// Nothing of a job is left.
    fn end(&self, job: &str) -> Result<(), Error> {
        self.coordinator.purge(job)?;
        wait_until(&format!("nothing of {job} is left"), || {
            self.coordinator.view().is_ok_and(|view| is_gone(&view, job))
        })
    }

    /// All machines are here.
    fn settle(&self) -> Result<(), Error> {
        let names: Vec<&str> = self.machines.iter().map(|machine| machine.name.as_str()).collect();
        wait_until("all machines are here", || {
            self.coordinator.view().is_ok_and(|view| are_here(&view, &names))
        })
    }
}

fn is_gone(view: &v1::ClusterView, job: &str) -> bool {
    view.jobs.iter().all(|one| one.name != job) && view.instances.iter().all(|one| one.job != job)
}

fn are_here(view: &v1::ClusterView, names: &[&str]) -> bool {
    let is_here = |name: &&str| {
        let mut nodes = view.nodes.iter();
        nodes.any(|node| node.name == **name && node.presence() == Presence::Here)
    };
    names.iter().all(is_here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_detection_counts_and_early_silence_does_not_help() {
        let lease = Duration::from_secs(5);
        // The last ping was 0.8 s before the death.
        let usual = Failover { whole: 4.3, after_told: 0.1 };
        assert!((usual.beyond_detection(lease) - 0.1).abs() < 1e-9);
        let late = Failover { whole: 7.0, after_told: 0.1 };
        assert!((late.beyond_detection(lease) - 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_view_says_what_is_left_and_who_is_here() {
        let mut view = v1::ClusterView::default();
        assert!(is_gone(&view, "j") && !are_here(&view, &["n1"]));
        let mut node = v1::ClusterNode { name: "n1".into(), ..v1::ClusterNode::default() };
        node.set_presence(Presence::Away);
        view.nodes.push(node);
        assert!(!are_here(&view, &["n1"]));
        view.nodes[0].set_presence(Presence::Here);
        assert!(are_here(&view, &["n1"]) && !are_here(&view, &["n1", "n2"]));
        view.instances.push(v1::Instance { job: "j".into(), ..v1::Instance::default() });
        assert!(!is_gone(&view, "j") && is_gone(&view, "k"));
    }
}
