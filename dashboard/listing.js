// The list of finished tasks: the latest, or the results of a search, page by page.

import { get } from "./api.js";
import { openDetail } from "./detail.js";
import { $, setText } from "./page.js";
import { finishedTable } from "./tables.js";

const PAGE = 10;
// A page of a search by title can be short or empty and still have a next page.
const PAGES_AT_ONCE = 5;

let table;
let term = "";
/** Tasks in the list, and the position of each query: `{parameters, next}`. */
let shown = [];
let queries = [];
let run = 0;
let isPaging = false;

/** Returns the queries: all tasks, or ids that begin with the term and titles that contain it. */
function queriesFor(entered) {
  if (!entered) return [{ parameters: {} }];
  return [{ parameters: { id: entered } }, { parameters: { title: entered } }];
}

const keyOf = (task) => JSON.stringify([task.service, task.id, task.stored_at]);

function merged(lists) {
  const known = new Set();
  return lists.flat().filter((task) => {
    const key = keyOf(task);
    return known.has(key) ? false : known.add(key);
  });
}

/** Returns the next page of a query, or several if they are short. */
async function more(query) {
  const found = [];
  for (let pages = 0; pages < PAGES_AT_ONCE && found.length < PAGE && query.next !== null; pages += 1) {
    const page = await get("api/tasks", { ...query.parameters, limit: PAGE, cursor: query.next });
    found.push(...page.tasks);
    query.next = page.next;
  }
  return found;
}

/**
 * Shows the latest tasks, and keeps the pages that were loaded below them. The results of a search stay unchanged, and
 * so does the list while a page is loading.
 */
export async function refreshListing() {
  if (term || isPaging) return;
  const mine = run;
  const first = { parameters: {} };
  const latest = await more(first);
  if (mine !== run || isPaging) return;
  const isLonger = shown.length > PAGE && first.next !== null;
  const below = isLonger ? shownBelow(latest) : [];
  // If no page is kept, the next page is the one after the latest.
  if (below.length === 0) queries = [first];
  draw(merged([latest, below]));
}

/**
 * Returns the listed tasks below the last of `latest`, by its position, since many tasks are stored in one second. If it
 * is not listed, there can be a gap, and no page is kept.
 */
function shownBelow(latest) {
  const last = latest.at(-1);
  const place = last ? shown.findLastIndex((task) => keyOf(task) === keyOf(last)) : -1;
  return place < 0 ? [] : shown.slice(place + 1);
}

/** Loads the list again, with another term or after a delete. */
export async function restartListing() {
  run += 1;
  const mine = run;
  const entered = $("term").value.trim();
  const fresh = queriesFor(entered);
  const found = await Promise.all(fresh.map(more));
  if (mine !== run) return;
  term = entered;
  queries = fresh;
  draw(merged(found));
}

async function showMore() {
  if (isPaging) return;
  isPaging = true;
  const mine = run;
  const before = shown.length;
  // Copies: after an error, the next attempt starts at the same position.
  const further = queries.map((query) => ({ ...query }));
  let found;
  try {
    found = await Promise.all(further.map(more));
  } finally {
    isPaging = false;
  }
  if (mine !== run) return;
  queries = further;
  draw(merged([shown, ...found]));
  if ($("tasks-more").hidden) $("tasks").tBodies[0].rows[before]?.querySelector("button")?.focus();
}

function draw(tasks) {
  shown = tasks;
  table.show(tasks);
  const hasMore = queries.some((query) => query.next !== null);
  $("tasks-more").hidden = !hasMore;
  setText($("tasks-more"), term ? "Search further" : "Show more");
  const none = $("tasks-none");
  none.hidden = tasks.length > 0;
  setText(none, term ? `Nothing ${hasMore ? "yet " : ""}found for “${term}”.` : "No finished task is stored yet.");
  setText($("tasks-count"), tasks.length === 0 ? "" : `${tasks.length} ${term ? "found" : "shown"}${hasMore ? ", more available" : ""}`);
  const services = new Set([...$("services").options].map((option) => option.value));
  for (const { service } of tasks) {
    if (services.has(service)) continue;
    services.add(service);
    for (const list of ["services", "requests-services"]) $(list).append(new Option("", service));
  }
}

/** Wires the search. `attempt` runs a request and shows its error. */
export function wireListing(attempt) {
  table = finishedTable($("tasks"), openDetail);
  let waiting;
  $("term").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => attempt(restartListing), 250);
  });
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(waiting);
    attempt(restartListing);
  });
  $("tasks-more").addEventListener("click", () => attempt(showMore));
}
