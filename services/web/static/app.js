// Puts the page together: one state, which stands in the address, and what shows it.

import * as api from "./api.js";
import { $, h } from "./dom.js";
import { createFacets } from "./facets.js";
import { createQuery, readPicture } from "./query.js";
import { asks, clearFilters, fromAddress, isFiltered, toAddress, toRequest } from "./state.js";
import { createStatus } from "./status.js";
import { createUpload } from "./upload.js";
import { createViewer } from "./viewer.js";
import { Wall } from "./wall.js";
import { explain, language, number, speak, t } from "./words.js";

/** What is shown before anything is asked for. */
const OPENING = "建筑";
const PAGE_OF_WALL = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];

let state = fromAddress(location.search);
let picture = null; // One's own: { url, base64 }; never in the address.
let walls = [];
let towers = [];

const limits = { changes: false, max_object_bytes: 0, max_query_image_bytes: 0, bucket: "" };
const actions = { open: (hit, wall) => viewer.show(hit, wall), like, empty, answered, failed };
const viewer = createViewer({
  like,
  term: (hit, weight) => change((draft) => draft.terms.push({ weight, image_id: hit.image_id })),
});
const facets = createFacets(change);
const query = createQuery({ change, takePicture, dropPicture });
let upload = null;
let status = null;

/** Change what is asked for; typing replaces the last step of the history, all else is a new one. */
function change(how, { typed = false } = {}) {
  const before = toAddress(state);
  how(state);
  const address = toAddress(state);
  if (address !== before) {
    if (typed && history.state?.typed) history.replaceState({ typed }, "", address);
    else history.pushState({ typed }, "", address);
  }
  run();
}

function body(release) {
  return toRequest(state, picture?.base64, release, OPENING);
}

/** Search for the state as it is. */
function run() {
  const asked = asks(state, picture);
  document.body.classList.toggle("asked", asked);
  query.draw(state, picture);
  remark();
  $("fold").checked = Boolean(state.fold);
  $("expand").value = state.expand;
  const releases = state.versus ? [state.release, state.versus] : [state.release];
  while (walls.length > releases.length) walls.pop().close();
  while (walls.length < releases.length) {
    const wall = new Wall(actions);
    walls.push(wall);
    $("walls").append(wall.root);
  }
  document.body.classList.toggle("comparing", walls.length > 1);
  walls.forEach((wall, place) => {
    wall.heading.hidden = walls.length < 2;
    wall.heading.textContent = nameOf(releases[place]);
    wall.show(body(releases[place]));
  });
  facets.draw(state);
  facets.load(state, body(state.release));
  drawReleases();
}

/** Say under the box what is to be known of the question, and of what became of its texts. */
function remark({ truncated = false, expanded_texts: texts = [] } = {}) {
  const words = [
    picture ? t("not-in-address") : "",
    truncated ? t("truncated") : "",
    texts.length ? t("expanded", { texts: texts.join(" · ") }) : "",
  ].filter(Boolean);
  $("note").hidden = !words.length;
  $("note").replaceChildren(...words.map((one) => h("span", {}, one)));
}

function answered(wall, page, milliseconds) {
  wall.page = page;
  wall.heading.textContent = nameOf(page.text_release);
  if (wall !== walls[0] || page.hits[0]?.rank > 1) {
    setTimeout(summarise);
    return;
  }
  wall.took = milliseconds;
  if (page.truncated || page.expanded_texts.length) remark(page);
  setTimeout(summarise);
}

/** Say how many there are; called once the wall shows them. */
function summarise() {
  const [wall, other] = walls;
  if (!wall?.page) return;
  const count = number(wall.hits.length);
  const words = [
    asks(state, picture) ? "" : t("look"),
    t(wall.token ? "count-more" : "count-all", { count }),
    t("took", { ms: Math.round(wall.took) }),
  ];
  $("summary").textContent = wall.hits.length ? words.filter(Boolean).join(" · ") : "";
  if (other?.hits.length && wall.hits.length) {
    wall.compare(other);
    other.compare(wall);
  }
}

function failed() {
  $("summary").textContent = "";
}

/** What to say when there are no hits. */
async function empty() {
  $("summary").textContent = "";
  if (isFiltered(state)) {
    const clear = h("button", { type: "button", class: "main", onclick: () => change(clearFilters) }, t("clear-filters"));
    return [t("no-hits"), t("no-hits-filtered"), clear];
  }
  const known = await api.status().catch(() => null);
  if (known && known.objects === 0) return [t("no-images"), t("no-images-advice")];
  return [t("no-hits")];
}

function like(hit) {
  query.remember(hit);
  setPicture(null);
  change((draft) => Object.assign(draft, { like: hit.image_id, text: "", terms: [] }));
  scrollTo({ top: 0 });
  query.text.value = "";
}

function setPicture(next) {
  if (picture) URL.revokeObjectURL(picture.url);
  picture = next;
}

async function takePicture(file) {
  setPicture({ url: URL.createObjectURL(file), base64: await readPicture(file) });
  query.text.value = "";
  change((draft) => Object.assign(draft, { like: "", text: "", terms: [] }));
  scrollTo({ top: 0 });
}

function dropPicture() {
  setPicture(null);
  change((draft) => { draft.like = ""; });
}

const nameOf = (release) => {
  const found = towers.find((one) => (release ? one.name === release : one.active));
  if (!found) return release;
  const marks = [found.active ? t("active") : "", found.base ? t("base") : ""].filter(Boolean);
  return marks.length ? `${found.name} (${marks.join(t("and"))})` : found.name;
};

function drawReleases() {
  const usable = towers.filter((one) => one.state === "loaded");
  const several = usable.length > 1 || state.release || state.versus;
  $("release-label").hidden = $("versus-label").hidden = !several;
  if (!several) return;
  const options = (chosen, first, names) => [
    h("option", { value: "", selected: !chosen }, first),
    ...names.map((name) => h("option", { value: name, selected: name === chosen }, nameOf(name))),
  ];
  const active = usable.find((one) => one.active)?.name ?? "";
  const names = new Set([...usable.map((one) => one.name), state.release, state.versus].filter(Boolean));
  const first = state.release || active;
  $("release").replaceChildren(...options(state.release, nameOf(""), [...names].filter((one) => one !== active)));
  $("versus").replaceChildren(...options(state.versus, t("none"), [...names].filter((one) => one !== first)));
}

async function loadReleases() {
  try {
    towers = (await api.releases()).releases;
  } catch (error) {
    towers = []; // Nothing to choose from; the status view says why.
  }
  drawReleases();
  walls.forEach((wall) => { if (wall.page) wall.heading.textContent = nameOf(wall.page.text_release); });
}

function drawExamples() {
  $("examples").replaceChildren(...t("examples").map((text) =>
    h("button", { type: "button", onclick: () => { query.text.value = text; change((draft) => { draft.text = text; }); } }, text)));
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
}

const dark = () =>
  (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

/** What a browser keeps for this page; it may refuse to. */
const kept = {
  get: (name) => { try { return localStorage.getItem(name); } catch { return null; } },
  set: (name, value) => { try { localStorage.setItem(name, value); } catch { /* for this visit only */ } },
};

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const at = document.activeElement;
  const typing = at.matches("input:not([type=checkbox]), textarea, select");
  if (event.key === "Escape" && typing) at.blur();
  else if (event.key === "ArrowDown" && at === query.text) walls[0]?.move(null, "ArrowDown");
  else if (typing) return;
  else if (event.key === "/") query.focus();
  else if (PAGE_OF_WALL.includes(event.key)) {
    const wall = walls.find((one) => one.root.contains(at)) ?? walls[0];
    const inside = wall?.root.contains(at) || at === document.body || at === $("results");
    if (!inside || !wall.move(at, event.key)) {
      if (inside && event.key === "ArrowUp") query.focus();
      else return;
    }
  } else if (event.key.toLowerCase() === "m" && at.closest(".tile")?.hit) like(at.closest(".tile").hit);
  else return;
  event.preventDefault();
}

/** Dragging files shows what each half of the page would do with them. */
function drops() {
  const overlay = $("drop");
  const files = (event) => event.dataTransfer?.types.includes("Files") && !upload?.isOpen();
  const over = (element, take) => {
    element.addEventListener("dragover", (event) => { event.preventDefault(); element.classList.add("over"); });
    element.addEventListener("dragleave", () => element.classList.remove("over"));
    element.addEventListener("drop", (event) => {
      event.preventDefault();
      element.classList.remove("over");
      overlay.hidden = true;
      take([...event.dataTransfer.files]);
    });
  };
  addEventListener("dragenter", (event) => { if (files(event)) overlay.hidden = false; });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) overlay.hidden = true; });
  addEventListener("drop", (event) => { event.preventDefault(); overlay.hidden = true; });
  const search = ([file]) => file && takePicture(file);
  over($("drop-search"), search);
  over($("box"), search);
  over($("drop-upload"), (all) => { upload.open(); upload.add(all); });
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (!file || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    takePicture(file);
  });
}

function talk(name) {
  speak(name);
  $("language").textContent = language() === "en" ? "中文" : "English";
  $("language").lang = language() === "en" ? "zh-CN" : "en";
  drawExamples();
}

async function begin() {
  const theme = kept.get("theme");
  if (theme) setTheme(theme);
  talk(kept.get("language") ?? "zh");
  run();
  $("theme").addEventListener("click", () => {
    const next = dark() ? "light" : "dark";
    setTheme(next);
    kept.set("theme", next);
  });
  $("language").addEventListener("click", () => {
    const next = language() === "en" ? "zh" : "en";
    kept.set("language", next);
    talk(next);
    run();
  });
  $("release").addEventListener("change", (event) => change((draft) => { draft.release = event.target.value; }));
  $("versus").addEventListener("change", (event) => change((draft) => { draft.versus = event.target.value; }));
  $("fold").addEventListener("change", (event) => change((draft) => { draft.fold = event.target.checked ? "1" : ""; }));
  $("expand").addEventListener("change", (event) => change((draft) => { draft.expand = event.target.value; }));
  addEventListener("popstate", () => { setPicture(null); state = fromAddress(location.search); query.text.value = state.text; run(); });
  addEventListener("keydown", keys);
  drops();
  loadReleases();
  try {
    Object.assign(limits, await api.about());
  } catch (error) {
    $("note").hidden = false;
    $("note").textContent = explain(error).what;
  }
  status = createStatus(limits);
  upload = createUpload(limits, { like, changed: () => { if (!asks(state, picture)) run(); } });
  $("open-status").addEventListener("click", () => status.open());
  $("open-upload").addEventListener("click", () => upload.open());
  $("open-upload").hidden = $("drop-upload").hidden = !limits.changes;
}

begin();
