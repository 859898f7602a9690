// Calls to /api/, with the admin token where one was given. The token is kept for this tab alone.

const KEY = "refrain.admin-token";
const TIMEOUT_MS = 10_000;

/** Forgetting may remove much; refrain itself gives it a minute. */
const DELETE_TIMEOUT_MS = 65_000;

let token = null;
try {
  token = sessionStorage.getItem(KEY);
} catch {
  // Storage may be switched off; the token is then asked for after each reload.
}

/** How far the proxy's clock is ahead of this browser's, in seconds. */
let clockOffset = 0;

/** Unix seconds by the proxy's clock. */
export const now = () => Date.now() / 1000 + clockOffset;

export const hasToken = () => token !== null;

/** Takes a token for this tab; `null` forgets it. */
export function useToken(value) {
  token = value;
  try {
    if (value === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, value);
  } catch {
    // As above.
  }
}

/** An answer that is no success; `status` is 0 where none came. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The JSON that a `GET` of this path answers. Empty parameters are left out. */
export const get = (path, parameters = {}) => call("GET", path, parameters);

/** What a `DELETE` of this path answers. */
export const remove = (path, parameters = {}) => call("DELETE", path, parameters);

/** The path of one task. Dot segments cannot be sent by a browser: it would fold them into another path. */
export function taskPath(service, id) {
  if ([service, id].some((part) => part === "." || part === "..")) {
    throw new ApiError(400, "A browser cannot ask for this id. `refrain tasks show` can.");
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
    throw new ApiError(0, "No answer from refrain.");
  }
  const date = Date.parse(response.headers.get("date") ?? "");
  if (date) clockOffset = Math.round((date - Date.now()) / 1000);
  const answer = parsed(body);
  if (!response.ok) throw new ApiError(response.status, answer?.error?.message ?? `Status ${response.status}.`);
  if (answer === undefined) throw new ApiError(response.status, "The answer is no JSON.");
  return answer;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
