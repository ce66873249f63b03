// The segments of a recording. Only blocks near what is seen are in the page, so that a day of
// speech scrolls like a minute; the others hold their place.

import { aboutCorrection, ask, clock, correctionBadge, element, pieces } from "./page.js";

const NEAR = "1500px";
const KEPT_BLOCKS = 12;
const SEGMENT_PX = 88; // a guess, until a block has been seen
// Where one speaker says more, or pauses longer, a new paragraph begins.
const PARAGRAPH_S = 60;
const PAUSE_S = 2;

export class Transcript {
  constructor(root, info, { speakers, onPick, onEdit = null, onShown = () => {} }) {
    this.root = root;
    this.speakers = speakers;
    this.onPick = onPick;
    this.onEdit = onEdit;
    this.onShown = onShown;
    this.query = "";
    this.uses = 0;
    root.addEventListener("click", (event) => this.clicked(event));
    this.observer = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (isIntersecting) this.load(Number(target.dataset.number));
      }
    }, { rootMargin: NEAR });
    this.build(info);
  }

  build(info) {
    const heights = (this.blocks ?? []).map(({ box }) => box.offsetHeight);
    this.info = info;
    this.now = [];
    this.observer.disconnect();
    this.blocks = info.block_starts_s.map((start_s, number) => {
      const rows = Math.min(info.block_rows, info.segments - number * info.block_rows);
      const box = element("div", { className: "block" });
      box.style.height = `${heights[number] ?? rows * SEGMENT_PX}px`;
      box.dataset.number = number;
      return { start_s, box, segments: null, loading: null, used: 0 };
    });
    this.root.replaceChildren(...this.blocks.map((block) => block.box));
    for (const { box } of this.blocks) this.observer.observe(box);
  }

  // There are other segments than before: build the blocks again; what is seen stays in its place.
  async reset(info) {
    const shown = this.blocks.flatMap((block) => block.segments ?? []);
    const seen = shown.find((one) => one.element.getBoundingClientRect().bottom > 0);
    const top = seen?.element.getBoundingClientRect().top;
    const writing = this.writing();
    this.build(info);
    if (!seen || !this.blocks.length) return;
    await this.load(this.blockAt(seen.start_s));
    const again = this.segmentAt(seen.start_s);
    if (again) scrollBy({ top: again.element.getBoundingClientRect().top - top, behavior: "instant" });
    if (writing?.isConnected) writing.focus({ preventScroll: true });
  }

  // The field that somebody writes in, which loses the focus where its segment is drawn again.
  writing() {
    return document.activeElement?.closest(".editor") ? document.activeElement : null;
  }

  // The segment of a key, if it is shown.
  find(key) {
    return this.blocks.flatMap((block) => block.segments ?? []).find((one) => one.told.key === key) ?? null;
  }

  // The segment after that of a key, in its channel, or in any.
  async next(key, { sameChannel = true } = {}) {
    const segment = this.find(key);
    if (!segment) return null;
    const number = Number(segment.element.dataset.block);
    if (number + 1 < this.blocks.length) await this.load(number + 1);
    const following = this.blocks.slice(number, number + 2).flatMap((block) => block.segments ?? []);
    const later = following.slice(following.indexOf(segment) + 1);
    return later.find((one) => !sameChannel || one.told.channel === segment.told.channel) ?? null;
  }

  // Show segments one by one, or as paragraphs of speakers.
  flow(asParagraphs) {
    this.root.classList.toggle("paragraphs", asParagraphs);
  }

  // Mark where paragraphs begin.
  paragraphs({ segments }) {
    let first = null;
    let before = null;
    for (const one of segments) {
      const { speaker, channel } = one.told;
      const begins = !before || speaker !== before.told.speaker || channel !== before.told.channel
        || one.start_s - before.end_s > PAUSE_S || one.end_s - first.start_s > PARAGRAPH_S;
      if (begins) first = one;
      one.element.classList.toggle("begins", begins);
      before = one;
    }
  }

  // Mark what was searched for; what is shown already is fetched again.
  search(query, wholeWords = false) {
    this.query = query;
    this.wholeWords = wholeWords;
    return this.refresh();
  }

  // Fetch again what is shown.
  refresh() {
    const shown = this.blocks.flatMap((block, number) => (block.segments ? [number] : []));
    for (const number of shown) this.blocks[number].loading = null;
    return Promise.all(shown.map((number) => this.load(number)));
  }

  edited(block) {
    return block.box.querySelector(".editor") !== null;
  }

  load(number) {
    const block = this.blocks[number];
    block.used = ++this.uses;
    if (!block.loading) {
      const loading = this.fetch(number).catch((error) => {
        if (block.loading === loading) block.loading = null;
        block.box.replaceChildren(element("p", { className: "bad" }, error.message));
      });
      block.loading = loading;
    }
    return block.loading;
  }

  async fetch(number) {
    const block = this.blocks[number];
    const query = this.query;
    const asked = (block.asked = {});
    const told = await ask("segments", { id: this.info.id, block: number, q: query, whole_words: this.wholeWords });
    // What is searched for, or is in the block, is another by now, or all blocks are.
    if (query !== this.query || block.asked !== asked || this.blocks[number] !== block) return;
    block.segments = told.segments.map((segment, at) => this.segment(segment, number, at));
    const before = block.box.getBoundingClientRect();
    this.paragraphs(block);
    const writing = this.writing();
    block.box.replaceChildren(...block.segments.map((segment) => segment.element));
    block.box.style.height = "";
    for (const segment of block.segments) this.onShown(segment);
    if (writing?.isConnected) writing.focus({ preventScroll: true });
    // What is read stays where it is, however high that which is above it turns out to be.
    if (before.top < 0) scrollBy({ top: block.box.offsetHeight - before.height, behavior: "instant" });
    this.forget();
    this.show(this.at ?? 0);
  }

  // Blocks that were not looked at for long give their place back.
  forget() {
    const full = this.blocks.filter((block) => block.segments);
    if (full.length <= KEPT_BLOCKS) return;
    const seen = (block) => {
      const { top, bottom } = block.box.getBoundingClientRect();
      return bottom > -2 * innerHeight && top < 3 * innerHeight;
    };
    full.sort((a, b) => a.used - b.used);
    for (const block of full.filter((one) => !seen(one) && !this.edited(one)).slice(0, full.length - KEPT_BLOCKS)) {
      block.box.style.height = `${block.box.offsetHeight}px`;
      block.box.replaceChildren();
      block.segments = null;
      block.loading = null;
    }
  }

  // Mark a whole segment by its confidence.
  mark(made, sure) {
    if (sure < this.info.low_confidence) made.classList.add("doubtful");
    else if (sure < this.info.high_confidence) made.classList.add("unsure");
  }

  segment(told, block, at) {
    const words = [];
    const text = element("p", { className: "said", dir: "auto" });
    if (told.language) text.lang = told.language;
    if (told.words) {
      for (const [index, [word, start_s, end_s, sure, found]] of told.words.entries()) {
        const bare = word.trimStart();
        text.append(word.slice(0, word.length - bare.length));
        const doubtful = sure < this.info.low_word_confidence;
        const title = `${clock(start_s, 2)} · confidence ${Math.round(sure * 100)}%`;
        const made = element(doubtful ? "mark" : "span", { className: doubtful ? "word doubtful" : "word", title }, bare);
        if (found) made.classList.add("found");
        made.dataset.word = index;
        text.append(made);
        words.push({ start_s, end_s, element: made });
      }
    } else {
      text.append(...pieces(told.pieces));
      text.classList.add("whole");
      if (told.confidence !== null) this.mark(text, told.confidence);
    }
    const said = told.correction;
    if (said) {
      text.title = aboutCorrection(said);
      for (const { element: word } of words) word.title = text.title;
      if (!said.text) text.append(element("em", { className: "quiet" }, "(text removed)"));
    }
    const time = element("button", { type: "button", className: "time" }, clock(told.start_s));
    time.setAttribute("aria-label", `Play from ${clock(told.start_s)}`);
    const sure = element("span", { className: "quiet small sure" });
    if (said) sure.append(correctionBadge(said));
    else if (told.confidence !== null) sure.append(`${Math.round(told.confidence * 100)}%`);
    if (this.onEdit) {
      const edit = element("button", { type: "button", className: "edit", title: "Correct (e)" }, "✎");
      edit.setAttribute("aria-label", `Correct the segment at ${clock(told.start_s)}`);
      sure.append(edit);
    }
    const who = told.channel === null ? null : element("span", { className: "who small" }, `${this.info.apart_as} ${told.channel}`);
    if (who) who.classList.add(told.channel % 2 ? "second" : "first");
    const made = element("div", { className: "segment" }, element("div", { className: "side small" }, time, who), text, sure);
    this.voiced(made, told);
    made.classList.toggle("corrected", Boolean(said));
    made.dataset.block = block;
    made.dataset.at = at;
    return { start_s: told.start_s, end_s: told.end_s, words, element: made, told, text };
  }

  // Say who speaks a segment, in the color of their turns.
  voiced(made, { speaker }) {
    if (!speaker) return;
    const number = this.speakers.number(speaker);
    const color = number < 0 ? "voice-other" : this.speakers.color(number);
    made.className = `${[...made.classList].filter((name) => !name.startsWith("voice")).join(" ")} ${color}`;
    const badge = number < 0 ? element("span", { className: `who small ${color}`, dir: "auto" }, speaker) : this.speakers.badge(number);
    badge.classList.add("speaker");
    const old = made.querySelector(".speaker");
    if (old) old.replaceWith(badge);
    else made.querySelector(".side").append(badge);
  }

  // Speakers that edits name, and that the run did not find, as far as segments are shown.
  others() {
    const said = this.blocks.flatMap((block) => block.segments ?? []).map(({ told }) => told.said_by);
    return [...new Set(said)].filter((name) => name && this.speakers.number(name) < 0).map((name) => ({ speaker: name, name }));
  }

  // Speakers have other names than before.
  rename() {
    for (const { element: made, told } of this.blocks.flatMap((block) => block.segments ?? [])) this.voiced(made, told);
  }

  // Put what the server says of a segment now in its place.
  replace(old, told) {
    const { block, at } = old.element.dataset;
    const made = this.segment(told, block, at);
    this.blocks[block].asked = null; // what is under way may be of before
    this.blocks[block].segments[at] = made;
    old.element.replaceWith(made.element);
    this.paragraphs(this.blocks[block]);
    this.show(this.at ?? 0);
    return made;
  }

  // The segment at a moment, or the last before it; null before the first, and where none is shown.
  segmentAt(at) {
    if (!this.blocks.length) return null;
    const number = this.blockAt(at);
    const around = this.blocks.slice(Math.max(0, number - 1), number + 1).flatMap((block) => block.segments ?? []);
    return around.findLast((one) => one.start_s <= at + 0.01) ?? null;
  }

  clicked(event) {
    const box = event.target.closest(".segment");
    if (!box || !getSelection().isCollapsed) return; // somebody selects text
    const segment = this.blocks[box.dataset.block].segments[box.dataset.at];
    if (event.target.closest(".editor, .speaker")) return undefined;
    if (event.target.closest(".edit")) return this.onEdit(segment);
    const word = event.target.closest(".word");
    if (word) this.onPick(segment.words[word.dataset.word].start_s);
    else if (event.target.closest(".time, .whole")) this.onPick(segment.start_s);
    return undefined;
  }

  // The block that holds a moment: the last that begins before it.
  blockAt(at) {
    let low = 0;
    let high = this.blocks.length - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.blocks[middle].start_s <= at) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  // Mark what is said at a moment; return the first element marked.
  show(at) {
    this.at = at;
    for (const marked of this.now) marked.classList.remove("now");
    this.now = [];
    if (!this.blocks.length) return null;
    const number = this.blockAt(at);
    let last = null;
    for (const block of this.blocks.slice(Math.max(0, number - 1), number + 1)) {
      for (const segment of block.segments ?? []) {
        if (segment.start_s <= at + 0.01) last = segment;
        if (segment.start_s > at + 0.01 || segment.end_s <= at) continue;
        this.now.push(segment.element);
        const word = segment.words.findLast((one) => one.start_s <= at + 0.01);
        if (word) this.now.push(word.element);
      }
    }
    for (const marked of this.now) marked.classList.add("now");
    return this.now.find((one) => one.classList.contains("word")) ?? this.now[0] ?? last?.element ?? null;
  }

  // Bring a moment into view.
  async reveal(at, { smooth = false } = {}) {
    if (!this.blocks.length) return;
    await this.load(this.blockAt(at));
    const found = this.show(at);
    found?.scrollIntoView({ block: "center", behavior: smooth && !matchMedia("(prefers-reduced-motion: reduce)").matches ? "smooth" : "instant" });
  }
}
