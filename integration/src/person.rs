//! What a person asks of a cluster.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::agent::http;
use crate::{Answer, wait_until};

/// Of waits for what a cluster does.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Somebody who talks to whichever coordinator directs.
#[derive(Debug, Clone)]
pub struct Person {
    /// One coordinator each: its socket, and its log.
    pub(crate) coordinators: Vec<(PathBuf, PathBuf)>,
}

impl Person {
    /// What the coordinators have logged.
    #[must_use]
    pub fn said(&self) -> String {
        let logs = self.coordinators.iter().map(|(_, log)| fs::read_to_string(log));
        logs.map(Result::unwrap_or_default).collect::<Vec<_>>().join("---\n")
    }

    /// `None`: nobody answers, or nobody directs.
    #[must_use]
    pub fn try_http(&self, method: &str, path: &str, body: &Value) -> Option<Answer> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.try_raw(method, path, &body)
    }

    fn try_raw(&self, method: &str, path: &str, body: &str) -> Option<Answer> {
        let ask = |(socket, _): &(PathBuf, PathBuf)| http(socket, method, path, body);
        let directs = |answer: &Answer| self.coordinators.len() == 1 || answer.status != 503;
        self.coordinators.iter().filter_map(ask).find(directs)
    }

    /// A request to the coordinator.
    ///
    /// # Panics
    /// There is no answer.
    #[must_use]
    #[track_caller]
    pub fn http(&self, method: &str, path: &str, body: &Value) -> Answer {
        let answer = match self.coordinators.len() {
            1 => self.try_http(method, path, body),
            _ => wait_until(SOON, || self.try_http(method, path, body)),
        };
        answer.unwrap_or_else(|| panic!("no answer to {method} {path}: {}", self.said()))
    }

    /// The same with a body that need be no JSON.
    ///
    /// # Panics
    /// There is no answer.
    #[must_use]
    #[track_caller]
    pub fn raw(&self, method: &str, path: &str, body: &str) -> Answer {
        let answer = self.try_raw(method, path, body);
        answer.unwrap_or_else(|| panic!("no answer to {method} {path}: {}", self.said()))
    }

    #[must_use]
    #[track_caller]
    pub fn view(&self) -> Value {
        self.http("GET", "/v1/cluster", &Value::Null).expect(200)
    }

    /// Look again and again until something is so.
    ///
    /// # Panics
    /// It never is.
    #[track_caller]
    pub fn wait(&self, what: &str, mut is_so: impl FnMut(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = wait_until(SOON, || {
            last = self.view();
            is_so(&last).then(|| last.clone())
        });
        found.unwrap_or_else(|| panic!("never so: {what}: {last:#}\n{}", self.said()))
    }

    /// Wait until so many nodes are heard.
    #[track_caller]
    pub fn hears(&self, nodes: usize) -> Value {
        self.wait(&format!("{nodes} nodes are heard"), |view| {
            of(view, "nodes", |node| node["presence"] == "PRESENCE_HERE").len() == nodes
        })
    }

    /// Take a job on.
    #[track_caller]
    pub fn submit(&self, job: &Value) -> Value {
        self.http("POST", "/v1/jobs", &json!({ "job": job })).expect(201)
    }

    #[track_caller]
    pub fn scale(&self, job: &str, replicas: u32) {
        let path = format!("/v1/jobs/{job}/scale");
        let _ = self.http("POST", &path, &json!({ "replicas": replicas })).expect(200);
    }

    /// Wait until so many instances of a job are ready, and give them.
    #[track_caller]
    pub fn ready(&self, job: &str, count: usize) -> Vec<Value> {
        let mut found = Vec::new();
        self.wait(&format!("{count} of {job} are ready"), |view| {
            found = ready(view, job);
            found.len() == count
        });
        found
    }

    /// Stop all jobs and forget them.
    pub(crate) fn purge(&self) {
        for job in of(&self.view(), "jobs", |_| true) {
            let name = job["name"].as_str().expect("a name");
            let path = format!("/v1/jobs/{name}/stop");
            let _ = self.http("POST", &path, &json!({ "purge": true })).expect(200);
        }
    }
}

/// What of a list of the view is so.
pub fn of<'v>(view: &'v Value, list: &str, is_so: impl Fn(&Value) -> bool) -> Vec<&'v Value> {
    view[list].as_array().into_iter().flatten().filter(|one| is_so(one)).collect()
}

/// Instances of a job that are ready.
#[must_use]
pub fn ready(view: &Value, job: &str) -> Vec<Value> {
    let fits = |one: &Value| one["job"] == job && one["phase"] == "PHASE_READY";
    of(view, "instances", fits).into_iter().cloned().collect()
}
