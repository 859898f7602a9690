-- Final task records, the tokens that may read them, deletes that late responses must not undo, and
-- the durations of tasks.

-- One row. The counters must never need a table scan; triggers maintain them, so that they stay
-- correct when a command writes beside the running proxy.
CREATE TABLE meta (
    singleton  INTEGER PRIMARY KEY CHECK (singleton = 1),
    -- Key of the HMAC digests in `reader`.
    digest_key BLOB    NOT NULL CHECK (length(digest_key) = 32),
    tasks      INTEGER NOT NULL DEFAULT 0,
    bytes      INTEGER NOT NULL DEFAULT 0,
    -- Sequence number of the last delete; see `tombstone`.
    delete_seq INTEGER NOT NULL DEFAULT 0,
    -- Written only to find out whether the disk accepts writes again.
    probed_at  INTEGER NOT NULL DEFAULT 0
) STRICT;

-- One row for each distinct record of a task. A token that received other bytes for the same id has
-- a row of its own. `record` is the last column, so that the others are read without its overflow
-- pages.
CREATE TABLE task (
    -- Internal key. Not the id that clients know, which is `id`.
    task_id   INTEGER PRIMARY KEY,
    service   TEXT    NOT NULL,
    id        BLOB    NOT NULL,
    -- XXH3-64 of service, id and record.
    checksum  INTEGER NOT NULL,
    -- Length of the record in bytes.
    size      INTEGER NOT NULL,
    -- Seconds since the Unix epoch.
    stored_at INTEGER NOT NULL,
    -- Time of the last read, in hours since the Unix epoch.
    used_hour INTEGER NOT NULL,
    record    BLOB    NOT NULL
) STRICT;
CREATE INDEX task_by_id ON task (service, id);
-- Order of the sweep: least recently used first. Equal hours are in order of insertion, because the
-- row key is the implicit last column of every index.
CREATE INDEX task_by_use ON task (used_hour);

-- Tokens, known by their digest only.
CREATE TABLE reader (
    reader_id   INTEGER PRIMARY KEY,
    digest      BLOB    NOT NULL UNIQUE,
    -- When the upstream last accepted the token, in seconds since the Unix epoch. NULL: never
    -- recorded.
    accepted_at INTEGER,
    -- Whether the upstream refused the token since.
    is_refused  INTEGER NOT NULL DEFAULT 0
) STRICT;

-- A token's right to read one row of `task`. The primary key is what a lookup knows, so that a
-- lookup goes through two trees: this one and `task`. A reader has at most one grant per service
-- and id.
--
-- There are no foreign keys: without an index by `task_id` or `reader_id` they would need a full
-- scan. Triggers delete the grants of a deleted task, and readers are deleted only when they have
-- no grants.
CREATE TABLE task_grant (
    service        TEXT    NOT NULL,
    id             BLOB    NOT NULL,
    reader_id      INTEGER NOT NULL,
    task_id        INTEGER NOT NULL,
    -- XXH3-64 of the reader's digest, `task_id` and the task's checksum. A flipped bit in this row
    -- must not let another token read the task.
    grant_checksum INTEGER NOT NULL,
    PRIMARY KEY (service, id, reader_id)
) STRICT, WITHOUT ROWID;

-- Number of grants of each reader. Separate from `reader` and not STRICT, so that a damaged row of
-- `reader` cannot make a transaction fail that only counts.
CREATE TABLE reader_grants (
    reader_id INTEGER PRIMARY KEY,
    grants    INTEGER NOT NULL
);

-- Recent deletes. The response of an upstream call that began before `seq` must not store the task
-- again. A NULL `id` stands for all tasks of the service, a NULL `service` for all services.
CREATE TABLE tombstone (
    seq     INTEGER PRIMARY KEY,
    service TEXT,
    id      BLOB
) STRICT;

-- How long tasks took from creation to end. It has no ids and no tokens.
CREATE TABLE duration (
    service    TEXT    NOT NULL,
    -- Type of the tasks. Empty: all tasks of the service.
    type       TEXT    NOT NULL,
    -- Number of tasks so far.
    samples    INTEGER NOT NULL,
    -- Decayed number of tasks in each bucket of a histogram, as little-endian 32-bit floats.
    weights    BLOB    NOT NULL,
    -- Seconds since the Unix epoch.
    updated_at INTEGER NOT NULL,
    -- XXH3-64 of service, type, samples and weights.
    checksum   INTEGER NOT NULL,
    PRIMARY KEY (service, type)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER task_inserted AFTER INSERT ON task BEGIN
    UPDATE meta SET tasks = tasks + 1, bytes = bytes + NEW.size;
END;
CREATE TRIGGER task_deleted AFTER DELETE ON task BEGIN
    UPDATE meta SET tasks = tasks - 1, bytes = bytes - OLD.size;
    DELETE FROM task_grant WHERE service = OLD.service AND id = OLD.id AND task_id = OLD.task_id;
END;
CREATE TRIGGER grant_inserted AFTER INSERT ON task_grant BEGIN
    INSERT INTO reader_grants (reader_id, grants) VALUES (NEW.reader_id, 1)
    ON CONFLICT (reader_id) DO UPDATE SET grants = grants + 1;
END;
CREATE TRIGGER grant_deleted AFTER DELETE ON task_grant BEGIN
    UPDATE reader_grants SET grants = grants - 1 WHERE reader_id = OLD.reader_id;
END;
CREATE TRIGGER reader_deleted AFTER DELETE ON reader BEGIN
    DELETE FROM reader_grants WHERE reader_id = OLD.reader_id;
END;
