//! The twin of JSON over HTTP, and the page. `attach` and `exec` are for gRPC only: both sides talk at once there.

use std::sync::Arc;

use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use hafen_door::failure::{Failure, Kind};
use hafen_door::words::{Asked, Words, body, lines, not_so};
use hafen_protocol::v1;
use serde_json::{Value, json};

use super::desk::Desk;
use super::join::Gate;

type Answer<T = Value> = Result<Json<T>, Failure>;

/// What handlers need.
#[derive(Debug, Clone)]
pub(super) struct Rooms {
    pub(super) desk: Desk,
    pub(super) gate: Arc<Gate>,
}

pub(super) fn router(rooms: Rooms) -> Router {
    Router::new()
        .route("/v1/cluster", get(cluster))
        .route("/v1/nodes/{name}", delete(remove))
        .route("/v1/nodes/{name}/drain", post(drain))
        .route("/v1/plan", post(plan))
        .route("/v1/jobs", post(submit))
        .route("/v1/jobs/{name}", get(job))
        .route("/v1/jobs/{name}/stop", post(stop))
        .route("/v1/jobs/{name}/scale", post(scale))
        .route("/v1/jobs/{name}/rollback", post(roll_back))
        .route("/v1/instances/{name}", get(instance))
        .route("/v1/instances/{name}/stop", post(stop_instance))
        .route("/v1/instances/{name}/signal", post(signal))
        .route("/v1/instances/{name}/logs", get(logs))
        .route("/v1/events", get(events))
        .route("/v1/quotas", get(quotas))
        .route("/v1/quotas/{namespace}", put(set_quota))
        .route("/v1/tokens", post(token))
        .route("/v1/certificates", get(withdrawals))
        .route("/v1/certificates/withdraw", post(withdraw))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthy))
        .route("/", get(index))
        .route("/page.js", get(script))
        .route("/page.css", get(style))
        .fallback(nowhere)
        .method_not_allowed_fallback(not_so)
        .with_state(rooms)
}

async fn nowhere() -> Failure {
    Failure::new(
        Kind::NotFound,
        "there is no such path: /v1/cluster, /v1/jobs, /v1/nodes, /v1/instances, /v1/events and /v1/quotas are",
    )
}

async fn cluster(
    State(rooms): State<Rooms>,
    Query(asked): Asked,
) -> Result<Json<v1::ClusterView>, Failure> {
    let mut words = Words(asked);
    let after = words.one("after")?.unwrap_or_default();
    let namespace = words.one("namespace")?.unwrap_or_default();
    words.done()?;
    let view = rooms.desk.cluster(v1::GetClusterRequest { after, namespace }).await?;
    Ok(Json((*view).clone()))
}

async fn drain(
    State(rooms): State<Rooms>,
    Path(node): Path<String>,
    request: Request,
) -> Answer<v1::ClusterNode> {
    let asked: v1::DrainNodeRequest = body(request).await?;
    Ok(Json(rooms.desk.drain(v1::DrainNodeRequest { node, ..asked }).await?))
}

async fn remove(State(rooms): State<Rooms>, Path(node): Path<String>) -> Answer {
    rooms.gate.remove(&rooms.desk, v1::RemoveNodeRequest { node }).await?;
    Ok(Json(json!({})))
}

async fn plan(State(rooms): State<Rooms>, request: Request) -> Answer<v1::JobPlan> {
    let job: v1::JobSpec = body(request).await?;
    Ok(Json(rooms.desk.plan(v1::PlanJobRequest { job: Some(job) }).await?))
}

async fn submit(
    State(rooms): State<Rooms>,
    request: Request,
) -> Result<(StatusCode, Json<v1::Job>), Failure> {
    let job = rooms.desk.submit(body(request).await?).await?;
    Ok((StatusCode::CREATED, Json(job)))
}

async fn job(State(rooms): State<Rooms>, Path(name): Path<String>) -> Answer<v1::Job> {
    Ok(Json(rooms.desk.job(name).await?))
}

async fn stop(
    State(rooms): State<Rooms>,
    Path(name): Path<String>,
    request: Request,
) -> Answer<v1::Job> {
    let asked: v1::StopJobRequest = body(request).await?;
    Ok(Json(rooms.desk.stop_job(v1::StopJobRequest { name, ..asked }).await?))
}

async fn scale(
    State(rooms): State<Rooms>,
    Path(name): Path<String>,
    request: Request,
) -> Answer<v1::Job> {
    let asked: v1::ScaleJobRequest = body(request).await?;
    Ok(Json(rooms.desk.scale(v1::ScaleJobRequest { name, ..asked }).await?))
}

async fn roll_back(
    State(rooms): State<Rooms>,
    Path(name): Path<String>,
    request: Request,
) -> Answer<v1::Job> {
    let asked: v1::RollBackJobRequest = body(request).await?;
    Ok(Json(rooms.desk.roll_back(v1::RollBackJobRequest { name, ..asked }).await?))
}

async fn instance(State(rooms): State<Rooms>, Path(name): Path<String>) -> Answer<v1::Instance> {
    Ok(Json(rooms.desk.instance(name).await?))
}

async fn stop_instance(
    State(rooms): State<Rooms>,
    Path(name): Path<String>,
) -> Answer<v1::Instance> {
    Ok(Json(rooms.desk.stop_instance(name).await?))
}

async fn signal(State(rooms): State<Rooms>, Path(id): Path<String>, request: Request) -> Answer {
    let asked: v1::SignalTaskRequest = body(request).await?;
    rooms.desk.signal(v1::SignalTaskRequest { id, ..asked }).await?;
    Ok(Json(json!({})))
}

async fn logs(
    State(rooms): State<Rooms>,
    Path(id): Path<String>,
    Query(asked): Asked,
) -> Result<Response, Failure> {
    let mut words = Words(asked);
    let (follow, tail) = (words.flag("follow")?, words.one("tail")?);
    words.done()?;
    Ok(lines(rooms.desk.logs(v1::LogsRequest { id, follow, tail, since: None }).await?))
}

async fn events(State(rooms): State<Rooms>, Query(asked): Asked) -> Result<Response, Failure> {
    let mut words = Words(asked);
    let since = words.one("since")?.unwrap_or_default();
    let follow = words.flag("follow")?;
    let (job, node) = (words.one("job")?, words.one("node")?);
    words.done()?;
    let (job, node) = (job.unwrap_or_default(), node.unwrap_or_default());
    Ok(lines(rooms.desk.events(v1::ClusterEventsRequest { since, follow, job, node })?))
}

async fn quotas(State(rooms): State<Rooms>) -> Answer<v1::ListQuotasResponse> {
    Ok(Json(rooms.desk.quotas().await?))
}

async fn set_quota(
    State(rooms): State<Rooms>,
    Path(namespace): Path<String>,
    request: Request,
) -> Answer<v1::Quota> {
    let asked: v1::SetQuotaRequest = body(request).await?;
    Ok(Json(rooms.desk.set_quota(v1::SetQuotaRequest { namespace, ..asked }).await?))
}

async fn token(State(rooms): State<Rooms>, request: Request) -> Answer<v1::JoinToken> {
    Ok(Json(rooms.gate.token(&rooms.desk, body(request).await?).await?))
}

async fn withdraw(State(rooms): State<Rooms>, request: Request) -> Answer<v1::Withdrawal> {
    Ok(Json(rooms.gate.withdraw(&rooms.desk, body(request).await?).await?))
}

async fn withdrawals(State(rooms): State<Rooms>) -> Answer<v1::ListWithdrawalsResponse> {
    Ok(Json(rooms.gate.withdrawals()))
}

async fn metrics(State(rooms): State<Rooms>) -> Response {
    const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match rooms.desk.metrics().await {
        Ok(text) => ([(header::CONTENT_TYPE, KIND)], text).into_response(),
        Err(failure) => failure.into_response(),
    }
}

async fn healthy() -> &'static str {
    "ok\n"
}

/// Nothing of anybody else, and nothing in the files that runs beside page.js.
fn page(kind: &'static str, text: &'static str) -> Response {
    const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";
    let headers: [(HeaderName, &str); 5] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, text).into_response()
}

async fn index() -> Response {
    page("text/html; charset=utf-8", include_str!("../../page/index.html"))
}

async fn script() -> Response {
    page("text/javascript; charset=utf-8", include_str!("../../page/page.js"))
}

async fn style() -> Response {
    page("text/css; charset=utf-8", include_str!("../../page/page.css"))
}
