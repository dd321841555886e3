-- Replicas that come and go while a volume is used, nodes that are emptied, volumes that grow.

-- 1: in sync and to go; its engine removes it as soon as that is safe.
ALTER TABLE replicas ADD COLUMN leaving INTEGER NOT NULL DEFAULT 0;
-- Replica of the same volume whose place this one takes: that one leaves when this one is in sync.
ALTER TABLE replicas ADD COLUMN replaces INTEGER;
CREATE INDEX replicas_leaving ON replicas (leaving) WHERE leaving = 1;
-- Numbers below this were given to replicas once. 0: not written yet; those there are tell.
ALTER TABLE volumes ADD COLUMN numbers INTEGER NOT NULL DEFAULT 0;

-- 'drain': to be emptied, nothing new is placed there; 'lost': gone, its replicas are replaced at once.
ALTER TABLE nodes ADD COLUMN leaving TEXT CHECK (leaving IN ('drain', 'lost'));
-- When its satellite was last found gone; NULL while it is connected, or never was.
ALTER TABLE nodes ADD COLUMN offline_since TEXT;

-- Size the volume is to have; its replicas grow first. NULL: the one it has.
ALTER TABLE volumes ADD COLUMN grow_to INTEGER;
CREATE INDEX volumes_growing ON volumes (grow_to) WHERE grow_to IS NOT NULL;
