// Tables whose rows are kept by key, so that focus, selection and scroll position survive a refresh.

import { age, make, outwardLink, setText } from "./page.js";
import * as format from "./format.js";

/**
 * A table whose header is in the page. A column is `[fill, update]`: `fill(cell, item)` runs when a row is created,
 * `update(cell, item)` at each refresh. Both are optional.
 */
export class Table {
  constructor(table, key, columns) {
    this.body = table.tBodies[0];
    this.labels = [...table.tHead.rows[0].cells].map((cell) => [cell.textContent, cell.className]);
    this.key = key;
    this.columns = columns;
    this.rows = new Map();
  }

  show(items) {
    const itemsByKey = new Map();
    for (const item of items) {
      let key = this.key(item);
      // Queues of one token can differ in forwarded headers only.
      while (itemsByKey.has(key)) key += "'";
      itemsByKey.set(key, item);
    }
    for (const [key, row] of this.rows) {
      if (itemsByKey.has(key)) continue;
      row.remove();
      this.rows.delete(key);
    }
    let place = this.body.firstElementChild;
    for (const [key, item] of itemsByKey) {
      let row = this.rows.get(key);
      if (!row) {
        row = this.createRow(item);
        this.rows.set(key, row);
      }
      this.columns.forEach(([, update], n) => update?.(row.cells[n], item));
      if (row === place) place = place.nextElementSibling;
      else this.body.insertBefore(row, place);
    }
    this.body.parentElement.classList.toggle("empty", itemsByKey.size === 0);
  }

  createRow(item) {
    const row = document.createElement("tr");
    row.setAttribute("role", "row");
    this.columns.forEach(([fill], n) => {
      const cell = row.insertCell();
      const [label, className] = this.labels[n];
      cell.setAttribute("role", "cell");
      cell.dataset.label = label;
      cell.className = className;
      fill?.(cell, item);
    });
    return row;
  }
}

const number = (pick) => [null, (cell, item) => setText(cell, format.count(pick(item)), format.exactly(pick(item)))];
const text = (pick) => [(cell, item) => cell.append(make("bdi", pick(item) ?? "–"))];

function named(title, item) {
  const id = make("bdi", item.id, "id");
  id.title = item.id;
  return [title, id];
}

/** The table of finished tasks; `open` is called with the task whose title was clicked. */
export const finishedTable = (element, open) =>
  new Table(element, (task) => JSON.stringify([task.service, task.id, task.stored_at]), [
    [
      (cell, task) => {
        const title = make("button", "", "title");
        title.type = "button";
        title.append(make("bdi", task.title || "Untitled"));
        title.addEventListener("click", () => open(task));
        cell.append(...named(title, task));
        if (task.succeeded === false) cell.append(make("span", task.error ? `Failed: ${task.error}` : "Failed", "tag bad"));
      },
    ],
    [
      (cell, task) => {
        cell.append(make("bdi", task.service));
        if (task.type) cell.append(make("bdi", task.type, "under"));
      },
    ],
    [(cell, task) => cell.append(age(task.stored_at))],
    [(cell, task) => setText(cell, format.bytes(task.record_bytes), format.exactly(task.record_bytes, "bytes"))],
    [(cell, task) => cell.append(links(task.links))],
  ]);

/** Links to what a task createRow. */
export function links(list) {
  const span = make("span", "", "links");
  for (const { kind, url } of list ?? []) {
    const link = outwardLink(kind, url);
    if (link) span.append(link);
  }
  if (!span.hasChildNodes()) span.textContent = "–";
  return span;
}

/** The table of pending tasks. */
export const pendingTable = (element) =>
  new Table(element, (task) => JSON.stringify([task.service, task.id, task.token]), [
    [(cell, task) => cell.append(...named(make("bdi", task.title || "Untitled", "title"), task))],
    text((task) => task.service),
    [
      (cell) => {
        const bar = make("progress");
        bar.max = 1;
        bar.setAttribute("aria-label", "Progress");
        cell.append(bar, make("span", "", "under"));
      },
      (cell, task) => {
        const [bar, state] = cell.children;
        const known = typeof task.progress === "number";
        bar.hidden = !known;
        if (known && bar.value !== task.progress) bar.value = task.progress;
        const words = [known ? format.percent(task.progress) : "", task.state ?? (known ? "" : "unknown")];
        setText(state, words.filter(Boolean).join(" · "));
      },
    ],
    [(cell, task) => cell.append(age(task.created_at, "for"))],
    [null, (cell, task) => setText(cell, format.ago(task.snapshot_age_seconds), format.exactly(task.snapshot_age_seconds, "s ago"))],
    number((task) => task.waiters),
  ]);

/** The table of queues. */
export const queuesTable = (element) =>
  new Table(element, (queue) => JSON.stringify([queue.service, queue.token]), [
    text((queue) => queue.service),
    [(cell, queue) => cell.append(make("code", queue.token ?? "–"))],
    number((queue) => queue.queued),
    number((queue) => queue.in_flight),
    number((queue) => queue.waiters),
    number((queue) => queue.snapshots),
    [null, (cell, queue) => setText(cell, format.seconds(queue.oldest_wait_seconds), format.exactly(queue.oldest_wait_seconds, "s"))],
    [
      null,
      (cell, queue) => {
        const held = queue.paused_seconds > 0;
        cell.classList.toggle("held", held);
        const rate = `${Number(queue.requests_per_second?.toPrecision(2))}\u00a0/s`;
        setText(cell, held ? `paused ${format.seconds(queue.paused_seconds)}` : rate, `${format.exactly(queue.requests_per_second)} calls a second`);
      },
    ],
  ]);
