// Who speaks in a recording: their names and shares, a lane of turns along it, and a dialog in
// which a person says who somebody is.

import { byId, clock, counted, element, percent, send, voice } from "./page.js";

export class Speakers {
  constructor({ speakers, turns, duration_s, editable }, id, { onGo, onPlay, onNamed }) {
    this.speakers = speakers;
    this.turns = turns;
    this.duration_s = duration_s;
    this.editable = editable;
    this.id = id;
    this.onGo = onGo;
    this.onPlay = onPlay;
    this.onNamed = onNamed;
    this.list = element("p", { className: "voices small" });
    this.lane = element("div", { className: "lane" });
    this.lane.setAttribute("role", "img");
    this.asked = null;
    this.dialog = byId("naming");
    this.field = byId("speaker-name");
    byId("naming-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.save();
    });
    byId("naming-play").addEventListener("click", () => this.onPlay(this.longest(this.asked.number)));
    byId("naming-cancel").addEventListener("click", () => this.dialog.close());
    this.show();
  }

  // Put the lane above what shows the sound.
  above({ slider, box }) {
    if (!this.speakers.length) return;
    slider.prepend(this.lane);
    box.before(this.list);
  }

  // The number of a speaker, by label or by name; -1: an edit names somebody else.
  number(speaker) {
    const own = this.speakers.findIndex((one) => one.speaker === speaker);
    return own < 0 ? this.speakers.findIndex(({ name }) => name === speaker) : own;
  }

  // Those of one name are one person, and have one color.
  color(number) {
    return voice(this.speakers.findIndex(({ name }) => name === this.speakers[number].name));
  }

  // The name of a speaker as a button that asks who it is; as text where names cannot be given.
  badge(number, text = this.speakers[number].name) {
    const className = `who small ${this.color(number)}`;
    if (!this.editable) return element("span", { className }, text);
    const made = element("button", { type: "button", className: `plain ${className}`, title: "Name this speaker" }, text);
    made.setAttribute("aria-label", `${text}: name this speaker`);
    made.addEventListener("click", () => this.ask(number));
    return made;
  }

  show() {
    this.list.replaceChildren(...this.speakers.map(({ name, share }, number) => this.badge(number, `${name} ${percent(share)}`)));
    this.lane.setAttribute("aria-label", `Turns of ${counted(this.speakers.length, "speaker")}`);
    this.lane.replaceChildren(element("div", { className: "turns" }, ...this.turns.map(([start_s, end_s, number]) => {
      const turn = element("span", { className: `turn ${this.color(number)}`, title: `${this.speakers[number].name} ${clock(start_s)}` });
      turn.style.left = `${(100 * start_s) / this.duration_s}%`;
      turn.style.width = `${(100 * (end_s - start_s)) / this.duration_s}%`;
      turn.addEventListener("click", (event) => {
        event.stopPropagation(); // what is below goes where the pointer is
        this.onGo(start_s);
      });
      return turn;
    })));
  }

  // Take over what the server says, if it is news.
  update(speakers) {
    if (JSON.stringify(speakers) === JSON.stringify(this.speakers)) return;
    this.speakers = speakers;
    this.show();
    this.onNamed();
  }

  longest(number) {
    const own = this.turns.filter((turn) => turn[2] === number);
    return own.reduce((best, turn) => (turn[1] - turn[0] > best[1] - best[0] ? turn : best))[0];
  }

  ask(number) {
    const { speaker, given, name } = this.speakers[number];
    this.asked = { number, seen: given };
    byId("naming-title").textContent = given ? `Who is ${name} (${speaker})?` : `Who is ${name}?`;
    this.field.value = given;
    byId("naming-problem").hidden = true;
    this.dialog.showModal();
    this.field.select();
  }

  async save() {
    const { number, seen } = this.asked;
    try {
      const answer = await send("api/name", { id: this.id, speaker: this.speakers[number].speaker, name: this.field.value, seen });
      this.dialog.close();
      this.update(answer.speakers);
    } catch (error) {
      byId("naming-problem").textContent = error.message;
      byId("naming-problem").hidden = false;
      // What somebody else wrote has been shown now: saving again replaces it.
      if (error.status === 409) this.asked.seen = error.seen;
    }
  }
}
