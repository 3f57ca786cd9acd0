// Elements made and found; text is always text, never markup.

export const $ = (id) => document.getElementById(id);

/**
 * Makes an element.
 * @param {string} tag with its class, such as "p.note"
 * @param {object} [said] properties; `aria-…`, `data-…` and `role` become attributes, `on…` listeners
 * @param {...(Node|string|null)} children
 */
export function el(tag, said = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const made = document.createElement(name);
  if (classes.length) made.className = classes.join(" ");
  for (const [key, value] of Object.entries(said)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key.includes("-") || key === "role" || key === "for") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Tells people who listen rather than look. */
export function say(text) {
  $("said").textContent = text;
}

export const number = new Intl.NumberFormat("en");

/** 1st, 2nd, 3rd, 11th … */
export function nth(n) {
  const ending = n % 100 > 10 && n % 100 < 14 ? "th" : ({ 1: "st", 2: "nd", 3: "rd" }[n % 10] ?? "th");
  return `${number.format(n)}${ending}`;
}
