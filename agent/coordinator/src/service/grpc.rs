//! The service of gRPC for people: each call is one method of the desk.

use axum::Router;
use hafen_door::MOST_BYTES;
use hafen_door::grpc::{Answer, Told, first, input, many, missing, one};
use hafen_protocol::v1::cluster_server::{Cluster as Service, ClusterServer};
use hafen_protocol::v1::master_server::MasterServer;
use hafen_protocol::v1::{self, attach_input, exec_input};
use tonic::{Request, Streaming};

use super::http::Rooms;
use super::master::Master;

pub(super) fn router(rooms: Rooms) -> Router {
    let master = Master { desk: rooms.desk.clone(), gate: rooms.gate.clone() };
    let master = MasterServer::new(master)
        .max_decoding_message_size(MOST_BYTES)
        .max_encoding_message_size(usize::MAX);
    let cluster = ClusterServer::new(Adapter { rooms })
        .max_decoding_message_size(MOST_BYTES)
        .max_encoding_message_size(usize::MAX);
    Router::new()
        .route_service("/hafen.v1.Master/{call}", master)
        .route_service("/hafen.v1.Cluster/{call}", cluster)
}

struct Adapter {
    rooms: Rooms,
}

#[tonic::async_trait]
impl Service for Adapter {
    async fn get_cluster(
        &self,
        request: Request<v1::GetClusterRequest>,
    ) -> Answer<v1::ClusterView> {
        let view = self.rooms.desk.cluster(request.into_inner()).await;
        one(view.map(|view| (*view).clone()))
    }

    async fn drain_node(&self, request: Request<v1::DrainNodeRequest>) -> Answer<v1::ClusterNode> {
        one(self.rooms.desk.drain(request.into_inner()).await)
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Answer<v1::RemoveNodeResponse> {
        let Rooms { desk, gate } = &self.rooms;
        let removed = gate.remove(desk, request.into_inner()).await;
        one(removed.map(|()| v1::RemoveNodeResponse {}))
    }

    async fn plan_job(&self, request: Request<v1::PlanJobRequest>) -> Answer<v1::JobPlan> {
        one(self.rooms.desk.plan(request.into_inner()).await)
    }

    async fn submit_job(&self, request: Request<v1::SubmitJobRequest>) -> Answer<v1::Job> {
        one(self.rooms.desk.submit(request.into_inner()).await)
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Answer<v1::Job> {
        one(self.rooms.desk.job(request.into_inner().name).await)
    }

    async fn stop_job(&self, request: Request<v1::StopJobRequest>) -> Answer<v1::Job> {
        one(self.rooms.desk.stop_job(request.into_inner()).await)
    }

    async fn scale_job(&self, request: Request<v1::ScaleJobRequest>) -> Answer<v1::Job> {
        one(self.rooms.desk.scale(request.into_inner()).await)
    }

    async fn roll_back_job(&self, request: Request<v1::RollBackJobRequest>) -> Answer<v1::Job> {
        one(self.rooms.desk.roll_back(request.into_inner()).await)
    }

    async fn get_instance(&self, request: Request<v1::GetInstanceRequest>) -> Answer<v1::Instance> {
        one(self.rooms.desk.instance(request.into_inner().name).await)
    }

    async fn stop_instance(
        &self,
        request: Request<v1::StopInstanceRequest>,
    ) -> Answer<v1::Instance> {
        one(self.rooms.desk.stop_instance(request.into_inner().name).await)
    }

    async fn signal_instance(
        &self,
        request: Request<v1::SignalTaskRequest>,
    ) -> Answer<v1::SignalTaskResponse> {
        let sent = self.rooms.desk.signal(request.into_inner()).await;
        one(sent.map(|()| v1::SignalTaskResponse {}))
    }

    type LogsStream = Told<v1::LogEntry>;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Answer<Self::LogsStream> {
        many(self.rooms.desk.logs(request.into_inner()).await)
    }

    type AttachStream = Told<v1::Output>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::AttachInput>>,
    ) -> Answer<Self::AttachStream> {
        let mut stream = request.into_inner();
        match first(&mut stream).await?.and_then(|message| message.what) {
            Some(attach_input::What::Start(start)) => {
                many(self.rooms.desk.attach(start, input(stream)).await)
            }
            _ => Err(missing("start, in the first message,").into()),
        }
    }

    type ExecStream = Told<v1::Output>;

    async fn exec(&self, request: Request<Streaming<v1::ExecInput>>) -> Answer<Self::ExecStream> {
        let mut stream = request.into_inner();
        match first(&mut stream).await?.and_then(|message| message.what) {
            Some(exec_input::What::Start(start)) => {
                many(self.rooms.desk.exec(start, input(stream)).await)
            }
            _ => Err(missing("start, in the first message,").into()),
        }
    }

    type EventsStream = Told<v1::ClusterEvent>;

    async fn events(
        &self,
        request: Request<v1::ClusterEventsRequest>,
    ) -> Answer<Self::EventsStream> {
        many(self.rooms.desk.events(request.into_inner()))
    }

    async fn set_quota(&self, request: Request<v1::SetQuotaRequest>) -> Answer<v1::Quota> {
        one(self.rooms.desk.set_quota(request.into_inner()).await)
    }

    async fn list_quotas(
        &self,
        _request: Request<v1::ListQuotasRequest>,
    ) -> Answer<v1::ListQuotasResponse> {
        one(self.rooms.desk.quotas().await)
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Answer<v1::JoinToken> {
        one(self.rooms.gate.token(&self.rooms.desk, request.into_inner()).await)
    }

    async fn withdraw_certificates(
        &self,
        request: Request<v1::WithdrawCertificatesRequest>,
    ) -> Answer<v1::Withdrawal> {
        one(self.rooms.gate.withdraw(&self.rooms.desk, request.into_inner()).await)
    }

    async fn list_withdrawals(
        &self,
        _request: Request<v1::ListWithdrawalsRequest>,
    ) -> Answer<v1::ListWithdrawalsResponse> {
        one(Ok(self.rooms.gate.withdrawals()))
    }
}
