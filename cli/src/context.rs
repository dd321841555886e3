//! What every command needs: the client, the output, and what the global flags say.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use stor_api::client::{Client, DEFAULT_URL, Options, Wish};

use crate::args::Global;
use crate::failure::Failure;
use crate::output::Output;

/// One call to the API never takes longer, however long the command may wait for what the call began.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) out: Output,
    pub(crate) deadline: Instant,
    pub(crate) timeout: Duration,
    pub(crate) dry_run: bool,
    pub(crate) yes: bool,
    pub(crate) no_wait: bool,
}

impl Context {
    pub(crate) fn new(global: &Global) -> Result<Self, Failure> {
        Ok(Self {
            client: Client::new(&options(global))?,
            out: Output {
                format: global.output,
            },
            deadline: Instant::now() + global.timeout,
            timeout: global.timeout,
            dry_run: global.dry_run,
            yes: global.yes,
            no_wait: global.no_wait,
        })
    }

    /// With `--dry-run`: shows what `wish` would do. `false` when the wish is to be carried out.
    pub(crate) async fn planned(&self, wish: &Wish<'_>) -> Result<bool, Failure> {
        if self.dry_run {
            self.out.plan(&self.client.plan(wish).await?)?;
        }
        Ok(self.dry_run)
    }
}

/// The client's options as flags and environment say. Empty values are those of an `env` file whose
/// cluster needs none.
pub(crate) fn options(global: &Global) -> Options {
    let mut urls: Vec<String> = global
        .url
        .iter()
        .filter(|u| !u.trim().is_empty())
        .cloned()
        .collect();
    if urls.is_empty() {
        urls.push(DEFAULT_URL.to_owned());
    }
    let file = |given: &Option<String>| given.as_ref().filter(|f| !f.is_empty()).map(PathBuf::from);
    Options {
        urls,
        token_file: file(&global.token_file),
        ca_file: file(&global.ca_file),
        timeout: global.timeout.min(CALL_TIMEOUT),
    }
}
