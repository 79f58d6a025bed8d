// Requests to the public API. The key is sent in a header and is nowhere but in the memory of this module.

const ROOT = new URL("../v1/", document.baseURI);

let key = null;
let onRefused = () => {};

/** Sets the key that requests are sent with, and what is called when the service no longer accepts it. */
export function useKey(text, refused) {
  key = text;
  onRefused = refused;
}

export class ApiError extends Error {
  constructor(status, { code, message, details }) {
    super(message);
    this.status = status;
    this.code = code;
    this.details = details ?? {};
  }
}

/** Returns the parts of a path, each percent-encoded. */
export function path(...parts) {
  for (const part of parts) {
    // Browsers resolve these, even when encoded: a request about one person would reach the whole gallery.
    if (part === "." || part === ".." || part === "") {
      throw new ApiError(0, { code: "unreachable_id", message: `browsers cannot send a request about the id "${part}"` });
    }
  }
  return parts.map((part) => encodeURIComponent(part)).join("/");
}

/**
 * Sends a request and returns the answer's JSON.
 * @param {string} where A path below /v1, made by `path`.
 * @param {{method?, query?, json?, form?, body?, signal?, headers?}} options
 * @throws {ApiError} with the API's own words.
 */
export async function call(where, options = {}) {
  return (await send(where, options)).json();
}

/** Like `call`, and returns the whole answer. */
export async function send(where, { method = "GET", query = {}, json, form, body, signal, headers = {} } = {}) {
  const url = new URL(where, ROOT);
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.set(name, value);
  }
  const sent = { ...headers };
  if (key !== null) sent["X-API-Key"] = key;
  if (json !== undefined) sent["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(url, {
      method,
      headers: sent,
      body: json === undefined ? (form ?? body) : JSON.stringify(json),
      signal,
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
      referrerPolicy: "no-referrer",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { code: "unreachable", message: "" });
  }
  if (answer.ok) return answer;
  const problem = new ApiError(answer.status, await errorOf(answer));
  if (answer.status === 401 && key !== null) onRefused(problem);
  throw problem;
}

async function errorOf(answer) {
  try {
    return (await answer.json()).error;
  } catch {
    return { code: "unknown", message: `${answer.status} ${answer.statusText}` };
  }
}

/**
 * Returns a function that runs `work(signal, ...)` for the newest call only: a call while one is running waits, and is
 * dropped when a newer one comes. So there is never more than one request under way and one waiting.
 */
export function latestOnly(work) {
  let running = false;
  let waiting = null;
  return async function run(...values) {
    if (running) {
      waiting = values;
      return;
    }
    running = true;
    try {
      await work(...values);
    } finally {
      running = false;
      if (waiting !== null) {
        const next = waiting;
        waiting = null;
        run(...next);
      }
    }
  };
}
