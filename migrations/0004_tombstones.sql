-- What was deleted before its node could remove it, and pools that no node has made yet.

-- A replica of a volume that is deleted by force: the volume is gone, the node removes the files as soon as it hears
-- of it. The row goes with the files, or with the node or pool when that is given up.
CREATE TABLE tombstones (
    volume    TEXT NOT NULL,
    replica   INTEGER NOT NULL,
    name      TEXT NOT NULL,                -- of the volume, when it was there
    node      TEXT NOT NULL,
    pool      TEXT NOT NULL,
    size      INTEGER NOT NULL,             -- of the volume
    lineage   TEXT NOT NULL,
    allocated INTEGER,                      -- bytes on the node as last reported; NULL when no leader had heard
    deleted   TEXT NOT NULL,
    PRIMARY KEY (volume, replica)
) STRICT, WITHOUT ROWID;
CREATE INDEX tombstones_place ON tombstones (node, pool);

-- 1 once its node reported that it can be used.
ALTER TABLE pools ADD COLUMN ready INTEGER NOT NULL DEFAULT 1;
