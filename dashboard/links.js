// Deep links: `#/task/SERVICE/ID` and `#/request/ID` open a dialog, and the address follows the open dialog.

const views = new Map();

/** Registers the dialog of a kind of link. `open` is called with the decoded parts of the link. */
export function registerView(name, dialog, open) {
  views.set(name, { dialog, open });
  // The event is late: the dialog can be open again by then.
  dialog.addEventListener("close", () => {
    if (dialog.open || target()[0] !== name) return;
    history.replaceState(null, "", location.pathname + location.search);
  });
}

/** Shows the dialog of a view and its link in the address. */
export function enterView(name, ...parts) {
  const hash = `#/${[name, ...parts].map(encodeURIComponent).join("/")}`;
  if (location.hash !== hash) history.pushState(null, "", hash);
  const { dialog } = views.get(name);
  if (!dialog.open) dialog.showModal();
}

/** Opens the dialog that the address names, and closes the others. */
export function followLink() {
  const [name, ...parts] = target();
  for (const [other, { dialog }] of views) if (other !== name && dialog.open) dialog.close();
  views.get(name)?.open(...parts);
}

/** Returns the decoded parts of the link, or none. */
function target() {
  if (!location.hash.startsWith("#/")) return [];
  try {
    return location.hash.slice(2).split("/").map(decodeURIComponent);
  } catch {
    // Not a link of this page.
    return [];
  }
}
