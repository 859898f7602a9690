// Deletes, each after a confirmation.

import { remove } from "./api.js";
import { $, closeByBackdrop, setText, toast } from "./page.js";

const UNITS = { d: "day", h: "hour", m: "minute" };

let proceed = () => {};

/**
 * Asks for a confirmation, runs `act`, and shows how many records were deleted. Returns whether `act` succeeded.
 *
 * Closing the dialog does not stop a running delete. Its result is then shown in a toast, and a dialog that was opened
 * meanwhile stays as it is.
 */
export function confirmAction(title, text, act) {
  const dialog = $("confirm");
  setText($("confirm-title"), title);
  setText($("confirm-text"), text);
  setText($("confirm-error"), "");
  $("confirm-yes").disabled = false;
  dialog.showModal();
  $("confirm-no").focus();
  return new Promise((resolve) => {
    let isRunning = false;
    const isStillOpen = () => dialog.open && proceed === run;
    const run = async () => {
      isRunning = true;
      $("confirm-yes").disabled = true;
      try {
        const { deleted } = await act();
        toast(deleted === 1 ? "1 record deleted." : `${deleted} records deleted.`);
        if (isStillOpen()) dialog.close();
        resolve(true);
      } catch (error) {
        isRunning = false;
        const reason = error.status === 404 ? "This task is not stored any more." : error.message;
        if (isStillOpen()) {
          setText($("confirm-error"), reason);
          $("confirm-yes").disabled = false;
        } else {
          toast(reason);
          resolve(false);
        }
      }
    };
    proceed = run;
    dialog.addEventListener("close", () => isRunning || resolve(false), { once: true });
  });
}

/** Wires the dialog and the forms. `onDeleted` is called after a delete. */
export function wireDelete(onDeleted) {
  closeByBackdrop($("confirm"));
  $("confirm-no").addEventListener("click", () => $("confirm").close());
  $("confirm-yes").addEventListener("click", () => proceed());
  $("delete-service").addEventListener("submit", async (event) => {
    event.preventDefault();
    const service = $("service").value.trim();
    const text = `All stored tasks of “${service}” are deleted, for all tokens. Their next lookups go to the upstream.`;
    if (await confirmAction("Delete all tasks of a service?", text, () => remove("api/tasks", { service }))) onDeleted();
  });
  $("delete-older").addEventListener("submit", async (event) => {
    event.preventDefault();
    const number = $("older").valueAsNumber;
    const unit = event.target.elements.unit.value;
    const span = `${number} ${UNITS[unit]}${number === 1 ? "" : "s"}`;
    const text = `All tasks stored more than ${span} ago are deleted, for all tokens. Their next lookups go to the upstream.`;
    if (await confirmAction("Delete old tasks?", text, () => remove("api/tasks", { older_than: `${number}${unit}` }))) onDeleted();
  });
}
