//! This controller's key for rights to attach: `signing-key.p8` in its directory (PKCS#8, mode 0600), made when it
//! is not there. It never leaves the directory: the others and the satellites get the public half.
//!
//! It may be lost: the next start makes another one, the leader retires the one before, and attached volumes get new
//! rights. What is not done: guarding it against who can read this directory, which holds the catalogue too.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use stor_right::{KeyError, Signer};
use thiserror::Error;

const FILE: &str = "signing-key.p8";

/// There is no key to sign with.
#[derive(Debug, Error)]
pub enum SigningKeyError {
    /// A file can't be read or written.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No key could be made.
    #[error("no signing key could be made: {0}")]
    Make(#[source] KeyError),
}

/// Reads the key of a controller, or makes it. A damaged one is put aside: nothing depends on its being the same.
pub fn open(dir: &Path) -> Result<Signer, SigningKeyError> {
    let path = dir.join(FILE);
    match fs::read(&path) {
        Ok(secret) => match Signer::from_pkcs8(&secret) {
            Ok(signer) => return Ok(signer),
            Err(reason) => {
                let aside = dir.join(format!("{FILE}.damaged"));
                fs::rename(&path, &aside).map_err(failed("put aside", &path))?;
                tracing::warn!(
                    path = %path.display(), aside = %aside.display(), %reason,
                    "the signing key is damaged; another one is made"
                );
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("read", &path)(error)),
    }
    let (signer, secret) = Signer::generate().map_err(SigningKeyError::Make)?;
    store(dir, &path, &secret).map_err(failed("write", &path))?;
    tracing::info!(key = %signer.public().id(), "a key to sign rights with was made");
    Ok(signer)
}

/// The whole key or none after a crash.
fn store(dir: &Path, path: &Path, secret: &[u8]) -> io::Result<()> {
    let draft = dir.join(format!("{FILE}.new"));
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // New, so that nobody has it open who could read along.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)?;
    file.write_all(secret)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(dir)?.sync_all()
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SigningKeyError {
    let path = path.to_owned();
    move |source| SigningKeyError::Io { doing, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).unwrap();
        assert_eq!(open(dir.path()).unwrap().public(), first.public());
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).unwrap();
        // What a crash in mid-write may have left.
        fs::write(dir.path().join("signing-key.p8.new"), b"half").unwrap();
        fs::write(dir.path().join(FILE), b"nonsense").unwrap();
        let second = open(dir.path()).unwrap();
        assert_ne!(second.public(), first.public());
        assert_eq!(open(dir.path()).unwrap().public(), second.public());
    }
}
