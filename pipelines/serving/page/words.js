// The words of a sentence with their weights: colour, and the number below each word.

import { element } from "./dom.js";

const PART = "as a part of the strongest word\u2019s";
const HOW = {
  "gradient attention": `Gradient-attention score: an estimate of what each word did for the match, ${PART}.`,
  "leave one out": `What the score loses when the word is left out, ${PART}. Dashed words lowered the match.`,
};

const SIGNS = { "-1": "\u2212", 1: "+" };
const rounded = (weight) => Math.round(100 * weight) / 100;
const written = (weight) => (weight ? SIGNS[Math.sign(weight)] + Math.abs(weight).toFixed(2) : "0");

export const explain = (by) => HOW[by] ?? by;

// answer: of /api/words; unread: how many words at the end the model did not read
export function list(answer, unread) {
  const last = answer.words.length - unread;
  return element(
    "ul",
    { class: "words" },
    ...answer.words.map(([word, weight], place) => {
      if (place >= last) {
        return element("li", { class: "unread" }, element("span", { class: "word", text: word, style: { "--size": 0 } }), element("small", { text: "not read" }));
      }
      const shown = rounded(weight);
      return element(
        "li",
        { class: shown < 0 ? "against" : "for" },
        element("span", { class: "word", text: word, style: { "--size": Math.min(Math.abs(shown), 1) } }),
        element("small", { text: written(shown) }),
      );
    }),
  );
}
