// What people set of a recording in place of its manifest's columns: number of speakers, hotwords.
// It counts from the next run on; until then, the panel says what the results are of.

import { remembered } from "./editor.js";
import { ask, byId, counted, send } from "./page.js";

const SPEAKERS = { one: "num_speakers", field: byId("num-speakers"), source: byId("num-speakers-source"), written: (set) => String(set ?? "") };
const HOTWORDS = { one: "hotwords", field: byId("hotwords"), source: byId("hotwords-source"), written: (set) => set.join("\n") };
const BOTH = [SPEAKERS, HOTWORDS];
const NEXT = "counts from the next run on";

const words = (value) => (Array.isArray(value) ? value.join(", ") : String(value ?? ""));
const same = (one, other) => words(one) === words(other);
const some = (value) => value !== null && value.length !== 0;

export class Overrides {
  constructor(id, { speakers, apart, apart_as }) {
    Object.assign(this, { id, found: speakers.length, told: null });
    if (apart.length > 1) byId("num-speakers-label").textContent = `Number of speakers of each ${apart_as}`;
    byId("overrides-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.save(SPEAKERS.field.value, HOTWORDS.field.value);
    });
    byId("overrides-form").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      byId("overrides-form").requestSubmit();
    });
    byId("overrides-remove").addEventListener("click", () => this.save("", ""));
    byId("overrides").addEventListener("toggle", () => byId("overrides").open && this.load());
    document.addEventListener("visibilitychange", () => document.hidden || this.load());
    addEventListener("beforeunload", (event) => this.changed() && event.preventDefault());
  }

  // Whether something is written in a field that is not what was set when it was shown.
  isWritten({ one, field, written }) {
    return this.told !== null && field.value.trim() !== written(this.told[one].set);
  }

  changed() {
    return BOTH.some((each) => this.isWritten(each));
  }

  async load() {
    try {
      const told = await ask("overrides", { id: this.id });
      if (!this.changed()) this.take(told); // else it is shown when that is saved
    } catch (error) {
      this.complain(error.message);
    }
  }

  // Show what the server says; what is written here stays, also where somebody else was first.
  take(told, { kept = [] } = {}) {
    this.told = told;
    for (const each of BOTH) {
      if (!kept.includes(each)) each.field.value = each.written(told[each.one].set);
      each.field.readOnly = !told.editable;
    }
    SPEAKERS.field.max = told.most_speakers;
    for (const one of byId("overrides-form").querySelectorAll("button")) one.hidden = !told.editable;
    this.allowRemoving();
    SPEAKERS.source.textContent = this.source(SPEAKERS, told.finds_speakers ? "" : "The runs of this output look for no speakers: it needs speakers: auto in their job.");
    HOTWORDS.source.textContent = this.source(HOTWORDS, told.takes_hotwords ? "" : "The runs of this output align known texts, for which hotwords do not count.");
    byId("overrides-summary").textContent = this.summary();
    byId("overrides").hidden = !told.counts;
  }

  // Which of the two applies, now and from the next run on.
  source({ one }, unused) {
    const { set, used, manifest } = this.told[one];
    const theirs = some(manifest) ? `The manifest says ${words(manifest)}` : "The manifest says nothing of it";
    const by = [this.told.name, new Date(this.told.saved_at).toLocaleDateString("en", { dateStyle: "medium" })].filter(Boolean).join(", ");
    if (unused) return unused;
    if (some(set) && same(set, used)) return `Set here (${by}) and used by the last run. ${theirs}.`;
    if (some(set)) return `Set here (${by}): ${NEXT}. Until then the results are of ${some(used) ? `what was set before, ${words(used)}` : "the manifest and the job"}. ${theirs}.`;
    if (some(used)) return `Not set any more, which ${NEXT}. The last run used ${words(used)}. ${theirs}.`;
    return some(manifest) ? `${theirs}, which applies.` : `${theirs}, and nothing is set: the settings of the job apply.`;
  }

  allowRemoving() {
    byId("overrides-remove").disabled = !BOTH.some(({ one }) => some(this.told[one].set));
  }

  pending() {
    return BOTH.some(({ one }) => !same(this.told[one].set, this.told[one].used));
  }

  summary() {
    const { num_speakers: num, hotwords } = this.told;
    const speakers = num.set ?? (num.manifest || null);
    const phrases = hotwords.set.length || hotwords.manifest.length;
    const number = Number(speakers);
    const parts = [
      speakers === null ? (this.found ? `${counted(this.found, "speaker")} found` : "") : Number.isNaN(number) ? `${speakers} speakers` : counted(number, "speaker"),
      phrases ? `${counted(phrases, "hotword")} of its own` : "no hotwords of its own",
    ];
    return `This recording: ${parts.filter(Boolean).join(", ")}${this.pending() ? ` (${NEXT})` : ""}`;
  }

  complain(message) {
    byId("overrides-problem").textContent = message ?? "";
    byId("overrides-problem").hidden = !message;
  }

  async save(speakers, hotwords) {
    const buttons = [...byId("overrides-form").querySelectorAll("button")];
    for (const one of buttons) one.disabled = true;
    this.complain("");
    byId("overrides-note").textContent = "";
    try {
      const num_speakers = speakers === "" ? null : Number(speakers);
      this.take(await send("api/override", { id: this.id, num_speakers, hotwords, name: remembered(), seen: this.told.seen }));
      byId("overrides-note").textContent = this.pending() ? `Saved: ${NEXT}.` : "Saved.";
    } catch (error) {
      const told = error.status === 409 ? await ask("overrides", { id: this.id }).catch(() => null) : null;
      // What somebody else set has been shown now: saving again replaces it.
      if (told) this.take(told, { kept: BOTH.filter((each) => this.isWritten(each)) });
      const theirs = told && [some(told.num_speakers.set) ? counted(told.num_speakers.set, "speaker") : "", words(told.hotwords.set)].filter(Boolean).join("; ");
      this.complain(told ? `${error.message}. Now set: ${theirs || "nothing"}.` : error.message);
    }
    for (const one of buttons) one.disabled = false;
    this.allowRemoving();
  }
}
