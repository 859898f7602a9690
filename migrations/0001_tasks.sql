-- Finished tasks, who may read them, and what must not be stored again.
--
-- Numbers that must never come from a scan (tasks, bytes) and the sequence of forgets stand in one row. Triggers
-- keep the first two right whoever writes, a command beside the running proxy too.
CREATE TABLE meta (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    digest_key BLOB    NOT NULL CHECK (length(digest_key) = 32),
    tasks      INTEGER NOT NULL DEFAULT 0,
    bytes      INTEGER NOT NULL DEFAULT 0,
    forget_seq INTEGER NOT NULL DEFAULT 0,
    -- Written to find out whether the disk takes writes again.
    probed_at  INTEGER NOT NULL DEFAULT 0
) STRICT;

-- One row for each distinct text of a (service, id): a reader that was given other bytes gets a row of its own.
-- The body stands last, so that everything else is read without its overflow pages.
CREATE TABLE task (
    row       INTEGER PRIMARY KEY,
    service   TEXT    NOT NULL,
    id        BLOB    NOT NULL,
    -- XXH3-64 over service, id and body.
    checksum  INTEGER NOT NULL,
    size      INTEGER NOT NULL,
    stored_at INTEGER NOT NULL,
    -- Last use in hours since the Unix epoch.
    used_hour INTEGER NOT NULL,
    body      BLOB    NOT NULL
) STRICT;
CREATE INDEX task_by_id ON task (service, id);
-- The sweep's order: longest unused first, ties by age, as the row number is an index's last column.
CREATE INDEX task_by_use ON task (used_hour);

-- Tokens, by digest alone. `accepted_at` is null until the upstream's acceptance was recorded.
CREATE TABLE reader (
    id          INTEGER PRIMARY KEY,
    digest      BLOB    NOT NULL UNIQUE,
    accepted_at INTEGER,
    ended       INTEGER NOT NULL DEFAULT 0
) STRICT;

-- `mark` is XXH3-64 over digest, row and checksum: a flipped bit here must not give a task to a stranger.
CREATE TABLE task_right (
    reader INTEGER NOT NULL REFERENCES reader (id) ON DELETE CASCADE,
    task   INTEGER NOT NULL REFERENCES task (row) ON DELETE CASCADE,
    mark   INTEGER NOT NULL,
    PRIMARY KEY (reader, task)
) STRICT, WITHOUT ROWID;
CREATE INDEX task_right_by_task ON task_right (task);

-- What was forgotten of late: an answer whose call began before `seq` is not stored. No id: the whole service;
-- no service either: everything.
CREATE TABLE forgotten (
    seq     INTEGER PRIMARY KEY,
    service TEXT,
    id      BLOB
) STRICT;

CREATE TRIGGER task_added AFTER INSERT ON task BEGIN
    UPDATE meta SET tasks = tasks + 1, bytes = bytes + NEW.size;
END;
CREATE TRIGGER task_removed AFTER DELETE ON task BEGIN
    UPDATE meta SET tasks = tasks - 1, bytes = bytes - OLD.size;
END;
