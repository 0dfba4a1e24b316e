// How far the index follows the buckets, what has failed, and which releases answer.

import * as api from "./api.js";
import { $, h, icon, ICONS, openDialog } from "./dom.js";
import { causeOf, explain, number, reasonOf, t, when } from "./words.js";

/** Milliseconds between two looks while the view is open. */
const LOOK = 2000;

export function createStatus(limits) {
  const dialog = $("status");
  const counts = h("div", { class: "counts" });
  const problems = h("div", { class: "problems", role: "status" });
  const failed = h("section", { class: "failures" });
  const said = h("p", { class: "said", role: "status" });
  const towers = h("section", { class: "towers" });
  let timer = 0;
  let shown = "";

  async function look() {
    clearTimeout(timer);
    const [status, releases] = await Promise.allSettled([api.status(), api.releases()]);
    problems.replaceChildren();
    if (status.status === "fulfilled") drawCounts(status.value);
    else complain(status.reason);
    if (releases.status === "fulfilled") drawReleases(releases.value);
    else complain(releases.reason);
    const changed = status.status === "fulfilled" && String(status.value.failed) !== shown;
    if (limits.changes && changed) await drawFailures(String(status.value.failed));
    if (dialog.open) timer = setTimeout(look, LOOK);
  }

  function complain(error) {
    const { what, detail } = explain(error);
    problems.append(h("p", { class: "problem" }, h("b", {}, what), " ", detail));
  }

  function drawCounts(status) {
    const total = Math.max(1, status.objects);
    const bar = h("div", { class: "share", "aria-hidden": "true" });
    for (const name of ["indexed", "waiting", "failed"]) {
      const part = h("span", { class: name });
      part.style.flexGrow = String((status[name] ?? 0) / total);
      bar.append(part);
    }
    const known = (value) => (value === null ? t("unknown") : number(value));
    const figure = (name, value, kind = name) =>
      h("div", { class: `figure ${kind}` }, h("dt", {}, t(name)), h("dd", {}, value));
    counts.replaceChildren(
      bar,
      h("dl", {},
        figure("objects", number(status.objects)),
        figure("indexed", known(status.indexed)),
        figure("waiting", number(status.waiting)),
        figure("failed", number(status.failed)),
        status.unaccounted ? figure("unaccounted", known(status.unaccounted)) : null,
        figure("rate", t("rate-of", { count: status.rate.toFixed(1) }))),
      h("p", { class: "muted" }, `${t("reconciled")} ${status.reconciled_at ? when(status.reconciled_at) : t("never")} · ${t("as-of")} ${when(status.as_of)}`));
    for (const one of status.down) problems.append(h("p", { class: "problem" }, t("down"), one));
    if (status.reconcile_stopped) problems.append(h("p", { class: "problem" }, t("stopped"), status.reconcile_stopped));
  }

  function drawReleases(found) {
    towers.replaceChildren(
      h("h3", {}, t("releases")),
      h("ul", {}, ...found.releases.map((one) =>
        h("li", {}, h("b", {}, one.name),
          one.active ? h("span", { class: "badge on" }, t("active")) : null,
          one.base ? h("span", { class: "badge" }, t("base")) : null,
          h("span", { class: "muted" }, t(one.state)),
          one.problem ? h("p", { class: "problem" }, one.problem) : null))),
      h("p", { class: "muted" }, `${t("tower")} ${found.model} · ${found.image_tower} · ${found.device}`));
  }

  async function drawFailures(count) {
    let page;
    try {
      page = await api.failures();
    } catch (error) {
      complain(error);
      return;
    }
    shown = count;
    const rows = h("ul", {});
    const again = (body, row) => async (event) => {
      event.target.disabled = true;
      try {
        const done = await api.retry(body);
        said.textContent = t("retried", { count: done.retried });
        row?.remove();
        shown = "";
      } catch (error) {
        const { what, advice, detail } = explain(error);
        said.textContent = [what, advice, detail].filter(Boolean).join(" ");
        event.target.disabled = false;
      }
    };
    const add = ({ failures, next_page_token: token }) => {
      for (const one of failures) {
        const row = h("li", {},
          h("div", {}, h("b", { title: one.image_id }, one.image_id),
            h("p", {}, reasonOf(one), " ", h("code", {}, one.reason)),
            causeOf(one) ? h("p", { class: "muted", lang: "en" }, causeOf(one)) : null,
            h("p", { class: "muted" }, `${when(one.failed_at)} · ${t("attempts", { count: one.attempts })}`)));
        row.append(h("button", { type: "button", "aria-label": `${t("retry")}: ${one.image_id}`, onclick: again({ image_ids: [one.image_id] }, row) }, icon(ICONS.retry), t("retry")));
        rows.append(row);
      }
      more.hidden = !token;
      more.onclick = () => api.failures(token).then(add, complain);
    };
    const more = h("button", { type: "button", hidden: true }, t("more"));
    failed.replaceChildren(
      h("header", {}, h("h3", {}, t("failures")),
        page.failures.length ? h("button", { type: "button", onclick: again({ all: true }) }, icon(ICONS.retry), t("retry-all")) : null),
      said,
      page.failures.length ? rows : h("p", { class: "muted" }, t("no-failures")),
      more);
    add(page);
  }

  function open() {
    shown = "";
    said.textContent = "";
    if (!limits.changes) failed.replaceChildren(h("p", { class: "muted" }, t("read-only")));
    dialog.replaceChildren(
      h("header", {}, h("h2", { id: "status-title" }, t("status-title")),
        h("button", { type: "button", class: "close", "aria-label": t("close"), onclick: () => dialog.close() }, icon(ICONS.close))),
      problems, counts, failed, towers);
    openDialog(dialog, () => clearTimeout(timer));
    look();
  }

  return { open };
}
