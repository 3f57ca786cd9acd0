// The page put together: a question, its answer as a list and on the map, and the service's health.

import { ask, key, Newest } from "./api.js";
import { combobox } from "./combobox.js";
import { $, el, number, say } from "./dom.js";
import { drawFilters } from "./filters.js";
import { Health } from "./health.js";
import { drawList, heading, nameReasons } from "./list.js";
import { ItemMap } from "./map.js";
import { details, forgetNames, keep, learn, nameBy, title } from "./names.js";
import { fromAddress, question, recentUsers, request, toAddress, whom } from "./question.js";

const SHOWN_HISTORY = 50; // entries drawn; a longer history is sent whole
const AGAIN_MS = 5_000; // after an answer of which less was done than could be
const BUSY_MS = 150; // an answer that is quicker does not flicker

const answers = new Newest();
const maps = new Newest();
const whys = new Newest();
let listed = [];
let again = 0;
let attributes = [];
let news = ""; // told with the next answer, which would drown it else

const map = new ItemMap({ pick: similar, name: nameOf });
const health = new Health({
  back: (was) => {
    if (was !== "connecting") news = "The service answers again. ";
    begin();
  },
  swapped: (bundle) => {
    news = `Bundle ${bundle} is in use now. `;
    begin();
  },
});

/** Asks the service what it declares, then for everything that is shown. */
async function begin() {
  forgetNames();
  try {
    attributes = (await ask("v1/attributes?values=12")).attributes;
  } catch (problem) {
    complain(problem);
    return;
  }
  nameBy(attributes);
  drawFilters(attributes, changed);
  drawColours();
  drawMap();
  refresh();
}

/** Asks the question anew; the address says it from now on. */
function changed() {
  history.pushState(null, "", toAddress());
  refresh();
}

async function refresh() {
  clearTimeout(again);
  const signal = answers.next();
  drawQuestion();
  const busy = setTimeout(() => $("results").setAttribute("aria-busy", "true"), BUSY_MS);
  const [path, body] = request();
  let answer;
  try {
    const learning = learn([...question.history.slice(-SHOWN_HISTORY), ...(question.like ? [question.like] : [])], signal);
    answer = await ask(path, { body, signal });
    await learning.catch((problem) => problem.status === 429 || complain(problem));
  } catch (problem) {
    if (!signal.aborted) complain(problem);
    return;
  } finally {
    clearTimeout(busy);
  }
  if (signal.aborted) return;
  $("results").setAttribute("aria-busy", "false");
  $("problem").hidden = true;
  keep(answer.items);
  listed = answer.items.map((item) => String(item.item_id));
  drawQuestion();
  drawList(answer, { similar, take, light: (id) => map.point(id) });
  light();
  say(`${news}${heading()}: ${answer.items.length} items, ${answer.strategy}`);
  news = "";
  if (answer.bundle !== health.bundle) health.look();
  if (answer.degraded?.length) again = setTimeout(refresh, AGAIN_MS);
  const pulls = answer.items.flatMap((item) => (item.because ?? []).map((pull) => pull.item_id));
  try {
    if (await learn(pulls, signal)) nameReasons();
  } catch {
    /* ids stand there instead */
  }
}

/** Says what is wrong with the question; what is wrong with the service, its health says. */
function complain(problem) {
  if (problem.name === "AbortError") return;
  $("results").setAttribute("aria-busy", "false");
  if (problem.isAway || problem.wantsKey) {
    health.look();
    return;
  }
  if (problem.status === 429) {
    const wait = problem.retryAfter || 1;
    $("problem").replaceChildren(el("p", {}, `${problem.message}. Asked again by itself.`));
    again = setTimeout(attributes.length ? refresh : begin, 1000 * wait);
  } else {
    $("results-heading").textContent = heading();
    $("list").replaceChildren();
    listed = [];
    light();
    $("problem").replaceChildren(el("p", {}, problem.message));
  }
  $("problem").hidden = false;
}

function drawQuestion() {
  if (document.activeElement !== $("user")) $("user").value = question.user;
  $("users").replaceChildren(...recentUsers(question.user).map((value) => el("option", { value })));
  $("k").value = String(question.k);
  $("seen").checked = question.seen;
  $("seen").disabled = Boolean(question.like);
  $("diversity").value = String(question.diversity);
  $("diversity-said").textContent = question.diversity ? String(question.diversity) : "off";
  const set = Object.keys(question.filter).length + (question.diversity ? 1 : 0);
  $("filter-count").textContent = set ? `(${set})` : "";
  $("clear").hidden = !set;
  $("forget").hidden = !question.history.length && !question.user;
  drawHistory();
  drawSeed();
}

function drawHistory() {
  const entries = question.history;
  const first = Math.max(0, entries.length - SHOWN_HISTORY);
  $("history-count").textContent = entries.length ? `(${number.format(entries.length)})` : "";
  $("history-note").hidden = Boolean(entries.length);
  const focus = $("history").contains(document.activeElement) ? Number(document.activeElement.dataset.place) : -1;
  $("history").start = first + 1;
  $("history").replaceChildren(
    ...entries.slice(first).map((id, offset) => {
      const place = first + offset;
      return el("li", {}, el("span", {}, title(id)), el("button", {
        type: "button", "data-place": String(place), "aria-label": `Take ${title(id)} out of the history`,
        onclick: () => drop(place),
      }, "×"));
    }),
  );
  if (focus >= 0) {
    const buttons = $("history").querySelectorAll("button");
    (buttons[Math.min(focus - first, buttons.length - 1)] ?? $("take")).focus();
  }
}

function drawSeed() {
  const seed = $("seed");
  seed.hidden = !question.like;
  if (!question.like) return;
  const id = question.like;
  if (seed.dataset.id !== id) {
    seed.dataset.id = id;
    const why = el("div", { role: "status" });
    seed.replaceChildren(
      el("p.more", {}),
      el("div.do", {},
        el("button", { type: "button", onclick: () => take(id) }, "Add to the history"),
        el("button", { type: "button", onclick: () => whyNot(id, why) }, "Why not recommended?"),
        el("button", { type: "button", onclick: backToList }, "Back to recommendations")),
      why,
    );
  }
  seed.firstChild.textContent = [...details(id), `id ${id}`].join(" · ");
}

async function whyNot(id, into) {
  const signal = whys.next();
  const body = { ...whom(), item_id: id, k: question.k };
  if (Object.keys(question.filter).length) body.filter = question.filter;
  if (question.diversity) body.diversity = question.diversity;
  try {
    const said = await ask("v1/why-not", { body, signal });
    into.replaceChildren(
      said.in_list
        ? el("p", {}, `It is recommended, at rank ${said.rank_among_eligible ?? said.rank}.`)
        : el("ul", {}, ...said.reasons.map((reason) => el("li", {}, el("strong", {}, `${reason.reason}: `), reason.detail))),
    );
  } catch (problem) {
    if (!signal.aborted) into.replaceChildren(el("p", {}, problem.message));
  }
}

function similar(id) {
  question.like = id;
  changed();
  $("results-heading").focus({ preventScroll: innerWidth > 700 });
}

function backToList() {
  question.like = "";
  changed();
  $("results-heading").focus({ preventScroll: true });
}

function take(id) {
  question.history.push(id);
  question.like = "";
  changed();
}

function drop(place) {
  question.history.splice(place, 1);
  changed();
}

function light() {
  map.light({
    list: listed,
    history: question.like ? [] : question.history,
    seed: question.like || null,
  });
}

async function nameOf(id) {
  try {
    await learn([id]);
  } catch {
    return id;
  }
  return [title(id), ...details(id)].join(" · ");
}

function drawColours() {
  const chosen = $("colour").value;
  const usable = attributes.filter((one) => one.filterable && one.values?.length);
  $("colour").replaceChildren(
    el("option", { value: "" }, "nothing"),
    ...usable.map((one) => el("option", { value: one.name }, one.name)),
  );
  const few = usable.find((one) => one.shown) ?? usable[0];
  $("colour").value = usable.some((one) => one.name === chosen) ? chosen : (few?.name ?? "");
}

async function drawMap() {
  const signal = maps.next();
  const by = $("colour").value ? `?attribute=${encodeURIComponent($("colour").value)}` : "";
  try {
    map.show(await ask(`v1/map${by}`, { signal }));
  } catch (problem) {
    if (!signal.aborted) $("map-note").textContent = `There is no map: ${problem.message}.`;
  }
}

combobox("find", similar);
combobox("take", take);
$("user-form").addEventListener("submit", (event) => {
  event.preventDefault();
  question.user = $("user").value.trim();
  question.like = "";
  changed();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set($("key").value.trim());
  $("corner").open = false;
  $("corner").firstElementChild.focus();
  health.look();
});
$("forget").onclick = () => {
  question.user = "";
  question.history = [];
  question.like = "";
  changed();
  $("user").value = "";
  $("user").focus();
};
$("clear").onclick = () => {
  question.filter = {};
  question.diversity = 0;
  drawFilters(attributes, changed);
  changed();
  $("narrow").firstElementChild.focus();
};
$("k").onchange = () => {
  question.k = Number($("k").value);
  changed();
};
$("seen").onchange = () => {
  question.seen = $("seen").checked;
  changed();
};
$("diversity").oninput = () => {
  question.diversity = Number($("diversity").value);
  history.replaceState(null, "", toAddress()); // not a step back for each of the slider's
  refresh();
};
$("colour").onchange = drawMap;
$("skip").onclick = (event) => {
  event.preventDefault();
  $("results-heading").focus();
};
document.addEventListener("click", (event) => {
  if (!$("corner").contains(event.target)) $("corner").open = false;
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && $("corner").open) {
    $("corner").open = false;
    $("corner").firstElementChild.focus();
  }
});
addEventListener("popstate", () => {
  fromAddress();
  drawFilters(attributes, changed);
  refresh();
});

$("key").value = key.get();
$("narrow").open = innerWidth > 700;
fromAddress();
drawQuestion();
health.look();
