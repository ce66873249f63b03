// What the pages share: asking the server, making elements, saying times. Text only ever becomes
// text: nothing here takes HTML.

export function parametersOf(parameters) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(parameters)) {
    if (value !== "" && value !== null && value !== undefined && value !== false) {
      query.set(key, value === true ? "1" : value);
    }
  }
  return query;
}

export function ask(name, parameters = {}, signal = undefined) {
  return answered(`api/${name}?${parametersOf(parameters)}`, { signal });
}

// What changes something says so in a header that pages of other sites cannot send.
export function send(path, body) {
  return answered(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Corpus-ASR": "1" },
    body: JSON.stringify(body),
  });
}

async function answered(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: look at what it says in its terminal; if it has ended, start it again and open what it prints.");
  }
  const answer = await response.json();
  if (response.ok) return answer;
  const error = new Error(answer.error);
  error.status = response.status;
  error.seen = answer.seen;
  error.segments = answer.segments;
  throw error;
}

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== ""));
  return made;
}

export function byId(id) {
  return document.getElementById(id);
}

export function clock(seconds, digits = 0) {
  const scale = 10 ** digits;
  const whole = Math.floor(seconds * scale + 1e-6) / scale;
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor((whole % 3600) / 60);
  const rest = (whole % 60).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

export function long(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${(seconds / 60).toFixed(1)} min`;
  return `${(seconds / 3600).toLocaleString("en", { maximumFractionDigits: 1 })} h`;
}

export function percent(share) {
  return `${Math.round(share * 100)}%`;
}

// The class of a speaker's color; of many speakers some share one, and their names tell.
export function voice(number) {
  return `voice${number % 8}`;
}

export function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

const names = new Intl.DisplayNames(["en"], { type: "language", fallback: "code" });

// What a person said of a segment: a badge with the model's text and who it was.
export function correctionBadge(correction) {
  const badge = element("span", { className: "badge corrected" }, correction.changed ? "corrected" : correction.checked ? "checked" : "edited");
  badge.title = aboutCorrection(correction);
  return badge;
}

export function aboutCorrection({ changed, checked, original, name, saved_at }) {
  const who = name ? ` by ${name}` : "";
  const done = [changed ? "corrected" : "", checked ? "checked" : ""].filter(Boolean).join(" and ") || "edited";
  const by = `${done}${who} on ${saved_at.slice(0, 10)}`;
  return changed ? `Original: ${original}\n${by}` : by;
}

export function language(code) {
  try {
    return names.of(code);
  } catch {
    return code; // not a code that browsers know
  }
}

export const STATES = {
  done: "done",
  no_speech: "no speech",
  failed: "failed",
  unfinished: "not done yet",
};

// Pieces are [text, whether it was searched for].
export function pieces(list) {
  return list.map(([text, found]) => (found ? element("mark", {}, text) : text));
}

export function link(id, { query = "", at = null } = {}) {
  const parameters = new URLSearchParams({ id });
  if (query) parameters.set("q", query);
  return `recording?${parameters}${at === null ? "" : `#t=${at.toFixed(2)}`}`;
}

export function inField(target) {
  return target instanceof Element && target.closest("input, select, textarea, dialog") !== null;
}
