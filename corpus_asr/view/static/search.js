// The first page: what is asked for stands in the address, so that going back works; results come
// from the server, a page at a time, and anew when a run has gone on.

import { STATES, ask, byId, clock, correctionBadge, counted, element, inField, language, link, long, percent, pieces, send } from "./page.js";
import { Player } from "./player.js";

const FIELDS = ["q", "show", "name", "state", "language", "min_confidence", "max_confidence", "order", "recording_order"];
const BOXES = ["whole_words", "unchecked"];
const EVERY_MS = 10_000;
const SOON_MS = 500;

let run = null;
let page = 0;
let asking = null;
let timer = 0;
const player = new Player(byId("player"), {});

function wanted() {
  const values = Object.fromEntries(FIELDS.map((name) => [name, byId(name).value.trim()]));
  for (const name of BOXES) values[name] = byId(name).checked;
  return values;
}

function readAddress() {
  const query = new URLSearchParams(location.search);
  for (const name of FIELDS) fill(name, query.get(name) ?? "");
  for (const name of BOXES) byId(name).checked = query.get(name) === "1";
  page = Math.max(0, Number.parseInt(query.get("page") ?? "1", 10) - 1) || 0;
}

function fill(name, value) {
  const field = byId(name);
  if (field.tagName === "SELECT" && value && ![...field.options].some((one) => one.value === value)) {
    field.append(element("option", { value }, name === "language" ? language(value) : value));
  }
  field.value = value;
}

function writeAddress() {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(wanted())) {
    if (value) query.set(name, value === true ? "1" : value);
  }
  if (page) query.set("page", page + 1);
  const text = query.toString();
  if (text !== location.search.slice(1)) history.pushState(null, "", text ? `?${text}` : location.pathname);
}

function segmentsAsked(values) {
  if (values.show) return values.show === "segments";
  return Boolean(values.q || values.min_confidence || values.max_confidence || values.order || values.unchecked);
}

async function showRun() {
  run = await ask("run");
  byId("address").replaceChildren(element("bdi", {}, run.address));
  const parts = [
    counted(run.recordings, "recording"),
    long(run.duration_s),
    counted(run.segments, "segment"),
  ];
  if (run.corrections) parts.push(`${run.corrections.toLocaleString("en")} corrected or checked`);
  for (const state of ["failed", "no_speech", "unfinished"]) {
    if (run.states[state]) parts.push(`${run.states[state].toLocaleString("en")} ${STATES[state]}`);
  }
  if (!run.finished) parts.push("the run is not finished: this page keeps up with it");
  byId("summary").textContent = parts.join(" · ");
  choices("state", Object.entries(run.states).filter(([, count]) => count).map(([name, count]) => ({ name, count })), (name) => STATES[name]);
  choices("language", run.languages, language);
  complain(run.problem);
}

function choices(id, values, say) {
  const field = byId(id);
  const chosen = field.value;
  field.replaceChildren(field.options[0]);
  for (const { name, count } of values) {
    field.append(element("option", { value: name }, `${say(name)} (${count.toLocaleString("en")})`));
  }
  if (chosen && !values.some(({ name }) => name === chosen)) field.append(element("option", { value: chosen }, chosen));
  field.value = chosen;
}

function complain(problem) {
  byId("problem").textContent = problem ?? "";
  byId("problem").hidden = !problem;
}

async function show() {
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  const values = wanted();
  const count = FIELDS.filter((name) => name !== "q" && values[name]).length + BOXES.filter((name) => values[name]).length;
  byId("set").textContent = count ? `${count} set` : "";
  try {
    if (segmentsAsked(values)) await showSegments(values, signal);
    else await showRecordings(values, signal);
    complain(run.problem);
  } catch (error) {
    if (error.name === "AbortError") return;
    results([], 0);
    byId("told").textContent = "";
    complain(error.message);
  }
}

async function showSegments(values, signal) {
  const { show: _, recording_order: __, ...filters } = values;
  const found = await ask("search", { ...filters, page }, signal);
  if (!found.ready) return stillReading(found, signal);
  const where = found.total ? ` in ${counted(found.recordings, "recording")}` : "";
  byId("told").textContent = `${counted(found.total, "segment")}${where}`;
  results(found.hits.map((hit) => segment(hit, values.q)), found.pages);
}

function stillReading(found, signal) {
  const read = `${found.rows_read.toLocaleString("en")} of ${counted(run.segments, "segment")}`;
  byId("told").textContent = `Reading the texts for the first time: ${read}`;
  complain(found.problem);
  if (!found.problem) setTimeout(() => signal.aborted || show(), SOON_MS);
}

function segment(hit, query) {
  const at = link(hit.id, { query, at: hit.start_s });
  const facts = [
    hit.confidence === null || hit.correction ? "" : `confidence ${percent(hit.confidence)}`,
    hit.language ? language(hit.language) : "",
    hit.channel === null ? "" : `channel ${hit.channel}`,
  ].filter(Boolean);
  const play = element("button", { type: "button", className: "time" }, `▶ ${clock(hit.start_s)}`);
  play.setAttribute("aria-label", `Play from ${clock(hit.start_s)}`);
  play.addEventListener("click", () => player.play(hit.id, hit.start_s, hit.name));
  const said = hit.correction;
  const found = element("span", {}, ...(hit.text ? pieces(hit.pieces) : [element("em", { className: "quiet" }, " (text removed)")]));
  if (said) found.title = `Original: ${said.original}`;
  return element(
    "li", { className: "card hit" },
    element("p", { className: "head small" }, play, element("a", { href: at }, element("bdi", {}, hit.name)),
      element("span", { className: "quiet" }, facts.join(" · ")), said ? correctionBadge(said) : null),
    element("p", { className: "said", dir: "auto" },
      element("span", { className: "quiet" }, hit.before), found,
      element("span", { className: "quiet" }, hit.after)),
  );
}

async function showRecordings(values, signal) {
  const { q: _, show: __, order: ___, whole_words: ____, unchecked: _____, ...filters } = values;
  const found = await ask("recordings", { ...filters, page }, signal);
  byId("told").textContent = counted(found.total, "recording");
  results(found.recordings.map(recording), found.pages);
}

function recording(row) {
  const facts = [
    row.duration_s ? long(row.duration_s) : "",
    row.language ? language(row.language) : "",
    row.segments ? counted(row.segments, "segment") : "",
  ].filter(Boolean);
  const state = STATES[row.state] + (row.error_kind ? `: ${row.error_kind}` : "");
  const kind = { failed: "bad", unfinished: "warn", no_speech: "quiet" }[row.state];
  return element(
    "li", { className: "card row" },
    element("a", { href: link(row.id) }, element("bdi", {}, row.name)),
    element("span", { className: "quiet small" }, facts.join(" · ")),
    kind ? element("span", { className: `badge ${kind}` }, state) : null,
  );
}

function results(items, pages) {
  byId("results").replaceChildren(...items);
  byId("pager").hidden = pages <= 1;
  byId("page").textContent = `Page ${(page + 1).toLocaleString("en")} of ${pages.toLocaleString("en")}`;
  byId("before").disabled = page === 0;
  byId("after").disabled = page + 1 >= pages;
}

function changed() {
  page = 0;
  writeAddress();
  show();
}

function turn(by) {
  page += by;
  writeAddress();
  show();
  scrollTo({ top: 0 });
}

async function keepUp() {
  clearTimeout(timer);
  if (!document.hidden) {
    const before = run?.version;
    try {
      await showRun();
      if (run.version !== before) await show();
    } catch (error) {
      complain(error.message);
    }
  }
  timer = setTimeout(keepUp, EVERY_MS);
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  changed();
});
byId("more").addEventListener("change", changed);
byId("q").addEventListener("search", changed); // the cross that empties the field
byId("clear").addEventListener("click", () => {
  byId("form").reset();
  changed();
});
byId("before").addEventListener("click", () => turn(-1));
byId("after").addEventListener("click", () => turn(1));
addEventListener("popstate", () => {
  readAddress();
  show();
});
document.addEventListener("visibilitychange", () => document.hidden || keepUp());
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || inField(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  byId("q").focus();
});

readAddress();
await keepUp();
