// Elements made of text, never of HTML: sentences, captions and columns come from elsewhere.

export const $ = (id) => document.getElementById(id);

export function element(name, { class: className, text, style, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  for (const [key, value] of Object.entries(style ?? {})) made.style.setProperty(key, value);
  made.append(...children);
  return made;
}

export const number = (value) => value.toLocaleString("en");
export const score = (value) => value.toFixed(3).replace("-", "\u2212");
export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

// Pictures of a few dozen pixels are shown as the squares that they are; smoothed they would be a blur.
const TINY = 64;
export const sharpen = (image) => image.classList.toggle("tiny", image.naturalWidth > 0 && image.naturalWidth <= TINY);
