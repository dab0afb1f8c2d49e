//! Whether tasks are well, and whether they can be used: asked in this process, within their network.

pub mod probe;
pub mod schedule;

use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hafen_protocol::v1;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

pub use probe::Target;
pub use schedule::{Change, CheckError, Schedule};

use crate::failure::Failure;

/// Read the checks of a task.
///
/// # Errors
/// Names the field.
pub fn validate(checks: &[v1::Check]) -> Result<Vec<Schedule>, CheckError> {
    let mut read: Vec<Schedule> = Vec::with_capacity(checks.len());
    for (index, check) in checks.iter().enumerate() {
        let schedule = Schedule::new(index, check)?;
        if read.iter().any(|other| other.name() == schedule.name()) {
            let reason = format!("{:?} is the name of two checks", check.name);
            return Err(CheckError { field: format!("checks[{index}].name"), reason });
        }
        read.push(schedule);
    }
    Ok(read)
}

/// Ask until nobody listens to `changes`, or for ever: drop it when the task ends. `exec` runs a command in the task
/// and says its exit code.
pub async fn run<E, F>(
    checks: Vec<Schedule>,
    target: Target,
    exec: E,
    changes: mpsc::Sender<Change>,
) where
    E: Fn(Vec<String>, Duration) -> F + Send + Sync,
    F: Future<Output = Result<i32, Failure>> + Send,
{
    let all: FuturesUnordered<_> =
        checks.into_iter().map(|check| ask(check, &target, &exec, &changes)).collect();
    all.collect::<()>().await;
}

async fn ask<E, F>(mut check: Schedule, target: &Target, exec: &E, changes: &mpsc::Sender<Change>)
where
    E: Fn(Vec<String>, Duration) -> F + Send + Sync,
    F: Future<Output = Result<i32, Failure>> + Send,
{
    let first = Instant::now() + check.initial_delay();
    let mut ticks = interval_at(first, check.interval());
    // One that took longer than the interval is not made up for.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let timeout = check.timeout();
        // A dropped probe closes its socket; a command is ended by whoever executes it.
        let answer =
            tokio::time::timeout(timeout, probe::ask(check.probe(), target, exec, timeout));
        let answer = answer.await.unwrap_or_else(|_| Err(late(timeout)));
        let Some(change) = check.answer(answer) else { continue };
        if changes.send(change).await.is_err() {
            return;
        }
    }
}

fn late(timeout: Duration) -> String {
    format!("no answer within {}", humantime::format_duration(timeout))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str) -> v1::Check {
        v1::Check {
            name: name.to_owned(),
            kind: v1::check::Kind::Health.into(),
            probe: Some(v1::check::Probe::Command(v1::check::Command {
                args: vec!["ok".to_owned()],
            })),
            interval: Some(Duration::from_secs(10).into()),
            failures: 2,
            ..v1::Check::default()
        }
    }

    fn here() -> Target {
        Target { namespace: "/proc/thread-self/ns/net".into(), address: None }
    }

    #[test]
    fn names_are_unique() {
        let error = validate(&[check("a"), check("a")]).unwrap_err();
        assert_eq!(error.to_string(), "checks[1].name: \"a\" is the name of two checks");
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_told_as_they_come() {
        let answers = std::sync::Mutex::new(vec![1, 1, 0]);
        let exec = |_: Vec<String>, _: Duration| {
            let code = answers.lock().unwrap().pop();
            async move { Ok(code.unwrap_or(1)) }
        };
        let (sender, mut changes) = mpsc::channel(1);
        let began = Instant::now();
        let running = run(validate(&[check("a")]).unwrap(), here(), exec, sender);
        let listening = async {
            let mut told = Vec::new();
            for _ in 0..3 {
                let Change { status, flipped } = changes.recv().await.unwrap();
                told.push((began.elapsed().as_secs(), status.passing, flipped));
            }
            drop(changes);
            told
        };
        let (told, ()) = tokio::join!(listening, async {
            // It ends with the next thing to tell, or by being dropped.
            let _ = tokio::time::timeout(Duration::from_secs(100), running).await;
        });
        assert_eq!(told, [(0, true, false), (10, true, false), (20, false, true)]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_does_not_come_is_a_failure() {
        let exec = |_: Vec<String>, _: Duration| std::future::pending::<Result<i32, Failure>>();
        let (sender, mut changes) = mpsc::channel(1);
        let running = tokio::spawn(run(validate(&[check("a")]).unwrap(), here(), exec, sender));
        let change = changes.recv().await.unwrap();
        assert_eq!(change.status.message, "no answer within 5s");
        running.abort();
    }
}
