//! What was done for tasks and how long it took, as spans for an OpenTelemetry collector, if there is one.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::trace::{Span, SpanKind, Tracer, TracerProvider};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;

const SERVICE: &str = "hafen-agent";

/// Where spans go. Cheap to clone; the last one sends what is left.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<Arc<SdkTracerProvider>>);

impl Traces {
    /// To a collector that speaks OTLP over gRPC, as `http://127.0.0.1:4317`. Within tokio. One that is not there is
    /// tried again and again; spans are dropped meanwhile, and nothing waits for them.
    ///
    /// # Errors
    /// The address is none.
    pub fn open(endpoint: &str, node: &str) -> Result<Self, ExporterBuildError> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
        let node = KeyValue::new("host.name", node.to_owned());
        let resource = Resource::builder().with_service_name(SERVICE).with_attribute(node);
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        Ok(Self(Some(Arc::new(provider))))
    }

    /// A phase of the work on a task is over.
    pub fn took(&self, phase: &'static str, task: &str, since: SystemTime, took: Duration) {
        let Some(provider) = &self.0 else { return };
        let tracer = provider.tracer(SERVICE);
        let builder = tracer
            .span_builder(phase)
            .with_kind(SpanKind::Internal)
            .with_start_time(since)
            .with_attributes([KeyValue::new("hafen.task", task.to_owned())]);
        tracer.build(builder).end_with_timestamp(since + took);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn spans_are_sent_to_whoever_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let traces = Traces::open(&endpoint, "n1").unwrap();
        let since = SystemTime::now() - Duration::from_millis(5);
        traces.took("launch", "web", since, Duration::from_millis(4));
        let (mut stream, _) = tokio::time::timeout(Duration::from_secs(30), listener.accept())
            .await
            .unwrap()
            .unwrap();
        // The preface of HTTP/2 (RFC 9113, 3.4): a collector would answer.
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.unwrap();
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    }

    #[test]
    fn without_a_collector_nothing_happens() {
        Traces::default().took("launch", "web", SystemTime::now(), Duration::ZERO);
    }
}
