// What items are called: kept from every answer, and looked up where an answer names an id only.

import { ask } from "./api.js";

const MOST = 5_000; // items kept; the oldest go first
const AT_ONCE = 100;
const known = new Map();
let nameOf = null; // the attribute that stands for the item

/** Chooses what items are called by: the first text that is shown, else the first word. */
export function nameBy(attributes) {
  const shown = attributes.filter((one) => one.shown);
  nameOf = (shown.find((one) => one.kind === "text") ?? shown.find((one) => one.kind === "categorical"))?.name ?? null;
}

export function keep(items) {
  for (const one of items) {
    const id = String(one.item_id);
    known.delete(id);
    known.set(id, one.attributes);
  }
  for (const id of known.keys()) {
    if (known.size <= MOST) break;
    known.delete(id);
  }
}

export const forgetNames = () => known.clear();

export function title(id) {
  const said = known.get(String(id))?.[nameOf];
  return said === undefined || said === "" ? String(id) : String(said);
}

/** What else is shown of an item, as words. */
export function details(id) {
  const said = [];
  for (const [name, value] of Object.entries(known.get(String(id)) ?? {})) {
    if (name === nameOf) continue;
    const text = Array.isArray(value) ? value.join(", ") : String(value);
    if (text) said.push(/^\d{4}-\d\d-\d\dT/.test(text) ? text.slice(0, 10) : text);
  }
  return said;
}

/** Looks up what is not known of some items. */
export async function learn(ids, signal) {
  const wanted = [...new Set(ids.map(String))].filter((id) => !known.has(id));
  for (let start = 0; start < wanted.length; start += AT_ONCE) {
    const items = wanted.slice(start, start + AT_ONCE);
    keep((await ask("v1/items:lookup", { body: { items }, signal })).items);
  }
  return wanted.length > 0;
}
