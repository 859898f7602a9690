-- Rights by id, not by row: a look-up went from the id to the row and from the row to the right, three trees; now it
-- goes from the id and the reader to the row, two trees. A reader has one text of an id, so that one right is enough.
--
-- What removes a task finds its rights by its id, and what lets go of a reader asks a counter: no index by row or
-- by reader is needed, and no foreign key, which would look through all rights without one.
--
-- A value of another type than was written, as a flipped bit makes it, must not keep a store from opening: what it
-- belongs to is left behind, and is a miss.

-- How many rights a reader has; triggers keep it right whoever writes. Apart from `reader` and not STRICT, so that a damaged
-- row of that table fails no transaction. Counted before the rights are sorted by id, which here are sorted by reader.
CREATE TABLE reader_rights (
    reader INTEGER PRIMARY KEY,
    rights INTEGER NOT NULL
);
INSERT INTO reader_rights (reader, rights)
    SELECT reader, COUNT(*) FROM task_right WHERE typeof(reader) = 'integer' GROUP BY reader;

CREATE TABLE task_right_by_id (
    service TEXT    NOT NULL,
    id      BLOB    NOT NULL,
    reader  INTEGER NOT NULL,
    task    INTEGER NOT NULL,
    -- XXH3-64 over the reader's digest, row and checksum: a flipped bit here must not give a task to a stranger.
    mark    INTEGER NOT NULL,
    PRIMARY KEY (service, id, reader)
) STRICT, WITHOUT ROWID;
INSERT OR IGNORE INTO task_right_by_id (service, id, reader, task, mark)
    SELECT t.service, t.id, r.reader, t.row, r.mark
    FROM task t INDEXED BY task_by_id CROSS JOIN task_right r INDEXED BY task_right_by_task ON r.task = t.row
    WHERE typeof(t.service) = 'text' AND typeof(t.id) = 'blob'
      AND typeof(r.reader) = 'integer' AND typeof(r.mark) = 'integer'
    ORDER BY t.service, t.id, r.reader, t.row;
DROP TABLE task_right;
ALTER TABLE task_right_by_id RENAME TO task_right;

CREATE TRIGGER right_added AFTER INSERT ON task_right BEGIN
    INSERT INTO reader_rights (reader, rights) VALUES (NEW.reader, 1)
    ON CONFLICT (reader) DO UPDATE SET rights = rights + 1;
END;
CREATE TRIGGER right_removed AFTER DELETE ON task_right BEGIN
    UPDATE reader_rights SET rights = rights - 1 WHERE reader = OLD.reader;
END;
CREATE TRIGGER reader_removed AFTER DELETE ON reader BEGIN
    DELETE FROM reader_rights WHERE reader = OLD.id;
END;
CREATE TRIGGER task_removed_with_rights AFTER DELETE ON task BEGIN
    DELETE FROM task_right WHERE service = OLD.service AND id = OLD.id AND task = OLD.row;
END;
