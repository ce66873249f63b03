// The picture of a recording's sound: a strip of the whole where it is long, and the span that is
// looked at, with pauses shaded. A slider for keyboards and for screen readers. Of a segment that is
// edited, start and end are drawn, to be dragged or moved by keys.

import { ask, clock, element } from "./page.js";

const LONG_S = 600; // beyond, the server decodes no peaks, and a strip shows the whole
const USUAL_S = 120;
const SHORTEST_S = 5;
const SOON_MS = 120;
const STEP_S = 1;
const EDGE_STEP_S = 0.05;
const AROUND_S = 2; // shown before and after a segment that is edited

export class Waveform {
  constructor(id, durationS, { onSeek }) {
    this.id = id;
    this.durationS = durationS;
    this.onSeek = onSeek;
    this.at = 0;
    this.channel = "";
    this.spanS = durationS <= LONG_S ? durationS : USUAL_S;
    this.startS = 0;
    this.detail = element("canvas", { className: "detail" });
    this.whole = durationS > LONG_S ? element("canvas", { className: "whole" }) : null;
    this.slider = element("div", { className: "slider", role: "slider", tabIndex: 0 }, ...[this.whole, this.detail].filter(Boolean));
    this.slider.setAttribute("aria-label", "Position in the recording");
    this.slider.setAttribute("aria-valuemin", "0");
    this.slider.setAttribute("aria-valuemax", durationS.toFixed(1));
    this.note = element("span", { className: "quiet small" });
    this.zoomIn = this.button("+", "Zoom in (+)", () => this.zoom(0.5));
    this.zoomOut = this.button("−", "Zoom out (-)", () => this.zoom(2));
    this.span = null; // of the segment that is edited
    this.edges = ["start", "end"].map((side) => this.edge(side));
    const frame = element("div", { className: "frame" }, this.slider, ...this.edges);
    this.box = element("div", { className: "waveform" }, frame, element("div", { className: "zoom" }, this.zoomOut, this.zoomIn, this.note));
    this.drawn = new Map(); // what the server said, by canvas
    this.slider.addEventListener("keydown", (event) => this.key(event));
    for (const canvas of [this.whole, this.detail].filter(Boolean)) {
      canvas.addEventListener("pointerdown", (event) => {
        const { left, width } = canvas.getBoundingClientRect();
        const [from, span] = canvas === this.whole ? [0, durationS] : [this.startS, this.spanS];
        this.onSeek(Math.min(durationS, Math.max(0, from + span * (event.clientX - left) / width)));
      });
    }
    new ResizeObserver(() => this.reload()).observe(this.slider);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.move(0);
  }

  button(text, title, action) {
    const made = element("button", { type: "button", title }, text);
    made.setAttribute("aria-label", title);
    made.addEventListener("click", action);
    return made;
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
      if (!made.hasPointerCapture(event.pointerId)) return;
      const { left, width } = this.detail.getBoundingClientRect();
      this.push(side, this.startS + (this.spanS * (event.clientX - left)) / width);
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
    const [begins, ends] = [span && !this.span, !span && this.span];
    this.span = span;
    this.onMove = onMove;
    for (const one of this.edges) one.hidden = !span;
    if (ends) {
      this.spanS = this.before.spanS;
      this.look(this.before.startS);
      this.move(this.at);
    } else if (begins) {
      this.before = { spanS: this.spanS, startS: this.startS };
      this.spanS = Math.min(this.durationS, LONG_S, Math.max(SHORTEST_S, span.end_s - span.start_s + 2 * AROUND_S));
      this.look((span.start_s + span.end_s - this.spanS) / 2);
    } else this.draw();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const to = {
      ArrowLeft: this.at - STEP_S, ArrowDown: this.at - STEP_S, ArrowRight: this.at + STEP_S, ArrowUp: this.at + STEP_S,
      PageUp: this.at + this.spanS / 4, PageDown: this.at - this.spanS / 4, Home: 0, End: this.durationS,
    }[event.key];
    if (to !== undefined) this.onSeek(Math.min(this.durationS, Math.max(0, to)));
    else if (event.key === "+" || event.key === "=") this.zoom(0.5);
    else if (event.key === "-") this.zoom(2);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  zoom(by) {
    const span = Math.min(this.durationS, LONG_S, Math.max(Math.min(SHORTEST_S, this.durationS), this.spanS * by));
    // What is at the playhead stays where it is.
    const place = Math.min(1, Math.max(0, (this.at - this.startS) / this.spanS));
    this.spanS = span;
    this.look(this.at - place * span);
  }

  look(from) {
    this.startS = Math.min(Math.max(0, from), this.durationS - this.spanS);
    this.zoomIn.disabled = this.spanS <= SHORTEST_S;
    this.zoomOut.disabled = this.spanS >= Math.min(this.durationS, LONG_S);
    // The lane of turns is that of the strip; where there is none, it shows the same span.
    const [before, spans] = this.whole ? [0, 1] : [this.startS / this.spanS, this.durationS / this.spanS];
    this.slider.style.setProperty("--before", before);
    this.slider.style.setProperty("--spans", spans);
    this.reload();
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

  listen(channel) {
    this.channel = channel;
    this.reload();
  }

  reload() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.load(), SOON_MS);
    this.draw();
  }

  async load() {
    this.asking?.abort();
    this.asking = new AbortController();
    const { signal } = this.asking;
    const width = Math.min(2000, Math.round(this.detail.clientWidth));
    if (!width) return;
    const { startS, spanS, channel } = this;
    try {
      if (this.whole && !this.drawn.has(this.whole)) {
        const found = await ask("waveform", { id: this.id, count: width }, signal);
        this.drawn.set(this.whole, { ...found, startS: 0, spanS: this.durationS });
        this.draw();
      }
      // Sums of floats may end a little behind the recording.
      const to = Math.min(this.durationS, startS + spanS);
      const found = await ask("waveform", { id: this.id, from: startS, to, count: width, channel }, signal);
      this.drawn.set(this.detail, { ...found, startS, spanS });
      this.note.textContent = found.peaks ? "" : "no waveform of this part";
      this.draw();
    } catch (error) {
      if (error.name !== "AbortError") this.note.textContent = error.message;
    }
  }

  draw() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = null;
      if (this.whole) this.paint(this.whole, 0, this.durationS);
      this.paint(this.detail, this.startS, this.spanS);
    });
  }

  paint(canvas, startS, spanS) {
    const { clientWidth: width, clientHeight: height } = canvas;
    const ratio = devicePixelRatio;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const colors = getComputedStyle(canvas);
    const color = (name) => colors.getPropertyValue(name);
    const x = (seconds) => ((seconds - startS) / spanS) * width;
    const found = this.drawn.get(canvas);
    if (found) {
      const pauses = found.pauses.map(([start, end]) => [x(start), x(end)]);
      const sound = () => this.bars(context, found, x, height);
      context.fillStyle = color("--chart-1");
      sound();
      // Within pauses the ground is shaded, and what sounds there is no speech.
      context.save();
      context.beginPath();
      for (const [start, end] of pauses) context.rect(start, 0, end - start, height);
      context.clip();
      context.clearRect(0, 0, width, height);
      context.fillStyle = color("--line");
      context.fillRect(0, 0, width, height);
      context.fillStyle = color("--quiet");
      if (found.peaks) sound();
      context.restore();
    }
    if (canvas === this.whole) {
      context.strokeStyle = color("--ink");
      context.strokeRect(x(this.startS), 0.5, Math.max(2, x(this.spanS) - x(0)), height - 1);
    }
    if (this.span && canvas === this.detail) this.place(context, color("--accent"), x, height);
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
      edge.hidden = place < -1 || place > this.detail.clientWidth + 1;
      edge.setAttribute("aria-valuenow", this.span[["start_s", "end_s"][at]].toFixed(2));
      edge.setAttribute("aria-valuetext", clock(this.span[["start_s", "end_s"][at]], 2));
    }
  }

  // Peaks; where there are none, how much of the time there are words.
  bars(context, { peaks, speech, startS, spanS }, x, height) {
    const values = peaks ?? speech;
    const start = x(startS);
    const step = (x(startS + spanS) - start) / values.length;
    context.beginPath();
    for (const [at, value] of values.entries()) {
      // Peaks by the root, so that quiet speech is seen next to a shout.
      const share = peaks ? Math.sqrt(value / 255) : (value / 255) ** 2;
      const tall = Math.max(1, share * height);
      context.rect(start + at * step, (height - tall) / 2, Math.max(step, 0.5), tall);
    }
    context.fill();
  }
}
