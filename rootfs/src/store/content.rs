use hafen_spec::image::{
    Blob, Choice, Config, Digest, Document, Manifest, Platform, choose, document,
};

use super::blob::Hash;
use super::{Store, StoreError};

/// An image with all its documents.
#[derive(Debug, Clone)]
pub struct Image {
    /// Of the manifest for this machine.
    pub digest: Digest,
    pub manifest: Manifest,
    pub config: Config,
}

impl Image {
    /// Of its packed layers.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.manifest.layers.iter().map(|layer| layer.blob.size).sum()
    }
}

impl Store {
    /// Read the documents behind a manifest or an index.
    ///
    /// # Errors
    /// A document that is missing, wrong, or for other machines only.
    pub fn image(&self, target: &Blob) -> Result<Image, StoreError> {
        let (digest, parsed) = self.manifest(target)?;
        let bytes = self.read_document(&parsed.config.digest, "the configuration")?;
        let wrong = |source| StoreError::Document {
            what: format!("configuration {}", parsed.config.digest),
            source,
        };
        let config = Config::parse(&bytes).map_err(wrong)?;
        if config.diff_ids.len() != parsed.layers.len() {
            return Err(StoreError::Refused(format!(
                "image {}: rootfs.diff_ids of its configuration names {} layers, its manifest {}",
                digest,
                config.diff_ids.len(),
                parsed.layers.len()
            )));
        }
        Ok(Image { digest, manifest: parsed, config })
    }

    /// The manifest itself, or the one of an index that is for this machine, and its digest.
    fn manifest(&self, target: &Blob) -> Result<(Digest, Manifest), StoreError> {
        let choices = match self.document(target)? {
            Document::Manifest(manifest) => return Ok((target.digest.clone(), manifest)),
            Document::Index(choices) => choices,
        };
        let wrong =
            |source| StoreError::Document { what: format!("index {}", target.digest), source };
        let chosen = &choose(&choices, &Platform::own()).map_err(wrong)?.blob;
        match self.document(chosen)? {
            Document::Manifest(manifest) => Ok((chosen.digest.clone(), manifest)),
            Document::Index(_) => {
                Err(StoreError::Refused(format!("{} is an index of indexes", target.digest)))
            }
        }
    }

    /// # Errors
    /// A document that is missing or wrong.
    pub fn document(&self, blob: &Blob) -> Result<Document, StoreError> {
        let bytes = self.read_document(&blob.digest, "the manifest")?;
        document(&bytes, Some(&blob.media_type)).map_err(|source| StoreError::Document {
            what: format!("manifest {}", blob.digest),
            source,
        })
    }

    /// All blobs behind a manifest or an index, as far as they are here; of an index that is what was fetched of it.
    ///
    /// # Errors
    /// A document that is missing or wrong.
    pub(crate) fn reachable(&self, target: &Blob) -> Result<Vec<Digest>, StoreError> {
        let mut all = vec![target.digest.clone()];
        match self.document(target)? {
            Document::Manifest(manifest) => {
                all.push(manifest.config.digest);
                all.extend(manifest.layers.into_iter().map(|layer| layer.blob.digest));
            }
            Document::Index(choices) => {
                for Choice { blob, .. } in choices.iter().filter(|c| self.has_blob(&c.blob.digest))
                {
                    all.extend(self.reachable(blob)?);
                }
            }
        }
        Ok(all)
    }
}

/// The names of stacks of layers: of the lowest alone, of the two lowest, and so on (image-spec, config, "Layer
/// ChainID"). A layer that stands on others is another one than by itself: folders take attributes from below.
#[must_use]
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for id in diff_ids {
        let next = match chain.last() {
            None => id.clone(),
            Some(below) => {
                let mut hash = Hash::new("sha256");
                hash.update(format!("{below} {id}").as_bytes());
                hash.finish()
            }
        };
        chain.push(next);
    }
    chain
}

#[cfg(test)]
mod tests {
    use hafen_spec::image::Digest;

    use super::chain_ids;

    #[test]
    fn a_chain_begins_with_its_lowest_layer() {
        let ids = [Digest::sha256([1; 32]), Digest::sha256([2; 32])];
        let chain = chain_ids(&ids);
        assert_eq!(chain[0], ids[0]);
        // printf 'sha256:0101...01 sha256:0202...02' | sha256sum
        assert_eq!(chain[1].short(), "ad00036de6f2");
        assert_eq!(chain_ids(&[]), []);
    }
}
