//! Downloads a backup of the catalogue.

use std::io::Write;
use std::time::Duration;

use super::{Answer, Client, Error, Tried};

/// A stream that stands still for so long has lost its controller.
const SILENCE: Duration = Duration::from_secs(30);

/// A backup was not downloaded.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// No controller gave one.
    #[error(transparent)]
    Call(#[from] Error),
    /// The stream broke off.
    #[error("the connection to {url} was lost in the middle: {why}")]
    Lost {
        /// Controller.
        url: String,
        /// What happened.
        why: String,
    },
    /// It could not be kept.
    #[error("cannot write the backup: {0}")]
    Write(#[source] std::io::Error),
}

impl Client {
    /// Writes a backup of the catalogue into `out`, from the first controller that gives one; with `local`, what that
    /// one has without asking the others. The caller checks it (see [`crate::backup::check`]).
    pub async fn backup(&self, local: bool, out: &mut impl Write) -> Result<(), DownloadError> {
        let path = if local {
            "/api/v1/backup?local=true"
        } else {
            "/api/v1/backup"
        };
        let mut tried = Vec::new();
        let mut refusal = None;
        for url in &self.urls {
            let request = self.http.get(format!("{url}{path}")).send();
            let mut response = match tokio::time::timeout(self.timeout, request).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => {
                    tried.push(Tried::failed(url, &error));
                    continue;
                }
                Err(_) => {
                    tried.push(Tried::silent(url));
                    continue;
                }
            };
            if !response.status().is_success() {
                let status = response.status().as_u16();
                let content = tokio::time::timeout(SILENCE, response.bytes()).await;
                // Without its text the status alone says what it is.
                let content = content.ok().and_then(Result::ok).map(|bytes| bytes.to_vec());
                let answer = Answer {
                    status,
                    content: content.unwrap_or_default(),
                };
                refusal = answer.check(false).err();
                continue;
            }
            let lost = |why: String| DownloadError::Lost {
                url: url.clone(),
                why,
            };
            loop {
                let chunk = tokio::time::timeout(SILENCE, response.chunk()).await;
                match chunk {
                    Err(_) => return Err(lost("it is silent".to_owned())),
                    Ok(Err(error)) => return Err(lost(error.to_string())),
                    Ok(Ok(None)) => return Ok(()),
                    Ok(Ok(Some(chunk))) => out.write_all(&chunk).map_err(DownloadError::Write)?,
                }
            }
        }
        Err(refusal
            .unwrap_or_else(|| Error::ended(path, self.timeout, tried))
            .into())
    }
}
