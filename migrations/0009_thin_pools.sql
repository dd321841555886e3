-- Pools of kind lvm-thin: dir is VG/POOL, devices are the disks it is made of while it is not ready.

CREATE TABLE pools_of_kinds (
    name                TEXT NOT NULL,
    node                TEXT NOT NULL,
    kind                TEXT NOT NULL CHECK (kind IN ('file', 'lvm-thin')),
    dir                 TEXT NOT NULL,      -- directory; VG/POOL of a thin pool
    devices             TEXT NOT NULL,      -- JSON: each with path, size, model, serial as they were when chosen
    adopt               INTEGER NOT NULL,   -- a volume group that Stor did not make may be used
    wipe                INTEGER NOT NULL,   -- what is on the devices may be overwritten
    tags                TEXT NOT NULL,
    overprovision_milli INTEGER NOT NULL,
    ready               INTEGER NOT NULL,   -- 1 once its node reported that it can be used; never made again then
    revision            INTEGER NOT NULL,
    PRIMARY KEY (name, node)
) STRICT, WITHOUT ROWID;
INSERT INTO pools_of_kinds SELECT name, node, kind, dir, '[]', 0, 0, tags, overprovision_milli, ready, revision FROM pools;
DROP TABLE pools;
ALTER TABLE pools_of_kinds RENAME TO pools;
CREATE UNIQUE INDEX pools_dir ON pools (node, dir);
