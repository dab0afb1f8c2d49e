use docker_credential::{CredentialRetrievalError, DockerCredential};
use oci_client::secrets::RegistryAuth;

use crate::PullError;

/// Docker's name for its own registry in `config.json`.
const DOCKER: &str = "https://index.docker.io/v1/";

/// What `~/.docker/config.json` has for a host, or a helper that it names; nobody else has to be asked.
///
/// # Errors
/// A file that cannot be read as what it is, or a helper that fails.
pub(crate) fn find(host: &str) -> Result<RegistryAuth, PullError> {
    let server = if host == "docker.io" { DOCKER } else { host };
    match docker_credential::get_credential(server) {
        Ok(DockerCredential::UsernamePassword(user, password)) => {
            Ok(RegistryAuth::Basic(user, password))
        }
        Ok(DockerCredential::IdentityToken(token)) => Ok(RegistryAuth::Bearer(token)),
        Err(
            CredentialRetrievalError::ConfigNotFound
            | CredentialRetrievalError::ConfigReadError
            | CredentialRetrievalError::NoCredentialConfigured,
        ) => Ok(RegistryAuth::Anonymous),
        Err(e) => Err(PullError::Options(format!("credentials for {host}: {e}"))),
    }
}
