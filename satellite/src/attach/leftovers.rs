//! What an agent or an engine that was killed left behind, besides running processes: directories of
//! engines, mounts, loop devices.
//!
//! Only what is under this node's own state directory is looked at, so that everything found is surely
//! ours. It is not removed here: each volume found gets a task, and the task removes it when the desired
//! state, once known, has no place for it.

use std::collections::BTreeSet;
use std::fs;

use stor_replication::ids::VolumeId;
use uuid::Uuid;

use super::Context;

/// Volumes of which something is there.
pub(super) fn volumes(context: &Context) -> BTreeSet<VolumeId> {
    let mut found = BTreeSet::new();
    let directory = context.paths.engines();
    match fs::read_dir(&directory) {
        Ok(entries) => {
            // What can't be looked at, and what is named otherwise, is not of ours.
            let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            found.extend(names.filter_map(|name| Uuid::parse_str(&name).ok()).map(VolumeId));
        }
        Err(error) => {
            tracing::warn!(directory = %directory.display(), %error, "cannot look for leftovers of engines");
        }
    }
    match context.devices.leftovers() {
        Ok(volumes) => found.extend(volumes),
        Err(error) => tracing::warn!(%error, "cannot look for leftovers of devices"),
    }
    found
}
