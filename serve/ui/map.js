// The map: every item a dot, painted once; what is lit up is painted over it.

import { $, el, number } from "./dom.js";

const SIDE = 10_000; // coordinates of the API
const NEAR = 10; // pixels from a dot that still point at it
const CELLS = 128; // a side of the grid in which the nearest dot is looked for
const MOST_ZOOM = 40;

export class ItemMap {
  #canvas = $("map");
  #base = document.createElement("canvas");
  #ids = [];
  #x = [];
  #y = [];
  #codes = null;
  #values = [];
  #row = new Map();
  #grid = [];
  #zoom = 1;
  #left = 0; // of the window, in coordinates of the API
  #top = 0;
  #lit = { list: [], history: [], seed: null, one: null };
  #waiting = 0;
  #drag = null;

  /** @param {{pick: (id: string) => void, name: (id: string) => Promise<string>}} doing */
  constructor(doing) {
    const canvas = this.#canvas;
    new ResizeObserver(() => this.#repaint()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#repaint());
    canvas.addEventListener("pointermove", (event) => this.#move(event, doing));
    canvas.addEventListener("pointerleave", () => this.#tell(null));
    canvas.addEventListener("pointerdown", (event) => {
      this.#drag = { x: event.offsetX, y: event.offsetY, moved: false };
    });
    addEventListener("pointerup", () => setTimeout(() => (this.#drag = null)));
    canvas.addEventListener("click", (event) => {
      if (this.#drag?.moved) return;
      const row = this.#nearest(event.offsetX, event.offsetY);
      if (row >= 0) doing.pick(this.#ids[row]);
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.#scale(event.deltaY < 0 ? 1.25 : 0.8, event.offsetX, event.offsetY);
    }, { passive: false });
    $("in").onclick = () => this.#scale(1.6);
    $("out").onclick = () => this.#scale(1 / 1.6);
    $("whole").onclick = () => this.#scale(0);
  }

  /** Shows another map, as the API gives it. */
  show(said) {
    this.#ids = said.items.map(String);
    this.#x = said.x;
    this.#y = said.y;
    this.#codes = said.codes ?? null;
    this.#values = said.values ?? [];
    this.#row = new Map(this.#ids.map((id, row) => [id, row]));
    this.#grid = Array.from({ length: CELLS * CELLS }, () => []);
    for (let row = 0; row < this.#ids.length; row++) this.#grid[this.#cell(this.#x[row], this.#y[row])].push(row);
    const [first, second] = said.explained.map((share) => Math.round(100 * share));
    $("map-note").textContent =
      `${number.format(this.#ids.length)} items by their vectors, laid flat (principal components): ` +
      `this way shows ${first} % of how they differ, that way ${second} %. Near here is not always near there.`;
    this.#legend();
    this.#repaint();
    this.#describe();
  }

  /** Lights items up: those of the list (in its order), of the history, and the one that others are similar to. */
  light({ list, history, seed }) {
    this.#lit = { list: list.map(String), history: history.map(String), seed, one: this.#lit.one };
    this.#describe();
    this.#paint();
  }

  /** Points at one item, or at none. */
  point(id) {
    this.#lit.one = id;
    this.#paint();
  }

  #describe() {
    const { list, history, seed } = this.#lit;
    const there = list.filter((id) => this.#row.has(id)).length;
    const parts = [`Map of ${number.format(this.#ids.length)} items; ${there} of the list are lit up`];
    if (history.length) parts.push(`${history.length} of the history are squares`);
    if (seed) parts.push("the item that others are similar to is a diamond");
    this.#canvas.setAttribute("aria-label", `${parts.join(", ")}.`);
  }

  #legend() {
    $("legend").replaceChildren(
      ...this.#values.map((value, code) => el("li", {}, el("span.swatch", { "data-code": String(code) }), value)),
      ...(this.#codes?.includes(-1) ? [el("li", {}, el("span.swatch", {}), "others")] : []),
    );
    for (const swatch of $("legend").querySelectorAll("[data-code]")) {
      swatch.style.background = `var(--c${swatch.dataset.code})`;
    }
  }

  #repaint() {
    const canvas = this.#canvas;
    const ratio = Math.min(2, devicePixelRatio || 1);
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (!width || !height) return;
    for (const one of [canvas, this.#base]) {
      one.width = width;
      one.height = height;
    }
    const pen = this.#base.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const colours = Array.from({ length: 8 }, (_, code) => style.getPropertyValue(`--c${code}`));
    const size = Math.max(1.5, Math.min(7 * ratio, (ratio * 220 * Math.sqrt(this.#zoom)) / Math.sqrt(this.#ids.length + 1)));
    // One pass a colour: changing it for each of 50,000 dots would cost more than painting them.
    const order = Array.from({ length: 9 }, () => []);
    for (let row = this.#ids.length - 1; row >= 0; row--) order[(this.#codes?.[row] ?? -1) + 1].push(row);
    order.forEach((rows, code) => {
      pen.fillStyle = code ? colours[code - 1] : style.getPropertyValue("--dot");
      pen.globalAlpha = code ? 0.8 : 0.6;
      for (const row of rows) {
        const [x, y] = this.#at(row, width, height);
        pen.fillRect(x - size / 2, y - size / 2, size, size);
      }
    });
    this.#paint();
  }

  #paint() {
    cancelAnimationFrame(this.#waiting);
    this.#waiting = requestAnimationFrame(() => {
      const canvas = this.#canvas;
      const { width, height } = canvas;
      if (!width || !this.#base.width) return;
      const ratio = width / canvas.clientWidth;
      const pen = canvas.getContext("2d");
      const style = getComputedStyle(document.documentElement);
      const [ground, accent, ink] = ["--panel", "--accent", "--ink"].map((name) => style.getPropertyValue(name));
      pen.clearRect(0, 0, width, height);
      pen.globalAlpha = this.#lit.list.length ? 0.7 : 1;
      pen.drawImage(this.#base, 0, 0);
      pen.globalAlpha = 1;
      pen.lineWidth = 1.5 * ratio;
      const shape = (id, draw, fill) => {
        const row = this.#row.get(id);
        if (row === undefined) return;
        const [x, y] = this.#at(row, width, height);
        pen.beginPath();
        draw(x, y, ratio * (id === this.#lit.one ? 12 : 7));
        pen.fillStyle = fill;
        pen.strokeStyle = ground;
        pen.fill();
        pen.stroke();
        return [x, y];
      };
      const square = (x, y, r) => pen.rect(x - 0.8 * r, y - 0.8 * r, 1.6 * r, 1.6 * r);
      const diamond = (x, y, r) => {
        pen.moveTo(x, y - 1.4 * r);
        pen.lineTo(x + 1.4 * r, y);
        pen.lineTo(x, y + 1.4 * r);
        pen.lineTo(x - 1.4 * r, y);
        pen.closePath();
      };
      for (const id of this.#lit.history) shape(id, square, ink);
      pen.font = `600 ${9 * ratio}px system-ui, sans-serif`;
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      for (let place = this.#lit.list.length - 1; place >= 0; place--) {
        const at = shape(this.#lit.list[place], (x, y, r) => pen.arc(x, y, r, 0, 7), accent);
        if (!at || place > 98) continue;
        pen.fillStyle = ground;
        pen.fillText(String(place + 1), at[0], at[1] + ratio * 0.5);
      }
      if (this.#lit.seed) shape(this.#lit.seed, diamond, ink);
      const one = this.#lit.one;
      if (one && one !== this.#lit.seed && !this.#lit.list.includes(one) && !this.#lit.history.includes(one)) {
        shape(one, (x, y, r) => pen.arc(x, y, r / 2, 0, 7), accent);
      }
    });
  }

  #margin(width) {
    return 0.03 * width;
  }

  #at(row, width, height) {
    const margin = this.#margin(width);
    const scale = (Math.min(width, height) - 2 * margin) / SIDE;
    return [
      (width - SIDE * scale) / 2 + (this.#x[row] - this.#left) * scale * this.#zoom,
      (height - SIDE * scale) / 2 + (this.#y[row] - this.#top) * scale * this.#zoom,
    ];
  }

  /** The coordinates at a place of the canvas, and how many of them a pixel is. */
  #under(px, py) {
    const [width, height] = [this.#canvas.clientWidth, this.#canvas.clientHeight];
    const scale = (Math.min(width, height) - 2 * this.#margin(width)) / SIDE;
    return [
      (px - (width - SIDE * scale) / 2) / (scale * this.#zoom) + this.#left,
      (py - (height - SIDE * scale) / 2) / (scale * this.#zoom) + this.#top,
      1 / (scale * this.#zoom),
    ];
  }

  #scale(by, px = this.#canvas.clientWidth / 2, py = this.#canvas.clientHeight / 2) {
    const [x, y] = this.#under(px, py);
    const before = this.#zoom;
    this.#zoom = by ? Math.min(MOST_ZOOM, Math.max(1, before * by)) : 1;
    const kept = before / this.#zoom; // what lies under the pointer stays there
    this.#left = this.#zoom === 1 ? 0 : x - (x - this.#left) * kept;
    this.#top = this.#zoom === 1 ? 0 : y - (y - this.#top) * kept;
    this.#repaint();
  }

  #cell(x, y) {
    const place = (value) => Math.min(CELLS - 1, Math.max(0, Math.floor((value / (SIDE + 1)) * CELLS)));
    return place(y) * CELLS + place(x);
  }

  #nearest(px, py) {
    const [x, y, pixel] = this.#under(px, py);
    const reach = NEAR * pixel;
    let [best, least] = [-1, reach * reach];
    const step = SIDE / CELLS;
    for (let cy = y - reach; cy <= y + reach + step; cy += step) {
      for (let cx = x - reach; cx <= x + reach + step; cx += step) {
        for (const row of this.#grid[this.#cell(cx, cy)] ?? []) {
          const far = (this.#x[row] - x) ** 2 + (this.#y[row] - y) ** 2;
          if (far < least) [best, least] = [row, far];
        }
      }
    }
    return best;
  }

  async #move(event, doing) {
    if (event.buttons && this.#drag && this.#zoom > 1) {
      const [dx, dy] = [event.offsetX - this.#drag.x, event.offsetY - this.#drag.y];
      if (this.#drag.moved || Math.hypot(dx, dy) > 4) {
        const [, , pixel] = this.#under(0, 0);
        this.#left -= dx * pixel;
        this.#top -= dy * pixel;
        this.#drag = { x: event.offsetX, y: event.offsetY, moved: true };
        this.#repaint();
      }
      return;
    }
    const row = this.#nearest(event.offsetX, event.offsetY);
    this.#tell(row < 0 ? null : this.#ids[row], doing, event.offsetX, event.offsetY);
  }

  async #tell(id, doing, px, py) {
    this.#canvas.style.cursor = id ? "pointer" : "";
    const tip = $("tip");
    if (!id) {
      tip.hidden = true;
      if (this.#lit.one) this.point(null);
      return;
    }
    if (this.#lit.one !== id) this.point(id);
    const name = await doing.name(id);
    if (this.#lit.one !== id || name === null) return;
    tip.textContent = name;
    tip.hidden = false;
    tip.style.left = `${Math.min(px + 12, this.#canvas.clientWidth - tip.offsetWidth - 4)}px`;
    tip.style.top = `${Math.max(4, py - tip.offsetHeight - 8)}px`;
  }
}
