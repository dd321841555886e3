//! As [`super::copies`], in a thin pool: thin snapshots. They are made by the replica server; here they are looked at and
//! removed.

use std::collections::BTreeMap;

use stor_device::extent_map::Space;

use super::copies::{CopyKey, CopyWish, Found};
use crate::pool::lvm::ThinError;
use crate::pool::lvm::report::{self, Lv, Mapped};
use crate::pool::lvm::room::ThinRoom;

/// Does what is wanted of the copies in the pool and tells what there is.
pub(super) fn look(
    room: &ThinRoom,
    work: &BTreeMap<CopyKey, CopyWish>,
) -> BTreeMap<CopyKey, Result<Found, String>> {
    if work.is_empty() {
        return BTreeMap::new();
    }
    let there = report::volumes(&room.lvm, &room.group).and_then(|all| {
        let mapped = Mapped::read(&room.lvm.status()?);
        Ok((all, mapped))
    });
    work.iter()
        .map(|(key, wish)| {
            let done = match &there {
                Ok((all, mapped)) => one(room, all, mapped, *key, *wish).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            let (volume, snapshot, replica) = key;
            let told =
                |error| format!("snapshot {snapshot} of replica {replica} of volume {volume}: {error}");
            (*key, done.map_err(told))
        })
        .collect()
}

fn one(
    room: &ThinRoom,
    all: &[Lv],
    mapped: &Mapped,
    (volume, snapshot, replica): CopyKey,
    wish: CopyWish,
) -> Result<Found, ThinError> {
    let name = ThinRoom::copy_name(volume, snapshot, replica);
    if wish == CopyWish::Delete {
        let unfinished = ThinRoom::unfinished(&name);
        if all.iter().any(|lv| lv.name == unfinished && lv.pool == room.pool) {
            room.discard(&unfinished)?;
        }
    }
    let found = all.iter().find(|lv| lv.name == name && lv.pool == room.pool);
    match (found, wish) {
        (Some(lv), CopyWish::Delete) => {
            room.discard(&lv.name)?;
            Ok(Found::Deleted)
        }
        (None, CopyWish::Delete) => Ok(Found::Deleted),
        (None, CopyWish::Make | CopyWish::Recopy | CopyWish::Keep) => Ok(Found::Missing),
        (Some(lv), CopyWish::Make | CopyWish::Recopy | CopyWish::Keep) => {
            if !lv.active {
                room.activate(&[lv])?;
            }
            // Other nodes may have to read it.
            room.make_nodes(&[lv]);
            // What it shares is not told by the kernel without a walk through all maps: nothing is claimed to be its own.
            let allocated = mapped.allocated(&room.group, &lv.name).unwrap_or(0);
            Ok(Found::There(Space { allocated, own: 0 }))
        }
    }
}
