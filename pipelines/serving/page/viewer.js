// One picture large, in a dialog: the words that carried its match, its columns, and related pictures.

import * as api from "./api.js";
import { $, element, score, sharpen } from "./dom.js";
import { tile } from "./grid.js";
import * as words from "./words.js";

const HIDDEN = new Set(["id", "score", "sha256", "caption", "identity", "width", "height"]);
const known = (value) => value !== null && value !== undefined && value !== "";

let current = null; // {match, place, count, ...} as given to `open`
let requests = new AbortController();
let opener = null; // what had the focus before

// shown: {match: {id, ...}, place, count: of the results, 0 where it is not among them; sentences; unread: their unread end;
//   step(by), close(), search(id), open(match)}
export function open(shown) {
  const dialog = $("viewer");
  current = shown;
  requests.abort();
  requests = new AbortController();
  showFacts(shown);
  showLarge(shown.match);
  showWords(shown, requests.signal);
  showRelated(shown, requests.signal);
  if (!dialog.open) {
    opener = document.activeElement;
    dialog.showModal();
    $("close").focus();
  }
  dialog.querySelector(".viewer-body").scrollTop = 0;
}

export function close() {
  const dialog = $("viewer");
  if (!dialog.open) return;
  requests.abort();
  dialog.close();
  const again = current && document.querySelector(`#grid [data-id="${CSS.escape(current.match.id)}"]`);
  current = null;
  (again ?? opener)?.focus();
}

export const isOpen = () => $("viewer").open;

function showFacts({ match, place, count }) {
  const title = [count ? `${place} of ${count}` : "Picture"];
  if (known(match.identity)) title.push(`person\u00a0${match.identity}`);
  if (typeof match.score === "number") title.push(`score\u00a0${score(match.score)}`);
  $("viewer-title").textContent = title.join(" \u00b7 ");
  $("previous").disabled = place <= 1;
  $("next").disabled = place >= count;
  $("caption-part").hidden = !known(match.caption);
  $("caption").textContent = match.caption ?? "";
  const rows = Object.entries(match).filter(([name, value]) => !HIDDEN.has(name) && known(value));
  if (match.width && match.height) rows.push(["size", `${match.width} \u00d7 ${match.height} pixels`]);
  const text = (value) => (Array.isArray(value) ? value.join(", ") : String(value));
  $("columns").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", { text: name }), element("dd", { text: text(value) })]));
  $("original").href = api.original(match.id);
}

function showLarge(match) {
  const image = $("large"), note = $("large-note");
  note.hidden = true;
  image.alt = match.caption || "The picture, large";
  image.onload = () => sharpen(image);
  image.onerror = () => {
    // A browser shows fewer formats than the service reads; the thumbnail it always does.
    image.onerror = null;
    image.src = api.thumbnail(match.id);
    note.textContent = "The original cannot be shown here; this is its thumbnail.";
    note.hidden = false;
  };
  image.src = api.original(match.id);
}

async function showWords({ match, sentences, unread }, signal) {
  const part = $("words"), lists = $("word-lists"), note = $("words-note");
  part.hidden = !sentences.length;
  lists.replaceChildren();
  note.textContent = sentences.length ? "Weighing the words\u2026" : "";
  const cut = unread ? unread.split(/\s+/).filter(Boolean).length : 0;
  try {
    for (const sentence of sentences) {
      const answer = await api.words(sentence, match.id, signal);
      if (signal.aborted) return;
      lists.append(words.list(answer, sentences.length === 1 ? Math.min(cut, answer.words.length) : 0));
      note.textContent = words.explain(answer.by);
    }
  } catch (error) {
    if (error.kind !== "stopped") note.textContent = `The words could not be weighed. ${error.message}`;
  }
}

async function showRelated({ match, open: openOther }, signal) {
  const list = $("related"), title = $("related-title"), note = $("related-note");
  list.replaceChildren();
  note.hidden = true;
  title.textContent = "Other pictures";
  try {
    const answer = await api.related(match.id, signal);
    if (signal.aborted) return;
    const byPerson = answer.by === "identity";
    const matches = answer.matches.filter((other) => other.id !== match.id);
    title.textContent = byPerson ? "Other pictures of this person" : "The nearest pictures";
    note.textContent = byPerson ? "The gallery has no other picture of this person." : "The gallery has no other pictures.";
    note.hidden = matches.length > 0;
    list.classList.toggle("same", byPerson);
    list.replaceChildren(...matches.map((other, index) => tile(other, index + 1, openOther)));
    list.style.setProperty("--shape", getComputedStyle($("grid")).getPropertyValue("--shape") || "0.5");
  } catch (error) {
    if (error.kind === "stopped") return;
    note.textContent = `They could not be found. ${error.message}`;
    note.hidden = false;
  }
}

export function listen() {
  const dialog = $("viewer");
  const with_ = (name, ...given) => current?.[name](...given);
  $("close").addEventListener("click", () => with_("close"));
  $("previous").addEventListener("click", () => with_("step", -1));
  $("next").addEventListener("click", () => with_("step", 1));
  $("like-this").addEventListener("click", () => with_("search", current.match.id));
  dialog.addEventListener("cancel", (event) => (event.preventDefault(), with_("close")));
  dialog.addEventListener("click", (event) => event.target === dialog && with_("close")); // the backdrop
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "Tab") keepInside(dialog, event);
    if (event.target.closest("#related") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowLeft" && !$("previous").disabled) with_("step", -1);
    if (event.key === "ArrowRight" && !$("next").disabled) with_("step", 1);
  });
}

// From the last element on to the first, and back, without a stop at the browser's own buttons.
function keepInside(dialog, event) {
  const stops = [...dialog.querySelectorAll("button:enabled, a[href]")].filter((stop) => stop.offsetParent);
  const [first, last] = [stops[0], stops.at(-1)];
  if (event.shiftKey ? document.activeElement === first : document.activeElement === last) {
    event.preventDefault();
    (event.shiftKey ? last : first).focus();
  }
}
