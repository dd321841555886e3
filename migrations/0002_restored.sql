-- A catalogue restored from a backup does not know what happened after it. It begins a history of its own, and
-- holds no volume for known before the replicas were heard.
ALTER TABLE cluster ADD COLUMN history TEXT;                         -- NULL: the first one, named like the cluster
ALTER TABLE cluster ADD COLUMN generation INTEGER NOT NULL DEFAULT 0; -- counts restores
ALTER TABLE cluster ADD COLUMN restored TEXT;                        -- when; NULL: never
ALTER TABLE cluster ADD COLUMN unsettled INTEGER NOT NULL DEFAULT 0; -- nodes keep what this history does not mention

-- 1 while this row may be older than the data: after a restore, and when a replica shows a later view.
ALTER TABLE volumes ADD COLUMN doubt INTEGER NOT NULL DEFAULT 0;
CREATE INDEX volumes_doubt ON volumes (doubt) WHERE doubt = 1;
