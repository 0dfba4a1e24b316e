// What the hits have in common, as filters.

import * as api from "./api.js";
import { $, h } from "./dom.js";
import { clearFilters, isFiltered } from "./state.js";
import { t } from "./words.js";

/**
 * @param change called with a function that changes the state
 */
export function createFacets(change) {
  const root = $("facets");
  let control = null;
  let known = null;

  function value(text, count, pressed, toggle) {
    return h("li", {},
      h("button", { type: "button", "aria-pressed": String(pressed), onclick: () => change(toggle) },
        h("span", {}, text), count === null ? null : h("small", {}, String(count))));
  }

  function group(name, values) {
    if (!values.length) return null;
    return h("details", { open: true }, h("summary", {}, name), h("ul", {}, ...values));
  }

  /** Put chosen values that the hits do not show any more before the counted ones. */
  function withChosen(counted, chosen) {
    const missing = chosen.filter((one) => !counted.some(({ value: other }) => other === one));
    return [...missing.map((one) => ({ value: one, count: null })), ...counted];
  }

  function metadata(state, name, counted) {
    const chosen = state.metadata[name] ?? [];
    return group(name, withChosen(counted, chosen).map(({ value: one, count }) =>
      value(one, count, chosen.includes(one), (draft) => {
        const rest = (draft.metadata[name] ?? []).filter((other) => other !== one);
        if (rest.length === (draft.metadata[name] ?? []).length) rest.push(one);
        if (rest.length) draft.metadata[name] = rest;
        else delete draft.metadata[name];
      })));
  }

  function single(state, field, name, counted) {
    if (counted.length < 2 && !state[field]) return null;
    const all = withChosen(counted, state[field] ? [state[field]] : []);
    return group(name, all.map(({ value: one, count }) =>
      value(one, count, state[field] === one, (draft) => {
        draft[field] = draft[field] === one ? "" : one;
      })));
  }

  function draw(state) {
    const found = known ?? { hits: 0, metadata: {}, folders: [], buckets: [] };
    const names = [...new Set([...Object.keys(state.metadata), ...Object.keys(found.metadata)])].sort();
    const groups = [
      ...names.map((name) => metadata(state, name, found.metadata[name] ?? [])),
      single(state, "folder", t("folders"), found.folders),
      single(state, "bucket", t("buckets"), found.buckets),
    ].filter(Boolean);
    root.hidden = !groups.length;
    if (!groups.length) {
      root.replaceChildren();
      return;
    }
    const open = matchMedia("(min-width: 56rem)").matches || root.querySelector(".all")?.open;
    const clear = h("button", { type: "button", class: "clear", onclick: () => change(clearFilters) }, t("clear-filters"));
    root.replaceChildren(
      h("details", { class: "all", open }, h("summary", {}, t("filters")),
        isFiltered(state) ? clear : null, ...groups,
        found.hits ? h("p", { class: "muted" }, t("of-first", { count: found.hits })) : null));
  }

  /** Count anew for a search. */
  async function load(state, body) {
    control?.abort();
    control = new AbortController();
    try {
      known = await api.facets(body, control.signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      known = null; // The wall says what is wrong.
    }
    draw(state);
  }

  return { load, draw };
}
