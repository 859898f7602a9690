-- The sweep counts the tasks and their bytes again if the counters in `meta` may be damaged. With
-- `size` in the index of the sweep this reads about 20 bytes per task instead of the whole table.
-- `task_id` stands before it to keep the order of insertion among equal hours.
DROP INDEX task_by_use;
CREATE INDEX task_by_use ON task (used_hour, task_id, size);
