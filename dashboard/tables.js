// Tables whose rows are kept by key, so that focus, selection and scroll position survive a refresh.

import * as format from "./format.js";
import { age, make, outwardLink, setText } from "./page.js";
import { WORDS, caller, idCounts, requestName } from "./request-words.js";

/**
 * A table whose header is in the page. A column is `[fill, update]`: `fill(cell, item)` runs when a row is created,
 * `update(cell, item)` at each refresh. Both are optional. If there is an `open`, a click anywhere in a row calls it with
 * the item, except on a link.
 */
export class Table {
  constructor(table, key, columns, open) {
    this.body = table.tBodies[0];
    this.labels = [...table.tHead.rows[0].cells].map((cell) => [cell.textContent, cell.className]);
    this.key = key;
    this.columns = columns;
    this.open = open;
    this.rows = new Map();
    this.items = new Map();
  }

  show(items) {
    const itemsByKey = new Map();
    for (const item of items) {
      let key = this.key(item);
      // Queues of one token can differ in forwarded headers only.
      while (itemsByKey.has(key)) key += "'";
      itemsByKey.set(key, item);
    }
    this.items = itemsByKey;
    for (const [key, row] of this.rows) {
      if (itemsByKey.has(key)) continue;
      row.remove();
      this.rows.delete(key);
    }
    let place = this.body.firstElementChild;
    for (const [key, item] of itemsByKey) {
      let row = this.rows.get(key);
      if (!row) {
        row = this.createRow(key, item);
        this.rows.set(key, row);
      }
      this.columns.forEach(([, update], n) => update?.(row.cells[n], item));
      if (row === place) place = place.nextElementSibling;
      else this.body.insertBefore(row, place);
    }
    this.body.parentElement.classList.toggle("empty", itemsByKey.size === 0);
  }

  createRow(key, item) {
    const row = document.createElement("tr");
    row.setAttribute("role", "row");
    if (this.open) {
      row.classList.add("opens");
      row.addEventListener("click", (event) => {
        // Text that was just selected is meant to be copied.
        const isSelecting = !event.target.closest("button") && String(getSelection()) !== "";
        if (!event.target.closest("a") && !isSelecting) this.open(this.items.get(key) ?? item);
      });
    }
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

/** Creates the button of a row, for the keyboard. Its click reaches the row. */
function opener(text) {
  const title = make("button", "", "title");
  title.type = "button";
  title.append(make("bdi", text));
  return title;
}

function named(item) {
  const id = make("bdi", item.id, "id");
  id.title = item.id;
  return [opener(item.title || "Untitled"), id];
}

/** The table of finished tasks; `open` is called with the task whose row was clicked. */
export const finishedTable = (element, open) =>
  new Table(element, (task) => JSON.stringify([task.service, task.id, task.stored_at]), [
    [
      (cell, task) => {
        cell.append(...named(task));
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
  ], open);

/** Creates the links to the results of a task. */
export function links(list) {
  const span = make("span", "", "links");
  for (const { kind, url } of list ?? []) {
    const link = outwardLink(kind, url);
    if (link) span.append(link);
  }
  if (!span.hasChildNodes()) span.textContent = "–";
  return span;
}

/** Returns the expected time until a task is finished. */
export function expected(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  return seconds < 1 ? "soon" : `in ${format.seconds(seconds)}`;
}

/** The table of pending tasks. */
export const pendingTable = (element, open) =>
  new Table(element, (task) => JSON.stringify([task.service, task.id, task.token]), [
    [(cell, task) => cell.append(...named(task))],
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
    [
      null,
      (cell, { expected_remaining_seconds: left }) =>
        setText(cell, expected(left), "Median of the remaining time of tasks of this type and age"),
    ],
    [null, (cell, task) => setText(cell, format.ago(task.snapshot_age_seconds), format.exactly(task.snapshot_age_seconds, "s ago"))],
    number((task) => task.waiters),
  ], open);

/** The table of the last requests. */
export const requestsTable = (element, open) =>
  new Table(element, (request) => JSON.stringify([request.request_id, request.ended_at]), [
    [
      (cell, request) => {
        cell.append(opener(requestName(request)));
        if (request.action !== "other") cell.append(make("bdi", request.path, "under"));
      },
    ],
    [
      (cell, request) => {
        const isFailed = request.kind === "failed";
        const word = make("span", request.outcome, isFailed ? "tag bad" : `tag ${request.kind}`);
        word.title = WORDS[request.outcome] ?? "";
        cell.append(word);
        const result = [request.status ?? "no response", request.error].filter(Boolean).join(" · ");
        cell.append(make("span", result, "under"));
      },
    ],
    [(cell, request) => cell.append(make("span", request.ids ? idCounts(request.ids) : "–"))],
    [(cell, request) => setText(cell, format.seconds(request.duration_seconds), format.exactly(request.duration_seconds, "s"))],
    [(cell, request) => cell.append(make("bdi", caller(request), request.client ? "" : "id"))],
    [(cell, request) => cell.append(age(request.ended_at))],
    [
      (cell, request) => {
        const id = make("bdi", request.request_id, "id");
        id.title = request.request_id;
        cell.append(id);
      },
    ],
  ], open);

/** The table of queues. */
export const queuesTable = (element) =>
  new Table(element, (queue) => JSON.stringify([queue.service, queue.token]), [
    text((queue) => queue.service),
    [
      (cell, queue) => cell.append(make("bdi"), make("code", queue.token)),
      (cell, queue) => {
        setText(cell.firstElementChild, queue.clients.join(", "));
        cell.lastElementChild.className = queue.clients.length > 0 ? "under" : "";
      },
    ],
    number((queue) => queue.queued),
    number((queue) => queue.in_flight),
    number((queue) => queue.waiters),
    number((queue) => queue.snapshots),
    [null, (cell, queue) => setText(cell, format.seconds(queue.estimate_seconds), "Time until a new task would be fetched if it were looked up now")],
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
