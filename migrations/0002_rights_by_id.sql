-- Rights by id, not by row: a look-up went from the id to the row and from the row to the right, three trees; now it
-- goes from the id and the reader to the row, two trees. A reader has one text of an id, so that one right is enough.
--
-- What removes a task finds its rights by its id, and what lets go of a reader asks its counter: no index by row or
-- by reader is needed, and no foreign key, which would look through all rights without one.
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
    SELECT t.service, t.id, r.reader, r.task, r.mark
    FROM task t INDEXED BY task_by_id CROSS JOIN task_right r INDEXED BY task_right_by_task ON r.task = t.row
    ORDER BY t.service, t.id, r.reader;
DROP TABLE task_right;
ALTER TABLE task_right_by_id RENAME TO task_right;

-- How many rights a reader has; triggers keep it right whoever writes.
ALTER TABLE reader ADD COLUMN rights INTEGER NOT NULL DEFAULT 0;
UPDATE reader SET rights = counted.rights
    FROM (SELECT reader, COUNT(*) AS rights FROM task_right GROUP BY reader) AS counted
    WHERE counted.reader = reader.id;
CREATE TRIGGER right_added AFTER INSERT ON task_right BEGIN
    UPDATE reader SET rights = rights + 1 WHERE id = NEW.reader;
END;
CREATE TRIGGER right_removed AFTER DELETE ON task_right BEGIN
    UPDATE reader SET rights = rights - 1 WHERE id = OLD.reader;
END;
CREATE TRIGGER task_removed_with_rights AFTER DELETE ON task BEGIN
    DELETE FROM task_right WHERE service = OLD.service AND id = OLD.id AND task = OLD.row;
END;
