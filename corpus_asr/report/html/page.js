// What the page does with scripts: tables sort, filter and are saved, one clip plays at a time.
// Without scripts tables stay as they are. A cell's data-value, where it has one, is what counts.
"use strict";

// Tables of class "sortable": a click on a column's name sorts by it, another turns the order.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  table.querySelectorAll("thead th").forEach((head) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const column = head.cellIndex;
      const numeric = head.classList.contains("number");
      const down = head.ariaSort ? head.ariaSort === "ascending" : numeric;
      const rows = [...body.rows].sort((one, other) =>
        numeric
          ? value(one, column) - value(other, column)
          : value(one, column).localeCompare(value(other, column)));
      body.append(...(down ? rows.reverse() : rows));
      table.querySelectorAll("thead th").forEach((each) => each.removeAttribute("aria-sort"));
      head.ariaSort = down ? "descending" : "ascending";
    });
  });
}

// Forms of class "filters" narrow a table down: every word has to be in the row, and each choice
// among the words of the row's data of that name.
for (const form of document.querySelectorAll("form.filters")) {
  const table = document.getElementById(form.dataset.table);
  const texts = new Map([...table.tBodies[0].rows].map((row) => [row, row.textContent.toLowerCase()]));
  const choices = [...form.querySelectorAll("select")];
  const narrow = () => {
    const words = form.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const [row, text] of texts) {
      const chosen = choices.every(({ name, value }) => {
        const has = row.dataset[name] ?? "";
        return !value || has === value || has.split(" ").includes(value);
      });
      row.hidden = !chosen || !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    form.querySelector("output").textContent =
      `${shown.toLocaleString("en")} of ${texts.size.toLocaleString("en")} shown`;
  };
  form.addEventListener("input", narrow);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.querySelector("button")?.addEventListener("click", ({ target }) => save(table, target.dataset.name));
  form.hidden = false;
  narrow();
}

function save(table, name) {
  const text = (cell) => {
    const words = (cell.dataset.value ?? cell.textContent).trim().replace(/\s+/g, " ");
    // A spreadsheet would take it for a formula.
    return `"${(/^[=+\-@]/.test(words) ? `'${words}` : words).replaceAll('"', '""')}"`;
  };
  const rows = [...table.rows].filter((row) => !row.hidden);
  const lines = rows.map((row) => [...row.cells].map(text).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

document.addEventListener("play", ({ target }) => {
  document.querySelectorAll("audio").forEach((each) => each !== target && each.pause());
}, true);
