//! Every SQL statement of the catalogue, so that one test can prepare them all against the schema and a
//! reader finds them in one place.

macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident = $sql:literal;)*) => {
        $($(#[$doc])* pub(crate) const $name: &str = $sql;)*

        /// All of them, by name.
        #[cfg(test)]
        pub(crate) const ALL: &[(&str, &str)] = &[$((stringify!($name), $name)),*];
    };
}

statements! {
    CLUSTER = "SELECT id, created FROM cluster";
    INSERT_CLUSTER = "INSERT INTO cluster (one, id, created) VALUES (1, ?, ?)";

    SIGNERS = "SELECT key, controller, retired FROM signers ORDER BY added, key";
    ADD_SIGNER = "INSERT INTO signers (key, controller, retired, added) VALUES (?, ?, 0, ?) \
        ON CONFLICT (key) DO UPDATE SET controller = excluded.controller, retired = 0, added = excluded.added";
    RETIRE_SIGNERS = "UPDATE signers SET retired = 1 WHERE controller = ?";
    /// `?`: how many retired ones are kept, the newest.
    TRIM_SIGNERS = "DELETE FROM signers WHERE retired = 1 AND key NOT IN \
        (SELECT key FROM signers WHERE retired = 1 ORDER BY added DESC, key LIMIT ?)";
    /// Marks every node as possibly wanting another desired state.
    TOUCH_NODES = "UPDATE nodes SET desired = ?";
    HISTORY = "SELECT COALESCE(history, id) AS history, generation, restored, unsettled FROM cluster";
    BEGIN_HISTORY = "UPDATE cluster SET history = ?, generation = generation + 1, restored = ?, unsettled = 1";
    SETTLE_HISTORY = "UPDATE cluster SET unsettled = 0";
    KEEPS = "SELECT EXISTS (SELECT 1 FROM cluster WHERE unsettled = 1) \
        OR EXISTS (SELECT 1 FROM volumes WHERE doubt = 1)";
    DOUBT_ALL = "UPDATE volumes SET doubt = 1, revision = ?";
    SET_DOUBT = "UPDATE volumes SET doubt = ?, revision = ? WHERE id = ?";
    TOUCH_ALL = "UPDATE nodes SET desired = ?";

    NODES = "SELECT name, address, kind, properties, data_address, version, boot_id, transports, online, \
        leaving, offline_since, desired, revision FROM nodes ORDER BY name";
    NODE = "SELECT name, address, kind, properties, data_address, version, boot_id, transports, online, \
        leaving, offline_since, desired, revision FROM nodes WHERE name = ?";
    NODES_PAGE = "SELECT name, address, kind, properties, data_address, version, boot_id, transports, online, \
        leaving, offline_since, desired, revision FROM nodes WHERE name > ? ORDER BY name LIMIT ?";
    NODES_ONLINE = "SELECT name FROM nodes WHERE online = 1";
    INSERT_NODE = "INSERT INTO nodes (name, address, kind, properties, transports, desired, revision) \
        VALUES (?, ?, ?, ?, '[]', ?, ?)";
    UPDATE_NODE_PROPERTIES = "UPDATE nodes SET properties = ?, revision = ? WHERE name = ?";
    UPDATE_NODE_SEEN = "UPDATE nodes SET data_address = ?, version = ?, boot_id = ?, transports = ?, revision = ? \
        WHERE name = ?";
    UPDATE_NODE_ONLINE = "UPDATE nodes SET online = ?, offline_since = ? WHERE name = ?";
    SET_NODE_LEAVING = "UPDATE nodes SET leaving = ?, revision = ? WHERE name = ?";
    DELETE_NODE = "DELETE FROM nodes WHERE name = ?";
    /// Marks one node as possibly wanting another desired state.
    TOUCH_NODE = "UPDATE nodes SET desired = ? WHERE name = ?";
    /// The same for the owners of all volumes with a replica on a node.
    TOUCH_OWNERS = "UPDATE nodes SET desired = ? WHERE name IN (SELECT v.owner FROM volumes v \
        JOIN replicas r ON r.volume = v.id WHERE r.node = ? AND v.owner IS NOT NULL)";
    DESIRED_SINCE = "SELECT name, desired FROM nodes WHERE desired > ?";
    NODE_POOLS = "SELECT COUNT(*) FROM pools WHERE node = ?";
    NODE_REPLICAS = "SELECT COUNT(*) FROM replicas WHERE node = ?";
    NODE_OWNED = "SELECT name FROM volumes WHERE owner = ? ORDER BY name LIMIT 1";

    POOLS = "SELECT p.name, p.node, p.kind, p.dir, p.devices, p.adopt, p.wipe, p.tags, p.overprovision_milli, p.ready, p.revision, \
        COALESCE(SUM(MAX(v.size, COALESCE(v.grow_to, 0))), 0) AS promised, COUNT(v.id) AS replicas FROM pools p \
        LEFT JOIN replicas r ON r.node = p.node AND r.pool = p.name LEFT JOIN volumes v ON v.id = r.volume \
        GROUP BY p.name, p.node ORDER BY p.name, p.node";
    POOL = "SELECT p.name, p.node, p.kind, p.dir, p.devices, p.adopt, p.wipe, p.tags, p.overprovision_milli, p.ready, p.revision, \
        COALESCE(SUM(MAX(v.size, COALESCE(v.grow_to, 0))), 0) AS promised, COUNT(v.id) AS replicas FROM pools p \
        LEFT JOIN replicas r ON r.node = p.node AND r.pool = p.name LEFT JOIN volumes v ON v.id = r.volume \
        WHERE p.name = ? AND p.node = ? GROUP BY p.name, p.node";
    POOLS_ON = "SELECT name, kind, dir, devices, adopt, wipe, ready FROM pools WHERE node = ? ORDER BY name";
    POOL_AT = "SELECT name FROM pools WHERE node = ? AND dir = ?";
    POOLS_UNREADY = "SELECT name, node FROM pools WHERE ready = 0 ORDER BY node, name";
    INSERT_POOL = "INSERT INTO pools (name, node, kind, dir, devices, adopt, wipe, tags, overprovision_milli, ready, \
        revision) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)";
    POOL_READY = "UPDATE pools SET ready = 1 WHERE name = ? AND node = ?";
    UPDATE_POOL = "UPDATE pools SET tags = ?, overprovision_milli = ?, revision = ? WHERE name = ? AND node = ?";
    DELETE_POOL = "DELETE FROM pools WHERE name = ? AND node = ?";
    DELETE_NODE_POOLS = "DELETE FROM pools WHERE node = ?";

    CLASSES_PAGE = "SELECT c.name, c.replicas, c.pool, c.tags, c.transport, c.spread, c.together, c.scrub_days, c.revision, \
        (SELECT COUNT(*) FROM volumes v WHERE v.class = c.name) AS volumes FROM classes c \
        WHERE c.name > ? ORDER BY c.name LIMIT ?";
    CLASS = "SELECT c.name, c.replicas, c.pool, c.tags, c.transport, c.spread, c.together, c.scrub_days, c.revision, \
        (SELECT COUNT(*) FROM volumes v WHERE v.class = c.name) AS volumes FROM classes c WHERE c.name = ?";
    INSERT_CLASS = "INSERT INTO classes (name, replicas, pool, tags, transport, spread, together, scrub_days, revision) \
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)";
    DELETE_CLASS = "DELETE FROM classes WHERE name = ?";

    VOLUME_ID = "SELECT id FROM volumes WHERE name = ?";
    VOLUME_IDS = "SELECT id FROM volumes ORDER BY name";
    VOLUME_IDS_PAGE = "SELECT id FROM volumes WHERE name > ? ORDER BY name LIMIT ?";
    VOLUME_IDS_ON = "SELECT volume FROM replicas WHERE node = ?1 UNION SELECT id FROM volumes WHERE owner = ?1";
    VOLUME_IDS_ATTACHED = "SELECT id FROM volumes WHERE owner IS NOT NULL ORDER BY name";
    /// Detached volumes that may have something to heal.
    VOLUME_IDS_UNHEALED = "SELECT id FROM volumes WHERE clean = 0 AND owner IS NULL \
        UNION SELECT r.volume FROM replicas r JOIN volumes v ON v.id = r.volume \
        WHERE (r.in_sync = 0 OR r.leaving = 1) AND v.owner IS NULL";
    /// Detached volumes of which a snapshot is to be made.
    VOLUME_IDS_SNAPPING = "SELECT s.volume FROM snapshots s JOIN volumes v ON v.id = s.volume \
        WHERE s.phase = 'creating' AND v.owner IS NULL";
    /// Detached volumes of which a scrub is under way.
    VOLUME_IDS_SCRUBBING = "SELECT s.volume FROM scrubs s JOIN volumes v ON v.id = s.volume \
        WHERE s.phase = 'running' AND v.owner IS NULL";
    VOLUME_IDS_HEALING = "SELECT volume FROM attachments WHERE purpose = 'healing'";
    VOLUME_IDS_DETACHING = "SELECT volume FROM attachments WHERE detaching = 1";
    VOLUME_IDS_LEAVING = "SELECT DISTINCT volume FROM replicas WHERE leaving = 1";
    VOLUME_IDS_GROWING = "SELECT id FROM volumes WHERE grow_to IS NOT NULL ORDER BY name";
    VOLUME_IDS_DOUBTED = "SELECT id FROM volumes WHERE doubt = 1 ORDER BY name";
    /// `?` is a JSON list of ids.
    VOLUMES = "SELECT v.id, v.name, v.phase, v.size, v.epoch, v.config, v.owner, v.clean, v.clean_before, \
        v.lineage, v.min_in_sync, v.class, v.wish, v.created, v.revision, v.doubt, v.grow_to, \
        a.transport, a.read_only, a.purpose, a.detaching, \
        s.run, s.phase AS scrub_phase, s.scheduled, s.mend, s.rate, s.cursor, s.reports, s.found, s.chosen, s.mended, \
        s.remaining, s.begun, s.ended, s.completed, s.open, s.open_bad \
        FROM volumes v LEFT JOIN attachments a ON a.volume = v.id LEFT JOIN scrubs s ON s.volume = v.id \
        WHERE v.id IN (SELECT value FROM json_each(?)) ORDER BY v.name";
    /// `?` is a JSON list of volume ids.
    REPLICAS = "SELECT volume, replica, node, pool, phase, in_sync, joined, since, reason, leaving, replaces FROM replicas \
        WHERE volume IN (SELECT value FROM json_each(?)) ORDER BY volume, replica";
    /// Tombstones among them: to a node it is the same.
    REPLICAS_MOVING = "SELECT volume, replica, node, phase FROM replicas WHERE phase <> 'ready' \
        UNION ALL SELECT volume, replica, node, 'deleting' FROM tombstones ORDER BY volume, replica";
    INSERT_VOLUME = "INSERT INTO volumes (id, name, phase, size, epoch, config, owner, clean, clean_before, \
        lineage, min_in_sync, class, wish, created, revision) \
        VALUES (?, ?, 'creating', ?, 0, 0, NULL, 1, 1, ?, ?, ?, ?, ?, ?)";
    UPDATE_VOLUME_ROW = "UPDATE volumes SET size = ?, epoch = ?, config = ?, owner = ?, clean = ?, \
        clean_before = ?, lineage = ?, min_in_sync = ?, revision = ? WHERE id = ?";
    /// Of an adopted volume that the catalogue did not know.
    INSERT_ADOPTED = "INSERT INTO volumes (id, name, phase, size, epoch, config, owner, clean, clean_before, \
        lineage, min_in_sync, wish, created, revision) VALUES (?, ?, 'available', ?, 0, 0, NULL, 0, 0, ?, ?, ?, ?, ?)";
    DELETE_REPLICAS = "DELETE FROM replicas WHERE volume = ?";
    INSERT_ADOPTED_REPLICA = "INSERT INTO replicas (volume, replica, node, pool, phase, in_sync, joined, reason) \
        VALUES (?, ?, ?, ?, 'ready', ?, ?, ?)";
    UPDATE_VOLUME_PHASE = "UPDATE volumes SET phase = ?, revision = ? WHERE id = ?";
    DELETE_VOLUME = "DELETE FROM volumes WHERE id = ?";
    INSERT_REPLICA = "INSERT INTO replicas (volume, replica, node, pool, phase, in_sync, joined) \
        VALUES (?, ?, ?, ?, 'creating', 1, 0)";
    INSERT_FURTHER_REPLICA = "INSERT INTO replicas (volume, replica, node, pool, phase, in_sync, joined, reason, \
        replaces) VALUES (?, ?, ?, ?, 'creating', 0, NULL, 'new', ?)";
    /// Whatever number a replica of the volume ever had is below.
    NEXT_REPLICA = "SELECT MAX(v.numbers, COALESCE((SELECT MAX(replica) + 1 FROM replicas WHERE volume = v.id), 0), \
        COALESCE((SELECT MAX(replica) + 1 FROM tombstones WHERE volume = v.id), 0)) FROM volumes v WHERE v.id = ?";
    SET_NUMBERS = "UPDATE volumes SET numbers = MAX(numbers, ?) WHERE id = ?";
    FORGET_REPLACES = "UPDATE replicas SET replaces = NULL WHERE volume = ? AND replaces = ?";
    SET_GROW_TO = "UPDATE volumes SET grow_to = ?, revision = ? WHERE id = ?";
    UPDATE_REPLICA = "UPDATE replicas SET in_sync = ?, joined = ?, since = ?, reason = ?, leaving = ? WHERE volume = ? AND replica = ?";
    UPDATE_REPLICA_PHASE = "UPDATE replicas SET phase = ? WHERE volume = ? AND replica = ?";
    UPDATE_REPLICA_PHASES = "UPDATE replicas SET phase = ? WHERE volume = ?";
    DELETE_REPLICA = "DELETE FROM replicas WHERE volume = ? AND replica = ?";

    TOMBSTONES = "SELECT volume, replica, name, node, pool, size, lineage, allocated, deleted FROM tombstones \
        ORDER BY volume, replica";
    TOMBSTONES_ON = "SELECT volume, replica, name, node, pool, size, lineage, allocated, deleted FROM tombstones \
        WHERE node = ? ORDER BY volume, replica";
    TOMBSTONE = "SELECT volume, replica, name, node, pool, size, lineage, allocated, deleted FROM tombstones \
        WHERE volume = ? AND replica = ?";
    INSERT_TOMBSTONE = "INSERT INTO tombstones (volume, replica, name, node, pool, size, lineage, allocated, deleted) \
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)";
    DELETE_TOMBSTONE = "DELETE FROM tombstones WHERE volume = ? AND replica = ?";

    SNAPSHOT_IDS = "SELECT id FROM snapshots ORDER BY queued, id";
    SNAPSHOT_IDS_MOVING = "SELECT id FROM snapshots WHERE phase NOT IN ('ready', 'failed') \
        UNION SELECT snapshot FROM snapshot_copies WHERE phase <> 'ready'";
    /// Ready, and copies are not where the volume's replicas are: a replica in sync has none, or a place without a
    /// replica has one.
    SNAPSHOT_IDS_UNEVEN = "SELECT s.id FROM snapshots s JOIN replicas r ON r.volume = s.volume \
        WHERE s.phase = 'ready' AND s.clone IS NULL AND r.phase = 'ready' AND r.in_sync = 1 AND r.leaving = 0 AND NOT EXISTS (\
            SELECT 1 FROM snapshot_copies c WHERE c.snapshot = s.id AND c.node = r.node AND c.pool = r.pool \
            AND c.phase = 'ready') \
        UNION SELECT c.snapshot FROM snapshot_copies c JOIN snapshots s ON s.id = c.snapshot \
        WHERE s.phase = 'ready' AND c.phase <> 'deleting' AND NOT EXISTS (\
            SELECT 1 FROM replicas r WHERE r.volume = s.volume AND r.node = c.node AND r.pool = c.pool \
            AND r.phase <> 'deleting')";
    /// Of which a node or one of its pools has a copy; the second `?` is a pool, or NULL for all.
    SNAPSHOT_IDS_AT = "SELECT DISTINCT snapshot FROM snapshot_copies WHERE node = ?1 AND (?2 IS NULL OR pool = ?2)";
    SNAPSHOT_IDS_OF = "SELECT id FROM snapshots WHERE volume = ?";
    SNAPSHOT_IDS_NAMED = "SELECT id FROM snapshots WHERE volume_name = ?";
    SNAPSHOT_IDS_ON = "SELECT snapshot FROM snapshot_copies WHERE node = ?1 \
        UNION SELECT s.id FROM snapshots s JOIN volumes v ON v.id = s.volume WHERE v.owner = ?1";
    /// Made for a volume.
    SNAPSHOT_IDS_CLONES = "SELECT id FROM snapshots WHERE clone IS NOT NULL AND phase IN ('ready', 'failed')";
    SET_CLONE = "UPDATE snapshots SET clone = ? WHERE id = ?";
    SET_CLONE_MADE = "UPDATE snapshots SET clone_made = 1 WHERE id = ?";
    SET_CLONE_OF = "UPDATE volumes SET clone_of = ? WHERE id = ?";
    CLONE_OF = "SELECT clone_of FROM volumes WHERE id = ?";
    SNAPSHOT_IDS_BATCH = "SELECT id FROM snapshots WHERE batch = ?";
    /// `?` is a JSON list of ids.
    SNAPSHOTS = "SELECT s.id, s.volume, s.volume_name, s.name, s.size, s.phase, s.reason, s.batch, s.go, s.queued, \
        s.created, s.revision, s.clone, s.clone_made, (SELECT COUNT(*) FROM snapshots b WHERE b.batch = s.batch) AS batch_size \
        FROM snapshots s WHERE s.id IN (SELECT value FROM json_each(?)) ORDER BY s.queued, s.id";
    /// `?` is a JSON list of ids.
    SNAPSHOT_COPIES = "SELECT snapshot, replica, node, pool, phase FROM snapshot_copies \
        WHERE snapshot IN (SELECT value FROM json_each(?)) ORDER BY snapshot, replica";
    INSERT_SNAPSHOT = "INSERT INTO snapshots (id, volume, volume_name, name, size, phase, reason, batch, go, queued, \
        created, revision) VALUES (?, ?, ?, ?, ?, 'creating', '', ?, 0, ?, ?, ?)";
    INSERT_SNAPSHOT_COPY = "INSERT INTO snapshot_copies (snapshot, replica, node, pool, phase) \
        VALUES (?, ?, ?, ?, 'creating')";
    UPDATE_SNAPSHOT = "UPDATE snapshots SET phase = ?, reason = ?, revision = ? WHERE id = ?";
    /// After a restore: what was being made may have become ready since, and is not made again in its place.
    KEEP_SNAPSHOT_COPIES = "UPDATE snapshot_copies SET phase = 'ready' WHERE phase = 'creating' \
        AND snapshot IN (SELECT id FROM snapshots WHERE phase IN ('creating', 'taken'))";
    FAIL_SNAPSHOTS = "UPDATE snapshots SET phase = 'failed', reason = ?, revision = ? \
        WHERE phase IN ('creating', 'taken')";
    SNAPSHOTS_GO = "UPDATE snapshots SET go = 1, revision = ? WHERE batch = ?";
    UPDATE_SNAPSHOT_COPY = "UPDATE snapshot_copies SET phase = ? WHERE snapshot = ? AND replica = ?";
    DELETE_SNAPSHOT_COPY = "DELETE FROM snapshot_copies WHERE snapshot = ? AND replica = ?";
    DELETE_SNAPSHOT = "DELETE FROM snapshots WHERE id = ?";
    /// The second `?` is a pool, or NULL for all.
    COUNT_COPIES = "SELECT COUNT(*) FROM snapshot_copies WHERE node = ?1 AND (?2 IS NULL OR pool = ?2)";
    DELETE_COPIES_AT = "DELETE FROM snapshot_copies WHERE node = ?1 AND (?2 IS NULL OR pool = ?2)";
    SOURCES_ON = "SELECT volume, replica, source_snapshot, source_volume, source_replica FROM replicas \
        WHERE node = ? AND phase = 'creating' AND source_snapshot IS NOT NULL";
    SOURCE_USERS = "SELECT COUNT(*) FROM replicas WHERE phase = 'creating' AND source_snapshot = ?";
    SET_SOURCE = "UPDATE replicas SET source_snapshot = ?, source_volume = ?, source_replica = ? \
        WHERE volume = ? AND replica = ?";
    SET_VOLUME_SOURCE = "UPDATE volumes SET source = ? WHERE id = ?";
    VOLUME_SOURCE = "SELECT source FROM volumes WHERE id = ?";
    SET_ATTACHMENT = "INSERT INTO attachments (volume, transport, read_only, purpose, detaching) \
        VALUES (?, ?, ?, ?, 0) ON CONFLICT (volume) DO UPDATE SET transport = excluded.transport, \
        read_only = excluded.read_only, purpose = excluded.purpose, detaching = 0";
    MARK_DETACHING = "UPDATE attachments SET detaching = 1 WHERE volume = ?";
    DELETE_ATTACHMENT = "DELETE FROM attachments WHERE volume = ?";

    BEGIN_SCRUB = "INSERT INTO scrubs (volume, run, phase, scheduled, mend, rate, cursor, reports, found, chosen, \
        mended, remaining, begun, open, open_bad) VALUES (?, 1, 'running', ?, ?, ?, 0, 0, 0, 0, 0, 0, ?, 0, 0) \
        ON CONFLICT (volume) DO UPDATE SET run = run + 1, phase = 'running', scheduled = excluded.scheduled, \
        mend = excluded.mend, rate = excluded.rate, cursor = 0, reports = 0, found = 0, chosen = 0, mended = 0, \
        remaining = 0, begun = excluded.begun, ended = NULL";
    CHANGE_SCRUB = "UPDATE scrubs SET mend = ?, rate = ?, scheduled = 0 WHERE volume = ?";
    /// Cursor; places found; of these chosen; mended; left.
    SCRUB_REPORTED = "UPDATE scrubs SET cursor = ?1, reports = reports + 1, found = found + ?2, chosen = chosen + ?3, \
        mended = mended + ?4, remaining = remaining + ?5, open = open + ?2, open_bad = MIN(open + ?2, open_bad + ?3 + ?5) \
        WHERE volume = ?6";
    /// Whatever was found before and is not found any more needs nobody's word.
    END_SCRUB = "UPDATE scrubs SET phase = ?1, ended = ?2, \
        completed = CASE ?1 WHEN 'complete' THEN ?2 ELSE completed END, \
        open = CASE WHEN ?1 = 'complete' AND found = 0 THEN 0 ELSE open END, \
        open_bad = CASE WHEN ?1 = 'complete' AND found = 0 THEN 0 ELSE open_bad END WHERE volume = ?3";
    CLOSE_FINDINGS = "UPDATE scrubs SET open = 0, open_bad = 0 WHERE volume = ?";
    DELETE_SCRUB = "DELETE FROM scrubs WHERE volume = ?";

    INSERT_EVENT = "INSERT INTO events (seq, time, severity, kind, object, message) \
        SELECT COALESCE(MAX(seq), 0) + 1, ?, ?, ?, ?, ? FROM events";
    TRIM_EVENTS = "DELETE FROM events WHERE seq <= (SELECT MAX(seq) FROM events) - ?";
    EVENTS_AFTER = "SELECT seq, time, severity, kind, object, message FROM events WHERE seq > ? \
        ORDER BY seq LIMIT ?";
    EVENT_SAID = "SELECT 1 FROM events WHERE kind = ? AND object = ? AND message = ? LIMIT 1";
    EVENTS_LAST = "SELECT MAX(seq) FROM events";

    COUNT_VOLUMES = "SELECT COUNT(*) FROM volumes";
    COUNT_REPLICAS = "SELECT COUNT(*) FROM replicas";
}
