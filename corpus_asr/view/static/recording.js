// The page of one recording: its transcript, its player, and the moment that both are at, which
// also stands in the address behind the #.

import { Editor } from "./editor.js";
import { STATES, ask, byId, clock, counted, element, inField, language, long } from "./page.js";
import { Player } from "./player.js";
import { Speakers } from "./speakers.js";
import { Transcript } from "./transcript.js";
import { Waveform } from "./waveform.js";

const STEP_S = 5;
const EVERY_MS = 10_000;
const id = new URLSearchParams(location.search).get("id") ?? "";

let info = null;
let transcript = null;
let editor = null;
let waveform = null;
let speakers = null;
let busy = false;
let unreachable = ""; // what was said when a look for news failed
let at = 0; // the moment that was last gone to, or is heard
let hits = { query: "", starts: [], total: 0, pages: 0, index: -1 };

const button = (text, title, action) => {
  const made = element("button", { type: "button", title }, text);
  made.addEventListener("click", action);
  return made;
};
const follow = button("Follow", "Scroll along (f)", () => following(follow.getAttribute("aria-pressed") !== "true"));
const paragraphs = button("¶", "Paragraphs by speaker, or one line per segment (b)", () => flow(paragraphs.getAttribute("aria-pressed") !== "true"));
const editing = button("✎ Edit", "Edit the current segment (e)", () => edit());
const checking = button("✓ Check", "Mark the current segment as checked, and go to the next (v)", () => check());
const undoing = button("Undo", "Undo what you saved last (u, or Ctrl+Z)", () => undo());
const unchecked = button("unchecked ›", "Next unchecked segment (x)", () => nextUnchecked());
for (const one of [editing, checking, undoing, unchecked]) one.classList.add("editing");
const picture = element("div", {});
const player = new Player(byId("player"), {
  onTime: heard,
  onSound: (channel) => waveform?.listen(channel),
  above: picture,
  buttons: [
    follow,
    button("‹ doubtful", "Doubtful word before (p)", () => doubtful(true)),
    button("doubtful ›", "Next doubtful word (n)", () => doubtful(false)),
    unchecked,
    button("Copy link", "Copy a link to this moment (c)", copy),
    paragraphs, editing, checking, undoing,
  ],
});
const saving = element("span", { className: "saving small" });
player.controls.append(saving);

function following(on) {
  follow.setAttribute("aria-pressed", String(on));
}

const FLOW_KEY = "corpus-asr-paragraphs";

function flow(on, { remember = true } = {}) {
  paragraphs.setAttribute("aria-pressed", String(on));
  transcript?.flow(on);
  if (!remember) return;
  try {
    localStorage.setItem(FLOW_KEY, String(on));
  } catch {
    // storage is turned off: it is chosen again
  }
  transcript?.reveal(at);
}

function flowBefore() {
  try {
    return localStorage.getItem(FLOW_KEY) === "true";
  } catch {
    return false; // storage is turned off
  }
}

function complain(message) {
  byId("problem").textContent = message ?? "";
  byId("problem").hidden = !message;
}

function heard(time) {
  at = time;
  waveform?.move(time);
  if (!transcript) return;
  const shown = transcript.show(time);
  if (!player.playing || follow.getAttribute("aria-pressed") !== "true") return;
  if (document.activeElement?.closest(".editor")) return; // what is written stays in view
  if (!shown) {
    transcript.reveal(time);
    return;
  }
  const { top, bottom } = shown.getBoundingClientRect();
  const floor = byId("player").getBoundingClientRect().top;
  if (top < innerHeight * 0.1 || bottom > floor - innerHeight * 0.1) transcript.reveal(time, { smooth: true });
}

// While playing, more often than browsers tell of their own accord.
function tick() {
  if (player.playing && !player.wish) player.moved();
  requestAnimationFrame(tick);
}

async function go(time, { play = player.playing, reveal = true } = {}) {
  at = time;
  history.replaceState(null, "", `#t=${time.toFixed(2)}`);
  player.go(time, play);
  waveform?.move(time);
  transcript?.show(time);
  if (reveal) await transcript?.reveal(time);
}

async function doubtful(back) {
  try {
    const { at_s } = await ask("unsure", { id, from: at, back });
    if (at_s === null) player.say(`No low-confidence ${info.has_words ? "word" : "segment"} ${back ? "before" : "after"} this.`);
    else await go(at_s);
  } catch (error) {
    complain(error.message);
  }
}

async function nextUnchecked() {
  if (!info.editable) return;
  try {
    const { at_s } = await ask("unsure", { id, from: at + 0.01, unchecked: true });
    if (at_s === null) player.say("No unchecked segment after this.");
    else await go(at_s);
  } catch (error) {
    complain(error.message);
  }
}

async function copy() {
  const address = new URL(location.href);
  address.searchParams.delete("q");
  address.hash = `t=${at.toFixed(2)}`;
  try {
    await navigator.clipboard.writeText(address.href);
    player.say(`Copied a link to ${clock(at, 2)}.`);
  } catch {
    player.say(address.href); // browsers keep the clipboard from pages of other machines
  }
}

function moment() {
  const found = /^#t=(\d+(?:\.\d+)?)$/.exec(location.hash);
  return found ? Number(found[1]) : null;
}

async function search(query) {
  hits = { query, starts: [], total: 0, pages: 0, index: -1 };
  complain("");
  try {
    await transcript.search(query);
    if (query) await more();
  } catch (error) {
    complain(error.message);
  }
  tellHits();
}

async function more() {
  const page = hits.starts.length / 50;
  const found = await ask("search", { id, q: hits.query, page });
  if (!found.ready) {
    await new Promise((done) => setTimeout(done, 500));
    await more();
    return;
  }
  hits.total = found.total;
  hits.starts.push(...found.hits.map((hit) => hit.start_s));
}

async function step(by) {
  if (!hits.total) return;
  const index = (hits.index + by + hits.total) % hits.total;
  while (index >= hits.starts.length && hits.starts.length % 50 === 0) await more();
  if (index >= hits.starts.length) return;
  hits.index = index;
  tellHits();
  following(false);
  await go(hits.starts[index]);
}

function tellHits() {
  const place = hits.index >= 0 ? `${(hits.index + 1).toLocaleString("en")} of ` : "";
  byId("hits").textContent = hits.query ? `${place}${counted(hits.total, "segment")}` : "";
  byId("hit-before").hidden = byId("hit-after").hidden = !hits.total;
}

// Edits that have no place any more, each with what is there now.
function describeStale() {
  byId("stale").hidden = !info.stale.length;
  byId("stale-title").textContent = `${counted(info.stale.length, "edit")} not applied`;
  byId("stale-list").replaceChildren(...info.stale.map((one) => {
    const time = button(clock(one.start_s), "Go there", () => go(one.start_s, { play: false }));
    time.classList.add("time");
    const why = one.name ? `by ${one.name}` : "";
    const version = (title, text) => element("section", {}, element("h3", {}, title), element("p", { dir: "auto" }, text || "(no text)"));
    return element("li", {}, time, " ", element("span", { className: "quiet small" }, why), element("div", { className: "versions" },
      version("The edit", one.text),
      version("Now", one.now),
      version("The model, then", one.original)));
  }));
}

// What others have saved meanwhile, in other windows or through other servers.
async function update() {
  const told = await ask("recording", { id });
  speakers.update(told.speakers);
  byId("news").hidden = told.state === info.state && (told.edition !== info.edition || told.segments === info.segments);
  if (told.edition === info.edition) return;
  const others = told.segments !== info.segments;
  Object.assign(info, { edition: told.edition, stale: told.stale, segments: told.segments, block_starts_s: told.block_starts_s });
  describeStale();
  if (others) await transcript.reset(info);
  else await transcript.refresh();
}

// Show what was saved here: in its place, or all again where there are more or fewer segments. The
// edition stays: others may have saved something before it, which is fetched soon.
async function saved({ removed, segments }) {
  undoing.disabled = !editor.made.length;
  try {
    const old = removed.length === 1 && segments.length === 1 ? transcript.find(removed[0]) : null;
    if (old) transcript.replace(old, segments[0]);
    else await update();
  } catch (error) {
    complain(error.message);
  }
}

function current() {
  return info.editable && transcript ? transcript.segmentAt(at) : null;
}

// Keys are for the segment that is edited, unless another one is heard.
function editAt(segment) {
  if (!player.playing) go(segment.start_s, { play: false, reveal: false });
  editor.edit(segment);
}

function edit() {
  const segment = current();
  if (!segment) return;
  editor.edit(segment);
}

// One thing at a time: a key that is pressed while the next segment comes is not for it.
async function attempt(action) {
  if (busy) return undefined;
  busy = true;
  complain("");
  player.say("");
  try {
    return await action();
  } catch (error) {
    const theirs = error.segments?.map((one) => one.text).join(" / ");
    complain(theirs ? `${error.message}: “${theirs}”` : error.message);
    if (error.segments) await update().catch(() => {});
    return undefined;
  } finally {
    busy = false;
  }
}

function check() {
  const segment = current();
  if (!segment) return undefined;
  return attempt(async () => {
    const checked = !segment.told.correction?.checked;
    const { segments } = await editor.check(segment);
    player.say(`${checked ? "Checked" : "No longer checked"}: ${clock(segment.start_s)}`);
    const next = checked && segments.length ? await transcript.next(segments[0].key, { sameChannel: false }) : null;
    if (next) await go(next.start_s);
  });
}

// Let a speaker of the recording, by number, speak the current segment.
function speak(number) {
  const segment = current();
  const speaker = speakers.speakers[number - 1];
  if (!segment || !speaker) return undefined;
  return attempt(async () => {
    await editor.speak(segment, speaker.speaker);
    player.say(`${speaker.name} speaks at ${clock(segment.start_s)}`);
  });
}

function undo() {
  return attempt(async () => {
    const done = await editor.undo();
    player.say(done ? "Undone." : "Nothing of yours is left to undo on this page.");
  });
}

// Start or end of the current segment is now.
function border(side) {
  const segment = current();
  if (!segment) return;
  const moment = at;
  editor.edit(segment);
  const own = editor.open.get(segment.told.key);
  own[side].value = clock(moment, 2);
  own.mark();
}

function describe() {
  document.title = info.name;
  byId("name").textContent = info.name;
  byId("address").textContent = info.address;
  const facts = [
    info.duration_s ? long(info.duration_s) : "",
    info.languages.length ? info.languages.map(language).join(", ") : "",
    STATES[info.state],
    info.segments ? counted(info.segments, "segment") : "",
    info.codec ? `${info.codec.replace(/float$/, "")}, ${info.sample_rate_hz.toLocaleString("en")} Hz, ${counted(info.channels, "channel")}` : "",
    info.tracks,
    info.decode_errors ? `${counted(info.decode_errors, "damaged packet")} skipped` : "",
  ];
  byId("facts").textContent = facts.filter(Boolean).join(" · ");
  if (info.error) {
    byId("failure").hidden = false;
    byId("failure-title").textContent = `${info.segments ? "A part of it failed" : "It failed"}: ${info.error.kind}`;
    byId("failure-advice").textContent = `What to do: ${info.error.advice}.`;
    byId("failure-message").textContent = info.error.message;
  }
  if (!info.has_words) byId("unit").textContent = "segment";
  // Words have one mark, whole segments two.
  byId("unsure").hidden = info.has_words;
  byId("low").textContent = Math.round((info.has_words ? info.low_word_confidence : info.low_confidence) * 100);
  byId("high").textContent = Math.round(info.high_confidence * 100);
  byId("form").hidden = byId("legend").hidden = player.controls.hidden = !info.segments;
  for (const one of document.querySelectorAll(".editing")) one.hidden = !info.editable;
  if (!info.segments && !info.error) {
    byId("transcript").append(element("p", { className: "quiet" }, info.state === "unfinished" ? "It is not done yet." : "No speech was found in it."));
  }
  if (info.segments && info.saved_as.length) {
    saving.append("Save as ", ...info.saved_as.flatMap((format) => {
      const query = new URLSearchParams({ id, format });
      return [element("a", { href: `saved?${query}`, download: "" }, format), " "];
    }));
  }
}

let timer = 0;
async function keepUp() {
  try {
    if (!document.hidden) await update();
    if (unreachable && byId("problem").textContent === unreachable) complain("");
    unreachable = "";
  } catch (error) {
    unreachable = error.message;
    complain(error.message);
  }
  clearTimeout(timer);
  timer = setTimeout(keepUp, EVERY_MS);
}

const KEYS = {
  " ": () => player.toggle(),
  ArrowLeft: (event) => go(Math.max(0, at - (event.shiftKey ? 1 : STEP_S))),
  ArrowRight: (event) => go(Math.min(info.duration_s, at + (event.shiftKey ? 1 : STEP_S))),
  n: () => doubtful(false),
  p: () => doubtful(true),
  "<": () => player.faster(-1),
  ">": () => player.faster(1),
  f: () => following(follow.getAttribute("aria-pressed") !== "true"),
  c: copy,
  "/": () => byId("q").focus(),
  b: () => flow(paragraphs.getAttribute("aria-pressed") !== "true"),
  e: edit,
  v: check,
  x: nextUnchecked,
  u: undo,
  "[": () => border("from"),
  "]": () => border("to"),
  ...Object.fromEntries(Array.from({ length: 9 }, (_, number) => [String(number + 1), () => speak(number + 1)])),
  "?": () => byId("keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "z" && !inField(event.target) && info?.editable) {
    event.preventDefault();
    undo();
    return;
  }
  if (inField(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
  const own = event.target.closest?.("button, a, audio, video, summary");
  if (own && (event.key === " " || (["AUDIO", "VIDEO"].includes(own.tagName) && event.key.startsWith("Arrow")))) return;
  const action = KEYS[event.key];
  if (!action || !info) return;
  event.preventDefault();
  action(event);
});
for (const name of ["wheel", "touchmove"]) {
  addEventListener(name, (event) => byId("transcript").contains(event.target) && following(false), { passive: true });
}
addEventListener("hashchange", () => moment() !== null && go(moment()));
byId("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const query = byId("q").value.trim();
  if (query && query === hits.query) await step(1);
  else {
    await search(query);
    await step(1);
  }
});
byId("hit-before").addEventListener("click", () => step(-1));
byId("hit-after").addEventListener("click", () => step(1));
byId("help").addEventListener("click", () => byId("keys").showModal());
byId("reload").addEventListener("click", () => location.reload());

following(true);
try {
  info = await ask("recording", { id });
  describe();
  const pick = (time) => go(time, { play: true, reveal: false }).then(() => following(true));
  speakers = new Speakers(info, id, { onGo: go, onPlay: (time) => go(time, { play: true }), onNamed: () => transcript.rename() });
  transcript = new Transcript(byId("transcript"), info, {
    speakers, onPick: pick, onEdit: info.editable ? editAt : null,
    onShown: (segment) => editor?.attach(segment),
  });
  editor = new Editor(id, {
    find: (key) => transcript.find(key), next: (key) => transcript.next(key), onSaved: saved,
    onPlay: (time, until) => player.span(time, until), speakers: () => [...speakers.speakers, ...transcript.others()], waveform: () => waveform,
  });
  undoing.disabled = true;
  flow(flowBefore(), { remember: false });
  if (info.duration_s) {
    waveform = new Waveform(id, info.duration_s, { onSeek: (time) => go(time), fromStart: info.from_start });
    picture.replaceChildren(waveform.box);
    speakers.above(waveform);
  }
  describeStale();
  const query = new URLSearchParams(location.search).get("q") ?? "";
  byId("q").value = query;
  if (query && info.segments) await search(query);
  if (hits.total && moment() === null) await step(1);
  const opening = player.open(id, info.name, info.apart, info.apart_as);
  if (moment() !== null) await go(moment(), { play: false });
  await opening;
  if (player.usable) waveform?.listen(player.channel);
  if (at) player.go(at, false);
  tick();
  timer = setTimeout(keepUp, EVERY_MS);
  document.addEventListener("visibilitychange", () => document.hidden || keepUp());
} catch (error) {
  complain(error.message);
}
