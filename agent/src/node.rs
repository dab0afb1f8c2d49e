//! What a node does, for whoever asks: the same for gRPC, for JSON over HTTP, and for a master.

use std::pin::Pin;

use futures_util::Stream;
use hafen_protocol::v1;

use crate::config::Config;
use crate::failure::{Failure, Kind};

/// What comes little by little. It ends early with a failure.
pub type Flow<T> = Pin<Box<dyn Stream<Item = Result<T, Failure>> + Send>>;

/// A node that runs in this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Node {}

fn not_yet<T>() -> Result<T, Failure> {
    Err(Failure::new(Kind::Unsupported, "not yet"))
}

#[expect(clippy::unused_async, reason = "to be filled in")]
impl Node {
    pub async fn run(&self, _spec: v1::TaskSpec) -> Result<v1::TaskStatus, Failure> {
        not_yet()
    }

    pub async fn list(
        &self,
        _request: v1::ListTasksRequest,
    ) -> Result<Vec<v1::TaskStatus>, Failure> {
        not_yet()
    }

    /// By name, or by the beginning of one.
    pub async fn get(&self, _id: &str) -> Result<v1::TaskStatus, Failure> {
        not_yet()
    }

    pub async fn stop(&self, _request: v1::StopTaskRequest) -> Result<v1::TaskStatus, Failure> {
        not_yet()
    }

    pub async fn signal(&self, _request: v1::SignalTaskRequest) -> Result<(), Failure> {
        not_yet()
    }

    pub async fn remove(&self, _request: v1::RemoveTaskRequest) -> Result<(), Failure> {
        not_yet()
    }

    pub async fn update(&self, _request: v1::UpdateTaskRequest) -> Result<v1::TaskStatus, Failure> {
        not_yet()
    }

    pub async fn wait(&self, _request: v1::WaitTaskRequest) -> Result<v1::TaskStatus, Failure> {
        not_yet()
    }

    pub async fn logs(&self, _request: v1::LogsRequest) -> Result<Flow<v1::LogEntry>, Failure> {
        not_yet()
    }

    pub async fn attach(
        &self,
        _start: v1::AttachStart,
        _input: Flow<v1::AttachInput>,
    ) -> Result<Flow<v1::Output>, Failure> {
        not_yet()
    }

    pub async fn exec(
        &self,
        _start: v1::ExecStart,
        _input: Flow<v1::ExecInput>,
    ) -> Result<Flow<v1::Output>, Failure> {
        not_yet()
    }

    pub async fn stats(&self, _request: v1::StatsRequest) -> Result<v1::StatsResponse, Failure> {
        not_yet()
    }

    pub async fn events(&self, _request: v1::EventsRequest) -> Result<Flow<v1::Event>, Failure> {
        not_yet()
    }

    pub async fn run_pod(&self, _spec: v1::PodSpec) -> Result<v1::PodStatus, Failure> {
        not_yet()
    }

    pub async fn list_pods(&self) -> Result<Vec<v1::PodStatus>, Failure> {
        not_yet()
    }

    pub async fn get_pod(&self, _id: &str) -> Result<v1::PodStatus, Failure> {
        not_yet()
    }

    pub async fn stop_pod(&self, _request: v1::StopPodRequest) -> Result<v1::PodStatus, Failure> {
        not_yet()
    }

    pub async fn remove_pod(&self, _request: v1::RemovePodRequest) -> Result<(), Failure> {
        not_yet()
    }

    pub async fn status(&self) -> Result<v1::NodeStatus, Failure> {
        not_yet()
    }

    pub async fn debug(&self) -> Result<v1::DebugResponse, Failure> {
        not_yet()
    }
}

impl Node {
    /// Take up what the last agent left.
    ///
    /// # Errors
    /// Why there can be no node here.
    #[expect(clippy::unused_async, reason = "to be filled in")]
    pub async fn open(_config: &Config) -> Result<Self, Failure> {
        Ok(Self {})
    }

    /// For Prometheus, as text (OpenMetrics).
    #[must_use]
    pub fn metrics(&self) -> String {
        "# EOF\n".to_owned()
    }
}
