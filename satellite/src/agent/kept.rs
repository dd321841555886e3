//! What an earlier history of the catalogue wanted of this node and the present one does not mention.
//!
//! A restored catalogue does not know what happened after its backup: volumes made since, engines started since. Until
//! it says that it knows all (`keep` is not set any more), nothing is stopped or closed for not being mentioned.
//! What it does mention is its own from then on: it stops and deletes it like anything else. It is not believed
//! about an engine that runs with a later view than it knows.

use std::collections::BTreeSet;

use stor_proto::satellite as proto;

/// What stays out of `current` (all that was acted on before), now that `message` speaks for a new history.
pub(super) fn begin(current: &proto::Desired, message: &proto::Desired) -> proto::Desired {
    let mut kept = current.clone();
    kept.kept = None;
    // What is not mentioned is not touched.
    kept.snapshots.clear();
    for replica in &mut kept.replicas {
        // Nothing is made or deleted on the word of a history that has ended.
        replica.create = false;
        replica.delete = false;
    }
    thin(&mut kept, message);
    kept
}

/// Takes out of `kept` what `message` mentions.
pub(super) fn thin(kept: &mut proto::Desired, message: &proto::Desired) {
    let pools: BTreeSet<&str> = message.pools.iter().map(|pool| pool.name.as_str()).collect();
    kept.pools.retain(|pool| !pools.contains(pool.name.as_str()));
    let key = |replica: &proto::Replica| (replica.volume_id.clone(), replica.replica);
    let replicas: BTreeSet<_> = message.replicas.iter().map(key).collect();
    kept.replicas.retain(|replica| !replicas.contains(&key(replica)));
    kept.engines
        .retain(|engine| !message.engines.iter().any(|other| succeeds(other, engine)));
}

/// All that is to be acted on.
pub(super) fn merged(message: &proto::Desired) -> proto::Desired {
    let mut all = message.clone();
    let Some(kept) = all.kept.take() else {
        return all;
    };
    let kept = *kept;
    // What an engine that goes on was given stays good; nothing new is opened with it.
    let known: BTreeSet<_> = all.keys.iter().map(|key| key.public.clone()).collect();
    let old = kept.keys.into_iter().filter(|key| !known.contains(&key.public));
    all.keys
        .extend(old.map(|key| proto::SigningKey { retired: true, ..key }));
    all.pools.extend(kept.pools);
    all.replicas.extend(kept.replicas);
    // Those left in `kept` are of later views than any that is mentioned.
    let id = |engine: &proto::Engine| engine.volume.as_ref().map(|volume| volume.volume_id.clone());
    let running: BTreeSet<_> = kept.engines.iter().filter_map(id).collect();
    all.engines
        .retain(|engine| id(engine).is_some_and(|volume| !running.contains(&volume)));
    all.engines.extend(kept.engines);
    all
}

/// Whether `new` is of the same volume and knows at least the view of `old`.
fn succeeds(new: &proto::Engine, old: &proto::Engine) -> bool {
    match (&new.volume, &old.volume) {
        (Some(new), Some(old)) => {
            new.volume_id == old.volume_id && new.epoch >= old.epoch && new.config >= old.config
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use stor_replication::ids::VolumeId;
    use uuid::Uuid;

    use super::super::desired::{Desired, Store, StoreError, Wish};
    use super::*;

    fn id(number: u128) -> String {
        Uuid::from_u128(number).to_string()
    }

    fn replica(volume: u128, create: bool, delete: bool) -> proto::Replica {
        proto::Replica {
            volume_id: id(volume),
            pool: "sp01".into(),
            size_bytes: 1 << 20,
            lineage: id(9),
            create,
            delete,
            ..Default::default()
        }
    }

    fn engine(volume: u128, epoch: u64, config: u64) -> proto::Engine {
        proto::Engine {
            transport: "socket".into(),
            volume: Some(proto::Volume {
                volume_id: id(volume),
                name: "db".into(),
                size_bytes: 1 << 20,
                revision: 1,
                epoch,
                config,
                owner: "k1".into(),
                lineage: id(9),
                min_in_sync: 1,
                members: vec![proto::Member {
                    node: "s1".into(),
                    in_sync: true,
                    ever_in_sync: true,
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn message(history: &str, revision: u64, keep: bool) -> proto::Desired {
        proto::Desired {
            revision,
            history: history.into(),
            keep,
            ..Default::default()
        }
    }

    fn view(desired: &Desired, volume: u128) -> Option<(u64, u64)> {
        let engine = desired.engines.get(&VolumeId(Uuid::from_u128(volume)))?;
        let view = engine.volume.row.view;
        Some((view.epoch.0, view.config.0))
    }

    #[test]
    fn what_a_restored_catalogue_does_not_mention_goes_on_until_it_knows_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("desired");
        let mut store = Store::load(&path).unwrap();
        let accept = |store: &mut Store, message: &proto::Desired| {
            store.accept::<StoreError>(message.clone(), |_| Ok(())).unwrap()
        };
        let mut before = message("h1", 90, false);
        before.pools.push(proto::Pool {
            name: "sp01".into(),
            kind: "file".into(),
            path: "/p".into(),
            ..Default::default()
        });
        before.replicas = vec![
            replica(1, false, false),
            replica(2, true, false),
            replica(3, false, true),
        ];
        before.engines = vec![engine(1, 5, 4), engine(4, 2, 1)];
        accept(&mut store, &before);

        // Lower revisions, another history: nothing is taken away, nothing is made or deleted either.
        let mut restored = message("h2", 10, true);
        restored.engines = vec![engine(1, 5, 3)];
        let accepted = accept(&mut store, &restored);
        assert!(!accepted.behind, "revisions of two histories were compared");
        for _ in 0..2 {
            let desired = store.desired().unwrap();
            assert_eq!((desired.pools.len(), desired.replicas.len()), (1, 3));
            assert!(
                desired
                    .replicas
                    .values()
                    .all(|replica| replica.wish == Wish::Serve)
            );
            assert_eq!(view(desired, 1), Some((5, 4)), "the row it has is older");
            assert_eq!(view(desired, 4), Some((2, 1)));
            // The same from the disk.
            store = Store::load(&path).unwrap();
        }

        // What it mentions is its own: adopted, deleted, stopped.
        let mut adopted = message("h2", 11, true);
        adopted.engines = vec![engine(1, 6, 5)];
        adopted.replicas = vec![replica(1, false, true)];
        accept(&mut store, &adopted);
        let desired = store.desired().unwrap();
        assert_eq!(view(desired, 1), Some((6, 5)));
        let first = desired
            .replicas
            .iter()
            .find(|(key, _)| key.0 == VolumeId(Uuid::from_u128(1)));
        assert_eq!(first.unwrap().1.wish, Wish::Delete);
        assert_eq!(desired.replicas.len(), 3);
        accept(&mut store, &message("h2", 12, true));
        let desired = store.desired().unwrap();
        assert_eq!(view(desired, 1), None, "it had been mentioned");
        assert_eq!(view(desired, 4), Some((2, 1)));
        assert_eq!(desired.replicas.len(), 2);

        accept(&mut store, &message("h2", 13, false));
        let desired = store.desired().unwrap();
        assert!(desired.engines.is_empty() && desired.replicas.is_empty() && desired.pools.is_empty());
    }
}
