// The picture of a recording's sound: a strip of the whole where it is long, and the span that is
// looked at, with pauses shaded. A slider for keyboards and for screen readers.

import { ask, clock, element } from "./page.js";

const LONG_S = 600; // beyond, the server decodes no peaks, and a strip shows the whole
const USUAL_S = 120;
const SHORTEST_S = 5;
const SOON_MS = 120;
const STEP_S = 1;

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
    this.box = element("div", { className: "waveform" }, this.slider, element("div", { className: "zoom" }, this.zoomOut, this.zoomIn, this.note));
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
    this.reload();
  }

  // Follow the player.
  move(at) {
    this.at = at;
    this.slider.setAttribute("aria-valuenow", at.toFixed(1));
    this.slider.setAttribute("aria-valuetext", clock(at));
    if (at < this.startS || at > this.startS + this.spanS) this.look(at - this.spanS * 0.1);
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
    context.fillStyle = color("--chart-2");
    context.fillRect(Math.round(x(this.at)) - 1, 0, 2, height);
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
