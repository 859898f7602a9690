// Finished tasks: the latest, and those a search finds, page by page.

import { get } from "./api.js";
import { openDetail } from "./detail.js";
import { $, say } from "./page.js";
import { finishedTable } from "./tables.js";

const PAGE = 10;
// A page of a search by title may be short, and even empty, and still have a next one.
const PAGES_AT_ONCE = 5;

let table;
let term = "";
/** Tasks shown, and where to go on: `{parameters, next}` for each way of searching. */
let shown = [];
let ways = [];
let run = 0;
let isPaging = false;

/** What is asked for: all, or ids that begin with the term and titles that contain it. */
function waysOf(words) {
  if (!words) return [{ parameters: {} }];
  return [{ parameters: { id: words } }, { parameters: { title: words } }];
}

const keyOf = (task) => JSON.stringify([task.service, task.id, task.stored_at]);

function merged(lists) {
  const known = new Set();
  return lists.flat().filter((task) => {
    const key = keyOf(task);
    return known.has(key) ? false : known.add(key);
  });
}

/** One more page of a way, or several where they come short. */
async function more(way) {
  const found = [];
  for (let pages = 0; pages < PAGES_AT_ONCE && found.length < PAGE && way.next !== null; pages += 1) {
    const page = await get("api/tasks", { ...way.parameters, limit: PAGE, cursor: way.next });
    found.push(...page.tasks);
    way.next = page.next;
  }
  return found;
}

/**
 * Shows the latest, with what was loaded below left as it is. A search stands until it is asked again; while more is
 * being loaded, nothing moves under it.
 */
export async function refreshListing() {
  if (term || isPaging) return;
  const mine = run;
  const first = { parameters: {} };
  const latest = await more(first);
  if (mine !== run || isPaging) return;
  const isLonger = shown.length > PAGE && first.next !== null;
  const below = isLonger ? shownBelow(latest) : [];
  // Where nothing is kept, the next page is the one behind the latest.
  if (below.length === 0) ways = [first];
  draw(merged([latest, below]));
}

/**
 * What is shown below the last of these. By its place: many tasks are stored in one second. Where it is not shown,
 * there may be others between it and what is shown, and nothing is kept.
 */
function shownBelow(latest) {
  const last = latest.at(-1);
  const place = last ? shown.findLastIndex((task) => keyOf(task) === keyOf(last)) : -1;
  return place < 0 ? [] : shown.slice(place + 1);
}

/** Starts anew: with another term, or after something was deleted. */
export async function restartListing() {
  run += 1;
  const mine = run;
  const words = $("term").value.trim();
  const fresh = waysOf(words);
  const found = await Promise.all(fresh.map(more));
  if (mine !== run) return;
  term = words;
  ways = fresh;
  draw(merged(found));
}

async function showMore() {
  if (isPaging) return;
  isPaging = true;
  const mine = run;
  const before = shown.length;
  // Copies: if a page fails, the next try begins where this one did.
  const further = ways.map((way) => ({ ...way }));
  let found;
  try {
    found = await Promise.all(further.map(more));
  } finally {
    isPaging = false;
  }
  if (mine !== run) return;
  ways = further;
  draw(merged([shown, ...found]));
  if ($("tasks-more").hidden) $("tasks").tBodies[0].rows[before]?.querySelector("button")?.focus();
}

function draw(tasks) {
  shown = tasks;
  table.show(tasks);
  const isMore = ways.some((way) => way.next !== null);
  $("tasks-more").hidden = !isMore;
  say($("tasks-more"), term ? "Search further" : "Show more");
  const none = $("tasks-none");
  none.hidden = tasks.length > 0;
  say(none, term ? `Nothing ${isMore ? "yet " : ""}found for “${term}”.` : "No finished task is stored yet.");
  say($("tasks-count"), tasks.length === 0 ? "" : `${tasks.length} ${term ? "found" : "shown"}${isMore ? ", there are more" : ""}`);
  const services = new Set([...$("services").options].map((option) => option.value));
  for (const { service } of tasks) {
    if (services.has(service)) continue;
    services.add(service);
    $("services").append(new Option("", service));
  }
}

/** Wires the search; `attempt` runs what may fail and tells of it. */
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
