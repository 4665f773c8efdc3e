// The filters of the photos: a choice is taken at once.

import "./analysis.js";
import { askSure } from "./dialogs.js";
import { send } from "./sender.js";
import "./tiles.js";

document.getElementById("sidecars").addEventListener("click", async () => {
  const text =
    "Each photo with a name gets a .xmp file beside it, which photo managers read. The photos themselves are not " +
    "changed, and what other programs wrote into such files stays.";
  if (await askSure("Write the names beside the photos?", text, "Write")) await send("sidecars", {});
});

const form = document.getElementById("filters");
form.addEventListener("change", (event) => {
  if (event.target.matches("select, [type=checkbox], [type=date], [list]")) form.requestSubmit();
});
form.addEventListener("submit", () => {
  for (const field of form.elements) {
    if (field.name && !field.value) field.disabled = true; // keeps the address short
  }
});
addEventListener("pageshow", () => {
  for (const field of form.elements) field.disabled = false;
});
