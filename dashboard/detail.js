// The dialog of one task: its properties, its record, and a button to delete it.

import { get, remove, taskPath } from "./api.js";
import { confirmAction } from "./delete.js";
import * as format from "./format.js";
import { $, age, closeByBackdrop, copy, make, setText } from "./page.js";
import { links } from "./tables.js";

// Longest part of a record that is shown, in characters: the layout of more would block the page.
const MAX_SHOWN = 256 * 1024;

let task = null;
let records = [];
let onDeleted = () => {};

/** Opens the dialog for a task of the list. */
export async function openDetail({ service, id, title }) {
  const opened = { service, id };
  task = opened;
  records = [];
  setText($("detail-title"), title || "Untitled");
  setText($("detail-error"), "");
  $("detail-known").hidden = true;
  $("detail").showModal();
  try {
    const response = await get(taskPath(service, id));
    if (task !== opened) return;
    records = response.records;
    $("detail-record").replaceChildren(...records.map((record, n) => new Option(`${n + 1} of ${records.length}, stored ${format.date(record.stored_at)}`, n)));
    $("detail-several").hidden = records.length < 2;
    $("detail-known").hidden = records.length === 0;
    if (records.length > 0) showRecord();
  } catch (error) {
    if (task !== opened) return;
    setText($("detail-error"), error.status === 404 ? "This task is not stored any more." : error.message);
  }
}

const selected = () => records[Number($("detail-record").value) || 0];

function showRecord() {
  const record = selected();
  setText($("detail-title"), record.title || "Untitled");
  const facts = [
    ["Id", idWithCopy()],
    ["Service", make("bdi", record.type ? `${task.service}, ${record.type}` : task.service)],
    ["Outcome", outcome(record)],
    ["Finished", moment(record.finished_at)],
    ["Took", make("span", took(record))],
    ["Stored", moment(record.stored_at)],
    ["Size", titled(format.bytes(record.record_bytes), format.exactly(record.record_bytes, "bytes"))],
    ["Read by", readers(record.readers)],
  ];
  $("detail-facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", name), wrapped("dd", value)]));
  $("detail-links").replaceChildren(links(record.links));
  $("detail-links").hidden = !record.links?.length;
  showJson();
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

function idWithCopy() {
  const span = make("span");
  const button = make("button", "Copy", "quiet");
  button.type = "button";
  button.setAttribute("aria-label", "Copy the id");
  const { id } = task;
  button.addEventListener("click", () => copy(id, $("detail")));
  span.append(make("bdi", id, "id"), " ", button);
  return span;
}

function outcome(record) {
  if (record.succeeded === false) return make("bdi", record.error ? `Failed: ${record.error}` : "Failed", "bad");
  return make("span", record.succeeded ? "Succeeded" : "Unknown");
}

function took({ created_at: from, finished_at: to }) {
  return typeof from === "number" && typeof to === "number" && to >= from ? format.seconds(to - from) : "–";
}

function moment(at) {
  const span = make("span", format.date(at));
  if (at !== null) span.append(" (", age(at), ")");
  return span;
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

function wrapped(tag, child) {
  const element = make(tag);
  element.append(child);
  return element;
}

/** Wires the dialog. `callback` is called after a delete. */
export function wireDetail(callback) {
  onDeleted = callback;
  const dialog = $("detail");
  closeByBackdrop(dialog);
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
