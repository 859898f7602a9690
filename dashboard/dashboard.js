// The dashboard: while the page is visible, requests /api/ every few seconds and shows the responses. If /api/ requires
// a token, it shows a form for it.

import { get, hasToken, now, useToken } from "./api.js";
import { redraw, showHistory } from "./charts.js";
import { openPending, wireDetail } from "./detail.js";
import { showStats, showStatus, showVersion, showWelcome, wireFigures } from "./figures.js";
import { wireDelete } from "./delete.js";
import * as format from "./format.js";
import { followLink } from "./links.js";
import { refreshListing, restartListing, wireListing } from "./listing.js";
import { $, copy, setText, tickAll } from "./page.js";
import { refreshRequests, wireRequests } from "./requests.js";
import { pendingTable, queuesTable } from "./tables.js";

const REFRESH_MS = 5000;
// A step of the history takes 10 s in the hour and 5 min in the day.
const HISTORY_MS = { "1h": 10_000, "24h": 60_000 };

let queues;
let pending;
let range = "1h";
// On the monotonic clock, in milliseconds.
let historyAt = -Infinity;
let respondedAt = null;
let hasShown = false;
let hasFollowedLink = false;
let isLocked = false;
let isRefreshing = false;
let timer;

/** Requests of a refresh, each with the id of the element that shows its error. */
const PARTS = [
  [null, async () => showVersion(await get("api/version"))],
  [null, async () => showWelcome(showStats(await get("api/stats")))],
  ["charts-error", history],
  ["requests-error", refreshRequests],
  ["tasks-error", refreshListing],
  ["pending-error", async () => showPending(await get("api/pending"))],
  ["queues-error", async () => showQueues(await get("api/queues"))],
];

async function history() {
  if (performance.now() - historyAt < HISTORY_MS[range]) return;
  const requested = range;
  const response = await get("api/history", { range: requested });
  if (requested !== range) return;
  historyAt = performance.now();
  showHistory(response);
}

function showPending(response) {
  pending.show(response.pending);
  $("pending-none").hidden = response.pending.length > 0;
  setText($("pending-count"), omission(response.pending.length, response.pending_omitted));
}

function showQueues(response) {
  queues.show(response.queues);
  $("queues-none").hidden = response.queues.length > 0;
  setText($("queues-count"), omission(response.queues.length, response.queues_omitted) || "One for each service and token");
}

const omission = (shown, omitted) => (omitted > 0 ? `${shown} shown, ${format.count(omitted)} more` : "");

/** Runs one part and shows its error, if any. Returns whether refrain responded. */
async function attempt(part, place) {
  try {
    await part();
    hasShown = true;
    if (place) setText($(place), "");
    return true;
  } catch (error) {
    if (error.status === 401) {
      lock();
      return true;
    }
    if (error.status === 0) return false;
    if (error.status === undefined) throw error;
    if (place) setText($(place), error.message);
    else showStatus("degraded", error.message);
    return true;
  }
}

async function refresh() {
  clearTimeout(timer);
  if (isRefreshing || isLocked || document.hidden) return;
  isRefreshing = true;
  try {
    const responded = await Promise.all(PARTS.map(([place, part]) => attempt(part, place)));
    if (isLocked) return;
    if (responded.every(Boolean)) {
      respondedAt = now();
      $("content").hidden = false;
      document.body.classList.remove("stale");
      if (!hasFollowedLink) followLink();
      hasFollowedLink = true;
    } else {
      const since = respondedAt === null ? "" : ` The page shows the state of ${format.time(respondedAt)}.`;
      showStatus("unreachable", `refrain does not respond.${since} Trying again every few seconds.`);
      document.body.classList.add("stale");
    }
  } finally {
    isRefreshing = false;
    clearTimeout(timer);
    timer = setTimeout(refresh, REFRESH_MS);
  }
}

/** Shows the form for the token. If data was shown, the page reloads, so that nothing of it is left in the script. */
function lock() {
  if (isLocked) return;
  isLocked = true;
  const wasRefused = hasToken();
  useToken(null);
  $("content").hidden = true;
  if (hasShown) {
    // Not `reload`: the link can have the id of a task.
    location.replace(location.pathname + location.search);
    return;
  }
  $("clear-token").hidden = true;
  $("locked").hidden = false;
  setText($("about"), "");
  showStatus("locked", "");
  setText($("status-word"), "Locked");
  setText($("token-error"), wasRefused ? "This is not the token." : "");
  $("token").focus();
}

async function unlock(event) {
  event.preventDefault();
  const presented = $("token").value.trim();
  // A header cannot contain other characters.
  if (!/^[\x21-\x7e]+$/.test(presented)) {
    setText($("token-error"), "A token consists of visible ASCII characters.");
    return;
  }
  useToken(presented);
  $("token").value = "";
  setText($("token-error"), "");
  try {
    await get("api/version");
  } catch (error) {
    useToken(null);
    setText($("token-error"), error.status === 401 ? "This is not the token." : error.message);
    $("token").focus();
    return;
  }
  location.reload();
}

function wireTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const apply = () => {
    $("theme").setAttribute("aria-pressed", String(isDark()));
    redraw();
  };
  dark.addEventListener("change", apply);
  $("theme").addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("refrain.theme", theme);
    } catch {
      // Storage can be disabled. The choice then lasts until the page is closed.
    }
    apply();
  });
  apply();
}

function wire() {
  queues = queuesTable($("queues"));
  pending = pendingTable($("pending"), openPending);
  const restart = () => {
    attempt(restartListing, "tasks-error");
    refresh();
  };
  wireListing((part) => attempt(part, "tasks-error"));
  wireRequests((part) => attempt(part, "requests-error"));
  wireDetail(restart);
  wireDelete(restart);
  wireTheme();
  wireFigures();
  $("range").addEventListener("change", (event) => {
    range = event.target.value;
    historyAt = -Infinity;
    attempt(history, "charts-error");
  });
  $("welcome-copy").addEventListener("click", () => copy($("welcome-curl").textContent, document.body));
  $("token-form").addEventListener("submit", unlock);
  $("clear-token").hidden = !hasToken();
  $("clear-token").addEventListener("click", () => {
    useToken(null);
    location.reload();
  });
  document.addEventListener("visibilitychange", refresh);
  addEventListener("hashchange", () => hasFollowedLink && followLink());
  setInterval(() => document.hidden || tickAll(), 1000);
  refresh();
}

wire();
