// Functions to build and update the page. Text from outside is inserted as text, never as markup.

import { now } from "./api.js";
import { ago, date, safeUrl, seconds } from "./format.js";

export const $ = (id) => document.getElementById(id);

/** Sets text and title if they differ, so that selection and focus stay. */
export function setText(element, text, title) {
  if (element.textContent !== text) element.textContent = text;
  if (title !== undefined && element.title !== title) element.title = title;
}

/** Creates an element with a text. */
export function make(tag, text = "", className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

/** Creates an element that shows the age of an event and updates itself; `form` is `ago` or `for`. */
export function age(at, form = "ago") {
  const element = document.createElement("time");
  if (at === null || at === undefined) return make("span", "–");
  element.dataset.at = at;
  element.dataset.form = form;
  element.title = date(at);
  if (Math.abs(at) < 8.64e12) element.dateTime = new Date(at * 1000).toISOString();
  tick(element);
  return element;
}

function tick(element) {
  const past = Math.max(0, now() - Number(element.dataset.at));
  setText(element, element.dataset.form === "ago" ? ago(past) : seconds(past < 60 ? Math.floor(past) : past));
}

/** Updates all ages on the page. */
export const tickAll = () => document.querySelectorAll("time[data-at]").forEach(tick);

/** Creates a link to another host, without a referrer; returns `null` for an unsafe URL. */
export function outwardLink(kind, address) {
  const url = safeUrl(address);
  if (!url) return null;
  const link = make("a", kind.charAt(0).toUpperCase() + kind.slice(1), "outward");
  link.setAttribute("href", url.href);
  link.setAttribute("rel", "noopener noreferrer");
  link.setAttribute("target", "_blank");
  link.setAttribute("referrerpolicy", "no-referrer");
  link.title = `${url.host}, in a new tab`;
  return link;
}

/** Creates an absolute time with the age of the event beside it. */
export function moment(at) {
  const span = make("span", date(at));
  if (at !== null && at !== undefined) span.append(" (", age(at), ")");
  return span;
}

/** Creates an id with a button that copies it. */
export function idWithCopy(id, dialog) {
  const span = make("span");
  const button = make("button", "Copy", "quiet");
  button.type = "button";
  button.setAttribute("aria-label", "Copy the id");
  button.addEventListener("click", () => copy(id, dialog));
  span.append(make("bdi", id, "id"), " ", button);
  return span;
}

/** Fills a list of facts: pairs of a name and an element. Facts without an element are left out. */
export function showFacts(list, facts) {
  const known = facts.filter(([, value]) => value !== null);
  list.replaceChildren(
    ...known.flatMap(([name, value]) => {
      const description = make("dd");
      description.append(value);
      return [make("dt", name), description];
    }),
  );
}

let toastTimer;
/** Shows a message for a few seconds. */
export function toast(text) {
  clearTimeout(toastTimer);
  const element = $("toast");
  element.textContent = text;
  element.classList.add("shown");
  toastTimer = setTimeout(() => element.classList.remove("shown"), 6000);
}

/** Copies text. The clipboard API needs https or loopback; otherwise a selection is copied. */
export async function copy(text, beside) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", text, "unseen");
    beside.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (!copied) return toast("The browser did not allow copying.");
  }
  toast("Copied.");
}

/** Lets a click outside a dialog close it. */
export function closeByBackdrop(dialog) {
  dialog.addEventListener("pointerdown", (event) => {
    if (event.target === dialog) dialog.close();
  });
}
