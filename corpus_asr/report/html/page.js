// What the page does with scripts: one clip plays at a time.
"use strict";

document.addEventListener("play", ({ target }) => {
  document.querySelectorAll("audio").forEach((each) => each !== target && each.pause());
}, true);
