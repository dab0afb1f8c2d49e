//! The twin of JSON over HTTP. `attach` and `exec` are for gRPC only: both sides talk at once there.

use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hafen_door::words::{Asked, Words, body, lines, not_so};
use hafen_protocol::v1;
use serde_json::{Value, json};

use crate::failure::{Failure, Kind};
use crate::node::Node;

type Answer<T = Value> = Result<Json<T>, Failure>;

pub(super) fn router(node: Node) -> Router {
    Router::new()
        .route("/v1/tasks", get(list).post(run))
        .route("/v1/tasks/{id}", get(get_task).delete(remove))
        .route("/v1/tasks/{id}/stop", post(stop))
        .route("/v1/tasks/{id}/signal", post(signal))
        .route("/v1/tasks/{id}/update", post(update))
        .route("/v1/tasks/{id}/wait", post(wait))
        .route("/v1/tasks/{id}/logs", get(logs))
        .route("/v1/stats", get(stats))
        .route("/v1/events", get(events))
        .route("/v1/pods", get(list_pods).post(run_pod))
        .route("/v1/pods/{id}", get(get_pod).delete(remove_pod))
        .route("/v1/pods/{id}/stop", post(stop_pod))
        .route("/v1/node", get(status))
        .route("/v1/debug", get(debug))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthy))
        .fallback(nowhere)
        .method_not_allowed_fallback(not_so)
        .with_state(node)
}

pub(super) fn refusal() -> Failure {
    const WHY: &str =
        "you may not: be root, or a member of the group that the agent was told (--group)";
    Failure::new(Kind::Denied, WHY)
}

pub(super) fn denied() -> Response {
    refusal().into_response()
}

async fn nowhere() -> Failure {
    Failure::new(
        Kind::NotFound,
        "there is no such path: /v1/tasks, /v1/pods, /v1/node, /v1/stats and /v1/events are",
    )
}

async fn list(State(node): State<Node>, Query(asked): Asked) -> Answer<v1::ListTasksResponse> {
    let mut words = Words(asked);
    let all = words.flag("all")?;
    let labels = words.all("label").into_iter().map(|label| {
        let (name, value) = label.split_once('=').unwrap_or((&label, ""));
        (name.to_owned(), value.to_owned())
    });
    let request = v1::ListTasksRequest { all, labels: labels.collect() };
    words.done()?;
    Ok(Json(v1::ListTasksResponse { tasks: node.list(request).await? }))
}

async fn run(
    State(node): State<Node>,
    request: Request,
) -> Result<(StatusCode, Json<v1::TaskStatus>), Failure> {
    Ok((StatusCode::CREATED, Json(node.run(body(request).await?).await?)))
}

async fn get_task(State(node): State<Node>, Path(id): Path<String>) -> Answer<v1::TaskStatus> {
    Ok(Json(node.get(&id).await?))
}

async fn remove(State(node): State<Node>, Path(id): Path<String>, Query(asked): Asked) -> Answer {
    let mut words = Words(asked);
    let force = words.flag("force")?;
    words.done()?;
    node.remove(v1::RemoveTaskRequest { id, force }).await?;
    Ok(Json(json!({})))
}

async fn stop(
    State(node): State<Node>,
    Path(id): Path<String>,
    request: Request,
) -> Answer<v1::TaskStatus> {
    let asked: v1::StopTaskRequest = body(request).await?;
    Ok(Json(node.stop(v1::StopTaskRequest { id, ..asked }).await?))
}

async fn signal(State(node): State<Node>, Path(id): Path<String>, request: Request) -> Answer {
    let asked: v1::SignalTaskRequest = body(request).await?;
    node.signal(v1::SignalTaskRequest { id, ..asked }).await?;
    Ok(Json(json!({})))
}

async fn update(
    State(node): State<Node>,
    Path(id): Path<String>,
    request: Request,
) -> Answer<v1::TaskStatus> {
    let asked: v1::UpdateTaskRequest = body(request).await?;
    Ok(Json(node.update(v1::UpdateTaskRequest { id, ..asked }).await?))
}

async fn wait(
    State(node): State<Node>,
    Path(id): Path<String>,
    request: Request,
) -> Answer<v1::TaskStatus> {
    let asked: v1::WaitTaskRequest = body(request).await?;
    Ok(Json(node.wait(v1::WaitTaskRequest { id, ..asked }).await?))
}

async fn logs(
    State(node): State<Node>,
    Path(id): Path<String>,
    Query(asked): Asked,
) -> Result<Response, Failure> {
    let mut words = Words(asked);
    let (follow, tail) = (words.flag("follow")?, words.one("tail")?);
    let since =
        words.one::<humantime::Timestamp>("since")?.map(|time| crate::time::stamp(time.into()));
    words.done()?;
    Ok(lines(node.logs(v1::LogsRequest { id, follow, tail, since }).await?))
}

async fn stats(State(node): State<Node>, Query(asked): Asked) -> Answer<v1::StatsResponse> {
    let mut words = Words(asked);
    let ids = words.all("id");
    words.done()?;
    Ok(Json(node.stats(v1::StatsRequest { ids }).await?))
}

async fn events(State(node): State<Node>, Query(asked): Asked) -> Result<Response, Failure> {
    let mut words = Words(asked);
    let since = words.one("since")?.unwrap_or_default();
    let (follow, id) = (words.flag("follow")?, words.one("id")?.unwrap_or_default());
    words.done()?;
    Ok(lines(node.events(v1::EventsRequest { since, follow, id }).await?))
}

async fn list_pods(State(node): State<Node>) -> Answer<v1::ListPodsResponse> {
    Ok(Json(v1::ListPodsResponse { pods: node.list_pods().await? }))
}

async fn run_pod(
    State(node): State<Node>,
    request: Request,
) -> Result<(StatusCode, Json<v1::PodStatus>), Failure> {
    Ok((StatusCode::CREATED, Json(node.run_pod(body(request).await?).await?)))
}

async fn get_pod(State(node): State<Node>, Path(id): Path<String>) -> Answer<v1::PodStatus> {
    Ok(Json(node.get_pod(&id).await?))
}

async fn stop_pod(
    State(node): State<Node>,
    Path(id): Path<String>,
    request: Request,
) -> Answer<v1::PodStatus> {
    let asked: v1::StopPodRequest = body(request).await?;
    Ok(Json(node.stop_pod(v1::StopPodRequest { id, ..asked }).await?))
}

async fn remove_pod(
    State(node): State<Node>,
    Path(id): Path<String>,
    Query(asked): Asked,
) -> Answer {
    let mut words = Words(asked);
    let force = words.flag("force")?;
    words.done()?;
    node.remove_pod(v1::RemovePodRequest { id, force }).await?;
    Ok(Json(json!({})))
}

async fn status(State(node): State<Node>) -> Answer<v1::NodeStatus> {
    Ok(Json(node.status().await?))
}

async fn debug(State(node): State<Node>) -> Answer<v1::DebugResponse> {
    Ok(Json(node.debug().await?))
}

async fn metrics(State(node): State<Node>) -> Response {
    const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match node.metrics().await {
        Ok(text) => ([(header::CONTENT_TYPE, KIND)], text).into_response(),
        Err(failure) => failure.into_response(),
    }
}

async fn healthy() -> &'static str {
    "ok\n"
}
