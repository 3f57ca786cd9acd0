// An input that offers items while one types: the combobox pattern of the ARIA Authoring Practices, list autocomplete.

import { ask, debounced, Newest } from "./api.js";
import { $, el, say } from "./dom.js";
import { details, keep, title } from "./names.js";

const OFFERED = 12;
const WAIT_MS = 120;

/**
 * Makes an input offer items.
 * @param {string} id of the input
 * @param {(id: string) => void} chosen told of the item that is chosen
 */
export function combobox(id, chosen) {
  const input = $(id);
  const list = el("ul.offer", { id: `${id}-offer`, role: "listbox", hidden: true });
  list.setAttribute("aria-label", "Items");
  input.after(list);
  for (const [name, value] of [["role", "combobox"], ["autocomplete", "off"], ["spellcheck", "false"],
    ["aria-autocomplete", "list"], ["aria-expanded", "false"], ["aria-controls", list.id]]) {
    input.setAttribute(name, value);
  }
  const newest = new Newest();
  let at = -1;

  function close() {
    newest.next();
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
    at = -1;
  }

  function point(to) {
    const options = list.querySelectorAll("[role=option]");
    if (!options.length) return;
    options[at]?.setAttribute("aria-selected", "false");
    at = (to + options.length) % options.length;
    options[at].setAttribute("aria-selected", "true");
    options[at].scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", options[at].id);
  }

  function choose(item) {
    input.value = "";
    close();
    chosen(item);
  }

  async function offer() {
    const signal = newest.next();
    let items;
    try {
      items = (await ask(`v1/items?limit=${OFFERED}&q=${encodeURIComponent(input.value.trim())}`, { signal })).items;
    } catch (error) {
      if (!signal.aborted) close(); // who watches the service says what is wrong
      return;
    }
    if (signal.aborted || document.activeElement !== input) return;
    keep(items);
    list.replaceChildren(
      ...items.map((item, place) => {
        const more = [...details(item.item_id), ...(title(item.item_id) === String(item.item_id) ? [] : [item.item_id])];
        return el("li", {
          id: `${list.id}-${place}`, role: "option", "aria-selected": "false", "data-id": String(item.item_id),
        }, el("span", {}, title(item.item_id)), el("small", {}, more.join(" · ")));
      }),
    );
    if (!items.length) list.append(el("li.none", { role: "presentation" }, "No item has these words"));
    at = -1;
    input.removeAttribute("aria-activedescendant");
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    say(items.length ? `${items.length} items; arrow keys choose` : "No item has these words");
  }

  const later = debounced(offer, WAIT_MS);
  input.addEventListener("input", () => later());
  input.addEventListener("focus", () => later());
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    const options = list.querySelectorAll("[role=option]");
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) offer();
      else point(event.key === "ArrowDown" ? at + 1 : at < 0 ? -1 : at - 1);
    } else if (event.key === "Enter") {
      event.preventDefault();
      const option = options[at] ?? (list.hidden ? null : options[0]);
      if (option) choose(option.dataset.id);
      else offer();
    } else if (event.key === "Escape" && !list.hidden) {
      event.preventDefault();
      close();
    }
  });
  list.addEventListener("pointerdown", (event) => event.preventDefault()); // the focus stays in the input
  list.addEventListener("click", (event) => {
    const option = event.target.closest("[role=option]");
    if (option) choose(option.dataset.id);
  });
}
