// Requests to the service, and what can go wrong with them as a `Problem` of a named kind.

const PATIENCE = 60_000; // milliseconds

export class Problem extends Error {
  // kind: stopped (a newer request replaced it) | offline | slow | token | busy | gone | refused | failed
  // wait: seconds after which to ask again, for "busy"
  constructor(kind, message = "", wait = 0) {
    super(message);
    this.kind = kind;
    this.wait = wait;
  }
}

const KINDS = { 401: "token", 404: "gone", 429: "busy", 503: "busy" };

export async function ask(path, { json, form, signal } = {}) {
  const asked = { method: json || form ? "POST" : "GET", credentials: "same-origin" };
  if (json) Object.assign(asked, { body: JSON.stringify(json), headers: { "Content-Type": "application/json" } });
  if (form) asked.body = form;
  const clock = new AbortController();
  const timer = setTimeout(() => clock.abort(), PATIENCE);
  const stop = () => clock.abort();
  signal?.addEventListener("abort", stop);
  try {
    if (signal?.aborted) throw new Problem("stopped");
    const answer = await fetch(path, { ...asked, signal: clock.signal });
    if (answer.ok) return await answer.json();
    const said = (await answer.json().catch(() => null))?.error;
    const wait = Math.min(Math.max(Number(answer.headers.get("Retry-After")) || 2, 1), 60);
    const kind = KINDS[answer.status] ?? (answer.status < 500 ? "refused" : "failed");
    throw new Problem(kind, typeof said === "string" ? said : `The service answered ${answer.status}.`, wait);
  } catch (error) {
    if (error instanceof Problem) throw error;
    if (signal?.aborted) throw new Problem("stopped");
    if (clock.signal.aborted) throw new Problem("slow");
    if (error instanceof SyntaxError) throw new Problem("failed", "The answer of the service could not be read.");
    throw new Problem("offline");
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", stop);
  }
}

const picturePath = (id) => `/api/pictures/${encodeURIComponent(id)}`;
export const original = picturePath;
export const thumbnail = (id) => `${picturePath(id)}/thumbnail`;
export const gallery = () => ask("/api/gallery");
export const words = (sentence, id, signal) => ask("/api/words", { json: { sentence, id }, signal });
export const related = (id, signal) => ask(`${picturePath(id)}/related?k=12`, { signal });

// query: as in address.js; upload: a File to search by, or null
export function search(query, upload, signal) {
  if (!upload) {
    const json = { sentences: query.sentences, k: query.k, where: query.where, rerank: query.rerank };
    if (query.like) json.like = query.like;
    return ask("/api/search", { json, signal });
  }
  const form = new FormData();
  form.append("picture", upload, upload.name || "picture");
  query.sentences.forEach((sentence) => form.append("sentence", sentence));
  query.where.forEach((condition) => form.append("where", condition));
  form.append("k", query.k);
  if (query.rerank) form.append("rerank", "true");
  return ask("/api/search/picture", { form, signal });
}

// The token becomes a cookie, which scripts cannot read. By `fetch`, so that the address is not kept in the history.
export async function giveToken(token) {
  await fetch(`/?token=${encodeURIComponent(token)}`, { credentials: "same-origin" }).catch(() => {
    throw new Problem("offline");
  });
}
