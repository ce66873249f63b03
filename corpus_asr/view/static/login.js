// The form for the password, at the URL that opens once it is right.

import { byId, send } from "./page.js";

byId("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const problem = byId("problem");
  problem.hidden = true;
  try {
    await send("login", { password: byId("password").value });
    location.reload();
  } catch (error) {
    problem.textContent = error.status === 401 ? "That is not the password." : error.message;
    problem.hidden = false;
    byId("password").select();
  }
});

// A link on another site opens without the cookie of the session, which is there all the same: then
// nothing is asked.
const { is_open } = await (await fetch("session")).json();
if (is_open) location.reload();
