// What the hits are made of: how many lie in each folder, language and month. Folders and dates are
// trees: choosing one shows what is below it.

import { element, language } from "./page.js";

const MONTHS = new Intl.DateTimeFormat("en", { month: "long", timeZone: "UTC" });

export function dateName(date) {
  const [year, month] = date.split("-");
  return month ? `${MONTHS.format(Date.UTC(year, Number(month) - 1))} ${year}` : year;
}

// The steps to a place in a tree: each with the whole path to it.
function steps(path, separator) {
  const names = path.split(separator);
  return names.map((_, at) => names.slice(0, at + 1).join(separator));
}

const KINDS = {
  folder: { title: () => "Folder", separator: "/", all: "All folders", name: (path) => path.split("/").pop() },
  language: { title: () => "Language", separator: null, all: "All languages", name: language },
  date: {
    title: (run) => (run.dates_are === "modified" ? "Modified" : "Transcribed"),
    separator: "-", all: "All dates", name: dateName,
  },
};

export function showFacets(root, found, chosen, run, choose) {
  const cards = Object.entries(KINDS).map(([name, kind]) => facet(name, kind, found, chosen[name], run, choose));
  root.replaceChildren(...cards.filter(Boolean));
  root.closest("details").hidden = !root.children.length;
}

function facet(name, kind, { total, facets }, chosen, run, choose) {
  const { values, others } = facets[name];
  // One value for everything tells nothing; beside it there may be files of no folder.
  if (!chosen && (!values.length || (values.length === 1 && values[0].count === total))) return null;
  const crumbs = chosen ? [null, ...(kind.separator ? steps(chosen, kind.separator).slice(0, -1) : [])] : [];
  const shown = values.filter((value) => value.name !== chosen || !kind.separator);
  const box = element("section", { className: "facet" }, element("h2", {}, kind.title(run)));
  for (const path of crumbs) {
    box.append(chip("crumb", path === null ? kind.all : kind.name(path), "‹ ", () => choose(name, path ?? "")));
  }
  if (chosen && kind.separator) {
    box.append(element("p", { className: "chosen" }, element("bdi", {}, kind.name(chosen))));
  }
  const list = element("ul", {});
  for (const value of shown) {
    const pressed = value.name === chosen;
    const label = kind.separator === "/" ? value.label.split("/").pop() : kind.name(value.name);
    const made = chip("value", label, "", () => choose(name, pressed ? "" : value.name));
    made.setAttribute("aria-pressed", String(pressed));
    made.append(element("span", { className: "count" }, value.count.toLocaleString("en")));
    list.append(element("li", {}, made));
  }
  box.append(list);
  if (others) box.append(element("p", { className: "quiet small" }, `and ${others.toLocaleString("en")} more`));
  return box;
}

function chip(kind, label, before, action) {
  const made = element("button", { type: "button", className: `plain ${kind}` }, before, element("bdi", {}, label));
  made.addEventListener("click", action);
  return made;
}
