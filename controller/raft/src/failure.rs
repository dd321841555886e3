//! Errors on their way to openraft, whose storage traits speak `io::Error`.

use std::error::Error;
use std::io;

/// Says what we were doing when `source` happened.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
struct Failure {
    doing: &'static str,
    source: Box<dyn Error + Send + Sync>,
}

/// Wraps an error for openraft; the node stops on it.
pub(crate) fn fatal(doing: &'static str) -> impl FnOnce(Box<dyn Error + Send + Sync>) -> io::Error {
    move |source| io::Error::other(Failure { doing, source })
}

/// [`fatal`] on results.
pub(crate) trait OrFatal<T> {
    /// The value, or an error that says what we were doing.
    fn or_fatal(self, doing: &'static str) -> Result<T, io::Error>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> OrFatal<T> for Result<T, E> {
    fn or_fatal(self, doing: &'static str) -> Result<T, io::Error> {
        self.map_err(|source| fatal(doing)(source.into()))
    }
}

/// Data that cannot be what we wrote.
pub(crate) fn corrupt(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}
