-- Public keys with which replicas check the rights that controllers sign. The private halves are not here and in no
-- snapshot or backup: each controller keeps its own in its directory.

CREATE TABLE signers (
    key        TEXT PRIMARY KEY,            -- Ed25519, 64 hexadecimal digits
    controller INTEGER NOT NULL,            -- whose; id in Raft
    retired    INTEGER NOT NULL,            -- opens no new epoch
    added      INTEGER NOT NULL             -- index of the entry that brought it: gives the order
) STRICT, WITHOUT ROWID;
CREATE INDEX signers_order ON signers (added);
