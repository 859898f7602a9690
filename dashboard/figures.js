// The status line, the big figures and what to do while there are none.

import { get } from "./api.js";
import * as format from "./format.js";
import { $, say } from "./page.js";

const WORDS = { ready: "Ready", degraded: "Degraded", draining: "Shutting down", unreachable: "No answer" };

/** The word beside the name, and a notice under it that says why where something is wrong. */
export function showStatus(state, reason) {
  $("status").dataset.state = state;
  say($("status-word"), WORDS[state] ?? state);
  document.title = state === "ready" ? "refrain" : `${WORDS[state] ?? state} · refrain`;
  const notice = $("notice");
  notice.hidden = !reason;
  say(notice, reason ?? "");
}

export function showVersion(version) {
  say($("about"), `v${version.version} · up ${format.seconds(version.uptime_seconds)}`, `Started ${format.date(version.started_at)}, SQLite ${version.sqlite_version}`);
}

export function showStats(stats) {
  const { ids, upstream, requests, store, ready } = stats;
  const limits = upstream.rate_limited;
  const reasons = [];
  if (ready.status !== "ready") reasons.push(sentence(ready.reason ?? `It is ${ready.status}`));
  if (upstream.is_down) reasons.push("The upstream cannot be reached. Stored tasks are served all the same.");
  showStatus(ready.status, reasons.join(" "));
  if (upstream.is_down && ready.status === "ready") {
    $("status").dataset.state = "degraded";
    say($("status-word"), "Upstream down");
  }

  figure("saved", format.count(upstream.calls_saved), upstream.calls_saved, requests.total > 0 ? `${format.count(requests.total)} requests came` : "no request yet");
  const asked = ids.hit + ids.pending + ids.fetched + ids.failed;
  const rate = asked > 0 ? ids.hit / asked : null;
  say($("rate"), format.percent(rate), `${format.exactly(ids.hit)} of ${format.exactly(asked)} ids`);
  const whilePending = ids.pending > 0 ? `and ${format.percent(ids.pending / asked)} while pending` : `${format.count(ids.hit)} of ${format.count(asked)} ids`;
  say($("rate-note"), asked > 0 ? whilePending : "none asked for yet", `${format.exactly(ids.pending)} of ${format.exactly(asked)} ids`);
  figure("absorbed", format.count(limits.absorbed), limits.absorbed, limits.received > 0 ? `of ${format.count(limits.received)} received` : "none received");
  figure("passed", format.count(limits.passed_on), limits.passed_on, limits.passed_on === 0 ? "none, as it should be" : "see the queues below");
  $("passed").classList.toggle("bad", limits.passed_on > 0);
  figure("calls", format.count(upstream.calls), upstream.calls, statuses(upstream.by_status));
  const errors = store.errors.read + store.errors.write + store.errors.checksum + store.errors.corrupt;
  const room = store.max_bytes > 0 ? ` of ${format.bytes(store.max_bytes)}` : "";
  figure("stored", format.count(store.tasks), store.tasks, errors > 0 ? `${format.count(errors)} store errors` : format.bytes(store.record_bytes) + room);
  $("stored-note").classList.toggle("bad", errors > 0);
  return requests.total === 0 && store.tasks === 0;
}

function figure(id, text, exact, note) {
  say($(id), text, format.exactly(exact));
  say($(`${id}-note`), note);
}

function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

/** What did not go well, the most frequent first: `58 × 429, 3 × 502`. */
function statuses(byStatus) {
  const all = Object.entries(byStatus);
  const fine = all.filter(([status]) => status.startsWith("2")).reduce((total, [, calls]) => total + calls, 0);
  const rest = all.filter(([status, calls]) => !status.startsWith("2") && calls > 0);
  rest.sort((a, b) => b[1] - a[1]);
  if (rest.length === 0) return fine > 0 ? "all answered well" : "none yet";
  return rest.slice(0, 2).map(([status, calls]) => `${format.count(calls)} × ${status}`).join(", ");
}

let base = null;

/** Definitions can be put away with Escape while the pointer or the focus stays. */
export function wireFigures() {
  for (const figure of document.querySelectorAll(".figure")) {
    const back = () => figure.classList.remove("hushed");
    figure.addEventListener("pointerenter", back);
    figure.addEventListener("focusin", back);
  }
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const figure of document.querySelectorAll(".figure")) figure.classList.add("hushed");
  });
}

/** Says where the client port is, with a line to paste. */
export async function showWelcome(isEmpty) {
  $("welcome").hidden = !isEmpty;
  $("content").classList.toggle("blank", isEmpty);
  if (!isEmpty || base !== null) return;
  base = `${location.protocol}//${location.hostname}:${await clientPort()}`;
  say($("welcome-base"), base);
  say(
    $("welcome-curl"),
    `curl -i ${base}/producer/tasks \\\n  -H "authorization: Bearer $TOKEN" -H "content-type: application/json" \\\n  -d '{"action": "retrieve", "id": "YOUR-TASK-ID"}'`,
  );
}

async function clientPort() {
  const { values } = await get("api/config");
  const listen = values.find(({ key }) => key === "server.listen")?.value ?? "";
  return /:([1-9]\d*)"?$/.exec(listen)?.[1] ?? "PORT";
}
