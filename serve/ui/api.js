// The public HTTP API as this page uses it. Whoever writes a client of their own can begin here.

const KEY = "recsys-key";
const PATIENCE_MS = 12_000;
const BASE = new URL(".", document.baseURI); // whatever path a proxy has put before the service

/** An answer that is none: the problem document's status and detail, or status 0 where nothing came at all. */
export class Problem extends Error {
  constructor(status, detail, retryAfter = 0) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter; // seconds
  }

  /** Whether the service, and not the question, is to blame. */
  get isAway() {
    return this.status === 0 || this.status >= 500;
  }

  get wantsKey() {
    return this.status === 401 || this.status === 403;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (said) => (said ? sessionStorage.setItem(KEY, said) : sessionStorage.removeItem(KEY)),
};

/**
 * Asks the service.
 * @param {string} path such as "v1/bundle", with its parameters
 * @param {object} [body] sent as JSON by POST; without one it is a GET
 * @param {AbortSignal} [signal] of who no longer wants to know
 */
export async function ask(path, { body, signal } = {}) {
  const headers = {};
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body) headers["Content-Type"] = "application/json";
  const late = AbortSignal.timeout(PATIENCE_MS);
  let answer, text;
  try {
    answer = await fetch(new URL(path, BASE), {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, late]) : late,
      credentials: "omit",
      cache: "no-store",
    });
    text = await answer.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(0, late.aborted ? "it took too long" : "no connection");
  }
  let said;
  try {
    said = JSON.parse(text);
  } catch {
    said = null; // of something between the service and us
  }
  if (!answer.ok || said === null) {
    const after = Number(answer.headers.get("Retry-After")) || 0;
    throw new Problem(answer.ok ? 502 : answer.status, said?.detail ?? `HTTP ${answer.status}`, after);
  }
  return said;
}

/** Lets the newest question of a kind win: each aborts the one before. */
export class Newest {
  #asking = new AbortController();

  /** @returns {AbortSignal} for the next question */
  next() {
    this.#asking.abort();
    this.#asking = new AbortController();
    return this.#asking.signal;
  }
}

/** Calls `work` once it has not been called for a while. */
export function debounced(work, ms) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), ms);
  };
}
