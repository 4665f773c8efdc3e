// The groups of unknown faces, and grouping them anew.

import { complain } from "./messages.js";
import { tellThere } from "./page.js";
import { post } from "./sender.js";
import "./tiles.js";

const button = document.getElementById("group-again");
button.addEventListener("click", async () => {
  button.disabled = true;
  try {
    const { groups } = await post("groups/again", {});
    tellThere(`${groups.toLocaleString()} ${groups === 1 ? "group" : "groups"} of unknown faces`);
    location.reload();
  } catch (error) {
    complain(error.message);
    button.disabled = false;
  }
});
