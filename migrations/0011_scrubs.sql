-- Comparing all copies of a volume: the scrub that is under way or was the last, and what nobody has looked at yet of
-- what was found.
CREATE TABLE scrubs (
    volume    TEXT PRIMARY KEY,
    run       INTEGER NOT NULL,             -- rises with each scrub of the volume
    phase     TEXT NOT NULL CHECK (phase IN ('running', 'complete', 'too-much', 'cancelled', 'overdue')),
    scheduled INTEGER NOT NULL,             -- the cluster began it by itself
    mend      INTEGER NOT NULL,             -- what differs is made equal; otherwise only told
    rate      INTEGER NOT NULL,             -- bytes each replica may read a second
    cursor    INTEGER NOT NULL,             -- everything before is done; an engine goes on from here
    reports   INTEGER NOT NULL,             -- heard of it so far: none counts twice
    found     INTEGER NOT NULL,             -- places that differed or could not be read
    chosen    INTEGER NOT NULL,             -- of these, where nobody could know which copy is right
    mended    INTEGER NOT NULL,
    remaining INTEGER NOT NULL,             -- still differ
    begun     TEXT NOT NULL,
    ended     TEXT,                         -- NULL: it is under way
    completed TEXT,                         -- when one came to its end, last
    open      INTEGER NOT NULL,             -- found since somebody acknowledged or a scrub found nothing
    open_bad  INTEGER NOT NULL              -- of these, chosen or remaining
) STRICT, WITHOUT ROWID;
CREATE INDEX scrubs_running ON scrubs (phase) WHERE phase = 'running';

-- Days between scrubs of the volumes of a class; NULL: as the cluster does, 0: never.
ALTER TABLE classes ADD COLUMN scrub_days INTEGER;
