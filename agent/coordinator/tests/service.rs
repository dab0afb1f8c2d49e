//! A coordinator on loopback ports, and agents as far as the protocol goes.

#[path = "service/fake.rs"]
mod fake;

use std::time::Duration;

use fake::{Fake, Hall, LEASE, held, hello, job, refused, submit, task};
use hafen_protocol::v1;
use hafen_protocol::v1::cluster_node::Presence;
use hafen_protocol::v1::from_agent::What as Up;
use hafen_protocol::v1::from_master::What as Down;
use hafen_protocol::v1::refused::Kind;
use tonic::Code;

fn phase(view: &v1::ClusterView, wanted: v1::instance::Phase) -> usize {
    view.instances.iter().filter(|one| one.phase() == wanted).count()
}

fn ready(view: &v1::ClusterView) -> usize {
    phase(view, v1::instance::Phase::Ready)
}

#[tokio::test]
async fn a_job_runs_on_a_node_and_its_updates_are_acknowledged() {
    let hall = Hall::open().await;
    let mut node = hall.node("n1").await;
    let mut people = hall.people().await;
    let taken = people.submit_job(submit(job("web", 1))).await.unwrap().into_inner();
    assert_eq!((taken.version, taken.wanted, taken.kind.as_str()), (1, 1, "replicas"));
    let task = node.run().await;
    assert_eq!(task.command, ["serve"]);
    assert_eq!(task.labels["hafen.job"], "web");
    node.tell(&task.id, v1::State::Running, true).await;
    assert_eq!(node.acknowledged(&task.id).await, 1);
    // What is repeated is acknowledged again, and changes nothing.
    node.tell_as(&task.id, 1, v1::State::Running, true).await;
    assert_eq!(node.acknowledged(&task.id).await, 1);
    hall.until("ready", |view| ready(view) == 1 && view.jobs[0].ready == 1).await;
    let instance = people.get_instance(v1::GetInstanceRequest { name: "web:0".into() }).await;
    let instance = instance.unwrap().into_inner();
    assert_eq!((instance.name, instance.state), (task.id, v1::State::Running.into()));
}
