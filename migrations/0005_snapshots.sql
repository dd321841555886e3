-- Snapshots of volumes, and which replicas have a copy of each. What is kept of a volume's row is not touched by them.

CREATE TABLE snapshots (
    id          TEXT PRIMARY KEY,
    volume      TEXT NOT NULL,              -- id of the volume, which may be gone
    volume_name TEXT NOT NULL,
    name        TEXT NOT NULL,
    size        INTEGER NOT NULL,           -- of the volume at that time
    phase       TEXT NOT NULL CHECK (phase IN ('creating', 'taken', 'ready', 'failed', 'deleting')),
    reason      TEXT NOT NULL,              -- why it failed
    batch       TEXT NOT NULL,              -- those asked for together: all are ready or none
    go          INTEGER NOT NULL,           -- every engine of the batch holds its writes: make it
    queued      INTEGER NOT NULL,           -- index of the entry that asked for it: gives the order
    created     TEXT NOT NULL,
    revision    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshots_volume ON snapshots (volume, name);
CREATE INDEX snapshots_batch ON snapshots (batch);
CREATE INDEX snapshots_moving ON snapshots (phase) WHERE phase NOT IN ('ready', 'failed');

CREATE TABLE snapshot_copies (
    snapshot TEXT NOT NULL,
    replica  INTEGER NOT NULL,              -- that made it; may be gone
    node     TEXT NOT NULL,
    pool     TEXT NOT NULL,
    phase    TEXT NOT NULL CHECK (phase IN ('creating', 'ready', 'deleting')),
    PRIMARY KEY (snapshot, replica)
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshot_copies_place ON snapshot_copies (node, pool);

-- Where a replica's first data come from: a copy in the same pool. NULL: it is made empty, or gets all by a resync.
ALTER TABLE replicas ADD COLUMN source_snapshot TEXT;
ALTER TABLE replicas ADD COLUMN source_volume TEXT;
ALTER TABLE replicas ADD COLUMN source_replica INTEGER;
-- The snapshot a volume was made of.
ALTER TABLE volumes ADD COLUMN source TEXT;
