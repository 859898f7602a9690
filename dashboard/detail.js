// One task in a dialog: what is known of it, its text, and a way to forget it.

import { get, remove, taskPath } from "./api.js";
import { confirmed } from "./delete.js";
import * as format from "./format.js";
import { $, age, closeByBackdrop, copy, make, say } from "./page.js";
import { links } from "./tables.js";

// More than this is not shown at once: laying it out would stop the page. Copying gives all of it.
const MOST_SHOWN = 256 * 1024;

let task = null;
let records = [];
let afterDelete = () => {};

/** Opens the dialog on a task of the listing. */
export async function openDetail({ service, id, title }) {
  const opened = { service, id };
  task = opened;
  records = [];
  say($("detail-title"), title || "Untitled");
  say($("detail-error"), "");
  $("detail-known").hidden = true;
  $("detail").showModal();
  try {
    const answer = await get(taskPath(service, id));
    if (task !== opened) return;
    records = answer.records;
    $("detail-text").replaceChildren(...records.map((record, n) => new Option(`${n + 1} of ${records.length}, stored ${format.date(record.stored_at)}`, n)));
    $("detail-several").hidden = records.length < 2;
    $("detail-known").hidden = records.length === 0;
    if (records.length > 0) showOne();
  } catch (error) {
    if (task !== opened) return;
    say($("detail-error"), error.status === 404 ? "It is not stored any more." : error.message);
  }
}

const chosen = () => records[Number($("detail-text").value) || 0];

function showOne() {
  const one = chosen();
  say($("detail-title"), one.title || "Untitled");
  const facts = [
    ["Id", idWithCopy()],
    ["Service", make("bdi", one.type ? `${task.service}, ${one.type}` : task.service)],
    ["Outcome", outcome(one)],
    ["Finished", moment(one.finished_at)],
    ["Took", make("span", took(one))],
    ["Stored", moment(one.stored_at)],
    ["Size", titled(format.bytes(one.record_bytes), format.exactly(one.record_bytes, "bytes"))],
    ["Read by", readers(one.readers)],
  ];
  $("detail-facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", name), wrapped("dd", value)]));
  $("detail-links").replaceChildren(links(one.links));
  $("detail-links").hidden = !one.links?.length;
  showText();
}

function showText() {
  const { record: text } = chosen();
  $("detail-copy").disabled = text === null;
  if (text === null) {
    say($("detail-json"), "This text is damaged on disk. It is not served; the next look-up goes upstream.");
    say($("detail-cut"), "");
    return;
  }
  const shown = text.length > MOST_SHOWN ? text.slice(0, MOST_SHOWN) : text;
  const isPretty = $("detail-form").querySelector(":checked").value === "pretty";
  say($("detail-json"), isPretty ? format.indented(shown) : shown);
  say($("detail-cut"), text.length > MOST_SHOWN ? "The beginning alone is shown. Copy takes all of it." : "");
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

function outcome(one) {
  if (one.succeeded === false) return make("bdi", one.error ? `Failed: ${one.error}` : "Failed", "bad");
  return make("span", one.succeeded ? "Succeeded" : "Not said");
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
  span.title = "The first digits of the digests of the tokens that may read it";
  digests.forEach((digest, n) => span.append(n ? ", " : "", make("code", digest)));
  if (digests.length === 0) span.append("no token any more");
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

/** Wires the dialog; `deleted` is called after a task was deleted. */
export function wireDetail(deleted) {
  afterDelete = deleted;
  const dialog = $("detail");
  closeByBackdrop(dialog);
  $("detail-close").addEventListener("click", () => dialog.close());
  $("detail-text").addEventListener("change", showOne);
  $("detail-form").addEventListener("change", showText);
  $("detail-copy").addEventListener("click", () => copy(chosen().record, dialog));
  $("detail-delete").addEventListener("click", async () => {
    const asked = task;
    const { service, id } = asked;
    const deleted = await confirmed(
      "Delete this task?",
      `“${$("detail-title").textContent}” is removed here, for all tokens. When a client asks for it next, the upstream is asked.`,
      () => remove(taskPath(service, id)),
    );
    if (!deleted) return;
    // By now it may show another.
    if (task === asked) dialog.close();
    afterDelete();
  });
}
