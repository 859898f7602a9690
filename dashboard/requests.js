// The last requests: the list with its filters, and the dialog of one request.

import { get } from "./api.js";
import * as format from "./format.js";
import { enterView, registerView } from "./links.js";
import { $, closeByBackdrop, idWithCopy, make, moment, setText, showFacts } from "./page.js";
import { requestsTable } from "./tables.js";
import { WORDS, idCounts, requestName } from "./request-words.js";

const SHOWN = 100;
const ALL = 600;

let table;
let run = 0;
let shownId = null;

/** Loads the list, with the current filters. */
export async function refreshRequests() {
  run += 1;
  const mine = run;
  const [filter, value] = $("requests-filter").value.split("=");
  const response = await get("api/requests", {
    [filter]: value,
    service: $("requests-service").value.trim(),
    request_id: $("requests-id").value.trim(),
    limit: SHOWN,
  });
  if (mine !== run) return;
  const { requests, requests_omitted: omitted, kept_per_kind: kept } = response;
  table.show(requests);
  const none = $("requests-none");
  none.hidden = requests.length > 0;
  const isFiltered = $("requests-filter").value || $("requests-service").value || $("requests-id").value;
  setText(none, isFiltered ? "None of the last requests matches." : "No request has ended since the start.");
  setText($("requests-count"), omitted > 0 ? `${requests.length} shown, ${format.count(omitted)} more` : `The last ${kept} of each kind`);
}

/** Shows a request of the list. */
function openRequest(request) {
  shownId = request.request_id;
  $("request-known").hidden = false;
  setText($("request-error"), "");
  setText($("request-title"), requestName(request));
  showFacts($("request-facts"), [
    ["Request id", idWithCopy(request.request_id, $("request"))],
    ["Ended", moment(request.ended_at)],
    ["Took", make("span", format.seconds(request.duration_seconds))],
    ["Path", make("bdi", `${request.method} ${request.path}`)],
    ["Outcome", make("span", `${request.outcome}: ${WORDS[request.outcome] ?? ""}`)],
    ["Status", make("span", request.status === null ? "none: the client disconnected" : String(request.status), request.kind === "failed" ? "bad" : "")],
    ["Error", request.error === null ? null : make("code", request.error)],
    ["Cause", request.cause === null ? null : make("bdi", request.cause)],
    ["Ids", request.ids === null ? null : make("span", idCounts(request.ids))],
    ["Caller", callers(request)],
  ]);
  enterView("request", request.request_id);
}

function callers({ client, token }) {
  const span = make("span", token === null ? "no token" : "");
  if (client !== null) span.append(make("bdi", client), " ");
  if (token !== null) span.append(make("code", token));
  return span;
}

/** Shows the request of a link. */
async function openLinked(id) {
  shownId = id;
  $("request-known").hidden = true;
  setText($("request-error"), "");
  setText($("request-title"), "Request");
  enterView("request", id);
  try {
    const { requests } = await get("api/requests", { request_id: id, limit: ALL });
    if (shownId !== id || !$("request").open) return;
    const found = requests.find((request) => request.request_id === id);
    if (found) openRequest(found);
    else setText($("request-error"), `Request ${id} is not among the last requests. Search the log for its id.`);
  } catch (error) {
    if (shownId === id) setText($("request-error"), error.message);
  }
}

/** Wires filters and dialog. `attempt` runs a request and shows its error. */
export function wireRequests(attempt) {
  table = requestsTable($("requests"), openRequest);
  const dialog = $("request");
  closeByBackdrop(dialog);
  registerView("request", dialog, openLinked);
  $("request-close").addEventListener("click", () => dialog.close());
  let waiting;
  const changed = (delay) => () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => attempt(refreshRequests), delay);
  };
  $("requests-search").addEventListener("input", changed(250));
  $("requests-search").addEventListener("submit", (event) => {
    event.preventDefault();
    changed(0)();
  });
}
