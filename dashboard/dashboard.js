// The dashboard: asks /api/ every few seconds while somebody looks, and shows what it answers. Where /api/ asks for a
// token, it asks whoever looks.

import { get, hasToken, now, useToken } from "./api.js";
import { redraw, showHistory } from "./charts.js";
import { wireDetail } from "./detail.js";
import { showStats, showStatus, showVersion, showWelcome, wireFigures } from "./figures.js";
import { wireDelete } from "./delete.js";
import * as format from "./format.js";
import { refreshListing, restartListing, wireListing } from "./listing.js";
import { $, copy, say, tickAll } from "./page.js";
import { queuesTable, pendingTable } from "./tables.js";

const EVERY_MS = 5000;
// A step of the history takes 10 s in the hour and 5 min in the day.
const HISTORY_MS = { "1h": 10_000, "24h": 60_000 };

let queues;
let pending;
let range = "1h";
// By the clock that is never set back, in milliseconds.
let historyAt = -Infinity;
let heardAt = null;
let hasShown = false;
let isLocked = false;
let isAsking = false;
let timer;

/** What is asked for, and where it is told if that fails. */
const PARTS = [
  [null, async () => showVersion(await get("api/version"))],
  [null, async () => showWelcome(showStats(await get("api/stats")))],
  ["charts-error", history],
  ["tasks-error", refreshListing],
  ["pending-error", async () => showPending(await get("api/pending"))],
  ["queues-error", async () => showQueues(await get("api/queues"))],
];

async function history() {
  if (performance.now() - historyAt < HISTORY_MS[range]) return;
  const asked = range;
  const answer = await get("api/history", { range: asked });
  if (asked !== range) return;
  historyAt = performance.now();
  showHistory(answer);
}

function showPending(answer) {
  pending.show(answer.pending);
  $("pending-none").hidden = answer.pending.length > 0;
  say($("pending-count"), left(answer.pending.length, answer.pending_omitted));
}

function showQueues(answer) {
  queues.show(answer.queues);
  $("queues-none").hidden = answer.queues.length > 0;
  say($("queues-count"), left(answer.queues.length, answer.queues_omitted) || "One for each service and token that asks");
}

const left = (shown, leftOut) => (leftOut > 0 ? `${shown} shown, ${format.count(leftOut)} more` : "");

/** Runs one part and tells, where it belongs, if it fails; whether refrain answered. */
async function attempt(part, place) {
  try {
    await part();
    hasShown = true;
    if (place) say($(place), "");
    return true;
  } catch (error) {
    if (error.status === 401) {
      lock();
      return true;
    }
    if (error.status === 0) return false;
    if (error.status === undefined) throw error;
    if (place) say($(place), error.message);
    else showStatus("degraded", error.message);
    return true;
  }
}

async function refresh() {
  clearTimeout(timer);
  if (isAsking || isLocked || document.hidden) return;
  isAsking = true;
  try {
    const heard = await Promise.all(PARTS.map(([place, part]) => attempt(part, place)));
    if (isLocked) return;
    if (heard.every(Boolean)) {
      heardAt = now();
      $("content").hidden = false;
      document.body.classList.remove("stale");
    } else {
      const since = heardAt === null ? "" : ` What is shown is from ${format.time(heardAt)}.`;
      showStatus("unreachable", `refrain does not answer.${since} Trying again every few seconds.`);
      document.body.classList.add("stale");
    }
  } finally {
    isAsking = false;
    clearTimeout(timer);
    timer = setTimeout(refresh, EVERY_MS);
  }
}

/** Asks for the token. What was shown goes, also what the script remembers of it: where there is any, the page begins anew. */
function lock() {
  if (isLocked) return;
  isLocked = true;
  const wasWrong = hasToken();
  useToken(null);
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  $("content").hidden = true;
  if (hasShown) {
    location.reload();
    return;
  }
  $("clear-token").hidden = true;
  $("locked").hidden = false;
  say($("about"), "");
  showStatus("locked", "");
  say($("status-word"), "Locked");
  say($("token-error"), wasWrong ? "That is not the token." : "");
  $("token").focus();
}

async function unlock(event) {
  event.preventDefault();
  const presented = $("token").value.trim();
  // Anything else cannot stand in a header field.
  if (!/^[\x21-\x7e]+$/.test(presented)) {
    say($("token-error"), "A token has visible ASCII characters alone.");
    return;
  }
  useToken(presented);
  $("token").value = "";
  say($("token-error"), "");
  try {
    await get("api/version");
  } catch (error) {
    useToken(null);
    say($("token-error"), error.status === 401 ? "That is not the token." : error.message);
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
      // It then lasts until the page is left.
    }
    apply();
  });
  apply();
}

function wire() {
  queues = queuesTable($("queues"));
  pending = pendingTable($("pending"));
  const again = () => {
    attempt(restartListing, "tasks-error");
    refresh();
  };
  wireListing((part) => attempt(part, "tasks-error"));
  wireDetail(again);
  wireDelete(again);
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
  setInterval(() => document.hidden || tickAll(), 1000);
  refresh();
}

wire();
