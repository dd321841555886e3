-- The catalogue: all that users asked for and all that the data path depends on. Written only by applying
-- commands from the Raft log, so every controller holds the same rows.
--
-- revision: index of the log entry that last changed the row. Times are text (RFC 3339, UTC), taken from
-- the command. Lists and maps that no query looks into are JSON text. There are no foreign keys: a
-- command checks what it refers to before it writes, and a snapshot can be copied in table by table.

CREATE TABLE cluster (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    id      TEXT NOT NULL,
    created TEXT NOT NULL
) STRICT;

CREATE TABLE nodes (
    name         TEXT PRIMARY KEY,
    address      TEXT NOT NULL,
    kind         TEXT NOT NULL CHECK (kind IN ('storage', 'diskless')),
    properties   TEXT NOT NULL,
    data_address TEXT,                      -- host:port of its replica server, when it has told
    version      TEXT,                      -- of its satellite; NULL until first seen
    boot_id      TEXT,
    transports   TEXT NOT NULL,
    online       INTEGER,                   -- last recorded connection state; for events, not for decisions
    desired      INTEGER NOT NULL,          -- index of the last entry that may have changed what it should hold
    revision     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX nodes_desired ON nodes (desired);

CREATE TABLE pools (
    name                TEXT NOT NULL,
    node                TEXT NOT NULL,
    kind                TEXT NOT NULL CHECK (kind = 'file'),
    dir                 TEXT NOT NULL,
    tags                TEXT NOT NULL,
    overprovision_milli INTEGER NOT NULL,
    revision            INTEGER NOT NULL,
    PRIMARY KEY (name, node)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX pools_dir ON pools (node, dir);

CREATE TABLE classes (
    name      TEXT PRIMARY KEY,
    replicas  INTEGER NOT NULL,
    pool      TEXT,
    tags      TEXT NOT NULL,
    transport TEXT,
    spread    TEXT,
    together  TEXT,
    revision  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE volumes (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    phase        TEXT NOT NULL CHECK (phase IN ('creating', 'available', 'deleting')),
    size         INTEGER NOT NULL,
    epoch        INTEGER NOT NULL,
    config       INTEGER NOT NULL,
    owner        TEXT,                      -- node with the right to run the engine of this epoch
    clean        INTEGER NOT NULL,
    clean_before INTEGER NOT NULL,
    lineage      TEXT NOT NULL,
    min_in_sync  INTEGER NOT NULL,
    class        TEXT,
    wish         TEXT NOT NULL,             -- what was asked for, to tell a repeated create from another
    created      TEXT NOT NULL,
    revision     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX volumes_owner ON volumes (owner) WHERE owner IS NOT NULL;
CREATE INDEX volumes_class ON volumes (class) WHERE class IS NOT NULL;
CREATE INDEX volumes_unclean ON volumes (clean) WHERE clean = 0 AND owner IS NULL;

CREATE TABLE replicas (
    volume  TEXT NOT NULL,
    replica INTEGER NOT NULL,               -- never used again within the volume
    node    TEXT NOT NULL,
    pool    TEXT NOT NULL,
    phase   TEXT NOT NULL CHECK (phase IN ('creating', 'ready', 'deleting')),
    in_sync INTEGER NOT NULL,
    joined  INTEGER,                        -- config that last put it into the in-sync set; NULL: never was in it
    since   INTEGER,                        -- config that removed it; NULL while in sync, or when it never was
    reason  TEXT,                           -- why it is not in sync
    PRIMARY KEY (volume, replica)
) STRICT, WITHOUT ROWID;
CREATE INDEX replicas_place ON replicas (node, pool);
CREATE INDEX replicas_moving ON replicas (phase) WHERE phase <> 'ready';
CREATE INDEX replicas_stale ON replicas (in_sync) WHERE in_sync = 0;

-- How the owner of a volume uses it. A row exists exactly while volumes.owner is set.
CREATE TABLE attachments (
    volume    TEXT PRIMARY KEY,
    transport TEXT NOT NULL,
    read_only INTEGER NOT NULL,
    purpose   TEXT NOT NULL CHECK (purpose IN ('user', 'healing')),
    detaching INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    seq      INTEGER PRIMARY KEY,
    time     TEXT NOT NULL,
    severity TEXT NOT NULL,
    kind     TEXT NOT NULL,
    object   TEXT NOT NULL,
    message  TEXT NOT NULL
) STRICT;
