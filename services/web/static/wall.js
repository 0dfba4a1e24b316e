// A wall of pictures: one ranking, page after page, with its waiting, empty and error states.

import * as api from "./api.js";
import { captionOf, h, icon, ICONS, relevanceOf } from "./dom.js";
import { explain, t } from "./words.js";

const PAGE = 40;
/** Milliseconds without an answer after which the page says that it is still looking. */
const SLOW = 1500;
/** Errors that pass by themselves; they are tried again. */
const PASSING = new Set(["UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "OFFLINE"]);
/** Wider and taller pictures are cropped on the wall, or one would take a row or a screen. */
const RATIOS = [0.45, 3.2];

export class Wall {
  /**
   * @param actions open(hit, wall), like(hit), empty(): what to say for no hits,
   *   answered(wall, page, milliseconds), failed()
   */
  constructor(actions) {
    this.actions = actions;
    this.hits = [];
    this.list = h("ul", { class: "wall" });
    this.notice = h("div", { class: "notice", role: "status" }); // Above pictures that may be old.
    this.state = h("div", { class: "state", role: "status" });
    this.heading = h("h2", { hidden: true });
    this.end = h("div", { class: "end" });
    this.root = h("div", { class: "column" }, this.heading, this.notice, this.list, this.state, this.end);
    this.observer = new IntersectionObserver(
      (entries) => entries.some((entry) => entry.isIntersecting) && this.more(),
      { rootMargin: "900px 0px" },
    );
    this.observer.observe(this.end);
  }

  /** Ask for something new; what was asked before is cancelled. */
  async show(body) {
    const inside = this.root.contains(document.activeElement);
    await this.fill(body);
    // Of what had the focus nothing may be left.
    if (!inside || document.activeElement !== document.body) return;
    (this.tiles[0] ?? this.state.querySelector("button") ?? this.root.closest("#results"))?.focus();
  }

  async fill(body) {
    this.body = body;
    this.token = "";
    this.complete = false;
    if (!this.hits.length) this.skeleton();
    this.root.classList.add("stale");
    const page = await this.ask("");
    if (!page) return;
    this.list.replaceChildren();
    this.hits = [];
    this.add(page);
    if (page.hits.length) return;
    const words = await this.actions.empty();
    if (!this.loading) this.say(...words);
  }

  async more() {
    if (!this.token || this.loading) return;
    const page = await this.ask(this.token);
    if (page) this.add(page);
  }

  /** Return a page, or nothing if it was cancelled or failed. */
  async ask(token) {
    this.stop();
    const control = new AbortController();
    this.control = control;
    this.loading = true;
    this.root.setAttribute("aria-busy", "true");
    const slow = setTimeout(() => this.notice.replaceChildren(
      h("p", {}, h("b", {}, t("slow"))), h("p", {}, t("slow-advice"))), SLOW);
    const began = performance.now();
    try {
      const page = await api.search({ ...this.body, top_k: PAGE, page_token: token }, control.signal);
      this.say();
      this.root.classList.remove("stale");
      this.actions.answered(this, page, performance.now() - began);
      return page;
    } catch (error) {
      if (error.name === "AbortError") return null;
      this.fail(error, token);
      return null;
    } finally {
      clearTimeout(slow);
      this.notice.replaceChildren();
      if (this.control === control) {
        this.loading = false;
        this.root.removeAttribute("aria-busy");
      }
    }
  }

  stop() {
    this.control?.abort();
    clearInterval(this.countdown);
  }

  close() {
    this.stop();
    this.observer.disconnect();
    this.root.remove();
  }

  add(page) {
    this.token = page.next_page_token;
    for (const hit of page.hits) {
      this.hits.push(hit);
      this.list.append(this.tile(hit));
    }
    const first = this.list.querySelector("button.open");
    if (first && !this.list.querySelector('button.open[tabindex="0"]')) first.tabIndex = 0;
    if (!this.token && this.hits.length) {
      this.say(t(this.hits.length >= 1000 ? "end-limit" : "end"));
    }
    // Still in sight: the next page at once.
    this.observer.unobserve(this.end);
    this.observer.observe(this.end);
  }

  tile(hit) {
    const caption = captionOf(hit);
    const score = hit.score.toFixed(3);
    const relevance = relevanceOf(hit);
    const copies = hit.duplicates.length;
    const image = h("img", {
      src: hit.thumbnail,
      alt: "",
      width: hit.width,
      height: hit.height,
      loading: hit.rank > 12 ? "lazy" : "eager",
      decoding: "async",
    });
    image.addEventListener("load", () => image.classList.add("there"));
    image.addEventListener("error", () => image.parentElement.classList.add("broken"));
    const open = h(
      "button",
      {
        type: "button",
        class: "open",
        tabindex: "-1",
        "aria-label": t("rank", { rank: hit.rank, caption, score }),
        onclick: () => this.actions.open(hit, this),
      },
      image,
    );
    const like = h(
      "button",
      {
        type: "button",
        class: "like",
        tabindex: "-1",
        "aria-label": `${t("like")}: ${caption}`,
        title: `${t("like")} (M)`,
        onclick: () => this.actions.like(hit),
      },
      icon(ICONS.like),
    );
    const tile = h(
      "li",
      { class: "tile", "data-image-id": hit.image_id },
      open,
      like,
      h(
        "p",
        { class: "under" },
        h("span", { class: "caption", title: caption }, caption),
        copies ? h("span", { class: "copies", title: t("copies-of", { count: copies }) }, `+${copies}`) : null,
        h("span", { class: "score", title: relevance ? `${t("score")} · ${t("relevance")} ${relevance}` : t("score") }, score),
      ),
    );
    const ratio = hit.width && hit.height ? hit.width / hit.height : 1;
    tile.style.setProperty("--ratio", Math.min(RATIOS[1], Math.max(RATIOS[0], ratio)).toFixed(4));
    tile.hit = hit;
    return tile;
  }

  /** Mark each picture with its place among the other wall's. */
  compare(other) {
    const ranks = new Map(other.hits.map((hit) => [hit.image_id, hit.rank]));
    for (const tile of this.list.children) {
      if (!tile.hit) continue;
      const rank = ranks.get(tile.hit.image_id);
      const moved = rank === undefined ? null : rank - tile.hit.rank;
      const [text, label] =
        moved === null
          ? [t("only-here"), t("only-here")]
          : moved === 0
            ? ["＝", t("same-rank")]
            : moved > 0
              ? [`↑${moved}`, t("up", { count: moved })]
              : [`↓${-moved}`, t("down", { count: -moved })];
      tile.querySelector(".moved")?.remove();
      const kind = moved === null ? "only" : moved > 0 ? "up" : moved < 0 ? "down" : "same";
      tile.append(h("span", { class: `moved ${kind}`, title: label, role: "img", "aria-label": label }, text));
    }
  }

  skeleton() {
    const ratios = [1.4, 0.8, 1.2, 1.6, 1, 0.75, 1.5, 1.1, 1.3, 0.9, 1.4, 1];
    this.list.replaceChildren(
      ...ratios.map((ratio) => {
        const tile = h("li", { class: "tile skeleton", "aria-hidden": "true" }, h("span", { class: "open" }));
        tile.style.setProperty("--ratio", ratio);
        return tile;
      }),
    );
  }

  /** Say something below the pictures; without words: nothing. */
  say(text = "", advice = "", ...more) {
    this.state.replaceChildren();
    if (text) this.state.append(h("p", {}, h("b", {}, text)));
    if (advice) this.state.append(h("p", {}, advice));
    this.state.append(...more);
  }

  fail(error, token) {
    const { what, advice, detail } = explain(error);
    if (!token) {
      this.list.replaceChildren();
      this.hits = [];
      this.root.classList.remove("stale");
    }
    const again = () => (token ? this.more() : this.show(this.body));
    // The same question again would be as wrong.
    const button = error.code === "INVALID_ARGUMENT" ? ""
      : h("button", { type: "button", class: "main", onclick: again }, icon(ICONS.retry), t("retry"));
    this.say(what, advice, detail ? h("p", { class: "detail" }, detail) : "", button);
    this.actions.failed();
    if (!PASSING.has(error.code)) return;
    let seconds = Math.max(3, Math.ceil(error.retryAfter ?? 0));
    const left = h("span", { class: "muted", "aria-hidden": "true" });
    button.after(left);
    const tick = () => {
      left.textContent = t("retry-in", { seconds });
      if (seconds-- > 0) return;
      clearInterval(this.countdown);
      again();
    };
    tick();
    this.countdown = setInterval(tick, 1000);
  }

  get tiles() {
    return [...this.list.querySelectorAll("button.open")].filter((one) => one.tagName === "BUTTON");
  }

  /** Move the focus from a tile; return whether there was somewhere to go. */
  move(from, key) {
    const tiles = this.tiles;
    if (!tiles.length) return false;
    const place = tiles.indexOf(from);
    let to = tiles[0];
    if (place >= 0) {
      if (key === "ArrowRight") to = tiles[place + 1];
      else if (key === "ArrowLeft") to = tiles[place - 1];
      else if (key === "Home") to = tiles[0];
      else if (key === "End") to = tiles.at(-1);
      else to = nearest(tiles, place, key === "ArrowDown" ? 1 : -1);
    }
    if (!to) return false;
    for (const one of tiles) one.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
    to.scrollIntoView({ block: "nearest" });
    if (tiles.indexOf(to) > tiles.length - 6) this.more();
    return true;
  }
}

/** Return the tile of the next row, down (1) or up (-1), whose middle is nearest. */
function nearest(tiles, place, step) {
  const from = tiles[place].getBoundingClientRect();
  const middle = from.left + from.width / 2;
  let row = null;
  let best = null;
  for (let one = place + step; one >= 0 && one < tiles.length; one += step) {
    const box = tiles[one].getBoundingClientRect();
    if (Math.abs(box.top - from.top) < 4) continue;
    row ??= box.top;
    if (Math.abs(box.top - row) >= 4) break;
    const distance = Math.abs(box.left + box.width / 2 - middle);
    if (!best || distance < best.distance) best = { distance, tile: tiles[one] };
  }
  return best?.tile;
}
