// The page of one recording: its transcript, its player, and the moment that both are at, which
// also stands in the address behind the #.

import { Editor } from "./editor.js";
import { STATES, ask, byId, clock, counted, element, inField, language, long, send } from "./page.js";
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
let at = 0; // the moment that was last gone to, or is heard
let hits = { query: "", starts: [], total: 0, pages: 0, index: -1 };

const button = (text, title, action) => {
  const made = element("button", { type: "button", title }, text);
  made.addEventListener("click", action);
  return made;
};
const follow = button("Follow", "Scroll along (f)", () => following(follow.getAttribute("aria-pressed") !== "true"));
const picture = element("div", {});
const player = new Player(byId("player"), {
  onTime: heard,
  onSound: (channel) => waveform?.listen(channel),
  above: picture,
  buttons: [
    follow,
    button("‹ doubtful", "Doubtful word before (p)", () => doubtful(true)),
    button("doubtful ›", "Next doubtful word (n)", () => doubtful(false)),
    button("Copy link", "Copy a link to this moment (c)", copy),
  ],
});
const saving = element("span", { className: "saving small" });
player.controls.append(saving);

function following(on) {
  follow.setAttribute("aria-pressed", String(on));
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
  if (player.playing && !player.wish) heard(player.time);
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

function describeStale() {
  byId("stale").hidden = !info.stale.length;
  byId("stale-title").textContent = `${counted(info.stale.length, "correction")} not applied`;
  byId("stale-list").replaceChildren(...info.stale.map((one) => {
    const time = button(clock(one.start_s), "Go there", () => go(one.start_s, { play: false }));
    time.classList.add("time");
    const dismiss = info.editable ? button("Dismiss", "Forget this correction", async () => {
      try {
        await send("api/correct", { id, dismiss: one.id });
        await update();
      } catch (error) {
        complain(error.message);
      }
    }) : null;
    return element("li", {}, time, " ", element("bdi", { className: "quiet" }, one.original), " → ", element("bdi", {}, one.text || "(text removed)"), one.name ? element("span", { className: "quiet" }, ` by ${one.name}`) : null, " ", dismiss);
  }));
}

// What others have saved meanwhile, in other windows or through other servers.
async function update() {
  const told = await ask("recording", { id });
  speakers.update(told.speakers);
  byId("news").hidden = told.segments === info.segments && told.state === info.state;
  if (told.edition !== info.edition) {
    info.edition = told.edition;
    info.stale = told.stale;
    describeStale();
    await transcript.refresh();
  }
}

function edit() {
  const segment = info.editable && transcript?.segmentAt(at);
  if (!segment) return;
  segment.element.scrollIntoView({ block: "nearest" });
  editor.edit(segment);
}

async function check() {
  const segment = info.editable && transcript?.segmentAt(at);
  if (!segment) return;
  try {
    const checked = !segment.told.correction?.checked;
    await editor.check(segment);
    player.say(`${checked ? "Checked" : "No longer checked"}: ${clock(segment.start_s)}`);
    const following = [...byId("transcript").querySelectorAll(".segment")];
    const next = following[following.indexOf(transcript.segmentAt(segment.start_s).element) + 1];
    if (checked && next) await go(transcript.blocks[next.dataset.block].segments[next.dataset.at].start_s);
  } catch (error) {
    complain(error.message);
  }
}

function describe() {
  document.title = info.name;
  byId("name").textContent = info.name;
  byId("address").textContent = info.address;
  const facts = [
    info.duration_s ? long(info.duration_s) : "",
    info.languages.length ? info.languages.map(language).join(", ") : "",
    STATES[info.state],
    info.segments ? counted(info.segments, info.label ? "window" : "segment") : "",
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
  for (const bound of ["low", "high"]) byId(bound).textContent = Math.round(info[`${bound}_confidence`] * 100);
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

async function keepUp() {
  try {
    if (!document.hidden) await update();
  } catch (error) {
    complain(error.message);
  }
  setTimeout(keepUp, EVERY_MS);
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
  e: edit,
  v: check,
  "?": () => byId("keys").showModal(),
};

document.addEventListener("keydown", (event) => {
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
  transcript = new Transcript(byId("transcript"), info, { speakers, onPick: pick, onEdit: info.editable ? (segment) => editor.edit(segment) : null });
  editor = new Editor(transcript, id, { onPlay: pick, onSaved: ({ edition }) => (info.edition = edition) });
  if (info.duration_s) {
    waveform = new Waveform(id, info.duration_s, { onSeek: (time) => go(time) });
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
  if (at) player.go(at, false);
  tick();
  setTimeout(keepUp, EVERY_MS);
} catch (error) {
  complain(error.message);
}
