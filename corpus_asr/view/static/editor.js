// Correcting a segment: a form in its place, saved as an object of its own beside the run.

import { element, send } from "./page.js";

const NAME_KEY = "corpus-asr-name";

function remembered() {
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

export class Editor {
  constructor(transcript, id, { onPlay, onSaved }) {
    this.transcript = transcript;
    this.id = id;
    this.onPlay = onPlay;
    this.onSaved = onSaved;
    this.open = new Map(); // by the keys of segments
    this.checked = true;
    addEventListener("beforeunload", (event) => {
      if ([...this.open.values()].some((one) => one.changed())) event.preventDefault();
    });
  }

  edit(segment) {
    const known = this.open.get(segment.told.key);
    if (known) return known.field.focus();
    const { told } = segment;
    const field = element("textarea", { value: told.text, rows: 2, maxLength: 4000, spellcheck: true, dir: "auto" });
    if (told.language) field.lang = told.language;
    field.setAttribute("aria-label", "Text of the segment");
    const checked = element("input", { type: "checkbox", checked: this.checked });
    const name = element("input", { value: remembered(), maxLength: 100, placeholder: "Your name (optional)", autocomplete: "name" });
    name.setAttribute("aria-label", "Your name, optional");
    const problem = element("p", { className: "bad small", role: "alert", hidden: true });
    const play = element("button", { type: "button", title: "Play this segment (Shift+Enter)" }, "▶");
    play.setAttribute("aria-label", "Play this segment");
    const cancel = element("button", { type: "button" }, "Cancel");
    const save = element("button", { className: "main" }, "Save");
    const back = told.correction ? element("button", { type: "button" }, "Back to the model’s text") : null;
    const original = told.correction?.changed ? element("p", { className: "quiet small original" }, "Original: ", element("bdi", {}, told.correction.original)) : null;
    const form = element("form", { className: "editor" }, field, original,
      element("div", { className: "controls" }, save, cancel, play,
        element("label", { className: "small" }, checked, " Checked against the audio"), name, back),
      problem);
    const submit = (values) => this.save(segment, form, problem, { checked: checked.checked, name: name.value, ...values });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.checked = checked.checked;
      remember(name.value);
      submit({ text: field.value });
    });
    form.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Escape") this.close(segment);
      else if (event.key === "Enter" && event.target === field) {
        event.preventDefault();
        if (event.shiftKey) this.onPlay(told.start_s);
        else form.requestSubmit();
      } else return;
      event.stopPropagation();
    });
    play.addEventListener("click", () => this.onPlay(told.start_s));
    cancel.addEventListener("click", () => this.close(segment));
    back?.addEventListener("click", () => submit({ undo: true }));
    segment.text.hidden = true;
    segment.text.after(form);
    this.open.set(told.key, { form, field, changed: () => field.value !== told.text });
    field.focus();
    return undefined;
  }

  close(segment) {
    this.open.get(segment.told.key)?.form.remove();
    this.open.delete(segment.told.key);
    segment.text.hidden = false;
    segment.element.querySelector(".edit").focus();
  }

  // Say that a segment is right as it is; or, if that was said, no longer.
  async check(segment) {
    const { correction } = segment.told;
    const checked = !correction?.checked;
    const values = { text: segment.told.text, checked, name: remembered() };
    return this.saved(segment, values);
  }

  async save(segment, form, problem, values) {
    const buttons = [...form.querySelectorAll("button")];
    for (const one of buttons) one.disabled = true;
    problem.hidden = true;
    try {
      const made = await this.saved(segment, values);
      made?.element.querySelector(".edit").focus();
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
    }
    for (const one of buttons) one.disabled = false;
  }

  async saved(segment, { undo, text, ...values }) {
    const { key, version, start_s, end_s } = segment.told;
    const answer = undo
      ? await send("api/undo", { id: this.id, key, seen: version })
      : await send("api/correct", { id: this.id, keys: [key], segments: [{ start_s, end_s, text }], seen: { [key]: version }, ...values });
    this.open.delete(key);
    const [one] = answer.segments;
    const made = one && this.transcript.replace(segment, one);
    this.onSaved(answer);
    return made;
  }
}
