// Parts of the page that everything uses. Text from outside goes in as text, never as markup.

import { now } from "./api.js";
import { ago, date, safeUrl, seconds } from "./format.js";

export const $ = (id) => document.getElementById(id);

/** Sets what is shown, and its title, only where they differ: so selection and focus stay. */
export function say(element, text, title) {
  if (element.textContent !== text) element.textContent = text;
  if (title !== undefined && element.title !== title) element.title = title;
}

/** A new element with text in it. */
export function make(tag, text = "", className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

/** The age of a moment that goes on by itself; `form` is `ago` or `for`. */
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
  say(element, element.dataset.form === "ago" ? ago(past) : seconds(past < 60 ? Math.floor(past) : past));
}

/** Brings every age on the page up to date. */
export const tickAll = () => document.querySelectorAll("time[data-at]").forEach(tick);

/** A link that is loaded only when it is clicked and tells nobody where it stood; `null` where it is no such address. */
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

let toastTimer;
/** Says something for a few seconds. */
export function toast(text) {
  clearTimeout(toastTimer);
  const element = $("toast");
  element.textContent = text;
  element.classList.add("shown");
  toastTimer = setTimeout(() => element.classList.remove("shown"), 6000);
}

/** Copies text. Away from the loopback the clipboard needs https; there a selection is copied as of old. */
export async function copy(text, beside) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", text, "unseen");
    beside.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (!copied) return toast("This browser did not let it be copied.");
  }
  toast("Copied.");
}

/** Dialogs close by a click beside them as by Esc. */
export function closeByBackdrop(dialog) {
  dialog.addEventListener("pointerdown", (event) => {
    if (event.target === dialog) dialog.close();
  });
}
