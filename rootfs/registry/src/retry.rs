use std::time::Duration;

use oci_client::errors::OciDistributionError;

/// How long somebody goes on asking.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) retries: u32,
}

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

impl Patience {
    /// Ask until there is an answer, or one that asking again will not change.
    pub(crate) async fn call<T, F>(
        &self,
        mut ask: impl FnMut() -> F,
    ) -> Result<T, OciDistributionError>
    where
        F: Future<Output = Result<T, OciDistributionError>>,
    {
        let mut tried = 0;
        loop {
            match ask().await {
                Err(e) if tried < self.retries && passes(&e) => self.pause(tried).await,
                answer => return answer,
            }
            tried += 1;
        }
    }

    /// Twice as long each time.
    pub(crate) async fn pause(&self, tried: u32) {
        let pause = FIRST_PAUSE.saturating_mul(1 << tried.min(10)).min(LONGEST_PAUSE);
        tokio::time::sleep(pause).await;
    }
}

/// Too many requests, a server in trouble, a connection that broke: all of that passes.
pub(crate) fn passes(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::ServerError { code, .. } => {
            *code == 408 || *code == 429 || *code >= 500
        }
        OciDistributionError::RequestError(e) => match e.status() {
            Some(status) => status.as_u16() == 429 || status.is_server_error(),
            None => !e.is_builder(),
        },
        OciDistributionError::IoError(_) => true,
        OciDistributionError::RegistryError { envelope, .. } => {
            let text = envelope.to_string().to_lowercase();
            text.contains("toomanyrequests") || text.contains("too many requests")
        }
        _ => false,
    }
}
