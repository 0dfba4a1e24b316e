// Words of the page, in Chinese and English.

const ZH = {
  skip: "跳到结果", brand: "建筑图片检索", tools: "工具", upload: "上传", status: "状态",
  theme: "深色或浅色", search: "检索", title: "说出一座建筑，找到它的图片",
  subtitle: "写屋顶、墙、门窗、环境，边写边找；也可以拖进、粘贴一张图片。",
  placeholder: "庑殿顶的红色大殿", query: "要找什么", "by-picture": "用图片找", terms: "加减条件",
  "more-of": "多一点…", "less-of": "少一点…", filters: "筛选", results: "结果", release: "文本塔",
  versus: "对比", keys: "/ 输入 · ←↑↓→ 移动 · Enter 放大 · M 更多相似 · Esc 关闭", picture: "图片",
  "drop-search": "放在这里：用它找相似的图片", "drop-upload": "放在这里：上传到图库",
  remove: "去掉", like: "更多相似", "like-this": "像这张", own: "我的图片",
  "not-in-address": "用自己的图片检索时，图片不在网址里：分享网址的人看不到它。",
  truncated: "这段话太长，只用了前 52 个词元。", weight: "权重", lighter: "轻一点", heavier: "重一点",
  "term-more": "多一点什么？", "term-less": "少一点什么？", active: "当前", base: "原版",
  none: "不对比", count: "{count} 张", "count-more": "{count} 张，往下滚还有", "count-all": "共 {count} 张",
  took: "用时 {ms} 毫秒", look: "随便看看", folders: "文件夹", buckets: "存储桶",
  "clear-filters": "去掉全部筛选", "of-first": "按前 {count} 张统计", slow: "还在找。",
  "slow-advice": "服务可能正忙着收录图片，或者刚刚启动；不用重来，答案一到就显示。",
  "no-hits": "没有符合的图片。", "no-hits-filtered": "筛选条件下没有图片。去掉几个筛选再看看。",
  "no-images": "图库还是空的。", "no-images-advice": "点右上角“上传”，或者用 cra put 把一个文件夹放进来。",
  end: "就这些了。", "end-limit": "一次检索最多 1000 张。换个说法，或者加上筛选。",
  retry: "再试一次", "retry-in": "{seconds} 秒后自动再试", close: "关闭", previous: "上一张",
  next: "下一张", original: "打开原图", plus: "多一点像它", minus: "少一点像它", score: "相似度",
  size: "大小", where: "位置", indexed_at: "收录时间", rank: "第 {rank} 张：{caption}，相似度 {score}",
  "only-here": "只在这里", fold: "合并重复图片", expand: "同义词扩展", "as-set": "默认", on: "开", off: "关",
  expanded: "也按这些说法找：{texts}", relevance: "相关度", copies: "重复的图片", "copies-of": "合并了 {count} 张重复的图片",
  "same-rank": "名次相同", up: "比另一边高 {count} 名", down: "比另一边低 {count} 名",
  "upload-title": "上传图片", "upload-drop": "把图片拖到这里", "upload-or": "或者",
  "upload-choose": "选择图片", "upload-limit": "JPEG、HEIC、PNG、WebP、TIFF 等，每张不超过 {size}",
  "upload-caption": "说明（可不填，会存成元数据 caption）", "upload-wait": "等着上传",
  "upload-sending": "正在上传 {percent}%", "upload-waiting": "已上传，正在收录…",
  "upload-indexed": "已收录", "upload-failed": "没能收录：", "upload-refused": "没能上传：",
  "upload-too-large": "太大了：{size}，每张不超过 {most}", "upload-find": "找相似的",
  "upload-slow": "收录比平时慢。可以关掉这里，图片不会丢；“状态”里能看到排队多少。",
  and: "、", "status-title": "收录状态", objects: "图库里", indexed: "已收录", waiting: "排队中", failed: "失败",
  unaccounted: "待核对", unknown: "不知道", rate: "速度", "rate-of": "每秒 {count} 张",
  reconciled: "上次核对", never: "还没有", "as-of": "统计于", down: "没有应答：",
  stopped: "核对停下了：", releases: "文本塔版本", tower: "图像塔", failures: "没能收录的",
  "no-failures": "没有失败的图片。", "retry-all": "全部再试", retried: "{count} 张重新排队了",
  attempts: "试过 {count} 次", more: "更多", loaded: "可用", loading: "正在载入", unloaded: "未载入",
  refused: "被拒绝", "read-only": "这个页面只用来检索，不显示失败的图片。",
  "bad-picture": "不能用这张图片检索。",
  examples: ["红色木房子", "庑殿顶、朱漆木构的殿宇", "有圆顶的白房子", "马头墙，布瓦",
    "玻璃幕墙", "哥特尖塔，玫瑰窗"],
  reasons: {
    empty: "文件是空的。", not_an_image: "这不是能认出的图片格式。", truncated: "图片不完整，后面的部分缺了。",
    corrupt: "图片已损坏。", unsupported: "这种写法的图片不支持，例如 L*a*b* 颜色；请存成 RGB。",
    too_many_pixels: "像素太多{size}，最多 {most} 个。", too_long: "边太长{size}，一边最多 {most} 像素。",
    too_many_parts: "图片里的分块太多，最多 {most} 块。", too_many_bytes: "文件太大，最多 {most} 字节。",
    too_much_metadata: "元数据太多，最多 {most} 项、{bytes} 字节。",
    bad_key: "对象的名字不能用。", no_number: "编码后不是有效的数。",
    worker_lost: "处理它时进程几次中断，已经放弃。", gave_up: "试了多次都没成，已经放弃。",
  },
  errors: {
    OFFLINE: ["连不上服务。", "看看网络，或者服务是不是停了：在服务器上用 make status。"],
    UNAVAILABLE: ["检索服务暂时没有应答。", "多半是正在启动或换版本，一会儿就好。"],
    DEADLINE_EXCEEDED: ["等得太久了。", "服务可能很忙，过一会儿再试。"],
    RESOURCE_EXHAUSTED: ["现在问的人太多。", "稍等就好。"],
    UNAUTHENTICATED: ["服务不认这个页面的密钥。", "请管理员检查 CRA_API_KEY 和 CRA_SERVICE_TOKEN。"],
    PERMISSION_DENIED: ["这里不允许这样做。", ""],
    NOT_FOUND: ["找不到了。", "图片可能已被删除或改动，换一张再试。"],
    FAILED_PRECONDITION: ["这个版本现在不能用。", "换一个文本塔版本。"],
    INVALID_ARGUMENT: ["这样问不行。", ""],
    INTERNAL: ["服务出错了。", "再试一次；还不行，请管理员看日志。"],
  },
};

const EN = {
  skip: "Skip to results", brand: "Architecture image search", tools: "Tools", upload: "Upload",
  status: "Status", theme: "Dark or light", search: "Search",
  title: "Say what the building looks like, and see it",
  subtitle: "Roof, walls, windows, surroundings: in Chinese, answered as you type. Or drop or paste a picture.",
  placeholder: "庑殿顶的红色大殿", query: "What to look for", "by-picture": "Search by picture",
  terms: "Terms to add or subtract", "more-of": "More of…", "less-of": "Less of…", filters: "Filters",
  results: "Results", release: "Text tower", versus: "Compare with",
  keys: "/ type · ←↑↓→ move · Enter enlarge · M more like this · Esc close", picture: "Picture",
  "drop-search": "Drop here: find pictures like it", "drop-upload": "Drop here: upload it",
  remove: "Remove", like: "More like this", "like-this": "Like this", own: "My picture",
  "not-in-address": "A picture of your own is not in the address: whom you send that to does not see it.",
  truncated: "This text is too long; only its first 52 tokens count.", weight: "Weight",
  lighter: "Lighter", heavier: "Heavier", "term-more": "More of what?", "term-less": "Less of what?",
  active: "active", base: "base", none: "nothing", count: "{count} pictures",
  "count-more": "{count} pictures, more below", "count-all": "{count} pictures in all",
  "count-all-one": "{count} picture in all", "count-more-one": "{count} picture, more below",
  took: "{ms} ms", look: "To begin with", folders: "Folders", buckets: "Buckets",
  "clear-filters": "Remove all filters", "of-first": "counted over the first {count}",
  slow: "Still looking.",
  "slow-advice": "The service may be busy with new pictures, or has just started; the answer shows as soon as it is there.",
  "no-hits": "No pictures.", "no-hits-filtered": "No picture passes the filters. Remove some of them.",
  "no-images": "There are no pictures yet.",
  "no-images-advice": "Upload some by the button above, or a whole folder with cra put.",
  end: "That is all.", "end-limit": "One search ends at 1,000 pictures. Say it differently, or add filters.",
  retry: "Try again", "retry-in": "trying again in {seconds} s", close: "Close", previous: "Previous",
  next: "Next", original: "Open the original", plus: "More of it", minus: "Less of it",
  score: "Similarity", size: "Size", where: "Where", indexed_at: "Indexed",
  rank: "Number {rank}: {caption}, similarity {score}", "only-here": "only here",
  fold: "Fold copies", expand: "Synonyms", "as-set": "default", on: "on", off: "off",
  expanded: "Also looked for: {texts}", relevance: "Relevance", copies: "Copies", "copies-of": "{count} copies folded",
  "copies-of-one": "{count} copy folded",
  "same-rank": "same rank", up: "{count} ranks above the other", down: "{count} ranks below the other",
  "up-one": "{count} rank above the other", "down-one": "{count} rank below the other",
  "upload-title": "Upload pictures", "upload-drop": "Drop pictures here", "upload-or": "or",
  "upload-choose": "Choose pictures",
  "upload-limit": "JPEG, HEIC, PNG, WebP, TIFF and others, at most {size} each",
  "upload-caption": "Caption (if you like; kept as metadata)", "upload-wait": "Waits for its turn",
  "upload-sending": "Sending {percent}%", "upload-waiting": "Sent; being indexed…",
  "upload-indexed": "Indexed", "upload-failed": "Could not be indexed: ",
  "upload-refused": "Could not be sent: ", "upload-too-large": "Too large: {size}; at most {most} each",
  "upload-find": "Find alike",
  "upload-slow": "This takes longer than usual. You may close this, nothing is lost; the status shows the line.",
  and: ", ", "status-title": "How far the index is", objects: "Pictures", indexed: "Indexed", waiting: "In line",
  failed: "Failed", unaccounted: "Unaccounted", unknown: "unknown", rate: "Rate",
  "rate-of": "{count} a second", reconciled: "Last reconcile", never: "never", "as-of": "Counted",
  down: "Does not answer: ", stopped: "The reconcile stopped: ", releases: "Text towers",
  tower: "Image tower", failures: "What cannot be indexed", "no-failures": "Nothing has failed.",
  "retry-all": "Try all again", retried: "{count} back in line", attempts: "tried {count} times", "attempts-one": "tried once",
  more: "More", loaded: "answers", loading: "being loaded", unloaded: "not loaded", refused: "refused",
  "read-only": "This page only searches, and does not list what has failed.",
  "bad-picture": "This picture cannot be searched by.",
  examples: ["红色木房子", "庑殿顶、朱漆木构的殿宇", "有圆顶的白房子", "马头墙，布瓦",
    "玻璃幕墙", "哥特尖塔，玫瑰窗"],
  errors: {
    OFFLINE: ["The service cannot be reached.", "Check the network, or whether it runs: make status on the server."],
    UNAVAILABLE: ["The search does not answer just now.", "Most likely it is starting; this takes a moment."],
    DEADLINE_EXCEEDED: ["That took too long.", "The service may be busy; try again in a while."],
    RESOURCE_EXHAUSTED: ["Too many are asking.", "Wait a moment."],
    UNAUTHENTICATED: ["The service does not take this page's key.", "Its operator should check CRA_API_KEY and CRA_SERVICE_TOKEN."],
    PERMISSION_DENIED: ["That is not allowed here.", ""],
    NOT_FOUND: ["That is no longer there.", "The picture may have been removed or changed; try another."],
    FAILED_PRECONDITION: ["This release cannot be used now.", "Choose another text tower."],
    INVALID_ARGUMENT: ["That cannot be asked.", ""],
    INTERNAL: ["The service has failed.", "Try again; if it stays so, its operator should read the log."],
  },
};

const LANGUAGES = { zh: ZH, en: EN };
let words = ZH;

/** Return the word for a key, with its `{values}` filled in; `KEY-one` where the count is 1. */
export function t(key, values = {}) {
  const one = String(values.count) === "1" ? words[`${key}-one`] : undefined;
  const text = one ?? words[key] ?? ZH[key];
  if (typeof text !== "string") return text;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

export const language = () => (words === EN ? "en" : "zh");

/** Say everything in a language, `zh` or `en`, from now on. */
export function speak(name) {
  words = LANGUAGES[name] ?? ZH;
  document.documentElement.lang = words === EN ? "en" : "zh-CN";
  document.title = `CRA · ${t("brand")}`;
  for (const element of document.querySelectorAll("[data-t]")) {
    element.textContent = t(element.dataset.t);
  }
  for (const element of document.querySelectorAll("[data-t-label]")) {
    element.setAttribute("aria-label", t(element.dataset.tLabel));
  }
  for (const element of document.querySelectorAll("[data-t-placeholder]")) {
    element.setAttribute("placeholder", t(element.dataset.tPlaceholder));
  }
}

/** Return what an error means, and what to do. */
export function explain(error) {
  const bad = badPicture(error);
  if (bad) return { what: t("bad-picture"), advice: reasonOf(bad), detail: "" };
  const [what, advice] = t("errors")[error.code] ?? t("errors").INTERNAL;
  return { what, advice, detail: error.message };
}

/** Return why a picture cannot be searched by, as ingest would say it; nothing for other errors. */
function badPicture({ code, status, message }) {
  if (code !== "INVALID_ARGUMENT") return null;
  if (status === 413) return { reason: "too_many_bytes", message };
  const [, reason, detail] = /^image: (\w+): (.*)$/su.exec(message) ?? [];
  if (reason in ZH.reasons) return { reason, message: detail };
  const [, size, most] = /^image: has (\d+) bytes; 1 to (\d+)/u.exec(message) ?? [];
  if (size === "0") return { reason: "empty", message: "the file is empty" };
  return size ? { reason: "too_many_bytes", message: `it has ${size} bytes; at most ${most} are allowed` } : null;
}

/** Return why an image was not indexed; in English the service's own words say most. */
export function reasonOf({ reason, message }) {
  const known = words.reasons?.[reason];
  if (!known) return message || reason;
  const [size] = /\d+ x \d+/u.exec(message) ?? [];
  const [, most, bytes] = /(?:at most|over) (\d+)(?: in (\d+))?/u.exec(message) ?? [];
  // Only its figures are of the message: the rest is English.
  return known.replace(/\{(\w+)\}/gu, (_, name) => ({
    size: size ? `（${size.replace("x", "×")}）` : "", most: number(most ?? 0), bytes: number(bytes ?? 0),
  })[name]);
}

/** Return what the service said of a cause that the reason does not hold; empty in English. */
export const causeOf = ({ reason, message }) =>
  (words.reasons && ["bad_key", "gave_up"].includes(reason) ? message : "");

const time = () => new Intl.DateTimeFormat(language() === "en" ? "en-GB" : "zh-CN", {
  dateStyle: "medium", timeStyle: "short",
});

/** Return an ISO time for people. */
export const when = (iso) => time().format(new Date(iso));

export const number = (count) => new Intl.NumberFormat("en-US").format(count);
