// Calls of /api. Every failure is an ApiError, with a code that the page has words for.

export class ApiError extends Error {
  constructor(status, body) {
    super(body.message ?? "");
    this.status = status;
    this.code = body.code ?? "INTERNAL";
    this.field = body.field ?? "";
    this.retryAfter = body.retry_after ?? null;
  }
}

async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(`/api/${path}`, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { code: "OFFLINE" });
  }
  const body = await answer.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return {};
  });
  if (!answer.ok) throw new ApiError(answer.status, body);
  return body;
}

const post = (path, body, signal, headers = {}) =>
  call(path, {
    method: "POST",
    body: JSON.stringify(body),
    signal,
    headers: { "Content-Type": "application/json", ...headers },
  });

/** Marks calls that change something: a page of another origin cannot send it. */
const OWN = { "X-CRA-Request": "1" };

export const about = () => call("about");
export const search = (body, signal) => post("search", body, signal);
export const facets = (body, signal) => post("facets", body, signal);
export const releases = () => call("releases");
export const status = () => call("status");
export const failures = (token = "") =>
  call(`failures?${new URLSearchParams({ page_token: token })}`);
export const retry = (body) => post("failures/retry", body, undefined, OWN);
export const imageState = (imageId, etag) =>
  call(`images/state?${new URLSearchParams({ image_id: imageId, etag })}`);

/** Upload a file; `progress` is told the share that has been sent. */
export function upload(file, caption, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", `/api/images?${new URLSearchParams({ name: file.name, caption })}`);
    for (const [name, value] of Object.entries(OWN)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => {
      if (event.lengthComputable) progress(event.loaded / event.total);
    };
    request.onerror = () => reject(new ApiError(0, { code: "OFFLINE" }));
    request.onload = () => {
      let body = {};
      try {
        body = JSON.parse(request.responseText);
      } catch {
        // Something between has answered; the status says what there is to say.
      }
      if (request.status < 300) resolve(body);
      else reject(new ApiError(request.status, body));
    };
    request.send(file);
  });
}
