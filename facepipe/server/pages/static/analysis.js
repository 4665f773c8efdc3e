// The photos that a batch has left: how many, and starting and pausing their analysis.

import { complain, tell } from "./messages.js";
import { post } from "./sender.js";

const POLL_MS = 1000;
const element = (id) => document.getElementById(id);
const photos = (count) => `${count.toLocaleString()} ${count === 1 ? "photo" : "photos"}`;
let doneAtFirst = null;

/** How far the batch of another process is. */
function elsewhere(state, all) {
  const parts = [`${photos(all - state.waiting)} of ${all.toLocaleString()} analyzed by another facepipe`];
  if (state.photos_per_s !== null) parts.push(`${state.photos_per_s.toFixed(1)}/s`);
  if (state.failed) parts.push(`${state.failed.toLocaleString()} failed`);
  if (state.left_s !== null) parts.push(`${Math.ceil(state.left_s / 60)} min left`);
  return `${parts.join(", ")}. Until it has ended, you can look at what was found.`;
}

function show(state) {
  doneAtFirst ??= state.done;
  const isNew = state.done > doneAtFirst;
  element("analysis").hidden = !state.waiting && !state.is_running && !state.is_elsewhere && !isNew;
  const all = state.waiting + state.done + state.failed;
  element("analysis-text").textContent = state.is_elsewhere
    ? elsewhere(state, all)
    : state.is_running
      ? `Analyzing: ${photos(all - state.waiting)} of ${all.toLocaleString()}`
      : state.waiting
        ? `${photos(state.waiting)} of ${all.toLocaleString()} not analyzed yet`
        : `All ${photos(all)} analyzed`;
  element("analysis-start").hidden = state.is_running || state.is_elsewhere || !state.waiting;
  element("analysis-pause").hidden = !state.is_running;
  element("analysis-show").hidden = !isNew;
  if (state.error) complain(state.error);
}

async function follow() {
  const response = await fetch("/review/analysis", { headers: { Accept: "application/json" } }).catch(() => null);
  if (!response?.ok) return;
  const state = await response.json();
  show(state);
  if (state.is_running || state.is_elsewhere) setTimeout(follow, POLL_MS);
}

async function ask(what) {
  try {
    await post(`analysis/${what}`, {});
  } catch (error) {
    complain(error.message);
  }
  follow();
}

element("folder-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const added = await post("analysis/folder", { folder: element("folder-path").value.trim() });
    tell(added.new_photos ? `${photos(added.new_photos)} added` : "All photos of this folder are here already.");
    element("folder-form").reset();
    element("folder-add").open = false;
  } catch (error) {
    complain(error.message);
  }
  follow();
});
element("analysis-start").addEventListener("click", () => ask("start"));
element("analysis-pause").addEventListener("click", () => ask("pause"));
follow();
