//! What is in a pool and belongs to nothing: replicas and snapshots that nobody asked for, leftovers of what was cut
//! short. Only what has a name of ours is looked at; a directory may hold other things.
//!
//! Nothing is removed but by its name, after another look that still finds it to belong to nothing.

use std::collections::BTreeSet;
use std::fs::{self, DirEntry, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use stor_replication::ids::{ReplicaId, SnapshotId, VolumeId};
use uuid::Uuid;

use super::backing::{Key, Room};
use super::lvm::report::{self, Mapped};
use super::lvm::room::{OURS, ThinRoom, owner, owner_of_copy};

/// What belongs to something.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// Replicas, also those that are to be removed.
    pub replicas: BTreeSet<Key>,
    /// Copies of them for snapshots.
    pub copies: BTreeSet<(VolumeId, SnapshotId, ReplicaId)>,
}

/// Something that belongs to nothing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Orphan {
    /// Within the pool.
    pub name: String,
    /// What it is.
    pub what: &'static str,
    /// Bytes it has.
    pub bytes: u64,
}

const REPLICA: &str = "replica that nobody asked for";
const COPY: &str = "snapshot that nobody asked for";
const CUT_SHORT: &str = "left of something that was cut short";

/// Looks for them.
pub fn find(room: &Room, wanted: &Wanted) -> Result<Vec<Orphan>, String> {
    match room {
        Room::Directory(path) => in_directory(path, wanted)
            .map_err(|error| format!("cannot look through {}: {error}", path.display())),
        Room::Thin(room) => in_thin_pool(room, wanted),
    }
}

/// Removes those of these names that still are; what is in use is refused.
pub fn remove(room: &Room, wanted: &Wanted, names: &[String]) -> Result<(), String> {
    for orphan in find(room, wanted)?
        .into_iter()
        .filter(|orphan| names.contains(&orphan.name))
    {
        tracing::warn!(pool = %room.place().display(), name = orphan.name, what = orphan.what, bytes = orphan.bytes, "removed");
        match room {
            Room::Directory(path) => remove_file(path, &orphan.name)
                .map_err(|error| format!("cannot remove {} in {}: {error}", orphan.name, path.display()))?,
            Room::Thin(room) => room.discard(&orphan.name).map_err(|error| error.to_string())?,
        }
    }
    Ok(())
}

fn in_directory(pool: &Path, wanted: &Wanted) -> io::Result<Vec<Orphan>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(pool)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if name.starts_with(".stor-probe") {
            found.push(orphan(&entry, name, CUT_SHORT)?);
        } else if let Ok(volume) = Uuid::parse_str(&name)
            && entry.file_type()?.is_dir()
        {
            in_volume(&entry, &name, VolumeId(volume), wanted, &mut found)?;
        }
    }
    found.sort();
    Ok(found)
}

fn in_volume(
    directory: &DirEntry,
    name: &str,
    volume: VolumeId,
    wanted: &Wanted,
    found: &mut Vec<Orphan>,
) -> io::Result<()> {
    let mut is_empty = true;
    for entry in fs::read_dir(directory.path())? {
        let entry = entry?;
        is_empty = false;
        let Ok(file) = entry.file_name().into_string() else {
            continue;
        };
        if let Some(what) = belongs_not(&directory.path(), &file, volume, wanted) {
            found.push(orphan(&entry, format!("{name}/{file}"), what)?);
        }
    }
    if is_empty && !wanted.replicas.iter().any(|(of, _)| *of == volume) {
        found.push(orphan(directory, name.to_owned(), CUT_SHORT)?);
    }
    Ok(())
}

/// What a file in a volume's directory is, if it belongs to nothing.
fn belongs_not(directory: &Path, file: &str, volume: VolumeId, wanted: &Wanted) -> Option<&'static str> {
    let (first, rest) = file.split_once('.')?;
    if let Some(snapshot) = first
        .strip_prefix('s')
        .and_then(|text| Uuid::parse_str(text).ok())
    {
        let replica = rest.split('.').next()?.strip_prefix('r')?.parse().ok()?;
        let key = (volume, SnapshotId(snapshot), ReplicaId(replica));
        return (!wanted.copies.contains(&key)).then_some(COPY);
    }
    let replica = ReplicaId(first.strip_prefix('r')?.parse().ok()?);
    if !wanted.replicas.contains(&(volume, replica)) {
        return Some(REPLICA);
    }
    // Of one that is there, nothing is being made.
    let is_made = || directory.join(format!("r{replica}.meta")).exists();
    let unfinished = ["data.unfinished", "meta.unfinished"].contains(&rest);
    (unfinished && is_made()).then_some(CUT_SHORT)
}

fn orphan(entry: &DirEntry, name: String, what: &'static str) -> io::Result<Orphan> {
    // The unit of st_blocks is 512 bytes on every file system.
    let bytes = entry.metadata()?.blocks().saturating_mul(512);
    Ok(Orphan { name, what, bytes })
}

/// Removes a file that nobody has locked, and its directory with the last one.
fn remove_file(pool: &Path, name: &str) -> io::Result<()> {
    let path = pool.join(name);
    if fs::symlink_metadata(&path)?.is_dir() {
        return fs::remove_dir(&path);
    }
    let file = File::open(&path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    fs::remove_file(&path)?;
    let directory = path.parent().unwrap_or(pool);
    if directory != pool
        && let Err(error) = fs::remove_dir(directory)
        && error.kind() != io::ErrorKind::DirectoryNotEmpty
    {
        return Err(error);
    }
    Ok(())
}

fn in_thin_pool(room: &ThinRoom, wanted: &Wanted) -> Result<Vec<Orphan>, String> {
    let told = |error: super::command::CommandError| error.to_string();
    let all = report::volumes(&room.lvm, &room.group).map_err(told)?;
    let mapped = Mapped::read(&room.lvm.status().map_err(told)?);
    let mut found = Vec::new();
    for lv in all.into_iter().filter(|lv| lv.pool == room.pool && lv.has(OURS)) {
        let what = match (owner(&lv.name), owner_of_copy(&lv.name)) {
            (Some((volume, replica, _)), _) if wanted.replicas.contains(&(volume, replica)) => continue,
            (_, Some(copy)) if wanted.copies.contains(&copy) => continue,
            (Some(_), _) => REPLICA,
            (None, Some(_)) => COPY,
            (None, None) => CUT_SHORT,
        };
        let bytes = mapped.allocated(&room.group, &lv.name).unwrap_or(0);
        let name = lv.name;
        found.push(Orphan { name, what, bytes });
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn names(pool: &Path, wanted: &Wanted) -> Vec<(String, &'static str)> {
        let found = in_directory(pool, wanted).unwrap();
        found
            .into_iter()
            .map(|orphan| (orphan.name, orphan.what))
            .collect()
    }

    #[test]
    fn what_belongs_to_nothing_is_found_and_goes_and_nothing_else() {
        let directory = TempDir::new().unwrap();
        let pool = directory.path();
        let (kept, gone, snapshot) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(9));
        let wanted = Wanted {
            replicas: BTreeSet::from([(VolumeId(kept), ReplicaId(1))]),
            copies: BTreeSet::from([(VolumeId(kept), SnapshotId(snapshot), ReplicaId(1))]),
        };
        for volume in [kept, gone, Uuid::from_u128(3)] {
            fs::create_dir(pool.join(volume.to_string())).unwrap();
        }
        let own = [
            format!("{kept}/r1.data"),
            format!("{kept}/r1.meta"),
            format!("{kept}/r1.data.pre-sync"),
            format!("{kept}/s{snapshot}.r1.data"),
            format!("{kept}/notes"),
            "stor-pool.json".to_owned(),
            "somebody's".to_owned(),
        ];
        let left = [
            format!("{kept}/r1.data.unfinished"),
            format!("{kept}/r2.data"),
            format!("{kept}/s{snapshot}.r2.data"),
            format!("{gone}/r1.meta"),
        ];
        for file in own.iter().chain(&left) {
            fs::write(pool.join(file), "x").unwrap();
        }
        let mut expected = vec![
            (left[0].clone(), CUT_SHORT),
            (left[1].clone(), REPLICA),
            (left[2].clone(), COPY),
            (left[3].clone(), REPLICA),
            (Uuid::from_u128(3).to_string(), CUT_SHORT),
        ];
        expected.sort();
        assert_eq!(names(pool, &wanted), expected);
        let room = Room::Directory(pool.to_owned());
        // By name only, and nothing that belongs to something, whatever it is called.
        let asked: Vec<_> = left.iter().chain(&own).cloned().collect();
        let open = File::open(pool.join(&left[1])).unwrap();
        flock(&open, FlockOperation::NonBlockingLockExclusive).unwrap();
        let refused = remove(&room, &wanted, &asked).unwrap_err();
        assert!(refused.contains("r2.data"), "{refused}");
        drop(open);
        remove(&room, &wanted, &asked).unwrap();
        assert_eq!(
            names(pool, &wanted),
            [(Uuid::from_u128(3).to_string(), CUT_SHORT)]
        );
        for file in &own {
            assert!(pool.join(file).exists(), "{file}");
        }
        remove(&room, &wanted, &[Uuid::from_u128(3).to_string()]).unwrap();
        assert_eq!(names(pool, &wanted), []);
    }

    #[test]
    fn what_is_being_made_belongs_to_it() {
        let directory = TempDir::new().unwrap();
        let volume = Uuid::from_u128(1);
        let place = directory.path().join(volume.to_string());
        fs::create_dir(&place).unwrap();
        let wanted = Wanted {
            replicas: BTreeSet::from([(VolumeId(volume), ReplicaId(1))]),
            ..Wanted::default()
        };
        assert_eq!(names(directory.path(), &wanted), []);
        fs::write(place.join("r1.data.unfinished"), "x").unwrap();
        fs::write(place.join("r1.data"), "x").unwrap();
        assert_eq!(names(directory.path(), &wanted), []);
    }
}
