// Forgetting, which always asks first.

import { remove } from "./api.js";
import { $, closeByBackdrop, say, toast } from "./page.js";

const UNITS = { d: "day", h: "hour", m: "minute" };

let proceed = () => {};

/**
 * Asks, does it, and says how many texts went; whether it was done. A dialog that is closed meanwhile does not stop it:
 * it is told when it is known, and a question that was asked since is left alone.
 */
export function confirmed(title, text, act) {
  const dialog = $("confirm");
  say($("confirm-title"), title);
  say($("confirm-text"), text);
  say($("confirm-error"), "");
  $("confirm-yes").disabled = false;
  dialog.showModal();
  $("confirm-no").focus();
  return new Promise((resolve) => {
    let isActing = false;
    const isStillAsked = () => dialog.open && proceed === carryOut;
    const carryOut = async () => {
      isActing = true;
      $("confirm-yes").disabled = true;
      try {
        const { deleted } = await act();
        toast(deleted === 1 ? "One record was deleted." : `${deleted} records were deleted.`);
        if (isStillAsked()) dialog.close();
        resolve(true);
      } catch (error) {
        isActing = false;
        const reason = error.status === 404 ? "It was not stored any more." : error.message;
        if (isStillAsked()) {
          say($("confirm-error"), reason);
          $("confirm-yes").disabled = false;
        } else {
          toast(reason);
          resolve(false);
        }
      }
    };
    proceed = carryOut;
    dialog.addEventListener("close", () => isActing || resolve(false), { once: true });
  });
}

/** Wires the dialog and the forms; `deleted` is called after tasks were deleted. */
export function wireDelete(deleted) {
  closeByBackdrop($("confirm"));
  $("confirm-no").addEventListener("click", () => $("confirm").close());
  $("confirm-yes").addEventListener("click", () => proceed());
  $("delete-service").addEventListener("submit", async (event) => {
    event.preventDefault();
    const service = $("service").value.trim();
    const text = `Every stored task of “${service}” is removed, for all tokens. What clients ask for next goes upstream again.`;
    if (await confirmed("Delete all tasks of a service?", text, () => remove("api/tasks", { service }))) deleted();
  });
  $("delete-older").addEventListener("submit", async (event) => {
    event.preventDefault();
    const number = $("older").valueAsNumber;
    const unit = event.target.elements.unit.value;
    const span = `${number} ${UNITS[unit]}${number === 1 ? "" : "s"}`;
    const text = `Every task stored longer than ${span} ago is removed, for all tokens. What clients ask for next goes upstream again.`;
    if (await confirmed("Delete old tasks?", text, () => remove("api/tasks", { older_than: `${number}${unit}` }))) deleted();
  });
}
