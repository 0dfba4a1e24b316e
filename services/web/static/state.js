// What is asked for, and how it stands in the address: all but a picture of one's own.

export const empty = () => ({
  text: "",
  like: "",
  terms: [],
  metadata: {},
  folder: "",
  bucket: "",
  release: "",
  versus: "",
  fold: "",
  expand: "",
});

/** Read the address: q, like, t=WEIGHT:TEXT or WEIGHT@IMAGE_ID, f=NAME:VALUE, in, bucket, r, vs,
 * fold=1, expand=1 or 0. */
export function fromAddress(search) {
  const given = new URLSearchParams(search);
  const state = empty();
  state.text = given.get("q") ?? "";
  state.like = given.get("like") ?? "";
  state.folder = given.get("in") ?? "";
  state.bucket = given.get("bucket") ?? "";
  state.release = given.get("r") ?? "";
  state.versus = given.get("vs") ?? "";
  if (given.get("fold") === "1") state.fold = "1";
  if (["0", "1"].includes(given.get("expand"))) state.expand = given.get("expand");
  for (const one of given.getAll("t")) {
    const found = /^(-?\d+(?:\.\d+)?)([:@])(.+)$/su.exec(one);
    if (!found || Number(found[1]) === 0) continue;
    const [, weight, kind, what] = found;
    state.terms.push({ weight: Number(weight), [kind === ":" ? "text" : "image_id"]: what });
  }
  for (const one of given.getAll("f")) {
    const colon = one.indexOf(":");
    if (colon > 0) (state.metadata[one.slice(0, colon)] ??= []).push(one.slice(colon + 1));
  }
  return state;
}

/** Return the address of a state. */
export function toAddress(state) {
  const given = new URLSearchParams();
  if (state.text.trim()) given.set("q", state.text);
  if (state.like) given.set("like", state.like);
  for (const term of state.terms) {
    given.append("t", term.weight + (term.text ? `:${term.text}` : `@${term.image_id}`));
  }
  for (const [name, values] of Object.entries(state.metadata)) {
    for (const value of values) given.append("f", `${name}:${value}`);
  }
  if (state.folder) given.set("in", state.folder);
  if (state.bucket) given.set("bucket", state.bucket);
  if (state.release) given.set("r", state.release);
  if (state.versus) given.set("vs", state.versus);
  if (state.fold) given.set("fold", state.fold);
  if (state.expand) given.set("expand", state.expand);
  const query = given.toString();
  return query ? `/?${query}` : "/";
}

/** Tell whether anything is asked for. */
export const asks = (state, picture) =>
  Boolean(state.text.trim() || state.like || picture || state.terms.length);

export const clearFilters = (state) => Object.assign(state, { metadata: {}, folder: "", bucket: "" });

export const isFiltered = (state) =>
  Boolean(state.folder || state.bucket || Object.keys(state.metadata).length);

/** Return the body of a search. `picture` is base64; text beside a picture becomes a term. */
export function toRequest(state, picture, release, otherwise) {
  const body = { terms: [], filter: { metadata: state.metadata }, text_release: release };
  for (const { weight, text, image_id } of state.terms) {
    body.terms.push(text ? { weight, text } : { weight, image_id });
  }
  const text = state.text.trim();
  if (picture !== undefined) body.image = picture; // Of an empty file, too: the answer says so.
  else if (state.like) body.image_id = state.like;
  if (text && (picture !== undefined || state.like)) body.terms.unshift({ weight: 1, text });
  else if (text) body.text = text;
  else if (picture === undefined && !asks(state)) body.text = otherwise;
  if (state.folder) body.filter.key_prefix = state.folder;
  if (state.bucket) body.filter.buckets = [state.bucket];
  if (state.fold) body.fold_duplicates = true;
  if (state.expand) body.expand = state.expand === "1"; // Else as the server is set.
  return body;
}
