// The review queue: what nobody has checked, least confident first over the whole run, one segment
// at a time with those around it. What is checked, by anybody, does not come again.

import { Editor } from "./editor.js";
import { ask, byId, clock, correctionBadge, counted, element, inField, language, link, parametersOf, percent, pieces } from "./page.js";
import { Player } from "./player.js";

const SOON_MS = 500;
const PAGE_ROWS = 50;
// Filters of a search narrow the queue as well.
const filters = Object.fromEntries(["name", "state", "language", "folder", "date", "q", "id", "max_confidence"].map((name) => [name, new URLSearchParams(location.search).get(name)]));

let queue = []; // hits, in the order in which they come
let place = 0;
let shown = null; // the hit, its segments, and which of these it is
const seen = new Set(); // what came already, checked or skipped
let busy = false;
let counts = { of_all: 0, checked: 0 };
const player = new Player(byId("player"), {});

function complain(message) {
  byId("problem").textContent = message ?? "";
  byId("problem").hidden = !message;
}

const nameOf = (hit) => `${hit.id} ${hit.key}`;

function progress() {
  byId("bar").max = counts.of_all || 1;
  byId("bar").value = counts.checked;
  byId("progress").textContent = `${counts.checked.toLocaleString("en")} of ${counted(counts.of_all, "segment")} checked`;
}

// Add what comes next; false where nothing is left.
async function more() {
  for (let page = 0; ; page += 1) {
    const found = await ask("review", { ...filters, page });
    if (!found.ready) {
      if (found.problem) throw new Error(found.problem);
      byId("progress").textContent = "Reading the texts …";
      await new Promise((done) => setTimeout(done, SOON_MS));
      page -= 1;
      continue;
    }
    counts = found;
    progress();
    const fresh = found.hits.filter((hit) => !seen.has(nameOf(hit)));
    queue.push(...fresh);
    if (fresh.length) return true;
    if (found.hits.length < PAGE_ROWS || page + 1 >= found.pages) return false;
  }
}

async function show() {
  complain("");
  while (place >= queue.length) {
    if (!(await more())) break;
  }
  const hit = queue[place];
  if (!hit) {
    shown = null;
    byId("card").hidden = true;
    byId("done").hidden = false;
    return undefined;
  }
  const first = !seen.has(nameOf(hit));
  seen.add(nameOf(hit));
  let told;
  try {
    told = await ask("around", { id: hit.id, key: hit.key, from: hit.start_s, channel: hit.channel });
  } catch (error) {
    if (error.status !== 404) throw error;
  }
  // Somebody else was faster: it is checked by now, or its recording is gone.
  if (!told || (first && told.segments[told.at].correction?.checked)) {
    queue.splice(place, 1);
    for (const one of editor.made) if (one.place > place) one.place -= 1;
    if (told) counts.checked += 1;
    progress();
    return show();
  }
  shown = { hit, told, segments: told.segments.map((one, at) => line(one, at === told.at, told.speakers)) };
  editor.id = hit.id;
  byId("around").replaceChildren(...shown.segments.map((one) => one.element));
  byId("place").href = link(hit.id, { at: hit.start_s });
  byId("place").replaceChildren(element("bdi", {}, hit.name), ` ${clock(hit.start_s)}`);
  const facts = [hit.confidence === null ? "" : `confidence ${percent(hit.confidence)}`, hit.language ? language(hit.language) : ""];
  byId("facts").textContent = facts.filter(Boolean).join(" · ");
  const { start_s, end_s } = told.segments[told.at];
  byId("clip").href = `api/clip?${parametersOf({ id: hit.id, from: start_s, to: end_s, channel: hit.channel })}`;
  for (const id of ["check", "edit"]) byId(id).hidden = !told.editable;
  byId("undo").hidden = !told.editable;
  byId("undo").disabled = !editor.made.length;
  byId("back").disabled = place === 0;
  byId("done").hidden = true;
  byId("card").hidden = false;
  return undefined;
}

// A segment as it is shown here: the one that is reviewed, or one next to it.
function line(told, reviewed, speakers) {
  const text = element("p", { className: "said", dir: "auto" }, ...(told.text ? pieces(told.pieces) : [element("em", { className: "quiet" }, "(text removed)")]));
  if (told.language) text.lang = told.language;
  const who = speakers.find((one) => one.speaker === told.speaker)?.name ?? told.speaker;
  const made = element("div", { className: `segment ${reviewed ? "now" : "quiet"}` },
    element("div", { className: "side small" }, clock(told.start_s), who ? element("span", { className: "who" }, who) : null), text,
    element("span", { className: "sure small" }, told.correction ? correctionBadge(told.correction) : null));
  return { told, text, element: made, start_s: told.start_s };
}

const current = () => shown?.segments[shown.told.at] ?? null;

const editor = new Editor("", {
  find: (key) => shown?.segments.find((one) => one.told.key === key) ?? null,
  next: async (key) => {
    const at = shown.segments.findIndex((one) => one.told.key === key);
    return shown.segments.slice(at + 1).find((one) => one.told.channel === shown.segments[at].told.channel) ?? null;
  },
  onPlay: (from, until) => play(from, until),
  onSaved: ({ segments }) => edited(segments),
  speakers: () => shown?.told.speakers ?? [],
});

// What was saved has another key; it does not come again as if it were new.
function renamed(segments) {
  const hit = queue[place];
  if (!segments.length || hit?.id !== editor.id) return;
  queue[place] = { ...hit, key: segments[0].key, start_s: segments[0].start_s };
  seen.add(nameOf(queue[place]));
}

// What was edited is shown as it is now; if it has been checked with it, the next one comes.
async function edited(segments) {
  for (const one of editor.made) {
    one.recording ??= editor.id;
    one.place ??= place;
  }
  renamed(segments);
  if (!shown?.editing) return;
  shown.editing = false;
  const checked = segments.every((one) => one.correction?.checked);
  if (checked) counts.checked += 1;
  progress();
  try {
    await (checked ? step(1) : show());
  } catch (error) {
    complain(error.message); // it is saved
  }
}

async function play(from, until) {
  const { hit } = shown;
  if (player.id !== hit.id) await player.open(hit.id, hit.name);
  player.span(from, until);
}

function playCurrent() {
  const one = current();
  if (!one) return undefined;
  if (player.playing && player.id === shown.hit.id) return player.toggle();
  return play(one.told.start_s, one.told.end_s);
}

// Close what is open and has nothing new in it; what was written is not left behind.
function leave() {
  for (const one of [...editor.open.values()]) {
    if (one.changed()) {
      one.field.focus();
      throw new Error("Save what you have written, or cancel it (Esc).");
    }
    editor.close(one.key);
  }
  if (shown) shown.editing = false;
}

async function step(by) {
  player.audio.pause();
  place = Math.max(0, place + by);
  await show();
  if (by > 0 && shown && player.id !== null) await playCurrent();
}

async function go(by) {
  leave();
  await step(by);
}

// One thing at a time: a key that is pressed while the next segment comes is not for it.
async function run(action) {
  if (busy) return;
  busy = true;
  byId("card").setAttribute("aria-busy", "true");
  try {
    await action();
  } catch (error) {
    // Somebody else was faster: it is shown as they left it, to be checked again or skipped.
    if (error.segments) await show().catch(() => {});
    complain(error.message);
  }
  busy = false;
  byId("card").removeAttribute("aria-busy");
}

async function check() {
  const one = current();
  if (!one || !shown.told.editable) return;
  leave();
  if (!one.told.correction?.checked) {
    await editor.check(one);
    counts.checked += 1;
  }
  progress();
  await step(1);
}

function edit() {
  if (!current() || !shown.told.editable) return;
  shown.editing = true;
  editor.edit(current());
}

async function undo() {
  const last = editor.made.at(-1);
  if (!last) return;
  leave();
  editor.id = last.recording;
  const here = place;
  place = last.place;
  try {
    await editor.undo();
  } catch (error) {
    place = here;
    throw error;
  }
  if (last.correction?.checked) counts.checked = Math.max(0, counts.checked - 1);
  progress();
  await show();
}

const KEYS = { " ": playCurrent, v: check, e: edit, n: () => go(1), p: () => go(-1), u: undo, "<": () => player.faster(-1), ">": () => player.faster(1) };

document.addEventListener("keydown", (event) => {
  const control = event.ctrlKey || event.metaKey;
  const action = control ? (event.key === "z" ? undo : null) : KEYS[event.key];
  if (inField(event.target) || event.altKey || !action) return;
  if (event.key === " " && event.target.closest?.("button, a, audio, video")) return;
  event.preventDefault();
  run(action);
});
for (const [id, action] of Object.entries({ check, edit, play: playCurrent, skip: () => go(1), back: () => go(-1), undo })) {
  byId(id).addEventListener("click", () => run(action));
}

await run(show);
