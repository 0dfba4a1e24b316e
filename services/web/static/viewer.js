// One picture, large, with all that is known of it.

import { $, captionOf, h, icon, ICONS, openDialog, relevanceOf } from "./dom.js";
import { t, when } from "./words.js";

/**
 * @param actions like(hit), term(hit, weight)
 */
export function createViewer(actions) {
  const dialog = $("viewer");
  let wall = null;
  let hit = null;
  let leaving = false;

  function step(by) {
    const place = wall.hits.indexOf(hit) + by;
    if (place >= wall.hits.length - 4) wall.more();
    if (wall.hits[place]) show(wall.hits[place], wall);
  }

  function act(action) {
    leaving = true;
    dialog.close();
    action();
  }

  function row(name, value) {
    return value ? [h("dt", {}, name), h("dd", {}, value)] : [];
  }

  function show(what, where) {
    hit = what;
    wall = where;
    const caption = captionOf(hit);
    const image = h("img", { src: hit.view, alt: caption, width: hit.width, height: hit.height });
    image.style.setProperty("--behind", `url("${hit.thumbnail}")`);
    const others = Object.entries(hit.metadata).filter(([, value]) => value !== caption);
    const relevance = relevanceOf(hit);
    const copies = hit.duplicates.map((one) => h("li", {}, one));
    const button = (name, path, label, action) =>
      h("button", { type: "button", class: name, "aria-label": label, title: label, onclick: action }, icon(path));
    dialog.replaceChildren(
      h("div", { class: "stage" }, image,
        button("previous", ICONS.left, t("previous"), () => step(-1)),
        button("next", ICONS.right, t("next"), () => step(1))),
      h("div", { class: "about" },
        button("close", ICONS.close, t("close"), () => dialog.close()),
        h("h2", {}, caption),
        h("p", { class: "rank" }, `#${hit.rank} · ${t("score")} `, h("b", {}, hit.score.toFixed(3)),
          ...(relevance ? [` · ${t("relevance")} `, h("b", {}, relevance)] : [])),
        h("div", { class: "actions" },
          h("button", { type: "button", class: "main", onclick: () => act(() => actions.like(hit)) },
            icon(ICONS.like), t("like")),
          h("button", { type: "button", onclick: () => act(() => actions.term(hit, 0.5)) }, `＋ ${t("plus")}`),
          h("button", { type: "button", onclick: () => act(() => actions.term(hit, -0.5)) }, `－ ${t("minus")}`),
          h("a", { class: "button", href: hit.original, target: "_blank", rel: "noopener" }, t("original"))),
        h("dl", {},
          ...others.flatMap(([name, value]) => row(name, value)),
          ...row(t("where"), hit.image_id),
          ...row(t("size"), `${hit.width} × ${hit.height}`),
          ...row(t("indexed_at"), when(hit.ingested_at)),
          ...row(t("copies"), copies.length ? h("ul", {}, ...copies) : ""))),
    );
    openDialog(dialog, () => {
      if (leaving) {
        leaving = false;
        return;
      }
      const tile = wall.tiles.find((one) => one.parentElement.hit === hit);
      tile?.focus();
    });
  }

  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight" || event.key === "ArrowDown") step(1);
    else if (event.key === "ArrowLeft" || event.key === "ArrowUp") step(-1);
    else if (event.key.toLowerCase() === "m" && !event.ctrlKey && !event.metaKey) {
      act(() => actions.like(hit));
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });

  return { show };
}
