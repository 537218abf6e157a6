// The query in the address: #q=a+sentence&q=another&like=ID&where=camera%3D3&k=40&rerank=1&picture=ID
// Behind the #, which browsers do not send: a link holds what was searched for, and no log of a server does.

export const PAGE_SIZE = 20;
export const NOTHING = { sentences: [], like: null, where: [], k: PAGE_SIZE, rerank: false, picture: null };

export function read(fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  const k = Number.parseInt(given.get("k"), 10);
  return {
    sentences: given.getAll("q").map((text) => text.trim()).filter(Boolean),
    like: given.get("like") || null,
    where: given.getAll("where").filter(Boolean),
    k: k >= 1 ? k : PAGE_SIZE,
    rerank: given.get("rerank") === "1",
    picture: given.get("picture") || null,
  };
}

export function write(query) {
  const written = new URLSearchParams();
  query.sentences.forEach((sentence) => written.append("q", sentence));
  if (query.like) written.set("like", query.like);
  query.where.forEach((condition) => written.append("where", condition));
  if (query.k !== PAGE_SIZE) written.set("k", query.k);
  if (query.rerank) written.set("rerank", "1");
  if (query.picture) written.set("picture", query.picture);
  const text = written.toString();
  return text ? `#${text}` : "/";
}

// What the results depend on: all but the picture that is shown large.
export const asks = (query) => write({ ...query, picture: null });
