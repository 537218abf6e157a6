// The pictures that were found, as a list of buttons, with arrow keys among them.

import { thumbnail } from "./api.js";
import { element, score, sharpen } from "./dom.js";

export const PICTURE_TYPE = "application/x-gallery-picture"; // of a picture of the page that is dragged

function alternative(match, place) {
  const who = match.identity === null || match.identity === undefined ? "" : ` of person ${match.identity}`;
  return match.caption ? `Picture ${place}${who}: ${match.caption}` : `Picture ${place}${who}`;
}

export function tile(match, place, open) {
  const image = element("img", { src: thumbnail(match.id), alt: alternative(match, place), loading: "lazy", decoding: "async" });
  image.addEventListener("load", () => sharpen(image));
  image.addEventListener("error", () => image.closest(".frame")?.replaceChildren("This picture cannot be shown"), { once: true });
  const line = element("span", { class: "line" }, element("span", { class: "rank", text: place }));
  if (typeof match.score === "number") line.append(element("span", { class: "score", text: score(match.score) }));
  const button = element("button", { class: "match", type: "button", "data-id": match.id }, element("span", { class: "frame" }, image), line);
  if (match.identity !== null && match.identity !== undefined) {
    button.append(element("span", { class: "who", text: `person ${match.identity}` }));
  }
  button.addEventListener("click", () => open(match));
  image.addEventListener("dragstart", (event) => event.dataTransfer.setData(PICTURE_TYPE, match.id));
  return element("li", {}, button);
}

// One shape for all tiles: the median of the pictures', where the gallery says it.
function shapeOf(matches) {
  const shapes = matches.map((match) => match.width / match.height).filter((ratio) => ratio > 0).sort((a, b) => a - b);
  return shapes.length ? Math.min(Math.max(shapes[Math.floor(shapes.length / 2)], 0.4), 1.6) : 0.5;
}

export function show(list, matches, open) {
  list.style.setProperty("--shape", shapeOf(matches));
  list.classList.remove("empty");
  list.replaceChildren(...matches.map((match, index) => tile(match, index + 1, open)));
}

export function showWaiting(list, count) {
  list.classList.add("empty");
  list.replaceChildren(...Array.from({ length: count }, () => element("li", { "aria-hidden": "true" }, element("span", { class: "frame" }))));
}

// Arrow keys, Home and End move among the pictures of `list`; up from the first row calls `leave`.
export function moveByKeys(list, leave) {
  list.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const buttons = [...list.querySelectorAll("button")];
    const place = buttons.indexOf(document.activeElement);
    if (place < 0) return;
    const columns = getComputedStyle(list).gridTemplateColumns.split(" ").length;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -place, End: buttons.length - 1 - place };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const target = place + steps[event.key];
    if (event.key === "ArrowUp" && target < 0) leave();
    else buttons[Math.min(Math.max(target, 0), buttons.length - 1)].focus();
  });
}
