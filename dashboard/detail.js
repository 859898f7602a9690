// The dialog of one task: its properties and its prompt; if it is stored, its record and a button to delete it.

import { get, remove, taskPath } from "./api.js";
import { confirmAction } from "./delete.js";
import * as format from "./format.js";
import { enterView, registerView } from "./links.js";
import { $, closeByBackdrop, copy, idWithCopy, make, moment, setText, showFacts } from "./page.js";
import { expected, links } from "./tables.js";

// Longest part of a record that is shown, in characters: the layout of more would block the page.
const MAX_SHOWN = 256 * 1024;

let task = null;
let records = [];
let onDeleted = () => {};

// Members of a request that describe the work in words, by service. The first that is there is shown.
const PROMPTS = ["prompt", "lyric", "text", "content"];

/** Opens the dialog for a stored task. */
export async function openDetail({ service, id, title }) {
  const opened = open({ service, id }, title);
  try {
    const response = await get(taskPath(service, id));
    if (task !== opened) return;
    records = response.records;
    $("detail-record").replaceChildren(...records.map((record, n) => new Option(`${n + 1} of ${records.length}, stored ${format.date(record.stored_at)}`, n)));
    $("detail-several").hidden = records.length < 2;
    $("detail-known").hidden = records.length === 0;
    $("detail-feet").hidden = records.length === 0;
    if (records.length > 0) showRecord();
  } catch (error) {
    if (task !== opened) return;
    if (error.status !== 404) return setText($("detail-error"), error.message);
    await showIfPending(opened);
  }
}

/** Opens the dialog for a task of the list of pending tasks. */
export function openPending(pending) {
  open({ service: pending.service, id: pending.id }, pending.title);
  showPending(pending);
}

function open(opened, title) {
  task = opened;
  records = [];
  setText($("detail-title"), title || "Untitled");
  setText($("detail-error"), "");
  $("detail-known").hidden = true;
  $("detail-feet").hidden = true;
  enterView("task", opened.service, opened.id);
  return opened;
}

/** Shows a task of a link that is not stored: it can be pending, or deleted. */
async function showIfPending(opened) {
  let found;
  try {
    const { pending } = await get("api/pending");
    found = pending.find(({ service, id }) => service === opened.service && id === opened.id);
  } catch {
    // The message below is true in any case.
  }
  if (task !== opened) return;
  if (found) showPending(found);
  else setText($("detail-error"), "This task is not stored. It can be pending still, or deleted.");
}

function showPending(pending) {
  setText($("detail-title"), pending.title || "Untitled");
  const progress = typeof pending.progress === "number" ? format.percent(pending.progress) : null;
  showFacts($("detail-facts"), [
    ["Id", idWithCopy(pending.id, $("detail"))],
    ["Service", service(pending)],
    ["State", make("bdi", ["pending", pending.state, progress].filter(Boolean).join(" · "))],
    ["Created", moment(pending.created_at)],
    ["Expected", make("span", expected(pending.expected_remaining_seconds))],
    ["Last seen", make("span", format.ago(pending.snapshot_age_seconds))],
    ["Waiters", make("span", format.count(pending.waiters))],
    ["Token", make("bdi", pending.client ? `${pending.client}, ${pending.token}` : pending.token)],
  ]);
  $("detail-several").hidden = true;
  $("detail-links").hidden = true;
  $("detail-stored").hidden = true;
  $("detail-known").hidden = false;
}

const selected = () => records[Number($("detail-record").value) || 0];

function showRecord() {
  const record = selected();
  setText($("detail-title"), record.title || "Untitled");
  showFacts($("detail-facts"), [
    ["Id", idWithCopy(task.id, $("detail"))],
    ["Service", service({ ...task, type: record.type })],
    ["Outcome", outcome(record)],
    ["Finished", moment(record.finished_at)],
    ["Took", make("span", took(record))],
    ["Stored", moment(record.stored_at)],
    ["Size", titled(format.bytes(record.record_bytes), format.exactly(record.record_bytes, "bytes"))],
    ["Read by", readers(record.readers)],
  ]);
  $("detail-links").replaceChildren(links(record.links));
  $("detail-links").hidden = !record.links?.length;
  $("detail-stored").hidden = false;
  const prompt = promptOf(record.record);
  setText($("detail-prompt"), prompt);
  $("detail-prompt").hidden = prompt === "";
  $("detail-prompt-title").hidden = prompt === "";
  showJson();
}

/** Returns the prompt in the request of a record, or "". */
function promptOf(text) {
  if (text === null || text.length > MAX_SHOWN) return "";
  let request;
  try {
    request = JSON.parse(text)?.request;
  } catch {
    return "";
  }
  for (const name of PROMPTS) {
    const value = request?.[name];
    const texts = Array.isArray(value) ? value.map((part) => part?.text ?? part) : [value];
    const words = texts.filter((part) => typeof part === "string" && part.trim() !== "");
    if (words.length > 0) return words.join("\n");
  }
  return "";
}

function showJson() {
  const { record: text } = selected();
  $("detail-copy").disabled = text === null;
  if (text === null) {
    setText($("detail-json"), "This record is corrupt in the database. It is not served, and the next lookup goes to the upstream.");
    setText($("detail-cut"), "");
    return;
  }
  const shown = text.length > MAX_SHOWN ? text.slice(0, MAX_SHOWN) : text;
  const isPretty = $("detail-form").querySelector(":checked").value === "pretty";
  setText($("detail-json"), isPretty ? format.indented(shown) : shown);
  setText($("detail-cut"), text.length > MAX_SHOWN ? "Only the beginning is shown. Copy copies the whole record." : "");
}

function service({ service: name, type }) {
  return make("bdi", type ? `${name}, ${type}` : name);
}

function outcome(record) {
  if (record.succeeded === false) return make("bdi", record.error ? `Failed: ${record.error}` : "Failed", "bad");
  return make("span", record.succeeded ? "Succeeded" : "Unknown");
}

function took({ created_at: from, finished_at: to }) {
  return typeof from === "number" && typeof to === "number" && to >= from ? format.seconds(to - from) : "–";
}

function readers(digests) {
  const span = make("span");
  span.title = "First digits of the digests of the tokens that may read this record";
  digests.forEach((digest, n) => span.append(n ? ", " : "", make("code", digest)));
  if (digests.length === 0) span.append("no token");
  return span;
}

function titled(text, title) {
  const span = make("span", text);
  span.title = title;
  return span;
}

/** Wires the dialog. `callback` is called after a delete. */
export function wireDetail(callback) {
  onDeleted = callback;
  const dialog = $("detail");
  closeByBackdrop(dialog);
  registerView("task", dialog, (service, id) => service && id && openDetail({ service, id, title: "Task" }));
  $("detail-close").addEventListener("click", () => dialog.close());
  $("detail-record").addEventListener("change", showRecord);
  $("detail-form").addEventListener("change", showJson);
  $("detail-copy").addEventListener("click", () => copy(selected().record, dialog));
  $("detail-delete").addEventListener("click", async () => {
    const target = task;
    const { service, id } = target;
    const isDeleted = await confirmAction(
      "Delete this task?",
      `“${$("detail-title").textContent}” is deleted from the store, for all tokens. The next lookup goes to the upstream.`,
      () => remove(taskPath(service, id)),
    );
    if (!isDeleted) return;
    // The dialog may show another task by now.
    if (task === target) dialog.close();
    onDeleted();
  });
}
