// The attributes that requests may filter by, as controls: values to tick, or a smallest and a largest.

import { debounced } from "./api.js";
import { $, el, number } from "./dom.js";
import { question } from "./question.js";

const TYPING_MS = 300;

/**
 * Draws the controls.
 * @param {object[]} attributes as the service declares them
 * @param {() => void} changed told when the question's filter is another one
 */
export function drawFilters(attributes, changed) {
  const usable = attributes.filter((one) => one.filterable && (one.values?.length || one.least !== undefined));
  for (const name of Object.keys(question.filter)) {
    if (!usable.some((one) => one.name === name)) delete question.filter[name]; // of another bundle
  }
  const focused = document.activeElement?.id;
  $("filters").replaceChildren(
    ...usable.map((one) => (one.values ? words(one, changed) : range(one, changed))),
    ...(usable.length ? [] : [el("p.note", {}, "This catalogue declares nothing to filter by.")]),
  );
  if (focused && $("filters").contains($(focused))) $(focused).focus();
}

function put(name, clause, changed) {
  if (clause === null) delete question.filter[name];
  else question.filter[name] = clause;
  changed();
}

function words(attribute, changed) {
  const clause = question.filter[attribute.name] ?? [];
  const ticked = new Set([clause.in ?? clause.equals ?? clause].flat().map(String));
  const offered = attribute.values.map((one) => one.value);
  const values = [...[...ticked].filter((one) => !offered.includes(one)).map((value) => ({ value })), ...attribute.values];
  const box = el("fieldset", {}, el("legend", {}, attribute.name));
  const list = el("div.values", {});
  const tick = () => {
    const chosen = [...list.querySelectorAll("input:checked")].map((input) => input.value);
    put(attribute.name, chosen.length ? chosen : null, changed);
  };
  const line = ({ value, items }, checked) =>
    el("label.check", {},
      el("input", { type: "checkbox", id: `tick-${attribute.name}-${value}`, value, checked, onchange: tick }),
      ` ${value}`, items === undefined ? null : el("small", {}, ` ${number.format(items)}`));
  list.append(...values.map((one) => line(one, ticked.has(one.value))));
  box.append(list);
  if (attribute.distinct > attribute.values.length) {
    const more = attribute.distinct - attribute.values.length;
    box.append(el("input.other", {
      id: `other-${attribute.name}`,
      placeholder: `one of ${number.format(more)} more …`,
      "aria-label": `Another ${attribute.name}`,
      onkeydown: (event) => {
        const value = event.target.value.trim();
        if (event.key !== "Enter" || !value) return;
        event.preventDefault();
        event.target.value = "";
        const there = [...list.querySelectorAll("input")].find((input) => input.value === value);
        if (there) there.checked = true;
        else list.prepend(line({ value }, true));
        tick();
      },
    }));
  }
  return box;
}

function range(attribute, changed) {
  const moments = attribute.kind === "timestamp";
  const clause = question.filter[attribute.name] ?? {};
  const make = (bound, label, end) => el("input", {
    id: `${bound}-${attribute.name}`,
    type: moments ? "date" : "number",
    step: "any",
    "aria-label": `${label} ${attribute.name}`,
    value: moments ? String(clause[bound] ?? "").slice(0, 10) : (clause[bound] ?? ""),
    placeholder: moments ? "" : String(end),
    ...(moments ? { min: String(attribute.least).slice(0, 10), max: String(attribute.most).slice(0, 10) } : {}),
    oninput: later,
  });
  const take = () => {
    const said = {};
    if (low.value) said.gte = moments ? `${low.value}T00:00:00Z` : Number(low.value);
    if (high.value) said.lte = moments ? `${high.value}T23:59:59Z` : Number(high.value);
    put(attribute.name, Object.keys(said).length ? said : null, changed);
  };
  const later = debounced(take, TYPING_MS);
  const low = make("gte", "Smallest", attribute.least);
  const high = make("lte", "Largest", attribute.most);
  return el("fieldset", {}, el("legend", {}, attribute.name), el("div.line", {}, low, el("span", {}, "to"), high));
}
