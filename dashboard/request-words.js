// Words for a request of `/api/requests`.

/** Meaning of each outcome. */
export const WORDS = {
  hit: "everything was stored",
  pending: "from memory, the task is not finished",
  partial: "some was stored, some was fetched",
  miss: "fetched from the upstream",
  bypass: "passed through to the upstream",
  refused: "refrain refused it",
  answered: "refrain responded itself",
  failed: "the upstream failed",
  aborted: "the client disconnected",
};

const NAMES = { retrieve: "Lookup", retrieve_batch: "Batch lookup", delete: "Delete" };

/** Returns a short name of what was requested. */
export const requestName = ({ action, method, path }) => NAMES[action] ?? `${method} ${path}`;

/** Returns the name of the client or token, or the first digits of the token's digest. */
export const caller = ({ client, token }) => client ?? token ?? "–";

/** Returns the numbers of ids, without those that are 0: `12 asked: 10 stored, 2 fetched`. */
export function idCounts({ asked, hits, pending, fetched }) {
  const parts = [[hits, "stored"], [pending, "pending"], [fetched, "fetched"]].filter(([count]) => count > 0);
  return `${asked} asked` + (parts.length > 0 ? `: ${parts.map(([count, word]) => `${count} ${word}`).join(", ")}` : "");
}
