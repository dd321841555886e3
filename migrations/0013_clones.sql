-- Volumes made of what another volume holds: a snapshot that is made for it carries what it is made for, and goes when
-- the volume is there.

-- JSON of what is to be made; NULL: an ordinary snapshot.
ALTER TABLE snapshots ADD COLUMN clone TEXT;
-- That was made: whatever becomes of it later, it is not made again.
ALTER TABLE snapshots ADD COLUMN clone_made INTEGER NOT NULL DEFAULT 0;
CREATE INDEX snapshots_clones ON snapshots (id) WHERE clone IS NOT NULL;
-- The volume it was a copy of, to tell a repeated wish from another.
ALTER TABLE volumes ADD COLUMN clone_of TEXT;
