// An answer as a list: each item with its score, why it is there, and what can be done with it.

import { $, el, nth } from "./dom.js";
import { details, title } from "./names.js";
import { question } from "./question.js";

const STRATEGIES = {
  personalised: "the bundle knows this user",
  history: "from the history in this request",
  popular: "nothing is known of who asks, so what most take",
  similar: "nearest by their vectors",
};

export function heading() {
  if (question.like) return `Similar to ${title(question.like)}`;
  const taken = question.history.length;
  const since = taken ? `${taken} ${taken === 1 ? "item" : "items"}` : "";
  if (question.user) return `For user ${question.user}${since ? ` and ${since} since` : ""}`;
  return since ? `For a history of ${since}` : "Popular now";
}

/**
 * Shows an answer. Rows that were there stay, and so does the focus in them.
 * @param {object} answer of recommendations or similar
 * @param {{similar: (id: string) => void, take: (id: string) => void, light: (id: string|null) => void}} doing
 */
export function drawList(answer, doing) {
  const list = $("list");
  const focus = focusIn(list);
  const before = new Map([...list.children].map((row) => [row.dataset.id, row]));
  const scores = answer.items.map((item) => item.score);
  const low = Math.min(0, ...scores);
  const span = Math.max(...scores, 0) - low || 1;
  list.replaceChildren(
    ...answer.items.map((item) => {
      const row = before.get(String(item.item_id)) ?? el("li", { "data-id": String(item.item_id) });
      fill(row, item, (item.score - low) / span, doing);
      return row;
    }),
  );
  if (!answer.items.length) list.append(el("li.none", {}, "Nothing passes. Take a filter away, or let seen items come back."));
  refocus(list, focus);
  $("results-heading").textContent = heading();
  const busy = answer.degraded?.includes("popular");
  $("strategy").textContent = busy ? "the service is busy, so what most take" : (STRATEGIES[answer.strategy] ?? "");
  $("strategy").dataset.strategy = answer.strategy;
  $("notes").replaceChildren(
    ...(answer.unknown_items ?? []).slice(0, 10).map((id) => el("li", {}, `The bundle does not know item ${id}.`)),
    ...(answer.relaxed ?? []).map((rule) => el("li", {}, `${rule} could not be kept, or fewer items would be here.`)),
    ...(answer.degraded ?? []).map((what) => el("li", {}, `Done with less for now: ${what}. It is asked again.`)),
  );
}

function fill(row, item, share, doing) {
  const id = String(item.item_id);
  const name = title(id);
  const more = details(id);
  const bar = el("span.bar", { "aria-hidden": "true" });
  bar.style.setProperty("--share", share.toFixed(3));
  const moved = item.rank_before_rules && item.rank_before_rules !== item.rank;
  row.replaceChildren(
    el("span.rank", {}, String(item.rank)),
    el("div.what", {},
      el("h3", {}, name),
      el("p.more", {}, [...more, ...(name === id ? [] : [`id\u00a0${id}`])].join(" · "))),
    el("span.score", { title: "inner product of the vectors, or the popularity" }, short(item.score), bar),
    el("div.do", {},
      el("button", { type: "button", "aria-label": `Similar to ${name}`, "data-do": "similar", onclick: () => doing.similar(id) }, "Similar"),
      el("button", { type: "button", "aria-label": `Add ${name} to the history`, "data-do": "take", onclick: () => doing.take(id) }, "Add")),
    item.because?.length || moved
      ? el("div.why", {},
        item.because?.length ? because(item.because, doing) : null,
        moved ? el("p", {}, `${nth(item.rank_before_rules)} of all items before filters, rules and what was seen`) : null)
      : "",
  );
  row.onpointerenter = row.onfocus = () => doing.light(id);
  row.onpointerleave = () => doing.light(null);
}

function because(pulls, doing) {
  const said = el("p.because", {}, "Because of ");
  const felt = pulls.filter((pull, place) => !place || pull.share >= 0.005);
  felt.forEach((pull, place) => {
    const id = String(pull.item_id);
    const name = title(id);
    said.append(
      place ? ", " : "",
      el("a", {
        href: `#like=${encodeURIComponent(id)}`, title: "See similar ones", "data-id": id, "data-do": `pull-${place}`,
        onclick: (event) => {
          if (event.ctrlKey || event.metaKey || event.shiftKey) return;
          event.preventDefault();
          doing.similar(id);
        },
        onpointerenter: () => doing.light(id),
      }, name),
      `\u00a0${Math.round(100 * pull.share)}\u00a0%`,
    );
  });
  return said;
}

/** Names of what pulled, once they are known. */
export function nameReasons() {
  for (const link of $("list").querySelectorAll(".because a")) link.textContent = title(link.dataset.id);
}

/** Where the focus is in a list: of which row, at which place, and on which of its buttons. */
function focusIn(list) {
  const row = list.contains(document.activeElement) ? document.activeElement.closest("li") : null;
  if (!row) return null;
  return { id: row.dataset.id, place: [...list.children].indexOf(row), act: document.activeElement.dataset.do };
}

/** Puts it back: to the same item, or to whatever stands at its place now. */
function refocus(list, focus) {
  if (!focus) return;
  const rows = [...list.children];
  const row = rows.find((one) => one.dataset.id === focus.id) ?? rows[Math.min(focus.place, rows.length - 1)];
  const button = row?.querySelector(`[data-do="${focus.act}"]`) ?? row?.querySelector("button") ?? $("results-heading");
  button.focus({ preventScroll: true });
}

function short(score) {
  const size = Math.abs(score);
  return size >= 100 ? score.toFixed(0) : size >= 0.1 || size === 0 ? score.toFixed(2) : score.toPrecision(2);
}
