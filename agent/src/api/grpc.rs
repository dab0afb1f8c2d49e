//! The service of gRPC: each call is one method of the node.

use axum::Router;
use axum::body::Body;
use axum::http::Response;
use hafen_door::grpc::{Answer, Told, first, input, many, missing, one};
use hafen_protocol::v1::node_server::{Node as Service, NodeServer};
use hafen_protocol::v1::{self, attach_input, exec_input};
use tonic::{Request, Status, Streaming};

use super::MOST_BYTES;
use crate::node::Node;

pub(super) fn router(node: Node) -> Router {
    let server = NodeServer::new(Adapter { node })
        .max_decoding_message_size(MOST_BYTES)
        .max_encoding_message_size(usize::MAX);
    Router::new().route_service("/hafen.v1.Node/{call}", server)
}

pub(super) fn denied() -> Response<Body> {
    Status::from(super::http::refusal()).into_http()
}

struct Adapter {
    node: Node,
}

#[tonic::async_trait]
impl Service for Adapter {
    async fn run(&self, request: Request<v1::RunRequest>) -> Answer<v1::TaskStatus> {
        let spec = request.into_inner().task.ok_or_else(|| missing("task"))?;
        one(self.node.run(spec).await)
    }

    async fn list_tasks(
        &self,
        request: Request<v1::ListTasksRequest>,
    ) -> Answer<v1::ListTasksResponse> {
        let tasks = self.node.list(request.into_inner()).await;
        one(tasks.map(|tasks| v1::ListTasksResponse { tasks }))
    }

    async fn get_task(&self, request: Request<v1::GetTaskRequest>) -> Answer<v1::TaskStatus> {
        one(self.node.get(&request.into_inner().id).await)
    }

    async fn stop_task(&self, request: Request<v1::StopTaskRequest>) -> Answer<v1::TaskStatus> {
        one(self.node.stop(request.into_inner()).await)
    }

    async fn signal_task(
        &self,
        request: Request<v1::SignalTaskRequest>,
    ) -> Answer<v1::SignalTaskResponse> {
        let done = self.node.signal(request.into_inner()).await;
        one(done.map(|()| v1::SignalTaskResponse {}))
    }

    async fn remove_task(
        &self,
        request: Request<v1::RemoveTaskRequest>,
    ) -> Answer<v1::RemoveTaskResponse> {
        let done = self.node.remove(request.into_inner()).await;
        one(done.map(|()| v1::RemoveTaskResponse {}))
    }

    async fn update_task(&self, request: Request<v1::UpdateTaskRequest>) -> Answer<v1::TaskStatus> {
        one(self.node.update(request.into_inner()).await)
    }

    async fn wait_task(&self, request: Request<v1::WaitTaskRequest>) -> Answer<v1::TaskStatus> {
        one(self.node.wait(request.into_inner()).await)
    }

    type LogsStream = Told<v1::LogEntry>;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Answer<Self::LogsStream> {
        many(self.node.logs(request.into_inner()).await)
    }

    type AttachStream = Told<v1::Output>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::AttachInput>>,
    ) -> Answer<Self::AttachStream> {
        let mut stream = request.into_inner();
        match first(&mut stream).await?.and_then(|message| message.what) {
            Some(attach_input::What::Start(start)) => {
                many(self.node.attach(start, input(stream)).await)
            }
            _ => Err(missing("start, in the first message,").into()),
        }
    }

    type ExecStream = Told<v1::Output>;

    async fn exec(&self, request: Request<Streaming<v1::ExecInput>>) -> Answer<Self::ExecStream> {
        let mut stream = request.into_inner();
        match first(&mut stream).await?.and_then(|message| message.what) {
            Some(exec_input::What::Start(start)) => {
                many(self.node.exec(start, input(stream)).await)
            }
            _ => Err(missing("start, in the first message,").into()),
        }
    }

    async fn stats(&self, request: Request<v1::StatsRequest>) -> Answer<v1::StatsResponse> {
        one(self.node.stats(request.into_inner()).await)
    }

    type EventsStream = Told<v1::Event>;

    async fn events(&self, request: Request<v1::EventsRequest>) -> Answer<Self::EventsStream> {
        many(self.node.events(request.into_inner()).await)
    }

    async fn run_pod(&self, request: Request<v1::RunPodRequest>) -> Answer<v1::PodStatus> {
        let spec = request.into_inner().pod.ok_or_else(|| missing("pod"))?;
        one(self.node.run_pod(spec).await)
    }

    async fn list_pods(
        &self,
        _request: Request<v1::ListPodsRequest>,
    ) -> Answer<v1::ListPodsResponse> {
        one(self.node.list_pods().await.map(|pods| v1::ListPodsResponse { pods }))
    }

    async fn get_pod(&self, request: Request<v1::GetPodRequest>) -> Answer<v1::PodStatus> {
        one(self.node.get_pod(&request.into_inner().id).await)
    }

    async fn stop_pod(&self, request: Request<v1::StopPodRequest>) -> Answer<v1::PodStatus> {
        one(self.node.stop_pod(request.into_inner()).await)
    }

    async fn remove_pod(
        &self,
        request: Request<v1::RemovePodRequest>,
    ) -> Answer<v1::RemovePodResponse> {
        let done = self.node.remove_pod(request.into_inner()).await;
        one(done.map(|()| v1::RemovePodResponse {}))
    }

    async fn get_node(&self, _request: Request<v1::GetNodeRequest>) -> Answer<v1::NodeStatus> {
        one(self.node.status().await)
    }

    async fn debug(&self, _request: Request<v1::DebugRequest>) -> Answer<v1::DebugResponse> {
        one(self.node.debug().await)
    }
}
