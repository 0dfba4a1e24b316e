// Uploading: files into the bucket, and what becomes of each until it is indexed or has failed.

import * as api from "./api.js";
import { $, bytes, h, icon, ICONS, openDialog } from "./dom.js";
import { explain, reasonOf, t } from "./words.js";

const AT_ONCE = 3;
/** Milliseconds between two looks at an upload that is not yet indexed, and after which it is slow. */
const LOOK = 1000;
const SLOW = 20_000;

/**
 * @param limits what /api/about says
 * @param actions like(hit), changed()
 */
export function createUpload(limits, actions) {
  const dialog = $("upload");
  const list = h("ul", { class: "files", "aria-live": "polite" });
  const caption = h("input", { type: "text", id: "upload-caption", maxlength: "500" });
  const waiting = [];
  let running = 0;

  function draw() {
    const choose = h("input", { type: "file", class: "hidden", id: "upload-files", accept: "image/*,.heic,.heif,.avif,.tif,.tiff,.jp2", multiple: true,
      onchange: (event) => { add([...event.target.files]); event.target.value = ""; } });
    const zone = h("div", { class: "zone" },
      icon("M12 16V4m0 0L7 9m5-5 5 5M4 17v3h16v-3"),
      h("p", {}, h("b", {}, t("upload-drop"))),
      h("p", {}, t("upload-or"), " ", h("label", { class: "button main", for: "upload-files" }, t("upload-choose"), choose)),
      h("p", { class: "muted" }, t("upload-limit", { size: bytes(limits.max_object_bytes) })));
    zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
    zone.addEventListener("dragleave", () => zone.classList.remove("over"));
    zone.addEventListener("drop", (event) => {
      event.preventDefault();
      event.stopPropagation();
      zone.classList.remove("over");
      add([...event.dataTransfer.files]);
    });
    dialog.replaceChildren(
      h("header", {}, h("h2", { id: "upload-title" }, t("upload-title")),
        h("button", { type: "button", class: "close", "aria-label": t("close"), onclick: () => dialog.close() }, icon(ICONS.close))),
      zone,
      h("label", { class: "field", for: "upload-caption" }, h("span", {}, t("upload-caption")), caption),
      list);
  }

  function open() {
    draw();
    openDialog(dialog);
  }

  function add(files) {
    for (const file of files) {
      const row = createRow(file);
      list.prepend(row.root);
      if (file.size > limits.max_object_bytes) {
        row.fail(t("upload-too-large", { size: bytes(file.size), most: bytes(limits.max_object_bytes) }));
      } else waiting.push({ file, row, caption: caption.value.trim() });
    }
    next();
  }

  function next() {
    while (running < AT_ONCE && waiting.length) {
      const one = waiting.shift();
      running += 1;
      send(one).finally(() => { running -= 1; next(); });
    }
  }

  async function send({ file, row, caption: words }) {
    let put;
    try {
      row.say(t("upload-sending", { percent: 0 }));
      put = await api.upload(file, words, (share) => {
        row.bar.value = share;
        row.say(t("upload-sending", { percent: Math.round(share * 100) }));
      });
    } catch (error) {
      const { what, detail } = explain(error);
      row.fail(`${t("upload-refused")}${detail || what}`);
      return;
    }
    row.root.classList.add("sent");
    row.say(t("upload-waiting"));
    follow(put, row); // Others may be sent meanwhile.
  }

  async function follow(put, row) {
    const began = performance.now();
    for (;;) {
      try {
        const state = await api.imageState(put.image_id, put.etag);
        if (state.state === "indexed") {
          row.done(state.hit);
          actions.changed();
          return;
        }
        if (state.state === "failed") {
          row.fail(`${t("upload-failed")}${reasonOf(state)}`);
          return;
        }
      } catch (error) {
        const { what } = explain(error);
        // Deleted or overwritten since; stores that hide what is missing say that it is not allowed.
        if (["NOT_FOUND", "PERMISSION_DENIED"].includes(error.code)) {
          row.fail(what);
          return;
        }
        row.say(what); // It may come back; what was sent is safe.
      }
      if (performance.now() - began > SLOW) row.say(t("upload-slow"));
      await new Promise((resolve) => setTimeout(resolve, LOOK));
    }
  }

  function createRow(file) {
    const picture = h("img", { alt: "", src: URL.createObjectURL(file) });
    const frame = h("span", { class: "frame" }, picture);
    picture.addEventListener("error", () => picture.replaceWith(icon(ICONS.picture)));
    const bar = h("progress", { max: "1", value: "0", "aria-label": file.name });
    const said = h("span", { class: "said" }, t("upload-wait"));
    const actionsOf = h("span", { class: "do" });
    const root = h("li", {}, frame,
      h("div", {}, h("b", { title: file.name }, file.name), bar, said), actionsOf);
    return {
      root,
      bar,
      say: (text) => { if (said.textContent !== text) said.textContent = text; },
      fail(text) {
        root.classList.add("failed");
        said.textContent = text;
      },
      done(hit) {
        root.classList.add("done");
        said.textContent = t("upload-indexed");
        picture.src = hit.thumbnail; // Formats such as HEIC show only now.
        frame.replaceChildren(picture);
        actionsOf.append(h("button", { type: "button", onclick: () => { dialog.close(); actions.like(hit); } }, t("upload-find")));
      },
    };
  }

  return { open, add, isOpen: () => dialog.open };
}
