// Small helpers to build what the page shows. Text is only ever set as text.

export const $ = (id) => document.getElementById(id);

/** Make an element: attributes, `on…` listeners, then children. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** Make an icon of one path. */
export function icon(path) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(SVG, "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

export const ICONS = {
  close: "M6 6l12 12M18 6 6 18",
  like: "M7 7h10v10H7zM4 14V4h10M10 20h10V10",
  left: "m15 5-7 7 7 7",
  right: "m9 5 7 7-7 7",
  retry: "M20 12a8 8 0 1 1-2.5-5.800M20 3v4.500h-4.500",
  picture: "M4 5h16v14H4zm0 11 5-5 4 4 3-3 4 4",
};

/** Show a dialog, so that a click beside it or Esc closes it. */
export function openDialog(dialog, closed) {
  if (!dialog.dataset.ready) {
    dialog.dataset.ready = "yes";
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
  }
  if (dialog.open) return;
  dialog.addEventListener("close", () => closed?.(), { once: true });
  dialog.showModal();
}

/** The name of a file without its folders. */
export const baseName = (key) => key.slice(key.lastIndexOf("/") + 1);

/** How far a hit stands above chance, 0 to 1, for people; empty where that is unknown. */
export const relevanceOf = (hit) => (hit.relevance === null ? "" : hit.relevance.toFixed(2));

const CAPTIONS = ["caption", "title", "标题", "描述", "description", "name"];

/** What to call a picture: its caption, else its file's name. */
export function captionOf(hit) {
  const name = CAPTIONS.find((one) => hit.metadata[one]);
  return name ? hit.metadata[name] : baseName(hit.key);
}

/** Shorten a number of bytes for people. */
export function bytes(count) {
  const units = ["B", "KB", "MB", "GB"];
  let step = 0;
  while (count >= 1024 && step < units.length - 1) {
    count /= 1024;
    step += 1;
  }
  return `${step && count < 10 ? count.toFixed(1) : Math.round(count)} ${units[step]}`;
}
