// Which bundle answers, and whether anything does: asked every few seconds while somebody looks at the page.

import { ask, key } from "./api.js";
import { $, el, number } from "./dom.js";

const EVERY_S = 3;
const MOST_WAIT_S = 10;

export class Health {
  bundle = null;
  #doing;
  #timer = 0;
  #failed = 0;
  #state = "connecting";
  #asking = false;

  /** @param {{back: () => void, swapped: (bundle: string) => void}} doing told when the service answers again, and of another bundle */
  constructor(doing) {
    this.#doing = doing;
    document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(this.#timer) : this.look()));
    addEventListener("online", () => this.look());
    $("trouble").querySelector("button").onclick = () => this.look();
  }

  get isWell() {
    return this.#state === "ready";
  }

  /** Looks now, and again and again from then on. */
  async look() {
    clearTimeout(this.#timer);
    if (this.#asking) return;
    this.#asking = true;
    let wait = EVERY_S;
    try {
      this.#well(await ask("v1/bundle"));
    } catch (problem) {
      wait = this.#unwell(problem);
    } finally {
      this.#asking = false;
    }
    clearTimeout(this.#timer);
    if (!document.hidden) this.#timer = setTimeout(() => this.look(), 1000 * wait);
  }

  #well(said) {
    const [before, was] = [this.bundle, this.#state];
    this.bundle = said.bundle;
    this.#failed = 0;
    const standing = said.standing?.registry?.error ?? said.standing?.online?.error;
    this.#become("ready", standing ? "Ready, with a problem" : "Ready", Boolean(standing));
    $("bundle").textContent = said.bundle;
    $("trouble").hidden = true;
    this.#about(said, standing);
    if (was !== "ready") this.#doing.back(was);
    else if (before !== said.bundle) this.#doing.swapped(said.bundle);
  }

  #unwell(problem) {
    this.#failed += 1;
    if (problem.status === 429) return Math.max(EVERY_S, problem.retryAfter);
    if (problem.wantsKey) {
      const refused = key.get() ? `The key was refused: ${problem.message}` : "This service asks for a key";
      this.#become("locked", "Locked", true);
      this.#trouble(`${refused}. Put yours into the corner above.`, false);
      if (this.#failed === 1) {
        $("corner").open = true;
        $("key").focus();
      }
      return MOST_WAIT_S;
    }
    const wait = Math.min(MOST_WAIT_S, 2 ** (this.#failed - 1));
    const why = problem.status === 0 ? `The service does not answer (${problem.message})` : `The service says: ${problem.message}`;
    this.#become("away", "Away", true);
    this.#trouble(`${why.replace(/\.$/, "")}. What is shown is what it said last; it is asked again every few seconds.`, true);
    return wait;
  }

  #become(state, words, isBad) {
    this.#state = state;
    if (isBad && !this.bundle) {
      $("results-heading").textContent = "No answer yet";
      $("results").setAttribute("aria-busy", "false");
    }
    $("health").textContent = words;
    $("dot").dataset.state = isBad ? (state === "ready" ? "odd" : "bad") : "good";
    document.body.dataset.health = state;
  }

  #trouble(text, again) {
    const [said] = $("trouble").getElementsByTagName("p");
    if (said.textContent !== text) said.textContent = text; // said once to who listens, not every time
    $("trouble").querySelector("button").hidden = !again;
    $("trouble").hidden = false;
  }

  #about(said, problem) {
    const about = said.about ?? {};
    const rows = [["Bundle", said.bundle]];
    if (about.created) rows.push(["Sealed", new Date(about.created).toLocaleString()]);
    for (const name of ["items", "users"]) {
      if (Number.isFinite(about[name])) rows.push([name === "items" ? "Items" : "Users", number.format(about[name])]);
    }
    const { wanted, live } = said.standing?.registry ?? {};
    if (wanted && wanted !== live) rows.push(["Wanted", wanted]);
    if (problem) rows.push(["Problem", problem]);
    $("about").replaceChildren(...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  }
}

