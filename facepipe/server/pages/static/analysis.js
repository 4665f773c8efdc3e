// The photos that a batch has left: how many, and starting and pausing their analysis.

import { complain } from "./messages.js";
import { post } from "./sender.js";

const POLL_MS = 1000;
const element = (id) => document.getElementById(id);
const photos = (count) => `${count.toLocaleString()} ${count === 1 ? "photo" : "photos"}`;
let doneAtFirst = null;

function show(state) {
  doneAtFirst ??= state.done;
  const isNew = state.done > doneAtFirst;
  element("analysis").hidden = !state.waiting && !state.is_running && !isNew;
  const all = state.waiting + state.done + state.failed;
  element("analysis-text").textContent = state.is_running
    ? `Analyzing: ${photos(all - state.waiting)} of ${all.toLocaleString()}`
    : state.waiting
      ? `${photos(state.waiting)} of ${all.toLocaleString()} not analyzed yet`
      : `All ${photos(all)} analyzed`;
  element("analysis-start").hidden = state.is_running || !state.waiting;
  element("analysis-pause").hidden = !state.is_running;
  element("analysis-show").hidden = !isNew;
  if (state.error) complain(state.error);
}

async function follow() {
  const response = await fetch("/review/analysis", { headers: { Accept: "application/json" } }).catch(() => null);
  if (!response?.ok) return;
  const state = await response.json();
  show(state);
  if (state.is_running) setTimeout(follow, POLL_MS);
}

async function ask(what) {
  try {
    await post(`analysis/${what}`, {});
  } catch (error) {
    complain(error.message);
  }
  follow();
}

element("analysis-start").addEventListener("click", () => ask("start"));
element("analysis-pause").addEventListener("click", () => ask("pause"));
follow();
