// The filters of the photos: a choice is taken at once.

import "./tiles.js";

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
