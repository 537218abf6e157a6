// What the page says where there are no pictures to show: nothing found, or a problem, and what to do about it.

import { element } from "./dom.js";

// form: {label, button, send(value)}; actions: [{text, run}]; said: the service's own sentence
function show(place, { title, text, said, actions = [], form, wrong = false }) {
  const parts = [element("h2", { text: title }), element("p", { text })];
  if (said) parts.push(element("p", { class: "said", text: said }));
  if (form) parts.push(tokenForm(form));
  if (actions.length) {
    const buttons = actions.map((action) => {
      const button = element("button", { type: "button", text: action.text });
      button.addEventListener("click", action.run);
      return button;
    });
    parts.push(element("p", { class: "actions" }, ...buttons));
  }
  place.classList.toggle("wrong", wrong);
  place.setAttribute("role", wrong ? "alert" : "group");
  place.replaceChildren(...parts);
  place.hidden = false;
}

function tokenForm({ label, button, send }) {
  const input = element("input", { type: "password", id: "token", autocomplete: "current-password", required: "" });
  const form = element("form", {}, element("label", { for: "token", text: label }), input, element("button", { text: button }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(input.value.trim());
  });
  return form;
}

export function nothingFound(place, { filtered, removeFilters, change }) {
  show(place, filtered
    ? { title: "No picture fits these filters", text: "The sentence was compared only with pictures that fit all of them.", actions: [{ text: "Search without filters", run: removeFilters }] }
    : { title: "The gallery has no pictures yet", text: "Add some with: python -m pipelines gallery GALLERY SOURCE", actions: [{ text: "Look again", run: change }] });
}

// again(): repeat; start(): forget the query; removeFilters: null where none is on; refused: a token was given and not taken
export function problem(place, error, { again, start, removeFilters, giveToken, refused }) {
  const retry = { text: "Try again", run: again };
  const views = {
    offline: { title: "The service cannot be reached", text: "Nothing is lost: your query is kept, and the page asks again when the connection is back. Is `python -m pipelines serve` running?", actions: [retry] },
    slow: { title: "No answer for a minute", text: "The service is up but has not answered. It may be busy with other queries.", actions: [retry] },
    token: {
      title: refused ? "This token was not accepted" : "This gallery needs a token",
      text: "Whoever started the service has it. It is kept in a cookie of this browser.",
      form: { label: "Token", button: "Open", send: giveToken },
    },
    gone: { title: "This picture is not in the gallery", text: "It may have been removed or forgotten since the link was made.", said: error.message, actions: [{ text: "Start again", run: start }] },
    refused: { title: "This query was not accepted", text: "Change it and search again.", said: error.message, actions: removeFilters ? [{ text: "Search without filters", run: removeFilters }] : [] },
    failed: { title: "Something went wrong in the service", text: "Its log says more.", said: error.message, actions: [retry] },
  };
  show(place, { wrong: true, ...(views[error.kind] ?? views.failed) });
}

// Counts down, then calls `again`; returns a function that stops it.
export function waiting(place, error, again) {
  let left = error.wait;
  const say = () => `The page asks again in ${left} s.`;
  show(place, { title: "The service is busy", text: say(), said: error.message, actions: [{ text: "Ask now", run: () => (stop(), again()) }] });
  const line = place.querySelector("p");
  const timer = setInterval(() => {
    left -= 1;
    if (left > 0) line.textContent = say();
    else stop(), again();
  }, 1000);
  const stop = () => clearInterval(timer);
  return stop;
}

export function upload(place, text, again) {
  show(place, { wrong: true, title: "This picture cannot be used", text, actions: [{ text: "Choose another", run: again }] });
}

export function hide(place) {
  place.hidden = true;
  place.replaceChildren();
}
