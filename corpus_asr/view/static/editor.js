// Editing segments: text, times, speaker, split, join, check, undo. Each is one edit, saved as an
// object of its own beside the run, that replaces some segments by others. What somebody else has
// saved meanwhile is shown next to it, and nothing of theirs is lost.

import { clock, element, parametersOf, send } from "./page.js";

const NAME_KEY = "corpus-asr-name";
const SHORTEST_S = 0.05;
const OTHER = "\u0000"; // no speaker is called this
// Languages that put no space between sentences.
const UNSPACED = ["zh", "ja", "th", "lo", "my", "km", "yue", "bo"];

export function remembered() {
  try {
    return localStorage.getItem(NAME_KEY) ?? "";
  } catch {
    return ""; // storage is turned off
  }
}

function remember(name) {
  try {
    localStorage.setItem(NAME_KEY, name);
  } catch {
    // storage is turned off: the name is asked for again
  }
}

// Seconds of a time as it is shown, such as 1:02:03.50; NaN where it is none.
export function seconds(text) {
  if (!/^\s*(\d+:){0,2}\d+([.,]\d*)?\s*$/.test(text)) return NaN;
  return text.replace(",", ".").split(":").reduce((sum, part) => 60 * sum + Number(part), 0);
}

export function joined(one, other, language) {
  return [one, other].filter(Boolean).join(UNSPACED.includes(language) ? "" : " ");
}

// When the character at a place of a segment's text is said: by its words, where it has them.
export function momentOf({ text, words, start_s, end_s }, place) {
  if (words && words.map(([word]) => word).join("").trim() === text) {
    let at = words[0][0].trimStart().length - words[0][0].length; // the text has no outer blanks
    for (const [word, from_s] of words) {
      at += word.length;
      if (at > place) return from_s;
    }
  }
  return start_s + ((end_s - start_s) * place) / Math.max(1, text.length);
}

// A form, which the player at the bottom may cover.
function bringIntoView(form) {
  form.scrollIntoView({ block: "nearest", behavior: "instant" });
  const floor = document.querySelector(".player:not([hidden])")?.getBoundingClientRect().top ?? innerHeight;
  const covered = Math.ceil(form.getBoundingClientRect().bottom - floor); // pages scroll by whole pixels
  if (covered > 0) scrollBy({ top: covered, behavior: "instant" });
}

// What is sent of a segment that stays as it is.
function plain({ start_s, end_s, text, said_by }) {
  return { start_s, end_s, text, speaker: said_by ?? null };
}

export class Editor {
  // `find` returns the segment of a key as it is shown, `next` the one after it in its channel.
  constructor(id, { find, next, onPlay, onSaved, speakers = () => [], waveform = () => null }) {
    Object.assign(this, { id, find, next, onPlay, onSaved, speakers, waveform });
    this.open = new Map(); // forms by the keys of segments
    this.made = []; // what this page saved, the last at the end
    addEventListener("beforeunload", (event) => {
      if ([...this.open.values()].some((one) => one.changed())) event.preventDefault();
    });
  }

  edit(segment) {
    const { key } = segment.told;
    if (!this.open.has(key)) this.open.set(key, this.form(segment.told));
    this.attach(segment);
    const { field, mark } = this.open.get(key);
    field.focus();
    bringIntoView(this.open.get(key).form);
    mark();
  }

  // Put an open form into its segment, also where that has been drawn again; where it is another one
  // by now, into the one at its time, so that nothing that was written is lost.
  attach(segment) {
    const { key, start_s, end_s, channel } = segment.told;
    const stray = (one) => !one.form.isConnected && !this.find(one.key) && one.told.channel === channel && one.told.start_s >= start_s && one.told.start_s < end_s;
    const opened = this.open.get(key) ?? [...this.open.values()].find(stray);
    if (!opened || opened.form.parentNode === segment.element) return;
    opened.host = segment;
    segment.text.hidden = true;
    segment.text.after(opened.form);
  }

  form(told) {
    const { key } = told;
    const field = element("textarea", { value: told.text, rows: 2, maxLength: 4000, spellcheck: true, dir: "auto" });
    if (told.language) field.lang = told.language;
    field.setAttribute("aria-label", "Text of the segment");
    const [from, to] = [["Start", told.start_s], ["End", told.end_s]].map(([label, value]) => {
      const made = element("input", { value: clock(value, 2), size: 9, inputMode: "decimal", autocomplete: "off", className: "moment" });
      made.setAttribute("aria-label", `${label} of the segment`);
      return made;
    });
    const speaker = this.speakerField(told);
    const checked = element("input", { type: "checkbox", checked: Boolean(told.correction?.checked) });
    // What somebody checked was another text, or other times; a tick of this form stays.
    let ticked = false;
    const lapse = () => (checked.checked &&= ticked);
    checked.addEventListener("change", () => (ticked = true));
    const name = element("input", { value: remembered(), maxLength: 100, placeholder: "Your name (optional)", autocomplete: "name" });
    name.setAttribute("aria-label", "Your name, optional");
    const problem = element("p", { className: "bad small", role: "alert", hidden: true });
    const others = element("div", { className: "versions", hidden: true });
    const button = (text, title, action, className = "") => {
      const made = element("button", { type: "button", title, className }, text);
      made.setAttribute("aria-label", title);
      made.addEventListener("click", action);
      return made;
    };
    const span = () => {
      const [start_s, end_s] = [from, to].map((one, at) => (one.value === clock([told.start_s, told.end_s][at], 2) ? [told.start_s, told.end_s][at] : seconds(one.value)));
      if (!(end_s - start_s >= SHORTEST_S)) throw new Error("The times of a segment are like 1:02.50, its end after its start.");
      return { start_s, end_s };
    };
    const value = () => ({ ...span(), text: field.value, speaker: speaker.value() });
    const joins = () => this.joining(told, value());
    const original = told.correction?.changed ? element("p", { className: "quiet small original" }, "Original: ", element("bdi", {}, told.correction.original)) : null;
    const clip = element("a", { className: "button", download: "", title: "Save the sound of this segment" }, "⤓ wav");
    const draw = () => {
      clip.href = `api/clip?${parametersOf({ id: this.id, from: seconds(from.value).toFixed(2), to: seconds(to.value).toFixed(2), channel: told.channel })}`;
      const { start_s, end_s } = { start_s: seconds(from.value), end_s: seconds(to.value) };
      if (end_s > start_s) this.waveform()?.select({ start_s, end_s }, mark);
    };
    const mark = (moved = null) => {
      if (moved) {
        [from.value, to.value] = [clock(moved.start_s, 2), clock(moved.end_s, 2)];
        lapse();
      }
      draw();
    };
    const own = { key, told, joins, form: null, field, problem, others, mark, from, to };
    own.changed = () => field.value !== told.text || from.value !== clock(told.start_s, 2) || to.value !== clock(told.end_s, 2) || speaker.value() !== (told.said_by ?? null);
    const run = (action, isChecked = false) => this.attempt(own, action, { checked: isChecked, name: name.value });
    const play = () => this.onPlay(Number.isNaN(seconds(from.value)) ? told.start_s : seconds(from.value), seconds(to.value));
    const split = () => run(() => [[told], this.halves(value(), told, field.selectionStart)]);
    const join = () => run(joins);
    own.form = element("form", { className: "editor" }, field, problem, others, original,
      element("div", { className: "controls" }, element("button", { className: "main" }, "Save"),
        button("Cancel", "Cancel (Esc)", () => this.close(key)),
        button("▶", "Play this segment (Shift+Enter)", play),
        button("Split", "Split at the cursor (Ctrl+Enter)", split),
        button("Join next", "Join with the next segment (Ctrl+J)", join), clip,
        told.correction ? button("Undo this edit", "Go back to what this segment was before its last edit", () => this.attempt(own, null)) : null),
      element("div", { className: "controls" }, from, element("span", {}, "–"), to, speaker.box,
        element("label", { className: "small" }, checked, " Checked against the audio"), name));
    own.form.addEventListener("submit", (event) => {
      event.preventDefault();
      remember(name.value);
      run(() => [[told], [value()]], checked.checked);
    });
    own.form.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return; // 229: Safari, at the end of a composition
      const control = event.ctrlKey || event.metaKey;
      const step = { ArrowUp: SHORTEST_S, ArrowDown: -SHORTEST_S }[event.key];
      if (event.key === "Escape") this.close(key);
      else if (control && event.key === "Enter") split();
      else if (control && event.key === "j") join();
      else if (event.key === "Enter" && event.shiftKey && event.target === field) play();
      else if (event.key === "Enter" && (event.target === field || event.target.className === "moment")) own.form.requestSubmit();
      else if (step && event.target.className === "moment" && !Number.isNaN(seconds(event.target.value))) {
        event.target.value = clock(Math.max(0, seconds(event.target.value) + step), 2);
        lapse();
        mark();
      } else return;
      event.preventDefault();
      event.stopPropagation();
    });
    for (const one of [field, from, to]) one.addEventListener("input", lapse);
    for (const one of [from, to]) one.addEventListener("change", () => mark());
    draw();
    return own;
  }

  // Who speaks one segment: by the turns, one of the recording, or anybody by a name.
  speakerField(told) {
    const known = this.speakers().map(({ speaker, name }) => [speaker, name]);
    const chosen = told.said_by ?? null;
    if (chosen && !known.some(([speaker]) => speaker === chosen)) known.push([chosen, chosen]);
    const turns = known.find(([speaker]) => speaker === told.by_turns)?.[1];
    const options = [["", turns ? `${turns} (by turns)` : known.length ? "nobody (by turns)" : "no speaker"], ...known, [OTHER, "another name …"]];
    const list = element("select", { title: "Who speaks this segment" }, ...options.map(([value, text]) => element("option", { value, selected: value === (chosen ?? "") }, text)));
    const other = element("input", { maxLength: 100, placeholder: "Name of the speaker", hidden: true, dir: "auto" });
    for (const one of [list, other]) one.setAttribute("aria-label", "Speaker of this segment");
    list.addEventListener("change", () => {
      other.hidden = list.value !== OTHER;
      if (!other.hidden) other.focus();
    });
    const value = () => (list.value === OTHER ? other.value.trim() : list.value) || null;
    return { box: element("span", { className: "choices" }, list, other), value };
  }

  halves(whole, told, place) {
    const [before, after] = [whole.text.slice(0, place).trim(), whole.text.slice(place).trim()];
    if (!before || !after) throw new Error("Put the cursor into the text, where the segment is to be split.");
    const at_s = momentOf({ ...whole, words: told.words }, place + (whole.text.length - whole.text.slice(place).trimStart().length - place));
    const middle_s = Math.min(whole.end_s - SHORTEST_S, Math.max(whole.start_s + SHORTEST_S, Math.round(100 * at_s) / 100));
    return [{ ...whole, text: before, end_s: middle_s }, { ...whole, text: after, start_s: middle_s }];
  }

  async joining(told, value) {
    const next = await this.next(told.key);
    if (!next) throw new Error("There is no segment after this one to join.");
    const text = joined(value.text.trim(), next.told.text, told.language);
    return [[told, next.told], [{ ...value, text, end_s: Math.max(value.end_s, next.told.end_s) }]];
  }

  close(key) {
    const opened = this.open.get(key);
    if (!opened) return;
    this.drop(opened);
    this.focus(opened.host);
  }

  // Give the keys of the page back to it: a button would take the space bar.
  focus(segment) {
    if (!segment) return;
    segment.element.tabIndex = -1;
    segment.element.focus({ preventScroll: true });
  }

  drop({ key, form, host }) {
    form.remove();
    host.text.hidden = false;
    this.open.delete(key);
    this.waveform()?.select(null);
  }

  // Save what an action makes of the form: which segments, and what replaces them; without one, go
  // back to what the model wrote.
  async attempt(own, action, values = {}) {
    if (own.saving) return; // keys come also where buttons are disabled
    own.saving = true;
    const buttons = [...own.form.querySelectorAll("button")];
    for (const one of buttons) one.disabled = true;
    own.problem.hidden = own.others.hidden = true;
    try {
      const answer = action ? await this.save(...(await action()), values) : await this.withdraw(own.told);
      this.drop(own);
      this.focus(this.find(answer.segments[0]?.key));
    } catch (error) {
      // In another window: what was written here stays.
      own.problem.replaceChildren(error.message);
      own.problem.hidden = false;
      if (error.segments) this.versions(own, error.segments, action, values);
      bringIntoView(own.form);
    }
    for (const one of buttons) one.disabled = false;
    own.saving = false;
  }

  // Show what somebody else saved next to what is written here, to choose.
  versions(own, there, action, values) {
    const { start_s, end_s } = own.told;
    // Segments next to it may overlap a little.
    const theirs = there.filter((one) => Math.min(one.end_s, end_s) - Math.max(one.start_s, start_s) > Math.min(one.end_s - one.start_s, end_s - start_s) / 2);
    const text = theirs.map((one) => one.text).filter(Boolean).join(" / ") || "(removed)";
    const mine = element("button", { type: "button" }, "Save mine");
    const other = element("button", { type: "button" }, "Take theirs");
    // Saving again replaces what is shown now.
    mine.addEventListener("click", () => this.attempt(own, async () => [theirs, (await action())[1]], values));
    other.addEventListener("click", async () => {
      this.drop(own);
      await this.onSaved({ removed: [own.key], segments: theirs });
      this.focus(this.find(theirs[0]?.key));
    });
    // What was to be joined may be another segment by now.
    mine.disabled = !action || action === own.joins || !theirs.length;
    own.others.replaceChildren(
      element("section", {}, element("h3", {}, "Mine"), element("p", { dir: "auto" }, own.field.value || "(removed)"), mine),
      element("section", {}, element("h3", {}, "Theirs"), element("p", { dir: "auto" }, text), other));
    own.others.hidden = false;
  }

  async save(replaced, segments, { checked = false, name = remembered() } = {}) {
    const seen = Object.fromEntries(replaced.map((one) => [one.key, one.version]));
    const answer = await send("api/correct", { id: this.id, keys: replaced.map((one) => one.key), segments, checked, name, seen });
    return this.saved(answer);
  }

  async saved(answer) {
    if (answer.segments.length) this.made.push(answer.segments[0]);
    await this.onSaved(answer);
    return answer;
  }

  // Say that a segment is right as it is; or, if that was said, no longer.
  check({ told }) {
    return this.save([told], null, { checked: !told.correction?.checked });
  }

  // Let somebody speak one segment.
  speak({ told }, speaker) {
    return this.save([told], [{ ...plain(told), speaker }], { checked: Boolean(told.correction?.checked) });
  }

  async withdraw({ key, version }) {
    const answer = await send("api/undo", { id: this.id, key, seen: version });
    this.made = this.made.filter((one) => one.key !== key);
    await this.onSaved(answer);
    return answer;
  }

  // Take back what this page saved last; false where there is nothing.
  async undo() {
    const last = this.made.pop();
    if (!last) return false;
    try {
      await this.withdraw(last);
    } catch (error) {
      if (error.status !== 409) this.made.push(last); // somebody has edited it since: it is theirs
      throw error;
    }
    return true;
  }
}
