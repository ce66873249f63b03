// What the page does with scripts: tables sort, one clip plays at a time.
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

document.addEventListener("play", ({ target }) => {
  document.querySelectorAll("audio").forEach((each) => each !== target && each.pause());
}, true);
