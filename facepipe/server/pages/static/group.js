// The page of a group of unknown faces.

import { offerNames } from "./dialogs.js";
import { common, commonKeys, ids, onAction } from "./grid.js";
import { onKeys } from "./keys.js";
import { tellThere } from "./page.js";
import { change } from "./sender.js";

const group = Number(document.querySelector("[data-group]").dataset.group);
const input = document.getElementById("group-name");
const kept = document.getElementById("kept");
const total = Number(kept.textContent);
const list = document.querySelector("[data-grid]");

const without = () => ids([...list.querySelectorAll(".face.out, .face.gone")]);

onAction(
  {
    ...common,
    take_out(faces) {
      const isOut = !faces.every((face) => face.classList.contains("out"));
      faces.forEach((face) => {
        face.classList.toggle("out", isOut);
        face.querySelector(".note").textContent = isOut ? "taken out" : "";
        face.setAttribute("aria-selected", "false");
      });
      kept.textContent = String(total - without().length);
    },
  },
  { ...commonKeys, t: "take_out" },
);

async function finish(body) {
  const answer = await change({ ...body, group, without: without() });
  if (!answer) return;
  tellThere(answer.label);
  location.href = "/review/groups";
}

document.getElementById("naming").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = input.value.trim();
  if (name) finish({ do: "name_group", name });
});
document.querySelector("[data-group-action=ignore]").addEventListener("click", () => finish({ do: "ignore_group" }));
input.addEventListener("keydown", (event) => event.key === "Escape" && input.blur());
onKeys({ w: () => input.focus() });
offerNames();
