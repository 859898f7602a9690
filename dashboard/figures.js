// The status line, the totals, and instructions while there are none.

import { get, now } from "./api.js";
import * as format from "./format.js";
import { $, make, setText } from "./page.js";

const WORDS = { ready: "Ready", degraded: "Degraded", draining: "Shutting down", unreachable: "No response" };

/** Shows the status beside the name, and the reason below it if something is wrong. */
export function showStatus(state, reason) {
  $("status").dataset.state = state;
  setText($("status-word"), WORDS[state] ?? state);
  document.title = state === "ready" ? "refrain" : `${WORDS[state] ?? state} · refrain`;
  const notice = $("notice");
  notice.hidden = !reason;
  setText(notice, reason ?? "");
}

export function showVersion(version) {
  setText($("about"), `v${version.version} · up ${format.seconds(version.uptime_seconds)}`, `Started ${format.date(version.started_at)}, SQLite ${version.sqlite_version}`);
}

export function showStats(stats) {
  const { ids, upstream, requests, store, ready, passed_through: passedThrough } = stats;
  const limits = upstream.rate_limited;
  const reasons = [];
  if (ready.status !== "ready") reasons.push(sentence(ready.reason ?? `It is ${ready.status}`));
  if (upstream.is_down) reasons.push(outage(upstream));
  showStatus(ready.status, reasons.join(" "));
  if (upstream.is_down && ready.status === "ready") {
    $("status").dataset.state = "degraded";
    setText($("status-word"), "Upstream down");
  }

  figure("saved", format.count(upstream.calls_saved), upstream.calls_saved, requests.total > 0 ? `${format.count(requests.total)} requests` : "no requests yet");
  const requested = ids.hit + ids.pending + ids.fetched + ids.failed;
  const rate = requested > 0 ? ids.hit / requested : null;
  setText($("rate"), format.percent(rate), `${format.exactly(ids.hit)} of ${format.exactly(requested)} ids`);
  const whilePending = ids.pending > 0 ? `and ${format.percent(ids.pending / requested)} while pending` : `${format.count(ids.hit)} of ${format.count(requested)} ids`;
  setText($("rate-note"), requested > 0 ? whilePending : "none requested yet", `${format.exactly(ids.pending)} of ${format.exactly(requested)} ids`);
  figure("absorbed", format.count(limits.absorbed), limits.absorbed, limits.received > 0 ? `of ${format.count(limits.received)} received` : "none received");
  figure("passed", format.count(limits.passed_on), limits.passed_on, limits.passed_on === 0 ? "none, as it should be" : "see requests and queues");
  $("passed").classList.toggle("bad", limits.passed_on > 0);
  const bypassed = requests.by_outcome.bypass;
  const failed = passedThrough["5xx"] + passedThrough.failed;
  figure("bypassed", format.count(bypassed), bypassed, failed > 0 ? `${format.count(failed)} × 5xx or no response` : "requests that are not lookups");
  $("bypassed-note").classList.toggle("bad", failed > 0);
  figure("others", format.count(limits.passed_through), limits.passed_through, limits.passed_through === 0 ? "none" : "from the upstream, not repeated");
  figure("calls", format.count(upstream.calls), upstream.calls, statuses(upstream.by_status));
  const errors = store.errors.read + store.errors.write + store.errors.checksum + store.errors.corrupt;
  const limit = store.max_bytes > 0 ? ` of ${format.bytes(store.max_bytes)}` : "";
  figure("stored", format.count(store.tasks), store.tasks, errors > 0 ? `${format.count(errors)} store errors` : format.bytes(store.record_bytes) + limit);
  $("stored-note").classList.toggle("bad", errors > 0);
  showServices(stats.services);
  showComparison(stats.comparison);
  return requests.total === 0 && store.tasks === 0;
}

/** Returns which host does not respond, since when and why. */
function outage({ host, outage: details }) {
  if (!details) return `${host} cannot be reached. Stored tasks are still served.`;
  const { began_at: at, cause } = details;
  const since = now() - at < 12 * 3600 ? format.time(at) : format.date(at);
  return `No response from ${host} since ${since}: ${cause}. Stored tasks are still served.`;
}

function showServices({ interpreted, passed_through: passedThrough }) {
  const cached = interpreted.map(({ service, max_batch: size, has_learnt_limit: learnt }) => (learnt ? `${service} (batches of ${size})` : service));
  setText($("services-cached"), `Cached: ${cached.join(", ") || "none"}.`);
  const passed = passedThrough.map(({ service, requests }) => `${service} (${format.count(requests)} ${requests === 1 ? "request" : "requests"})`);
  setText($("services-passed"), passed.length > 0 ? `Polled by clients, but passed through and never cached: ${passed.join(", ")}.` : "");
  $("services-passed").hidden = passed.length === 0;
}

/** Shows the figures of `refrain demo`. Other proxies have none. */
function showComparison(comparison) {
  $("comparison").hidden = !comparison;
  if (!comparison) return;
  const { direct, refrain, finished } = comparison;
  const isOver = comparison.elapsed_seconds >= comparison.length_seconds;
  setText($("comparison-time"), `${comparison.clients} clients, ${isOver ? "" : "the first "}${format.seconds(Math.floor(comparison.elapsed_seconds))}`);
  const median = ({ median_delay_seconds: delay }) => (delay === null ? "–" : `${delay.toFixed(1)} s`);
  const rows = [
    ["Upstream calls", (crowd) => format.count(crowd.upstream_calls)],
    ["429s that clients received", (crowd) => format.count(crowd.rate_limited)],
    ["Finished tasks that clients know", (crowd) => `${crowd.known} of ${finished}`],
    ["Time until they knew, median", median],
  ];
  const cell = (text, label) => {
    const element = make("td", text, label ? "number" : "");
    element.setAttribute("role", "cell");
    if (label) element.dataset.label = label;
    return element;
  };
  const lines = rows.map(([name, value]) => {
    const line = document.createElement("tr");
    line.setAttribute("role", "row");
    line.append(cell(name), cell(value(direct), "Directly"), cell(value(refrain), "Through refrain"));
    return line;
  });
  $("comparison").querySelector("tbody").replaceChildren(...lines);
}

function figure(id, text, exact, note) {
  setText($(id), text, format.exactly(exact));
  setText($(`${id}-note`), note);
}

function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

/** Returns the two most frequent errors: `58 × 429, 3 × 502`. */
function statuses(byStatus) {
  const all = Object.entries(byStatus);
  const fine = all.filter(([status]) => status.startsWith("2")).reduce((total, [, calls]) => total + calls, 0);
  const rest = all.filter(([status, calls]) => !status.startsWith("2") && calls > 0);
  rest.sort((a, b) => b[1] - a[1]);
  if (rest.length === 0) return fine > 0 ? "all successful" : "none yet";
  return rest.slice(0, 2).map(([status, calls]) => `${format.count(calls)} × ${status}`).join(", ");
}

let base = null;

/** Lets Escape hide a definition while pointer or focus stay on it. */
export function wireFigures() {
  for (const figure of document.querySelectorAll(".figure")) {
    const show = () => figure.classList.remove("dismissed");
    figure.addEventListener("pointerenter", show);
    figure.addEventListener("focusin", show);
  }
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const figure of document.querySelectorAll(".figure")) figure.classList.add("dismissed");
  });
}

/** Shows the URL of the client port, with a command to run. */
export async function showWelcome(isEmpty) {
  $("welcome").hidden = !isEmpty;
  $("content").classList.toggle("blank", isEmpty);
  if (!isEmpty || base !== null) return;
  base = `${location.protocol}//${location.hostname}:${await clientPort()}`;
  setText($("welcome-base"), base);
  setText(
    $("welcome-curl"),
    `curl -i ${base}/producer/tasks \\\n  -H "authorization: Bearer $TOKEN" -H "content-type: application/json" \\\n  -d '{"action": "retrieve", "id": "YOUR-TASK-ID"}'`,
  );
}

async function clientPort() {
  const { values } = await get("api/config");
  const listen = values.find(({ key }) => key === "server.listen")?.value ?? "";
  return /:([1-9]\d*)"?$/.exec(listen)?.[1] ?? "PORT";
}
