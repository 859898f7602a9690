// Calls to /api/, with the admin token if one was entered. The token is kept for this tab only.

const KEY = "refrain.admin-token";
const TIMEOUT_MS = 10_000;

/** A delete can remove many tasks. refrain itself limits it to one minute. */
const DELETE_TIMEOUT_MS = 65_000;

let token = null;
try {
  token = sessionStorage.getItem(KEY);
} catch {
  // Storage can be disabled. The token must then be entered after each reload.
}

/** Difference between the clocks of the proxy and of this browser, in seconds. */
let clockOffset = 0;

/** Returns the Unix time in seconds, by the clock of the proxy. */
export const now = () => Date.now() / 1000 + clockOffset;

export const hasToken = () => token !== null;

/** Sets the token for this tab; `null` removes it. */
export function useToken(value) {
  token = value;
  try {
    if (value === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, value);
  } catch {
    // As above.
  }
}

/** A response that reports an error; `status` is 0 if there was no response. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Returns the JSON of a `GET` response. Empty parameters are left out. */
export const get = (path, parameters = {}) => call("GET", path, parameters);

/** Returns the JSON of a `DELETE` response. */
export const remove = (path, parameters = {}) => call("DELETE", path, parameters);

/** Returns the path of a task. Browsers resolve dot segments, so they cannot request such ids. */
export function taskPath(service, id) {
  if ([service, id].some((part) => part === "." || part === "..")) {
    throw new ApiError(400, "A browser cannot request this id. Use `refrain tasks show`.");
  }
  return `api/tasks/${encodeURIComponent(service)}/${encodeURIComponent(id)}`;
}

async function call(method, path, parameters) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value));
  const headers = token === null ? {} : { authorization: `Bearer ${token}` };
  let response;
  let body;
  try {
    response = await fetch(query.size ? `${path}?${query}` : path, {
      method,
      headers,
      cache: "no-store",
      redirect: "error",
      signal: AbortSignal.timeout(method === "DELETE" ? DELETE_TIMEOUT_MS : TIMEOUT_MS),
    });
    body = await response.text();
  } catch {
    throw new ApiError(0, "refrain does not respond.");
  }
  const date = Date.parse(response.headers.get("date") ?? "");
  if (date) clockOffset = Math.round((date - Date.now()) / 1000);
  const json = parsed(body);
  if (!response.ok) throw new ApiError(response.status, json?.error?.message ?? `Status ${response.status}.`);
  if (json === undefined) throw new ApiError(response.status, "The response is not JSON.");
  return json;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
