// The page: what is asked is in the address, and everything shown follows from it.

import * as address from "./address.js";
import * as api from "./api.js";
import { $, element, number, plural } from "./dom.js";
import * as filters from "./filters.js";
import * as grid from "./grid.js";
import * as messages from "./messages.js";
import * as viewer from "./viewer.js";

let gallery = { size: 0, columns: [], examples: [] }; // once it is loaded, as /api/gallery says
let query = address.NOTHING;
let upload = null; // the visitor's own picture: in this page's memory, not in the address
const uploads = new Map(); // those of this visit, by their key in the history
let answered = null; // {asked, upload, answer}: the results that are shown
let running = new AbortController();
let stopWaiting = () => {};
let tokenRefused = false;

const box = $("sentence"), list = $("grid"), message = $("message");
const isQuery = () => query.sentences.length > 0 || Boolean(query.like || upload);

// Go to a changed query. `replace`: in the same entry of the history. `depth`: how many entries the viewer has added.
function go(changes, { replace = false, depth = 0, file = upload } = {}) {
  upload = file;
  const key = file && `${performance.timeOrigin} ${file.lastModified} ${file.size} ${file.name}`;
  if (file) uploads.set(key, file);
  query = { ...query, ...changes };
  const state = { depth, upload: key };
  history[replace ? "replaceState" : "pushState"](state, "", address.write(query));
  return render();
}

function readAddress() {
  query = address.read(location.hash);
  upload = uploads.get(history.state?.upload) ?? null;
}

function write(text) {
  box.value = text;
  grow();
}

const typed = () => box.value.split("\n").map((line) => line.trim()).filter(Boolean);

// The same search with what is in the box and `changes`, from the first page on.
const again = (changes, options) => go({ sentences: typed(), k: address.PAGE_SIZE, picture: null, ...changes }, options);

async function render() {
  document.body.classList.toggle("searched", isQuery());
  document.title = query.sentences.length ? `${query.sentences[0]} \u2013 search` : "Find a person by a sentence";
  $("rerank").checked = query.rerank;
  showGiven();
  $("lost").hidden = upload !== null || !history.state?.upload; // after the page was loaded again
  filters.show({ panel: $("filters"), controls: $("controls"), chips: $("chips") }, gallery.columns, query.where, (where) => again({ where }));
  if (!isQuery()) return showStart();
  $("start").hidden = true;
  const asked = address.asks(query);
  if (answered?.asked !== asked || answered.upload !== upload) await search(asked);
  if (address.asks(query) === asked) showViewer();
}

function showStart() {
  running.abort();
  stopWaiting();
  answered = null;
  viewer.close();
  messages.hide(message);
  document.body.classList.remove("busy");
  list.replaceChildren();
  $("status").textContent = "";
  $("unread").hidden = $("more").hidden = true;
  $("start").hidden = !gallery.version;
  $("examples-title").hidden = !gallery.examples.length;
  $("examples").replaceChildren(
    ...gallery.examples.slice(0, 6).map((sentence) => {
      const button = element("button", { class: "example", type: "button" }, element("span", { text: sentence }));
      button.addEventListener("click", () => (write(sentence), submit()));
      return element("li", {}, button);
    }),
  );
  const model = typeof gallery.model === "string" ? gallery.model : gallery.model?.name;
  $("facts").textContent = [plural(gallery.size, "picture"), model && `model ${model}`].filter(Boolean).join(" \u00b7 ");
  if (gallery.version && !gallery.size) messages.nothingFound(message, { filtered: false, change: load });
}

async function search(asked) {
  running.abort();
  stopWaiting();
  running = new AbortController();
  const { signal } = running;
  const picture = upload;
  document.body.classList.add("busy");
  list.setAttribute("aria-busy", "true");
  messages.hide(message);
  $("more").disabled = true;
  $("status").textContent = "Searching\u2026";
  if (!list.querySelector(".match")) grid.showWaiting(list, Math.min(query.k, 16));
  try {
    const answer = await api.search(query, picture, signal);
    tokenRefused = false;
    answered = { asked, upload: picture, answer };
    showAnswer(answer);
  } catch (error) {
    if (error.kind === "stopped") return;
    answered = null;
    showProblem(error, () => search(asked).then(showViewer));
  }
  document.body.classList.remove("busy");
  list.removeAttribute("aria-busy");
}

function showAnswer(answer) {
  const { matches } = answer;
  const milliseconds = Math.max(1, Math.round(1000 * (answer.seconds ?? 0)));
  const among = query.where.length ? ` that fit ${filters.count(query.where)}` : "";
  $("status").replaceChildren(element("b", { text: matches.length ? `${number(matches.length)} best` : "None" }), ` of ${plural(gallery.size, "picture")}${among}, ${milliseconds} ms`);
  $("unread").hidden = !answer.unread;
  $("unread").textContent = answer.unread ? `The model reads only so many words. Not read: \u201c${answer.unread}\u201d` : "";
  grid.show(list, matches, openMatch);
  const limit = Math.min(gallery.limits.k, gallery.size);
  $("more").hidden = matches.length < query.k || query.k >= limit;
  $("more").disabled = false;
  if (!matches.length) {
    messages.nothingFound(message, { filtered: query.where.length > 0, removeFilters: () => again({ where: [] }), change: load });
  }
  if (answer.version && gallery.version && answer.version !== gallery.version) refresh(); // a new version of the gallery answers
}

function showProblem(error, retry) {
  list.replaceChildren();
  $("status").textContent = "";
  $("unread").hidden = $("more").hidden = true;
  if (error.kind === "busy") {
    stopWaiting = messages.waiting(message, error, retry);
    return;
  }
  if (error.kind === "offline") {
    addEventListener("online", retry, { once: true });
    stopWaiting = () => removeEventListener("online", retry);
  }
  messages.problem(message, error, {
    again: retry,
    refused: tokenRefused,
    start: () => go(address.NOTHING, { file: null }),
    removeFilters: query.where.length ? () => again({ where: [] }) : null,
    giveToken: async (token) => {
      tokenRefused = true;
      await api.giveToken(token).catch(() => {});
      load();
    },
  });
}

let given = null;

// The picture of the query, if any, in the box.
function showGiven() {
  const shown = upload ?? query.like, image = $("given-picture");
  $("given").hidden = !shown;
  if (!shown || shown === given) return;
  given = shown;
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  image.src = upload ? URL.createObjectURL(upload) : api.thumbnail(query.like);
  $("given-name").textContent = upload ? upload.name || "your picture" : "like this one";
}

// The viewer follows the address: openMatch and the arrows change it, and it is shown or closed here.
function showViewer() {
  if (!query.picture || !answered) return viewer.close();
  const { matches, unread } = answered.answer;
  const place = matches.findIndex((match) => match.id === query.picture) + 1;
  const depth = history.state?.depth ?? 0;
  const match = matches[place - 1] ?? seen.get(query.picture) ?? { id: query.picture };
  return viewer.open({
    match,
    place,
    count: place ? matches.length : 0,
    sentences: query.sentences,
    unread,
    open: openMatch,
    step: (by) => go({ picture: matches[place - 1 + by].id }, { replace: true, depth }),
    search: (id) => (write(""), again({ like: id }, { file: null })),
    close: () => {
      viewer.close();
      if (depth) history.go(-depth);
      else go({ picture: null }, { replace: true });
    },
  });
}

const seen = new Map(); // matches that were opened, also those that are not among the results

function openMatch(match) {
  seen.set(match.id, match);
  go({ picture: match.id }, { depth: (history.state?.depth ?? 0) + 1 });
}

function submit() {
  if (!typed().length && !upload && !query.like) return box.focus();
  answered = null; // the same query again is asked again
  return again({});
}

function useFile(file) {
  const limit = gallery.limits?.picture_bytes;
  const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MB`;
  const choose = () => $("file").click();
  if (!file.type.startsWith("image/")) return messages.upload(message, `${file.name} is not a picture. JPEG, PNG and WebP are.`, choose);
  if (limit && file.size > limit) return messages.upload(message, `It has ${megabytes(file.size)}; the service takes ${megabytes(limit)}.`, choose);
  return again({ like: null }, { file });
}

// The box is as high as its lines, up to the maximum of the style.
function grow() {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

function listen() {
  addEventListener("popstate", () => (readAddress(), write(query.sentences.join("\n")), render()));
  $("search").addEventListener("submit", (event) => (event.preventDefault(), submit()));
  box.addEventListener("input", grow);
  box.addEventListener("keydown", (event) => {
    const first = list.querySelector("button");
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) event.preventDefault(), submit();
    if (event.key === "Escape" && !event.isComposing) write("");
    if (event.key === "ArrowDown" && first && box.selectionEnd === box.value.length) event.preventDefault(), first.focus();
  });
  $("rerank").addEventListener("change", (event) => again({ rerank: event.target.checked }));
  $("more").addEventListener("click", () => go({ k: Math.min(query.k + address.PAGE_SIZE, gallery.limits.k) }, { replace: true }));
  $("given-remove").addEventListener("click", () => (again({ like: null }, { file: null }), box.focus()));
  $("file").addEventListener("change", (event) => event.target.files[0] && (useFile(event.target.files[0]), (event.target.value = "")));
  addEventListener("keydown", (event) => {
    const writing = event.target.closest?.("input, textarea, select");
    if (event.key === "/" && !writing && !viewer.isOpen() && !event.ctrlKey && !event.metaKey) event.preventDefault(), box.focus(), box.select();
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])][0];
    if (file && !viewer.isOpen()) event.preventDefault(), useFile(file);
  });
  listenToDrops();
  grid.moveByKeys(list, () => box.focus());
  grid.moveByKeys($("related"), () => $("like-this").focus());
  viewer.listen();
}

function listenToDrops() {
  const types = (event) => [...(event.dataTransfer?.types ?? [])];
  const wanted = (event) => types(event).some((type) => type === "Files" || type === grid.PICTURE_TYPE) && !viewer.isOpen();
  const mark = (on) => document.body.classList.toggle("dropping", on);
  addEventListener("dragover", (event) => wanted(event) && (event.preventDefault(), mark(true)));
  addEventListener("dragleave", (event) => event.relatedTarget === null && mark(false));
  addEventListener("drop", (event) => {
    mark(false);
    if (!wanted(event)) return;
    event.preventDefault();
    const id = event.dataTransfer.getData(grid.PICTURE_TYPE);
    if (id) again({ like: id }, { file: null });
    else if (event.dataTransfer.files[0]) useFile(event.dataTransfer.files[0]);
  });
}

async function refresh() {
  gallery = { ...gallery, ...(await api.gallery().catch(() => ({}))) };
}

async function load() {
  stopWaiting();
  messages.hide(message);
  try {
    gallery = await api.gallery();
    box.maxLength = gallery.limits.sentence * gallery.limits.sentences;
    tokenRefused = false;
    answered = null;
    readAddress();
    await render();
  } catch (error) {
    showProblem(error, load);
  }
}

listen();
write(address.read(location.hash).sentences.join("\n"));
if (matchMedia("(hover: hover)").matches && !location.hash) box.focus();
load();
