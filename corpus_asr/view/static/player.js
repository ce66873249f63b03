// The player at the foot of a page. Browsers play most recordings as they are, with their pictures;
// what they do not, or not rightly, the server decodes.

import { ask, clock, element } from "./page.js";

const SPEEDS = [0.5, 0.75, 1, 1.25, 1.5, 2];

export class Player {
  constructor(bar, { onTime = () => {}, onSound = () => {}, buttons = [], above = null }) {
    this.bar = bar;
    this.onTime = onTime;
    this.onSound = onSound;
    this.id = null;
    this.wish = null; // where to go once it is known how long the recording is
    this.until = null; // where playing ends
    this.title = element("bdi", {});
    this.note = element("p", { className: "small note", role: "status" });
    this.speed = element("select", { title: "Speed" }, ...SPEEDS.map((one) => element("option", { value: one, selected: one === 1 }, `${one}×`)));
    this.sound = element("select", { title: "Which sound" });
    this.choices = element("span", { className: "choices" },
      element("label", {}, element("span", { className: "unseen" }, "Speed"), this.speed),
      element("label", {}, element("span", { className: "unseen" }, "Sound"), this.sound));
    this.controls = element("div", { className: "controls" }, ...buttons, this.choices);
    bar.replaceChildren(...[element("p", { className: "small now-playing" }, this.title), above, this.controls, this.note].filter(Boolean));
    this.use("audio");
    this.speed.addEventListener("change", () => {
      this.audio.playbackRate = Number(this.speed.value);
    });
    this.sound.addEventListener("change", () => {
      this.load(this.time, this.playing);
      this.onSound(this.channel);
    });
  }

  // Let the element be of one kind, `audio` or `video`.
  use(kind) {
    if (this.audio?.localName === kind) return;
    const made = element(kind, { controls: true, preload: "metadata" });
    made.addEventListener("loadedmetadata", () => made === this.audio && this.arrive());
    made.addEventListener("error", () => made === this.audio && this.fail());
    for (const name of ["timeupdate", "seeked", "play", "pause"]) {
      made.addEventListener(name, () => made === this.audio && this.moved());
    }
    if (this.audio) {
      this.audio.pause();
      this.audio.removeAttribute("src");
      this.audio.load(); // ends its request
      this.audio.replaceWith(made);
    } else {
      this.bar.insertBefore(made, this.controls);
    }
    this.audio = made;
  }

  moved() {
    if (this.until !== null && this.audio.currentTime >= this.until) {
      this.until = null;
      this.audio.pause();
    }
    this.onTime(this.time);
  }

  // The channel that is heard alone, or an empty text.
  get channel() {
    return ["as_it_is", "decoded", ""].includes(this.sound.value) ? "" : this.sound.value;
  }

  get time() {
    return this.wish ? this.wish.at : this.audio.currentTime;
  }

  get playing() {
    return this.wish ? this.wish.play : !this.audio.paused;
  }

  get usable() {
    return this.id !== null && this.sound.options.length > 0;
  }

  // Take a recording; `apart` are the channels or tracks that were transcribed one by one.
  async open(id, name, apart = [], as = "channel") {
    this.id = id;
    this.title.textContent = name;
    this.bar.hidden = false;
    this.sound.replaceChildren();
    this.say("");
    let told;
    try {
      told = await ask("sound", { id });
    } catch (error) {
      return this.say(error.message);
    }
    if (this.id !== id) return undefined;
    this.mayBeVideo = told.may_be_video;
    this.audio.hidden = this.choices.hidden = !["ok", "changed"].includes(told.state);
    if (this.audio.hidden) return this.say(`No audio: ${told.message}`);
    if (told.state === "changed") this.say("This recording has changed since it was transcribed: audio and text may differ.");
    if (told.as_it_is) this.sound.append(element("option", { value: "as_it_is" }, "the file itself"));
    this.sound.append(element("option", { value: "decoded" }, "decoded"));
    for (const channel of apart) this.sound.append(element("option", { value: channel }, `${as} ${channel} alone`));
    return this.load(0, false);
  }

  load(at, play) {
    const query = new URLSearchParams({ id: this.id });
    if (this.sound.value !== "as_it_is") query.set("decode", "1");
    if (this.channel) query.set("channel", this.channel);
    this.use(this.mayBeVideo && this.sound.value === "as_it_is" ? "video" : "audio");
    this.wish = { at, play };
    this.audio.src = `audio?${query}`;
    this.audio.load();
    if (play) this.start(); // within the click that asked for it
  }

  arrive() {
    // Many containers of video hold sound alone.
    this.audio.classList.toggle("picture", Boolean(this.audio.videoWidth));
    this.audio.playbackRate = Number(this.speed.value);
    const wish = this.wish;
    this.wish = null;
    if (!wish) return;
    this.audio.currentTime = wish.at;
    if (wish.play) this.start();
  }

  start() {
    // Refused before the first click on a page, and ended by the next load: neither is a failure.
    this.audio.play().catch(() => {});
  }

  go(at, play = this.playing) {
    this.until = null;
    if (!this.usable) return this.onTime(at);
    if (this.wish) this.wish = { at, play };
    else this.audio.currentTime = at;
    if (play) this.start();
    return undefined;
  }

  // Play from one moment up to another.
  span(from, to) {
    this.go(from, true);
    this.until = to > from ? to : null;
  }

  async play(id, at, name) {
    if (this.id !== id) await this.open(id, name);
    this.go(at, true);
  }

  toggle() {
    this.until = null;
    if (this.audio.paused) this.start();
    else this.audio.pause();
  }

  faster(by) {
    const index = Math.min(SPEEDS.length - 1, Math.max(0, this.speed.selectedIndex + by));
    this.speed.selectedIndex = index;
    this.audio.playbackRate = SPEEDS[index];
    this.say(`${SPEEDS[index]}× speed`);
  }

  async fail() {
    if (!this.audio.error || !this.usable) return;
    if (this.sound.value === "as_it_is") {
      const { at, play } = { at: this.time, play: this.playing };
      this.sound.value = "decoded";
      this.say("This browser does not play the file itself, so it is decoded.");
      this.load(at, play);
      return;
    }
    const at = this.time;
    try {
      const told = await ask("sound", { id: this.id, decode: true, channel: this.channel });
      this.say(told.message ? `No audio: ${told.message}` : `Playback stopped at ${clock(at)}: the server could not read the rest; try again.`);
    } catch (error) {
      this.say(error.message);
    }
  }

  say(text) {
    this.note.textContent = text;
  }
}
