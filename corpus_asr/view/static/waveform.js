// The picture of a recording's sound around the playhead, drawn from the clip that the server cuts. A
// slider for keyboards and for screen readers. Of a segment that is edited, start and end are drawn,
// to be dragged or moved by keys.

import { clock, element, parametersOf } from "./page.js";

const USUAL_S = 60;
const SHORTEST_S = 5;
const LONGEST_S = 600; // of a clip
const SOON_MS = 120;
const STEP_S = 1;
const EDGE_STEP_S = 0.05;
const AROUND_S = 2; // shown before and after a segment that is edited
const HEADER_BYTES = 44; // of a WAV
const PEAK_SAMPLES = 160; // 10 ms

export class Waveform {
  // Where times are exact only if it is decoded from its start, only that start is drawn.
  constructor(id, durationS, { onSeek, fromStart = false }) {
    Object.assign(this, { id, durationS, onSeek, fromStart });
    this.at = 0;
    this.channel = "";
    this.spanS = Math.min(durationS, USUAL_S);
    this.startS = 0;
    this.canvas = element("canvas", {});
    this.slider = element("div", { className: "slider", role: "slider", tabIndex: 0 }, this.canvas);
    this.slider.setAttribute("aria-label", "Position in the recording");
    this.slider.setAttribute("aria-valuemin", "0");
    this.slider.setAttribute("aria-valuemax", durationS.toFixed(1));
    this.note = element("span", { className: "quiet small" });
    this.span = null; // of the segment that is edited
    this.edges = ["start", "end"].map((side) => this.edge(side));
    this.box = element("div", { className: "waveform" }, element("div", { className: "frame" }, this.slider, ...this.edges), this.note);
    this.drawn = null; // peaks, and the span that they are of
    this.playable = false; // whether there is sound to draw
    this.slider.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("pointerdown", (event) => this.onSeek(Math.min(durationS, Math.max(0, this.pointed(event)))));
    new ResizeObserver(() => this.draw()).observe(this.slider);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.look(0);
  }

  // The moment under the pointer.
  pointed(event) {
    const { left, width } = this.canvas.getBoundingClientRect();
    return this.startS + (this.spanS * (event.clientX - left)) / width;
  }

  // A handle at the start or end of the segment that is edited.
  edge(side) {
    const made = element("div", { className: `edge ${side}`, role: "slider", tabIndex: 0, hidden: true, title: `${side === "start" ? "Start" : "End"} of the segment: drag it, or use the arrow keys` });
    made.setAttribute("aria-label", `${side === "start" ? "Start" : "End"} of the segment`);
    made.setAttribute("aria-valuemin", "0");
    made.setAttribute("aria-valuemax", this.durationS.toFixed(2));
    made.addEventListener("pointerdown", (event) => {
      made.setPointerCapture(event.pointerId);
      event.preventDefault();
      made.focus();
    });
    made.addEventListener("pointermove", (event) => {
      if (made.hasPointerCapture(event.pointerId)) this.push(side, this.pointed(event));
    });
    made.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
      if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
      this.push(side, this.span[`${side}_s`] + by * EDGE_STEP_S * (event.shiftKey ? 10 : 1));
      event.preventDefault();
      event.stopPropagation();
    });
    return made;
  }

  push(side, to) {
    const { start_s, end_s } = this.span;
    const [low, high] = side === "start" ? [0, end_s - EDGE_STEP_S] : [start_s + EDGE_STEP_S, this.durationS];
    this.span[`${side}_s`] = Math.round(100 * Math.min(high, Math.max(low, to))) / 100;
    this.onMove({ ...this.span });
    this.draw();
  }

  // Show the span of a segment that is edited; `onMove` is called with another one.
  select(span, onMove = () => {}) {
    const changes = !span !== !this.span;
    this.span = span;
    this.onMove = onMove;
    for (const one of this.edges) one.hidden = !span;
    if (!changes) return this.draw();
    const lasts_s = span ? span.end_s - span.start_s + 2 * AROUND_S : USUAL_S;
    this.spanS = Math.min(this.durationS, LONGEST_S, Math.max(SHORTEST_S, lasts_s));
    return this.look(span ? (span.start_s + span.end_s - this.spanS) / 2 : this.at - this.spanS * 0.1);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const to = {
      ArrowLeft: this.at - STEP_S, ArrowDown: this.at - STEP_S, ArrowRight: this.at + STEP_S, ArrowUp: this.at + STEP_S,
      PageUp: this.at + this.spanS / 4, PageDown: this.at - this.spanS / 4, Home: 0, End: this.durationS,
    }[event.key];
    if (to === undefined) return;
    this.onSeek(Math.min(this.durationS, Math.max(0, to)));
    event.preventDefault();
    event.stopPropagation();
  }

  look(from) {
    this.startS = Math.min(Math.max(0, from), this.durationS - this.spanS);
    // The lane of turns shows the same span.
    this.slider.style.setProperty("--before", this.startS / this.spanS);
    this.slider.style.setProperty("--spans", this.durationS / this.spanS);
    clearTimeout(this.timer);
    if (this.playable) this.timer = setTimeout(() => this.load(), SOON_MS);
    this.draw();
  }

  // Follow the player.
  move(at) {
    this.at = at;
    this.slider.setAttribute("aria-valuenow", at.toFixed(1));
    this.slider.setAttribute("aria-valuetext", clock(at));
    // A segment that is edited stays in view.
    if (!this.span && (at < this.startS || at > this.startS + this.spanS)) this.look(at - this.spanS * 0.1);
    else this.draw();
  }

  // Draw the sound, of one channel if it is named.
  listen(channel) {
    Object.assign(this, { channel, playable: true });
    this.look(this.startS);
  }

  async load() {
    this.asking?.abort();
    this.asking = new AbortController();
    const { startS, spanS } = this;
    this.note.textContent = this.fromStart && startS > LONGEST_S ? "no waveform of this part" : "";
    if (this.note.textContent) return;
    // Sums of floats may end a little behind the recording.
    const span = { from: startS.toFixed(3), to: Math.min(this.durationS, startS + spanS).toFixed(3) };
    try {
      const found = await fetch(`api/clip?${parametersOf({ id: this.id, ...span, channel: this.channel })}`, { signal: this.asking.signal });
      if (!found.ok) throw new Error((await found.json()).error);
      const samples = new Int16Array(await found.arrayBuffer(), HEADER_BYTES);
      const peaks = Array.from({ length: Math.ceil(samples.length / PEAK_SAMPLES) }, (_, at) =>
        samples.subarray(at * PEAK_SAMPLES, (at + 1) * PEAK_SAMPLES).reduce((peak, one) => Math.max(peak, Math.abs(one)), 0));
      this.drawn = { peaks, startS, spanS };
      this.draw();
    } catch (error) {
      if (error.name !== "AbortError") this.note.textContent = error.message;
    }
  }

  draw() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = null;
      this.paint(this.canvas);
    });
  }

  paint(canvas) {
    const { clientWidth: width, clientHeight: height } = canvas;
    const ratio = devicePixelRatio;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const colors = getComputedStyle(canvas);
    const color = (name) => colors.getPropertyValue(name);
    const x = (seconds) => ((seconds - this.startS) / this.spanS) * width;
    context.fillStyle = color("--chart-1");
    if (this.drawn) this.bars(context, this.drawn, x, width, height);
    if (this.span) this.place(context, color("--accent"), x, height);
    context.fillStyle = color("--chart-2");
    context.fillRect(Math.round(x(this.at)) - 1, 0, 2, height);
  }

  // Draw the span of the segment that is edited, and put its handles there.
  place(context, color, x, height) {
    const [from, to] = [x(this.span.start_s), x(this.span.end_s)];
    context.save();
    context.globalAlpha = 0.2;
    context.fillStyle = color;
    context.fillRect(from, 0, to - from, height);
    context.restore();
    for (const [at, edge] of this.edges.entries()) {
      const place = [from, to][at];
      edge.style.left = `${place}px`;
      edge.hidden = place < -1 || place > this.canvas.clientWidth + 1;
      edge.setAttribute("aria-valuenow", this.span[["start_s", "end_s"][at]].toFixed(2));
      edge.setAttribute("aria-valuetext", clock(this.span[["start_s", "end_s"][at]], 2));
    }
  }

  // The loudest sample in each pixel.
  bars(context, { peaks, startS, spanS }, x, width, height) {
    const perPixel = (this.spanS / spanS) * (peaks.length / width);
    for (let pixel = Math.max(0, Math.floor(x(startS))); pixel < Math.min(width, x(startS + spanS)); pixel += 1) {
      const first = Math.max(0, Math.floor((pixel - x(startS)) * perPixel));
      const peak = Math.max(0, ...peaks.slice(first, Math.max(first + 1, Math.ceil(first + perPixel))));
      // By the root, so that quiet speech is seen next to a shout.
      const tall = Math.max(1, Math.sqrt(peak / 32768) * height);
      context.fillRect(pixel, (height - tall) / 2, 1, tall);
    }
  }
}
