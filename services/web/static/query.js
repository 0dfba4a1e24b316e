// The query: text, a picture instead of it, and terms to add or subtract.

import { $, baseName, h } from "./dom.js";
import { t } from "./words.js";

/** Milliseconds without a key stroke after which a text is searched for. */
const PAUSE = 200;
const STEP = 0.25;
const MOST = 3;
/** A larger picture is brought down to this side first: the model sees less of it anyway. */
const SIDE = 1024;
const AS_IT_IS = 1024 * 1024;

/** Read a picture as base64. */
export async function readPicture(file) {
  let content = file;
  if (file.size > AS_IT_IS) {
    try {
      content = await smaller(file);
    } catch {
      content = file; // A format that the browser cannot read, such as HEIC: the service can.
    }
  }
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(content);
  });
}

async function smaller(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = h("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("no picture"))), "image/jpeg", 0.92);
  });
}

/**
 * @param change called with a function that changes the state, and `{ typed: true }` while typing
 * @param takePicture called with a file
 * @param dropPicture called to search without the picture
 */
export function createQuery({ change, takePicture, dropPicture }) {
  const text = $("text");
  let timer = 0;
  let composing = false;

  function typed() {
    clearTimeout(timer);
    if (composing) return; // Pinyin that is not yet a word.
    timer = setTimeout(() => change((draft) => { draft.text = text.value; }, { typed: true }), PAUSE);
  }

  text.addEventListener("compositionstart", () => { composing = true; });
  text.addEventListener("compositionend", () => { composing = false; typed(); });
  text.addEventListener("input", typed);
  $("box").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(timer);
    change((draft) => { draft.text = text.value; });
  });
  $("picture").addEventListener("change", (event) => {
    const [file] = event.target.files;
    if (file) takePicture(file);
    event.target.value = "";
  });
  $("by-clear").addEventListener("click", () => { dropPicture(); text.focus(); });
  $("add-plus").addEventListener("click", () => ask(1));
  $("add-minus").addEventListener("click", () => ask(-1));

  /** Ask for the text of a new term. */
  function ask(sign) {
    $("terms").querySelector(".new")?.remove();
    const label = t(sign > 0 ? "term-more" : "term-less");
    const input = h("input", { type: "text", maxlength: "200", placeholder: label, "aria-label": label });
    const item = h("li", { class: `term new ${sign > 0 ? "plus" : "minus"}` },
      h("span", { class: "sign", "aria-hidden": "true" }, sign > 0 ? "＋" : "－"), input);
    let done = false;
    const finish = (keep) => {
      if (done) return;
      done = true;
      item.remove();
      const said = input.value.trim();
      if (keep && said) change((draft) => draft.terms.push({ weight: sign * 0.5, text: said }));
    };
    input.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter") finish(true);
      if (event.key === "Escape") { event.stopPropagation(); finish(false); $(sign > 0 ? "add-plus" : "add-minus").focus(); }
    });
    input.addEventListener("blur", () => finish(true));
    $("terms").append(item);
    input.focus();
  }

  function term(state, place) {
    const one = state.terms[place];
    const name = one.text ?? baseName(one.image_id);
    const plus = one.weight > 0;
    const weigh = (by) => change((draft) => {
      const size = Math.min(MOST, Math.max(STEP, Math.abs(one.weight) + by));
      draft.terms[place].weight = plus ? size : -size;
    });
    const button = (sign, label, action) =>
      h("button", { type: "button", "aria-label": `${label}: ${name}`, title: label, onclick: action }, sign);
    return h("li", { class: `term ${plus ? "plus" : "minus"}` },
      h("span", { class: "sign", "aria-hidden": "true" }, plus ? "＋" : "－"),
      h("span", { class: "name", title: name }, name),
      button("‹", t("lighter"), () => weigh(-STEP)),
      h("output", { "aria-label": t("weight") }, Math.abs(one.weight).toFixed(2)),
      button("›", t("heavier"), () => weigh(STEP)),
      button("×", t("remove"), () => change((draft) => draft.terms.splice(place, 1))));
  }

  /** Show a state; the text box is left alone while somebody types in it. */
  function draw(state, picture) {
    if (document.activeElement !== text || !state.text) {
      if (text.value.trim() !== state.text.trim()) text.value = state.text;
    }
    $("terms").replaceChildren(...state.terms.map((_, place) => term(state, place)));
    const by = picture || state.like;
    $("by").hidden = !by;
    $("by-name").textContent = picture ? t("own") : state.like ? `${t("like-this")} ${baseName(state.like)}` : "";
    const image = $("by-picture");
    image.hidden = !(picture?.url || likePicture.get(state.like));
    const source = picture?.url ?? likePicture.get(state.like) ?? "";
    if (source) image.src = source;
    else image.removeAttribute("src");
  }

  /** Thumbnails of indexed pictures that were searched by, as far as they were on a wall. */
  const likePicture = new Map();

  return { draw, focus: () => { text.focus(); text.select(); }, remember: (hit) => likePicture.set(hit.image_id, hit.thumbnail), text };
}
