//! Whether a client of an earlier engine of this attachment may still live.
//!
//! A client that reconnects takes a later flush for its own earlier writes. If every in-sync replica has
//! lost acknowledged writes meanwhile, such a client must be told (R8), while after the client's own reboot
//! there is nobody to tell. A FUSE mount answers this by the session that was agreed on it; for a socket the
//! engine leaves a note with the boot in which it first had a client.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use stor_device::clock;

fn note_path(control: &Path) -> PathBuf {
    control.with_file_name("guest")
}

/// A client has come to the socket.
pub(super) fn note(control: &Path) {
    let noted = clock::boot_id().and_then(|boot| fs::write(note_path(control), boot));
    if let Err(error) = noted {
        tracing::error!(%error, "a crash of this engine will not know of its client");
    }
}

/// Whether an earlier engine had a client in this boot, and did not end in order since.
pub(super) fn may_live(control: &Path) -> bool {
    match fs::read_to_string(note_path(control)) {
        Ok(boot) => clock::boot_id().is_ok_and(|now| now == boot),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::error!(%error, "whether a client lives can't be read; taken for yes");
            }
            error.kind() != io::ErrorKind::NotFound
        }
    }
}

/// No client lives, or everything its clients wrote is flushed: the engine ends in order.
pub fn forget(control: &Path) {
    if let Err(error) = fs::remove_file(note_path(control))
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "the note of a client stays");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_of_this_boot_counts_until_the_engine_ends_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let control = dir.path().join("control.sock");
        assert!(!may_live(&control));
        note(&control);
        assert!(may_live(&control));
        fs::write(note_path(&control), "another boot").unwrap();
        assert!(!may_live(&control));
        note(&control);
        forget(&control);
        assert!(!may_live(&control));
    }
}
