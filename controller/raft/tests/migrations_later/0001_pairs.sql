CREATE TABLE pair (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL CHECK (length(value) < 1000000),
    written_by INTEGER NOT NULL,
    twice TEXT GENERATED ALWAYS AS (value || value) VIRTUAL
) STRICT;
CREATE INDEX pair_by_value ON pair (value);
CREATE TABLE history (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL REFERENCES pair (key) ON DELETE RESTRICT
) STRICT;
CREATE TRIGGER remember AFTER INSERT ON pair BEGIN
    INSERT INTO history (key) VALUES (new.key);
END;
CREATE VIEW keys AS SELECT key FROM pair;
