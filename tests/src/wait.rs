//! Waiting for what the cluster does by itself. Deadlines are there to end a test that hangs; no test says how
//! fast something has to be.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;

/// Far above what anything takes on a busy machine.
pub const LONG: Duration = Duration::from_secs(150);

const PAUSE: Duration = Duration::from_millis(50);

/// Looks until `look` says yes. An error of `look` ends it.
pub fn until(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    that(limit, what, || {
        Ok(if look()? {
            Ok(())
        } else {
            Err(String::from("not yet"))
        })
    })
}

/// Looks until `look` has something; what it says meanwhile (the inner error) is told when it never has.
pub fn that<T>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> anyhow::Result<Result<T, String>>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        let last = match look()? {
            Ok(found) => return Ok(found),
            Err(last) => last,
        };
        if start.elapsed() > limit {
            bail!("waited {limit:?} in vain until {what}; last seen: {last}");
        }
        thread::sleep(PAUSE);
    }
}
