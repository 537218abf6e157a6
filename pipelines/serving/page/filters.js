// Filters from the gallery's columns: a control for each column, and a chip for each condition that is on.

import { element, plural } from "./dom.js";

// column: {name, values: [...] or null, range: [low, high] or null}; with neither it is text, searched by a part of it
const OPERATORS = { "=": "is", "!=": "is not", ">=": "at least", "<=": "at most", "~": "contains", "!~": "does not contain" };
const OF_NUMBERS = ["=", "!=", ">=", "<="];
const OF_TEXT = ["~", "!~", "=", "!="];
const CONDITION = /^(.+?)\s*(!=|!~|>=|<=|=|~|>|<)\s*(.*)$/s;

const columnOf = (condition) => condition.match(CONDITION)?.[1];
const operatorOf = (condition) => condition.match(CONDITION)?.[2];
const valueOf = (condition) => condition.match(CONDITION)?.[3];

export function describe(condition) {
  const [, name, operator, value] = condition.match(CONDITION) ?? [null, condition, "", ""];
  if (!value) return operator === "=" ? `${name} is not known` : `${name} is known`;
  return operator === "=" ? `${name}: ${value}` : `${name} ${OPERATORS[operator] ?? operator} ${value}`;
}

// The first condition of a column is in its control; further ones are chips alone.
function control(column, where, change) {
  const mine = where.find((condition) => columnOf(condition) === column.name);
  const set = (text) => {
    const next = where.filter((condition) => condition !== mine);
    change(text ? [...next, text] : next);
  };
  const field = element("fieldset", { class: "control" }, element("legend", { text: column.name }));
  const row = element("div");
  field.append(row);
  if (Array.isArray(column.values) && (!mine || operatorOf(mine) === "=")) {
    const choice = element("select", { "aria-label": column.name }, element("option", { value: "", text: "any" }));
    for (const value of column.values) choice.append(element("option", { value: String(value), text: String(value) }));
    if (mine && !column.values.map(String).includes(valueOf(mine))) choice.append(element("option", { value: valueOf(mine), text: valueOf(mine) }));
    choice.value = mine ? valueOf(mine) : "";
    choice.addEventListener("change", () => set(choice.value && `${column.name}=${choice.value}`));
    row.append(choice);
    return field;
  }
  const operator = element("select", { class: "operator", "aria-label": `${column.name}: how it compares` });
  const signs = column.range ? OF_NUMBERS : OF_TEXT;
  const shown = mine && !signs.includes(operatorOf(mine)) ? [...signs, operatorOf(mine)] : signs;
  for (const sign of shown) operator.append(element("option", { value: sign, text: OPERATORS[sign] ?? sign }));
  operator.value = mine ? operatorOf(mine) : signs[0];
  const value = element("input", { type: "text", "aria-label": column.name, autocomplete: "off", enterkeyhint: "search" });
  if (column.range) value.placeholder = column.range.join(" \u2013 ");
  value.value = mine ? valueOf(mine) : "";
  const changed = () => {
    const text = value.value.trim() && `${column.name}${operator.value}${value.value.trim()}`;
    if ((text || undefined) !== mine) set(text);
  };
  value.addEventListener("change", changed);
  operator.addEventListener("change", () => value.value.trim() && changed());
  value.addEventListener("keydown", (event) => event.key === "Enter" && (event.preventDefault(), changed()));
  row.append(operator, value);
  return field;
}

// panel: the <details>; controls, chips: where they go; change(where): called with the new conditions
export function show({ panel, controls, chips }, columns, where, change) {
  panel.hidden = !columns.length;
  panel.querySelector("summary").textContent = where.length ? `Filters (${where.length})` : "Filters";
  const focused = [...controls.children].findIndex((field) => field.contains(document.activeElement));
  controls.replaceChildren(...columns.map((column) => control(column, where, change)));
  if (focused >= 0) controls.children[focused]?.querySelector("input, select:not(.operator)")?.focus();
  chips.replaceChildren(
    ...where.map((condition) => {
      const chip = element("button", { type: "button", "aria-label": `Remove the filter ${describe(condition)}` }, describe(condition), element("span", { "aria-hidden": "true", text: "\u00d7" }));
      chip.addEventListener("click", () => change(where.filter((other) => other !== condition)));
      return element("li", {}, chip);
    }),
  );
}

export const count = (where) => plural(where.length, "filter");
