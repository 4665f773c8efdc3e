// The page of the last steps.

import { undo } from "./page.js";

document.getElementById("steps")?.addEventListener("click", (event) => {
  const button = event.target.closest("[data-step]");
  if (!button) return;
  button.disabled = true;
  undo(Number(button.dataset.step)).then(() => location.reload());
});
